"""Whole models under the compiler: one graph for every way in which adapters run, compiled once, with fewer operations
than the reference's."""

from __future__ import annotations

import collections

import peft
import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend

import afina
from afina.kernels.loss import linear_cross_entropy
from afina.kernels.updates.siblings import join

X = torch.linspace(-2, 2, 2 * 3 * 16).view(2, 3, 16).sin()
LORA = {"r": 8, "target_modules": "all-linear", "init_lora_weights": False}
VIEWS = ("view", "t.default", "transpose", "permute", "unsqueeze", "squeeze", "expand", "slice", "detach", "alias",
         "split", "getitem", "select")  # fmt: skip


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


@pytest.fixture(autouse=True)
def _afresh():
    torch._dynamo.reset()


def adapted(dtype=torch.bfloat16, **options):
    torch.manual_seed(0)
    fields = {**LORA, "target_modules": ["gate", "up", "down"], **options}
    return afina.get_peft_model(Part().to(dtype), afina.LoraConfig(**fields)).train()


def joined():
    model = adapted()
    assert join(model.get_base_model(), lambda: model(X.bfloat16())) == 1
    return model


def several():
    model = adapted()
    model.add_adapter("b", afina.LoraConfig(**{**LORA, "r": 4, "target_modules": ["gate", "down"]}))
    model.set_adapter(["default", "b"])
    return model


def by_rows():
    model = several()
    model.set_adapter("default")
    return model, {"adapter_names": ["default", "b"]}


def step(model, run, **inputs):
    model.zero_grad()
    out = run(X.to(model.gate.weight.dtype), **inputs)
    out.float().square().sum().backward()
    return [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


WHOLE = pytest.mark.whole("the three others go the same way through the layers")


@pytest.mark.parametrize("make", [
    pytest.param(adapted, id="lora"),
    pytest.param(joined, id="read the same input"),
    pytest.param(several, id="several"),
    pytest.param(by_rows, id="by rows", marks=WHOLE),
    pytest.param(lambda: adapted(torch.float32), id="float32", marks=WHOLE),
    pytest.param(lambda: adapted(lora_dropout=1e-9), id="dropout", marks=WHOLE),
    pytest.param(lambda: adapted(use_dora=True), id="dora", marks=WHOLE),
    pytest.param(lambda: adapted(use_rslora=True, init_lora_weights="pissa"), id="pissa", marks=WHOLE),
])  # fmt: skip
def test_a_step_is_one_graph_compiled_once_with_the_plain_steps_numbers(make):
    made = make()
    model, inputs = made if isinstance(made, tuple) else (made, {})
    counted = CompileCounterWithBackend("eager")
    run = torch.compile(model, backend=counted, fullgraph=True)
    first = step(model, run, **inputs)
    step(model, run, **inputs)
    assert counted.frame_count == 1
    plain = step(model, model, **inputs)
    assert len(first) == len(plain) > 6
    for a, b in zip(first, plain, strict=True):
        assert float((a - b).norm()) <= 0.03 * float(b.norm())  # some roundings in bfloat16


@pytest.mark.parametrize("way", ["model", "forward"])
def test_both_ways_to_compile_a_model_compile_it_once(way):
    model, counted = adapted(), CompileCounterWithBackend("eager")
    run = torch.compile(model, backend=counted)
    if way == "forward":
        model.forward, run = torch.compile(model.forward, backend=counted), model
    for _ in range(2):
        step(model, run)
    assert counted.frame_count == 1


def test_compiled_layers_are_not_taken_for_layers_that_are_never_called():
    model = adapted()
    part = model.get_base_model()
    part.forward = torch.compile(part.forward, backend="eager")
    assert len(step(model, model)) > 6


def test_the_loss_is_one_break():
    weight, targets = torch.ones(9, 16), torch.tensor([1, -100, 3])
    found = torch._dynamo.explain(lambda h: linear_cross_entropy(2 * h, weight, targets) + 1)(X[0])
    assert (found.graph_count, found.graph_break_count) == (2, 1)


def operations(model):
    """What is run for a step, forward and backward, without views."""
    found = collections.Counter()

    def count(graph, _):
        found.update(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        return make_boxed_func(graph)

    step(model, torch.compile(model, backend=aot_autograd(fw_compiler=count, bw_compiler=count), fullgraph=True))
    assert not [name for name in found if name.startswith("afina")]
    return sum(n for name, n in found.items() if not any(view in name for view in VIEWS))


def test_the_compiler_is_given_fewer_operations_than_the_references():
    torch.manual_seed(0)
    config = peft.LoraConfig(**{**LORA, "target_modules": ["gate", "up", "down"]})
    theirs = peft.get_peft_model(Part().bfloat16(), config).train()
    assert operations(joined()) < operations(adapted()) < operations(theirs)
