"""Training state on disk: checkpoint folders that are whole or not there.

    out/checkpoints/
      step-500/   *.safetensors   weights that are trained, optimizer moments
                  state.json      step, settings, best so far, versions, how many tensors
                  manifest.json   size and SHA-256 of the files above
      latest      "step-500"
      best        "step-400", where a metric is followed

A folder is written as `step-500.tmp`, brought to the disk, and renamed: a run that is killed at any
moment finds the state before or the state after. Tensors go through torch.distributed.checkpoint
as safetensors, so that a state of many processes is read by one, or by any other number. There is
no random state to keep: data and dropout are functions of (seed, step).
"""

from __future__ import annotations

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
from paligemma.checkpoints.save import flush
from paligemma.errors import CheckpointError
from paligemma.finetune.distributed import World
from paligemma.finetune.optim import Trained

FOLDER = "checkpoints"
LATEST = "latest"
BEST = "best"
_STATE = "state.json"
_MANIFEST = "manifest.json"
_FILE_BYTES = 2**30
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best validation so far."""

    step: int
    metric: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands, beside its tensors."""

    step: int
    """Steps done."""
    epoch: float | None = None
    settings: Mapping[str, Any]
    """Everything that the numbers depend on: another value is another run."""
    best: Best | None = None
    world_size: int = 1


