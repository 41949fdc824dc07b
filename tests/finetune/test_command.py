"""`torchrun -m paligemma train`: adapters, validation, scores and report, by two processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

import paligemma
from paligemma.finetune.run.options import RunOptions
from paligemma.finetune.run.run import run
from paligemma.processor.tokenizer import Tokenizer
from tests.finetune.runner import DrawnExamples, predictor
from tests.finetune.test_distributed import torchrun, values
from tests.finetune.test_resume import records


def write_data(folder: Path) -> Path:
    """Twelve questions to one or two pictures."""
    lines = []
    for number in (n for n in range(22) if DrawnExamples()[n].images):
        example = DrawnExamples()[number]
        names = [f"{number}-{place}.png" for place in range(len(example.images))]
        for name, image in zip(names, example.images, strict=True):
            image.rgb.save(folder / name)
        lines.append({"image": names, "prefix": "caption en", "suffix": example.suffix})
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.slow
def test_two_processes_train_score_and_save_adapters_as_one_does(
    tmp_path: Path, tiny_tokenizer: Tokenizer
) -> None:
    model, data, out = tmp_path / "model", write_data(tmp_path), tmp_path / "two"
    predictor(tiny_tokenizer).save(model)
    options = {"--model": model, "--out": out, "--method": "lora", "--rank": 2, "--steps": 6,
               "--batch-size": 4, "--validation-split": 0.2}  # fmt: skip
    given = [str(word) for pair in options.items() for word in pair]
    said = torchrun([sys.executable, "-m", "paligemma", "train", str(data), *given])
    assert said.count("6 steps of 4 examples") == 1  # by one of the two

    alone = RunOptions(
        data=str(data),
        model=str(model),
        method="lora",
        rank=2,
        steps=6,
        batch_size=4,
        validation_split=0.2,
    )
    result = run(alone, tmp_path / "one")
    assert result is not None
    assert result.evaluation is not None
    assert [r["step"] for r in records(out)] == [r["step"] for r in records(tmp_path / "one")]
    for name in ("loss", "grad_norm"):  # autocast rounds to bfloat16
        assert values(out, name) == pytest.approx(values(tmp_path / "one", name), rel=0.03), name

    scored = [
        json.loads(x) for x in (out / "evaluation" / "records.jsonl").read_text().splitlines()
    ]
    assert len(scored) == result.evaluation.scores[0].num_records
    assert "training loss" in (out / "report.html").read_text()
    assert not list(out.glob(".*"))  # what the second process wrote for itself is gone
    plain = paligemma.load(model)
    adapted = paligemma.load(model, adapter=out / "adapter")
    expected = paligemma.load(model, adapter=result.saved)
    picture = Image.open(tmp_path / "0-0.png")
    totals = [p.score(picture, "caption en", "a cat").total for p in (adapted, expected, plain)]
    assert totals[0] == pytest.approx(totals[1], rel=0.01)
    assert totals[0] - totals[2] > 10 * abs(totals[0] - totals[1])
