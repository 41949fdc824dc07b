"""`paligemma eval`: data of one's own by the built-in model, benchmarks by name, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import paligemma
from mini import language
from mini.scene import RESOLUTION, make_scene
from mini.texts import SceneTexts
from paligemma.cli import eval as command
from paligemma.fonts import Lettering
from tests.documents.scripted import ScriptedModel


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """Three pictures of mini's world with captions, as JSON Lines."""
    lines = []
    for number in range(3):
        scene = make_scene("test", 7, number)
        Image.fromarray(scene.draw(RESOLUTION)).save(tmp_path / f"{number}.png")
        suffix = SceneTexts(scene).caption("en")
        lines.append({"image": f"{number}.png", "prefix": "caption en", "suffix": suffix})
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Pictures of mini's world with boxes, in COCO's form."""
    folder = tmp_path / "coco"
    folder.mkdir()
    images, annotations = [], list[dict[str, object]]()
    names = [kind.name for kind in language.KINDS]
    for number in range(6):
        scene = make_scene("test", 7, number)
        Image.fromarray(scene.draw(RESOLUTION)).save(folder / f"{number}.png")
        images.append(
            {
                "id": number,
                "file_name": f"{number}.png",
                "width": RESOLUTION,
                "height": RESOLUTION,
            }
        )
        for thing in scene.objects:
            x1, y1, x2, y2 = (edge * RESOLUTION for edge in thing.box_xyxy)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": thing.kind + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    assert len(annotations) > 3
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(names)]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(whole))
    return folder / "annotations.json"


def test_captions_are_scored_and_a_second_run_asks_nothing(
    run, captions: Path, tmp_path: Path, mini_folder: Path, monkeypatch
) -> None:
    out = tmp_path / "out"
    ran = run("eval", captions, "--out", out, "--metric", "exact_match")
    assert ran.code == 0, ran.err
    assert "exact_match" in ran.out
    names = {path.name for path in out.iterdir()}
    assert names == {"predictions.jsonl", "records.jsonl", "report.json"}
    report = json.loads((out / "report.json").read_text())
    assert report["num_records"] == 3
    value = report["scores"][0]["value"]
    lines = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert value == pytest.approx(sum(one["text"] == one["references"][0] for one in lines) / 3)
    from paligemma.predictor import Predictor

    monkeypatch.setattr(Predictor, "run", None)
    again = run("eval", captions, "--out", out, "--metric", "cer", "--json")
    assert again.code == 0, again.err
    assert [s["name"] for s in json.loads(again.out)["scores"]] == ["cer"]
    changed = run("eval", captions, "--out", out, "--num-beams", "2")
    assert changed.code == 2
    assert "num_beams was 1 and is 2" in changed.err


def test_boxes_in_cocos_form_are_asked_for_and_scored(
    run, coco: Path, tmp_path: Path, mini_folder: Path
) -> None:
    pytest.importorskip("faster_coco_eval")
    out = tmp_path / "out"
    ran = run("eval", coco, "--out", out, "--ask", "present", "--limit", "5")
    assert ran.code == 0, ran.err
    assert "without an object, left out: 1" in ran.err
    report = json.loads((out / "report.json").read_text())
    (score,) = report["scores"]
    assert score["name"] == "box_map"
    assert score["num_records"] == 5
    assert score["value"] > 0.1, "mini finds things in its own world"
    assert "ap50" in ran.out
    asked = json.loads((out / "records.jsonl").read_text().splitlines()[0])
    assert asked["prefix"].startswith("detect ")
    assert {thing["label"] for thing in asked["true"]} == set(
        asked["prefix"].removeprefix("detect ").split(" ; ")
    )


def test_a_benchmark_without_its_folder_says_what_to_do(run, tmp_path: Path, no_model) -> None:
    ran = run("eval", "refcoco", "--out", tmp_path)
    assert ran.code == 2
    assert "--folder" in ran.err
    ran = run("eval", "refcooc", "--out", tmp_path)
    assert ran.code == 2
    assert "file or folder 'refcooc' does not exist" in ran.err
    assert "refcoco" in ran.err
    ran = run("eval", tmp_path / "valid.json", "--out", tmp_path)
    assert ran.code == 2
    assert ran.err.startswith("error: The file or folder ")
    assert "Did you mean" not in ran.err


def test_a_benchmarks_missing_files_are_listed(run, tmp_path: Path, mini_folder: Path) -> None:
    ran = run("eval", "refcoco", "--folder", tmp_path, "--out", tmp_path / "out")
    assert ran.code == 2
    assert "instances.json" in ran.err


def test_an_unknown_metric_is_told_before_a_model_is_loaded(
    run, captions: Path, tmp_path: Path, no_model
) -> None:
    ran = run("eval", captions, "--out", tmp_path / "out", "--metric", "cidr")
    assert ran.code == 2
    assert "cider" in ran.err


def test_a_benchmark_becomes_a_job_with_its_own_limits(tmp_path: Path, monkeypatch) -> None:
    """By a small set in the official form: POPE's questions as JSON Lines."""
    from paligemma.evals.datasets import open as opening

    benchmark = opening.find_benchmark("chartqa")
    from paligemma.data.record import Record
    from paligemma.evals.datasets.benchmark import BenchmarkData

    record = Record(record_id="1", image=tmp_path / "a.png", prefix="how many?", suffix="2")
    data = BenchmarkData(
        benchmark=benchmark, split=benchmark.default_split, records=(record,), groups=("",)
    )
    monkeypatch.setattr(opening, "open_benchmark", lambda *names, **options: data)
    job = command._benchmark("chartqa", tmp_path, None, 224)
    assert job.name == f"chartqa {benchmark.default_split}"
    assert job.max_new_tokens == benchmark.max_new_tokens
    assert job.task == "answer"
    assert [named.reads for named in job.metrics] == ["text"]
    assert any(figure.model == "paligemma2-3b" for figure in job.published)
    assert job.grouping is not None
    assert not job.grouping.is_mean


