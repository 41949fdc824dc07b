"""Contestants of other families, through transformers: BLIP-2, LLaVA, Qwen-VL and others.

The only module of the package that imports transformers, and only in the process of such a
contestant. Models are read from a folder or from what was downloaded before; code of a model's
repository is never run, and weights are read from safetensors alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from paligemma.compare.chat import chat_prompt
from paligemma.compare.contestants import Contestant
from paligemma.compare.options import CompareOptions
from paligemma.compare.questions import Questions, question_in
from paligemma.compare.reply import Reply, prediction_of_text
from paligemma.data.record import Record
from paligemma.errors import CheckpointError, MissingExtraError, PaliGemmaError
from paligemma.fast.device import choose_device
from paligemma.threads import set_threads

_BLIP = ("blip-2", "instructblip")
_PALIGEMMA = "paligemma"


class TransformersModel:
    """A model and its processor."""

    def __init__(
        self, contestant: Contestant, questions: Questions, options: CompareOptions
    ) -> None:
        set_threads(options.threads)
        try:
            import transformers
        except ImportError:
            raise MissingExtraError(
                "transformers", "bench", f"The contestant {contestant.name}"
            ) from None
        transformers.logging.set_verbosity_error()
        self._name = contestant.name
        self._questions = questions
        self._device = choose_device(options.device)
        start = time.perf_counter()
        try:
            self._processor = transformers.AutoProcessor.from_pretrained(
                contestant.model, local_files_only=True, trust_remote_code=False
            )
            self._model = transformers.AutoModelForImageTextToText.from_pretrained(
                contestant.model,
                dtype="auto",
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
            )
        except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
            downloads = (
                ""
                if Path(contestant.model).exists()
                else f" Models are not downloaded here. Do it first: hf download {contestant.model}"
            )
            raise CheckpointError(
                f"transformers cannot load {contestant.model!r}: {_first_line(error)}{downloads}"
            ) from error
        self._model.to(self._device).eval()
        self.load_seconds: float | None = time.perf_counter() - start
        self._type: str = self._model.config.model_type
        self.info: dict[str, Any] = {
            "name": contestant.model,
            "family": self._type,
            "parameters": sum(p.numel() for p in self._model.parameters()),
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": str(self._device),
            "transformers": transformers.__version__,
        }

    def answer(self, records: Sequence[Record]) -> list[tuple[Reply | PaliGemmaError, float]]:
        """An answer or an error for each record, one after the other, with its seconds."""
        return [self._answer(record) for record in records]

    def warm_up(self, record: Record) -> None:
        """Answer once."""
        self.answer([record])

    @property
    def peak_gpu_bytes(self) -> int | None:
        """Peak memory that torch took on the GPU."""
        is_gpu = self._device.type == "cuda"
        return torch.cuda.max_memory_allocated(self._device) if is_gpu else None

    def _answer(self, record: Record) -> tuple[Reply | PaliGemmaError, float]:
        start = time.perf_counter()
        try:
            reply = self._generate(record)
        except PaliGemmaError as error:
            return error, time.perf_counter() - start
        except (ValueError, RuntimeError, TypeError, IndexError, KeyError) as error:
            # A model that does not take such a prompt or image.
            failure = PaliGemmaError(f"{self._name} gave no answer: {_first_line(error)}")
            return failure, time.perf_counter() - start
        return reply, time.perf_counter() - start

    @torch.inference_mode()
    def _generate(self, record: Record) -> Reply:
        task = self._questions.task_of(record)
        images = [image.rgb for image in record.load_images()]
        asked, inputs = self._inputs(record, images)
        inputs = inputs.to(self._device, self._model.dtype)
        limit = self._questions.max_tokens(record)
        ids = self._model.generate(**inputs, max_new_tokens=limit, do_sample=False)[0]
        # Decoders of one stack repeat the prompt, others do not.
        prompt = inputs["input_ids"][0]
        if len(ids) >= len(prompt) and bool((ids[: len(prompt)] == prompt).all()):
            ids = ids[len(prompt) :]
        skips = self._type != _PALIGEMMA  # whose locations are special tokens
        text = self._processor.decode(ids, skip_special_tokens=skips)
        prediction = prediction_of_text(
            record,
            task,
            record.load_images()[0].size_wh,
            text.removesuffix("<eos>"),
            in_chat=self._type != _PALIGEMMA,
            is_cut=len(ids) >= limit,
            num_tokens=len(ids),
        )
        return Reply(
            prediction=prediction, asked=asked, has_score=False, num_prompt_tokens=len(prompt)
        )

    def _inputs(self, record: Record, images: list[Any]) -> tuple[str, Any]:
        """The prompt in the form of the model's family, and the model's inputs."""
        processor = self._processor
        task = self._questions.task_of(record)
        if self._type == _PALIGEMMA:
            text = "<image>" * len(images) + record.prefix
            return record.prefix, processor(images=images, text=text, return_tensors="pt")
        if self._type in _BLIP:
            asked = _blip_prompt(record, task)
            return asked, processor(images=images, text=asked, return_tensors="pt")
        asked = chat_prompt(record, task)
        if getattr(processor, "chat_template", None) is None:
            return asked, processor(images=images, text=asked, return_tensors="pt")
        content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
        content.append({"type": "text", "text": asked})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return asked, inputs


def _blip_prompt(record: Record, task: str) -> str:
    """As in the paper of BLIP-2 (Li et al. 2023, arXiv 2301.12597): captions begin with "a photo
    of", and questions end with "Answer:"."""
    if task == "caption":
        return "a photo of"
    if task == "answer":
        return f"Question: {question_in(record.prefix)} Answer:"
    return f"Question: {chat_prompt(record, task)} Answer:"  # type: ignore[arg-type]


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
