"""Adapters per row of a batch: what each row gives alone under its own adapter, every row of the table."""

from __future__ import annotations

import pytest
import torch

from afina.core.rows import BASE
from afina.errors import ConfigError

from .harness import adapted, cases, config, distance, nudge
from .kinds import KINDS, Kind
from .table import ATTENTIONS, Row


def two(row: Row, kind: Kind):
    """A toy model with two different adapters of one method, named default and b."""
    model = adapted(row, kind)
    model.add_adapter("b", config(row, kind))
    model.set_adapter("b")
    nudge(model, 2)
    model.set_adapter("default")
    return model


@cases("rows", kinds=set(KINDS) - set(ATTENTIONS))
def test_every_row_goes_through_its_own_adapter(row: Row, kind: Kind) -> None:
    model, inputs = two(row, kind), kind.inputs()
    count = inputs[0].shape[0]
    assert count >= 2
    names = [("b", "default", BASE, "b")[i % 4] for i in range(count)]
    with torch.no_grad():
        mixed = model(*inputs, **kind.extra, adapter_names=names)
        alone = {}
        for name in ("default", "b"):
            model.set_adapter(name)
            alone[name] = model(*inputs, **kind.extra)
        with model.disable_adapter():
            alone[BASE] = model(*inputs, **kind.extra)
        again = model(*inputs, **kind.extra)
    expected = torch.stack([alone[n][i] for i, n in enumerate(names)])
    assert distance(mixed, expected) < 1e-5
    assert distance(alone["b"], alone[BASE]) > 1e-4
    assert torch.equal(again, alone["b"])


@cases("rows", kinds=set(ATTENTIONS) - {"encoder_layer"})
def test_attention_says_that_rows_cannot_differ(row: Row, kind: Kind) -> None:
    model, inputs = two(row, kind), kind.inputs()
    count = inputs[0].shape[0]
    with pytest.raises(ConfigError, match="cannot serve several adapters in one batch"):
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
