"""The catalog as a file: CSV, JSON Lines or Parquet, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from paligemma.catalog.articles import Article
from paligemma.catalog.reading import COLUMNS_OF_ALL, attributes_of
from paligemma.errors import MissingExtraError, OptionError
from paligemma.escaping import csv_cell
from paligemma.extraction.result import shown_value
from paligemma.extraction.schema import Leaf, Schema, path_of
from paligemma.writing import replacing, write_whole

SUFFIXES = (".csv", ".jsonl", ".parquet")
_SEPARATOR = " ; "


def check_output(path: Path) -> None:
    """Raises OptionError for a file that cannot be written, MissingExtraError without pyarrow."""
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"The file {str(path)!r} must end in one of {', '.join(SUFFIXES)}.")
    if path.is_dir():
        raise OptionError(f"{str(path)!r} is a folder. Give the name of a file.")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"The folder {path.parent} for {path.name} does not exist.")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def write_table(path: Path, articles: Sequence[Article], schema: Schema[Any]) -> None:
    """Write a row per article. Raises OptionError where it cannot be written."""
    match path.suffix.lower():
        case ".csv":
            write_whole(path, csv_text(articles, schema).encode("utf-8", "backslashreplace"))
        case ".jsonl":
            lines = [json.dumps(article.to_dict(), allow_nan=False) for article in articles]
            write_whole(path, "".join(f"{line}\n" for line in lines).encode("ascii"))
        case _:
            _write_parquet(path, articles, schema)


def csv_text(articles: Sequence[Article], schema: Schema[Any]) -> str:
    """The catalog as CSV. Text that a spreadsheet would take for a formula begins with a '."""
    names = _kinds(schema)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*COLUMNS_OF_ALL, *_columns(names)])
    for article in articles:
        row: list[Any] = [article.name, len(article.photos)]
        values = article.values
        for name in names:
            cell = article.cells[name]
            row += [_shown(values[name]), "" if cell.value is None else cell.score]
        writer.writerow(
            [csv_cell(item, safe=True) if isinstance(item, str) else item for item in row]
        )
    return file.getvalue()


def _columns(names: Mapping[str, str]) -> list[str]:
    return [column for name in names for column in (csv_cell(name, safe=True), f"{name}_score")]


def _shown(value: Any) -> Any:
    if isinstance(value, list):
        return _SEPARATOR.join(map(shown_value, value))
    return (
        value
        if isinstance(value, int | float) and not isinstance(value, bool)
        else shown_value(value)
    )


def _kinds(schema: Schema[Any]) -> dict[str, str]:
    """The attributes with their kinds; that of a list is "text"."""
    return {
        path_of(node.keys): node.kind if isinstance(node, Leaf) else "text"
        for node in attributes_of(schema.root)
    }


def _write_parquet(path: Path, articles: Sequence[Article], schema: Schema[Any]) -> None:
    pyarrow, parquet = _pyarrow()
    types = {"integer": pyarrow.int64(), "number": pyarrow.float64(), "boolean": pyarrow.bool_()}
    columns: dict[str, Any] = {
        "article": pyarrow.array([_storable(each.name) for each in articles], pyarrow.string()),
        "photos": pyarrow.array([len(each.photos) for each in articles], pyarrow.int32()),
    }
    rows = [article.values for article in articles]
    for name, kind in _kinds(schema).items():
        values = [row[name] for row in rows]
        if kind not in types:
            values = [None if value is None else _storable(str(_shown(value))) for value in values]
        columns[name] = pyarrow.array(values, types.get(kind, pyarrow.string()))
        cells = [article.cells[name] for article in articles]
        scores = [None if cell.value is None else cell.score for cell in cells]
        columns[f"{name}_score"] = pyarrow.array(scores, pyarrow.float64())
    with replacing(path) as unfinished:
        parquet.write_table(pyarrow.table(columns), str(unfinished))


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("pyarrow", "batch", "Writing Parquet") from error
    return pyarrow, pyarrow.parquet
