"""Load and save checkpoints.

What a checkpoint contains, whatever its format:
rows.py           the table of parameters that readers return and writers take
layout.py         where our parameters are in the tensors of another format
opened.py         a checkpoint whose headers were read
open.py           recognize a format and open a checkpoint
convert.py        from any format to any other

One format each: hf_folder.py (with hf.py, hf_config.py, match.py, quantized.py, bitsandbytes.py),
big_vision.py (npz.py), keras.py (hdf5.py), mlx.py, gemma_cpp.py (sbs.py), onnx/.

Models and their files:
load.py           load a model
weight_form.py    decide in which form and dtype weights are loaded
save.py           save a model to a folder, atomically
reader.py         read safetensors files, a few rows at a time
files.py          strict JSON, and SHA-256 checksums
tokenizer_file.py find the tokenizer next to weights
tokenizer_json.py SentencePiece model -> tokenizer.json
hub.py            download models: the only file that uses the network
siglip.py         load the vision encoder of a SigLIP model into ours
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
    from paligemma.checkpoints.convert import convert_checkpoint as convert_checkpoint
    from paligemma.checkpoints.hf_config import StoredConfig as StoredConfig
    from paligemma.checkpoints.hf_config import read_config as read_config
    from paligemma.checkpoints.hf_config import write_config as write_config
    from paligemma.checkpoints.hub import FetchedCheckpoint as FetchedCheckpoint
    from paligemma.checkpoints.hub import Source as Source
    from paligemma.checkpoints.hub import fetch_checkpoint as fetch_checkpoint
    from paligemma.checkpoints.load import load_model as load_model
    from paligemma.checkpoints.load import read_model as read_model
    from paligemma.checkpoints.open import open_checkpoint as open_checkpoint
    from paligemma.checkpoints.opened import OpenCheckpoint as OpenCheckpoint
    from paligemma.checkpoints.rows import Contents as Contents
    from paligemma.checkpoints.rows import StoredRows as StoredRows
    from paligemma.checkpoints.save import save_model as save_model
    from paligemma.checkpoints.siglip import load_vision_tower as load_vision_tower
    from paligemma.checkpoints.trained_on import TrainedOn as TrainedOn
else:
    __getattr__, __dir__, __all__ = lazy_names(__name__)
