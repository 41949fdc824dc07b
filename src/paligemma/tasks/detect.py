"""Object detection: boxes for phrases. `objects.py` describes the output format."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

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
    cut_problem,
    decode_box,
    parse_objects,
    split_phrases,
)
from paligemma.tasks.task import AnswerKind, Generated, SourceTransform, TaskContext


@dataclass(frozen=True, kw_only=True)
class DetectTask:
    """Detect objects by phrase. `DetectTask.of` takes "cat ; dog" or a list, and normalizes it.

    Decoding constrained by `grammar()` generates at most `max_objects` boxes, each labeled with
    one of the phrases, or with any label if `labels` is "any" (for "detect all classes").
    `min_objects` is for models trained with noise boxes, which never learned when to stop: the
    list continues until it has that many objects, and `label_score` tells objects from noise
    (arXiv 2412.03555, appendix C). Raises PromptError without phrases, OptionError for invalid
    options.

    >>> DetectTask.of("cat; dog ;").prompt()
    'detect cat ; dog'
    """

    phrases: tuple[str, ...]
    labels: LabelRule = "asked"
    max_objects: int = MAX_OBJECTS
    min_objects: int = 0
    answer_kind: ClassVar[AnswerKind] = "detect"

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
        """Return the boxes in pixels of the source image; never raises for odd output."""
        pairs, problems = read_detections(generated, tokenizer, context, self)
        return Detections(
            objects=tuple(detection for detection, _ in pairs),
            prompt=self.prompt(),
            phrases=self.phrases,
            problems=tuple(problems),
            size_wh=context.transform.source_wh,
            stop_reason=generated.stop_reason,
            text=tokenizer.detokenize(before_eos(generated.token_ids, tokenizer)),
        )


class ListTask(Protocol):
    """What the reader needs to know of a task."""

    @property
    def phrases(self) -> tuple[str, ...]: ...
    @property
    def max_objects(self) -> int: ...


def read_detections(
    generated: Generated, tokenizer: TokenReader, context: TaskContext, task: ListTask
) -> tuple[list[tuple[Detection, ParsedObject]], list[Problem]]:
    """Parse the objects of a task and map their boxes to the source image.

    Returns pairs of detection and parsed object, and the problems of skipped ones. Models tuned on
    referring expressions write no label; a single phrase is then used as the label.
    """
    parsed = parse_objects(
        generated.token_ids,
        generated.logprobs,
        tokenizer,
        locations=generated.locations,
        stop_reason=generated.stop_reason,
    )
    pairs: list[tuple[Detection, ParsedObject]] = []
    problems = list(parsed.problems)
    if len(parsed.objects) == task.max_objects and generated.stop_reason == "eos":
        reason = f"the list ended at max_objects = {task.max_objects}"
        end = len(generated.token_ids)
        problems.append(cut_problem(reason, "max_objects", (end, end)))
    for item in parsed.objects:
        box, box_normalized = place_box(item.box_yxyx_bins, context.transform)
        if box[2] <= box[0] or box[3] <= box[1]:
            detail = f"the box {item.box_yxyx_bins} (y1, x1, y2, x2) lies outside the image."
            problems.append(Problem(kind="malformed", detail=detail, token_span=item.token_span))
            continue
        detection = Detection(
            label=item.label or (task.phrases[0] if len(task.phrases) == 1 else ""),
            box_xyxy=box,
            box_normalized_xyxy=box_normalized,
            score=item.score,
            existence_score=item.existence_score,
            label_score=item.label_score,
            coordinate_score=item.coordinate_score,
        )
        pairs.append((detection, item))
    return pairs, problems


def place_box(bins: BoxYxyxBins, transform: SourceTransform) -> tuple[BoxXyxy, BoxXyxy]:
    """Return the box in pixels of the source image, and as fractions of its width and height.

    A box that lies entirely in the border added by padding has no area.
    """
    width, height = transform.source_wh
    x1, y1, x2, y2 = transform.box_to_source(decode_box(bins), order="xyxy")
    return (x1, y1, x2, y2), (x1 / width, y1 / height, x2 / width, y2 / height)
