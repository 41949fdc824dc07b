"""Open a checkpoint of any format, recognized by its content and never by its name.

The readers of Keras and gemma.cpp are imported on first use, so that other models load faster.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

from paligemma.checkpoints.big_vision import PREFIXES, open_npz
from paligemma.checkpoints.hf_config import read_config
from paligemma.checkpoints.hf_folder import open_hf
from paligemma.checkpoints.keras_config import is_preset
from paligemma.checkpoints.opened import OpenCheckpoint
from paligemma.checkpoints.refused import why_file
from paligemma.checkpoints.tokenizer_file import read_tokenizer
from paligemma.config import PaliGemmaConfig
from paligemma.errors import CheckpointError

_ZIP, _SBS, _HDF5 = b"PK", b"SBS\n", b"\x89HDF"


def open_checkpoint(path: Path, sliding_window: int | None = None) -> OpenCheckpoint:
    """Open a folder or file in any of the formats that `docs/formats.md` lists.

    Nothing but headers is read. `sliding_window=4096` gives PaliGemma 2 the window of transformers.

    Raises CheckpointError, which names what is invalid, for damaged files and for formats that are
    not read; OptionError for an invalid window.
    """
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        return _open_folder(path, sliding_window)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist. Give the folder or file of a checkpoint.")
    return _open_file(path, sliding_window)


def read_config_and_tokenizer(path: Path) -> tuple[PaliGemmaConfig, bytes | None]:
    """Read what a checkpoint says about itself; weights of a Hugging Face folder may be missing.

    Raises CheckpointError.
    """
    path = Path(os.path.expanduser(path))
    if (path / "config.json").is_file() and not is_preset(path):
        return read_config(path).config, read_tokenizer(path)
    with open_checkpoint(path) as checkpoint:
        return checkpoint.contents.config, checkpoint.contents.tokenizer


def _open_folder(folder: Path, sliding_window: int | None) -> OpenCheckpoint:
    config = folder / "config.json"
    if is_preset(folder):
        from paligemma.checkpoints.keras import open_keras

        return open_keras(folder, sliding_window)
    if (folder / "onnx").is_dir() and not any(folder.glob("*.safetensors*")):
        raise CheckpointError(
            f"{folder} is an ONNX export, which only runs in other programs. Give the checkpoint "
            "it was made from."
        )
    if config.is_file():
        return open_hf(folder, sliding_window)
    if files := [path for path in sorted(folder.iterdir()) if is_single_file(path)]:
        if len(files) > 1:
            names = " and ".join(file.name for file in files)
            raise CheckpointError(f"{folder} contains {names}. Ambiguous: give one of the files.")
        return _open_file(files[0], sliding_window)
    return open_hf(folder, sliding_window)  # says what is missing


def _open_file(path: Path, sliding_window: int | None) -> OpenCheckpoint:
    start = _first_bytes(path)
    if start.startswith(_ZIP) and why_file(path) is None:
        return open_npz(path, sliding_window)
    if start.startswith(_SBS):
        from paligemma.checkpoints.gemma_cpp import open_sbs

        return open_sbs(path, sliding_window)
    raise CheckpointError(_why_not(path, start))


def is_single_file(path: Path) -> bool:
    """Return whether a file is a whole model, unlike, for example, a mask codec."""
    if not path.is_file():
        return False
    start = _first_bytes(path)
    if start.startswith(_SBS):
        return True
    if not start.startswith(_ZIP):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return path.suffix == ".npz"  # opening it says what is damaged
    return any(f"{prefix}llm/embedder/input_embedding.npy" in names for prefix in PREFIXES)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _why_not(path: Path, start: bytes) -> str:
    if refusal := why_file(path):
        return refusal
    if start.startswith(_HDF5):
        return (
            f"{path} is the weights of a Keras preset. Give its folder, which also contains "
            "config.json."
        )
    if start[8:9] == b"{":
        return f"{path} is one file of a checkpoint. Give its folder, which contains config.json."
    return (
        f"{path} is not a checkpoint of a known format. Give a folder in the format of Hugging "
        "Face, Keras or MLX, or an .npz or .sbs file."
    )