def test_published_figures_stand_beside_the_metric_that_they_are_of(capsys, tmp_path: Path) -> None:
    from paligemma.evals.datasets.published import published_scores
    from paligemma.evals.evaluation import Evaluation
    from paligemma.evals.metrics.result import MetricResult
    from paligemma.evals.scoring import Score

    def shown(model: str, *metrics: str) -> list[str]:
        scores = tuple(
            Score(
                task="generate",
                result=MetricResult(name=name, value=0.5),
                interval=None,
                num_records=2,
            )
            for name in metrics
        )
        evaluation = Evaluation(
            model=model,
            data="fintabnet test",
            scores=scores,
            published=published_scores("FinTabNet"),
            num_records=2,
            seconds=0.0,
        )
        command._show(evaluation, model, 896, tmp_path)
        return capsys.readouterr().out.splitlines()

    lines = shown("google/paligemma2-3b-pt-896", "S-TEDS", "TEDS")
    beside = {line.split()[1]: line.partition("published ")[2] for line in lines if "50.0" in line}
    assert beside["S-TEDS"].startswith("99.2 (paligemma2-3b 896px; arXiv")
    assert beside["TEDS"].startswith("98.9 (paligemma2-3b 896px; arXiv")
    assert "98.9" not in beside["S-TEDS"]
    (others,) = [line for line in lines if line.startswith("Published by other metrics: ")]
    assert "GriTS-Top 99.4 (" in others
    assert "GriTS-Con 99.2 (" in others
    lines = shown("mini", "S-TEDS")
    (others,) = [line for line in lines if line.startswith("Published for other models: ")]
    assert "S-TEDS 99.2 (paligemma2-3b" in others
    assert "S-TEDS 98.9 (prior best" in others


def test_detect_takes_a_calibration(run, picture: Path, stand_in, tmp_path: Path) -> None:
    """A stand-in finds a wall of score 0.9 and a dog of 0.2."""
    import numpy as np

    from paligemma.evals.calibration import calibrate
    from paligemma.evals.reliability import ScoredOutcomes

    rng = np.random.default_rng(0)
    scores = rng.uniform(0.05, 0.95, 400)
    outcomes = ScoredOutcomes(
        scores=scores,
        correct=(rng.random(400) < scores**2).astype(np.float64),
        groups=np.arange(400),
        num_true=np.ones(400, dtype=np.int64),
    )
    path = tmp_path / "calibration.json"
    found = calibrate(outcomes, "boxes")
    found.save(path)
    whole = run(
        "detect", picture, "wall ; dog", "--json", "--min-score", "0", "--calibration", path
    )
    objects = json.loads(whole.out)["result"]["objects"]
    assert [one["score"] for one in objects] == [found.probability(0.9), found.probability(0.2)]
    ran = run("detect", picture, "wall ; dog", "--json", "--calibration", path)
    assert [one["label"] for one in json.loads(ran.out)["result"]["objects"]] == ["wall"]
    found = calibrate(outcomes, "answers")
    found.save(path)
    refused = run("detect", picture, "wall", "--calibration", path)
    assert refused.code == 2
    assert "calibration of answers" in refused.err


def test_documents_are_evaluated_by_field(run, tmp_path, monkeypatch):
    pytest.importorskip("llguidance")
    pytest.importorskip("rapidfuzz")
    model = ScriptedModel(reply=lambda prompt, image: "ACME" if "company" in prompt else "9.00")
    monkeypatch.setattr(paligemma, "load", lambda *arguments, **options: model)
    drawn = Image.new("RGB", (100, 50), "white")
    Lettering(12).draw(drawn, (5, 30), "RECEIPT", (0, 0, 0))
    drawn.save(tmp_path / "a.png")
    data = tmp_path / "forms.jsonl"
    lines = [
        {"file": "a.png", "fields": {"company": "Acme.", "total": "9.10"}},
        {"file": "a.png", "id": "again", "fields": {"company": "ACME"}},
    ]
    data.write_text("\n".join(map(json.dumps, lines)))
    ran = run("eval", data, "--out", tmp_path / "out")
    assert ran.code == 0, ran.err
    rows = {line.split()[0]: line.split() for line in ran.out.splitlines() if line.strip()}
    assert rows["company"][1:3] == ["2", "1.000"]
    assert rows["total"][1:3] == ["1", "0.000"]
    value = json.loads(run("eval", data, "--out", tmp_path / "out", "--json").out)
    assert value["total"]["num_cells"] == 3
    assert run("eval", data, "--out", tmp_path / "upright", "--no-turn").code == 0
    report = json.loads((tmp_path / "upright" / "report.json").read_text())
    assert report["options"]["turn"] is False
    data.write_text("\n".join([json.dumps(lines[0]), '{"file": "b.png", "fields": {}}']))
    ran = run("eval", data, "--out", tmp_path / "two")
    assert ran.code == 2
    assert "does not exist" in ran.err
    ran = run("eval", data, "--out", tmp_path / "two", "--on-bad-record", "skip")
    assert ran.code == 0
    assert "1 document skipped" in ran.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("no.jsonl", "--schema", "invoice"), "no .jsonl file"),
        (("cord", "--folder", "nowhere"), "CORD"),
        (("cord",), "--folder"),
        (("forms.jsonl", "--schema", "no-such"), "no-such"),
    ],
)
def test_documents_that_are_missing_are_named(run, arguments, reason, no_model):
    ran = run("eval", *arguments, "--out", "out")
    assert ran.code == 2
    assert reason in ran.err
