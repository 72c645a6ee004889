from __future__ import annotations

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from afina.plan.trace import KERNEL, Trace
from afina.plan.work import Product


def traced(run, *, step=1):
    trace = Trace()
    trace.step = step
    with FakeTensorMode(), trace:
        run(trace)
    return trace


def test_allocations_and_their_ends_stand_in_order():
    def run(trace):
        a = torch.empty(256)
        with trace.of("activations"):
            b = a + 1
        del a
        c = b.view(2, 128)  # no storage of its own
        del b, c

    trace = traced(run)
    assert [event.size for event in trace.events] == [1024, 1024, -1024, -1024]
    assert [trace.parts[event.key] for event in trace.events] == ["weights", "activations", "weights", "activations"]


def test_products_are_known_by_their_shapes_and_all_else_by_its_bytes():
    def run(trace):
        layer = nn.Linear(7, 11, bias=False)
        x = torch.empty(5, 7, requires_grad=True)
        layer(x).sum().backward()

    work = traced(run).works[1]
    assert work.products == {Product(torch.float32, 1, 5, 7, 11): 1, Product(torch.float32, 1, 5, 11, 7): 1,
                             Product(torch.float32, 1, 11, 5, 7): 1}  # fmt: skip
    assert work.flops == 3 * 2 * 5 * 7 * 11
    assert work.near > 4 * 5 * 11


def test_onednn_keeps_kernels_for_each_shape_once():
    def run(trace):
        a, b = torch.empty(64, 64, dtype=torch.bfloat16), torch.empty(64, 128, dtype=torch.bfloat16)
        for _ in range(3):
            a @ b
            b.T @ a

    trace = traced(run)
    kept = [event for event in trace.events if trace.parts[event.key] == "libraries"]
    assert [event.size for event in kept] == [KERNEL, KERNEL]


def test_a_mask_that_is_not_known_leaves_all_places_and_is_taken_to_hide_something():
    def run(trace):
        mask = torch.empty(3, 4) > 0
        assert mask.nonzero().shape == (12, 2)
        assert torch.empty(3, 4, 8)[mask].shape == (12, 8)
        assert torch.masked_select(torch.empty(3, 4), mask).shape == (12,)
        assert not mask.all()
        assert float(torch.ones(1)) == 1
        assert torch.equal(mask, mask)

    assert traced(run).events
