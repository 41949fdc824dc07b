"""Files to weights in the model, and back.

json_file.py      small JSON files, parsed strictly
reader.py         safetensors shards, read a few rows at a time
writer.py         safetensors files, written a few rows at a time
checksums.py      SHA-256 sums of these files
hf.py             Hugging Face tensor names <-> ours
hf_config.py      config.json <-> PaliGemmaConfig
quantized.py      what a quantized checkpoint stores
hub.py            fetch a model from the hub: the only file that uses the network
match.py          tensors in the files <-> parameters of the model
weight_form.py    the form and dtype of the weights: the only file that decides
load.py           folder -> model
save.py           model -> folder, whole or not at all
adapter.py        adapters in peft's format, both ways
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
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "load": ("load_model", "read_model"),
            "save": ("save_model",),
            "hf_config": ("StoredConfig", "read_config", "write_config"),
            "hub": ("FetchedCheckpoint", "Source", "fetch_checkpoint"),
            "adapter": ("Adapter", "fingerprint_of", "read_adapter", "write_adapter"),
        },
    )
