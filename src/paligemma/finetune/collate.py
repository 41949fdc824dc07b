"""Examples to a training batch. The rules of a row are the processor's, as for inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from paligemma.errors import DataError
from paligemma.inputs import ModelInputs
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import ExampleRow, Processor
from paligemma.processor.sequence import SuffixPart


@dataclass(frozen=True, kw_only=True)
class Example:
    """Pictures, what is asked of them, and the answer to learn."""

    images: tuple[LoadedImage, ...]
    """One as a rule; several for pairs and frames of a video, in order; none for text alone."""
    prefix: str
    suffix: str
    example_id: str = ""
    """Says in logs and messages which one it was."""
    suffix_parts: tuple[SuffixPart, ...] | None = None
    """The suffix in pieces, where some of them must not count in the loss."""

    def __post_init__(self) -> None:
        parts = self.suffix_parts
        if parts is not None and "".join(part.text for part in parts) != self.suffix:
            raise DataError(
                f"The parts of the suffix of example {self.example_id!r} do not add up to it. "
                "Give the same text twice, or no parts."
            )


def collate(processor: Processor, examples: Sequence[Example]) -> ModelInputs:
    """One batch, pads on the right; examples that hold the same picture object share it."""
    images: list[LoadedImage] = []
    places: dict[int, int] = {}
    rows = []
    for example in examples:
        for image in example.images:
            if places.setdefault(id(image), len(images)) == len(images):
                images.append(image)
        shown = tuple(places[id(image)] for image in example.images)
        suffix = example.suffix if example.suffix_parts is None else example.suffix_parts
        rows.append(ExampleRow(prompt=example.prefix, suffix=suffix, images=shown))
    return processor.example_inputs(rows, images)


def split_by_length(inputs: ModelInputs, num_parts: int) -> list[ModelInputs]:
    """The same rows in parts of similar length, cut to their longest: less arithmetic on pads.

    Right-padded rows of 5, 9, 4 and 9 tokens in two parts: 5 and 4 (cut to 5), 9 and 9. All parts
    refer to the same pictures.
    """
    lengths = inputs.input_mask.sum(dim=1)
    parts = []
    for rows in lengths.argsort(stable=True).tensor_split(num_parts):
        if len(rows) == 0:
            continue
        end = int(lengths[rows].max())
        loss_mask = inputs.loss_mask
        parts.append(
            replace(
                inputs,
                token_ids=inputs.token_ids[rows, :end],
                input_mask=inputs.input_mask[rows, :end],
                mask_ar=inputs.mask_ar[rows, :end],
                image_mask=inputs.image_mask[rows, :end],
                loss_mask=None if loss_mask is None else loss_mask[rows, :end],
                image_index=tuple(inputs.image_index[row] for row in rows.tolist()),
            )
        )
    return parts
