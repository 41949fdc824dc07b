"""Examples: images with a prefix and the suffix to learn, from any data set, and their batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from paligemma.data.open import Records, open_data
from paligemma.data.record import BadRecord, Record
from paligemma.data.targets import TargetBuilder
from paligemma.errors import DataError
from paligemma.inputs import ModelInputs
from paligemma.processor.image import LoadedImage
from paligemma.processor.processor import ExampleRow, Processor
from paligemma.processor.sequence import SuffixPart
from paligemma.results import BoxXyxy


@dataclass(frozen=True, kw_only=True)
class Example:
    """Images, the prefix that asks about them, and the answer to learn."""

    images: tuple[LoadedImage, ...]
    """Usually one; several for pairs and frames of a video, in order; none for text alone."""
    prefix: str
    suffix: str
    example_id: str = ""
    """Names the example in logs and messages."""
    suffix_parts: tuple[SuffixPart, ...] | None = None
    """The suffix in parts, where some of them must not count in the loss."""

    def __post_init__(self) -> None:
        parts = self.suffix_parts
        if parts is not None and "".join(part.text for part in parts) != self.suffix:
            raise DataError(
                f"The parts of the suffix of example {self.example_id!r} do not add up to it. "
                "Give the same text in both, or no parts."
            )


class Examples(Protocol):
    """The data set that training takes: any sequence of examples.

    Three optional members are used where they exist: `in_epoch(epoch)` returns the examples of
    that epoch; `id_of(index)` names an example that cannot be read; `fingerprint` differs for
    different data.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


@dataclass(frozen=True, kw_only=True)
class RecordExamples:
    """The examples of a data set in one epoch, one per entry of its files.

    Everything random in an epoch (the order of objects, noise boxes, the choice among several
    captions) is a function of the builder's seed, the epoch and the record.
    """

    records: Records
    targets: TargetBuilder
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.records.slots)

    def __getitem__(self, index: int) -> Example:
        """Reads the images.

        Raises DataError for a bad record that was left out, and as the builder does; ImageError
        for an image that cannot be read.
        """
        record = self.records.slots[index]
        if isinstance(record, BadRecord):
            raise DataError(record.reason)
        target = self.targets.build(record, self.epoch)
        all_count = all(part.counts_in_loss for part in target.suffix_parts)
        return Example(
            images=record.load_images(),
            prefix=target.prefix,
            suffix=target.suffix,
            example_id=record.record_id,
            suffix_parts=None if all_count else target.suffix_parts,
        )

    def id_of(self, index: int) -> str:
        """The id of a record, even of a bad one."""
        return self.records.slots[index].record_id

    @property
    def fingerprint(self) -> str:
        """Differs for different data or targets; the images' pixels do not matter."""
        # Runs compare this with what they saved: keep it the same for the same data.
        entries = [
            [slot.record_id]
            if isinstance(slot, BadRecord)
            else [slot.record_id, slot.prefix, slot.suffix, slot.references, _objects(slot)]
            for slot in self.records.slots
        ]
        builder = (self.targets.class_names, self.targets.task, str(self.targets.options))
        return hashlib.sha256(json.dumps([builder, entries]).encode()).hexdigest()

    def in_epoch(self, epoch: int) -> RecordExamples:
        """The same records as examples of another epoch."""
        return replace(self, epoch=epoch)


def _objects(record: Record) -> list[tuple[str, BoxXyxy]] | None:
    objects = record.objects
    return None if objects is None else [(item.label, item.box_xyxy) for item in objects]


@dataclass(frozen=True, kw_only=True)
class ExampleFile:
    """A JSON Lines file of examples; images are read when an example is needed.

    Each line is {"image": "images/1.jpg", "prefix": "caption en", "suffix": "a dog"}, as is usual
    for this model; image paths are relative to the file.
    """

    path: Path
    records: Records

    @classmethod
    def open(cls, path: str | Path) -> ExampleFile:
        """Reads and checks every line. Raises DataError that names the line."""
        records = open_data(path, format="jsonl")
        for record in records:
            if not record.suffix:
                raise DataError(
                    f'{record.where} must be an object with text under "suffix". To train on '
                    "references and objects, read them by open_data and use RecordExamples."
                )
        return cls(path=Path(path), records=records)

    @property
    def fingerprint(self) -> str:
        """Differs for different ids or texts; the images' pixels do not matter."""
        texts = [(r.record_id, r.prefix, r.suffix, r.references) for r in self.records]
        return hashlib.sha256(json.dumps(texts).encode()).hexdigest()

    def id_of(self, index: int) -> str:
        return self.records[index].record_id

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Example:
        record = self.records[index]
        return Example(
            images=record.load_images(),
            prefix=record.prefix,
            suffix=record.suffix,
            example_id=record.record_id,
        )


def collate(processor: Processor, examples: Sequence[Example]) -> ModelInputs:
    """One batch, padded on the right; examples with the same image object share it."""
    images: list[LoadedImage] = []
    indices: dict[int, int] = {}
    rows = []
    for example in examples:
        for image in example.images:
            if indices.setdefault(id(image), len(images)) == len(images):
                images.append(image)
        image_indices = tuple(indices[id(image)] for image in example.images)
        suffix = example.suffix if example.suffix_parts is None else example.suffix_parts
        rows.append(ExampleRow(prompt=example.prefix, suffix=suffix, images=image_indices))
    return processor.example_inputs(rows, images)


def split_by_length(inputs: ModelInputs, num_parts: int) -> list[ModelInputs]:
    """The same rows in parts of similar length, cut to their longest row: less padding to compute.

    Right-padded rows of 5, 9, 4 and 9 tokens in two parts: 5 and 4 (cut to 5), 9 and 9. All parts
    refer to the same images.
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
