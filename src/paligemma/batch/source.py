"""What a job works on: the images of folders, patterns, lists, tables, shards and documents.

Nothing is read but names, sizes and headers. Every item has a key, by which its result is found,
and a fingerprint, which tells whether it has changed. Items are sorted by key.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from paligemma.data.source import is_image
from paligemma.errors import (
    ImageError,
    MissingExtraError,
    OptionError,
    check_choice,
    check_whole,
    counted,
)

Check = Literal["stat", "content"]
Location = dict[str, Any]
"""Where a worker finds the image, as JSON holds it: {"path"}, {"path", "page"}, {"url"},
{"tar", "offset", "size"} or {"parquet", "column", "row"}."""

IMAGE_COLUMNS = ("image", "path", "url")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_NUMBER = re.compile(r"#(?:page|question|names)=[0-9]{4,}")
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".jsonl.gz")
_SHOWN_COLUMNS = 8  # in a note
_DOCUMENTS = (".pdf", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image or document of a job."""

    key: str
    """Its path below the root, the name in its list, or its address; with #page=0003 for pages."""
    fingerprint: str
    """Size and time of change of its file, or its SHA-256."""
    location: Location
    asks: dict[str, str] = field(default_factory=dict)
    """What its row of a table asks by itself, by the name of the column: {"question": "how many?"}.
    It is a part of the fingerprint."""
    place: str = ""
    """Where it is named, such as "Line 3 of 'rows.jsonl'"; "" where that is its key."""

    @property
    def file(self) -> Path | None:
        """The file of the image itself; None where it is a part of one, or elsewhere."""
        is_file = self.location.keys() == {"path"}
        return Path(self.location["path"]) if is_file else None


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Which items of the sources to take, and how to tell that one has changed.

    Raises OptionError for values that are not allowed.
    """

    where: str | None = None
    """Pattern that the key, or the name at its end, must match, such as "*.jpg"."""
    limit: int | None = None
    """The first so many by key."""
    shard: tuple[int, int] | None = None
    """(3, 16): the third of 16 parts. Items belong to parts by a hash of their key."""
    check: Check = "stat"
    """What makes an item a changed one: size and time of its file, or its content."""
    allow_urls: bool = False
    whole_documents: bool = False
    """A PDF or TIFF file is one item, and not one for each of its pages."""

    def __post_init__(self) -> None:
        check_choice("check", self.check, Check)
        if self.limit is not None:
            check_whole("limit", self.limit)
        if self.shard is not None:
            number, count = self.shard
            check_whole("The number of shards", count)
            if not 1 <= number <= count:
                raise OptionError(
                    f"The shard is {number}/{count}; its number must be from 1 to {count}."
                )


def find_items(
    words: Sequence[str],
    options: SourceOptions | None = None,
    *,
    text_column: str | None = None,
    say: Callable[[str], object] = lambda text: None,
) -> list[Item]:
    """The items of the sources, sorted by key, each once.

    A source is a folder (with those in it), a pattern, an image, a PDF or TIFF file, a list of
    paths or addresses (.txt), a table (.jsonl with the column "image", "path" or "url", and
    perhaps "id"; .parquet, also with the bytes of images), or a webdataset shard (.tar). Paths in
    lists are relative to the list.

    `text_column` names the column of tables in which a row has what it asks, such as "question".
    Rows about the same image are items of their own then: without ids, "a.jpg" and
    "a.jpg#question=0002". `say` is told of columns that are not used.

    Raises OptionError for a source that does not exist or has no images, for two items of the
    same key, and for a row that asks with no text.
    """
    options = options or SourceOptions()
    reading = _Reading(options=options, text_column=text_column, say=say)
    named = [_Source.of(word) for word in words]
    root = os.path.commonpath([source.base for source in named]) if named else ""
    found: dict[str, Item] = {}
    for source in named:
        for item in source.items(root, reading):
            other = found.setdefault(item.key, item)
            if (other.location, other.asks) != (item.location, item.asks):
                raise OptionError(
                    f"Two items have the key {item.key!r}, so that their results could not be "
                    'told apart. Give each row an "id" of its own, or run a job for each source.'
                )
    if not found:
        raise OptionError(f"There are no images in {', '.join(map(repr, words))}. Check the path.")
    items = [found[key] for key in sorted(found) if _is_wanted(key, options.where)]
    if not items:
        raise OptionError(
            f"None of the {counted(len(found), 'image')} matches the pattern {options.where!r}."
        )
    items = items[: options.limit]
    if options.shard is not None:
        number, count = options.shard
        items = [item for item in items if _shard_of(item.key, count) == number]
    return items


def _is_wanted(key: str, pattern: str | None) -> bool:
    image = _NUMBER.sub("", key)  # of which the key may be a page or a question
    names = (key, key.rpartition("/")[2], image, image.rpartition("/")[2])
    return pattern is None or any(fnmatch.fnmatch(name, pattern) for name in names)


def _shard_of(key: str, count: int) -> int:
    """By the key alone, so that the parts fit together even if an image is added meanwhile."""
    return zlib.crc32(key.encode("utf-8", errors="surrogateescape")) % count + 1


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How the sources of a job are read."""

    options: SourceOptions
    text_column: str | None
    say: Callable[[str], object]

    def asks(self, values: Mapping[str, Any], where: str) -> dict[str, str]:
        """What a row asks by itself. Raises OptionError for what is no text."""
        text = None if self.text_column is None else values.get(self.text_column)
        if text is None:
            return {}
        if not isinstance(text, str) or not text.strip():
            raise OptionError(
                f'{where} has {text!r} as its "{self.text_column}"; expected text with at least '
                "one word."
            )
        return {str(self.text_column): text}

    def say_unused(self, path: Path, columns: Iterable[str], used: Iterable[str | None]) -> None:
        """Tell which columns of a table the job does not use."""
        unused = [name for name in dict.fromkeys(columns) if name not in set(used)]
        if unused:
            shown = ", ".join(map(repr, unused[:_SHOWN_COLUMNS]))
            more = f" and {len(unused) - _SHOWN_COLUMNS} more" if unused[_SHOWN_COLUMNS:] else ""
            self.say(
                f"The table {str(path)!r} has columns that this task does not use: {shown}{more}."
            )


