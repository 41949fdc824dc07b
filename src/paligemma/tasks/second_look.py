"""Ask for phrases one by one where the answer for all of them together raises doubts.

A model that is asked for many things at once, for a thing it has no name for, or for a thing in
another form than it learned ("Frogs", "the frog") may leave out or misplace other objects as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from paligemma.results import Detection, Objects
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.objects import cut_problem
from paligemma.tasks.segment import SegmentTask

MAX_PHRASES = 16
"""Longer lists are not asked again by themselves: most of their phrases are usually absent."""

ListTask = DetectTask | SegmentTask
_ARTICLE = re.compile(r"^((all|each|some)( of)? )?(a|an|the|all|any|every|each|some) (?=\S)")


@dataclass(frozen=True, kw_only=True)
class SecondLook:
    """Queries of one phrase each, and how their answers change the first one."""

    task: ListTask
    first: Objects[Any] | None
    """The answer for all phrases together; None if it was never asked for."""
    wordings: tuple[tuple[str, str], ...]
    """(Phrase, how it is asked) of each query."""

    @property
    def tasks(self) -> list[ListTask]:
        """The queries, in the order of `wordings`."""
        return [replace(self.task, phrases=(wording,)) for _, wording in self.wordings]

    def merge(self, answers: Sequence[Objects[Any]]) -> Objects[Any]:
        """For each phrase, the objects of the answer in which the model was surest."""
        given = [*([] if self.first is None else [self.first]), *answers]
        objects: list[Detection] = []
        problems = {p: None for p in (() if self.first is None else self.first.problems)}
        notes = [self._note()]
        was_cut = False
        for phrase in self.task.phrases:
            best: Sequence[Detection] = ()
            if self.first is not None:
                best = [obj for obj in self.first if _same(obj.label, phrase)]
            is_cut = self.first is not None and self.first.is_cut and not best
            for (asked, wording), answer in zip(self.wordings, answers, strict=True):
                if asked != phrase:
                    continue
                is_cut = answer.is_cut
                candidate = [replace(obj, label=phrase) for obj in answer]
                if self.first is not None:
                    candidate = [obj for obj in candidate if not obj.is_relabeled]
                if _certainty(candidate) > _certainty(best):
                    best = candidate
                    problems |= {p: None for p in answer.problems}
                    if wording != phrase:
                        notes.append(f"{phrase!r} was asked as {wording!r}.")
            objects += best
            was_cut |= is_cut
        if len(objects) > self.task.max_objects:
            reason = f"there are more objects than max_objects = {self.task.max_objects}"
            if not was_cut:
                problems |= {cut_problem(reason, "max_objects", (0, 0)): None}
            objects, was_cut = objects[: self.task.max_objects], True
        if not was_cut:
            problems = {p: None for p in problems if p.kind != "cut"}
        return replace(
            given[0],
            objects=tuple(objects),
            prompt=self.task.prompt(),
            phrases=self.task.phrases,
            problems=tuple(problems),
            text="\n".join(answer.text for answer in given),
            notes=(*given[0].notes, *notes),
        )

    def _note(self) -> str:
        if self.first is None:
            return "Each phrase was asked by itself."
        doubtful = ", ".join(repr(p) for p in self.task.phrases if _is_doubtful(self.first, p))
        return (
            f"No sure object was found for {doubtful}, so the phrases were also asked one by one "
            "(to ask once: separate=False, --no-separate)."
        )


def second_look(task: ListTask, first: Objects[Any]) -> SecondLook | None:
    """What to ask after an answer that leaves out phrases or would call them something else; None
    for nothing.

    An answer with labels of the model's own choice, one with a minimum of objects, and one with as
    many objects as the task allows is final.
    """
    is_final = task.labels == "any" or (isinstance(task, DetectTask) and task.min_objects > 0)
    if is_final or len(first) >= task.max_objects or len(task.phrases) > MAX_PHRASES:
        return None
    doubtful = [phrase for phrase in task.phrases if _is_doubtful(first, phrase)]
    if not doubtful:
        return None
    alone = [(phrase, phrase) for phrase in task.phrases] if len(task.phrases) > 1 else []
    plain = [(phrase, plain_form(phrase)) for phrase in doubtful]
    wordings = (*alone, *(pair for pair in plain if pair[0] != pair[1]))
    return SecondLook(task=task, first=first, wordings=wordings) if wordings else None


def separately(task: ListTask) -> SecondLook:
    """Each phrase by itself from the start."""
    return SecondLook(task=task, first=None, wordings=tuple((p, p) for p in task.phrases))


def plain_form(phrase: str) -> str:
    """The phrase as data sets write class names: lower case, singular, without an article.

    >>> plain_form("The Traffic Lights."), plain_form("all berries"), plain_form("pizza slice")
    ('traffic light', 'berry', 'pizza slice')
    """
    text = _ARTICLE.sub("", phrase.lower().rstrip(".!?"), count=1)
    if not text.isascii() or len(text) < 4 or text.endswith(("ss", "us", "is")):
        return text
    if text.endswith("ies"):
        return f"{text[:-3]}y"
    if text.endswith(("ches", "shes", "sses", "xes")):
        return text[:-2]
    return text.removesuffix("s")


def _is_doubtful(answer: Objects[Any], phrase: str) -> bool:
    """Whether the phrase has no object, one of another name, or no label and a plainer form."""
    objects = [obj for obj in answer if _same(obj.label, phrase)]
    if not objects or any(obj.is_relabeled for obj in objects):
        return True
    return plain_form(phrase) != phrase and not _labels_written(objects)


def _certainty(objects: Sequence[Detection]) -> tuple[bool, bool, bool, float]:
    """For comparison: any object, sure of its label, its label written, and the mean score."""
    if not objects:
        return False, False, False, 0.0
    mean = sum(obj.score for obj in objects) / len(objects)
    return True, not any(obj.is_relabeled for obj in objects), _labels_written(objects), mean


def _labels_written(objects: Iterable[Detection]) -> bool:
    return all(obj.label_score < 1.0 for obj in objects)


def _same(label: str, phrase: str) -> bool:
    return label.strip().casefold() == phrase.strip().casefold()
