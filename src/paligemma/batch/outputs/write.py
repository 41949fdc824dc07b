"""Which files a job writes from its journal, and where."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from paligemma.batch.outputs.detection import label_file, write_coco, write_yolo
from paligemma.batch.outputs.rows import Content, replacing
from paligemma.batch.outputs.sidecars import Sidecar, Sidecars
from paligemma.batch.outputs.tables import check_parquet, write_csv, write_jsonl, write_parquet
from paligemma.batch.source import Item
from paligemma.errors import OptionError
from paligemma.options import Option

Format = Literal["jsonl", "csv", "parquet", "coco", "yolo"]
FILES: dict[Format, str] = {
    "jsonl": "results.jsonl",
    "csv": "results.csv",
    "parquet": "results.parquet",
    "coco": "coco.json",
    "yolo": "yolo",
}
_WRITERS: dict[Format, Callable[[Content, Path], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "coco": write_coco,
}


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """The files that become of the results of a job."""

    to: Annotated[tuple[Format, ...], Option(shown_default="jsonl, without --sidecar")] = ()
    """File to write into the job's folder; may be repeated. jsonl: results.jsonl, csv:
    results.csv, parquet: results.parquet, coco: coco.json, yolo: a folder yolo."""
    sidecar: Annotated[tuple[Sidecar, ...], Option(shown_default="none")] = ()
    """File to write next to each image; may be repeated. txt: its text, as 1.txt for 1.jpg; json:
    its result."""
    sidecar_root: Annotated[Path | None, Option(shown_default="next to the images")] = None
    """Folder for the files of --sidecar, with the folders of the source in it."""
    overwrite: bool = False
    """Let --sidecar replace files that the job did not write."""
    min_score: Annotated[float, Option(least=0, most=1)] = 0.0
    """Leave objects with lower scores out of the files. The journal keeps them."""

    @property
    def formats(self) -> tuple[Format, ...]:
        """The files in the job's folder, each once."""
        return tuple(dict.fromkeys(self.to)) or (() if self.sidecar else ("jsonl",))

    def sidecars(self, folder: Path) -> Sidecars:
        """The files next to the images."""
        return Sidecars(
            kinds=tuple(dict.fromkeys(self.sidecar)),
            folder=folder,
            root=self.sidecar_root,
            overwrite=self.overwrite,
        )

    def check(self, items: Sequence[Item], task: str) -> None:
        """Raises OptionError, or MissingExtraError, for files that cannot be written."""
        for name in self.formats:
            if name in ("coco", "yolo") and task not in ("detect", "segment"):
                raise OptionError(
                    f"--to {name} is for the objects of detect and segment, not for {task}."
                )
            if name == "csv" and task == "embed":
                raise OptionError("The numbers of embed fit no CSV file. Use jsonl or parquet.")
            if name == "parquet":
                check_parquet()
            if name in ("coco", "yolo"):
                _check_asked_once(items)
            if name == "yolo":
                _check_label_files(items)
        if self.sidecar_root is not None and not self.sidecar:
            raise OptionError("--sidecar-root needs --sidecar.")


def _check_asked_once(items: Sequence[Item]) -> None:
    """Raises OptionError for two rows about one image, which is there once in a data set."""
    places: dict[str, str] = {}
    for item in items:
        if item.asks:
            other = places.setdefault(json.dumps(item.location), item.place)
            if other != item.place:
                raise OptionError(
                    f"{other} and {item.place[0].lower()}{item.place[1:]} are about the same "
                    "image, which coco and yolo list once. Put their names into one row, such as "
                    '"cat ; dog", or use --to jsonl.'
                )


def _check_label_files(items: Sequence[Item]) -> None:
    owners: dict[str, str] = {}
    for item in items:
        path = str(label_file(item.key))
        if (other := owners.setdefault(path, item.key)) != item.key:
            raise OptionError(
                f"{other!r} and {item.key!r} would both have the labels {path!r}. Use --to coco, "
                "or take one of them with --where."
            )


def write_file(content: Content, name: Format, folder: Path) -> Path:
    """Write one file of a job into its folder, whole or not at all. Returns its path.

    Raises OptionError when it cannot be written.
    """
    path = folder / FILES[name]
    if name == "yolo":
        write_yolo(content, path)
        return path
    with replacing(path) as unfinished:
        _WRITERS[name](content, unfinished)
    return path
