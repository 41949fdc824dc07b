"""The evaluation gives full marks for the truth, and takes off what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from paligemma.errors import OptionError
from paligemma.mini.codec_training import (
    MINI_CODEC,
    reconstruction_iou,
    seg_codes,
    train_mask_codec,
)
from paligemma.mini.evaluate import evaluate
from paligemma.mini.examples import SegCodes, detection_suffix
from paligemma.mini.language import KINDS
from paligemma.mini.scene import make_scene
from paligemma.mini.texts import SceneTexts
from paligemma.mini.vocabulary import train_vocabulary
from paligemma.processor.image import ImageTransform, LoadedImage
from paligemma.processor.tokenizer import Tokenizer
from paligemma.tasks.seg_codec import MaskCodec, load_mask_codec_npz
from paligemma.tasks.task import Task, TaskContext

SEED = 11
KIND_OF = {kind.name: index for index, kind in enumerate(KINDS)}


@dataclass
class Oracle:
    """Answers every task with the truth of the scene that a picture is named after."""

    tokenizer: Tokenizer
    codec: MaskCodec
    codes: SegCodes
    name: str = "oracle"
    mute: bool = False
    constrained: list[bool] = field(default_factory=list)

    def run(
        self, tasks: Sequence[tuple[LoadedImage, Task[Any]]], *, constrained: bool
    ) -> list[Any]:
        self.constrained.append(constrained)
        return [self._answer(image, task) for image, task in tasks]

    def _answer(self, image: LoadedImage, task: Task[Any]) -> Any:
        texts = SceneTexts(make_scene("test", SEED, int(image.name.split()[-1])))
        suffix = "" if self.mute else self._suffix(texts, task.prompt())
        token_ids = [*self.tokenizer.tokenize_text(suffix), self.tokenizer.eos_id]
        generated = SimpleNamespace(
            token_ids=token_ids, logprobs=[-0.1] * len(token_ids), stop_reason="eos"
        )
        transform = ImageTransform(source_wh=image.size_wh, resolution=160)
        context = TaskContext(transform=transform, mask_codec=self.codec)
        return task.parse(generated, self.tokenizer, context)

    def _suffix(self, texts: SceneTexts, prompt: str) -> str:
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
def oracle() -> Oracle:
    codec = train_mask_codec(num_steps=40)
    return Oracle(tokenizer=Tokenizer(train_vocabulary()), codec=codec, codes=seg_codes(codec))


def test_the_truth_gets_full_marks(oracle: Oracle) -> None:
    seen: list[tuple[int, int]] = []
    scores = evaluate(oracle, scenes=40, seed=SEED, on_progress=lambda *done: seen.append(done))  # type: ignore[arg-type]
    assert scores["map50"] == 1.0
    assert scores["caption_exact"] == dict.fromkeys(("en", "de", "fr", "es"), 1.0)
    assert (scores["count"], scores["ocr_exact"]) == (1.0, 1.0)
    assert (scores["matched_masks"], scores["unparsable"]) == (1.0, 0)
    # The masks themselves are as good as a codec of forty steps.
    assert 0.4 < scores["mask_iou"] < 1.0
    assert seen == [(32, 40), (40, 40)]
    assert oracle.constrained == [True, True]  # one call for all tasks of a batch of scenes
    assert [record["index"] for record in scores["records"]] == list(range(40))


def test_silence_gets_none(oracle: Oracle) -> None:
    silent = Oracle(oracle.tokenizer, oracle.codec, oracle.codes, mute=True)
    scores = evaluate(silent, scenes=8, seed=SEED, constrained=False)  # type: ignore[arg-type]
    assert silent.constrained == [False]
    assert (scores["map50"], scores["count"], scores["ocr_exact"]) == (0.0, 0.0, 0.0)
    assert (scores["mask_iou"], scores["matched_masks"]) == (None, 0.0)


def test_at_least_one_scene_is_needed(oracle: Oracle) -> None:
    with pytest.raises(OptionError, match="at least 1"):
        evaluate(oracle, scenes=0)  # type: ignore[arg-type]


def test_training_the_codec_repeats(oracle: Oracle) -> None:
    assert oracle.codec.config == MINI_CODEC
    first, second = (train_mask_codec(num_steps=3).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_shipped_codec_redraws_its_world() -> None:
    path = files("paligemma") / "mini" / "model" / "mask_codec.npz"
    if not path.is_file():
        pytest.skip("the weights of mini are not there yet")
    codec = load_mask_codec_npz(Path(str(path)))
    assert reconstruction_iou(codec) > 0.9
    assert len({code for codes in seg_codes(codec).values() for code in codes}) > 100
