"""The results of tasks: captions, answers, boxes and masks that print, filter and export.

Boxes are (x1, y1, x2, y2), in pixels of the source image unless a name says `normalized`.
Log-probabilities are natural logarithms. Scores lie in [0, 1]; `tasks/objects.py` has the
formulas.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import html
import io
import json
import math
import os
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Self, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from paligemma.errors import (
    ImageError,
    MissingExtraError,
    OptionError,
    PaliGemmaError,
    check_number,
    counted,
)
from paligemma.masks import MaskBits, PackedMask, Ring, Rle, mask_to_polygons, mask_to_rle

if TYPE_CHECKING:
    import PIL.Image

    from paligemma.processor.image import ImageSource, LoadedImage

StopReason = Literal["eos", "stop", "length"]
"""Why generation stopped: the model wrote EOS, a stop string occurred, or the limit of new tokens
was reached."""

BoxXyxy = tuple[float, float, float, float]


UNSURE_SCORE = 0.5
"""Below this `score`, an object is more likely wrong than right."""
RELABELED_SCORE = 0.1
"""Below this `label_score`, the model would call the object something else."""


CSV_COLUMNS = ("label", "score", "x1", "y1", "x2", "y2", "unsure")
"""Of a table of objects, with boxes in pixels of the source image."""


class Result:
    """A value that can be exported as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain lists, dicts, strings and finite numbers (others become None).

        Masks become COCO run lengths: {"size": [height, width], "counts": "..."}.
        """
        assert dataclasses.is_dataclass(self)
        return {
            f.name: _to_json_value(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if f.name != "image_reference"
        }

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)


def one_line(text: str) -> str:
    """Replace line breaks, tabs and runs of blanks by one blank; other spaces, such as U+00A0 and
    U+3000, belong to the text."""
    return re.sub(r"[ \t\r\n\v\f\x85\u2028\u2029]+", " ", text).strip(" ")


def _to_json_value(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_dict()
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.dtype == np.bool_:
        return mask_to_rle(value)
    if isinstance(value, np.ndarray | np.generic):
        return _to_json_value(value.tolist())
    if isinstance(value, tuple | list):
        return [_to_json_value(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


ResultT_co = TypeVar("ResultT_co", covariant=True)


@dataclass(frozen=True, kw_only=True)
class BatchItem(Generic[ResultT_co]):
    """An image of `Predictor.batch` with its result, or with the error in its place."""

    image: Any
    """As it was given."""
    result: ResultT_co | None
    error: PaliGemmaError | None


class RangeSummary(NamedTuple):
    """The model's distribution over a range of token ids, where it chose one of them."""

    probability: float
    """Of the whole range; 1.0 where the grammar allowed nothing else."""
    quantiles: tuple[int, ...]
    """Ids that divide the distribution over the range into parts that are as likely."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Generation(Result):
    """The raw output of the model. `token_ids` includes the final EOS, if there is one."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """One per token id."""
    stop_reason: StopReason
    notes: tuple[str, ...] = ()
    """What to know about the prompt, such as that it is not quite the one of a task."""
    locations: tuple[RangeSummary | None, ...] = ()
    """For each location token, the distribution that it was chosen from; None for other tokens."""
    objects: tuple[Detection, ...] = ()
    """The boxes in the text, where a model answers with location tokens."""
    held: float = 0.0
    """The probability of all that a grammar did not allow: near 1 where the model wanted to write
    something else, 0 without a grammar. Where only locations or masks were allowed counts nothing,
    as their probabilities are relative to those."""
    allowed_probabilities: tuple[float, ...] = ()
    """For each token, the probability of all tokens that the grammar allowed in its place."""

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        del values["locations"]
        if not self.objects:
            del values["objects"]
        if not self.held:
            del values["held"]
        del values["allowed_probabilities"]
        return values

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        score = getattr(self, "score", None)
        shown = "" if score is None else f", score={score:.3g}"
        return f"{type(self).__name__}({self.text!r}{shown})"


@dataclass(frozen=True, kw_only=True, repr=False)
class Text(Generation):
    """A text result, such as the text read from an image, with its score."""

    score: float
    """The mean probability of a token (the geometric mean); for an `Answer`, the probability of
    the whole answer."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Caption(Text):
    """A description of the image (with the language asked for) or of one box in it (None)."""

    language: str | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Answer(Text):
    """The answer to a question about the image."""

    question: str