class _RowKeys:
    """Keys of the rows of a table: their ids, else their images. Where several rows ask about an
    image, the second one is "a.jpg#question=0002"."""

    def __init__(self) -> None:
        self._places: dict[str, str] = {}
        self._asked: Counter[str] = Counter()

    def of(self, image: str, name: object, asks: Mapping[str, str], where: str) -> str:
        """Raises OptionError for a key that an earlier row has."""
        key = image if name is None else str(name)
        if name is None and asks:
            self._asked[image] += 1
            if (number := self._asked[image]) > 1:
                key = f"{image}#{next(iter(asks))}={number:04d}"
        if (earlier := self._places.setdefault(key, where)) != where:
            raise OptionError(
                f"{where} has the same key as {earlier.partition(' of ')[0].lower()}, {key!r}. "
                'Give each row an "id" of its own.'
            )
        return key


def _asking(items: Iterable[Item], asks: dict[str, str], place: str) -> Iterator[Item]:
    """The items of a row with what it asks, on which their results depend."""
    mark = ""
    if asks:
        text = json.dumps(asks, sort_keys=True)  # ASCII
        mark = "-" + hashlib.sha256(text.encode("ascii")).hexdigest()[:16]
    for item in items:
        yield replace(item, fingerprint=item.fingerprint + mark, asks=asks, place=place)


@dataclass(frozen=True, kw_only=True)
class _Source:
    word: str
    base: str
    """The absolute path of the folder that keys are relative to, if it is the only source."""
    paths: tuple[Path, ...]

    @classmethod
    def of(cls, word: str) -> _Source:
        if match := _URL.match(word):
            raise OptionError(
                f"{word!r} is an address ({match[1]}). Put addresses into a text file, one a line, "
                "give that, and add --allow-urls."
            )
        path = Path(os.path.expanduser(word)) if word.startswith("~") else Path(word)
        if word and os.path.lexists(path):
            base = path if path.is_dir() else path.parent
            return cls(word=word, base=os.path.abspath(base), paths=(path,))
        if glob.has_magic(word):
            paths = tuple(Path(name) for name in sorted(glob.glob(str(path), recursive=True)))
            files = tuple(each for each in paths if each.is_file())
            if not files:
                raise OptionError(f"No file matches the pattern {word!r}. Check the path.")
            # Lists and tables next to images, such as the texts of an earlier run, are not meant.
            images = tuple(each for each in files if _is_image_or_pdf(each))
            fixed = Path(*_until_magic(path.parts[:-1]))
            return cls(word=word, base=os.path.abspath(fixed), paths=images or files)
        raise OptionError(f"The source {word!r} does not exist. Check the path.")

    def items(self, root: str, reading: _Reading) -> Iterator[Item]:
        for path in self.paths:
            if path.is_dir():
                for file in _files_below(path):
                    if _is_image_or_pdf(file):
                        yield from _of_image_file(file, _relative(file, root), reading)
            else:
                yield from _of_file(path, _relative(path, root), reading)


