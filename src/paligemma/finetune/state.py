"""Checkpoints of a training run, which are complete or absent.

    out/checkpoints/
      step-500/   *.safetensors   trained weights, optimizer moments
                  state.json      step, settings, best so far, versions, number of tensors
                  manifest.json   size and SHA-256 of the files above
      latest      "step-500"
      best        "step-400", where a metric chooses the best

A folder is written as `step-500.tmp`, flushed to disk, and renamed: a run that is killed at any
time resumes from the checkpoint before or the one after. Tensors are written by
torch.distributed.checkpoint as safetensors, so that a checkpoint of several processes can be read
by any number of them. No random state is saved: data and dropout are functions of (seed, step).
"""

from __future__ import annotations

import errno
import json
import platform
import re
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from paligemma.checkpoints.files import sha256_of
from paligemma.errors import CheckpointError
from paligemma.finetune.distributed import World
from paligemma.finetune.muon import MOMENTUM
from paligemma.finetune.optim import Trained
from paligemma.writing import flush

FOLDER = "checkpoints"
LATEST = "latest"
BEST = "best"
_STATE = "state.json"
_MANIFEST = "manifest.json"
_FILE_BYTES = 2**30
_DAMAGED = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO}
"""Errors of reading that tell of the files, not of the process that reads them."""
_MOMENTS = ("exp_avg", "exp_avg_sq", "step", MOMENTUM)


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation so far."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run: its checkpoint without the tensors."""

    step: int  # number of finished steps
    epoch: float | None = None
    settings: Mapping[str, Any]
    """Everything that the numbers depend on: with other values it is another run."""
    best: Best | None = None
    world_size: int = 1


