"""Files of results: JSON lines, CSV, COCO and YOLO, written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from paligemma.errors import OptionError

if TYPE_CHECKING:
    from paligemma.cli.image_arguments import NamedImage

OutputFormat = Literal["jsonl", "csv", "coco", "yolo"]

_BY_SUFFIX: dict[str, OutputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".json": "coco",
    "": "yolo",
}
_OBJECT_COMMANDS = ("detect", "segment")


class Writer(Protocol):
    """Takes the results one by one."""

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        """`line` is the JSON of the result, which may be an error."""
        ...

    def close(self) -> None: ...


def choose_format(
    path: Path | None, name: OutputFormat | None, *, command: str, stems: Sequence[str]
) -> OutputFormat | None:
    """The format of the output file, after a check that it can be written.

    Raises OptionError.
    """
    if path is None:
        if name is not None:
            raise OptionError("--output-format needs --output FILE.")
        return None
    chosen = name or _BY_SUFFIX.get(path.suffix.lower())
    if chosen is None or (chosen in ("coco", "yolo") and command not in _OBJECT_COMMANDS):
        for_objects = ", a .json file (COCO) or a folder (YOLO)"
        raise OptionError(
            f"--output {path}: the results of {command} can be written to a .jsonl or .csv file"
            f"{for_objects if command in _OBJECT_COMMANDS else ''}. Choose such a name, or add "
            "--output-format."
        )
    if not path.absolute().parent.is_dir():
        raise OptionError(f"The folder {path.parent} for {path.name} does not exist.")
    if not os.access(path.absolute().parent, os.W_OK):
        raise OptionError(f"The folder {path.parent} for {path.name} is not writable.")
    if chosen == "yolo":
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OptionError(f"{path} already exists. Choose another name or remove it first.")
        stem, count = Counter(stems).most_common(1)[0]
        if count > 1:
            raise OptionError(
                f"Two images are called {stem!r}, so that both would have the labels {stem}.txt. "
                "Use another format, or one folder at a time."
            )
    elif path.is_dir():
        raise OptionError(f"--output {path} is a folder. Give the name of a file.")
    return chosen


@contextmanager
def open_output(path: Path, output_format: OutputFormat) -> Iterator[Writer]:
    """A writer of a file or folder that appears when the context ends without an exception."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        if output_format == "yolo":
            writer: Writer = _Yolo(unfinished)
            yield writer
            writer.close()
            if path.is_dir():
                path.rmdir()
        else:
            with unfinished.open("w", encoding="utf-8", newline="") as file:
                writer = _WRITERS[output_format](file)
                yield writer
                writer.close()
        unfinished.replace(path)
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)


class _JsonLines:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        # Escapes everywhere, since the name of a file may not be valid UTF-8.
        text = json.dumps(line, ensure_ascii=not _is_utf8(image.name), allow_nan=False)
        self._file.write(text + "\n")

    def close(self) -> None: ...


class _Csv:
    """A row per object, or per text; an image that could not be read has a row with its error."""

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file)
        self._columns: tuple[str, ...] = ()
        self._errors: list[tuple[str, str]] = []

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        name = _utf8(" ; ".join(line.get("images", [image.name])))
        if isinstance(result, Exception):
            self._errors.append((name, str(result)))
        elif "objects" not in line["result"]:
            self._write(("image", "text", "score", "error"))
            values = line["result"]
            self._writer.writerow((name, values["text"], values.get("score", ""), ""))
        else:
            columns = ("image", "label", "score", "x1", "y1", "x2", "y2", "unsure", "error")
            self._write(columns)
            for obj in line["result"]["objects"]:
                box = (f"{edge:.2f}" for edge in obj["box_xyxy"])
                values = (name, obj["label"], obj["score"], *box, obj["unsure"], "")
                self._writer.writerow(values)

    def _write(self, columns: tuple[str, ...]) -> None:
        """The heading, and errors that came before the first result."""
        if not self._columns:
            self._columns = columns
            self._writer.writerow(columns)
        for name, error in self._errors:
            blanks = [""] * (len(self._columns) - 2)
            self._writer.writerow((name, *blanks, error))
        self._errors.clear()

    def close(self) -> None:
        self._write(self._columns or ("image", "error"))


class _Coco:
    """A COCO data set of all images with a result, whose annotations have scores."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[str, int] = {}

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        if isinstance(result, Exception):
            return
        made = result.to_coco(len(self._images) + 1, self._categories)
        self._images.append({**made["images"][0], "file_name": _utf8(image.name)})
        self._categories = {item["name"]: item["id"] for item in made["categories"]}
        first_id = len(self._annotations) + 1
        for number, annotation in enumerate(made["annotations"], start=first_id):
            self._annotations.append({**annotation, "id": number})

    def close(self) -> None:
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        parts = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }
        json.dump(parts, self._file, ensure_ascii=False, allow_nan=False)
        self._file.write("\n")


class _Yolo:
    """labels/NAME.txt for each image, and data.yaml with the names of the classes.

    The lines are those of `Objects.to_yolo`, with the same class numbers for all images.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._classes: dict[str, int] = {}
        (folder / "labels").mkdir(parents=True)

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        if isinstance(result, Exception):
            return
        for name in result.label_names:
            self._classes.setdefault(name, len(self._classes))
        path = self._folder / "labels" / f"{image.stem}.txt"
        path.write_text(result.to_yolo(self._classes), encoding="utf-8")

    def close(self) -> None:
        names = "".join(
            f"  {number}: {json.dumps(name, ensure_ascii=False)}\n"
            for name, number in self._classes.items()
        )
        text = f"path: .\ntrain: images\nval: images\nnames:\n{names}"
        (self._folder / "data.yaml").write_text(text, encoding="utf-8")


_WRITERS: dict[OutputFormat, Callable[[TextIO], Writer]] = {
    "jsonl": _JsonLines,
    "csv": _Csv,
    "coco": _Coco,
}


def _is_utf8(text: str) -> bool:
    return _utf8(text) == text


def _utf8(text: str) -> str:
    r"""The text, with `\udcff` for a byte of a file's name that is not UTF-8."""
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")
