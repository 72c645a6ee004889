"""ReFT's layers and positions; its three forms are in the battery."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import afina

from ...core import tiny

IDS = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(2))


def first_block(model: Any) -> torch.Tensor:
    """What the first block gives."""
    seen: list[Any] = []
    inside = "base_model.model." if isinstance(model, afina.PeftModel) else ""
    block = model.get_submodule(f"{inside}model.layers.0")
    with torch.no_grad(), block.register_forward_hook(lambda module, args, out: seen.append(out)):
        model(input_ids=IDS)
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@pytest.mark.parametrize("variant", ["loreft", "noreft", "direft"])
def test_exactly_the_chosen_positions_are_edited(variant: Any) -> None:
    config = afina.ReftConfig(r=2, variant=variant, prefix_positions=2, suffix_positions=1)
    model = tiny.nudge(afina.get_peft_model(tiny.llama(), config)).eval()
    moved = (first_block(model) - first_block(tiny.llama())).abs().amax(-1) > 1e-4
    assert torch.equal(moved, torch.tensor([True, True, False, False, False, False, True]).expand(2, -1))


def test_only_the_chosen_layers_are_edited() -> None:
    model = tiny.nudge(afina.get_peft_model(tiny.llama(), afina.ReftConfig(r=2, layers=[1]))).eval()
    assert torch.equal(first_block(model), first_block(tiny.llama()))
    assert model.get_nb_trainable_parameters()[0] == 2 * 2 * 16 + 2
    with torch.no_grad():
        assert not torch.allclose(model(IDS).logits, tiny.llama()(IDS).logits)


def test_loreft_edits_within_an_orthonormal_subspace() -> None:
    model = tiny.nudge(afina.get_peft_model(tiny.llama(), afina.ReftConfig(r=3)))
    (adapter, *_) = (m for m in model.modules() if "reft_R" in m._parameters)
    rows = adapter.subspace().detach()
    assert torch.allclose(rows @ rows.T, torch.eye(3), atol=1e-5)
    edit = adapter.edit(torch.randn(5, 16)).detach()
    assert torch.allclose(edit @ rows.T @ rows, edit, atol=1e-5)


def test_a_second_edit_finds_the_same_blocks() -> None:
    model = tiny.nudge(afina.get_peft_model(tiny.llama(), afina.ReftConfig(r=2, layers=[0]))).eval()
    first = first_block(model)
    model.add_adapter("other", afina.ReftConfig(r=2))
    assert {n.split(".adapters.other")[0] for n in model.state_dict() if ".adapters.other" in n} == {
        f"base_model.model.model.layers.{i}" for i in range(2)
    }
    assert torch.equal(first_block(model), first)
