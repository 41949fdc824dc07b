"""Files of results: JSON lines, CSV, COCO and YOLO, written whole or not at all, and text files.

The text file of an image is written as soon as its text is known.
"""

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

from paligemma.cli.console import check_output_files
from paligemma.errors import OptionError
from paligemma.escaping import csv_cell
from paligemma.writing import is_stream, replacing, short_name, write_whole

if TYPE_CHECKING:
    from paligemma.cli.image_arguments import NamedImage

OutputFormat = Literal["jsonl", "csv", "txt", "coco", "yolo"]

_BY_SUFFIX: dict[str, OutputFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".json": "coco",
    "": "yolo",
}
_DASH, _STDOUT = Path("-"), Path("/dev/stdout")
_OBJECT_COMMANDS = ("detect", "segment")
_TEXT_COMMANDS = ("caption", "describe", "ask", "ocr")


class Writer(Protocol):
    """Takes the results one by one."""

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        """`line` is the JSON of the result, which may be an error."""
        ...

    def close(self) -> None: ...


def choose_format(
    path: Path | None, name: OutputFormat | None, *, command: str, images: Sequence[NamedImage]
) -> OutputFormat | None:
    """The format of the output file, after a check that it can be written.

    Raises OptionError.
    """
    if path is None:
        if name is None:
            return None
        if name != "txt":
            raise OptionError(f"--output-format {name} needs --output FILE.")
    chosen = name
    if chosen is None and path is not None:
        chosen = _format_of(path, command)
    needed = {"coco": _OBJECT_COMMANDS, "yolo": _OBJECT_COMMANDS, "txt": _TEXT_COMMANDS}
    if chosen is None or command not in needed.get(chosen, (command,)):
        others = ""
        if command in _OBJECT_COMMANDS:
            others = ", a .json file (COCO) or a folder (YOLO)"
        elif command in _TEXT_COMMANDS:
            others = ", or to a folder with a .txt file for each image"
        given, advice = f"--output-format {name}", "Choose one with --output"
        if path is not None:
            given, advice = f"--output {path}", "Choose such a name, or add --output-format"
        raise OptionError(
            f"{given}: the results of {command} can be written to a .jsonl or .csv file{others}. "
            f"{advice}."
        )
    if chosen == "txt":
        _check_text_files(path, images)
    elif path is not None:
        _check_file(path, chosen, [image.stem for image in images])
    return chosen


def _format_of(path: Path, command: str) -> OutputFormat | None:
    """What the name says; None if nothing, as that of a device."""
    chosen = _BY_SUFFIX.get(path.suffix.lower())
    if chosen != "yolo":
        return chosen
    if path == _DASH or is_stream(path):
        return None
    return "txt" if command in _TEXT_COMMANDS else "yolo"


def _check_file(path: Path, chosen: OutputFormat, stems: Sequence[str]) -> None:
    check_output_files(None if path == _DASH else path)
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


def text_file(image: NamedImage, folder: Path | None) -> Path:
    """The file for the text of an image: in the folder, or next to the image.

    Raises OptionError for an image that is no file and has nothing next to it.
    """
    if folder is not None:
        return folder / f"{image.stem}.txt"
    if not isinstance(image.source, Path):
        raise OptionError(
            f"The image {image.name} is not a file, so its text needs a folder: --output FOLDER."
        )
    return image.source.with_suffix(".txt")


def _check_text_files(folder: Path | None, images: Sequence[NamedImage]) -> None:
    if folder is not None and not folder.is_dir() and (folder.exists() or folder.suffix):
        raise OptionError(f"--output {folder} must be a folder for --output-format txt.")
    if folder is not None and not folder.absolute().parent.is_dir():
        raise OptionError(f"The folder {folder.parent} for {folder.name} does not exist.")
    paths = [text_file(image, folder) for image in images]
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise OptionError(
            f"The texts of {count} images would all be written to {path}. Use a .jsonl or .csv "
            "file, or one folder at a time."
        )
    for parent in {folder or path.parent for path in paths}:
        if not os.access(parent if parent.is_dir() else parent.absolute().parent, os.W_OK):
            raise OptionError(f"The folder {parent} is not writable.")


