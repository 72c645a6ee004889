"""Recorded steps in several processes: their gradients meet as those of computed steps do, whoever has recorded."""

from __future__ import annotations

import contextlib
import gc

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from afina.kernels.speed import speed_up

from .test_replay import assert_same, batch, llama, replayed, trained

STEPS = 6


def run(recording, accumulated, unused):
    """One process's part of a run: its losses, its parameters at the end, how many passes were repeated, and why no
    more are recorded."""
    dist.init_process_group("gloo")
    try:
        return _run(dist.get_rank(), recording, accumulated, unused)
    finally:
        gc.collect()  # what holds the group would wait for it when it is gone
        dist.destroy_process_group()


def _run(me, recording, accumulated, unused):
    model, replays = replayed() if me in recording else (llama(), None)
    if replays is None:
        speed_up(model, keep_logits=False)
    if unused:  # parameters that no step uses
        for name in ("gate_proj", "up_proj", "down_proj"):
            model.get_base_model().model.layers[1].mlp.get_submodule(name).enable_adapters(False)
    shared = DistributedDataParallel(model, find_unused_parameters=unused)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer, losses = torch.optim.SGD(parameters, lr=0.05), []
    for number in range(STEPS):
        for part in range(accumulated):
            # Other rows in each process, and at the fourth step other shapes in one of them.
            data = batch(100 * me + 10 * number + part, tokens=20 if number == 3 and me else 24)
            with shared.no_sync() if part + 1 < accumulated else contextlib.nullcontext():
                loss = shared(**data, use_cache=False).loss
                loss.backward()
        losses.append(float(loss.detach()))
        del loss
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found = torch.cat([p.detach().flatten() for p in parameters]).tolist()
    return losses, found, 0 if replays is None else replays.machine.repeats, "" if replays is None else replays.off


@pytest.mark.gpu
def test_beside_nccl_a_run_of_recorded_steps_is_the_run():
    """One process: what is recorded holds nothing of what brings gradients together."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        found = []
        for recorded in (False, True):
            model, replays = replayed("cuda") if recorded else (llama("cuda"), None)
            shared = DistributedDataParallel(model)
            found.append(trained(shared, [batch(n, "cuda") for n in range(5)], 2))
            del shared
        assert (replays.off, replays.machine.records) == ("", 2)
        assert_same(found[1], found[0], 1e-4)
    finally:
        gc.collect()
        dist.destroy_process_group()


@pytest.mark.whole
def test_gradients_meet_as_those_of_computed_steps(together):
    for accumulated, unused in ((1, False), (2, True)):
        plain = together(run, (), accumulated, unused)
        assert not [r for r in plain if isinstance(r, Exception)], plain
        start = torch.cat([p.detach().flatten() for p in llama().parameters() if p.requires_grad])
        for recording in ((0, 1), (1,)):
            found = together(run, recording, accumulated, unused)
            assert not [r for r in found if isinstance(r, Exception)], found
            for me, ((losses, end, repeats, off), (expected, other, _, _)) in enumerate(zip(found, plain, strict=True)):
                assert (repeats > 2, off) == (me in recording, "")
                torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(torch.tensor(end), torch.tensor(other), rtol=1e-4, atol=1e-6)
            assert found[0][1] == found[1][1]  # the processes have the same model still
            assert found[0][0] != found[1][0]  # of other rows
            assert (torch.tensor(found[0][1]) - start).norm() > 1e-2
