"""transformers.js on Node runs an exported folder and generates the same ids as this package.

npm install --ignore-scripts --prefix FOLDER @huggingface/transformers
PALIGEMMA_NODE_MODULES=FOLDER/node_modules pytest -m slow tests/parity/test_transformers_js.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import paligemma
from paligemma.checkpoints.convert import convert_checkpoint
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.save import save_model
from paligemma.config import Family
from paligemma.engine.generate import generate
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.processor import Processor, PromptRow
from paligemma.processor.tokenizer import Tokenizer
from tests.tiny import FAMILIES, varied_model

pytestmark = pytest.mark.slow

NODE_MODULES = Path(os.environ.get("PALIGEMMA_NODE_MODULES", "node_modules"))
SCRIPT = Path(__file__).with_name("transformers_js.mjs")
MINI = Path(paligemma.__file__).parent / "mini" / "model"
SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
EOS = 1

PROMPTS = (
    "caption en",
    "caption de",
    "caption fr",
    "caption es",
    "caption it",
    "caption pt",
    "describe en",
    "ocr",
    "detect frog",
    "detect frog ; mushroom",
    "detect mushroom ; frog ; cat",
    "segment frog",
    "segment mushroom",
    "answer en how many frogs are there?",
    "answer en what color is the frog?",
    "answer de wie viele Frösche?",
    "answer fr  deux   espaces",
    "detect <loc0100><loc0200> ; \U0001f438",
    "two\nlines",
    "",
)
TEXTS = (
    "detect cat ; dog\n",
    "  a" + " " * 40 + "b\t\t\n\n\n",
    "漢字 \U0001f600 naïve é<seg001><loc12>",
)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model with an image, and what it says."""

    model: PaliGemma
    tokenizer: Tokenizer
    image: Path
    folder: Path
    """Of the export."""

    def processor(self) -> Processor:
        vision = self.model.config.vision
        return Processor(
            tokenizer=self.tokenizer,
            resolution=vision.resolution,
            num_image_tokens=vision.num_image_tokens,
        )

    def expected(self, prompt: str, max_new_tokens: int) -> tuple[list[int], list[int]]:
        """The ids of the prompt, as transformers.js gives them, and those of the answer."""
        processor = self.processor()
        inputs = processor.prefix_inputs([PromptRow(prompt=prompt)], [processor.load(self.image)])
        image_token = self.model.config.decoder.vocab_size
        ids = inputs.token_ids.masked_fill(inputs.image_mask, image_token)[0].tolist()
        rows = generate(self.model, inputs, max_new_tokens=max_new_tokens, eos_id=EOS)
        return ids, list(rows[0].token_ids)

    def run(self, folder: Path, dtype: str, max_new_tokens: int = 30) -> dict[str, Any]:
        processor = self.processor()
        pixels = processor.pixel_values([processor.load(self.image)])
        pixels.numpy().tofile(folder / "pixels.f32")
        job = {
            "folder": str(self.folder),
            "dtype": dtype,
            "image": str(self.image),
            "pixels": str(folder / "pixels.f32"),
            "own_pixels": str(folder / "own_pixels.f32"),
            "prompts": PROMPTS,
            "texts": TEXTS,
            "max_new_tokens": max_new_tokens,
        }
        (folder / "job.json").write_text(json.dumps(job))
        command = ["node", str(SCRIPT), str(NODE_MODULES), str(folder / "job.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        own = np.fromfile(folder / "own_pixels.f32", np.float32)
        result["pixel_difference"] = float(np.abs(own - pixels.numpy().reshape(-1)).max())
        return result


@pytest.fixture(autouse=True)
def _node() -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (NODE_MODULES / "@huggingface" / "transformers").is_dir():
        pytest.skip(
            "@huggingface/transformers is not installed: run npm install --ignore-scripts, and "
            "set PALIGEMMA_NODE_MODULES to its folder node_modules"
        )


def assert_same_ids(case: Case, result: dict[str, Any], max_new_tokens: int = 30) -> None:
    assert result["texts"] == [case.tokenizer.tokenize_text(text) for text in TEXTS]
    for prompt, row in zip(PROMPTS, result["rows"], strict=True):
        prefix, ids = case.expected(prompt, max_new_tokens)
        assert row["input_ids"] == prefix, prompt
        assert row["same_pixels"]["ids"] == ids, prompt


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_mini(tmp_path: Path, dtype: str) -> None:
    folder = convert_checkpoint(MINI, tmp_path / "mini", to="onnx", dtype=dtype)
    case = Case(
        model=load_model(MINI, weights="float32"),
        tokenizer=Tokenizer.from_file(MINI / "tokenizer.model"),
        image=SCENE,
        folder=folder,
    )
    assert_same_ids(case, case.run(tmp_path, dtype))


@pytest.mark.parametrize("dtype", ["q8", "q4", "q4f16"])
def test_quantized_mini_writes_about_the_same(tmp_path: Path, dtype: str) -> None:
    folder = convert_checkpoint(MINI, tmp_path / "mini", to="onnx", dtype=dtype)
    case = Case(
        model=load_model(MINI, weights="float32"),
        tokenizer=Tokenizer.from_file(MINI / "tokenizer.model"),
        image=SCENE,
        folder=folder,
    )
    rows = case.run(tmp_path, dtype)["rows"]
    pairs = zip(PROMPTS, rows, strict=True)
    same = sum(row["same_pixels"]["ids"] == case.expected(prompt, 30)[1] for prompt, row in pairs)
    assert same >= len(PROMPTS) // 2


@pytest.mark.parametrize("family", FAMILIES)
def test_random_models(family: Family, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    model = varied_model(family, vocab_size=1500)
    save_model(model, tmp_path / "hf", tokenizer_proto=tiny_tokenizer.model_proto)
    side = model.config.vision.resolution
    image = tmp_path / "noise.png"
    noise = torch.randint(256, (side, side, 3), generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.to(torch.uint8).numpy()).save(image)
    folder = convert_checkpoint(tmp_path / "hf", tmp_path / "onnx", to="onnx", dtype="fp32,q8,q4")
    case = Case(model=model, tokenizer=tiny_tokenizer, image=image, folder=folder)
    result = case.run(tmp_path, "fp32", max_new_tokens=10)
    assert_same_ids(case, result, max_new_tokens=10)
    # An image that needs no resizing has the same pixels.
    assert result["pixel_difference"] < 1e-6
    for row in result["rows"]:
        assert row["own_pixels"]["ids"] == row["same_pixels"]["ids"]
    for dtype in ("q8", "q4"):
        assert len(case.run(tmp_path, dtype, max_new_tokens=3)["rows"]) == len(PROMPTS)
