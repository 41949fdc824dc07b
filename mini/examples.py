"""Training examples from a scene or a sheet: a task is drawn, its prefix and suffix are written.

The formats are the family's own: `detect dog ; key` is answered by
`<loc....>x4 dog ; <loc....>x4 key`, from top to bottom;
`detect text` by every printed word behind its box, from top to bottom.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from mini import assets, language
from mini.scene import Scene, SceneObject, SceneWord
from mini.sheet import Sheet
from mini.texts import SceneTexts
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.objects import format_box
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.text import AnswerTask, BoxCaptionTask, CaptionTask, OcrTask

Pair = tuple[str, str]
TEXT_PROMPT = "detect text"
SegCodes = Mapping[tuple[int, int], tuple[int, ...]]
"""The 16 mask codes of every (kind, pose); a scene's objects are never covered."""

TASK_WEIGHTS: dict[str, float] = {
    "caption": 0.26,
    "describe": 0.06,
    "detect": 0.26,
    "segment": 0.12,
    "ocr": 0.12,
    "count": 0.08,
    "question": 0.07,
    "caption_box": 0.03,
}
"""The tasks of the first version; "detect_text" came later."""


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How often a prompt does not simply name all that is there.

    A model that is mostly asked for everything present learns to list it without reading the
    prompt; asked for parts and for absent things, it must look each name up in the image.
    """

    part: float = 0.3
    """Chance that `detect` and `segment` ask for a part of the kinds present."""
    absent: float = 0.15
    """Chance that they also ask for a kind that is absent."""
    only_absent: float = 0.0
    """Chance that they ask for nothing but one."""
    unknown: float = 0.0
    """Chance that they also ask for a word that names nothing of mini's world."""
    count_absent: float = 0.2
    """Chance that a kind drawn from all is counted, so mostly one that is absent."""
    languages: Mapping[str, float] = field(
        default_factory=lambda: dict.fromkeys(language.FIRST_LANGUAGES, 1.0)
    )
    """Languages of captions and counting questions, with weights."""

    def draw_language(self, rng: random.Random) -> str:
        return rng.choices(list(self.languages), list(self.languages.values()))[0]


def draw_example(
    scene: Scene,
    rng: random.Random,
    weights: Mapping[str, float],
    seg_codes: SegCodes,
    asking: Asking | None = None,
) -> Pair:
    """A (prefix, suffix) that is true of the scene."""
    world = _World(texts=SceneTexts(scene), seg_codes=seg_codes, asking=asking or Asking())
    names, chances = list(weights), list(weights.values())
    while True:
        task = rng.choices(names, chances)[0]
        pair = _TASKS[task](world, rng)
        if pair is not None:
            return pair


def draw_sheet_example(sheet: Sheet, rng: random.Random) -> Pair:
    """A (prefix, suffix) that is true of the sheet: mostly all that it says, or its words."""
    if rng.random() < 0.1:
        return TEXT_PROMPT, text_suffix(sheet.words)
    if sheet.kind == "table":
        return "table", language.table_text(sheet.rows)
    chance = rng.random()
    if sheet.kind == "form":
        if chance < 0.4:
            label, value = rng.choice(sheet.rows[1:])
            question, answer = language.ask_field(label, value)
            return AnswerTask(question=question, language="en").prompt(), answer
        return "form", language.form_text(sheet.rows)
    bars = sheet.bars
    if chance < 0.25:
        question, answer = language.ask_value(*rng.choice(bars))
        return AnswerTask(question=question, language="en").prompt(), answer
    highest = max(value for _, value in bars)
    names = [label for label, value in bars if value == highest]
    if chance < 0.4 and len(names) == 1:
        question, answer = language.ask_highest(names[0])
        return AnswerTask(question=question, language="en").prompt(), answer
    return "chart", language.chart_text(bars)


def text_suffix(words: Sequence[SceneWord]) -> str:
    """Every printed word behind its box, from top to bottom, side by side from left to right."""
    # Two words stand side by side where the center of one lies within the height of the other.
    lines: list[list[SceneWord]] = []
    for word in sorted(words, key=lambda word: word.box_xyxy[1] + word.box_xyxy[3]):
        middle = (word.box_xyxy[1] + word.box_xyxy[3]) / 2
        if lines and middle < lines[-1][0].box_xyxy[3]:
            lines[-1].append(word)
        else:
            lines.append([word])
    in_order = [word for line in lines for word in sorted(line, key=lambda w: w.box_xyxy[0])]
    return " ; ".join(f"{format_box(word.box_xyxy)} {word.text}" for word in in_order)


def detection_suffix(texts: SceneTexts, kinds: list[int], seg_codes: SegCodes | None = None) -> str:
    """All objects of these kinds, with masks when `seg_codes` are given.

    They are ordered by their top edges, the first number of a box. In any other order a model has
    to write that number before it has settled on an object, and writes it less exactly.
    """
    things = [thing for kind in kinds for thing in texts.objects_of(kind)]
    found = []
    for thing in sorted(things, key=lambda thing: (thing.box_xyxy[1], thing.box_xyxy[0])):
        codes = "" if seg_codes is None else _seg_text(seg_codes[thing.kind, thing.pose])
        name = language.KINDS[thing.kind].name
        found.append(f"{format_box(thing.box_xyxy)}{codes} {name}")
    return " ; ".join(found)


def _seg_text(codes: tuple[int, ...]) -> str:
    return "".join(f"<seg{code:03d}>" for code in codes)


