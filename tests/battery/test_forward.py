"""Starts, gradients, switching off, merging, stacking: every row of the table on every kind of layer that it lists."""

from __future__ import annotations

import pytest
import torch

import afina
from afina.core.hosts.host import hosts
from afina.errors import AfinaError, ConfigError, NotMergeable

from .harness import adapted, assert_same_bits, base_weights, bits, call, cases, config, distance, nudge, run, stacked
from .kinds import Kind
from .table import HIDDEN, REFUSED, ROWS, Row

TOLERANCE = 2e-6
"""forward against merged in float32: a few roundings of two matrix products."""


@cases("start")
def test_start_equals_base_where_the_paper_says_so(row: Row, kind: Kind) -> None:
    started, base = run(adapted(row, kind, nudged=False), kind), run(kind.build(), kind)
    if row.starts_at_base:
        assert distance(started, base) < 1e-6
    else:
        assert distance(started, base) > 1e-3


@cases("effect")
def test_nudged_adapter_changes_the_output(row: Row, kind: Kind) -> None:
    assert distance(run(adapted(row, kind), kind), run(kind.build(), kind)) > 1e-3


@cases("gradients")
def test_gradients_reach_exactly_the_adapter(row: Row, kind: Kind) -> None:
    model = adapted(row, kind)
    call(model, kind, kind.inputs()).square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    slots = ("adapters", "biases", "modules_to_save", "shared")
    mine = {n for n, _ in model.named_parameters() if any(f".{slot}.default" in n for slot in slots)}
    frozen = {n for _, h in hosts(model) if (a := h.adapter("default")) for n in a.frozen()}
    assert trained
    assert trained == {n for n in mine if n.rpartition(".")[2] not in frozen}
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@cases("count")
def test_trainable_parameters_follow_the_formula(row: Row, kind: Kind) -> None:
    assert adapted(row, kind, nudged=False).get_nb_trainable_parameters()[0] == row.count(kind)


@cases("disable")
def test_disabled_is_the_bases_bits(row: Row, kind: Kind) -> None:
    base, model = run(kind.frozen(), kind), adapted(row, kind)
    with model.disable_adapter():
        assert torch.equal(run(model, kind), base)
    assert not torch.equal(run(model, kind), base)


@cases("merge")
def test_disabled_is_the_bases_bits_when_merged(row: Row, kind: Kind) -> None:
    base, model = run(kind.frozen(), kind), adapted(row, kind)
    if not row.merges:
        with pytest.raises(NotMergeable):
            model.merge_adapter()
        return
    model.merge_adapter()
    merged = run(model, kind)
    with model.disable_adapter():
        assert torch.equal(run(model, kind), base)
    assert torch.equal(run(model, kind), merged)


@cases("merge")
def test_forward_equals_merged(row: Row, kind: Kind) -> None:
    model = adapted(row, kind)
    before = run(model, kind)
    if not row.merges:
        with pytest.raises(NotMergeable):
            model.merge_and_unload()
        assert torch.equal(run(model, kind), before)
        return
    model.merge_adapter()
    assert distance(run(model, kind), before) < TOLERANCE
    model.unmerge_adapter()
    plain = model.merge_and_unload()
    assert not list(hosts(plain))
    assert {type(m) for m in plain.modules()} == {type(m) for m in kind.build().modules()}
    assert distance(run(plain, kind), before) < TOLERANCE


@cases("merge", "merged", "merge_carries")
def test_merged_weights_really_carry_the_adapter(row: Row, kind: Kind) -> None:
    model = adapted(row, kind)
    before = base_weights(model)
    model.merge_adapter()
    changed = [n for n, w in base_weights(model).items() if not torch.equal(w, before[n])]
    assert len(changed) >= len(kind.layers)


@cases("merge", "merged")
def test_unmerge_restores_base_bits(row: Row, kind: Kind) -> None:
    pristine, model = bits(kind.build()), adapted(row, kind)
    whole, out = bits(model), run(model, kind)
    for _ in range(3):
        model.merge_adapter()
        model.unmerge_adapter()
    assert_same_bits(bits(model), whole)
    assert torch.equal(run(model, kind), out)
    assert_same_bits(bits(model.unload()), pristine)


