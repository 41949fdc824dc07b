"""The path under test against the float32 reference, on tiny models and mini."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import paligemma
from paligemma.certify import Certificate, CertifyRequest, certificate, certify
from paligemma.certify.agreement import LIMITS, ProbeReport, judge_tasks
from paligemma.certify.known import PublishedAnswer, check_published
from paligemma.certify.probes import PROBES
from paligemma.certify.structure import MINI_FOLDER
from paligemma.cli.app import app
from paligemma.cli.serve import ServeOptions, _load
from paligemma.errors import CheckpointError
from paligemma.fast.weights import Plain
from paligemma.model.gemma import RMSNorm
from paligemma.model.paligemma import PaliGemma
from paligemma.predictor import Predictor
from paligemma.processor.tokenizer import Tokenizer
from tests.agreement.tiny_predictor import build_predictor
from tests.certify.damage_kinds import edit


@pytest.fixture(scope="module")
def folder(tiny_tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    predictor = build_predictor(tiny_tokenizer)
    return predictor.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def unchecked_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the check with mini, and most probes, which take seconds."""
    monkeypatch.setattr(certificate._Run, "_check_reference", lambda self: None)
    few = [
        replace(probe, max_new_tokens=4, prompt=probe.prompt[:20])
        for probe in PROBES
        if probe.name in ("caption", "ocr", "detect", "segment", "two images")
    ]
    monkeypatch.setattr("paligemma.certify.probes.PROBES", few)


def computing(folder: Path, **options: Any) -> Certificate:
    """A certificate, without what the tiny config is reproached for."""
    return certify(CertifyRequest(model=folder, against=folder, device="cpu", **options))


@pytest.mark.parametrize("weights", ["float32", Plain("bfloat16"), "bfloat16", "int8", "int4"])
@pytest.mark.usefixtures("unchecked_reference")
def test_sound_paths_pass(folder: Path, weights: Any) -> None:
    result = computing(folder, weights=weights)
    assert result.passes, result.summary()
    assert len(result.layers) == 2 + 2 + 1 + 7 + 3  # patches and norm, projector, decoder, rest
    assert {task.task for task in result.tasks} >= {"caption", "detect", "segment", "clip"}


@pytest.mark.usefixtures("unchecked_reference")
def test_a_model_without_tokenizer_is_run_on_token_ids(folder: Path, tmp_path: Path) -> None:
    copy = edit(folder, tmp_path / "copy")
    (copy / "tokenizer.model").unlink()
    result = certify(CertifyRequest(model=copy, weights=Plain("bfloat16"), device="cpu"))
    assert result.tasks
    assert all(task.passes for task in result.tasks)
    assert any("is missing" in finding.text for finding in result.findings)


def damaged_path(monkeypatch: pytest.MonkeyPatch, damage: Callable[[PaliGemma], object]) -> None:
    """Damage every model that is loaded in another form than the reference."""

    def load(*args: Any, weights: Any, **options: Any) -> Predictor:
        predictor = paligemma.load(*args, weights=weights, **options)
        if weights != Plain("float32"):
            damage(predictor.model)
        return predictor

    monkeypatch.setattr(certificate, "load", load)


def other_scale(model: PaliGemma) -> None:
    model.decoder.blocks[3].attention.query_scale *= 0.5  # type: ignore[operator, union-attr]


def no_soft_cap(model: PaliGemma) -> None:
    model.decoder.blocks[1].attention.logit_softcap = None  # type: ignore[union-attr]


def scaled_vision_norm(model: PaliGemma) -> None:
    model.vision_encoder.blocks[1].layer_norm2.weight.data *= 1.3  # type: ignore[union-attr, operator]


def other_projector(model: PaliGemma) -> None:
    model.projector.linear.bias.data += 0.1


def other_final_norm(model: PaliGemma) -> None:
    model.decoder.final_norm.eps = 0.5


@pytest.mark.parametrize(
    ("damage", "place"),
    [
        (other_scale, "decoder layer 3"),
        (no_soft_cap, "decoder layer 1"),
        (scaled_vision_norm, "vision layer 1"),
        (other_projector, "projector"),
        (other_final_norm, "final norm"),
    ],
)
@pytest.mark.usefixtures("unchecked_reference")
def test_the_first_wrong_layer_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[PaliGemma], None], place: str
) -> None:
    damaged_path(monkeypatch, damage)
    result = computing(folder, weights=Plain())
    assert not result.passes
    named = [finding.place for finding in result.findings if finding.check == "layers"]
    assert named == [place]


@pytest.mark.usefixtures("unchecked_reference")
def test_a_wrong_cache_and_wrong_pads_are_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(model: PaliGemma) -> None:
        step = model.decode_step

        def decode_step(token_ids: Tensor, kv_cache: Any, *args: Any) -> Tensor:
            for layer in kv_cache.keys:
                layer[:, :, :8] = 0
            return step(token_ids, kv_cache, *args)

        monkeypatch.setattr(model, "decode_step", decode_step)

    damaged_path(monkeypatch, forget)
    result = computing(folder, weights="float32")
    assert not result.passes
    assert "key-value cache" in result.summary()
    assert not any(finding.check in ("layers", "batches") for finding in result.findings)