@dataclass(frozen=True, kw_only=True)
class _World:
    texts: SceneTexts
    seg_codes: SegCodes
    asking: Asking


def _caption(world: _World, rng: random.Random) -> Pair:
    code = world.asking.draw_language(rng)
    return CaptionTask(language=code).prompt(), world.texts.caption(code)


def _describe(world: _World, rng: random.Random) -> Pair:
    code = world.asking.draw_language(rng)
    return CaptionTask(language=code, style="describe").prompt(), world.texts.describe(code)


def _asked_kinds(world: _World, rng: random.Random) -> list[int]:
    """Mostly what is there, in any order; sometimes a part of it, or something that is not."""
    present = [kind for kind, _ in world.texts.counts]
    absent = rng.randrange(len(language.KINDS))
    if absent not in present and rng.random() < world.asking.only_absent:
        return [absent]
    rng.shuffle(present)
    if present and rng.random() < world.asking.part:
        present = present[: rng.randint(1, len(present))]
    asks_absent = not present or rng.random() < world.asking.absent
    if asks_absent and absent not in {kind for kind, _ in world.texts.counts}:
        present.insert(rng.randint(0, len(present)), absent)
    return present


def _asked_names(world: _World, rng: random.Random, kinds: list[int]) -> list[str]:
    """The names of the kinds, sometimes with a word that names none of them, or that word alone."""
    names = [language.KINDS[kind].name for kind in kinds]
    if not world.asking.unknown or rng.random() >= world.asking.unknown:
        return names
    word = " ".join(rng.sample(unknown_words(), rng.choice((1, 1, 2))))
    if rng.random() < 0.4:
        kinds.clear()
        return [word]
    names.insert(rng.randint(0, len(names)), word)
    return names


_WIDER_NAMES = {"animal", "berry", "bird", "flower", "food", "fruit", "plant", "toy"}
"""Words that name several kinds at once."""


@functools.cache
def unknown_words() -> list[str]:
    """Words that are printed in scenes, without those that name a kind."""
    named = {word for kind in language.KINDS for word in kind.name.split()} | _WIDER_NAMES
    words = [word.lower() for word in assets.words()]
    return [word for word in words if word not in named and word.removesuffix("s") not in named]


def _detect(world: _World, rng: random.Random) -> Pair | None:
    kinds = _asked_kinds(world, rng)
    if not kinds:
        return None
    names = _asked_names(world, rng, kinds)
    return DetectTask.of(names).prompt(), detection_suffix(world.texts, kinds)


def _segment(world: _World, rng: random.Random) -> Pair | None:
    kinds = _asked_kinds(world, rng)
    if not kinds:
        return None
    names = _asked_names(world, rng, kinds)
    suffix = detection_suffix(world.texts, kinds, world.seg_codes)
    return SegmentTask.of(names).prompt(), suffix


def _ocr(world: _World, rng: random.Random) -> Pair | None:
    # Images without print are asked about too, but seldom.
    if not world.texts.words and rng.random() < 0.8:
        return None
    return OcrTask().prompt(), world.texts.reading()


def _detect_text(world: _World, rng: random.Random) -> Pair | None:
    if not world.texts.words and rng.random() < 0.8:
        return None
    return TEXT_PROMPT, text_suffix(world.texts.scene.words)


def _count(world: _World, rng: random.Random) -> Pair:
    code = world.asking.draw_language(rng)
    counts = dict(world.texts.counts)
    if counts and rng.random() >= world.asking.count_absent:
        kind = rng.choice(list(counts))
    else:
        kind = rng.randrange(len(language.KINDS))
    question, answer = language.ask_count(kind, counts.get(kind, 0), code)
    return AnswerTask(question=question, language=code).prompt(), answer


def _question(world: _World, rng: random.Random) -> Pair | None:
    scene, counts = world.texts.scene, dict(world.texts.counts)
    pair: Pair | None = None
    match rng.randrange(5):
        case 0 if scene.background.color_name is not None:
            pair = language.ask_background(scene.background.color_name)
        case 1:
            there = bool(counts) and rng.random() < 0.5
            kind = rng.choice(list(counts)) if there else rng.randrange(len(language.KINDS))
            pair = language.ask_presence(kind, kind in counts)
        case 2:
            single = [thing for thing in scene.objects if counts[thing.kind] == 1]
            pair = ask_where(rng.choice(single)) if single else None
        case 3:
            pair = language.ask_listing(world.texts.counts)
        case 4 if world.texts.words:
            pair = language.ask_reading(world.texts.words)
    if pair is None:
        return None
    return AnswerTask(question=pair[0], language="en").prompt(), pair[1]


def ask_where(thing: SceneObject) -> Pair | None:
    """Question and answer about the only object of its kind; None where its place is doubtful."""
    where = language.position(thing.box_xyxy)
    return None if where is None else language.ask_position(thing.kind, where)


def _caption_box(world: _World, rng: random.Random) -> Pair | None:
    if not world.texts.scene.objects:
        return None
    thing = rng.choice(world.texts.scene.objects)
    prompt = BoxCaptionTask(box_normalized_xyxy=thing.box_xyxy).prompt()
    return prompt, language.KINDS[thing.kind].name


_TASKS: dict[str, Callable[[_World, random.Random], Pair | None]] = {
    "caption": _caption,
    "describe": _describe,
    "detect": _detect,
    "segment": _segment,
    "ocr": _ocr,
    "count": _count,
    "question": _question,
    "caption_box": _caption_box,
    "detect_text": _detect_text,
}
