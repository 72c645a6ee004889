"""What layers and models answer to the reference's names of what is inside."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.adapter import Adapter, Site
from afina.core.hosts.calls import Call
from afina.core.hosts.host import Host
from afina.core.hosts.view import View

SHARED = {
    "VeraConfig": ("vera_A", "vera_B"),
    "PveraConfig": ("pvera_A", "pvera_B"),
    "RandLoraConfig": ("randlora_A", "randlora_B"),
    "VBLoRAConfig": ("vblora_vector_bank",),
    "UniLoraConfig": ("unilora_theta_d",),
    "TinyLoraConfig": ("tinylora_v",),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.b(self.a(x))


def shapes(held):
    """Of one tensor, or of all in a module."""
    tensors = [held] if isinstance(held, torch.Tensor) else list(held.state_dict().values())
    return sorted(tuple(t.shape) for t in tensors)


@pytest.mark.parametrize("config", SHARED)
def test_what_all_layers_share_is_asked_for_as_in_the_reference(config):
    options = {"vector_length": 4, "num_vectors": 6} if config == "VBLoRAConfig" else {}
    options |= {"r": 2} if config in ("TinyLoraConfig", "UniLoraConfig") else {}
    ours, theirs = (
        library.get_peft_model(Net(), getattr(library, config)(target_modules=["a", "b"], **options))
        for library in (afina, peft)
    )
    for name in SHARED[config]:
        assert list(getattr(ours, name)) == list(getattr(theirs, name)) == ["default"]
        held = getattr(ours.base_model, name)["default"]
        assert shapes(held) == shapes(getattr(theirs.base_model, name)["default"])
        assert getattr(ours.a, name)["default"] is held
    with pytest.raises(AttributeError):
        getattr(ours.base_model, SHARED[config][0] + "x")


def test_a_module_of_the_users_model_is_found_before_what_is_shared():
    net = Net()
    net.vera_A = nn.Identity()
    model = afina.get_peft_model(net, afina.VeraConfig(target_modules=["a"]))
    assert model.base_model.vera_A is net.vera_A


def test_weight_of_a_trained_copy_is_the_copys_while_it_is_active():
    values = []
    for library in (afina, peft):
        model = library.get_peft_model(Net(), library.LoraConfig(target_modules=["a"], modules_to_save=["b"]))
        with torch.no_grad():
            model.base_model.model.b.modules_to_save["default"].weight.fill_(3)
        inside, wrapped = model.base_model.model.b, []
        wrapped.append(inside.weight)
        with model.disable_adapter():
            wrapped.append(inside.weight)
        wrapped.append(inside.weight)
        values.append(wrapped)
    for ours, theirs in zip(*values, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(values[0][0], values[0][1])


class Noted(Adapter):
    """Adds a number to weight, bias and output; remembers what it was called with."""

    def __init__(self, host, number, as_is=False):
        super().__init__(Site(host.base, "x", torch.float64, torch.device("cpu")), None)
        self.number, self.as_is, self.seen = nn.Parameter(torch.tensor(number, dtype=torch.float64)), as_is, []

    def reads_as_is(self, base, x):
        return self.as_is

    def forward(self, inner, x):
        self.seen.append((inner, x))
        return inner(x) * self.number

    def merged(self, weight, bias):
        return weight + self.number, None if bias is None else bias * self.number


def hosted(*numbers, layer=None, as_is=False):
    host = Host(nn.Linear(3, 2) if layer is None else layer)
    for i, number in enumerate(numbers):
        host.add(f"a{i}", Noted(host, number, as_is))
    host.set_active(tuple(f"a{i}" for i in range(len(numbers))))
    return host


def test_last_adapter_runs_first_on_the_layer_as_the_earlier_ones_left_it():
    host, x = hosted(2.0, 5.0), torch.ones(4, 3)
    out = host(x)
    assert torch.allclose(out, host.base_layer(x) * 10)
    assert out.dtype == torch.float32
    (first,), (last,) = (host.adapter(n).seen for n in ("a0", "a1"))
    assert (last[0].stack, first[0].stack) == ((host.adapter("a0"),), ())
    assert not last[0].is_base
    assert first[0].is_base
    assert first[1].dtype == last[1].dtype == torch.float64


def test_base_layer_gets_its_own_input_back_and_not_a_copy_of_the_copy():
    host, x = hosted(2.0), torch.ones(4, 3)
    given = []
    host.base_layer.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    host(x)
    assert given[0] is x


@pytest.mark.parametrize(("x", "expected"), [
    (torch.ones(4, 3), torch.float64), (torch.ones(4, 3, dtype=torch.float64), torch.float64),
])  # fmt: skip
def test_input_is_cast_for_adapters_that_do_not_take_it_as_it_is(x, expected):
    plain, as_is = hosted(2.0), hosted(2.0, as_is=True)
    as_is.base_layer.to(x.dtype)
    plain.base_layer.to(x.dtype)
    for host, dtype in ((plain, expected), (as_is, x.dtype)):
        host(x)
        assert host.adapter("a0").seen[0][1].dtype == dtype


def test_indices_are_not_cast():
    class Table(Noted):
        kinds = frozenset({"embedding"})

    host = Host(nn.Embedding(5, 3))
    host.add("a", Table(host, 2.0))
    host.set_active(("a",))
    x = torch.tensor([[0, 4]])
    out = host(x)
    assert host.adapter("a").seen[0][1] is x
    assert torch.allclose(out, host.base_layer(x) * 2)
    assert out.dtype == torch.float32


def test_weights_so_far_are_in_the_adapters_dtype_with_the_trained_bias_in_place():
    host = hosted(2.0, 5.0)
    weight, bias = View(host, host.stack, None).params()
    assert torch.allclose(weight, host.base_layer.weight.double() + 7)
    assert torch.allclose(bias, host.base_layer.bias.double() * 10)
    assert weight.dtype == bias.dtype == torch.float64
    own = nn.Parameter(torch.ones(2))
    assert View(host, host.stack[:1], None, bias=own).params()[1].tolist() == [2.0, 2.0]
    assert View(hosted(layer=nn.Linear(3, 2, bias=False)), (), None).params()[1] is None


def test_trained_bias_stands_in_for_the_layers_in_its_dtype():
    host, x = hosted(), torch.ones(4, 3)
    own = nn.Parameter(torch.full((2,), 7.0, dtype=torch.float64))
    view = View(host, (), x, bias=own)
    assert not view.is_base
    out = view(x)
    assert out.dtype == torch.float32
    assert torch.allclose(out, x @ host.base_layer.weight.T + 7)


def test_output_that_is_computed_elsewhere_is_taken_for_the_own_input_alone():
    host, x = hosted(2.0), torch.ones(4, 3)
    elsewhere = torch.full((4, 2), 3.0)
    view = View(host, host.stack, x, whole=lambda: elsewhere)
    assert torch.equal(view(x), elsewhere * 2)
    assert torch.equal(View(host, (), x, whole=lambda: elsewhere)(x), elsewhere)
    assert not View(host, (), x, whole=lambda: elsewhere).is_base
    other = torch.zeros(4, 3)
    assert torch.equal(View(host, (), x, whole=lambda: elsewhere)(other), host.base_layer(other))
    assert torch.equal(View(host, (), x)(other.double()), host.base_layer(other))


def test_layer_runs_as_it_was_called():
    def module(*args, **kwargs):
        return args, kwargs

    host = hosted()
    assert View(host, (), None, (2,), {"k": 3}).run(module, 1) == ((1, 2), {"k": 3})
    assert View(host, (), None, (), {"k": 3}, keyword="x").run(module, 1) == ((), {"x": 1, "k": 3})


def test_adapter_is_given_what_the_call_holds_for_it():
    host = hosted(2.0, 5.0)
    first, last = host.stack
    assert View(host, host.stack, None).given(last) == {}
    assert View(host, host.stack, None, call=Call(host.scope)).given(last) == {}
    call = Call(host.scope, inputs={"a1": {"task_ids": 3}})
    view = View(host, host.stack, None, call=call)
    assert view.given(last) == {"task_ids": 3}
    assert view.given(first) == {}