class Checkpoints:
    """The checkpoint folders of one run.

    All processes call all methods together; what is done only once, the first process does.
    Several machines must share the folder.
    """

    def __init__(self, out: Path, *, keep_last: int = 2, world: World | None = None) -> None:
        self.root = out / FOLDER
        self.keep_last = keep_last
        self.world = world or World.current()

    def save(self, progress: Progress, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        """Write step-N, then remove folders that are neither recent nor the best.

        Raises CheckpointError when the disk is full or cannot be written; earlier checkpoints
        stay as they are.
        """
        final = self.root / f"step-{progress.step}"
        partial = final.with_name(final.name + ".tmp")
        try:
            if self.world.is_first:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.world.wait()
            tensors = _tensors_of(trained, optimizer)
            writer = HuggingFaceStorageWriter(
                str(partial), fqn_to_index_mapping=_files_of(tensors), save_distributed=True
            )
            with warnings.catch_warnings():  # about saving in a single process, which is intended
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                save_tensors(tensors, storage_writer=writer, no_dist=self.world.size == 1)
            if self.world.is_first:
                _finish(partial, progress, _counts(tensors))
                if final.exists():  # written before the run fell back to an earlier checkpoint
                    _remove(final)
                partial.replace(final)
                flush(self.root)
                self._write_names(progress)
                self._remove_old(progress)
            self.world.wait()
        except (OSError, SafetensorError, CheckpointException) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"The checkpoint of step {progress.step} could not be written to "
                f"{self.root}: {_first_line(error)}. {self._what_is_left()} Free some space "
                "or fix the folder's permissions, and start the same command again."
            ) from error

    def newest(self, *, strict: bool = False) -> Progress | None:
        """The progress of the newest intact checkpoint; None where there is no checkpoint.

        A damaged folder is renamed, with a warning, and the one before it is used; with `strict`
        it is an error. Unfinished folders of a run that was killed are removed. Raises
        CheckpointError when there are checkpoints but none is intact.
        """
        result: Progress | CheckpointError | None = None
        if self.world.is_first:
            try:
                result = self._newest(strict)
            except CheckpointError as error:
                result = error
            except OSError as error:
                result = CheckpointError(
                    f"The checkpoints in {self.root} cannot be read: {_first_line(error)}. Fix the "
                    "folder's permissions, or free space on its disk."
                )
        result = self.world.from_first(result)
        if isinstance(result, CheckpointError):
            raise result
        return result

    def load(self, progress: Progress, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        """Fill the trained parameters and the optimizer from the checkpoint of `progress`.

        Raises CheckpointError when it belongs to another model.
        """
        folder = self.root / f"step-{progress.step}"
        stored = _stored(folder)
        expected = {f"weight/{name}": p.shape for name, p in trained.parameters.items()}
        shapes = {name: shape for name, (shape, _) in stored.items() if name.startswith("weight/")}
        if shapes != expected:
            differing = {k for k in shapes.keys() | expected if shapes.get(k) != expected.get(k)}
            raise CheckpointError(
                f"The checkpoint {folder} belongs to another model, or to other trained parts: "
                f"{', '.join(sorted(differing)[:5])} differ. "
                "Train into an empty folder, or use the settings it was made with."
            )
        counts = _counts(stored)
        written = _read_state(folder).get("tensors", counts)  # absent in the first checkpoints
        if counts != written:
            raise CheckpointError(
                f"The checkpoint {folder} is incomplete: it holds {counts} tensors, but {written} "
                "were written. Remove it to resume from the one before it."
            )
        for name, parameter in trained.parameters.items():
            for moment in _MOMENTS:
                if f"{moment}/{name}" in stored:
                    optimizer.state[parameter][moment] = _empty_moment(moment, parameter)
        _load(_tensors_of(trained, optimizer), folder, no_dist=self.world.size == 1)
        trained.publish()

    def _newest(self, strict: bool) -> Progress | None:
        for unfinished in self.root.glob("*.tmp"):
            shutil.rmtree(unfinished, ignore_errors=True)
        folders = _step_folders(self.root)
        for folder in reversed(folders):
            damage = _damage(folder)
            if damage is None:
                progress = _read_progress(folder)
                self._write_names(progress)
                return progress
            message = f"The checkpoint {folder} is damaged: {damage}."
            if strict:
                raise CheckpointError(
                    f"{message} Remove it, or turn off strict_resume, to resume from the one "
                    "before it."
                )
            folder.replace(folder.with_name(folder.name + ".damaged"))
            warnings.warn(f"{message} Trying the one before it.", stacklevel=2)
        if folders:
            raise CheckpointError(
                f"No checkpoint in {self.root} is intact. Remove that folder to start again."
            )
        return None

    def _write_names(self, progress: Progress) -> None:
        write_atomically(self.root / LATEST, f"step-{progress.step}\n")
        if progress.best is not None:
            write_atomically(self.root / BEST, f"step-{progress.best.step}\n")

    def _remove_old(self, progress: Progress) -> None:
        best = None if progress.best is None else f"step-{progress.best.step}"
        for folder in _step_folders(self.root)[: -self.keep_last]:
            if folder.name != best:
                _remove(folder)

    def _what_is_left(self) -> str:
        folders = _step_folders(self.root)
        return f"{folders[-1]} is intact." if folders else "There is no earlier checkpoint."


def load_weights(out: Path) -> dict[str, Tensor]:
    """The weights of a run's newest intact checkpoint, by name: the start of a next stage.

    Raises CheckpointError when `out` holds none.
    """
    return folder_weights(_newest_intact(out))


def best_folder(out: Path) -> Path:
    """The checkpoint with the best validation score, or the newest intact one without validation.

    Raises CheckpointError when `out` holds none.
    """
    newest = _newest_intact(out)
    best = _read_progress(newest).best
    if best is not None:
        folder = newest.with_name(f"step-{best.step}")
        if folder.is_dir() and _damage(folder) is None:
            return folder
    return newest


def folder_weights(folder: Path) -> dict[str, Tensor]:
    """The weights in one checkpoint folder, however many processes wrote it."""
    weights = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in _stored(folder).items()
        if name.startswith("weight/")
    }
    _load(weights, folder, no_dist=True)
    return {name.removeprefix("weight/"): tensor for name, tensor in weights.items()}