def finished_lines(path: Path, *, command: str, model: str) -> dict[str, str]:
    """The lines of an earlier run by image, without those of errors; {} if there is no file.

    Raises OptionError for a file that is not of the same command and model.
    """
    if not path.exists():
        return {}
    lines = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            line = json.loads(text)
            if "error" in line:
                continue
            is_same = (line["task"], line["model"]) == (command, model)
            lines[line["image"]] = text + "\n"
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(
                f"Line {number} of {path} is not the result of an earlier run. Choose another "
                "--output, or leave out --skip-existing to replace the file."
            ) from error
        if not is_same:
            raise OptionError(
                f"Line {number} of {path} is a result of {line['task']} by {line['model']}, not of "
                f"{command} by {model}. Choose another --output."
            )
    return lines


@contextmanager
def open_output(
    path: Path | None, output_format: OutputFormat, *, kept_lines: Sequence[str] | None = None
) -> Iterator[Writer]:
    """A writer of a file or folder that appears when the context ends without an exception.

    With `kept_lines`, a file of JSON lines begins with these, and appears in any case, for the next
    run to continue. Text files are written one by one.
    """
    if output_format == "txt":
        yield _Texts(path)
        return
    assert path is not None
    if output_format == "yolo":
        with _new_folder(path) as unfinished:
            labels = _Yolo(unfinished)
            yield labels
            labels.close()
        return
    failure: BaseException | None = None
    with (
        replacing(_STDOUT if path == _DASH else path) as unfinished,
        unfinished.open("w", encoding="utf-8", newline="") as file,
    ):
        file.writelines(kept_lines or ())
        writer = _WRITERS[output_format](file)
        try:
            yield writer
        except BaseException as error:
            if kept_lines is None:
                raise
            failure = error
        writer.close()
    if failure is not None:
        raise failure


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder that gets the name `path`, where at most an empty one is, if all goes well."""
    unfinished = path.with_name(f".{short_name(path.name)}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        if path.is_dir():
            path.rmdir()
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class _JsonLines:
    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        # Escapes everywhere, since the name of a file may not be valid UTF-8.
        text = json.dumps(line, ensure_ascii=not _is_utf8(image.name), allow_nan=False)
        self._file.write(text + "\n")

    def close(self) -> None: ...


class _Csv:
    """A row per object, or per text; an image that could not be read has a row with its error.

    Text that a spreadsheet would take for a formula begins with an apostrophe.
    """

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(file, lineterminator="\n")
        self._columns: tuple[str, ...] = ()
        self._errors: list[tuple[str, str]] = []

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        from paligemma.results import CSV_COLUMNS, Generation

        name = _utf8(" ; ".join(line.get("images", [image.name])))
        if isinstance(result, Exception):
            self._errors.append((name, str(result)))
        elif isinstance(result, Generation):
            self._write(("image", "text", "score", "error"))
            values = line["result"]
            self._row(name, values["text"], values.get("score", ""), "")
        else:
            self._write(("image", *CSV_COLUMNS, "error"))
            for row in result.csv_rows():
                self._row(name, *row, "")

    def _row(self, *cells: Any) -> None:
        self._writer.writerow(
            [csv_cell(cell, safe=True) if isinstance(cell, str) else cell for cell in cells]
        )

    def _write(self, columns: tuple[str, ...]) -> None:
        """The heading, and errors that came before the first result."""
        if not self._columns:
            self._columns = columns
            self._writer.writerow(columns)
        for name, error in self._errors:
            blanks = [""] * (len(self._columns) - 2)
            self._row(name, *blanks, error)
        self._errors.clear()

    def close(self) -> None:
        self._write(self._columns or ("image", "error"))


class _Texts:
    """NAME.txt for each image, in a folder or next to the image."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        if folder is not None:
            folder.mkdir(exist_ok=True)

    def add(self, image: NamedImage, line: dict[str, Any], result: Any) -> None:
        from paligemma.results import Caption, one_line

        if isinstance(result, Exception):
            return
        # A caption is one line, as training reads the file.
        text = one_line(result.text) if isinstance(result, Caption) else result.text
        path = text_file(image, self._folder)
        write_whole(path, f"{text}\n".encode())

    def close(self) -> None: ...


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
