"""Several processes as one: who they are, what they agree on, and the model cut among them.

Started by `torchrun`, which also ends and restarts them; cutting and gathering is FSDP2's work
(`torch.distributed.fsdp.fully_shard`). Knows no data and no files.
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
    """This process among those that train together; alone, every method is the identity."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> World:
        """Raises OptionError when processes were started together and have not joined."""
        if dist.is_available() and dist.is_initialized():
            return cls(rank=dist.get_rank(), size=dist.get_world_size())
        if _num_started() > 1:
            raise OptionError(
                f"{_num_started()} processes were started together, and each would train alone "
                "into the same folder. Put the work into `with distributed.joined():`."
            )
        return cls()

    @property
    def is_first(self) -> bool:
        """True in the one process that writes files and talks to people."""
        return self.rank == 0

    def sum(self, values: Sequence[float], device: torch.device) -> list[float]:
        """Sums over all processes, in float64; every process gets the same."""
        if self.size == 1:
            return list(values)
        wide = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(wide)
        added: list[float] = wide.tolist()
        return added

    def from_first(self, thing: Any) -> Any:
        """What the first process holds."""
        if self.size == 1:
            return thing
        held = [thing]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def gather(self, things: Sequence[Any]) -> list[Any]:
        """The things of all processes, one after the other."""
        if self.size == 1:
            return list(things)
        held: list[Any] = [None] * self.size
        dist.all_gather_object(held, list(things))
        return [thing for part in held for thing in part]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


PATIENCE = timedelta(minutes=30)
"""How long a process waits for another one: longer than the first one takes to seal a state."""


@contextmanager
def joined(patience: timedelta = PATIENCE) -> Iterator[World]:
    """The processes that `torchrun` started, together; a process that is alone stays so.

    Once in a process, around all that they do together: torch cannot bring the same group together
    twice. Raises ProcessLostError when another process has ended, or has not come to where this one
    waits for it within `patience`. (A hanging NCCL call cannot be left: torch then ends the
    process itself.)
    """
    if _num_started() == 1:
        yield World()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, size = next(rendezvous("env://", timeout=patience))
    # Started again on one machine, processes find the store as the dead ones left it, their
    # addresses included, and would wait for them (torch 2.13). Several machines do not count alike.
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(f"attempt {attempt}", store)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    world = World.current()
    try:
        yield world
        dist.barrier()  # nobody leaves while another still talks
    except RuntimeError as error:
        if not _is_loss(error):
            raise
        raise ProcessLostError(
            f"Process {world.rank} of {world.size} lost another one, which has ended or has not "
            f"answered for {patience.total_seconds():.0f} s. What that one said last tells why; "
            "the same command goes on from the last saved state."
        ) from error
    finally:
        dist.destroy_process_group()


def _is_loss(error: RuntimeError) -> bool:
    # gloo has no error class of its own, only the path of its source in the message.
    return isinstance(error, dist.DistError) or "/gloo/transport/" in str(error)


def _num_started() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def shard(root: nn.Module, model: PaliGemma, *, bfloat16: bool) -> None:
    """Cut the parameters of `root`, which holds `model`, among all processes, block by block.

    With `bfloat16` every process computes in it, from float32 shards: what master copies are in
    one process. Gradients are averages over the processes. The whole of a parameter stands in
    memory only while its block computes; call `root` itself, so that it can see to that. Frozen
    parameters are cut, too, whatever their dtype; buffers, as of a frozen NF4 base, are not.
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
    """Within, the methods of a cut model may be called without going through `root`.

    What belongs to no block stands whole in every process; blocks gather themselves when called.
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
    """All parameters in one piece on the first process's host memory; none on the others.

    One parameter at a time, so that no accelerator need hold them all.
    """
    weights = {}
    for name, parameter in module.named_parameters():
        whole = parameter.detach()
        if hasattr(whole, "full_tensor"):
            whole = whole.full_tensor()
        if world.is_first:
            weights[name] = whole.cpu()
    return weights
