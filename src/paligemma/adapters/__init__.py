"""LoRA adapters: layers for training, and a bank that serves several on one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.adapters.bank import AdapterBank as AdapterBank
    from paligemma.adapters.lora import LoraConfig as LoraConfig
    from paligemma.adapters.lora import add_lora as add_lora
    from paligemma.adapters.lora import lora_layers as lora_layers
    from paligemma.adapters.lora import lora_parameters as lora_parameters
    from paligemma.adapters.lora import merge_lora as merge_lora
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
