"""Pascal VOC: one XML file per image.

Boxes are xmin, ymin, xmax, ymax in pixels, counted from 1, both ends inside: 1 1 10 10 is the
first ten pixels each way, here (0, 0, 10, 10). The official folders (Annotations, JPEGImages,
ImageSets/Main) are read, and XML files next to images.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from paligemma.data.annotation import AnnotatedImage, size_of
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    IMAGE_SUFFIXES,
    Entry,
    ReadOptions,
    Source,
    choose_split,
    existing_image,
    read_text,
)
from paligemma.errors import DataError
from paligemma.processor.image import read_size_wh

NAME = "voc"


def recognizes(path: Path) -> bool:
    """A folder with XML files: directly in it, in Annotations, or in one folder per split."""
    return bool(_folders(path))


def read(path: Path, options: ReadOptions) -> Source:
    """Raises DataError where there are no XML files; each is parsed when its entry is built."""
    folders = _folders(path)
    listed = _listed(path)
    if listed and (options.split is not None or "train" in listed):
        split, names = choose_split(listed, options.split, str(path))
        files = [folders[""] / f"{name}.xml" for name in names]
        what = f"the split {split!r}"
    else:
        split, folder = choose_split(folders, options.split, str(path))
        files = sorted(folder.glob("*.xml"))
        what = str(folder)
    tally: Counter[str] = Counter()
    entries = [
        Entry(f.stem, f"Annotation {str(f)!r}", partial(_record, f, path, options, tally))
        for f in files
    ]
    return Source(summary=f"{len(entries)} XML files of {what}", entries=entries, tally=tally)


def _folders(path: Path) -> dict[str, Path]:
    """Folders of XML files by split; a single folder under ""."""
    if not path.is_dir():
        return {}
    for folder in (path / "Annotations", path):
        if any(folder.glob("*.xml")):
            return {"": folder}
    return {f.parent.name: f.parent for f in sorted(path.glob("*/*.xml"))}


def _listed(path: Path) -> dict[str, list[str]]:
    """Names of images by split, from ImageSets/Main; "dog_train.txt" is about one class."""
    if not (path / "Annotations").is_dir():
        return {}
    files = sorted((path / "ImageSets" / "Main").glob("*.txt"))
    return {f.stem: read_text(f).split() for f in files if "_" not in f.stem}


def _record(file: Path, root: Path, options: ReadOptions, tally: Counter[str]) -> Record:
    where = f"Annotation {str(file)!r}"
    try:
        tree = ElementTree.fromstring(read_text(file).encode())
    except ElementTree.ParseError as error:
        raise DataError(f"{where} is not XML: {error}.") from error
    image = existing_image(_image(file, tree, root, options), where)
    size = tree.find("size")
    size_wh = None
    if size is not None:
        size_wh = size_of(_text(size, "width"), _text(size, "height"), where)
    annotated = AnnotatedImage(
        image=image, size_wh=size_wh or read_size_wh(image), where=where, tally=tally
    )
    objects = [_object(item, annotated) for item in tree.findall("object")]
    return annotated.record(file.stem, options.prefix, objects)


def _image(file: Path, tree: ElementTree.Element, root: Path, options: ReadOptions) -> Path:
    """By the name in the XML, else by the XML's own name: renamed files are common."""
    # The name may be a path on the machine where the file was written.
    name = (_text(tree, "filename") or "").replace("\\", "/").split("/")[-1]
    folders = (options.images, root / "JPEGImages", file.parent, root / "images")
    names = [name, *(file.stem + suffix for suffix in IMAGE_SUFFIXES)]
    paths = [folder / n for folder in folders if folder is not None for n in names if n]
    return next((path for path in paths if path.is_file()), paths[0])


def _text(element: ElementTree.Element, name: str) -> str | None:
    text = element.findtext(name)
    return None if text is None else text.strip()


def _object(item: ElementTree.Element, image: AnnotatedImage) -> TrueObject:
    name, box = _text(item, "name"), item.find("bndbox")
    try:
        if box is None:
            raise ValueError
        x1, y1, x2, y2 = (float(_text(box, n) or "") for n in ("xmin", "ymin", "xmax", "ymax"))
    except ValueError as error:
        raise DataError(
            f"{image.where}: the object {name!r} has no bndbox of numbers xmin, ymin, xmax, ymax."
        ) from error
    return image.object(name, (x1 - 1, y1 - 1, x2, y2))
