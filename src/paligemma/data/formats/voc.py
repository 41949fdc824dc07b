"""Pascal VOC: one XML file per image.

Boxes are xmin, ymin, xmax, ymax in pixels, counted from 1, both ends inside: 1 1 10 10 is the
first ten pixels each way, here (0, 0, 10, 10). Some tools count from 0 (`first_pixel`). Objects
marked as difficult are neither learned nor counted, as in the benchmark. The official folders
(Annotations, JPEGImages, ImageSets/Main) are read, XML files next to images, and LabelMe's XML
files with polygons and masks.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from paligemma.data.annotation import AnnotatedImage, Shape, box_of_mask, size_of
from paligemma.data.formats.mask_folder import CLASS_COLORS, read_binary_mask
from paligemma.data.record import Record, TrueObject
from paligemma.data.source import (
    IMAGE_SUFFIXES,
    Entry,
    ImageFinder,
    ReadRequest,
    Source,
    choose_split,
    is_file,
    read_head,
    read_text,
)
from paligemma.errors import DataError
from paligemma.processor.image import read_size_wh

NAME = "voc"
DIFFICULT = "objects marked as difficult, kept out of training"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_ENCODING = re.compile(rb"\s*<\?xml[^>]*encoding=[\"']([A-Za-z0-9_-]+)[\"']")


def recognizes(path: Path) -> bool:
    """A folder with XML files of annotations: directly in it, in Annotations, or one per split."""
    return any(
        _looks_like_voc(files[0])
        for folder in _folders(path).values()
        if (files := _xml_in(folder))
    )


def read(path: Path, options: ReadRequest) -> Source:
    """Raises DataError where there are no XML files; each is parsed when its entry is built."""
    folders = _folders(path)
    listed = _listed(path)
    if listed and (options.split is not None or "train" in listed or options.purpose != "train"):
        splits: tuple[str, ...] = tuple(listed)
        split, lines = choose_split(listed, options, str(path))
        files = [_file_of_line(folders[""], line) for line in lines]
        what = f"the split {split!r}"
    else:
        splits = tuple(filter(None, folders))
        split, folder = choose_split(folders, options, str(path))
        files = _xml_in(folder)
        what = str(folder)
    tally: Counter[str] = Counter()
    if (path / CLASS_COLORS).is_dir() and (path / "Annotations").is_dir():
        tally[f"folder {CLASS_COLORS} of masks, which --format masks reads"] = 1
    own_folders = [options.images] if options.images else [path / "JPEGImages", path / "images"]
    finder = ImageFinder(
        [*own_folders, *({file.parent for file in files} if options.images is None else ())], tally
    )
    reading = _Reading(finder=finder, options=options, tally=tally)
    ids = _ids(files, folders.get(split, folders.get("", path)))
    entries = [
        Entry(record_id, f"Annotation {str(f)!r}", partial(reading.record, f, record_id))
        for record_id, f in zip(ids, files, strict=True)
    ]
    return Source(
        summary=f"{len(entries)} XML files of {what}",
        entries=entries,
        tally=tally,
        split=split or None,
        splits=splits,
    )


def _looks_like_voc(file: Path) -> bool:
    head = read_head(file)
    # CVAT's own XML begins with <annotations>; files in 16 bits cannot be told by their bytes.
    return (b"<annotation" in head and b"<annotations" not in head) or head[:2] in _UTF16


def _xml_in(folder: Path) -> list[Path]:
    """In a folder and below; macOS's notes on files (`._1.xml`) are no annotations."""
    return sorted(path for path in folder.rglob("*.xml") if not path.name.startswith("."))


def _folders(path: Path) -> dict[str, Path]:
    """Folders of XML files by split; a single folder under ""."""
    if not path.is_dir():
        return {}
    for folder in (path / "Annotations", path / "annotations"):
        if folder.is_dir() and _xml_in(folder):
            return {"": folder}
    if any(path.glob("*.xml")):
        return {"": path}
    return {file.parent.name: file.parent for file in sorted(path.glob("*/*.xml"))}


def _ids(files: list[Path], root: Path) -> list[str]:
    """File names without suffix; with their folders where several have the same name."""
    names = Counter(file.stem for file in files)
    return [
        file.stem
        if names[file.stem] == 1 or not file.is_relative_to(root)
        else file.relative_to(root).with_suffix("").as_posix()
        for file in files
    ]


