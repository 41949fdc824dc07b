"""Records of any data set as examples: what a trainer asks for, one at a time.

Knows records and targets; knows no batch and no order.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace

from paligemma.data.open import Records
from paligemma.data.record import BadRecord, Record
from paligemma.data.targets import TargetBuilder
from paligemma.errors import DataError
from paligemma.finetune.collate import Example
from paligemma.results import BoxXyxy


@dataclass(frozen=True, kw_only=True)
class RecordExamples:
    """One example for each place of the data set, as `epoch` shows it.

    What is drawn anew in each epoch (the order of objects, noise boxes, one of several captions)
    is a function of the builder's seed, the epoch and the record.
    """

    records: Records
    targets: TargetBuilder
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.records.slots)

    def __getitem__(self, index: int) -> Example:
        """Reads the pictures.

        Raises DataError where a bad record was left out, and as the builder does; ImageError for
        a picture that cannot be read.
        """
        record = self.records.slots[index]
        if isinstance(record, BadRecord):
            raise DataError(record.reason)
        target = self.targets.build(record, self.epoch)
        whole = all(part.counts_in_loss for part in target.suffix_parts)
        return Example(
            images=record.load_images(),
            prefix=target.prefix,
            suffix=target.suffix,
            example_id=record.record_id,
            suffix_parts=None if whole else target.suffix_parts,
        )

    def id_of(self, index: int) -> str:
        """The id of a record, of a bad one, too."""
        return self.records.slots[index].record_id

    @property
    def fingerprint(self) -> str:
        """Another one means other data or other targets; pictures' pixels are not looked at."""
        said = [
            [slot.record_id]
            if isinstance(slot, BadRecord)
            else [slot.record_id, slot.prefix, slot.suffix, slot.references, _objects(slot)]
            for slot in self.records.slots
        ]
        made = (self.targets.class_names, self.targets.task, str(self.targets.options))
        return hashlib.sha256(json.dumps([made, said]).encode()).hexdigest()

    def in_epoch(self, epoch: int) -> RecordExamples:
        """The same examples as another epoch shows them."""
        return replace(self, epoch=epoch)


def _objects(record: Record) -> list[tuple[str, BoxXyxy]] | None:
    objects = record.objects
    return None if objects is None else [(found.label, found.box_xyxy) for found in objects]