def _is_image_or_pdf(path: Path) -> bool:
    return is_image(path) or (path.suffix.lower() == ".pdf" and not path.name.startswith("._"))


def _until_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _files_below(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise OptionError(
            f"The folder {error.filename!r} cannot be listed: {error.strerror}."
        ) from error

    for root, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in files if not name.startswith("."))


def _relative(path: Path, root: str) -> str:
    return Path(os.path.relpath(os.path.abspath(path), root)).as_posix()


def _of_file(path: Path, key: str, reading: _Reading) -> Iterator[Item]:
    """The items of a file, by its suffix."""
    if path.name.lower().endswith(_COMPRESSED):
        raise OptionError(f"{str(path)!r} is compressed. Unpack it first.")
    reader = _READERS.get(path.suffix.lower())
    if reader is not None:
        if path.is_fifo():  # which could be waited for forever
            raise OptionError(f"{str(path)!r} is a pipe. Write what it says to a file first.")
        yield from reader(path, key, reading)
    elif _is_image_or_pdf(path):
        yield from _of_image_file(path, key, reading)
    else:
        raise OptionError(
            f"{str(path)!r} is not a file that a job can take. Give images, PDF files, a .txt "
            "list, a .jsonl or .parquet table, or .tar shards."
        )


def _of_image_file(path: Path, key: str, reading: _Reading) -> Iterator[Item]:
    """The image, or the pages of a document."""
    fingerprint = _fingerprint(path, reading.options.check)
    location = {"path": str(path)}
    num_pages = 0
    if path.suffix.lower() in _DOCUMENTS and not reading.options.whole_documents:
        num_pages = _num_pages(path)
    if num_pages < 1 or (num_pages == 1 and path.suffix.lower() != ".pdf"):
        yield Item(key=key, fingerprint=fingerprint, location=location)
        return
    for number in range(1, num_pages + 1):
        yield Item(
            key=f"{key}#page={number:04d}",
            fingerprint=fingerprint,
            location={**location, "page": number},
        )


def _num_pages(path: Path) -> int:
    """0 for a file that cannot be opened, which its worker will say."""
    from paligemma.documents.open import open_document

    try:
        with open_document(path) as document:
            return document.num_pages
    except (ImageError, OptionError):
        return 0


def _of_entry(text: str, key: str, where: str, folder: Path, reading: _Reading) -> Iterator[Item]:
    """The item of a path or an address in a list."""
    match = _URL.match(text)
    if match is None:
        path = folder / text
        if not text or "\0" in text:
            raise OptionError(f"{where} has no image: {text!r} is not a path.")
        yield from _of_image_file(path, key, reading)
        return
    if match[1].lower() not in ("http", "https"):
        raise OptionError(
            f"{where} names {text!r}, which cannot be fetched: only http and https addresses can."
        )
    if not reading.options.allow_urls:
        raise OptionError(f"{where} names the web address {text!r}. Add --allow-urls to fetch it.")
    yield Item(key=key, fingerprint="", location={"url": text})


def _of_list(path: Path, key: str, reading: _Reading) -> Iterator[Item]:
    items = list(_of_lines(path, reading))
    if items and all(item.fingerprint == "missing" for item in items):
        raise OptionError(
            f"None of the files in the list {str(path)!r} exists, such as {items[0].key!r}. "
            "Expected a path or an address on each line; paths are relative to the list."
        )
    yield from items


def _of_lines(path: Path, reading: _Reading) -> Iterator[Item]:
    for number, line in enumerate(_lines(path), start=1):
        if text := line.strip():
            where = f"Line {number} of {str(path)!r}"
            yield from _of_entry(text, text, where, path.parent, reading)


def _of_jsonl(path: Path, key: str, reading: _Reading) -> Iterator[Item]:
    keys = _RowKeys()
    columns: dict[str, None] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {str(path)!r}"
        row, column = _row_of(line, where)
        columns |= dict.fromkeys(name for name in row if name != column)
        image, asks = row[column], reading.asks(row, where)
        name = keys.of(image, row.get("id"), asks, where)
        yield from _asking(_of_entry(image, name, where, path.parent, reading), asks, where)
    reading.say_unused(path, columns, ("id", reading.text_column))


