"""Prompts and pictures in, texts out: the engine with a processor before it and text behind it.

    prompt -> prefix ──┐
                       ├-> request -> engine -> token ids -> Generation
    picture -> album ──┘

Knows pictures, text and token ids; knows no tasks and no typed results.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from paligemma.engine.beam import beam_search
from paligemma.engine.engine import Engine
from paligemma.engine.image_cache import ImageCache, KeyedImage
from paligemma.engine.request import Request, RequestEnd
from paligemma.engine.sampling import GREEDY, Constraint, Sampling
from paligemma.errors import NumericalError, OptionError, PaliGemmaError, PromptError
from paligemma.inputs import ModelInputs
from paligemma.model.paligemma import PaliGemma
from paligemma.processor.image import ImageSource, ImageTransform, LoadedImage
from paligemma.processor.processor import Processor
from paligemma.processor.sequence import TokenSequence, build_prefix
from paligemma.processor.tokenizer import TextStream
from paligemma.results import Generation, StopReason

# I pictures, P image tokens, D decoder width, R resolution

Picture = ImageSource | LoadedImage
"""A path, the bytes of a file, a PIL image, an array, or what `Processor.load` gave."""

CONTEXT_LENGTH = 8192  # of Gemma 1 and 2: arXiv 2403.08295, arXiv 2408.00118


@dataclass(frozen=True, kw_only=True)
class TextRow:
    """A prompt about some pictures, and how far to go on from it."""

    prefix: TokenSequence
    images: tuple[Picture, ...]
    max_new_tokens: int
    constraint: Constraint | None = None
    """Beam search knows none."""

    @property
    def num_positions(self) -> int:
        """Positions that it may take, all new tokens counted."""
        return len(self.prefix) + self.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen, and what ends a text. Raises OptionError for what does not go."""

    sampler: Sampling = GREEDY
    num_beams: int = 1
    stop: Sequence[str] = ()

    def __post_init__(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise OptionError(
                f"stop is {self.stop!r}; it must be a list of texts that are not empty."
            )
        if self.num_beams != 1 and (self.sampler.temperature != 0 or self.stop):
            raise OptionError(
                f"num_beams is {self.num_beams}: beam search takes neither a temperature nor "
                "stop strings. Use num_beams=1, or leave those out."
            )


@dataclass(frozen=True, kw_only=True)
class WrittenRow:
    """What the model wrote, and how the row's pictures lay in its square."""

    generation: Generation
    transforms: tuple[ImageTransform, ...]


@dataclass(frozen=True, kw_only=True)
class TextEngine:
    """Runs rows of text on a model; image tokens of pictures seen before come from the cache."""

    model: PaliGemma
    processor: Processor
    image_cache: ImageCache

    def build_row(
        self,
        prompt: str,
        images: Sequence[Picture],
        max_new_tokens: int,
        constraint: Constraint | None = None,
    ) -> TextRow:
        """Tokenizes the prompt. Raises PromptError for what cannot be tokenized or is too long."""
        prefix = build_prefix(
            self.processor.tokenizer, prompt, len(images), self.processor.num_image_tokens
        )
        row = TextRow(
            prefix=prefix,
            images=tuple(images),
            max_new_tokens=max_new_tokens,
            constraint=constraint,
        )
        self.check_length(row.num_positions)
        return row

    def check_length(self, num_positions: int) -> None:
        """Raises PromptError when a prefix and what is to follow are too long for the model."""
        if num_positions > CONTEXT_LENGTH:
            raise PromptError(
                f"Pictures, prompt and answer may take {num_positions} positions; the model "
                f"was made for {CONTEXT_LENGTH}. A picture takes "
                f"{self.processor.num_image_tokens}. Give fewer pictures, a shorter prompt or "
                "a smaller max_new_tokens."
            )

    def run(
        self, rows: Sequence[TextRow | PaliGemmaError], decoding: Decoding, batch_size: int
    ) -> Iterator[tuple[int, WrittenRow | PaliGemmaError]]:
        """(Place in `rows`, what was written) for each row, as soon as it is known.

        At most `batch_size` rows run at a time, and a picture is read when its row's turn comes.
        A picture that cannot be read, and numbers that the model broke, come as the error of
        their row; so does a row that is an error already. Whatever else a row meets is raised.
        """
        album = _Album(self.processor, batch_size)
        if decoding.num_beams != 1:
            yield from self._search(rows, decoding, album)
            return
        engine = self._engine([row for row in rows if isinstance(row, TextRow)], batch_size)
        waiting = deque(enumerate(rows))
        running: dict[int, _RunningRow] = {}
        while waiting or running:
            while waiting and len(running) < batch_size:
                number, row = waiting.popleft()
                try:
                    started = self._start(row, number, decoding, album)
                    running[engine.add(started.request)] = started
                except PaliGemmaError as error:
                    yield number, error
            for event in engine.step():
                one = running[event.request_id]
                if event.token_id is not None and event.logprob is not None:
                    one.token_ids.append(event.token_id)
                    one.logprobs.append(event.logprob)
                if event.stop_reason is not None:
                    del running[event.request_id]
                    yield one.number, one.end(event.stop_reason, event.error)

    def stream(self, row: TextRow, decoding: Decoding) -> Iterator[str]:
        """The text in pieces that are never taken back; the pictures are read at once."""
        one = self._start(row, 0, decoding, _Album(self.processor, 1))

        def pieces() -> Iterator[str]:
            for _, event in self._engine([row], 1).stream([one.request]):
                if event.stop_reason is not None:
                    error = _error_of(event.stop_reason, event.error)
                    if error is not None:
                        raise error
                if piece := one.text.take():
                    yield piece
            if piece := one.text.take_rest():
                yield piece

        return pieces()

    @torch.inference_mode()
    def image_tokens(self, pixel_values: Iterable[Tensor]) -> Tensor | None:
        """float32[3, R, R] of each picture -> float[I, P, D]; None of no pictures."""
        images = [KeyedImage(pixel_values=pixels) for pixels in pixel_values]
        return self.image_cache.encode(images, self.model) if images else None

    def _engine(self, rows: Sequence[TextRow], batch_size: int) -> Engine:
        """An engine no larger than these rows need; what fits into it is prefilled together."""
        num_rows = max(1, min(batch_size, len(rows)))
        num_positions = max((row.num_positions for row in rows), default=1)
        return Engine(
            self.model,
            num_positions=num_positions,
            max_rows=num_rows,
            max_queued=num_rows,
            max_prefill_positions=num_rows * num_positions,
            image_cache=self.image_cache,
        )

    def _start(
        self, row: TextRow | PaliGemmaError, number: int, decoding: Decoding, album: _Album
    ) -> _RunningRow:
        if isinstance(row, PaliGemmaError):
            raise row
        tokenizer = self.processor.tokenizer
        text = TextStream(tokenizer, tuple(decoding.stop))
        photos = [album.photo(image) for image in row.images]
        request = Request(
            token_ids=torch.tensor(row.prefix.token_ids),
            image_mask=torch.tensor(row.prefix.image_mask),
            images=tuple(photo.image for photo in photos),
            max_new_tokens=row.max_new_tokens,
            eos_id=tokenizer.eos_id,
            sampler=decoding.sampler,
            row_number=number,
            should_stop=lambda token_ids: text.push(token_ids[-1]),
            constraint=row.constraint,
        )
        transforms = tuple(photo.transform for photo in photos)
        return _RunningRow(number=number, request=request, text=text, transforms=transforms)

    def _search(
        self, rows: Sequence[TextRow | PaliGemmaError], decoding: Decoding, album: _Album
    ) -> Iterator[tuple[int, WrittenRow | PaliGemmaError]]:
        """As `run`, by beams, row by row."""
        for number, row in enumerate(rows):
            try:
                one = self._start(row, number, decoding, album)
            except PaliGemmaError as error:
                yield number, error
                continue
            request = one.request
            pixel_values = [image.pixel_values for image in request.images]
            [found] = beam_search(
                self.model,
                _to_inputs(request),
                beam_size=decoding.num_beams,
                max_new_tokens=request.max_new_tokens,
                eos_id=request.eos_id,
                image_tokens=self.image_tokens(pixel_values),
            )
            one.token_ids.extend(found.token_ids)
            one.logprobs.extend(found.logprobs)
            for token_id in found.token_ids:
                if token_id != request.eos_id:
                    one.text.push(token_id)
            yield number, one.end(found.stop_reason, None)


@dataclass(kw_only=True, eq=False)
class _RunningRow:
    number: int
    request: Request
    text: TextStream
    transforms: tuple[ImageTransform, ...]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def end(self, stop_reason: RequestEnd, error: Exception | None) -> WrittenRow | PaliGemmaError:
        """What has become of the row. Raises an error that is not one of ours."""
        if (found := _error_of(stop_reason, error)) is not None:
            if isinstance(found, PaliGemmaError):
                return found
            raise found
        generation = Generation(
            text=self.text.take_rest(),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            stop_reason=cast("StopReason", stop_reason),
        )
        return WrittenRow(generation=generation, transforms=self.transforms)


@dataclass(frozen=True, kw_only=True)
class _Photo:
    source: Picture  # kept, so that no other object gets the same id()
    image: KeyedImage
    transform: ImageTransform


class _Album:
    """The pictures of a call. One that rows near each other name is read once."""

    def __init__(self, processor: Processor, max_photos: int) -> None:
        self._processor = processor
        self._max_photos = max_photos
        self._photos: OrderedDict[object, _Photo] = OrderedDict()

    def photo(self, source: Picture) -> _Photo:
        """Raises ImageError for a picture that cannot be read."""
        key = source if isinstance(source, str | Path) else id(source)
        if key not in self._photos:
            loaded = source if isinstance(source, LoadedImage) else self._processor.load(source)
            self._photos[key] = _Photo(
                source=source,
                image=KeyedImage(pixel_values=self._processor.pixel_values([loaded])[0]),
                transform=self._processor.transform(loaded),
            )
            if len(self._photos) > self._max_photos:
                self._photos.popitem(last=False)
        return self._photos[key]


def _to_inputs(request: Request) -> ModelInputs:
    """A batch of one row. The pixels stay behind: image tokens stand in for them."""
    return ModelInputs(
        token_ids=request.token_ids[None],
        input_mask=torch.ones_like(request.image_mask)[None],
        mask_ar=torch.zeros_like(request.image_mask)[None],
        image_mask=request.image_mask[None],
        pixel_values=torch.zeros(0),
        image_index=(tuple(range(len(request.images))),),
    )


def _error_of(stop_reason: RequestEnd, error: Exception | None) -> Exception | None:
    return numerical_error() if stop_reason == "numerical_error" else error


def numerical_error() -> NumericalError:
    """What to say of a model that gave NaN or infinity."""
    return NumericalError(
        "The model gave NaN or infinity, so there is no answer. Load it with dtype='float32'; "
        "float16 is too narrow for it. If that does not help, its weights are damaged."
    )