class Checkpoints:
    """The checkpoint folders of one run.

    All methods are called by all processes together; the first one does what is done once.
    Several machines must share the folder.
    """

    def __init__(self, out: Path, *, keep_last: int = 2, world: World | None = None) -> None:
        self.root = out / FOLDER
        self.keep_last = keep_last
        self.world = world or World.current()

    def save(self, progress: Progress, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        """Write step-N, then forget folders that are neither recent nor the best.

        Raises CheckpointError when the disk is full or cannot be written; what was saved before
        stays as it was.
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
            with warnings.catch_warnings():  # of the intent to save in a single process
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                save_tensors(tensors, storage_writer=writer, no_dist=self.world.size == 1)
            if self.world.is_first:
                _seal(partial, progress, _counts(tensors))
                if final.exists():  # made before a damaged one was left behind
                    _remove(final)
                partial.replace(final)
                flush(self.root)
                self._point(progress)
                self._forget(progress)
            self.world.wait()
        except (OSError, SafetensorError, CheckpointException) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(
                f"The training state of step {progress.step} could not be written to "
                f"{self.root}: {_first_line(error)}. {self._what_is_left()} Free some space "
                "or mend the folder's rights, and start the same command again."
            ) from error

    def newest(self, *, strict: bool = False) -> Progress | None:
        """Where the newest whole folder stands; None before the first.

        A damaged folder is renamed, with a warning, and the one before it is taken; with `strict`
        it is an error. Folders that were being written when a run ended are removed. Raises
        CheckpointError when folders are there and none is whole.
        """
        found: Progress | CheckpointError | None = None
        if self.world.is_first:
            try:
                found = self._newest(strict)
            except CheckpointError as error:
                found = error
            except OSError as error:
                found = CheckpointError(
                    f"The training states in {self.root} cannot be gone through: "
                    f"{_first_line(error)}. Mend the folder's rights, or make space on its disk."
                )
        found = self.world.from_first(found)
        if isinstance(found, CheckpointError):
            raise found
        return found

    def load(self, progress: Progress, trained: Trained, optimizer: torch.optim.Optimizer) -> None:
        """Fill what is trained, and the optimizer, from the folder of `progress`.

        Raises CheckpointError when it belongs to another model.
        """
        folder = self.root / f"step-{progress.step}"
        stored = _stored(folder)
        expected = {f"weight/{name}": p.shape for name, p in trained.parameters.items()}
        found = {name: shape for name, (shape, _) in stored.items() if name.startswith("weight/")}
        if found != expected:
            differing = {k for k in found.keys() | expected if found.get(k) != expected.get(k)}
            raise CheckpointError(
                f"The training state {folder} belongs to another model, or trains other parts: "
                f"{', '.join(sorted(differing)[:5])} differ. "
                "Train into an empty folder, or use the settings it was made with."
            )
        counts = _counts(stored)
        written = _read_state(folder).get("tensors", counts)  # the first states did not say
        if counts != written:
            raise CheckpointError(
                f"The training state {folder} is not whole: it holds {counts} tensors, and "
                f"{written} were written. Remove it to go on from the one before it."
            )
        for name, parameter in trained.parameters.items():
            for moment in _MOMENTS:
                if f"{moment}/{name}" in stored:
                    optimizer.state[parameter][moment] = _empty_moment(moment, parameter)
        _load(_tensors_of(trained, optimizer), folder, no_dist=self.world.size == 1)
        trained.publish()

    def _newest(self, strict: bool) -> Progress | None:
        for stray in self.root.glob("*.tmp"):
            shutil.rmtree(stray, ignore_errors=True)
        folders = _step_folders(self.root)
        for folder in reversed(folders):
            damage = _damage(folder)
            if damage is None:
                progress = _read_progress(folder)
                self._point(progress)
                return progress
            message = f"The training state {folder} is damaged: {damage}."
            if strict:
                raise CheckpointError(
                    f"{message} Remove it to go on from the one before it, or do not ask for "
                    "strict_resume."
                )
            folder.replace(folder.with_name(folder.name + ".damaged"))
            warnings.warn(f"{message} Trying the one before it.", stacklevel=2)
        if folders:
            raise CheckpointError(
                f"No training state in {self.root} is whole. Remove that folder to start anew."
            )
        return None

    def _point(self, progress: Progress) -> None:
        write_whole(self.root / LATEST, f"step-{progress.step}\n")
        if progress.best is not None:
            write_whole(self.root / BEST, f"step-{progress.best.step}\n")

    def _forget(self, progress: Progress) -> None:
        best = None if progress.best is None else f"step-{progress.best.step}"
        for folder in _step_folders(self.root)[: -self.keep_last]:
            if folder.name != best:
                _remove(folder)

    def _what_is_left(self) -> str:
        folders = _step_folders(self.root)
        return f"{folders[-1]} is still good." if folders else "Nothing was saved before."


def load_weights(out: Path) -> dict[str, Tensor]:
    """The newest whole weights of a run, by parameter name: what a next stage starts from.

    Raises CheckpointError when `out` holds none.
    """
    return folder_weights(_newest_whole(out))


def best_folder(out: Path) -> Path:
    """The checkpoint with the best validation, or the newest whole one where none was followed.

    Raises CheckpointError when `out` holds none.
    """
    newest = _newest_whole(out)
    best = _read_progress(newest).best
    if best is not None:
        folder = newest.with_name(f"step-{best.step}")
        if folder.is_dir() and _damage(folder) is None:
            return folder
    return newest


def folder_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of one checkpoint folder, whatever number of processes wrote it."""
    weights = {
        name: torch.empty(shape, dtype=dtype)
        for name, (shape, dtype) in _stored(folder).items()
        if name.startswith("weight/")
    }
    _load(weights, folder, no_dist=True)
    return {name.removeprefix("weight/"): tensor for name, tensor in weights.items()}


def write_whole(path: Path, text: str) -> None:
    """Replace a small file, so that it is the old one or the new one at any moment."""
    partial = path.with_name(path.name + ".tmp")
    partial.write_text(text, encoding="utf-8")
    flush(partial)
    partial.replace(path)
    flush(path.parent)


def _tensors_of(trained: Trained, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """By name, the very tensors that training moves."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in trained.parameters.items():
        tensors[f"weight/{name}"] = parameter.detach()
        kept = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}/{name}": kept[moment] for moment in _MOMENTS if moment in kept}
    return tensors


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Which file, from 1, each tensor goes to: a file is put together in memory to be written."""
    files, written = {}, 0
    for name, tensor in tensors.items():
        files[name] = 1 + written // _FILE_BYTES
        written += tensor.numel() * tensor.element_size()
    return files


def _empty_moment(moment: str, parameter: Tensor) -> Tensor:
    if moment == "step":  # one number, whole in every process
        return torch.zeros((), dtype=torch.float32, device=parameter.device)
    return torch.zeros_like(parameter, requires_grad=False)


def _stored(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Names, shapes and dtypes of the tensors of a folder."""
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
    """How many tensors of each kind: weights, and each of their moments."""
    return dict(sorted(Counter(name.partition("/")[0] for name in names).items()))


def _seal(folder: Path, progress: Progress, counts: Mapping[str, int]) -> None:
    """Add state and manifest, and bring everything to the disk."""
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
    """What is wrong with a folder; None when every file is as it was written."""
    try:
        files = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, written in files.items():
            path = folder / name
            if path.stat().st_size != written["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, not {written['bytes']}"
            if sha256_of(path) != written["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs)"
        _read_progress(folder)  # lacks nothing
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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


def _newest_whole(out: Path) -> Path:
    for folder in reversed(_step_folders(out / FOLDER)):
        if _damage(folder) is None:
            return folder
    raise CheckpointError(f"There is no whole training state in {out / FOLDER}. Train first.")


def _step_folders(root: Path) -> list[Path]:
    """step-1, step-2, ..., step-10, ...: by number."""
    if not root.is_dir():
        return []
    named = [path for path in root.iterdir() if re.fullmatch(r"step-\d+", path.name)]
    return sorted(named, key=lambda path: int(path.name.removeprefix("step-")))


def _remove(folder: Path) -> None:
    # Renamed first: a run killed here leaves a stray .tmp, not a damaged state.
    doomed = folder.with_name(folder.name + ".old.tmp")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.replace(doomed)
    shutil.rmtree(doomed)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {
        "paligemma": version("paligemma"),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _first_line(error: BaseException) -> str:
    if isinstance(error, CheckpointException):  # one error a process, with its stack
        first = next(iter(error.failures.values()))
        return str(first[0])
    return (str(error) or type(error).__name__).splitlines()[0]
