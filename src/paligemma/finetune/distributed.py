"""Training in several processes: their ranks, what they exchange, and the sharded model.

`torchrun` starts the processes, and ends and restarts them; FSDP2 shards and gathers the model
(`torch.distributed.fsdp.fully_shard`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from paligemma.errors import OptionError, ProcessLostError
from paligemma.model.paligemma import PaliGemma


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among those that train together. With one process, every method is a no-op."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Raises OptionError when several processes were started and have not joined."""
        if dist.is_available() and dist.is_initialized():
            return cls(rank=dist.get_rank(), size=dist.get_world_size())
        if _num_started() > 1:
            raise OptionError(
                f"{_num_started()} processes were started, and each would train alone into the "
                "same folder. Put the work into `with distributed.joined():`."
            )
        return cls()

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and reports to the user."""
        return self.rank == 0

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sums over all processes, in float64; every process gets the same."""
        if self.size == 1:
            return list(values)
        sums = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(sums)
        result: list[float] = sums.tolist()
        return result

    def from_first(self, value: Any) -> Any:
        """The first process's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """The values of all processes, in order of rank."""
        if self.size == 1:
            return list(values)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, list(values))
        return [value for of_rank in gathered for value in of_rank]

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.size > 1:
            dist.barrier()


PATIENCE = timedelta(minutes=30)
"""How long a process waits for another: longer than the first one takes to finish a checkpoint."""


@contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[World]:
    """Join the processes that `torchrun` started; without it, this process stays alone.

    Use it once per process, around everything that they do together: torch cannot form the same
    group twice. Raises ProcessLostError when another process has ended, or has not reached the
    point where this one waits for it within `patience`. (A hanging NCCL call cannot be
    interrupted: torch then ends the process itself.)
    """
    if _num_started() == 1:
        yield World()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://", timeout=patience))
    # Processes restarted on one machine find the store as the dead ones left it, with their
    # addresses, and would wait for them (torch 2.13). Several machines count restarts differently.
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt {attempt}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    world = World.current()
    try:
        yield world
        dist.barrier()  # no process leaves while another still communicates
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise ProcessLostError(
            f"Process {world.rank} of {world.size} lost another process, which has ended or did "
            f"not respond for {patience.total_seconds():.0f} s. Its last messages give the reason; "
            "the same command resumes from the last checkpoint."
        ) from error
    finally:
        dist.destroy_process_group()


def _is_loss(error: RuntimeError) -> bool:
    # gloo has no error class of its own, only the path of its source in the message.
    return isinstance(error, dist.DistError) or "/gloo/transport/" in str(error)


def _num_started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def shard(root: nn.Module, model: PaliGemma, *, bfloat16: bool) -> None:
    """Shard the parameters of `root`, which contains `model`, over all processes, by block.

    With `bfloat16` every process computes in bfloat16, from float32 shards, which correspond to
    the master copies of a single process. Gradients are averages over the processes. A whole
    parameter is in memory only while its block computes; call `root` itself, which sees to that.
    Frozen parameters are sharded, too, whatever their dtype; buffers, as of a frozen NF4 base, are
    not.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(
        "cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),)
    )
    # Inputs are not cast: a mask's most negative float32 would become -infinity in bfloat16.
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bfloat16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,
    )
    for block in [*model.vision_encoder.blocks, *model.decoder.blocks]:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy)


@contextmanager
def usable(root: nn.Module) -> Iterator[None]:
    """Within, the methods of a sharded model may be called without going through `root`.

    Parameters outside of blocks are gathered in every process; blocks gather theirs when called.
    """
    from torch.distributed.fsdp import FSDPModule

    if not isinstance(root, FSDPModule):
        yield
        return
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def whole_weights(module: nn.Module, world: World) -> dict[str, Tensor]:
    """All parameters, gathered in the host memory of the first process; none in the others.

    They are gathered one by one, so that no accelerator has to hold all of them.
    """
    weights = {}
    for name, parameter in module.named_parameters():
        whole = parameter.detach()
        if hasattr(whole, "full_tensor"):
            whole = whole.full_tensor()
        if world.is_first:
            weights[name] = whole.cpu()
    return weights