@dataclass(frozen=True, kw_only=True, repr=False)
class FieldAnswer(Answer):
    """An answer that was held to a pattern.

    Its `score` is the probability that the model, without the pattern, gives to this very answer,
    and `held` that of all answers whose beginning the pattern ruled out.
    """

    @property
    def is_cut(self) -> bool:
        """Whether it ended at the limit of new tokens, so that it may not match the pattern."""
        return self.stop_reason != "eos"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"held": self.held, "is_cut": self.is_cut}


@dataclass(frozen=True, kw_only=True)
class JsonLeaf(Result):
    """A value of a `JsonAnswer` that is neither an object nor a list."""

    keys: tuple[str | int, ...]
    """Where it is: ("items", 0, "price")."""
    value: str | int | float | bool | None
    score: float
    """The probability of its text under the model without the schema, after the text before it."""
    held: float
    """The probability of everything else that the schema ruled out, token by token."""


@dataclass(frozen=True, kw_only=True, repr=False)
class JsonAnswer(Text):
    """An answer that was held to a JSON schema. Its `score` is that of the whole text."""

    value: Any
    """The object, list or value; None where the answer is cut, so that it is not whole."""
    leaves: tuple[JsonLeaf, ...]
    """The values in it, in the order of the text; none where it is cut."""

    @property
    def is_cut(self) -> bool:
        """Whether it ended at the limit of new tokens."""
        return self.stop_reason != "eos"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"held": self.held, "is_cut": self.is_cut}


@dataclass(frozen=True, kw_only=True)
class Score(Result):
    """The log-probability of a given text, token by token."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]

    @property
    def total(self) -> float:
        """The log-probability of the whole text."""
        return math.fsum(self.logprobs)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"total": _to_json_value(self.total)}

    def __str__(self) -> str:
        return f"log-probability {self.total:.4f} over {counted(len(self.token_ids), 'token')}"


@dataclass(frozen=True, kw_only=True)
class Problem(Result):
    """A part of the output that was skipped because it is not a valid object.

    `malformed`: its tokens do not form an object. `repeated`: it duplicates an earlier object.
    `cut`: the list reached a limit there, so that more objects may follow. `token_span` is
    [start, end) in the generated token ids.
    """

    kind: Literal["malformed", "cut", "repeated"]
    detail: str
    token_span: tuple[int, int]

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Detection(Result):
    """One labeled box."""

    label: str
    box_xyxy: BoxXyxy
    """Pixels of the source image."""
    box_normalized_xyxy: BoxXyxy
    """The same box as fractions of the image's width and height, 0 to 1."""
    score: float
    """The probability that the object is right: the product of the following three."""
    existence_score: float
    """The probability that there is such an object: that the list goes on."""
    label_score: float
    """The probability of the label; exactly 1.0 only when the model wrote none."""
    coordinate_score: float
    """The probability that the box overlaps the object's box by an IoU of at least 0.5. NaN, as
    `score`, where only the text of an answer is known."""

    @property
    def unsure(self) -> bool:
        """Whether the object is more likely wrong than right: a `score` below 0.5."""
        return bool(self.score < UNSURE_SCORE)

    @property
    def is_relabeled(self) -> bool:
        """Whether the label is not the model's own: it was held to the phrases asked for, and
        would have called the object something else (`label_score` below 0.1)."""
        return self.label_score < RELABELED_SCORE

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"unsure": self.unsure}

    def __str__(self) -> str:
        box = ", ".join(f"{edge:.1f}" for edge in self.box_xyxy)
        mark = " (unsure)" if self.unsure else ""
        return f"{self.label} {self.score:.2f} at ({box}){mark}"

    def __repr__(self) -> str:
        box = ", ".join(f"{edge:.1f}" for edge in self.box_xyxy)
        return f"{type(self).__name__}({self.label!r}, score={self.score:.3g}, box_xyxy=({box}))"


