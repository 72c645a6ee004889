"""Adapters per row of a batch: what each row gives alone under its own adapter, every row of the table."""

from __future__ import annotations

import contextlib

import pytest
import torch

from afina.core.hosts.batch_rows import BASE
from afina.errors import ConfigError

from .harness import adapted, cases, config, distance, nudge
from .kinds import KINDS, Kind
from .table import Row


def two(row: Row, kind: Kind):
    """A toy model with two different adapters of one method, named default and b."""
    model = adapted(row, kind)
    model.add_adapter("b", config(row, kind))
    model.set_adapter("b")
    nudge(model, 2)
    model.set_adapter("default")
    return model


def chosen(count: int) -> list[str]:
    """An adapter for every row."""
    assert count >= 2
    return [("b", "default", BASE, "b")[i % 4] for i in range(count)]


def row_of(values: tuple, i: int) -> tuple:
    return tuple(x[i : i + 1] for x in values)


@cases("rows", kinds=set(KINDS) - {"attention"})
def test_every_row_goes_through_its_own_adapter(row: Row, kind: Kind) -> None:
    model, inputs = two(row, kind), kind.inputs()
    names = chosen(inputs[0].shape[0])
    model.set_adapter("b")
    with torch.no_grad():
        before = model(*inputs, **kind.extra)
        mixed = model(*inputs, **kind.extra, adapter_names=names)
        again = model(*inputs, **kind.extra)
        alone = []
        for i, name in enumerate(names):
            own = {k: v[i : i + 1] for k, v in kind.extra.items()}
            model.set_adapter("b" if name == BASE else name)
            with model.disable_adapter() if name == BASE else contextlib.nullcontext():
                alone.append(model(*row_of(inputs, i), **own))
    assert distance(mixed, torch.cat(alone)) < 1e-5
    assert torch.equal(again, before)
    with torch.no_grad(), model.disable_adapter():
        assert distance(mixed[:1], model(*inputs, **kind.extra)[:1]) > 1e-4


@cases("rows", kinds={"attention"})
def test_attention_whose_model_takes_the_sequence_first_is_refused(row: Row, kind: Kind) -> None:
    model, inputs = two(row, kind), kind.inputs()
    count = inputs[0].shape[0]
    with pytest.raises(ConfigError, match="does not have the batch's rows"):
        model(*inputs, adapter_names=["b", "default", *["b"] * (count - 2)])


@cases("rows", kinds={"linear"})
def test_gradients_of_a_mixed_batch_are_those_of_its_rows(row: Row, kind: Kind) -> None:
    model, inputs = two(row, kind), kind.inputs()
    model.set_requires_grad(["default", "b"])
    count = inputs[0].shape[0]
    names = [("b", "default")[i % 2] for i in range(count)]
    model(*inputs, **kind.extra, adapter_names=names).square().sum().backward()
    mixed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for i, name in enumerate(names):
        model.set_adapter(name)
        model.set_requires_grad(["default", "b"])
        model(
            *(x[i : i + 1] for x in inputs), **{k: v[i : i + 1] for k, v in kind.extra.items()}
        ).square().sum().backward()
    alone = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert mixed.keys() == alone.keys()
    assert len(mixed) > 0
    for name, gradient in mixed.items():
        assert torch.allclose(gradient, alone[name], rtol=1e-4, atol=1e-5), name
