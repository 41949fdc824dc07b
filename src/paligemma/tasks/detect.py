"""Boxes for named things.

Knows the form of the prompt; the output's form is in `objects.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from paligemma.errors import PromptError
from paligemma.results import BoxXyxy, Detection, Detections, Problem
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
    BoxYxyxBins,
    ParsedObject,
    TokenReader,
    before_eos,
    decode_box,
    parse_objects,
    split_phrases,
)
from paligemma.tasks.task import Generated, SourceTransform, TaskContext


@dataclass(frozen=True, kw_only=True)
class DetectTask:
    """Find things by name. `DetectTask.of` takes "cat ; dog" or a list and cleans it.

    Decoding that is held to `grammar()` gives only boxes labelled with a phrase that was asked
    for, or with labels="any" with whatever the model calls them ("detect all classes"), and at
    most `max_objects` of them. `min_objects` is for models that were trained with noise boxes and
    so never learned where to stop: the list goes on until there are as many, and `label_score`
    says how much of a thing each is (arXiv 2412.03555, appendix C). Raises OptionError for other
    values of these.

    >>> DetectTask.of("cat; dog ;").prompt()
    'detect cat ; dog'
    """

    phrases: tuple[str, ...]
    labels: LabelRule = "asked"
    max_objects: int = MAX_OBJECTS
    min_objects: int = 0

    def __post_init__(self) -> None:
        if not self.phrases:
            raise PromptError("There are no phrases to detect. Give one or more, such as 'cat'.")
        check_list_options(self.labels, self.max_objects, self.min_objects)

    @classmethod
    def of(
        cls,
        phrases: str | Iterable[str],
        *,
        labels: LabelRule = "asked",
        max_objects: int = MAX_OBJECTS,
        min_objects: int = 0,
    ) -> Self:
        """Raises PromptError when no phrase is left after cleaning."""
        return cls(
            phrases=split_phrases(phrases),
            labels=labels,
            max_objects=max_objects,
            min_objects=min_objects,
        )

    def prompt(self) -> str:
        return f"detect {SEPARATOR.join(self.phrases)}"

    def grammar(self, tokenizer: TokenWriter) -> ObjectList:
        return object_list(
            tokenizer,
            self.phrases,
            labels=self.labels,
            max_objects=self.max_objects,
            min_objects=self.min_objects,
            has_masks=False,
        )

    def parse(
        self, generated: Generated, tokenizer: TokenReader, context: TaskContext
    ) -> Detections:
        found, problems = read_detections(generated, tokenizer, context, self.phrases)
        return Detections(
            objects=tuple(detection for detection, _ in found),
            prompt=self.prompt(),
            phrases=self.phrases,
            problems=tuple(problems),
            size_wh=context.transform.source_wh,
            stop_reason=generated.stop_reason,
            text=tokenizer.detokenize(before_eos(generated.token_ids, tokenizer)),
        )


def read_detections(
    generated: Generated, tokenizer: TokenReader, context: TaskContext, phrases: tuple[str, ...]
) -> tuple[list[tuple[Detection, ParsedObject]], list[Problem]]:
    """The objects placed in the person's picture, each beside its tokens, and what was left out.

    Models tuned on referring expressions write no label; if one phrase was asked, that names it.
    """
    parsed = parse_objects(
        generated.token_ids, generated.logprobs, tokenizer, stop_reason=generated.stop_reason
    )
    found: list[tuple[Detection, ParsedObject]] = []
    problems = list(parsed.problems)
    for item in parsed.objects:
        box, box_normalized = place_box(item.box_yxyx_bins, context.transform)
        if box[2] <= box[0] or box[3] <= box[1]:
            detail = f"the box {item.box_yxyx_bins} (y1, x1, y2, x2) lies outside the image."
            problems.append(Problem(kind="malformed", detail=detail, token_span=item.token_span))
            continue
        detection = Detection(
            label=item.label or (phrases[0] if len(phrases) == 1 else ""),
            box_xyxy=box,
            box_normalized_xyxy=box_normalized,
            score=item.score,
            coordinate_score=item.coordinate_score,
            label_score=item.label_score,
        )
        found.append((detection, item))
    return found, problems


def place_box(bins: BoxYxyxBins, transform: SourceTransform) -> tuple[BoxXyxy, BoxXyxy]:
    """The box in pixels of the person's picture and in fractions of it.

    A box wholly in a border that was added around the picture has no area left.
    """
    width, height = transform.source_wh
    x1, y1, x2, y2 = transform.box_to_source(decode_box(bins), order="xyxy")
    return (x1, y1, x2, y2), (x1 / width, y1 / height, x2 / width, y2 / height)