def _image_column(names: Container[str]) -> str | None:
    return next((name for name in IMAGE_COLUMNS if name in names), None)


def _row_of(line: str, where: str) -> tuple[dict[str, Any], str]:
    """The row and the name of its image's column. Raises OptionError."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise OptionError(f"{where} is not JSON: {error}.") from error
    column = _image_column(row) if isinstance(row, dict) else None
    is_named = column is not None and isinstance(row[column], str)
    if column is None or not is_named or not isinstance(row.get("id"), str | int | None):
        raise OptionError(
            f'{where} does not name an image; expected an object such as {{"image": "a.jpg"}}, '
            'with a text or a number as its "id", if it has one.'
        )
    return row, column


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8"
        raise OptionError(f"The list {str(path)!r} cannot be read: {reason}.") from error


def _of_tar(path: Path, key: str, reading: _Reading) -> Iterator[Item]:
    fingerprint = _fingerprint(path, reading.options.check)
    try:
        with tarfile.open(path, mode="r:") as tar:
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # else all headers are kept
                name = info.name.removeprefix("./")
                if info.isfile() and is_image(Path(name)):
                    yield Item(
                        key=f"{key}/{name}",
                        fingerprint=fingerprint,
                        location={
                            "tar": str(path),
                            "offset": info.offset_data,
                            "size": info.size,
                        },
                    )
    except OSError as error:
        raise OptionError(f"The shard {str(path)!r} cannot be read: {error.strerror}.") from error
    except tarfile.TarError as error:
        raise OptionError(
            f"The shard {str(path)!r} is not a complete tar file: {error}."
        ) from error


def _of_parquet(path: Path, key: str, reading: _Reading) -> Iterator[Item]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingExtraError("pyarrow", "batch", "Reading Parquet") from None
    fingerprint = _fingerprint(path, reading.options.check)
    try:
        with parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            column = _image_column(schema.names)
            kind = None if column is None else schema.field(column).type
            is_text = kind is not None and _is_text(kind)
            if column is None or not (is_text or _holds_bytes(kind)):
                raise OptionError(
                    f"The table {str(path)!r} has no column with images: expected "
                    f"{', '.join(map(repr, IMAGE_COLUMNS))} with paths or the bytes of images. It "
                    f"has {', '.join(map(repr, schema.names))}."
                )
            used = {"id", reading.text_column, column if is_text else None} & {*schema.names}
            columns = [name for name in schema.names if name in used]
            keys = _RowKeys()
            for row, values in enumerate(_rows_of(file, columns)):
                where = f"Row {row} of {str(path)!r}"
                image = values[column] if is_text else f"{key}#row={row:08d}"
                if image is None or values.get("id", image) is None:
                    raise OptionError(f"{where} has no image, or no id.")
                asks = reading.asks(values, where)
                name = keys.of(image, values.get("id"), asks, where)
                if is_text:
                    items = _of_entry(image, name, where, path.parent, reading)
                else:
                    items = iter([_row_item(path, column, row, name, fingerprint)])
                yield from _asking(items, asks, where)
            reading.say_unused(path, schema.names, {column, "id", reading.text_column})
    except (OSError, ArrowException) as error:
        raise OptionError(f"The table {str(path)!r} cannot be read: {error}.") from error


def _rows_of(file: Any, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file with these columns, which may be none."""
    if not columns:
        yield from ({} for _ in range(file.metadata.num_rows))
        return
    for batch in file.iter_batches(columns=columns):
        yield from batch.to_pylist()


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _holds_bytes(kind: Any) -> bool:
    """Whether a column's type is binary, or a struct with "bytes", as Hugging Face writes them."""
    from pyarrow import types

    if kind is None:
        return False
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _row_item(path: Path, column: str | None, row: int, key: str, fingerprint: str) -> Item:
    location = {"parquet": str(path), "column": column, "row": row}
    return Item(key=key, fingerprint=fingerprint, location=location)


def _fingerprint(path: Path, check: Check) -> str:
    try:
        status = path.stat()
        if check == "stat":
            return f"{status.st_size}-{status.st_mtime_ns}"
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):  # its worker will say so
        return "missing"


_READERS: dict[str, Callable[[Path, str, _Reading], Iterator[Item]]] = {
    ".txt": _of_list,
    ".jsonl": _of_jsonl,
    ".ndjson": _of_jsonl,
    ".parquet": _of_parquet,
    ".tar": _of_tar,
}
