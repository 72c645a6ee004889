"""Mixed dtypes, copies, compilation and checkpointing: every row of the table."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import afina
from afina.core.hosts.host import hosts

from .harness import adapted, assert_same_bits, base_weights, bits, call, cases, cast, config, distance, nudge, run
from .kinds import Kind
from .table import Row


@cases("bfloat16")
def test_float32_adapter_on_a_bfloat16_base(row: Row, kind: Kind) -> None:
    model = afina.get_peft_model(kind.build().bfloat16(), config(row, kind)).eval()
    nudge(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    inputs = cast(kind.inputs(), torch.bfloat16)
    out = call(model, kind, inputs)
    base = kind.build().bfloat16()(*inputs)
    assert out.dtype == base.dtype
    out.float().square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and p.grad.any() for p in trained.values())


@cases("merge", "merged")
def test_bfloat16_merge_rounds_the_float32_merge_once(row: Row, kind: Kind) -> None:
    half = afina.get_peft_model(kind.build().bfloat16(), config(row, kind)).eval()
    full = afina.get_peft_model(kind.build().bfloat16().float(), config(row, kind)).eval()
    nudge(half)
    afina.set_peft_model_state_dict(full, afina.get_peft_model_state_dict(half))
    before = base_weights(half)
    half.merge_adapter()
    full.merge_adapter()
    for name, weight in base_weights(half).items():
        assert torch.equal(weight, base_weights(full)[name].bfloat16()), name
        assert weight.dtype == torch.bfloat16
    out, exact = run(half, kind, torch.bfloat16), run(full, kind)
    assert distance(out, exact) < 0.05  # bf16 has 8 bits, and the inputs and two layers are rounded
    half.unmerge_adapter()
    assert all(torch.equal(w, before[n]) for n, w in base_weights(half).items())


@cases("merge", "merged")
def test_merging_while_training_draws_nothing(row: Row, kind: Kind) -> None:
    made = config(row, kind)
    if kind.name != "parameter" and "experts" not in kind.name:  # whose inputs cannot be dropped
        for field in dataclasses.fields(made):
            if "dropout" in field.name and isinstance(field.default, float):
                setattr(made, field.name, 0.5)
    model = afina.get_peft_model(kind.build(), made)
    nudge(model)
    before = bits(model)
    model.eval().merge_adapter()
    wanted = bits(model)
    assert any(n not in before or not torch.equal(w, before[n]) for n, w in wanted.items()), "merging has no effect"
    model.unmerge_adapter()
    model.train().merge_adapter()
    assert_same_bits(bits(model), wanted)
    assert all(module.training for module in model.modules())


@cases("bfloat16")
def test_adapter_follows_the_base_without_autocast_adapter_dtype(row: Row, kind: Kind) -> None:
    model = afina.get_peft_model(kind.build().bfloat16(), config(row, kind), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    nudge(model)
    assert torch.isfinite(run(model, kind, torch.bfloat16)).all()


@cases("autocast")
def test_autocast_keeps_gradients_finite(row: Row, kind: Kind) -> None:
    model = adapted(row, kind)
    with torch.autocast("cpu", torch.bfloat16):
        out = call(model, kind, kind.inputs())
    out.float().square().sum().backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)
    assert distance(out.detach(), run(model, kind)) < 0.05  # bf16 products


@cases("copies")
@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_are_equal_and_independent(row: Row, kind: Kind, how: str) -> None:
    model = adapted(row, kind)
    out = run(model, kind)
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(run(twin, kind), out)
    nudge(twin, seed=8)
    assert not torch.equal(run(twin, kind), out)
    assert torch.equal(run(model, kind), out)
    if row.merges and not row.gap("merge", kind):
        moved = run(twin, kind)
        twin.merge_adapter()
        assert distance(run(twin, kind), moved) < 1e-5
        assert torch.equal(run(model, kind), out)
        assert not any(h.merged for _, h in hosts(model))


@cases("checkpointing")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(row: Row, kind: Kind, reentrant: bool) -> None:
    def gradients(through_checkpoint: bool) -> list[torch.Tensor]:
        model = adapted(row, kind).train()
        inputs = kind.inputs()
        if inputs[0].is_floating_point():
            inputs[0].requires_grad_(True)
        torch.manual_seed(4)  # dropout must draw the same numbers when it is run again

        def forward(*x: torch.Tensor) -> torch.Tensor:
            return call(model, kind, x)

        out = checkpoint(forward, *inputs, use_reentrant=reentrant) if through_checkpoint else forward(*inputs)
        out.square().sum().backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    if reentrant and not kind.inputs()[0].is_floating_point():
        with pytest.warns(UserWarning, match="None of the inputs have requires_grad"), pytest.raises(RuntimeError):
            gradients(True)  # torch's own limit: reentrant checkpointing needs an input with gradients
        return
    plain, again = gradients(False), gradients(True)
    assert all(g is not None for g in again)
    # Reentrant: the loss is of a forward without gradients, where torch folds products in another order.
    close = 1e-5 if reentrant else 0.0
    assert all(distance(a, b) <= close for a, b in zip(again, plain, strict=True))


AOT = pytest.param("aot_eager", marks=pytest.mark.whole("eager traces the same forward pass"))


@pytest.mark.parametrize("backend", ["eager", AOT])
@cases("compile", kinds={"linear"}, dear=True)
def test_compiles_without_a_graph_break(row: Row, kind: Kind, backend: str) -> None:
    torch._dynamo.reset()
    model = adapted(row, kind).train()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.manual_seed(0)
    expected = call(model, kind, kind.inputs())
    torch.manual_seed(0)
    out = call(compiled, kind, kind.inputs())
    assert distance(out.detach(), expected.detach()) < 1e-5 or "dropout" in row.name
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.set_adapter("default")
    with model.disable_adapter(), torch.no_grad():
        assert distance(call(compiled, kind, kind.inputs()), run(kind.frozen(), kind)) < 1e-5
