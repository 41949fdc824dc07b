"""Records as examples: places, epochs, parts that do not count, bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paligemma.data.open import open_data
from paligemma.data.targets import TargetBuilder, TargetOptions
from paligemma.errors import DataError
from paligemma.finetune.examples import Example, RecordExamples, collate
from paligemma.processor.image import load_image
from paligemma.processor.processor import Processor
from paligemma.processor.sequence import SuffixPart
from paligemma.processor.tokenizer import Tokenizer
from tests.data.annotated import SIZE_WH, coco, jsonl


def examples_of(
    path: Path, tokenizer: Tokenizer, options: TargetOptions | None = None
) -> RecordExamples:
    records = open_data(path, on_bad_record="skip")
    processor = Processor(tokenizer=tokenizer, resolution=30, num_image_tokens=25)
    builder = TargetBuilder(
        processor=processor,
        class_names=records.class_names,
        options=options or TargetOptions(),
    )
    return RecordExamples(records=records, targets=builder)


def boxes(number: int) -> list[dict[str, object]]:
    return [{"image_id": 1, "category_id": 1, "bbox": [i, i, 5, 5]} for i in range(number)]


def test_objects_become_examples_that_change_with_the_epoch(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    examples = examples_of(coco(tmp_path, boxes(6)), tiny_tokenizer)
    assert len(examples) == 2
    first = examples[0]
    assert (first.example_id, first.prefix) == ("1", "detect cat ; dog")
    assert first.suffix.count("<loc") == 24
    assert first.suffix_parts is None
    assert len({examples.in_epoch(epoch)[0].suffix for epoch in range(5)}) == 5
    assert examples.in_epoch(3)[0].suffix == examples.in_epoch(3)[0].suffix
    assert examples[1].suffix == ""


def test_a_bad_record_keeps_its_place(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    lines = [{"prefix": "p", "suffix": "" if i == 1 else f"{i}", "id": i} for i in range(3)]
    examples = examples_of(jsonl(tmp_path, lines), tiny_tokenizer)
    assert len(examples) == 3
    assert [examples.id_of(i) for i in range(3)] == ["0", "1", "2"]
    assert examples[2].suffix == "2"
    with pytest.raises(DataError, match=r"Line 2 .*empty suffix"):
        examples[1]


def test_other_data_and_other_targets_have_another_fingerprint(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    path = coco(tmp_path / "a", boxes(2))
    first = examples_of(path, tiny_tokenizer)
    assert examples_of(path, tiny_tokenizer).fingerprint == first.fingerprint
    assert first.in_epoch(4).fingerprint == first.fingerprint
    moved = examples_of(coco(tmp_path / "b", boxes(3)), tiny_tokenizer)
    ordered = examples_of(path, tiny_tokenizer, TargetOptions(order="area"))
    assert len({first.fingerprint, moved.fingerprint, ordered.fingerprint}) == 3


def test_the_fingerprint_of_the_same_data_is_that_of_older_runs(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    records: list[dict[str, Any]] = [
        {"prefix": "caption en", "suffix": "a dog"},
        {"prefix": "caption en", "references": ["a dog", "one dog"]},
        {"objects": [{"label": "dog", "box_xyxy": [1, 2, 9, 9]}]},
    ]
    options = TargetOptions(order="position", max_objects=2)
    examples = examples_of(jsonl(tmp_path, records), tiny_tokenizer, options)
    # A run compares it with the one in its checkpoint, so another one would end every older run.
    assert examples.fingerprint == (
        "6ad0d04f94a1e2e9042723656b7ea21ca535fdfaa5b7014433a68e7f9371eb77"
    )


def test_parts_that_do_not_count_stay_out_of_the_loss(tiny_tokenizer: Tokenizer) -> None:
    processor = Processor(tokenizer=tiny_tokenizer, resolution=30, num_image_tokens=25)
    parts = (SuffixPart("<loc0001>", False), SuffixPart(" cat", True))
    image = load_image(np.zeros(SIZE_WH[::-1], np.uint8))
    batch = collate(
        processor,
        [
            Example(images=(image,), prefix="p", suffix="<loc0001> cat", suffix_parts=parts),
            Example(images=(image,), prefix="p", suffix="<loc0001> cat"),
        ],
    )
    assert batch.loss_mask is not None
    assert batch.token_ids[0].equal(batch.token_ids[1])
    assert batch.mask_ar[0].equal(batch.mask_ar[1])
    assert int(batch.loss_mask[1].sum()) - int(batch.loss_mask[0].sum()) == 1
    with pytest.raises(DataError, match="do not add up"):
        Example(images=(image,), prefix="p", suffix="cat", suffix_parts=parts)