def write_atomically(path: Path, text: str) -> None:
    """Replace a small file, so that it is the old one or the new one at any time."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    partial.replace(path)
    flush(path.parent)


def _tensors_of(trained: Trained, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors that training updates, by name, not copied."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.parameters.items():
        tensors[f"weight/{name}"] = parameter.detach()
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}/{name}": state[moment] for moment in _MOMENTS if moment in state}
    return tensors


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The file, from 1, of each tensor. Files are small, as each is built in memory."""
    files, written = {}, 0
    for name, tensor in tensors.items():
        files[name] = 1 + written // _FILE_BYTES
        written += tensor.numel() * tensor.element_size()
    return files


def _empty_moment(moment: str, parameter: Tensor) -> Tensor:
    if moment == "step":  # a single number, the same in every process
        return torch.zeros((), dtype=torch.float32, device=parameter.device)
    return torch.zeros_like(parameter, requires_grad=False)


def _stored(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: (of.size, of.properties.dtype)
        for name, of in metadata.items()
        if isinstance(of, TensorStorageMetadata)
    }


def _load(tensors: dict[str, Tensor], folder: Path, *, no_dist: bool) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        reader = HuggingFaceStorageReader(str(folder))
        load_tensors(tensors, storage_reader=reader, no_dist=no_dist)


def _counts(names: Iterable[str]) -> dict[str, int]:
    """The number of tensors of each kind: weights, and each of their moments."""
    return dict(sorted(Counter(name.partition("/")[0] for name in names).items()))


def _finish(folder: Path, progress: Progress, counts: Mapping[str, int]) -> None:
    best = None if progress.best is None else vars(progress.best)
    state = {**vars(progress), "best": best, "tensors": counts, "versions": _versions()}
    (folder / _STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for path in sorted(folder.iterdir())
    }
    (folder / _MANIFEST).write_text(json.dumps({"files": files}, indent=1) + "\n")
    for path in folder.iterdir():
        flush(path)
    flush(folder)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint. Raises CheckpointError if that cannot be told."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, written in files.items():
            path = folder / name
            if path.stat().st_size != written["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {written['bytes']}"
            if sha256_of(path) != written["sha256"]:
                return f"{name} was changed after it was written (its SHA-256 differs)"
        _read_progress(folder)  # raises KeyError where a field is missing
    except OSError as error:
        if error.errno not in _DAMAGED:  # such as too many open files
            raise CheckpointError(
                f"The checkpoint {folder} cannot be read: {error.strerror}. It may be intact."
            ) from error
        return f"{_first_line(error)} ({type(error).__name__})"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_first_line(error)} ({type(error).__name__})"
    return None


def _read_progress(folder: Path) -> Progress:
    state = _read_state(folder)
    best = state["best"]
    return Progress(
        step=state["step"],
        epoch=state["epoch"],
        settings=state["settings"],
        best=None if best is None else Best(**best),
        world_size=state["world_size"],
    )


def _read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    return state


def _newest_intact(out: Path) -> Path:
    for folder in reversed(_step_folders(out / FOLDER)):
        if _damage(folder) is None:
            return folder
    raise CheckpointError(f"There is no intact checkpoint in {out / FOLDER}. Train first.")


def _step_folders(root: Path) -> list[Path]:
    """step-1, step-2, ..., step-10, ...: by number."""
    if not root.is_dir():
        return []
    named = [path for path in root.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


def _remove(folder: Path) -> None:
    # Renamed first: a run that is killed here leaves a .tmp folder, not a damaged checkpoint.
    renamed = folder.with_name(folder.name + ".old.tmp")
    shutil.rmtree(renamed, ignore_errors=True)
    folder.replace(renamed)
    shutil.rmtree(renamed)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        "paligemma": version("paligemma"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _first_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # one error per process, with its stack
        first = next(iter(error.failures.values()))
        return str(first[0])
    return (str(error) or type(error).__name__).splitlines()[0]
