"""Parquet files of the Hugging Face hub with a picture in each row. Needs pyarrow.

Pictures stay compressed in memory until they are asked for.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from paligemma.errors import MissingExtraError


class Row(NamedTuple):
    """One row: the picture's bytes behind a function, or None, and the other columns."""

    image: Callable[[], bytes] | None
    values: dict[str, Any]


def read_table(path: Path, column: str, *, color_only: bool = False) -> Iterator[Row]:
    """Rows in order; `column` holds {"bytes": ..., "path": ...}.

    `color_only` drops pictures with one channel. Raises MissingExtraError without pyarrow;
    KeyError for a column that is not there.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data", f"Reading {path.name!r}") from error
    for batch in parquet.ParquetFile(path).iter_batches(batch_size=256):
        for values in batch.to_pylist():
            picture = values.pop(column)
            data = picture["bytes"] if picture else None
            keep = data is not None and not (color_only and _is_gray(data))
            yield Row(partial(bytes, data) if keep else None, values)


def _is_gray(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as picture:
        return len(picture.getbands()) == 1
