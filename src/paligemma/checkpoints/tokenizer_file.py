"""Find the tokenizer that belongs to weights: a SentencePiece model next to them."""

from __future__ import annotations

from pathlib import Path

from paligemma.errors import CheckpointError

TOKENIZER_FILE = "tokenizer.model"

_NAMES = (TOKENIZER_FILE, "paligemma_tokenizer.model")
_MAX_BYTES = 64 * 1024**2  # the released one has 4 MB


def tokenizer_beside(weights: Path) -> Path:
    """Return the path of the tokenizer that `paligemma convert` writes next to a single file.

    >>> tokenizer_beside(Path("pt_224.npz")).name
    'pt_224.tokenizer.model'
    """
    return weights.with_name(f"{weights.stem}.{TOKENIZER_FILE}")


def read_tokenizer(weights: Path) -> bytes | None:
    """Return the SentencePiece model in a folder, or next to a file; None if there is none.

    Raises CheckpointError for one that cannot be read.
    """
    folder = weights if weights.is_dir() else weights.parent
    names = _NAMES if weights.is_dir() else (tokenizer_beside(weights).name, *_NAMES)
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    return None if path is None else read_tokenizer_file(path)


def read_tokenizer_file(path: Path) -> bytes:
    """Read a SentencePiece model. Raises CheckpointError."""
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    if len(content) > _MAX_BYTES:
        raise CheckpointError(
            f"{path} is larger than {_MAX_BYTES // 1024**2} MiB, so it is not a tokenizer. Give "
            "the SentencePiece model of the release."
        )
    return content
