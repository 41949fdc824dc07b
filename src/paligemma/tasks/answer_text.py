"""Text of a detection or segmentation answer -> boxes and masks, without a model.

For answers that came from elsewhere: vLLM, transformers, big_vision, a log file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, overload

from paligemma.config import NUM_LOC_TOKENS
from paligemma.errors import InputError, OptionError
from paligemma.processor.image import ImageTransform, Resize
from paligemma.results import Detections, Generation, Segments, StopReason
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.objects import split_phrases
from paligemma.tasks.seg_codec import MaskCodec, load_mask_codec_npz
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import TaskContext

_TOKEN = re.compile(r"<(loc|seg)(\d{3,4})>")
_SPACE_BETWEEN = re.compile(r"(<(?:loc|seg)\d{3,4}>)\s+(?=<(?:loc|seg)\d)")
_SEPARATOR = re.compile(r"\s*[;,|\n]\s*(?=<loc\d)")
_CONTROL = re.compile(r"<(?:image|bos|eos|pad|unk)>|</?s>|<\|im_end\|>|<end_of_turn>")
_FIRST_LOC = 0x110000  # beyond all characters
_FIRST_SEG = _FIRST_LOC + NUM_LOC_TOKENS
_EOS = _FIRST_SEG + 1024


class TextTokens:
    """A tokenizer for which every character is a token, and so is <loc0000>."""

    loc_offset = _FIRST_LOC
    seg_offset = _FIRST_SEG
    eos_id = _EOS

    def is_loc(self, token_id: int) -> bool:
        return _FIRST_LOC <= token_id < _FIRST_SEG

    def is_seg(self, token_id: int) -> bool:
        return _FIRST_SEG <= token_id < _EOS

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = []
        end = 0
        for match in _TOKEN.finditer(text):
            number = int(match[2])
            is_loc = match[1] == "loc" and len(match[2]) == 4 and number < NUM_LOC_TOKENS
            is_seg = match[1] == "seg" and len(match[2]) == 3
            if is_loc or is_seg:
                ids += map(ord, text[end : match.start()])
                ids.append(number + (_FIRST_LOC if is_loc else _FIRST_SEG))
                end = match.end()
        return [*ids, *map(ord, text[end:])]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        return "".join(self._piece(token_id) for token_id in token_ids)

    def _piece(self, token_id: int) -> str:
        if self.is_loc(token_id):
            return f"<loc{token_id - _FIRST_LOC:04d}>"
        return f"<seg{token_id - _FIRST_SEG:03d}>" if self.is_seg(token_id) else chr(token_id)


@overload
def parse_text(
    text: str,
    size_wh: tuple[int, int],
    *,
    task: Literal["detect"] = "detect",
    phrases: str | Iterable[str] = (),
    mask_codec: MaskCodec | str | Path | None = None,
    resize: Resize = "squash",
    resolution: int = 224,
    stop_reason: StopReason = "eos",
) -> Detections: ...
@overload
def parse_text(
    text: str,
    size_wh: tuple[int, int],
    *,
    task: Literal["segment"],
    phrases: str | Iterable[str] = (),
    mask_codec: MaskCodec | str | Path | None = None,
    resize: Resize = "squash",
    resolution: int = 224,
    stop_reason: StopReason = "eos",
) -> Segments: ...
def parse_text(
    text: str,
    size_wh: tuple[int, int],
    *,
    task: Literal["detect", "segment"] = "detect",
    phrases: str | Iterable[str] = (),
    mask_codec: MaskCodec | str | Path | None = None,
    resize: Resize = "squash",
    resolution: int = 224,
    stop_reason: StopReason = "eos",
) -> Detections | Segments:
    """Read the boxes, and masks, of an answer that another program got from a PaliGemma model.

    `size_wh` is the size of the image in pixels. Objects may be separated by ";", ",", "|" or line
    breaks, and tokens by blanks; control tokens and text in front of the first object, such as the
    prompt, are skipped. `phrases` are those asked for; without them nothing can be `missing`, and
    the only phrase becomes the label of objects without one. Masks need `mask_codec`, such as the
    path of big_vision's vae-oid.npz. `resize` says how the image was fitted to the model's square,
    whose side matters for "pad" alone. `stop_reason="length"` tells of an answer that was cut.

    The scores are NaN: the text does not tell them. A note says where location tokens are missing,
    which servers leave out as special tokens, and where masks were left out.

    >>> parse_text("<loc0256><loc0000><loc0767><loc1023> cat", (640, 480))[0].box_xyxy[2]
    640.0
    """
    if not isinstance(text, str):
        raise InputError(f"The answer is of type {type(text).__name__}; expected its text.")
    if task not in ("detect", "segment"):
        raise OptionError(f"task is {task!r}; it must be 'detect' or 'segment'.")
    is_size = isinstance(size_wh, Sequence) and len(size_wh) == 2
    if not is_size or not all(isinstance(side, Integral) and side > 0 for side in size_wh):
        raise OptionError(
            f"size_wh is {size_wh!r}; it must be the image's width and height, each at least 1."
        )
    text = _SPACE_BETWEEN.sub(r"\1", text)
    text = _CONTROL.sub("", _SEPARATOR.sub(" ; ", text)).strip()
    tokenizer = TextTokens()
    ids = tokenizer.tokenize(text)
    first = next((index for index, token_id in enumerate(ids) if token_id >= _FIRST_LOC), 0)
    ids = ids[first:]
    generated = _generation(ids, text, stop_reason)
    asked = split_phrases(phrases) if phrases else ()
    context = TaskContext(
        transform=ImageTransform(source_wh=size_wh, resolution=resolution, resize=resize),
        mask_codec=mask_codec
        if mask_codec is None or isinstance(mask_codec, MaskCodec)
        else load_mask_codec_npz(mask_codec),
    )
    options: dict[str, Any] = {
        "phrases": asked or ("",),
        "labels": "any",
        "max_objects": 1 + len(ids),
    }
    parser = DetectTask(**options) if task == "detect" else SegmentTask(**options)
    result = parser.parse(generated, tokenizer, context)
    prompt = f"{task} {' ; '.join(asked)}".strip()
    return replace(result, phrases=asked, prompt=prompt, notes=_notes(ids, tokenizer, task))


def generation_of_text(text: str) -> tuple[Generation, TextTokens]:
    """The text as if a model had written it, with a tokenizer that reads it; nothing is scored.

    Raises InputError for what is no text.
    """
    if not isinstance(text, str):
        raise InputError(f"The answer is of type {type(text).__name__}; expected its text.")
    tokenizer = TextTokens()
    return _generation(tokenizer.tokenize(_CONTROL.sub("", text)), text, "eos"), tokenizer


def _generation(ids: Sequence[int], text: str, stop_reason: StopReason) -> Generation:
    unknown = (math.nan,) * len(ids)
    return Generation(text=text, token_ids=tuple(ids), logprobs=unknown, stop_reason=stop_reason)


def _notes(ids: Sequence[int], tokenizer: TextTokens, task: str) -> tuple[str, ...]:
    if ids and not any(map(tokenizer.is_loc, ids)):
        return (
            "The text has no location tokens. If it came from a server, ask for it with special "
            "tokens: skip_special_tokens=False.",
        )
    if task == "detect" and any(map(tokenizer.is_seg, ids)):
        return (
            "The masks in the text were left out. To read them: task='segment', mask_codec=...",
        )
    return ()
