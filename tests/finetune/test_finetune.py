"""From a file of examples to a model that has learned them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from paligemma.config import PaliGemmaConfig
from paligemma.engine.generate import generate
from paligemma.errors import DataError, ImageError, OptionError
from paligemma.finetune.batches import examples_of_step
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.examples import Example, ExampleFile, collate
from paligemma.finetune.learner import finetune
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.processor.image import load_image
from paligemma.processor.processor import Processor, PromptRow
from paligemma.processor.tokenizer import Tokenizer
from tests.tiny import tiny_config

ANSWERS = {"red": "a cat", "green": "on the beach", "blue": "a dog and a cat", "white": "cow"}


def write_examples(folder: Path) -> Path:
    lines = []
    for color, suffix in ANSWERS.items():
        Image.new("RGB", (20, 20), color).save(folder / f"{color}.png")
        record = {"image": f"{color}.png", "prefix": "caption en", "suffix": suffix}
        lines.append(json.dumps(record))
    path = folder / "train.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def small(tokenizer: Tokenizer) -> Predictor:
    config: PaliGemmaConfig = tiny_config(vocab_size=tokenizer.vocab_size, attn_logit_softcap=50.0)
    torch.manual_seed(0)
    model = PaliGemma(config)
    torch.nn.init.normal_(model.decoder.embedding.weight, std=config.decoder.width**-0.5)
    processor = Processor(
        tokenizer=tokenizer,
        resolution=config.vision.resolution,
        num_image_tokens=config.vision.num_image_tokens,
    )
    return Predictor(model=model, processor=processor)


def test_g11_four_examples_are_learned_by_heart(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    examples = ExampleFile.open(write_examples(tmp_path))
    predictor = small(tiny_tokenizer)
    config = TrainConfig(
        num_steps=60, learning_rate=5e-3, batch_size=4, warmup_steps=5, autocast=False
    )
    finetune(predictor, examples, config, tmp_path / "run")
    images = [load_image(tmp_path / f"{color}.png") for color in ANSWERS]
    rows = [PromptRow(prompt="caption en", images=(i,)) for i in range(len(images))]
    made = generate(
        predictor.model,
        predictor.processor.prefix_inputs(rows, images),
        max_new_tokens=20,
        eos_id=tiny_tokenizer.eos_id,
    )
    assert [tiny_tokenizer.detokenize(row.token_ids) for row in made] == list(ANSWERS.values())


def test_examples_that_share_an_image_share_its_encoding(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    write_examples(tmp_path)
    processor = small(tiny_tokenizer).processor
    first, second = load_image(tmp_path / "red.png"), load_image(tmp_path / "blue.png")
    batch = collate(
        processor,
        [
            Example(images=(first,), prefix="caption en", suffix="a cat"),
            Example(images=(second,), prefix="caption en", suffix="a dog"),
            Example(images=(first,), prefix="detect cat ; dog", suffix="a"),
        ],
    )
    assert batch.required_pixel_values.shape[0] == 2
    assert batch.image_index == ((0,), (1,), (0,))


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7])
def test_g5_every_epoch_shows_each_example_once(batch_size: int) -> None:
    shown = [place for s in range(20) for place in examples_of_step(5, batch_size, seed=3, step=s)]
    for epoch in range(len(shown) // 5):
        part = shown[epoch * 5 : epoch * 5 + 5]
        assert sorted(part) == [(epoch, index) for index in range(5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{broken\n", r"Line 1 of .* is not JSON"),
        ('{"image": "a.png", "prefix": "x"}\n', r"Line 1 .* must be an object with text"),
        ('{"image": "a.png", "prefix": "x", "suffix": 3}\n', "must be an object with text"),
        ("\n\n", "has no records"),
    ],
)
def test_g6_a_wrong_file_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        ExampleFile.open(path)


def test_a_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        ExampleFile.open(tmp_path / "none.jsonl")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_g6_a_damaged_image_ends_the_run_with_its_own_error(
    tmp_path: Path, tiny_tokenizer: Tokenizer, num_workers: int
) -> None:
    examples = ExampleFile.open(write_examples(tmp_path))
    (tmp_path / "blue.png").write_bytes(b"not a picture")
    config = TrainConfig(
        num_steps=4, learning_rate=1e-3, batch_size=4, num_workers=num_workers, autocast=False
    )
    with pytest.raises(ImageError, match=r"blue\.png"):
        finetune(small(tiny_tokenizer), examples, config, tmp_path / "run")


def test_weights_in_bfloat16_are_refused(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    examples = ExampleFile.open(write_examples(tmp_path))
    predictor = small(tiny_tokenizer)
    predictor.model.to(torch.bfloat16)
    with pytest.raises(OptionError, match="needs float32"):
        finetune(predictor, examples, TrainConfig(num_steps=1, learning_rate=1.0), tmp_path)


@pytest.mark.parametrize(
    "fields", [{"num_steps": 0}, {"save_every": 0}, {"learning_rate": 0.0}, {"schedule": "linear"}]
)
def test_options_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        TrainConfig(**({"num_steps": 1, "learning_rate": 1.0} | fields))
