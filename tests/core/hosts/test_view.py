"""What layers and models answer to the reference's names of what is inside."""

from __future__ import annotations

import peft
import pytest
import torch
from torch import nn

import afina

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
