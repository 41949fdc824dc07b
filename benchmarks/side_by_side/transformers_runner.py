"""transformers as a runner: as people run it, and with frozen weights.

`from_pretrained` returns a model whose weights require gradients. With frozen weights
(`model.requires_grad_(False)`) the same call hits a defect of torch (seen in 2.13, CPU, bfloat16):
`generate` passes the output layer the last position as a view of all positions, which torch does
not treat as a matrix; it copies the whole table, transposed, before it multiplies. For a 3B model
that takes more than five seconds.
"""

from __future__ import annotations

import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.side_by_side.stages import read_every_page
from paligemma.bench.workload import fill_with_noise, noise_image, prompt_ids
from paligemma.checkpoints.hf_config import CONFIG_FILE, write_config
from paligemma.config import PaliGemmaConfig
from paligemma.errors import MissingExtraError

try:
    import transformers
    from transformers.initialization import no_init_weights
except ImportError as error:
    raise MissingExtraError("transformers", "bench", "The comparison with transformers") from error

# B rows, T positions, D width


class TransformersRunner:
    """`PaliGemmaForConditionalGeneration.generate` in bfloat16; default attention."""

    def __init__(self, model: Any, image_processor: Any, config: PaliGemmaConfig) -> None:
        self.model = model
        self.config = config
        self.image_processor = image_processor
        self._image = Image.fromarray(noise_image())
        self._pixel_values = self._read_images(1)

    @torch.inference_mode()
    def image(self) -> float:
        start = time.perf_counter()
        self._read_images(1)
        return time.perf_counter() - start

    @torch.inference_mode()
    def vision(self) -> float:
        start = time.perf_counter()
        self.model.get_image_features(self._pixel_values)
        return time.perf_counter() - start

    @torch.inference_mode()
    def prefill(self) -> float:
        inputs = self._inputs(1)
        image = self.model.get_image_features(self._pixel_values)
        start = time.perf_counter()
        out = self.model(**inputs, mm_encoder_outputs={"image": image}, logits_to_keep=1)
        out.logits.argmax().tolist()
        return time.perf_counter() - start

    def answer(self, num_tokens: int, num_rows: int) -> list[float]:
        inputs = self._inputs(num_rows)
        clock = _Clock()
        start = time.perf_counter()
        inputs["pixel_values"] = self._read_images(num_rows)
        self._generate(inputs, num_tokens, clock)
        return [moment - start for moment in clock.moments]

    def steps(self, num_tokens: int, num_rows: int) -> list[float]:
        """Steps on copies of the cache of one row, without a prefill of all rows."""
        cache = transformers.DynamicCache(config=self.model.config.get_text_config())
        inputs = self._inputs(1) | {"pixel_values": self._pixel_values, "past_key_values": cache}
        ids = self._generate(inputs, 1, _Clock())
        cache.batch_repeat_interleave(num_rows)
        clock = _Clock()
        length = ids.shape[1]
        inputs = {
            "input_ids": ids.expand(num_rows, -1),
            "attention_mask": torch.ones(num_rows, length, dtype=torch.long),
            "token_type_ids": torch.zeros(num_rows, length, dtype=torch.long),
            "past_key_values": cache,
        }
        self._generate(inputs, num_tokens + 1, clock)
        return [later - sooner for sooner, later in pairwise(clock.moments)]

    def _generate(self, inputs: dict[str, Any], num_tokens: int, clock: _Clock) -> Tensor:
        ids: Tensor = self.model.generate(
            **inputs,
            max_new_tokens=num_tokens,
            do_sample=False,
            stopping_criteria=transformers.StoppingCriteriaList([clock]),
        )
        return ids

    def _read_images(self, num_rows: int) -> Tensor:
        inputs = self.image_processor(images=[self._image] * num_rows, return_tensors="pt")
        pixel_values: Tensor = inputs["pixel_values"].to(torch.bfloat16)
        return pixel_values

    def _inputs(self, num_rows: int) -> dict[str, Any]:
        """The inputs that its processor makes of an image and a prompt, without the pixels."""
        prompts = prompt_ids(self.config, num_rows)
        shape = (num_rows, self.config.vision.num_image_tokens)
        ids = torch.cat([torch.full(shape, self.model.config.image_token_id), prompts], dim=1)
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
        }


class FrozenTransformersRunner:
    """The same model with frozen weights. Whole answers only."""

    def __init__(self, runner: TransformersRunner) -> None:
        self._runner = runner

    def answer(self, num_tokens: int, num_rows: int) -> list[float]:
        self._runner.model.requires_grad_(False)
        try:
            return self._runner.answer(num_tokens, num_rows)
        finally:
            self._runner.model.requires_grad_(True)


class _Clock(transformers.StoppingCriteria):  # type: ignore[misc]
    """Never stops; records when each token was available."""

    def __init__(self) -> None:
        self.moments: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.moments.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool)


def build(config: PaliGemmaConfig) -> TransformersRunner:
    """A model with random bfloat16 weights."""
    with tempfile.TemporaryDirectory() as folder:
        shape, image_processor = _released_form(Path(folder), config)
    with no_init_weights():
        model = transformers.PaliGemmaForConditionalGeneration._from_config(
            shape, dtype=torch.bfloat16
        )
    model.tie_weights()
    fill_with_noise(model.parameters())
    model.generation_config.eos_token_id = None  # answers have exactly the requested length
    return TransformersRunner(model.eval(), image_processor, config)


def seconds_to_load(folder: Path) -> float:
    """From a checkpoint folder to a model whose weights are all in memory."""
    start = time.perf_counter()
    read_every_page(
        transformers.PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16)
    )
    return time.perf_counter() - start


def _released_form(folder: Path, config: PaliGemmaConfig) -> tuple[Any, Any]:
    """Config and image processor as in the released files.

    These have no `layer_types`, so every other layer of a Gemma 2 has a sliding window.
    """
    write_config(folder, config, "bfloat16")
    content = json.loads((folder / CONFIG_FILE).read_text())
    content["text_config"].pop("layer_types", None)
    (folder / CONFIG_FILE).write_text(json.dumps(content))
    return (
        transformers.AutoConfig.from_pretrained(folder),
        transformers.AutoImageProcessor.from_pretrained(folder),
    )
