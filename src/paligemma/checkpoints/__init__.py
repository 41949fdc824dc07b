"""Load and save checkpoints.

files.py          strict JSON, and SHA-256 checksums
reader.py         read safetensors files, a few rows at a time
hf.py             Hugging Face tensor names <-> ours
hf_config.py      config.json <-> PaliGemmaConfig
quantized.py      the format of quantized checkpoints
hub.py            download from the hub: the only file that uses the network
match.py          match tensors in the files with parameters of the model
weight_form.py    decide in which form and dtype weights are loaded
load.py           load a model from a folder
save.py           save a model to a folder, atomically
adapter.py        read and write adapters in peft's format
trained_on.py     what a model or adapter was trained on, and how it was asked
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paligemma.lazy_names import lazy_names

if TYPE_CHECKING:
    from paligemma.checkpoints.adapter import Adapter as Adapter
    from paligemma.checkpoints.adapter import fingerprint_of as fingerprint_of
    from paligemma.checkpoints.adapter import read_adapter as read_adapter
    from paligemma.checkpoints.adapter import write_adapter as write_adapter
    from paligemma.checkpoints.hf_config import StoredConfig as StoredConfig
    from paligemma.checkpoints.hf_config import read_config as read_config
    from paligemma.checkpoints.hf_config import write_config as write_config
    from paligemma.checkpoints.hub import FetchedCheckpoint as FetchedCheckpoint
    from paligemma.checkpoints.hub import Source as Source
    from paligemma.checkpoints.hub import fetch_checkpoint as fetch_checkpoint
    from paligemma.checkpoints.load import load_model as load_model
    from paligemma.checkpoints.load import read_model as read_model
    from paligemma.checkpoints.save import save_model as save_model
    from paligemma.checkpoints.trained_on import TrainedOn as TrainedOn
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
