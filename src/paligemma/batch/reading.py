"""Read the image of an item, wherever it is."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from paligemma.batch.source import Location
from paligemma.documents.open import open_document
from paligemma.errors import ImageError
from paligemma.processor.fetch import fetch_image_bytes
from paligemma.processor.image import LoadedImage, load_image


class LocationReader:
    """Reads images from the places that a source names. Threads may share one.

    A page of a document becomes an image of about twice the model's resolution whose size, and so
    its boxes, are in the units of the page: points (1/72 inch) for PDF files.
    """

    def __init__(self, *, resolution: int, allow_urls: bool = False) -> None:
        self._longest = 2 * resolution
        self._allow_urls = allow_urls
        self._tables = _TableReader()

    def read(self, location: Location | str | bytes) -> LoadedImage:
        """Raises ImageError. A path, an address or the bytes of a file are locations, too."""
        if isinstance(location, dict) and location.keys() == {"path", "page"}:
            return self._page(location["path"], location["page"])
        contents = self.contents(location)
        return load_image(contents, strict=_is_address(location))

    def contents(self, location: Location | str | bytes) -> Path | bytes:
        """The whole file, as a path where it has one. Raises ImageError."""
        if isinstance(location, bytes):
            return location
        if isinstance(location, str):
            location = {"url" if _is_address(location) else "path": location}
        match location:
            case {"url": url}:
                return self._fetch(url)
            case {"path": path}:
                return Path(path)
            case {"tar": path, "offset": offset, "size": size}:
                return _part_of_file(path, offset, size)
            case {"parquet": path, "column": column, "row": row}:
                return self._tables.read(path, column, row)
        raise ImageError(f"The location {location!r} is of no known kind.")

    def _fetch(self, url: str) -> bytes:
        if not self._allow_urls:
            raise ImageError(f"{url!r} is a web address, and fetching is not allowed.")
        return fetch_image_bytes(url)

    def _page(self, path: str, number: int) -> LoadedImage:
        with open_document(path, pages=[number]) as document:
            page = document.pages[0]
            width, height = page.size_wh
            scale = self._longest / max(width, height)
            if page.unit == "px":
                scale = min(scale, 1.0)
            size_wh = max(1, round(width * scale)), max(1, round(height * scale))
            return LoadedImage(
                rgb=page.render(size_wh=size_wh),
                name=page.name,
                full_size_wh=(max(1, round(width)), max(1, round(height))),
            )


def _is_address(location: Location | str | bytes) -> bool:
    if isinstance(location, str):
        return location.lower().startswith(("http://", "https://"))
    return isinstance(location, dict) and "url" in location


def _part_of_file(path: str, offset: int, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise ImageError(f"The shard {path!r} cannot be read: {error.strerror}.") from error
    if len(data) < size:
        raise ImageError(f"The shard {path!r} has become shorter since the job began.")
    return data


class _TableReader:
    """The bytes of images in Parquet files. The last group of rows is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._place: tuple[str, str, int] | None = None
        self._rows: list[Any] = []
        self._first_row = 0

    def read(self, path: str, column: str, row: int) -> bytes:
        with self._lock:
            number = row - self._first_row
            is_here = self._place is not None and self._place[:2] == (path, column)
            if not is_here or not 0 <= number < len(self._rows):
                self._load(path, column, row)
                number = row - self._first_row
            value = self._rows[number] if number < len(self._rows) else None
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise ImageError(f"Row {row} of {os.path.basename(path)!r} has no image.")
        return value

    def _load(self, path: str, column: str, row: int) -> None:
        from pyarrow import ArrowException, parquet

        try:
            with parquet.ParquetFile(path) as file:
                self._first_row = 0
                for group in range(file.num_row_groups):
                    num_rows = file.metadata.row_group(group).num_rows
                    if row < self._first_row + num_rows:
                        table = file.read_row_group(group, columns=[column])
                        self._rows = table.column(column).to_pylist()
                        self._place = path, column, group
                        return
                    self._first_row += num_rows
        except (OSError, ArrowException) as error:
            raise ImageError(f"The table {path!r} cannot be read: {error}.") from error
        self._rows, self._place = [], None