@dataclass(frozen=True, kw_only=True, repr=False)
class TrackedDetection(Detection):
    """A box in a frame of a film, with the number of the object that it belongs to."""

    track_id: int
    """The same in all frames in which the object was found; from 1."""
    is_interpolated: bool = False
    """Whether the box lies between those of earlier and later frames, and was not detected in this
    one. Its scores are NaN then."""

    def __str__(self) -> str:
        return f"{self.track_id}: {super().__str__()}"


class _Packed:
    """A field that is set to a mask, or to a packed one, and kept packed."""

    def __get__(self, segment: object, owner: type) -> Any:
        if segment is None:
            raise AttributeError("mask")
        packed: PackedMask = vars(segment)["_packed_mask"]
        return packed.unpack()

    def __set__(self, segment: object, mask: Any) -> None:
        if isinstance(mask, _Packed):  # the default, which only documents the field
            raise TypeError("A Segment needs its mask.")
        vars(segment)["_packed_mask"] = mask if hasattr(mask, "unpack") else MaskBits.of(mask)


@dataclass(frozen=True, kw_only=True, repr=False)
class Segment(Detection):
    """One labeled box with the mask of the object in it."""

    mask: npt.NDArray[np.bool_] = field(default=cast("Any", _Packed()), repr=False, hash=False)
    """bool[H, W], of the size of the source image. Kept packed, and unpacked on each access: hold
    on to the array to use it more than once."""
    mask_score: float

    @property
    def rle(self) -> Rle:
        """The mask as COCO's compressed run-length encoding."""
        return mask_to_rle(self.mask)

    @property
    def polygons(self) -> list[Ring]:
        """The mask's outlines as rings of [x, y]; holes are rings too (even-odd rule)."""
        return mask_to_polygons(self.mask)

    def __eq__(self, other: object) -> bool:
        # The generated `__eq__` would take the truth value of an array, which raises.
        if not isinstance(other, Segment):
            return NotImplemented
        return self.to_dict() == other.to_dict()


class ImageReference:
    """The image of a result, without keeping it in memory: a path, or what is alive elsewhere."""

    def __init__(self, source: object) -> None:
        self._path = source if isinstance(source, str | os.PathLike) else None
        self._source: Any = None
        if self._path is None and not callable(source):
            with contextlib.suppress(TypeError):  # bytes, for example
                self._source = weakref.ref(source)

    def get(self) -> Any:
        """The path or the image; None when it is gone."""
        if self._path is not None:
            return self._path
        return self._source() if self._source is not None else None

    def __reduce__(self) -> tuple[type, tuple[object]]:
        return ImageReference, (self._path,)


ObjectT_co = TypeVar("ObjectT_co", bound=Detection, covariant=True)


