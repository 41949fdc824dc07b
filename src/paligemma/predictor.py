"""The whole way: picture and task in, typed result or text out.

    picture + prompt -> processor -> model inputs -> engine -> token ids -> task -> result

Knows every part and does none of their work; knows no files but the pictures it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt
import torch

from paligemma.checkpoints.save import save_model
from paligemma.config import count_parameters
from paligemma.engine.beam import beam_search
from paligemma.engine.generate import GeneratedRow, generate_steps, row_limits
from paligemma.engine.generate import generate as generate_rows
from paligemma.engine.sampling import GREEDY, Sampling
from paligemma.engine.score import score as score_rows
from paligemma.errors import (
    CheckpointError,
    NumericalError,
    OptionError,
    PaliGemmaError,
    PromptError,
)
from paligemma.fused.accelerate import quantization_of
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.growing_text import GrowingText
from paligemma.processor.image import ImageSource, LoadedImage
from paligemma.processor.inputs import ModelInputs
from paligemma.processor.processor import ExampleRow, Processor, PromptRow
from paligemma.results import (
    Answer,
    BoxXyxy,
    Caption,
    Detections,
    Generation,
    Score,
    Segments,
    Text,
)
from paligemma.tasks.answer import AnswerTask, QuestionTask
from paligemma.tasks.caption import BoxCaptionTask, CaptionTask
from paligemma.tasks.detect import DetectTask
from paligemma.tasks.ocr import OcrTask
from paligemma.tasks.seg_codec import MaskCodec, mask_codec_to_npz
from paligemma.tasks.segment import SegmentTask
from paligemma.tasks.task import Task, TaskContext

Picture = ImageSource | LoadedImage
"""A path, the bytes of a file, a PIL image, an array, or what `Processor.load` gave."""
Pictures = Picture | list[Picture] | tuple[Picture, ...]
"""One picture, several (the frames of a clip, a pair to compare), or none: ()."""

Texts = list[str] | tuple[str, ...]

ResultT = TypeVar("ResultT")

MAX_BATCH_SIZE = 32
MAX_NEW_TOKENS = 128
MASK_CODEC_FILE = "mask_codec.npz"
_CONTEXT_LENGTH = 8192  # of Gemma 1 and 2: arXiv 2403.08295, arXiv 2408.00118

# What an answer usually needs and some more; a model that knows when to stop ends before. An
# object takes about 9 tokens in a list of boxes, 25 in a list of masks.
_TASK_MAX_NEW_TOKENS: dict[type, int] = {
    CaptionTask: 64,
    BoxCaptionTask: 64,
    AnswerTask: 48,
    QuestionTask: 48,
    OcrTask: 256,
    DetectTask: 256,
    SegmentTask: 512,
}
_DESCRIBE_MAX_NEW_TOKENS = 192


@dataclass(frozen=True, kw_only=True)
class Predictor:
    """A loaded model, asked by task.

    >>> predictor = paligemma.load("google/paligemma2-3b-mix-224")
    >>> print(predictor.detect("street.jpg", "car ; person"))
    2 objects in a picture of 640 x 480 pixels
    score      x1      y1      x2      y2  label
     0.93    12.0   130.5   310.2   471.8  car
     0.88   400.1   101.9   470.0   402.3  person

    Every method takes a picture as a path, bytes, PIL image or array, and raises ImageError,
    PromptError or OptionError for input it cannot use, and NumericalError when the model gives
    NaN or infinity. `max_new_tokens` caps an answer's length; None picks a cap by task, no larger
    than the length of text that the model was trained with, where that is known.

    `load` builds one from a folder. From parts, such as a tiny model and a tokenizer of one's own:
    `Predictor(model=load_model(folder), processor=Processor(tokenizer=..., resolution=...,
    num_image_tokens=...))`.
    """

    model: PaliGemma = field(repr=False)
    processor: Processor = field(repr=False)
    mask_codec: MaskCodec | None = field(default=None, repr=False)
    text_length: int | None = None
    """Text positions that the model was trained with, prompt and answer together."""
    name: str = ""
    """What was loaded: a folder, or a model of the hub."""
    revision: str | None = None
    """The hub's commit."""
    note: str | None = None
    """One line that a person should read before trusting the results."""

    # Tasks

    def caption(
        self, image: Picture, language: str = "en", *, max_new_tokens: int | None = None
    ) -> Caption:
        """A short description in one of 35 languages, such as "es"."""
        return self._one(image, CaptionTask(language=language), max_new_tokens)

    def describe(
        self, image: Picture, language: str = "en", *, max_new_tokens: int | None = None
    ) -> Caption:
        """A longer description; for pre-trained checkpoints and those tuned for it."""
        task = CaptionTask(language=language, style="describe")
        return self._one(image, task, max_new_tokens)

    @overload
    def ask(
        self,
        image: Picture,
        question: str,
        language: str | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> Answer: ...
    @overload
    def ask(
        self,
        image: Picture,
        question: Texts,
        language: str | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> list[Answer]: ...
    def ask(
        self,
        image: Picture,
        question: str | Texts,
        language: str | None = None,
        *,
        max_new_tokens: int | None = None,
    ) -> Answer | list[Answer]:
        """The answer to a question, or one to each of several: the picture is encoded once.

        With a language the prompt is "answer {language} {question}", the form of most
        pre-training; without, the question as it stands, which mix checkpoints understand.
        """
        if isinstance(question, str):
            task = AnswerTask(question=question, language=language)
            return self._one(image, task, max_new_tokens)
        picture = self._load(image)
        tasks = [(picture, AnswerTask(question=q, language=language)) for q in question]
        return self.run(tasks, max_new_tokens=max_new_tokens)

    def question(
        self,
        image: Picture,
        answer: str,
        language: str = "en",
        *,
        max_new_tokens: int | None = None,
    ) -> Text:
        """A question about the picture to which `answer` is the answer."""
        return self._one(image, QuestionTask(answer=answer, language=language), max_new_tokens)

    def ocr(self, image: Picture, *, max_new_tokens: int | None = None) -> Text:
        """The text in the picture, line by line from the top."""
        return self._one(image, OcrTask(), max_new_tokens)

    def detect(
        self,
        image: Picture,
        phrases: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
    ) -> Detections:
        """Boxes for named things: "cat ; dog" or ["cat", "dog"]."""
        return self._one(image, DetectTask.of(phrases), max_new_tokens)

    def segment(
        self,
        image: Picture,
        phrases: str | Sequence[str],
        *,
        max_new_tokens: int | None = None,
    ) -> Segments:
        """Boxes and masks for named things. Raises CheckpointError without a mask codec."""
        return self._one(image, SegmentTask.of(phrases), max_new_tokens)

    def caption_box(
        self, image: Picture, box_xyxy: BoxXyxy, *, max_new_tokens: int | None = None
    ) -> Caption:
        """What is in a box: x1, y1, x2, y2 in pixels of the given picture."""
        picture = self._load(image)
        transform = self.processor.transform(picture)
        box = transform.box_from_source(box_xyxy, order="xyxy")
        return self._one(picture, BoxCaptionTask(box_normalized_xyxy=box), max_new_tokens)

    @overload
    def run(
        self,
        tasks: Sequence[tuple[Picture, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        errors: Literal["raise"] = "raise",
    ) -> list[ResultT]: ...
    @overload
    def run(
        self,
        tasks: Sequence[tuple[Picture, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        errors: Literal["return"],
    ) -> list[ResultT | PaliGemmaError]: ...
    def run(
        self,
        tasks: Sequence[tuple[Picture, Task[ResultT]]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        errors: Literal["raise", "return"] = "raise",
    ) -> list[ResultT] | list[ResultT | PaliGemmaError]:
        """Many tasks on many pictures, `batch_size` at a time, results in the order given.

        By default a batch has as many rows as fill 8192 positions, at most 32: 32 at 224 pixels,
        8 at 448, 2 at 896. A large GPU takes more.
        Tasks may be mixed. Neighbors that name the same picture (the same object or path) share
        its encoding. With `errors="return"`, a picture that cannot be read, a prompt that does not
        fit or a row that the model broke gives its error in its place, and the others their
        results.

        >>> predictor.run([("a.jpg", OcrTask()), ("b.jpg", DetectTask.of("cat"))])
        """
        batch_size = self._batch_size(batch_size, num_images=1)
        encode = _Encoder(self.model)
        results: list[ResultT | PaliGemmaError] = []
        for start in range(0, len(tasks), batch_size):
            chunk = tasks[start : start + batch_size]
            results += self._run_batch(chunk, encode, max_new_tokens, num_beams, errors == "return")
        return results

    # Prompts of one's own

    @overload
    def generate(
        self,
        images: Pictures,
        prompt: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> Generation: ...
    @overload
    def generate(
        self,
        images: Pictures,
        prompt: Texts,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> list[Generation]: ...
    def generate(
        self,
        images: Pictures,
        prompt: str | Texts,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> Generation | list[Generation]:
        """The raw text that the model writes after a prompt, or after each of several.

        `images`: one picture, a list of them (frames of a clip in order of time), or () for none.
        The newline behind the prompt and the image tokens are added here. Temperature 0 is
        greedy; sampling repeats with the same seed, and the rows of a list differ from each other.
        `num_beams` above 1 searches for the likeliest whole text. The text ends before the first
        of the `stop` strings.

        >>> predictor.generate("cat.jpg", "caption en").text
        'a cat on a sofa'
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        loaded = self._load_all(images)
        generations = self.generate_batch(
            [(loaded, p) for p in prompts],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            num_beams=num_beams,
            stop=stop,
        )
        return generations[0] if isinstance(prompt, str) else generations

    def generate_batch(
        self,
        rows: Sequence[tuple[Pictures, str]],
        *,
        batch_size: int | None = None,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        num_beams: int = 1,
        stop: Sequence[str] = (),
    ) -> list[Generation]:
        """As `generate`, for pairs of pictures and prompt. Raises the first row's error."""
        num_images = max((len(_as_tuple(images)) for images, _ in rows), default=1)
        batch_size = self._batch_size(batch_size, num_images)
        decoding = _Decoding(
            sampler=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
            num_beams=num_beams,
            stop=_checked_stop(stop),
        )
        encode = _Encoder(self.model)
        generations: list[Generation] = []
        for start in range(0, len(rows), batch_size):
            chunk = rows[start : start + batch_size]
            album = _Album(self._load)
            prompt_rows = [
                PromptRow(prompt=prompt, images=tuple(map(album.add, _as_tuple(images))))
                for images, prompt in chunk
            ]
            limits = row_limits(max_new_tokens, len(chunk))
            numbers = range(start, start + len(chunk))
            for made in self._generate(
                prompt_rows, album.pictures, encode, limits, decoding, numbers
            ):
                if isinstance(made, PaliGemmaError):
                    raise made
                generations.append(made)
        return generations

    def stream(
        self,
        images: Pictures,
        prompt: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop: Sequence[str] = (),
    ) -> Iterator[str]:
        """The text of `generate` in pieces, as soon as they are certain.

        A piece is never taken back: the beginning of what may become a stop string is held until
        it is clear that it does not.
        """
        pictures = [self._load(image) for image in _as_tuple(images)]
        row = PromptRow(prompt=prompt, images=tuple(range(len(pictures))))
        inputs = self.processor.prefix_inputs([row], pictures)
        self._check_length(inputs, row_limits(max_new_tokens, 1))
        text = GrowingText(self.processor.tokenizer, _checked_stop(stop))
        steps = generate_steps(
            self.model,
            inputs,
            max_new_tokens=max_new_tokens,
            eos_id=self.processor.tokenizer.eos_id,
            sampler=Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed),
            should_stop=lambda _, token_ids: text.push(token_ids[-1]),
        )

        def pieces() -> Iterator[str]:
            for step in steps:
                if step.stop_reason == "numerical_error":
                    raise _numerical_error()
                if piece := text.take():
                    yield piece
            if piece := text.take_rest():
                yield piece

        return pieces()

    @overload
    def score(self, images: Pictures, prompt: str, suffix: str) -> Score: ...
    @overload
    def score(self, images: Pictures, prompt: str, suffix: Texts) -> list[Score]: ...
    def score(self, images: Pictures, prompt: str, suffix: str | Texts) -> Score | list[Score]:
        """How probable the model finds a text (with its end) after a prompt, or each of several.

        >>> scores = predictor.score("cat.jpg", "answer en Is it a cat?", ["yes", "no"])
        >>> scores[0].total > scores[1].total
        True
        """
        suffixes = [suffix] if isinstance(suffix, str) else list(suffix)
        pictures = [self._load(image) for image in _as_tuple(images)]
        places = tuple(range(len(pictures)))
        batch_size = self._batch_size(None, len(pictures))
        encode = _Encoder(self.model)
        scores: list[Score] = []
        for start in range(0, len(suffixes), batch_size):
            rows = [
                ExampleRow(prompt=prompt, suffix=text, images=places)
                for text in suffixes[start : start + batch_size]
            ]
            inputs = self.processor.example_inputs(rows, pictures)
            self._check_length(inputs, [0] * len(rows))
            image_tokens = encode(pictures, inputs.pixel_values)
            for row in score_rows(self.model, inputs, image_tokens=image_tokens):
                if not np.isfinite(row.logprobs).all():
                    raise _numerical_error()
                scores.append(Score(token_ids=row.token_ids, logprobs=row.logprobs))
        return scores[0] if isinstance(suffix, str) else scores

    def embed_image(self, image: Picture) -> npt.NDArray[np.float32]:
        """The picture as the decoder sees it: float32[P, D], P image tokens of the model's width.

        float32[256, 2304] for PaliGemma 2 3B at 224 pixels.
        """
        pixel_values = self.processor.pixel_values([self._load(image)]).to(self.model.device)
        with torch.inference_mode():
            tokens = self.model.embed_images(pixel_values)[0].float().cpu().numpy()
        if not np.isfinite(tokens).all():
            raise _numerical_error()
        return cast("npt.NDArray[np.float32]", tokens)

    # The model itself

    def save(self, folder: str | Path) -> Path:
        """Write a checkpoint folder that `load` and transformers read; gives back its path.

        A quantized model makes a quantized folder, which `load` alone reads.

        Raises CheckpointError when the folder exists and holds something, NumericalError when a
        weight is NaN or infinite.
        """
        proto = self.processor.tokenizer.model_proto
        files = {}
        if self.mask_codec is not None:
            files[MASK_CODEC_FILE] = mask_codec_to_npz(self.mask_codec)
        return save_model(self.model, folder, tokenizer_proto=proto, extra_files=files)

    def info(self) -> dict[str, Any]:
        """What this is, in numbers, for people and logs."""
        config = self.model.config
        return {
            "name": self.name,
            "revision": self.revision,
            "family": config.family,
            "parameters": count_parameters(config),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "quantization": quantization_of(self.model),
            "device": str(self.model.device),
            "resolution": config.vision.resolution,
            "image_tokens": config.vision.num_image_tokens,
            "text_length": self.text_length,
            "vocabulary": config.decoder.vocab_size,
            "resize": self.processor.resize,
            "mask_codec": self.mask_codec is not None,
            "note": self.note,
        }

    # Parts

    def _load(self, image: Picture) -> LoadedImage:
        return image if isinstance(image, LoadedImage) else self.processor.load(image)

    def _load_all(self, images: Pictures) -> tuple[LoadedImage, ...]:
        return tuple(self._load(image) for image in _as_tuple(images))

    def _one(self, image: Picture, task: Task[ResultT], max_new_tokens: int | None) -> ResultT:
        return self.run([(image, task)], max_new_tokens=max_new_tokens)[0]

    def _batch_size(self, batch_size: int | None, num_images: int) -> int:
        """Rows at once. The memory that attention takes grows with the square of a row."""
        if batch_size is None:
            row = self.processor.num_image_tokens * max(1, num_images)
            return min(MAX_BATCH_SIZE, max(1, _CONTEXT_LENGTH // row))
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise OptionError(
                f"batch_size is {batch_size!r}; it must be a whole number of at least 1."
            )
        return batch_size

    def _limit(self, task: Task[Any]) -> int:
        limit = _TASK_MAX_NEW_TOKENS.get(type(task), MAX_NEW_TOKENS)
        if isinstance(task, CaptionTask) and task.style == "describe":
            limit = _DESCRIBE_MAX_NEW_TOKENS
        return min(limit, self.text_length or limit)

    def _run_batch(
        self,
        chunk: Sequence[tuple[Picture, Task[ResultT]]],
        encode: _Encoder,
        max_new_tokens: int | None,
        num_beams: int,
        return_errors: bool,
    ) -> list[ResultT | PaliGemmaError]:
        album = _Album(self._load)
        results: list[ResultT | PaliGemmaError | None] = [None] * len(chunk)
        rows: dict[int, PromptRow] = {}
        limits: list[int] = []
        for number, (image, task) in enumerate(chunk):
            try:
                self._check_codec(task)
                wanted = self._limit(task) if max_new_tokens is None else max_new_tokens
                (limit,) = row_limits(wanted, 1)
                # Checked alone, so that a prompt that does not fit is its own row's error.
                row = PromptRow(prompt=task.prompt(), images=())
                inputs = self.processor.prefix_inputs([row], [])
                self._check_length(inputs, [self.processor.num_image_tokens + limit])
                rows[number] = replace(row, images=(album.add(image),))
                limits.append(limit)
            except PaliGemmaError as error:
                if not return_errors:
                    raise
                results[number] = error
        decoding = _Decoding(num_beams=num_beams)
        made = self._generate(
            list(rows.values()), album.pictures, encode, limits, decoding, list(rows)
        )
        for (number, row), generation in zip(rows.items(), made, strict=True):
            if isinstance(generation, PaliGemmaError):
                if not return_errors:
                    raise generation
                results[number] = generation
                continue
            context = TaskContext(
                transform=self.processor.transform(album.pictures[row.images[0]]),
                mask_codec=self.mask_codec,
            )
            tokenizer = self.processor.tokenizer
            results[number] = chunk[number][1].parse(generation, tokenizer, context)
        return cast("list[ResultT | PaliGemmaError]", results)

    def _check_codec(self, task: Task[Any]) -> None:
        if isinstance(task, SegmentTask) and self.mask_codec is None:
            raise CheckpointError(
                f"{self.name or 'The model'} came without a mask codec, which turns <seg> tokens "
                "into masks. Fetch the released one, gs://big_vision/paligemma/vae-oid.npz, and "
                "put it into the model's folder or load with mask_codec='vae-oid.npz'. "
                "Boxes alone need none: detect()."
            )

    def _check_length(self, inputs: ModelInputs, num_more: Sequence[int]) -> None:
        """Each row and what is to come after it must fit."""
        for found, more in zip(inputs.input_mask.sum(dim=1).tolist(), num_more, strict=True):
            if found + more > _CONTEXT_LENGTH:
                raise PromptError(
                    f"Pictures, prompt and answer may take {found + more} positions; the model "
                    f"was made for {_CONTEXT_LENGTH}. A picture takes "
                    f"{self.processor.num_image_tokens}. Give fewer pictures, a shorter prompt or "
                    "a smaller max_new_tokens."
                )

    def _generate(
        self,
        rows: Sequence[PromptRow],
        pictures: Sequence[LoadedImage],
        encode: _Encoder,
        limits: Sequence[int],
        decoding: _Decoding,
        row_numbers: Sequence[int],
    ) -> list[Generation | NumericalError]:
        """One batch. A row of broken logits gives its error, the others their texts."""
        if not rows:
            return []
        tokenizer = self.processor.tokenizer
        inputs = self.processor.prefix_inputs(rows, pictures)
        self._check_length(inputs, limits)
        image_tokens = encode(pictures, inputs.pixel_values)
        texts = [GrowingText(tokenizer, decoding.stop) for _ in rows]
        if decoding.num_beams == 1:
            made = generate_rows(
                self.model,
                inputs,
                max_new_tokens=limits,
                eos_id=tokenizer.eos_id,
                sampler=decoding.sampler,
                row_numbers=row_numbers,
                should_stop=lambda row, token_ids: texts[row].push(token_ids[-1]),
                image_tokens=image_tokens,
            )
        else:
            made = self._search(inputs, limits, decoding, image_tokens)
            for text, row in zip(texts, made, strict=True):
                for token_id in row.token_ids:
                    if token_id != tokenizer.eos_id:
                        text.push(token_id)
        return [_to_generation(row, text) for row, text in zip(made, texts, strict=True)]

    def _search(
        self,
        inputs: ModelInputs,
        limits: Sequence[int],
        decoding: _Decoding,
        image_tokens: torch.Tensor | None,
    ) -> list[GeneratedRow]:
        if decoding.sampler.temperature != 0 or decoding.stop:
            raise OptionError(
                f"num_beams is {decoding.num_beams}: beam search takes neither a temperature nor "
                "stop strings. Use num_beams=1, or leave those out."
            )
        return beam_search(
            self.model,
            inputs,
            beam_size=decoding.num_beams,
            max_new_tokens=limits,
            eos_id=self.processor.tokenizer.eos_id,
            image_tokens=image_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class _Decoding:
    """How tokens are chosen, and what ends a text."""

    sampler: Sampling = GREEDY
    num_beams: int = 1
    stop: tuple[str, ...] = ()


class _Encoder:
    """Image tokens of pictures; those of the batch before are not made again."""

    def __init__(self, model: PaliGemma) -> None:
        self._model = model
        self._known: dict[LoadedImage, torch.Tensor] = {}

    def __call__(
        self, pictures: Sequence[LoadedImage], pixel_values: torch.Tensor
    ) -> torch.Tensor | None:
        """float32[I, 3, R, R] -> float[I, P, D], or None without pictures."""
        if not pictures:
            return None
        new = [place for place, picture in enumerate(pictures) if picture not in self._known]
        made: dict[LoadedImage, torch.Tensor] = {}
        if new:
            with torch.inference_mode():
                tokens = self._model.embed_images(pixel_values[new].to(self._model.device))
            made = {pictures[place]: row for place, row in zip(new, tokens, strict=True)}
        known = self._known | made
        self._known = {picture: known[picture] for picture in pictures}
        return torch.stack([self._known[picture] for picture in pictures])


class _Album:
    """The pictures of one batch, each once."""

    def __init__(self, load: Callable[[Picture], LoadedImage]) -> None:
        self._load = load
        self._places: dict[object, int] = {}
        self._sources: list[Picture] = []  # kept, so that no other object gets the same id()
        self.pictures: list[LoadedImage] = []

    def add(self, source: Picture) -> int:
        """The place of the picture in `pictures`."""
        key = source if isinstance(source, str | Path) else id(source)
        if key not in self._places:
            self.pictures.append(self._load(source))
            self._sources.append(source)
            self._places[key] = len(self.pictures) - 1
        return self._places[key]


def _to_generation(row: GeneratedRow, text: GrowingText) -> Generation | NumericalError:
    if row.stop_reason == "numerical_error":
        return _numerical_error()
    return Generation(
        text=text.take_rest(),
        token_ids=row.token_ids,
        logprobs=row.logprobs,
        stop_reason=row.stop_reason,
    )


def _numerical_error() -> NumericalError:
    return NumericalError(
        "The model gave NaN or infinity, so there is no answer. Load it with dtype='float32'; "
        "float16 is too narrow for it. If that does not help, its weights are damaged."
    )


def _as_tuple(images: Pictures) -> tuple[Picture, ...]:
    return tuple(images) if isinstance(images, list | tuple) else (images,)


def _checked_stop(stop: Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
        raise OptionError(f"stop is {stop!r}; it must be a list of texts that are not empty.")
    return tuple(stop)
