"""Examples of no, one and two pictures in one batch, and pairs from a file to a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from paligemma.data.check import check_data
from paligemma.data.open import open_data
from paligemma.data.targets import TargetBuilder
from paligemma.errors import DataError
from paligemma.finetune.batches import ExampleBatch
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.distributed import World
from paligemma.finetune.examples import Example, RecordExamples, collate
from paligemma.finetune.learner import BadExamples, Learner, finetune
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import Processor
from paligemma.processor.tokenizer import Tokenizer
from tests.finetune.runner import predictor
from tests.finetune.test_finetune import small

CONFIG = TrainConfig(num_steps=1, learning_rate=1.0, autocast=False)


def noise(seed: int) -> LoadedImage:
    pixels = np.random.default_rng(seed).integers(0, 255, (30, 30, 3), dtype=np.uint8)
    return LoadedImage(rgb=Image.fromarray(pixels), name=f"noise {seed}")


def mixed() -> list[Example]:
    left, right = noise(0), noise(1)
    shown = [(), (left,), (left, right), (right, left), (right, right)]
    suffixes = ["a cat", "on the beach", "a dog and a cat", "cow", "a"]
    return [
        Example(images=images, prefix="caption en" if images else "detect cat", suffix=suffix)
        for images, suffix in zip(shown, suffixes, strict=True)
    ]


def plain_loss(model: PaliGemma, tokenizer: Tokenizer, example: Example) -> Tensor:
    """One row, put together by hand: image tokens of all pictures, BOS, prefix, newline, suffix."""
    text = [tokenizer.bos_id, *tokenizer.tokenize_text(example.prefix), tokenizer.separator_id]
    answer = [*tokenizer.tokenize_text(example.suffix), tokenizer.eos_id]
    num_places = 25 * len(example.images)
    pixels = [np.asarray(image.rgb, np.float32) / 127.5 - 1 for image in example.images]
    kinds = torch.tensor([[0] * num_places + [1] * len(text) + [2] * len(answer)])
    inputs = ModelInputs(
        token_ids=torch.tensor([[0] * num_places + text + answer]),
        input_mask=torch.ones_like(kinds, dtype=torch.bool),
        mask_ar=kinds == 2,
        image_mask=kinds == 0,
        pixel_values=torch.from_numpy(np.array(pixels).reshape(-1, 30, 30, 3)).permute(0, 3, 1, 2),
        image_index=(tuple(range(len(example.images))),),
    )
    logits = model.decoder.logits(model.hidden_states(inputs)[0], softcap=False)
    return F.cross_entropy(logits[-len(answer) - 1 : -1], torch.tensor(answer))


def test_a_mixed_batch_has_the_loss_and_gradients_of_its_examples_one_by_one(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    ours, plain = predictor(tiny_tokenizer), predictor(tiny_tokenizer)
    learner = learner_of(ours, tmp_path)
    examples = mixed()
    inputs = collate(ours.processor, examples)
    assert inputs.required_pixel_values.shape[0] == 2  # each picture once
    assert inputs.image_index == ((), (0,), (0, 1), (1, 0), (1, 1))
    total = learner(ExampleBatch(inputs=inputs, ids=()))
    total.backward()
    expected = torch.stack([plain_loss(plain.model, tiny_tokenizer, e) for e in examples])
    expected.sum().backward()
    assert len(set(expected.tolist())) == len(examples)
    assert float(total.detach()) == pytest.approx(float(expected.sum().detach()), abs=1e-5)
    for (name, mine), theirs in zip(
        ours.model.named_parameters(), plain.model.parameters(), strict=True
    ):
        assert mine.grad is not None, name
        assert theirs.grad is not None, name
        largest = max(1.0, float(theirs.grad.abs().max()))
        assert (mine.grad - theirs.grad).abs().max() < 1e-5 * largest, name


def learner_of(small: Predictor, out: Path) -> Learner:
    small.model.requires_grad_(True)
    return Learner(small.model, CONFIG, BadExamples(out, 5, CONFIG, World()))


def test_a_batch_of_text_alone_gives_the_encoder_gradients_of_zero(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    ours, plain = predictor(tiny_tokenizer), predictor(tiny_tokenizer)
    (example, *_) = mixed()
    inputs = collate(ours.processor, [example])
    assert inputs.required_pixel_values.shape[0] == 0
    total = learner_of(ours, tmp_path)(ExampleBatch(inputs=inputs, ids=()))
    total.backward()
    expected = plain_loss(plain.model, tiny_tokenizer, example)
    assert float(total.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    for name, parameter in ours.model.named_parameters():
        assert parameter.grad is not None, name
        sees = name.startswith(("vision_encoder.", "projector."))
        assert bool(parameter.grad.any()) != sees, name


PAIRS = {("red", "blue"): "a cat", ("blue", "red"): "on the beach", ("red", "red"): "cow"}


def pairs(folder: Path, tokenizer: Tokenizer) -> RecordExamples:
    """The answer depends on both pictures and on their order."""
    for color in ("red", "blue"):
        Image.new("RGB", (20, 20), color).save(folder / f"{color}.png")
    lines = [
        {"image": [f"{color}.png" for color in pair], "prefix": "caption en", "suffix": suffix}
        for pair, suffix in PAIRS.items()
    ]
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = open_data(path)
    processor = Processor(tokenizer=tokenizer, resolution=30, num_image_tokens=25)
    return RecordExamples(records=records, targets=TargetBuilder(processor=processor))


def test_records_of_two_images_are_learned(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    examples = pairs(tmp_path, tiny_tokenizer)
    assert [len(examples[index].images) for index in range(3)] == [2, 2, 2]
    checked = check_data(examples.records, examples.targets)
    assert [row.num_image for row in checked.rows] == [50, 50, 50]
    learning = small(tiny_tokenizer)
    config = TrainConfig(
        num_steps=90, learning_rate=5e-3, batch_size=3, warmup_steps=5, autocast=False
    )
    finetune(learning, examples, config, tmp_path / "run")
    for pair, suffix in PAIRS.items():
        pictures: list[Any] = [tmp_path / f"{color}.png" for color in pair]
        assert learning.generate(pictures, "caption en", max_new_tokens=8).text == suffix


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": [], "suffix": "a"}, 'must be an object with text under "image"'),
        ({"image": ["a.png", 3], "suffix": "a"}, 'must be an object with text under "image"'),
        ({"image": ["a.png", "b.png"], "suffix": "a"}, r"b\.png', which does not exist"),
        ({"image": ["a.png", "a.png"], "objects": []}, "has objects and 2 images"),
    ],
)
def test_pairs_that_are_not_whole_are_named(
    tmp_path: Path, record: dict[str, object], message: str
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prefix": "caption en", **record}) + "\n")
    with pytest.raises(DataError, match=message):
        open_data(path)
