"""The contract of a method, with methods of a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from afina.core.hosts.adapter import Activation, Adapter, DeltaWeight, Site, WeightTransform
from afina.core.hosts.host import Host
from afina.core.layers.recognise import base_weight
from afina.errors import ConfigError, NotMergeable, TargetError


def site(module: nn.Module | None = None, device: str = "cpu", dtype: torch.dtype = torch.bfloat16) -> Site:
    base = base_weight(nn.Linear(3, 2) if module is None else module)
    return Site(base, "a.b", dtype, torch.device(device))


class Shift(DeltaWeight):
    """ΔW is one number everywhere."""

    disk_names: ClassVar[Mapping[str, str]] = {"by": "shift.weight"}

    def __init__(self, at: Site, config: Any) -> None:
        super().__init__(at, config)
        self.by, self.fixed = at.full(0.5), at.constant(torch.ones(2))
        self.register_buffer("mask", torch.ones(3, device=at.device))

    def frozen(self) -> frozenset[str]:
        return frozenset({"fixed"})

    def delta(self, weight: Tensor) -> Tensor:
        return self.by.expand_as(weight)


class Twice(Activation):
    def forward(self, inner: Any, x: Any) -> Any:
        return 2 * inner(x)


def test_parameters_are_made_of_the_sites_dtype_on_its_device() -> None:
    at = site()
    torch.manual_seed(0)
    normal = at.normal(0.1, 200, 100)
    made = {"empty": at.empty(2, 3), "zeros": at.zeros(2, 3), "full": at.full(7.0, 2, 3), "normal": normal}
    assert all(p.dtype == torch.bfloat16 and p.requires_grad for p in made.values())
    assert [tuple(p.shape) for p in made.values()] == [(2, 3)] * 3 + [(200, 100)]
    assert not made["zeros"].any()
    assert (made["full"] == 7).all()
    assert normal.float().std().item() == pytest.approx(0.1, rel=0.05)
    assert normal.float().mean().item() == pytest.approx(0, abs=0.005)
    constant = at.constant(torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert (constant.dtype, constant.requires_grad, constant.tolist()) == (torch.bfloat16, False, [1.0, 2.0])
    there = site(device="meta")
    every = (there.empty(2), there.zeros(2), there.full(1.0, 2), there.normal(1.0, 2), there.constant(torch.ones(2)))
    assert all(p.is_meta for p in every)


def test_patterns_may_match_a_module_and_its_parameter() -> None:
    assert site().names == ("a.b",)
    whole = Site(site().base, "a.b", torch.float32, torch.device("cpu"), parameter="w")
    assert whole.names == ("a.b", "a.b.w")


def test_kind_of_layer_that_a_method_cannot_adapt_is_refused_by_name() -> None:
    class Convolved(Adapter):
        kinds = frozenset({"conv", "embedding"})

    with pytest.raises(TargetError, match=r"a\.b") as caught:
        Convolved(site(), None)
    assert "conv, embedding" in str(caught.value)
    assert "Linear" in str(caught.value)
    Convolved(site(nn.Conv1d(2, 2, 1)), None)


def test_method_without_a_merged_form_says_so() -> None:
    with pytest.raises(NotMergeable, match="Twice"):
        Twice(site(), None).merged(torch.ones(1), None)
    with pytest.raises(NotImplementedError):
        DeltaWeight(site(), None).delta(torch.ones(1))


def test_adapter_tells_what_trains_and_in_which_dtype() -> None:
    adapter = Shift(site(), None)
    assert adapter.trainable().keys() == {"by"}
    assert adapter.dtype == torch.bfloat16
    assert Adapter(site(), None).trainable() == {}


def test_state_goes_to_disk_and_back_under_the_names_there() -> None:
    adapter, other = Shift(site(), None), Shift(site(), None)
    with torch.no_grad():
        adapter.by.fill_(3)
        adapter.mask.fill_(4)
    state = adapter.disk_state(adapter.state_dict())
    assert {n: tuple(t.shape) for n, t in state.items()} == {"shift.weight": (), "fixed": (2,), "mask": (3,)}
    assert adapter.disk_shapes({}) == {"shift.weight": (), "fixed": (2,), "mask": (3,)}
    before = other.by
    other.load_disk_state(state)
    assert other.by is before
    assert other.by == 3
    assert (other.mask == 4).all()


def test_tensors_without_memory_are_replaced_and_keep_dtype_and_kind() -> None:
    adapter = Shift(site(device="meta"), None)
    given = {"by": torch.tensor(3.0), "fixed": torch.tensor([5.0, 6.0]), "mask": torch.tensor([1.0, 0, 1])}
    adapter.assign(given)
    assert not any(t.is_meta for t in adapter.state_dict().values())
    assert (adapter.by.dtype, adapter.by.requires_grad, adapter.fixed.requires_grad) == (torch.bfloat16, True, False)
    assert isinstance(adapter.fixed, nn.Parameter)
    assert adapter.fixed.tolist() == [5.0, 6.0]
    assert "mask" in adapter._buffers
    given["mask"].zero_()
    assert adapter.mask.tolist() == [1.0, 0, 1]  # a copy


def test_parameters_of_modules_in_an_adapter_are_filled_too() -> None:
    class Nested(Adapter):
        def __init__(self) -> None:
            super().__init__(site(), None)
            self.inside = nn.Linear(2, 1)

    adapter = Nested()
    adapter.assign({"inside.weight": torch.ones(1, 2), "inside.bias": torch.ones(1)})
    assert adapter.inside.weight.tolist() == [[1.0, 1.0]]
    assert adapter.inside.bias.tolist() == [1.0]


def test_plain_method_asks_for_nothing_special() -> None:
    adapter = Shift(site(), None)
    config = SimpleNamespace(to_dict=lambda: {"r": 2})
    assert adapter.penalty() is None
    assert adapter.tied(site()) is None
    assert adapter.reads_as_is(site().base, torch.ones(1)) is False
    assert Shift.build_shared(None, {}, torch.float32) is None
    assert Shift.find_inputs(None, (), {}) == {}
    assert Shift.disk_config(config) == {"r": 2}
    assert Twice.shares_batch
    assert not Twice.has_penalty
    assert not adapter.loaded_whole
    assert Adapter.with_attention_output


def test_variant_implements_the_configs_of_its_condition() -> None:
    class Method(Adapter):
        pass

    @Method.variant(lambda c: c > 1)
    class Large(Method):
        pass

    assert Method.for_config(1) is Method
    assert Method.for_config(2) is Large
    assert Adapter.variants == []
    assert Large.for_config(2) is Large  # has no variants of its own

    @Method.variant(lambda c: c > 2)
    class Larger(Method):
        pass

    with pytest.raises(ConfigError, match="Large, Larger"):
        Method.for_config(3)
    assert Method.for_config(2) is Large


def test_shared_parameters_belong_to_the_model_alone() -> None:
    adapter, held = Shift(site(), None), nn.Linear(2, 2)
    adapter.share(held)
    assert adapter.shared is held
    assert not dict(adapter.named_children())


def hosted(adapter: type[Adapter], module: nn.Module) -> tuple[Host, Any]:
    host = Host(module)
    made = adapter(Site(host.base, "x", torch.float32, torch.device("cpu")), None)
    host.add("a", made)
    host.set_active(("a",))
    return host, made


def test_added_weight_is_the_same_with_and_without_dropping_inputs() -> None:
    host, adapter = hosted(Shift, nn.Linear(3, 2))
    x = torch.ones(4, 3)
    expected = host.base_layer(x) + 0.5 * 3
    assert torch.allclose(host(x), expected)
    adapter.drop(0.0)
    assert adapter.dropout is None
    adapter.drop(0.999)
    assert torch.allclose(host(x), host.base_layer(x))  # the inputs of ΔW alone are dropped
    adapter.eval()
    assert torch.allclose(host(x), expected)
    assert adapter.merged(torch.zeros(1), None) == (0.5, None)


def test_layer_runs_once_with_the_added_weight_where_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    host, adapter = hosted(Shift, nn.Linear(3, 2))
    runs: list[Tensor] = []
    monkeypatch.setattr(type(host.base), "apply", lambda self, x, weight, bias: runs.append(weight) or x @ weight.T)
    host(torch.ones(4, 3))
    assert [torch.equal(weight, host.base_layer.weight + 0.5) for weight in runs] == [True]
    adapter.drop(0.5)
    host(torch.ones(4, 3))
    assert [torch.equal(weight, adapter.delta(weight)) for weight in runs[1:]] == [True]


def test_layer_whose_input_is_no_vector_is_served_without_dropping() -> None:
    host, adapter = hosted(Shift, nn.MultiheadAttention(4, 1, dropout=0.0))
    x = torch.randn(3, 1, 4)
    plain = host(x, x, x)[0]
    adapter.drop(0.9)
    assert torch.equal(host(x, x, x)[0], plain)


def test_indices_are_not_dropped() -> None:
    host, adapter = hosted(Shift, nn.Embedding(5, 3))
    adapter.drop(0.999)
    x = torch.tensor([[0, 4]])
    assert torch.allclose(host(x), host.base_layer(x) + 0.5)
    assert adapter.dropped(x) is x
    assert (adapter.dropped(torch.ones(50)) == 0).any()


def test_ready_kinds_serve_the_layers_that_they_can() -> None:
    weights = {"linear", "conv", "embedding", "attention", "experts", "parameter"}
    assert DeltaWeight.kinds == WeightTransform.kinds == weights
    assert Activation.kinds == {"linear", "conv", "embedding", "module"}
    taken: Mapping[str, Any] = Adapter.disk_names
    assert dict(taken) == {}
