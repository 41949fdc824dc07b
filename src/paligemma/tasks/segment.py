"""Segmentation: masks for phrases.

`objects.py` describes the output format, `seg_codec.py` how masks are encoded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from paligemma.config import NUM_CODES_PER_MASK
from paligemma.errors import CheckpointError, PromptError
from paligemma.results import Detection, Problem, Segment, Segments
from paligemma.tasks.detect import read_detections
from paligemma.tasks.object_grammar import (
    MAX_OBJECTS,
    LabelRule,
    ObjectList,
    TokenWriter,
    check_list_options,
    object_list,
)
from paligemma.tasks.objects import (
    SEPARATOR,
    ParsedObject,
    TokenReader,
    before_eos,
    decode_box,
    split_phrases,
)
from paligemma.tasks.seg_codec import PastedMask
from paligemma.tasks.task import AnswerKind, Generated, TaskContext


@dataclass(frozen=True, kw_only=True)
class SegmentTask:
    """Segment objects by phrase. `SegmentTask.of` takes "cat ; dog" or a list.

    `labels` and `max_objects` are as in `DetectTask`.

    >>> SegmentTask.of(["left wheel"]).prompt()
    'segment left wheel'
    """

    phrases: tuple[str, ...]
    labels: LabelRule = "asked"
    max_objects: int = MAX_OBJECTS
    answer_kind: ClassVar[AnswerKind] = "segment"

    def __post_init__(self) -> None:
        if not self.phrases:
            raise PromptError("There are no phrases to segment. Give one or more, such as 'cat'.")
        check_list_options(self.labels, self.max_objects)

    @classmethod
    def of(
        cls,
        phrases: str | Iterable[str],
        *,
        labels: LabelRule = "asked",
        max_objects: int = MAX_OBJECTS,
    ) -> Self:
        """Raises PromptError when no phrase is left after cleaning."""
        return cls(phrases=split_phrases(phrases), labels=labels, max_objects=max_objects)

    def prompt(self) -> str:
        return f"segment {SEPARATOR.join(self.phrases)}"

    def grammar(self, tokenizer: TokenWriter) -> ObjectList:
        return object_list(
            tokenizer,
            self.phrases,
            labels=self.labels,
            max_objects=self.max_objects,
            has_masks=True,
        )

    def parse(self, generated: Generated, tokenizer: TokenReader, context: TaskContext) -> Segments:
        """Return boxes and masks in pixels of the source image.

        Raises CheckpointError when the context has no mask codec; never for odd output.
        """
        if context.mask_codec is None:
            raise CheckpointError(
                "The model has no mask codec, which turns <seg> tokens into masks. Load it with "
                "mask_codec=PATH (--mask-codec PATH), where PATH is vae-oid.npz of big_vision's "
                "PaliGemma."
            )
        pairs, problems = read_detections(generated, tokenizer, context, self)
        num_codes = context.mask_codec.config.num_codes
        masked: list[tuple[Detection, ParsedObject]] = []
        for detection, item in pairs:
            if item.seg_codes and max(item.seg_codes) < num_codes:
                masked.append((detection, item))
            else:
                reason = "a mask token outside the codebook" if item.seg_codes else "no mask tokens"
                detail = f"{item.label!r} has a box but {reason}."
                problems.append(
                    Problem(kind="malformed", detail=detail, token_span=item.token_span)
                )
        codes = torch.tensor([item.seg_codes for _, item in masked], dtype=torch.int64)
        masks = context.mask_codec.decode_masks(codes.reshape(-1, NUM_CODES_PER_MASK)).cpu().numpy()
        size_wh = context.transform.source_wh

        def pasted(mask: npt.NDArray[np.float32], item: ParsedObject) -> Any:
            # The box is not clamped: with a border, it may extend beyond the image.
            box = decode_box(item.box_yxyx_bins)
            unclamped = context.transform.box_to_source(box, order="xyxy", clamp=False)
            return PastedMask(mask64=mask, box_xyxy=unclamped, size_wh=size_wh)

        return Segments(
            objects=tuple(
                Segment(**vars(detection), mask=pasted(mask, item), mask_score=item.mask_score)
                for (detection, item), mask in zip(masked, masks, strict=True)
            ),
            prompt=self.prompt(),
            phrases=self.phrases,
            problems=tuple(problems),
            size_wh=size_wh,
            stop_reason=generated.stop_reason,
            text=tokenizer.detokenize(before_eos(generated.token_ids, tokenizer)),
        )
