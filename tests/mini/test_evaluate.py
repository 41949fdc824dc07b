"""The evaluation gives full marks for the truth, and takes off what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mini import evaluate as evaluate_module
from mini.codec_training import (
    MINI_CODEC,
    reconstruction_iou,
    seg_codes,
    train_mask_codec,
)
from mini.evaluate import evaluate
from mini.examples import TEXT_PROMPT, SegCodes, detection_suffix, text_suffix
from mini.language import KINDS, LANGUAGES, chart_text, form_text, table_text
from mini.paper import PAPER_KINDS, Paper, make_paper
from mini.paper_examples import paper_questions
from mini.scene import Sizes, make_scene
from mini.sheet import make_sheet
from mini.texts import SceneTexts
from mini.vocabulary import train_vocabulary
from paligemma.errors import OptionError
from paligemma.processor.image import ImageTransform, LoadedImage
from paligemma.processor.tokenizer import Tokenizer
from paligemma.results import RangeSummary
from paligemma.tasks.objects import format_box
from paligemma.tasks.seg_codec import MaskCodec, load_mask_codec_npz
from paligemma.tasks.task import Task, TaskContext

SEED = 11
KIND_OF = {kind.name: index for index, kind in enumerate(KINDS)}


@dataclass
class Oracle:
    """Answers every task with the truth of the scene that a picture is named after."""

    tokenizer: Tokenizer
    mask_codec: MaskCodec
    codes: SegCodes
    name: str = "oracle"
    mute: bool = False
    constrained: list[bool] = field(default_factory=list)

    def run(
        self,
        tasks: Sequence[tuple[LoadedImage, Task[Any]]],
        *,
        constrained: bool,
        max_new_tokens: int | None = None,
    ) -> list[Any]:
        self.constrained.append(constrained)
        return [self._answer(image, task) for image, task in tasks]

    def _answer(self, image: LoadedImage, task: Task[Any]) -> Any:
        suffix = "" if self.mute else self._truth(image.name, task.prompt())
        token_ids = [*self.tokenizer.tokenize_text(suffix), self.tokenizer.eos_id]
        generated = SimpleNamespace(
            token_ids=token_ids,
            logprobs=[-0.1] * len(token_ids),
            locations=[self._certain(token_id) for token_id in token_ids],
            stop_reason="eos",
            held=0.0,
            allowed_probabilities=(),
        )
        transform = ImageTransform(source_wh=image.size_wh, resolution=160)
        context = TaskContext(transform=transform, mask_codec=self.mask_codec)
        return task.parse(generated, self.tokenizer, context)

    def _certain(self, token_id: int) -> RangeSummary | None:
        return RangeSummary(1.0, (token_id,)) if self.tokenizer.is_loc(token_id) else None

    def _truth(self, name: str, prompt: str) -> str:
        source, number = name.split()
        if source == "table":
            return table_text(make_sheet("test", SEED, int(number), "table").rows)
        if source == "chart":
            return chart_text(make_sheet("test", SEED, int(number), "chart").bars)
        if source == "form":
            return form_text(make_sheet("test", SEED, int(number), "form").rows)
        if source == "paper":
            return self._about(
                make_paper("test", SEED, int(number), PAPER_KINDS[int(number) % 4]), prompt
            )
        sizes: Sizes = "wide" if source == "sizes" else "usual"
        return self._suffix(SceneTexts(make_scene("test", SEED, int(number), sizes=sizes)), prompt)

    def _about(self, paper: Paper, prompt: str) -> str:
        if prompt == "ocr":
            return paper.text
        answers = {f"answer en {q.wordings[0]}": q.answer for q in paper_questions(paper)}
        boxes = {f"detect {field.value}": field for field in paper.fields}
        if prompt in answers:
            return answers[prompt]
        return f"{format_box(boxes[prompt].box_xyxy)} {boxes[prompt].value}"

    def _suffix(self, texts: SceneTexts, prompt: str) -> str:
        if prompt == TEXT_PROMPT:
            return text_suffix(texts.scene.words)
        task, _, rest = prompt.partition(" ")
        if task == "caption":
            return texts.caption(rest)
        if task == "ocr":
            return texts.reading()
        if task == "answer":
            plural = rest.removeprefix("en how many ").removesuffix(" are there?")
            [kind] = [i for i, k in enumerate(KINDS) if k.forms["en"].plural == plural]
            return str(len(texts.objects_of(kind)))
        kinds = [KIND_OF[name] for name in rest.split(" ; ")]
        return detection_suffix(texts, kinds, self.codes if task == "segment" else None)


@pytest.fixture(scope="module")
def shipped_codec() -> MaskCodec:
    return load_mask_codec_npz(Path(str(files("paligemma") / "mini" / "model" / "mask_codec.npz")))


@pytest.fixture(scope="module")
def oracle(shipped_codec: MaskCodec) -> Oracle:
    codec = shipped_codec
    return Oracle(tokenizer=Tokenizer(train_vocabulary()), mask_codec=codec, codes=seg_codes(codec))


def test_the_truth_gets_full_marks(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "_CHUNK", 12)
    seen: list[tuple[int, int]] = []
    scores = evaluate(oracle, scenes=16, seed=SEED, on_progress=lambda *done: seen.append(done))  # type: ignore[arg-type]
    assert [scores[name] for name in ("map50", "map", "boxes_90")] == [1.0] * 3
    assert scores["box_iou"] > 0.97  # the coordinates' rounding
    assert scores["box_auc"] is None
    assert scores["caption_exact"] == dict.fromkeys(LANGUAGES, 1.0)
    assert (scores["count"], scores["ocr_exact"], scores["absent"]) == (1.0, 1.0, 1.0)
    # All answers are right, and of two tokens with a probability of exp(-0.1) each.
    assert scores["count_ece"] == pytest.approx(1 - math.exp(-0.2), abs=1e-3)
    assert (scores["matched_masks"], scores["unparsable"]) == (1.0, 0)
    # The masks themselves are as good as the codec.
    assert 0.8 < scores["codec_iou"] < 1.0
    assert scores["mask_iou"] == pytest.approx(scores["codec_iou"], abs=0.02)  # rounded boxes
    assert 0.8 < scores["sizes_mask_iou"] < 1.0
    assert (scores["sizes_matched"], scores["text_f1"]) == (1.0, 1.0)
    assert (scores["table_cells"], scores["table_exact"]) == (1.0, 1.0)
    assert (scores["chart_values"], scores["chart_exact"]) == (1.0, 1.0)
    assert (scores["form_fields"], scores["form_exact"]) == (1.0, 1.0)
    papers = ("paper_fields", "paper_absent", "paper_lines", "paper_places")
    assert [scores[name] for name in papers] == [1.0] * 4
    assert seen == [(12, 16), (16, 16)]
    # One call for all tasks of a batch of scenes, then the sizes, tables, charts and forms, and
    # one for each paper.
    assert oracle.constrained == [True] * 10
    assert [record["index"] for record in scores["records"]] == list(range(16))


def test_silence_gets_none(oracle: Oracle) -> None:
    silent = Oracle(oracle.tokenizer, oracle.mask_codec, oracle.codes, mute=True)
    scores = evaluate(silent, scenes=8, seed=SEED, constrained=False)  # type: ignore[arg-type]
    assert silent.constrained == [False] * 7
    assert (scores["map50"], scores["count"], scores["ocr_exact"]) == (0.0, 0.0, 0.0)
    assert (scores["boxes_50"], scores["box_iou"], scores["box_ece"]) == (0.0, None, None)
    assert (scores["mask_iou"], scores["matched_masks"]) == (None, 0.0)
    assert (scores["sizes_mask_iou"], scores["sizes_matched"]) == (None, 0.0)
    assert (scores["text_f1"], scores["table_cells"], scores["chart_values"]) == (0.0, 0.0, 0.0)
    assert (scores["paper_fields"], scores["paper_lines"], scores["paper_places"]) == (
        0.0,
        0.0,
        0.0,
    )


def test_a_box_for_what_is_absent_is_counted(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sees_everything(self: Oracle, texts: SceneTexts, prompt: str) -> str:
        task, _, rest = prompt.partition(" ")
        if task != "detect" or prompt == TEXT_PROMPT:
            return suffix(self, texts, prompt)
        return suffix(self, texts, prompt) or f"<loc0000><loc0000><loc0500><loc0500> {rest}"

    suffix = Oracle._suffix
    monkeypatch.setattr(Oracle, "_suffix", sees_everything)
    scores = evaluate(oracle, scenes=8, seed=SEED)  # type: ignore[arg-type]
    assert (scores["absent"], scores["boxes_50"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("wrong", "cells", "exact"),
    [
        (lambda rows: rows[:-1], 0.5, 0.0),  # a row too few
        (lambda rows: (*rows, rows[0]), 1.0, 0.0),  # one too many
        (lambda rows: (rows[0][::-1], *rows[1:]), 0.5, 0.0),  # cells in each other's place
    ],
)
def test_a_table_is_scored_cell_by_cell(
    oracle: Oracle,
    monkeypatch: pytest.MonkeyPatch,
    wrong: Callable[[tuple[tuple[str, ...], ...]], tuple[tuple[str, ...], ...]],
    cells: float,
    exact: float,
) -> None:
    sheet = replace(make_sheet("test", SEED, 0, "table"), rows=(("OPEN", "12"), ("CAT", "7")))
    monkeypatch.setattr(evaluate_module, "make_sheet", lambda *_: sheet)
    monkeypatch.setattr(Oracle, "_truth", lambda *_: table_text(wrong(sheet.rows)))
    scores = evaluate(oracle, scenes=1, seed=SEED)  # type: ignore[arg-type]
    assert (scores["table_cells"], scores["table_exact"]) == (cells, exact)


def test_a_word_counts_where_its_letters_and_its_place_are_right(
    oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = next(scene for i in range(99) if len((scene := make_scene("test", SEED, i)).words) == 2)
    first, second = scene.words
    moved = replace(second, box_xyxy=(0.0, 0.0, 0.05, 0.05))
    misread = replace(second, text=second.text[::-1] + "X")
    monkeypatch.setattr(evaluate_module, "make_scene", lambda *_, **__: scene)
    for words, f1 in (((first, moved), 0.5), ((first, misread), 0.5), ((first,), 0.6667)):
        monkeypatch.setattr(Oracle, "_truth", lambda *_, words=words: text_suffix(words))
        assert evaluate(oracle, scenes=1, seed=SEED)["text_f1"] == f1  # type: ignore[arg-type]


def test_at_least_one_scene_is_needed(oracle: Oracle) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        evaluate(oracle, scenes=0)  # type: ignore[arg-type]


def test_training_the_codec_repeats(oracle: Oracle) -> None:
    assert oracle.mask_codec.config == MINI_CODEC
    first, second = (train_mask_codec(num_steps=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_shipped_codec_redraws_its_world(shipped_codec: MaskCodec) -> None:
    assert reconstruction_iou(shipped_codec) > 0.9
    assert len({code for codes in seg_codes(shipped_codec).values() for code in codes}) > 100
