"""Captions of the image or of one box in it.

Prompts: arXiv 2407.07726 section 3.2.5, and the model's documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from paligemma.errors import OptionError
from paligemma.results import BoxXyxy, Caption
from paligemma.tasks.objects import TokenReader, encode_box, format_box
from paligemma.tasks.task import Generated, TaskContext, check_language, read_scored_text

CaptionStyle = Literal["cap", "caption", "describe"]


@dataclass(frozen=True, kw_only=True)
class CaptionTask:
    """Caption the whole image.

    Styles: "caption" is short, as in COCO; "cap" is raw alt text; "describe" is longer. The last
    two are for pre-trained checkpoints. Raises OptionError for an invalid style or language code.

    >>> CaptionTask(language="es").prompt()
    'caption es'
    """

    language: str = "en"
    style: CaptionStyle = "caption"

    def __post_init__(self) -> None:
        check_language(self.language)
        if self.style not in get_args(CaptionStyle):
            raise OptionError(
                f"Unknown caption style {self.style!r}. Choose one of: "
                f"{', '.join(get_args(CaptionStyle))}."
            )

    def prompt(self) -> str:
        return f"{self.style} {self.language}"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Caption:
        return _read_caption(generated, tokenizer, self.language)


@dataclass(frozen=True, kw_only=True)
class BoxCaptionTask:
    """Caption one box; `box_normalized_xyxy` is in fractions of the model's square input.

    Raises InputError for a box that is not finite, OptionError for one without area.

    >>> BoxCaptionTask(box_normalized_xyxy=(0.1, 0.25, 0.9, 0.75)).prompt()
    'caption <loc0256><loc0102><loc0767><loc0921>'
    """

    box_normalized_xyxy: BoxXyxy

    def __post_init__(self) -> None:
        y1, x1, y2, x2 = encode_box(self.box_normalized_xyxy)
        if y2 <= y1 or x2 <= x1:
            raise OptionError(
                f"The box {self.box_normalized_xyxy} has no area inside the image. Give x1, y1, "
                "x2, y2 as fractions of the image's width and height, with x1 < x2 and y1 < y2."
            )

    def prompt(self) -> str:
        return f"caption {format_box(self.box_normalized_xyxy)}"

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Caption:
        return _read_caption(generated, tokenizer, None)


def _read_caption(generated: Generated, tokenizer: TokenReader, language: str | None) -> Caption:
    return Caption(**vars(read_scored_text(generated, tokenizer)), language=language)
