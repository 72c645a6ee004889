"""What decides before the layers of a model run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from afina.core.hosts.batch_rows import Rows
from afina.core.hosts.calls import Scope, current, entered, switched_off
from afina.core.hosts.routing import Place, Router, routers
from afina.core.hosts.walk import hold_shared
from afina.errors import ConfigError

from ..tiny import inputs, mlp


class Counter(Router):
    """Notes what it was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.name, self.calls = "r", []

    def route(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        self.notes["decision"] = len(self.calls)
        self.calls.append((model, args, dict(kwargs)))


class Fails(nn.Module):
    def forward(self, x: Any) -> Any:
        raise KeyError


@pytest.fixture
def routed() -> tuple[nn.Module, Counter]:
    model, router = mlp(), Counter()
    router.switch(model, active=True)
    return model, router


def test_plain_router_leaves_the_decision_to_others() -> None:
    router = Router()
    assert (router.name, router.active, router.enabled, router.handles) == ("", False, True, ())
    with pytest.raises(NotImplementedError):
        router.route(mlp(), (), {})
    assert Place("x").hub == {}


def test_router_decides_once_before_each_forward_pass(routed: Any) -> None:
    model, router = routed
    x = inputs()
    model(x)
    model(x)
    assert [(m, a[0], k) for m, a, k in router.calls] == [(model, x, {})] * 2
    assert current(router.scope) is None
    router.switch(model, enabled=True)  # hooks are there once
    model(x=x)
    assert router.calls[2:] == [(model, (), {"x": x})]


def test_router_is_still_where_it_is_inactive_switched_off_or_not_of_the_rows(routed: Any) -> None:
    model, router = routed
    router.switch(model, active=False)
    model(inputs())
    router.switch(model, active=True, enabled=False)
    model(inputs())
    router.switch(model, enabled=True)
    with switched_off(router.scope):
        model(inputs())
    with entered(router.scope, Rows(("other", "__base__"))):
        model(inputs())
    assert router.calls == []
    with entered(router.scope, Rows(("r", "other"))):
        model(inputs())
    with entered(router.scope):
        model(inputs())
    assert len(router.calls) == 2
    assert router.active
    router.stop()
    assert (router.handles, router.active, router.runs) == ((), False, False)
    router.active = True
    model(inputs())
    assert len(router.calls) == 2


def test_notes_belong_to_the_call_and_outlive_it_for_the_backward_pass(routed: Any) -> None:
    model, router = routed
    with pytest.raises(ConfigError, match="call the model"):
        router.notes
    with entered(router.scope) as call:
        model(inputs())
        assert router.notes == {"decision": 0}
        assert call.notes == {id(router): {"decision": 0}}
    out = model(inputs())
    (alive,) = router.scope.alive
    assert alive.notes == {id(router): {"decision": 1}}
    assert alive.span[0] < alive.span[1]
    del out, alive, call
    with torch.no_grad():
        model(inputs())
    assert list(router.scope.alive) == []


def test_call_that_a_router_opened_is_closed_when_the_model_fails() -> None:
    model, router = Fails(), Counter()
    router.switch(model, active=True)
    with pytest.raises(KeyError):
        model(inputs())
    assert len(router.calls) == 1
    assert current(router.scope) is None


def test_routers_are_found_among_what_layers_share() -> None:
    model, router = nn.Sequential(), Counter()
    assert routers(model) == {}
    hold_shared(model, "plain", nn.Linear(2, 2))
    hold_shared(model, "r", router)
    assert routers(model) == {"r": router}
    assert isinstance(router.scope, Scope)