def _listed(path: Path) -> dict[str, list[str]]:
    """Lines by split, from ImageSets/Main; "dog_train.txt" is about one class."""
    if not (path / "Annotations").is_dir():
        return {}
    files = sorted((path / "ImageSets" / "Main").glob("*.txt"))
    lines = {f.stem: read_text(f).splitlines() for f in files if "_" not in f.stem}
    return {split: [line.strip() for line in part if line.strip()] for split, part in lines.items()}


def _file_of_line(folder: Path, line: str) -> Path:
    """A line is a name, which may have blanks, or a name and 1, 0 or -1."""
    name, _, flag = line.rpartition(" ")
    file = folder / f"{line}.xml"
    if flag in ("1", "0", "-1") and name and not is_file(file):
        file = folder / f"{name.strip()}.xml"
    return file


def parse_xml(file: Path, where: str) -> ElementTree.Element:
    """The root, with tags free of namespaces. Raises DataError."""
    try:
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{where} does not exist.") from error
    except OSError as error:
        raise DataError(f"{where} cannot be read: {error}.") from error
    try:
        try:
            root = ElementTree.fromstring(data)
        except ValueError:  # an encoding that only Python knows, such as gbk
            encoding = _ENCODING.match(data)
            if encoding is None:
                raise
            text = data.decode(encoding[1].decode("ascii"))
            root = ElementTree.fromstring(text[text.index("?>") + 2 :].strip())
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{where} is not XML: {error}.") from error
    for element in root.iter():
        element.tag = str(element.tag).rpartition("}")[2]
    return root


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """What the records of one data set have in common."""

    finder: ImageFinder
    options: ReadRequest
    tally: Counter[str]

    def record(self, file: Path, record_id: str) -> Record:
        where = f"Annotation {str(file)!r}"
        tree = parse_xml(file, where)
        image = self._image(file, tree, where)
        size, size_wh = tree.find("size"), None
        if size is not None:
            size_wh = size_of(_text(size, "width"), _text(size, "height"), where)
        annotated = AnnotatedImage(
            image=image,
            size_wh=size_wh or read_size_wh(image),
            where=where,
            tally=self.tally,
            boxes=self.options.boxes,
        )
        objects: list[TrueObject | None] = []
        difficult: list[TrueObject | None] = []
        for item in tree.findall("object"):
            if _text(item, "deleted") == "1":  # LabelMe keeps them
                continue
            is_difficult = _text(item, "difficult") in ("1", "true", "True")
            is_ignored = is_difficult and self.options.crowds == "ignore"
            if is_ignored:
                self.tally[DIFFICULT] += 1
            (difficult if is_ignored else objects).append(
                self._object(item, annotated, file.parent)
            )
        return annotated.record(record_id, self.options.prefix, objects, difficult)

    def _image(self, file: Path, tree: ElementTree.Element, where: str) -> Path:
        """By the name in the XML, else by the XML's own name: renamed files are common."""
        # The name may be a path on the machine where the file was written.
        name = (_text(tree, "filename") or "").replace("\\", "/").split("/")[-1]
        own = [file.stem + suffix for suffix in IMAGE_SUFFIXES]
        return self.finder.find(name or own[0], where, own)

    def _object(
        self, item: ElementTree.Element, image: AnnotatedImage, folder: Path
    ) -> TrueObject | None:
        """`folder` is that of the annotations."""
        name, box, polygon = _text(item, "name"), item.find("bndbox"), item.find("polygon")
        first = self.options.first_pixel
        if box is None and polygon is None and (mask := _text(item, "segm/mask")):
            # LabelMe's masks are as large as the image, in a folder next to the annotations.
            make_mask = partial(read_binary_mask, folder / "Masks" / Path(mask).name, image.size_wh)
            return image.object(name, box_of_mask(make_mask(), image.where), make_mask)
        try:
            if box is None and polygon is not None:
                points = [(_text(p, "x"), _text(p, "y")) for p in polygon.findall("pt")]
                numbers = [float(number or "") for point in points for number in point]
                return image.object(name, None, Shape(polygons=[numbers]))
            if box is None:
                raise ValueError
            x1, y1, x2, y2 = (float(_text(box, n) or "") for n in ("xmin", "ymin", "xmax", "ymax"))
        except DataError:
            raise
        except ValueError as error:
            raise DataError(
                f"{image.where}: the object {name!r} has no bndbox of numbers xmin, ymin, xmax, "
                "ymax."
            ) from error
        if first == 1 and min(x1, y1) == 0:
            self.tally["boxes from pixel 0, though Pascal VOC counts from 1 (--first-pixel 0)"] += 1
        return image.object(name, (x1 - first, y1 - first, x2, y2))


def _text(element: ElementTree.Element, name: str) -> str | None:
    text = element.findtext(name)
    return None if text is None else text.strip()
