"""Checkpoint folders: whole or not there, damage found, the right ones kept."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from paligemma.checkpoints.files import sha256_of
from paligemma.errors import CheckpointError
from paligemma.finetune.config import TrainConfig
from paligemma.finetune.optim import Trained, build_optimizer
from paligemma.finetune.state import Best, Checkpoints, Progress, best_folder, load_weights


class Run:
    """A model whose weights all are the number of its step."""

    def __init__(self, out: Path, keep_last: int = 2) -> None:
        self.model = nn.Linear(3, 2)
        self.trained = Trained(self.model, master_weights=False)
        self.optimizer = build_optimizer(self.trained, TrainConfig(num_steps=9, learning_rate=1.0))
        self.checkpoints = Checkpoints(out, keep_last=keep_last)

    def save(self, step: int, best: Best | None = None) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        self.optimizer.step()
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.fill_(float(step))
        progress = Progress(step=step, settings={"a": 1}, best=best)
        self.checkpoints.save(progress, self.trained, self.optimizer)

    def resume(self, *, strict: bool = False) -> int:
        """The step of the newest whole state, after checking that its weights are that step's."""
        progress = self.checkpoints.newest(strict=strict)
        if progress is None:
            return 0
        self.checkpoints.load(progress, self.trained, self.optimizer)
        for parameter in self.model.parameters():
            assert bool((parameter == progress.step).all())
        return progress.step


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def test_g4_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    run, other = Run(tmp_path), Run(tmp_path)
    run.save(3, Best(step=2, metric="score", value=0.5))
    assert other.resume() == 3
    assert other.checkpoints.newest() == Progress(
        step=3, settings={"a": 1}, best=Best(step=2, metric="score", value=0.5)
    )
    for mine, theirs in zip(run.model.parameters(), other.model.parameters(), strict=True):
        kept, read = run.optimizer.state[mine], other.optimizer.state[theirs]
        assert kept.keys() == read.keys()
        assert all(torch.equal(kept[moment], read[moment]) for moment in kept)
    assert load_weights(tmp_path).keys() == {"weight", "bias"}


def test_the_first_start_finds_nothing(tmp_path: Path) -> None:
    assert Run(tmp_path).resume() == 0
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        load_weights(tmp_path)


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    run = Run(tmp_path, keep_last=2)
    for step in range(1, 12):
        run.save(step, Best(step=4, metric="score", value=1.0) if step >= 4 else None)
    assert names(tmp_path) == ["best", "latest", "step-10", "step-11", "step-4"]
    assert best_folder(tmp_path).name == "step-4"
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-11\n"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_text("[]")