@dataclass(frozen=True, kw_only=True, repr=False)
class Objects(Result, Sequence[ObjectT_co], Generic[ObjectT_co]):
    """The sequence of objects found in one image, with the request and what was skipped."""

    objects: tuple[ObjectT_co, ...]
    prompt: str
    phrases: tuple[str, ...]
    """The phrases asked for."""
    problems: tuple[Problem, ...]
    size_wh: tuple[int, int]
    """Width and height of the source image, in pixels."""
    stop_reason: StopReason
    text: str
    """The raw output of the model; with a second look, of all its answers, one per line."""
    notes: tuple[str, ...] = ()
    """How the question was understood, where it was not taken word by word."""
    filtered: tuple[str, ...] = ()
    """The phrases whose objects were all removed by `filter`."""
    image_reference: ImageReference | None = field(default=None, compare=False)
    """The image that was asked about: its path, or as long as it exists the image in memory."""

    def __len__(self) -> int:
        return len(self.objects)

    @overload
    def __getitem__(self, index: int) -> ObjectT_co: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[ObjectT_co, ...]: ...
    def __getitem__(self, index: int | slice) -> ObjectT_co | tuple[ObjectT_co, ...]:
        return self.objects[index]

    def __iter__(self) -> Iterator[ObjectT_co]:
        return iter(self.objects)

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """float64[N, 4], `box_xyxy` of each object."""
        return np.array([o.box_xyxy for o in self.objects], dtype=np.float64).reshape(-1, 4)

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """float64[N]."""
        return np.array([o.score for o in self.objects], dtype=np.float64)

    @property
    def labels(self) -> tuple[str, ...]:
        """The label of each object, in order."""
        return tuple(o.label for o in self.objects)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The distinct labels: first the phrases asked for, then others in order of appearance.

        The order of the phrases does not depend on which objects were found, so colors and class
        ids stay the same across images.
        """
        return tuple(dict.fromkeys((*self.phrases, *self.labels)))

    @property
    def is_cut(self) -> bool:
        """Whether the list ended at a limit, so that more objects may be in the image."""
        return any(problem.kind == "cut" for problem in self.problems)

    @property
    def is_as_asked(self) -> bool:
        """Whether each phrase has an object, and each object a label that is the model's own."""
        own_labels = all(not obj.is_relabeled and obj.label_score < 1.0 for obj in self.objects)
        return own_labels and not self._without_objects

    @property
    def missing(self) -> tuple[str, ...]:
        """The phrases for which the model found no object, ignoring case."""
        return () if self.is_cut else self._without_objects

    @property
    def not_reached(self) -> tuple[str, ...]:
        """The phrases without an object in a list that ended at a limit: nothing is known of
        them."""
        return self._without_objects if self.is_cut else ()

    @property
    def _without_objects(self) -> tuple[str, ...]:
        known = {label.strip().casefold() for label in (*self.labels, *self.filtered)}
        return tuple(p for p in self.phrases if p.strip().casefold() not in known)

    def filter(self, min_score: float) -> Self:
        """Return a copy that keeps only objects with a score of at least `min_score`.

        A phrase whose objects are all removed is in `filtered` then, and not in `missing`. Raises
        OptionError for what is no number.
        """
        check_number("min_score", min_score)
        kept = tuple(o for o in self.objects if o.score >= min_score)
        labels = {obj.label.strip().casefold() for obj in kept}
        removed = {label.strip().casefold() for label in (*self.labels, *self.filtered)} - labels
        filtered = tuple(p for p in self.phrases if p.strip().casefold() in removed)
        return replace(self, objects=kept, filtered=filtered)

    def draw(
        self, image: ImageSource | LoadedImage | None = None, *, font: str | Path | None = None
    ) -> PIL.Image.Image:
        """Return the image as a new RGB image with the objects drawn on it.

        `image` is the image that was asked about, in any form that `detect` takes. It can be left
        out where that was a path, or an image or array that still exists. `font` is the path of a
        font file for labels whose letters no other font has. Raises ImageError when the image
        cannot be read or differs in size from the result's.
        """
        # Imported on call: drawing needs Pillow and a module of a higher layer.
        from paligemma.draw import draw_detections

        return draw_detections(self._image(image), self, font=font)

    def show(self, image: ImageSource | LoadedImage | None = None) -> None:
        """Open the drawing in the system's image viewer. Notebooks show results by themselves."""
        self.draw(image).show()

    def save(self, path: str | Path, image: ImageSource | LoadedImage | None = None) -> Path:
        """Write the drawing to an image file, whose suffix says the format. Return its path.

        Raises OptionError where it cannot be written.
        """
        from paligemma.draw import write_drawing  # as for `draw`

        path = Path(os.path.expanduser(path))
        write_drawing(self.draw(image), path)
        return path

    def crop(self, image: ImageSource | LoadedImage | None = None) -> list[PIL.Image.Image]:
        """Cut each object's box out of the image, in order; `image` as for `draw`."""
        from paligemma.draw import crop_objects

        return crop_objects(self._image(image), self)

    def _image(self, image: ImageSource | LoadedImage | None) -> Any:
        if image is None and self.image_reference is not None:
            image = self.image_reference.get()
        if image is None:
            raise ImageError(
                "The result does not know its image: a path is remembered, an image in memory only "
                "as long as it exists. Pass the image."
            )
        return image

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the drawing, at most 1024 pixels wide and high."""
        try:
            drawn = self.draw()
        except PaliGemmaError:
            return None
        drawn.thumbnail((1024, 1024))
        content = io.BytesIO()
        drawn.save(content, "PNG")
        return content.getvalue()

    def _repr_html_(self) -> str:
        """What a notebook shows: the drawing above the list of objects."""
        png = self._repr_png_()
        uri = "" if png is None else base64.b64encode(png).decode("ascii")
        shown = f'<img src="data:image/png;base64,{uri}" style="max-width: 100%">' if uri else ""
        return f"{shown}<pre>{html.escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {
            "missing": list(self.missing),
            "not_reached": list(self.not_reached),
        }

    def to_coco(
        self, image_id: int = 1, categories: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Return a COCO data set of this image; its "annotations" are also valid COCO results.

        `categories` maps labels to ids; other labels get the next free ids. By default ids are
        1, 2, ... in the order of `label_names`. Boxes are [x, y, width, height] in pixels.
        """
        ids = dict(categories or {})
        for name in self.labels if categories else self.label_names:
            ids.setdefault(name, max(ids.values(), default=0) + 1)
        width, height = self.size_wh
        annotations = []
        for number, obj in enumerate(self.objects, start=1):
            x1, y1, x2, y2 = obj.box_xyxy
            annotation: dict[str, Any] = {
                "id": number,
                "image_id": image_id,
                "category_id": ids[obj.label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": _to_json_value(obj.score),
            }
            if isinstance(obj, Segment):
                mask = obj.mask
                annotation["area"] = int(mask.sum())
                annotation["segmentation"] = mask_to_rle(mask)
            annotations.append(annotation)
        return {
            "images": [{"id": image_id, "width": width, "height": height}],
            "annotations": annotations,
            "categories": [{"id": number, "name": name} for name, number in ids.items()],
        }

    def to_csv(self) -> str:
        """Return a table with a heading: label, score and box in pixels, a row per object.

        `paligemma detect --output FILE.csv` writes the same columns, between image and error.
        """
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerows((CSV_COLUMNS, *self.csv_rows()))
        return table.getvalue()

    def csv_rows(self) -> list[tuple[str, ...]]:
        """Return the rows of `to_csv` without its heading."""
        rows = []
        for obj in self.objects:
            score = "" if math.isnan(obj.score) else f"{obj.score:.4f}"
            box = (f"{edge:.2f}" for edge in obj.box_xyxy)
            rows.append((obj.label, score, *box, str(obj.unsure)))
        return rows

    def to_yolo(self, classes: Mapping[str, int] | None = None) -> str:
        """Return YOLO's lines, in fractions of the image: the class, then x, y, width and height.

        For a mask, the corners of its largest outline follow the class. `classes` maps labels to
        numbers; other labels get the next free ones. By default, numbers are indices into
        `label_names`.
        """
        numbers = dict(classes or {})
        for name in self.label_names:
            numbers.setdefault(name, max(numbers.values(), default=-1) + 1)
        width, height = self.size_wh
        lines = []
        for obj in self.objects:
            rings = obj.polygons if isinstance(obj, Segment) else []
            if rings:
                corners = max(rings, key=_doubled_area)
                values = [edge for x, y in corners for edge in (x / width, y / height)]
            else:
                x1, y1, x2, y2 = obj.box_xyxy
                values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height]
                values += [(x2 - x1) / width, (y2 - y1) / height]
            lines.append(" ".join((str(numbers[obj.label]), *(f"{v:.6f}" for v in values))))
        return "".join(f"{line}\n" for line in lines)

    def to_labelstudio(self, image: str | None = None) -> dict[str, Any]:
        """Return a task of Label Studio whose prediction has the boxes as rectangles.

        `image` is the address under which Label Studio finds the image, by default the path that
        was asked about. The labeling setup needs an Image named "image" and RectangleLabels named
        "label". Masks are left out: Label Studio's converter reads `to_coco`.
        """
        if image is None:
            path = self.image_reference.get() if self.image_reference else None
            if not isinstance(path, str | os.PathLike):
                raise OptionError("The path of the image is unknown. Pass image=ADDRESS.")
            image = os.fspath(path)
        width, height = self.size_wh
        shapes = []
        for number, obj in enumerate(self.objects, start=1):
            x1, y1, x2, y2 = (100 * edge for edge in obj.box_normalized_xyxy)
            shape = {
                "id": str(number),
                "type": "rectanglelabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {
                    "x": x1,
                    "y": y1,
                    "width": x2 - x1,
                    "height": y2 - y1,
                    "rotation": 0,
                    "rectanglelabels": [obj.label],
                },
                "score": _to_json_value(obj.score),
            }
            shapes.append(shape)
        return {
            "data": {"image": image},
            "predictions": [{"model_version": "paligemma", "result": shapes}],
        }

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections` whose class ids index `label_names`.

        Boxes of tracks have their numbers as `tracker_id`.
        Raises MissingExtraError when the package `supervision` is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise MissingExtraError("supervision", "supervision", "to_supervision()") from None
        if not self.objects:
            return supervision.Detections.empty()
        names = self.label_names
        masks = [o.mask for o in self.objects if isinstance(o, Segment)]
        numbers = [o.track_id for o in self.objects if isinstance(o, TrackedDetection)]
        return supervision.Detections(
            xyxy=self.boxes.astype(np.float32),
            mask=np.stack(masks) if masks else None,
            tracker_id=np.array(numbers) if len(numbers) == len(self) else None,
            confidence=self.scores.astype(np.float32),
            class_id=np.array([names.index(label) for label in self.labels]),
            data={"class_name": np.array(self.labels)},
        )

    def __repr__(self) -> str:
        width, height = self.size_wh
        return f"{type(self).__name__}({list(self.objects)!r}, size_wh=({width}, {height}))"

    def __str__(self) -> str:
        width, height = self.size_wh
        count = counted(len(self), "object")
        lines = [f"{count} in an image of {width} x {height} pixels"]
        if self.objects:
            lines.append("score      x1      y1      x2      y2  label")
        for obj in self.objects:
            edges = " ".join(f"{edge:7.1f}" for edge in obj.box_xyxy)
            mark = "  (unsure)" if obj.unsure else ""
            score = "   -" if math.isnan(obj.score) else f"{obj.score:.2f}"
            lines.append(f" {score} {edges}  {one_line(obj.label)}{mark}")
        if any(obj.unsure for obj in self.objects):
            lines.append("unsure: more likely wrong than right, by that score")
        for title, phrases in (
            ("not found", self.missing),
            ("not reached", self.not_reached),
            ("below the minimum score", self.filtered),
        ):
            if phrases:
                lines.append(f"{title}: {', '.join(phrases)}")
        lines += [
            str(problem) if problem.kind == "cut" else f"skipped, {problem}"
            for problem in self.problems
        ]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def _doubled_area(ring: Ring) -> int:
    pairs = zip(ring, [*ring[1:], ring[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs))


@dataclass(frozen=True, kw_only=True, repr=False)
class Detections(Objects[Detection]):
    """The boxes found in one image.

    >>> print(detections)                                    # doctest: +SKIP
    1 object in an image of 640 x 480 pixels
    score      x1      y1      x2      y2  label
     0.93    12.0    30.5   310.2   471.8  cat
    not found: dog
    """


@dataclass(frozen=True, kw_only=True, repr=False)
class Segments(Objects[Segment]):
    """The masks found in one image; otherwise as `Detections`."""

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """bool[N, H, W], of the size of the source image."""
        width, height = self.size_wh
        masks = np.empty((len(self), height, width), dtype=np.bool_)
        for index, obj in enumerate(self.objects):
            masks[index] = obj.mask
        return masks
