"""Saving and loading: the same bits back, whole or not at all, strict about everything."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paligemma.checkpoints import save as save_module
from paligemma.checkpoints.load import load_model
from paligemma.checkpoints.save import save_model
from paligemma.errors import CheckpointError, NumericalError
from paligemma.fast.weights import Plain
from paligemma.model.paligemma import PaliGemma
from tests.tiny import FAMILIES, tiny_config, tiny_model

TABLE = "language_model.model.embed_tokens.weight"
NORM = "language_model.model.norm.weight"
POSITIONS = "vision_tower.vision_model.embeddings.position_embedding.weight"


def same_bits(a: PaliGemma, b: PaliGemma) -> bool:
    theirs = dict(b.named_parameters())
    return a.config == b.config and all(
        p.dtype == theirs[name].dtype and torch.equal(p, theirs[name])
        for name, p in a.named_parameters()
    )


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_bits_come_back(
    tmp_path: Path, family: Any, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    model = tiny_model(family).to(dtype)
    folder = save_model(model, tmp_path / "a", max_shard_bytes=max_shard_bytes)
    sharded = (folder / "model.safetensors.index.json").exists()
    assert sharded == (max_shard_bytes < 10**9)
    assert same_bits(load_model(folder, verify=True), model)
    assert not load_model(folder).training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_files_and_model_may_differ_in_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny_model()
    folder = save_model(model, tmp_path / "a", dtype=dtype)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {dtype}
    for wanted in (torch.float32, torch.bfloat16, torch.float16):
        loaded = load_model(folder, weights=Plain(str(wanted).removeprefix("torch.")))  # type: ignore[arg-type]
        assert same_bits(loaded, tiny_model().to(dtype).to(wanted))


def test_shards_stay_below_their_limit(tmp_path: Path) -> None:
    folder = save_model(tiny_model(), tmp_path / "a", max_shard_bytes=50_000)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    sizes = [
        sum(t.numel() * 4 for t in load_file(path).values()) for path in folder.glob("model-*")
    ]
    assert max(sizes) <= 50_000
    assert sum(sizes) == index["metadata"]["total_size"]
    assert (
        sorted(index["weight_map"].values())[-1]
        == f"model-{len(sizes):05}-of-{len(sizes):05}.safetensors"
    )


def test_i8_a_saved_folder_is_complete_and_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = save_model(
            tiny_model(),
            tmp_path / "deep" / "a",
            tokenizer_proto=b"pieces",
            extra_files={"mask_codec.npz": b"codec"},
        )
    finally:
        os.umask(before)
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer.model",
        "mask_codec.npz",
        "checksums.json",
    }
    assert (folder / "tokenizer.model").read_bytes() == b"pieces"
    assert (folder / "mask_codec.npz").read_bytes() == b"codec"
    (folder / "mask_codec.npz").write_bytes(b"other")
    with pytest.raises(CheckpointError, match="mask_codec"):
        load_model(folder, verify=True)
    (folder / "mask_codec.npz").unlink()
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert list(folder.parent.iterdir()) == [folder]


def test_an_existing_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    folder = save_model(tiny_model(), tmp_path / "a")  # an empty folder is free
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(CheckpointError, match="already exists"):
        save_model(tiny_model(seed=1), folder)
    with pytest.raises(CheckpointError, match="already exists"):
        save_model(tiny_model(), folder / "config.json")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("stage", ["write_config", "write_weight_file", "sha256_of", "flush"])
def test_a_failure_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save_module, stage, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        save_model(tiny_model(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_save_leaves_no_folder_of_that_name(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from paligemma.checkpoints import save
from tests.tiny import tiny_model
save.sha256_of = lambda path: os.kill(os.getpid(), signal.SIGKILL)
save.save_model(tiny_model(), sys.argv[1])
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], cwd=root, check=False)
    assert done.returncode == -9
    assert not (tmp_path / "a").exists()
    save_model(tiny_model(), tmp_path / "a")
    load_model(tmp_path / "a", verify=True)


def test_broken_weights_are_not_saved(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.decoder.final_norm.weight[3] = torch.nan
    with pytest.raises(NumericalError, match=NORM):
        save_model(model, tmp_path / "a")
    with torch.no_grad():
        model.decoder.final_norm.weight[3] = 1e5
    with pytest.raises(NumericalError, match="float16"):
        save_model(model, tmp_path / "a", dtype=torch.float16)
    with pytest.raises(CheckpointError, match=r"torch\.float64"):
        save_model(model, tmp_path / "a", dtype=torch.float64)
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_bit_is_found_by_verification_only(tmp_path: Path) -> None:
    folder = save_model(tiny_model(), tmp_path / "a")
    raw = bytearray((folder / "model.safetensors").read_bytes())
    raw[-1000] ^= 1
    (folder / "model.safetensors").write_bytes(raw)
    load_model(folder)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has SHA-256"):
        load_model(folder, verify=True)


def test_a_missing_listed_file_is_found_by_verification(tmp_path: Path) -> None:
    folder = save_model(tiny_model(), tmp_path / "a")
    (folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"generation_config\.json is listed"):
        load_model(folder, verify=True)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), f"missing: {NORM}"),
        (lambda t: t.update(stray=torch.zeros(1)), "unknown: stray"),
        (lambda t: t.update({NORM: torch.zeros(5)}), r"norm\.weight is \(5,\), expected \(48,\)"),
        (lambda t: t.update({NORM: torch.zeros(48, dtype=torch.int32)}), "dtype I32"),
        (lambda t: t.update({NORM: torch.zeros(48, dtype=torch.float64)}), "dtype F64"),
        (lambda t: t.update({TABLE: t[TABLE][:151].clone()}), r"\(151, 48\), expected \(192, 48\)"),
        (
            lambda t: t.update({POSITIONS: torch.zeros(49, 27)}),
            "positions for images of 42 pixels, while the config says 30",
        ),
        (
            lambda t: t.update({"model." + NORM.replace("model.norm", "norm"): t[NORM].clone()}),
            "are the same tensor",
        ),
        (
            lambda t: t.update({"lm_head.weight": torch.zeros_like(t[TABLE])}),
            "output layer lm_head.weight that differs",
        ),
        (
            lambda t: t.update({"lm_head.weight": t[TABLE].half()}),
            "output layer lm_head.weight that differs",
        ),
    ],
)
def test_tensors_that_do_not_fit_stop_the_load(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    folder = edit(save_model(tiny_model(), tmp_path / "a"), change)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_all_problems_are_named_at_once_and_long_lists_are_cut(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "layers.0" in name]:
            tensors["old." + name] = tensors.pop(name)
        tensors[NORM] = torch.zeros(5)

    folder = edit(save_model(tiny_model(), tmp_path / "a"), spoil)
    with pytest.raises(CheckpointError, match=r"missing: .* and 17 more") as caught:
        load_model(folder)
    assert "unknown: old." in str(caught.value)
    assert "expected (48,)" in str(caught.value)


def test_a_tied_output_layer_and_a_pooling_head_are_let_pass(tmp_path: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        tensors["language_model.lm_head.weight"] = tensors[TABLE].clone()
        tensors["vision_tower.vision_model.head.probe"] = torch.zeros(1, 1, 27)

    model = tiny_model()
    assert same_bits(load_model(edit(save_model(model, tmp_path / "a"), add)), model)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_broken_values_are_refused_by_name(tmp_path: Path, value: float) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[NORM][7] = value

    folder = edit(save_model(tiny_model(), tmp_path / "a"), spoil)
    with pytest.raises(CheckpointError, match=NORM):
        load_model(folder)
    assert not load_model(folder, check_finite=False).decoder.final_norm.weight[7].isfinite()


def test_values_too_large_for_the_dtype_are_refused(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[NORM][7] = 1e5

    folder = edit(save_model(tiny_model(), tmp_path / "a"), spoil)
    load_model(folder, weights="bfloat16")
    with pytest.raises(CheckpointError, match=r"too large for torch\.float16"):
        load_model(folder, weights="float16")


def test_padding_rows_of_the_table_do_not_count(tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors[TABLE][151:] = torch.nan

    model = tiny_model()
    loaded = load_model(edit(save_model(model, tmp_path / "a"), spoil))
    assert loaded.decoder.embedding.weight.shape == (151, 48)
    assert same_bits(loaded, model)


def test_what_cannot_fit_into_memory_is_refused_before_allocating(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tiny_model(), tmp_path / "a")
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    with pytest.raises(CheckpointError, match="The weights need"):
        load_model(folder)


def test_missing_parts_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(tmp_path / "absent")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_model(tmp_path)
    folder = save_model(tiny_model(), tmp_path / "a")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights to load"):
        load_model(folder)


def test_adapters_must_be_merged_before_saving(tmp_path: Path) -> None:
    model = tiny_model()
    model.decoder.extra = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"decoder\.extra"):
        save_model(model, tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


# The kernel's high-water mark of this program alone; getrusage would count its parent's as well.
MEASURE = """
import re, sys, torch
from pathlib import Path
from paligemma.checkpoints.load import load_model
from paligemma.fast.weights import Plain
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
load_model(sys.argv[2])  # a tiny one, so that every module is imported and warm
before = peak()
model = load_model(sys.argv[1], weights=Plain(sys.argv[3]))
weights = sum(p.numel() * p.element_size() for p in model.parameters())
print(peak() - before, weights)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measured through /proc")
def test_loading_needs_hardly_more_memory_than_the_weights(tmp_path: Path) -> None:
    tiny = tiny_model()
    config = tiny_config(width=768, depth=2, mlp_dim=6144, vocab_size=10_000)
    large = save_model(PaliGemma(config), tmp_path / "large")
    small = save_model(tiny, tmp_path / "small")
    assert 130e6 < (large / "model.safetensors").stat().st_size < 200e6
    for dtype in ("float32", "bfloat16"):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, large, small, dtype],
            capture_output=True,
            text=True,
            check=True,
        )
        grown, weights = map(int, done.stdout.split())
        # What is read ahead and cast takes some megabytes, whatever the size of the model.
        assert 0.9 * weights < grown < weights + 40e6, dtype
