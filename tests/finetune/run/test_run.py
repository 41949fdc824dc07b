"""One run, from labelled pictures to a scored, saved model and a report."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

import paligemma
from paligemma.checkpoints import TrainedOn
from paligemma.data import check, record
from paligemma.errors import DataError, OptionError
from paligemma.fast.weights import Plain
from paligemma.finetune.run.options import RunOptions
from paligemma.finetune.run.run import _loss_warning, run
from paligemma.processor.image import LoadedImage

SIZE = 96


def make_squares(folder: Path, count: int) -> Path:
    """COCO labels of colored squares at different places."""
    folder.mkdir()
    images, annotations = [], []
    for number in range(count):
        x, y = 8 + 7 * number % 50, 6 + 11 * number % 50
        picture = Image.new("RGB", (SIZE, SIZE), "white")
        ImageDraw.Draw(picture).rectangle((x, y, x + 30, y + 30), fill="red")
        picture.save(folder / f"{number}.png")
        name = f"{number}.png"
        images.append({"id": number, "file_name": name, "width": SIZE, "height": SIZE})
        annotations.append(
            {"id": number + 1, "image_id": number, "category_id": 1, "bbox": [x, y, 30, 30],
             "area": 900, "iscrowd": 0}
        )  # fmt: skip
    labels = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "square"}],
    }
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder / "labels.json"


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_squares(tmp_path_factory.mktemp("data") / "squares", 8)


@pytest.fixture(scope="module")
def finished(labels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lora"
    said: list[str] = []
    result = run(options(labels), out, on_event=said.append)
    assert result is not None
    assert result.evaluation is not None
    assert any("for validation" in line for line in said)
    return out


def options(labels: Path, **given: object) -> RunOptions:
    values: dict[str, object] = {
        "data": str(labels), "steps": 2, "batch_size": 2, "validation_split": 0.25, "rank": 2,
    }  # fmt: skip
    return RunOptions(**{**values, **given})  # type: ignore[arg-type]


def test_a_run_leaves_an_adapter_scores_and_a_report(finished: Path) -> None:
    assert (finished / "adapter" / "adapter_config.json").is_file()
    records = (finished / "evaluation" / "records.jsonl").read_text().splitlines()
    assert len(records) == 2
    facts = json.loads((finished / "run.json").read_text())
    assert facts["training"]["num_steps"] == 2
    assert facts["versions"]["torch"] == version("torch")


def test_the_report_asks_nobody_for_anything(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "training loss" in page  # a chart's description
    assert "box_map" in page
    assert "Confusion matrix" in page
    assert page.count("data:image/jpeg;base64,") == 4
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", page)


def test_the_saved_adapter_is_what_was_scored(finished: Path, labels: Path) -> None:
    predictor = paligemma.load("mini", adapter=finished / "adapter")
    plain = paligemma.load("mini")
    picture = labels.parent / "0.png"
    adapted = predictor.score(
        picture, "detect square", "<loc0100><loc0100><loc0400><loc0400> square"
    )
    before = plain.score(picture, "detect square", "<loc0100><loc0100><loc0400><loc0400> square")
    assert adapted.total != before.total


def test_the_same_command_again_changes_nothing(finished: Path, labels: Path) -> None:
    weights = (finished / "adapter" / "adapter_model.safetensors").read_bytes()
    log = (finished / "log.jsonl").read_text()
    result = run(options(labels), finished)
    assert result is not None
    assert (finished / "adapter" / "adapter_model.safetensors").read_bytes() == weights
    assert (finished / "log.jsonl").read_text() == log


def test_other_options_in_the_same_folder_are_refused(finished: Path, labels: Path) -> None:
    with pytest.raises(paligemma.CheckpointError, match="rank"):
        run(options(labels, rank=3), finished)


def test_the_adapter_says_what_it_was_trained_on(finished: Path, labels: Path) -> None:
    trained_on = TrainedOn(task="detect", prompt="detect square", class_names=("square",))
    assert TrainedOn.read(finished / "adapter") == trained_on
    predictor = paligemma.load("mini", adapter=finished / "adapter")
    assert predictor.trained_on == trained_on
    image = labels.parent / "0.png"
    assert predictor.detect(image) == predictor.detect(image, ["square"], separate=False)
    with pytest.raises(OptionError, match="not trained to segment anything, but to detect"):
        predictor.segment(image)
    assert TrainedOn.read(predictor.save(finished / "merged")) == trained_on


def test_an_adapter_is_trained_further(finished: Path, labels: Path, tmp_path: Path) -> None:
    more = options(labels, rank=16, from_adapter=finished / "adapter", steps=1, resize="pad")
    result = run(more, tmp_path / "more")
    assert result is not None
    before = load_file(finished / "adapter" / "adapter_model.safetensors")
    after = load_file(result.saved / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    first = json.loads((tmp_path / "more" / "log.jsonl").read_text().splitlines()[0])
    assert first["step"] == 1
    changes = [float((after[name] - before[name]).abs().max()) for name in before]
    assert 0 < max(changes) < 0.01  # a step from where the first run ended
    assert TrainedOn.read(result.saved) == TrainedOn(
        task="detect", prompt="detect square", class_names=("square",), resize="pad"
    )
    assert paligemma.load("mini", adapter=result.saved).processor.resize == "pad"
    with pytest.raises(paligemma.CheckpointError, match="from"):
        run(options(labels, rank=16, from_adapter=result.saved, steps=1), tmp_path / "more")


def test_what_the_adapter_decides_cannot_be_chosen(labels: Path) -> None:
    with pytest.raises(OptionError, match="rank cannot be chosen"):
        options(labels, from_adapter=Path("adapter"))
    with pytest.raises(OptionError, match="method is 'full'"):
        options(labels, rank=16, method="full", from_adapter=Path("adapter"))


def test_other_images_under_the_same_names_are_refused(
    finished: Path, labels: Path, tmp_path: Path
) -> None:
    copied = shutil.copytree(labels.parent, tmp_path / "copy")
    for number in range(8):
        Image.new("RGB", (SIZE, SIZE), (number, 0, 9)).save(copied / f"{number}.png")
    with pytest.raises(paligemma.CheckpointError):
        run(options(copied / labels.name), finished)


def test_a_loss_that_rose_is_said(tmp_path: Path) -> None:
    for losses, is_said in (([9.0, 8.0, 7.0], False), ([9.0, 12.0, 14.0], True), ([9.0], False)):
        lines = [json.dumps({"step": n, "loss": loss}) for n, loss in enumerate(losses)]
        (tmp_path / "log.jsonl").write_text("\n".join([*lines, '{"validation": {}}']) + "\n")
        assert bool(_loss_warning(tmp_path)) == is_said


def test_all_weights_are_saved_as_a_model_folder(labels: Path, tmp_path: Path) -> None:
    result = run(
        options(labels, method="full", steps=1, batch_size=1, validation_split=0.0),
        tmp_path / "full",
    )
    assert result is not None
    assert result.evaluation is None
    loaded = paligemma.load(result.saved)
    before = paligemma.load("mini", weights=Plain("float32"))
    name = "decoder.final_norm.weight"
    changed = dict(loaded.model.named_parameters())[name].float()
    assert not torch.equal(changed, dict(before.model.named_parameters())[name].float())
    assert "training loss" in result.report.read_text()


def test_a_frozen_encoder_stays_bit_for_bit(labels: Path, tmp_path: Path) -> None:
    given = options(labels, method="frozen-encoder", steps=1, batch_size=1, validation_split=0.0)
    result = run(given, tmp_path / "frozen")
    assert result is not None
    after = dict(paligemma.load(result.saved, weights=Plain("float32")).model.named_parameters())
    before = dict(paligemma.load("mini", weights=Plain("float32")).model.named_parameters())
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("vision_encoder.")} <= same
    assert any(name.startswith("decoder.") for name in before.keys() - same)


@pytest.mark.parametrize("base", ["nf4", "int8"])
def test_adapters_learn_on_a_small_base(labels: Path, tmp_path: Path, base: str) -> None:
    given = options(
        labels, method="qlora", steps=1, batch_size=1, validation_split=0.0, base_format=base
    )
    result = run(given, tmp_path / base)
    assert result is not None
    assert (result.saved / "adapter_model.safetensors").is_file()


def test_too_few_records_to_hold_some_back_are_an_error(tmp_path: Path) -> None:
    labels = make_squares(tmp_path / "one", 1)
    with pytest.raises(DataError, match="too few for a validation split"):
        run(options(labels), tmp_path / "out")


@pytest.mark.parametrize("has_other_data", [False, True])
def test_digests_of_images_are_computed_once(
    labels: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_other_data: bool
) -> None:
    digest, images = record.pixel_digest, []

    def counted(image: LoadedImage) -> str:
        images.append(image)
        return digest(image)

    monkeypatch.setattr(record, "pixel_digest", counted)
    monkeypatch.setattr(check, "pixel_digest", counted)
    other = {}
    if has_other_data:  # with the same ids
        path = make_squares(tmp_path / "other", 4)
        for number in range(4):
            Image.new("RGB", (SIZE, SIZE), (0, 0, number)).save(path.parent / f"{number}.png")
        other = {"validation": str(path), "validation_split": None}
    run(options(labels, steps=1, **other), tmp_path / "out")
    assert len(images) == (12 if has_other_data else 8)


def test_validation_on_the_training_data_is_refused(labels: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="measure memorization"):
        run(options(labels, validation=str(labels)), tmp_path / "out")


def test_data_that_teach_nothing_are_an_error_before_training(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    line = json.dumps({"image": "a.png", "prefix": "caption en", "suffix": ""})
    (tmp_path / "data.jsonl").write_text(line + "\n")
    with pytest.raises(DataError):
        run(options(tmp_path / "data.jsonl", validation_split=0.0), tmp_path / "out")


def test_training_can_start_from_the_vision_encoder_of_a_siglip_model(
    labels: Path, tmp_path: Path
) -> None:
    tower = paligemma.load("mini", weights=Plain("float32"))
    with torch.no_grad():
        tower.model.vision_encoder.post_layernorm.weight.mul_(1.5)
    expected = {name: p.clone() for name, p in tower.model.vision_encoder.named_parameters()}
    tower.save(tmp_path / "tower")
    said: list[str] = []
    chosen = options(
        labels,
        method="frozen-encoder",
        vision_tower=tmp_path / "tower",
        steps=1,
        validation_split=0,
    )
    result = run(chosen, tmp_path / "run", on_event=said.append)
    assert result is not None
    assert any("train at least the projector" in line for line in said)
    trained = paligemma.load(result.saved, weights=Plain("float32")).model
    for name, ours in trained.vision_encoder.named_parameters():
        assert torch.equal(ours, expected[name]), name
    assert not torch.equal(trained.projector.linear.weight, tower.model.projector.linear.weight)
