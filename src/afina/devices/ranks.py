"""The processes that share one run: how many there are, which one this is, and what they tell each other.

They are started by `afina train --processes`, torchrun, accelerate or SLURM, and find each other by torch's variables
(`RANK`, `WORLD_SIZE`, `MASTER_ADDR`, ...). The first one (rank 0) claims folders, prints and writes.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from ..errors import AfinaError, RecipeError, StoppedError
from .found import Device

_T = TypeVar("_T")
LAUNCHER = "AFINA_LAUNCHER"
"""Process id of the launcher: when it is gone, its processes end."""
_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_NTASKS", "LOCAL_RANK": "SLURM_LOCALID"}
_FIRST_NODE = re.compile(r"([^\[,]+)(?:\[(\d+))?")
"""Of a list such as gpu[03-05,7]."""
LEFT_ALONE = 75
"""Exit code of a process that another one left alone."""
_GONE = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")
"""In what torch says when a process that is waited for has ended."""
MEETING = timedelta(minutes=3)
"""How long processes wait for one another at the beginning; their machines load libraries at different speeds."""
_PORTS = (20000, 10000)
"""SLURM names no port: this one, and the job's number within so many above it."""


class _Shared:
    """Whether this process is in a run that it shares with others. What it does outside of one it does alone, also
    where others were started with it."""

    now = False
    spread = False
    """Whether the model's weights are spread over the processes."""
    cut = False
    """Whether they stay in parts while the model runs."""


def started() -> int:
    """How many processes were started together, this one among them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this one claims folders, prints and writes."""
    return started() == 1 or _own_number() == 0


def size() -> int:
    """How many processes share the run; 1 for a run alone, and outside of runs."""
    return started() if _Shared.now else 1


def rank() -> int:
    """The number of this one among those that share the run, from 0 on."""
    return _own_number() if _Shared.now else 0


def spread() -> bool:
    """Whether the processes that share the run have a part of the model's weights each, so that all of them have to
    take part whenever it runs."""
    return _Shared.now and _Shared.spread


def cut() -> bool:
    """Whether those parts stay apart while the model runs (tensor parallel), so that all of them need every row."""
    return spread() and _Shared.cut


def sharers() -> int:
    """How many processes have rows of their own in a step."""
    return 1 if cut() else size()


def turns(count: int) -> range:
    """Of `count` pieces of work the numbers of those that this process does. All do equally many, because where the
    model is spread each needs the others: a number from `count` on stands for a piece that somebody else does."""
    each = sharers()
    return range(rank() if each > 1 else 0, -(-count // each) * each, each)


def spread_out(wanted: bool, *, cut: bool = False) -> None:
    """Say whether they have, and whether the parts stay apart while the model runs."""
    _Shared.spread, _Shared.cut = wanted, cut


def _own_number() -> int:
    return int(os.environ.get("RANK", "0"))


def take_over_slurm() -> None:
    """Say in torch's variables what `srun` says in its own, where nobody else said it."""
    environment = os.environ
    if "WORLD_SIZE" in environment or int(environment.get("SLURM_NTASKS", "1")) < 2:
        return
    if "SLURM_PROCID" not in environment or "SLURM_STEP_ID" not in environment:  # the batch script itself is no task
        return
    environment.update({ours: environment[theirs] for ours, theirs in _SLURM.items() if theirs in environment})
    node = _FIRST_NODE.match(environment.get("SLURM_STEP_NODELIST", ""))
    environment.setdefault("MASTER_ADDR", "".join(part or "" for part in node.groups()) if node else "127.0.0.1")
    first, span = _PORTS
    environment.setdefault("MASTER_PORT", str(first + int(environment.get("SLURM_JOB_ID", "0")) % span))


def _meet_all(device: Device) -> bool:
    """Make the group of all processes, unless somebody has; whether it was made.

    Raises:
        RecipeError: they cannot be met.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if dist.is_initialized():
        return False
    if (launcher := os.environ.get(LAUNCHER)) is not None:
        threading.Thread(target=_end_with, args=(int(launcher),), daemon=True).start()
    if device.kind == "cuda":
        import torch

        torch.cuda.set_device(torch.device(device.name))
    own, of = _own_number(), started()
    try:
        store, *_ = next(rendezvous("env://", own, of, timeout=MEETING))
        store.set(_here(own), "")
        store.wait([_here(number) for number in range(of)], MEETING)
        backend = "cpu:gloo,cuda:nccl" if device.kind == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=own, world_size=of)
    except (RuntimeError, ValueError) as error:  # torch's own errors of stores and groups are RuntimeErrors
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RecipeError("the processes cannot meet", where=f"process {own} of {of} at {address}",
                          got=str(error).splitlines()[0], fix="is the port taken, or were fewer started than said?",
                          ) from error  # fmt: skip
    return True


def _here(number: int) -> str:
    return f"afina/here/{number}"


def _end_with(launcher: int) -> None:
    """End in good order when the launcher is gone."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def joined(device: Device, fix: str = "go on with --resume") -> Iterator[None]:
    """Together with the other processes; nothing else for a run alone.

    Args:
        fix: what to do when one of them is gone.

    Raises:
        RecipeError: they cannot be met.
        StoppedError: one of them is gone.
    """
    import torch.distributed as dist

    if started() == 1:
        yield
        return
    made = _meet_all(device)
    _Shared.now = True
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, AfinaError) or not any(word in str(error) for word in _GONE):
            raise
        raise StoppedError("another process of the run is gone", fix=fix, exit_code=LEFT_ALONE) from error
    finally:
        _Shared.now = _Shared.spread = _Shared.cut = False
        if made:
            dist.destroy_process_group()


def meet() -> None:
    """Wait until all are here."""
    import torch.distributed as dist

    if size() > 1:
        dist.barrier()


def most(number: int) -> int:
    """The largest of the numbers that the processes have."""
    import torch
    import torch.distributed as dist

    if size() == 1:
        return number
    found = torch.tensor([number])
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def from_first(make: Callable[[], _T]) -> _T:
    """What `make` gives in the first process, in all of them; it is called there only.

    Raises:
        AfinaError: `make` raised it; in the others it is a `StoppedError`, because it is told already.
    """
    import torch.distributed as dist

    if size() == 1:
        return make()
    told: list[Any] = [None, None]
    raised: BaseException | None = None
    if is_first():
        try:
            told = [make(), None]
        except AfinaError as error:
            raised, told = error, [None, getattr(error, "exit_code", 2)]
    dist.broadcast_object_list(told, src=0)
    if raised is not None:
        raise raised
    if told[1] is not None:
        raise StoppedError(f"process {rank()} of {size()} ends: the first one could not go on", exit_code=told[1])
    return told[0]  # type: ignore[no-any-return]


def gathered(own: _T) -> list[_T]:
    """What each process has, in the order of their numbers."""
    import torch.distributed as dist

    if size() == 1:
        return [own]
    out: list[Any] = [None] * size()
    dist.all_gather_object(out, own)
    return out