@pytest.mark.usefixtures("unchecked_reference")
def test_pads_that_shift_positions_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def count_pads(model: PaliGemma) -> None:
        hidden_states = model.hidden_states

        def shifted(inputs: Any, **options: Any) -> Tensor:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    "paligemma.model.paligemma.positions_of",
                    lambda mask: (
                        torch.arange(mask.shape[1]).expand(mask.shape)
                        * torch.where(mask.all(1), 1, 3)[:, None]
                    ),
                )
                return hidden_states(inputs, **options)

        monkeypatch.setattr(model, "hidden_states", shifted)

    damaged_path(monkeypatch, count_pads)
    result = computing(folder, weights="float32")
    assert [f.place for f in result.findings if f.check == "batches"] == ["rows padded on the left"]


def test_a_broken_reference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    run = certificate._Run(CertifyRequest(model="mini"), lambda text: None)
    run._check_reference()
    assert run.findings == []

    def forward(self: RMSNorm, x: Tensor) -> Tensor:
        return x / x.square().mean(-1, keepdim=True).sqrt() * (1 + self.weight) * 1.01

    monkeypatch.setattr(RMSNorm, "forward", forward)
    run._check_reference()
    assert [finding.place for finding in run.findings] == ["float32 path"]


def test_mini_gets_its_certificate_and_page(tmp_path: Path) -> None:
    out = tmp_path / "report"
    run = CliRunner().invoke(app, ["certify", "mini", "--out", str(out)])
    assert run.exit_code == 0, run.output
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["verdict"] == "pass"
    assert content["origin"] == "mini, as released: every file has the known SHA-256."
    assert len(content["sha256"]) == 64
    by_task = {task["task"]: task for task in content["tasks"]}
    assert by_task["detect"]["box_iou"] == by_task["segment"]["mask_iou"] == 1.0
    page = (tmp_path / "report.html").read_text()
    assert "decoder layer 5" in page
    assert content["sha256"] in page


@pytest.mark.parametrize(("num_same", "passes"), [(23, True), (22, False)])
def test_a_single_other_token_is_no_evidence(num_same: int, passes: bool) -> None:
    report = ProbeReport(
        name="detect",
        task="detect",
        prompt="detect cat",
        positions=100,
        largest=0.0,
        typical=0.0,
        cache=0.0,
        num_tokens=24,
        num_same=num_same,
        num_unexplained=0,
        reference_text="",
        text="",
        box_iou=1.0,
        mask_iou=None,
    )
    [task] = judge_tasks([report], LIMITS["float16"])
    assert task.passes == passes
    assert len(task.reasons) == 1 - passes


def test_the_command_fails_for_a_damaged_model_and_serve_refuses_it(tmp_path: Path) -> None:
    copy = edit(MINI_FOLDER, tmp_path / "copy", text={"attn_logit_softcapping": None})
    run = CliRunner().invoke(app, ["certify", str(copy), "--no-probes", "--json"])
    assert run.exit_code == 1
    [finding] = json.loads(run.stdout)["findings"]
    assert finding["place"] == "text_config.attn_logit_softcapping"
    with pytest.raises(CheckpointError, match=r"not served.*attn_logit_softcapping: null"):
        _load(ServeOptions(model=str(copy), certify=True, device="cpu"), {})


class FakePredictor:
    def __init__(self, answers: dict[str, str]) -> None:
        self._answers = answers

    def generate(self, image: Path, prompt: str, max_new_tokens: int) -> Any:
        assert image.is_file()
        return type("Generation", (), {"text": self._answers[prompt]})()


def test_published_answers_are_compared_where_the_release_is_known() -> None:
    good: Any = FakePredictor(
        {"Where is the cow standing?": "beach", "": "cow on the beach",
         "answer en Where is the cow standing?": "Beach"}
    )  # fmt: skip
    rows, findings = check_published(good, "paligemma-3b-pt-224")
    assert len(rows) == 3
    assert findings == []
    bad: Any = FakePredictor(dict.fromkeys(good._answers, "the the the"))
    rows, findings = check_published(bad, "paligemma-3b-pt-224")
    assert {finding.level for finding in findings} == {"fail"}
    assert check_published(bad, "paligemma2-28b-pt-896") == ([], [])
    case = PublishedAnswer(
        id="x", variants=("v",), image="cow.png", prompt="", answer="a cow stands on sand",
        match="similar", source="", license="",
    )  # fmt: skip
    close: Any = FakePredictor({"": "a cow stands on the sand"})
    assert check_published(close, "v", [case])[1] == []