DAMAGE: dict[str, tuple[str, Callable[[Path], None]]] = {
    "shard cut": ("*.safetensors", cut),
    "bit flipped": ("*.safetensors", flip_a_bit),
    "shard gone": ("*.safetensors", Path.unlink),
    "manifest gone": ("manifest.json", Path.unlink),
    "manifest cut": ("manifest.json", cut),
    "manifest of nothing": ("manifest.json", empty),
    "state changed": ("state.json", flip_a_bit),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_g3_a_damaged_newest_state_is_found_and_the_one_before_it_used(
    tmp_path: Path, damage: str
) -> None:
    run = Run(tmp_path)
    run.save(1)
    run.save(2)
    pattern, harm = DAMAGE[damage]
    (path,) = (tmp_path / "checkpoints" / "step-2").glob(pattern)
    harm(path)
    with pytest.raises(CheckpointError, match=r"step-2 is damaged: .*resume from the one before"):
        run.resume(strict=True)
    assert best_folder(tmp_path).name == "step-1"  # reading alone changes nothing
    with pytest.warns(UserWarning, match=r"step-2 is damaged: .* Trying the one before it"):
        assert run.resume() == 1
    assert names(tmp_path) == ["latest", "step-1", "step-2.damaged"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-1\n"
    run.save(2)
    assert Run(tmp_path).resume() == 2


def test_too_many_open_files_are_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.save(1)
    run.save(2)

    def fail(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    monkeypatch.setattr("paligemma.finetune.state.sha256_of", fail)
    with pytest.raises(CheckpointError, match=r"step-2 cannot be read: Too many open files"):
        run.resume()
    assert names(tmp_path) == ["latest", "step-1", "step-2"]


# What a state is made of, left out with the manifest made to fit: no checksum can tell.
PARTS = [
    "weight/weight", "exp_avg/weight", "exp_avg_sq/bias", "step/weight",
    "step", "epoch", "settings", "best", "world_size",
]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_g4_a_state_without_one_of_its_parts_is_not_resumed(tmp_path: Path, part: str) -> None:
    run = Run(tmp_path)
    run.save(1)
    run.save(2)
    folder = tmp_path / "checkpoints" / "step-2"
    (path,) = folder.glob("*.safetensors" if "/" in part else "state.json")
    if "/" in part:
        tensors = load_file(path)
        del tensors[part]
        path.unlink()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            writer = HuggingFaceStorageWriter(
                str(folder), fqn_to_index_mapping=dict.fromkeys(tensors, 1)
            )
            save_tensors(tensors, storage_writer=writer, no_dist=True)
    else:
        state = json.loads(path.read_text())
        del state[part]
        path.write_text(json.dumps(state))
    reseal(folder)
    if "/" in part:  # whole files of something else: nothing is silently begun anew
        with pytest.raises(CheckpointError, match=r"step-2 (belongs to another|is incomplete)"):
            run.resume()
        return
    with pytest.warns(UserWarning, match=rf"step-2 is damaged: '{part}' \(KeyError\)"):
        assert run.resume() == 1


def reseal(folder: Path) -> None:
    kept = [path for path in folder.iterdir() if path.name != "manifest.json"]
    files = {p.name: {"bytes": p.stat().st_size, "sha256": sha256_of(p)} for p in kept}
    (folder / "manifest.json").write_text(json.dumps({"files": files}))


def test_g3_when_no_state_is_whole_training_does_not_silently_start_anew(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1)
    (tmp_path / "checkpoints" / "step-1" / "manifest.json").unlink()
    with (
        pytest.warns(UserWarning, match="damaged"),
        pytest.raises(CheckpointError, match=r"No checkpoint in .* is intact"),
    ):
        run.resume()


class Died(BaseException):
    """The process is gone."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, after: int) -> Iterator[list[str]]:
    """The process ends at the call number `after` of anything that changes or syncs files."""
    calls: list[str] = []

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            if len(calls) == after:
                raise Died
            calls.append(name)
            return function(*arguments, **keywords)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counted("fsync", os.fsync))
        patch.setattr(Path, "replace", counted("replace", Path.replace))
        patch.setattr(Path, "write_text", counted("write_text", Path.write_text))
        patch.setattr(shutil, "rmtree", counted("rmtree", shutil.rmtree))
        saving = counted("save_tensors", save_tensors)
        patch.setattr("paligemma.finetune.state.save_tensors", saving)
        yield calls


def test_g2_a_save_that_dies_at_any_stage_leaves_the_state_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after, found = 0, []
    while True:
        out = tmp_path / str(after)
        run = Run(out, keep_last=1)
        run.save(1)
        with dying(monkeypatch, after):
            try:
                run.save(2)
                break
            except Died:
                pass
        found.append(Run(out, keep_last=1).resume())
        assert not [name for name in names(out) if name.endswith(".tmp")]
        Run(out).save(2)  # over whatever was left
        assert Run(out).resume() == 2
        after += 1
    assert after > 12
    assert found == sorted(found)
    assert set(found) == {1, 2}


def test_g2_a_full_disk_is_one_clear_error_and_the_state_before_stays(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"step 2 could not be written .*File too large.*step-1 is intact"
        ):
            run.save(2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path) == ["latest", "step-1"]
    assert Run(tmp_path).resume() == 1


def test_g2_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(CheckpointError, match=r"could not be written .* no earlier checkpoint"):
        Run(tmp_path).save(1)


def test_g3_stray_folders_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(1)
    stray = tmp_path / "checkpoints" / "step-9.tmp"
    stray.mkdir()
    (stray / "half.safetensors").write_bytes(b"half")
    assert run.resume() == 1
    assert names(tmp_path) == ["latest", "step-1"]


def test_the_manifest_names_every_file_with_its_size(tmp_path: Path) -> None:
    Run(tmp_path).save(7)
    folder = tmp_path / "checkpoints" / "step-7"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert {*files, "manifest.json"} == {path.name for path in folder.iterdir()}
    assert all((folder / name).stat().st_size == file["bytes"] for name, file in files.items())
    assert {"torch", "python", "paligemma"} == json.loads((folder / "state.json").read_text())[
        "versions"
    ].keys()


def test_a_large_state_is_written_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paligemma.finetune.state._FILE_BYTES", 16)
    Run(tmp_path).save(5)
    assert len(list((tmp_path / "checkpoints" / "step-5").glob("*.safetensors"))) > 2
    assert Run(tmp_path).resume() == 5
    assert load_weights(tmp_path)["weight"].tolist() == [[5.0] * 3] * 2


def test_saving_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run(tmp_path)
        run.save(1)
        assert run.resume() == 1