@cases("merge")
def test_refused_merge_changes_nothing(row: Row, kind: Kind) -> None:
    model = adapted(row, kind)
    first = row.name in ("lora-trained-head", "monteclora")  # whose last parameters are not merged
    adapter = [p for p in model.parameters() if p.requires_grad][0 if first else -1]
    with torch.no_grad():
        kept = adapter.clone()
        adapter.view(-1)[0] = float("nan")
    before = base_weights(model)
    with pytest.raises(AfinaError):
        model.merge_adapter()
    assert_same_bits(base_weights(model), before)
    with torch.no_grad():
        adapter.copy_(kept)
    assert torch.isfinite(run(model, kind)).all()


def partner(row: Row, kind: Kind) -> Row | None:
    """A mergeable row of another method or variant for the same kind."""
    fits = [r for r in ROWS if kind.name in r.kinds and r.merges and not r.gap("merge", kind)]
    order = ["dora", "lora"] if row.name != "dora" else ["lora"]
    found = [r for name in order for r in fits if r.name == name and r.name != row.name]
    return next((r for r in [*found, *fits] if r.name != row.name), None)


@cases("merge", "merged")
@pytest.mark.parametrize("depth", ["twice", "thrice", "mixed", "mixed_last"])
def test_stacked_forward_equals_merged(row: Row, kind: Kind, depth: str) -> None:
    other = partner(row, kind)
    assert other is not None
    rows = {"twice": [row] * 2, "thrice": [row] * 3, "mixed": [row, other, row], "mixed_last": [other, row]}[depth]
    if row.gap("stacked_counts", kind) == HIDDEN and depth != "mixed_last":
        with pytest.raises(ConfigError, match="only one can be active"):
            stacked(rows, kind)
        return
    model = stacked(rows, kind)
    pristine = bits(kind.build())
    before = run(model, kind)
    model.merge_adapter()
    assert distance(run(model, kind), before) < 2 * TOLERANCE
    model.unmerge_adapter()
    assert torch.equal(run(model, kind), before)
    assert_same_bits(bits(model.unload()), pristine)


@cases("stack", "stacked_counts")
def test_every_stacked_adapter_counts(row: Row, kind: Kind) -> None:
    model = stacked([row, row], kind)
    both = run(model, kind)
    for name in ("a", "b"):
        model.set_adapter(name)
        assert distance(run(model, kind), both) > 1e-4, name


@cases("names")
def test_two_names_switch_and_delete_without_touching_each_other(row: Row, kind: Kind) -> None:
    model = adapted(row, kind)
    first = run(model, kind)
    model.add_adapter("other", config(row, kind))
    assert torch.equal(run(model, kind), first)
    model.set_adapter("other")
    nudge(model, seed=5)
    second = run(model, kind)
    assert distance(second, first) > 1e-3
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert all(".other" in n for n in trained)
    model.set_adapter("default")
    assert torch.equal(run(model, kind), first)
    model.delete_adapter("default")
    assert model.active_adapters == ["other"]
    assert torch.equal(run(model, kind), second)
    assert not [n for n in model.state_dict() if ".default" in n]
    model.delete_adapter("other")
    assert not list(hosts(model))
    assert_same_bits(bits(model.get_base_model()), bits(kind.build()))


@pytest.mark.parametrize(("row", "kind"), [pytest.param(r, k, id=f"{r}-{k}") for r, k in REFUSED])
def test_other_kinds_are_refused_and_left_alone(row: Row, kind: Kind) -> None:
    base = kind.build()
    before = bits(base)
    with pytest.raises(AfinaError) as caught:
        afina.get_peft_model(base, config(row, kind))
    assert len(str(caught.value).splitlines()) <= 4
    assert not list(hosts(base))
    assert_same_bits(bits(base), before)
    assert all(p.requires_grad for p in base.parameters())
