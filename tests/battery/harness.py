"""What the battery's checks share: building, nudging, comparing."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afina
from afina.core.hosts.host import Host, hosts

from .kinds import KINDS, Kind
from .table import CASES, ROWS, Row

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")

Case = tuple[Row, Kind]


Test = Callable[..., None]


VARIANT = pytest.mark.whole("the plain row of its method passes the same check")


def cases(*checks: str, kinds: Collection[str] = tuple(KINDS), dear: bool = False) -> Callable[[Test], Test]:
    """Parametrise over every row and kind (of `kinds`) to which a check applies; the others show their reason.

    A dear test is made with one row of each method, unless everything is.
    """
    plain = {row.method: row for row in reversed(ROWS)}

    def parameter(row: Row, kind: Kind) -> Any:
        gap = next((g for g in (row.gap(check, kind) for check in checks) if g), None)
        marks = [pytest.mark.skip(reason=gap)] if gap else [VARIANT] if dear and plain[row.method] != row else []
        return pytest.param(row, kind, id=f"{row}-{kind}", marks=marks)

    chosen = [parameter(*case) for case in CASES if case[1].name in kinds]
    return product("battery", ("row", "kind"), chosen)


def product(name: str, parameters: tuple[str, ...], chosen: list[Any]) -> Callable[[Test], Test]:
    """Parametrise a test that is part of a product: see tests/selection.py."""
    return lambda test: pytest.mark.product(name)(pytest.mark.parametrize(parameters, chosen)(test))


def config(row: Row, kind: Kind) -> Any:
    """A fresh config of a row for a toy model."""
    return getattr(afina, row.config)(**row.arguments(kind))


def oracle_config(row: Row, kind: Kind) -> Any:
    """The reference's config for the same."""
    assert row.oracle is not None
    return getattr(REFERENCE, row.oracle)(**row.arguments(kind), **row.oracle_options)


def adapted(row: Row, kind: Kind, *, nudged: bool = True, seed: int = 1) -> Any:
    """A toy model with one adapter, in eval mode; `nudged` away from its start."""
    model = afina.get_peft_model(kind.build(), config(row, kind))
    if nudged:
        nudge(model, seed)
    return model.eval()


def stacked(rows: list[Row], kind: Kind) -> Any:
    """A toy model with one nudged adapter for each row, all active in that order, named a, b, c."""
    names = ["a", "b", "c"][: len(rows)]
    model = afina.get_peft_model(kind.build(), config(rows[0], kind), adapter_name="a")
    for name, row in zip(names[1:], rows[1:], strict=True):
        model.add_adapter(name, config(row, kind))
    model.set_adapter(names)
    nudge(model)
    return model.eval()


def nudge(model: nn.Module, seed: int = 1) -> None:
    """Move every trainable parameter by a random amount that depends on its place alone."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def run(model: nn.Module, kind: Kind, dtype: torch.dtype | None = None) -> Tensor:
    """The model's output on the kind's inputs, without gradients."""
    with torch.no_grad():
        return call(model, kind, cast(kind.inputs(), dtype))


def call(model: nn.Module, kind: Kind, inputs: tuple[Any, ...]) -> Tensor:
    """The model's output; one with adapters also gets what the method takes besides the model's own inputs."""
    plain = getattr(model, "_orig_mod", model)
    if not isinstance(plain, (afina.PeftModel, REFERENCE.PeftModel)):
        return model(*inputs)
    if "task_ids" in kind.extra and isinstance(plain, REFERENCE.PeftModel):
        model = plain.base_model  # the reference hands them on only in its classes for language models
    return model(*inputs, **kind.extra)


def cast(inputs: tuple[Any, ...], dtype: torch.dtype | None) -> tuple[Any, ...]:
    """Floating inputs in another dtype."""
    return tuple(x.to(dtype) if dtype is not None and x.is_floating_point() else x for x in inputs)


def distance(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|."""
    return float((a.double() - b.double()).abs().max() / b.double().abs().max())


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of a model's whole state."""
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def assert_same_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Same names, dtypes and bits."""
    assert sorted(a) == sorted(b)
    for name, tensor in a.items():
        assert tensor.dtype == b[name].dtype, name
        assert torch.equal(tensor, b[name]), name


def base_of(host: Host) -> Tensor:
    """The weight that a host's layer has now; of a module that is no layer, all its parameters in a row."""
    module = host.base.module
    if host.base.kind == "module" and not isinstance(getattr(module, "weight", None), Tensor):
        return torch.cat([p.detach().flatten() for p in module.parameters()])
    return host.base.weight.detach().clone()


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The present base weight of every host."""
    return {name: base_of(host) for name, host in hosts(model) if host.base_slot == "base_layer"}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the warnings of the reference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def independent(model: nn.Module) -> nn.Module:
    """A deep copy."""
    return copy.deepcopy(model)
