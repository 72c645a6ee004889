"""Which weights sparse fine-tuning chooses, and what it stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import afina
from afina.errors import ConfigError

from ...core import tiny

IDS = torch.randint(3, 30, (3, 7), generator=torch.Generator().manual_seed(2))
NAME = "model.layers.1.mlp.down_proj"
DENSITY = 0.05


def chosen(model: Any) -> Tensor:
    """The indices of one layer."""
    return model.get_submodule(f"base_model.model.{NAME}").adapter("default").sparse_indices


def largest(scores: Tensor) -> Tensor:
    return scores.flatten().topk(round(DENSITY * scores.numel())).indices.sort().values


def batches(model: Any) -> None:
    """Two calibration batches."""
    for ids in (IDS, IDS.flip(1)):
        model(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize(("selection", "power"), [("gradient", 1), ("fisher", 2)])
def test_scores_are_summed_over_the_calibration_batches(selection: Any, power: int) -> None:
    base, twin = tiny.llama(), tiny.llama().requires_grad_(True)
    config = afina.SparseConfig(selection=selection, density=DENSITY)
    before = tiny.bits(base)
    afina.preprocess_sparse(base, config, lambda: batches(base))
    assert tiny.same_bits(tiny.bits(base), before)
    assert all(p.grad is None and p.requires_grad for p in base.parameters())
    scores = torch.zeros_like(twin.get_submodule(NAME).weight)
    for ids in (IDS, IDS.flip(1)):
        twin.zero_grad()
        twin(input_ids=ids, labels=ids).loss.backward()
        scores += twin.get_submodule(NAME).weight.grad.abs() ** power
    model = afina.get_peft_model(base, config)
    assert torch.equal(chosen(model), largest(scores))
    assert not torch.equal(chosen(model), largest(twin.get_submodule(NAME).weight.abs()))


def test_magnitude_chooses_the_largest_weights_and_a_seed_chooses_random_ones() -> None:
    def indices(**options: Any) -> Tensor:
        return chosen(afina.get_peft_model(tiny.llama(), afina.SparseConfig(density=DENSITY, **options)))

    weight = tiny.llama().get_submodule(NAME).weight
    assert torch.equal(indices(selection="magnitude"), largest(weight.abs()))
    first, again, other = (indices(selection="random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(set(other.tolist())) == len(other) == round(DENSITY * weight.numel())


def test_indices_and_values_are_stored_and_nothing_outside_the_mask_changes(tmp_path: Path) -> None:
    base = tiny.llama()
    config = afina.SparseConfig(selection="fisher", density=DENSITY)
    afina.preprocess_sparse(base, config, lambda: batches(base))
    model = tiny.nudge(afina.get_peft_model(base, config)).eval()
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert {n.rpartition(".")[2] for n in held} == {"sparse_indices", "sparse_values"}
    weight = tiny.llama().get_submodule(NAME).weight
    assert held[f"base_model.model.{NAME}.sparse_values"].numel() == round(DENSITY * weight.numel())
    loaded = afina.PeftModel.from_pretrained(tiny.llama(), tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    merged = loaded.merge_and_unload().get_submodule(NAME).weight
    changed = (merged != weight).flatten().nonzero().flatten()
    assert torch.equal(changed, held[f"base_model.model.{NAME}.sparse_indices"])


@pytest.mark.parametrize("selection", ["gradient", "fisher"])
def test_selection_by_gradient_without_any_is_refused(selection: Any) -> None:
    with pytest.raises(ConfigError, match="preprocess_sparse"):
        afina.get_peft_model(tiny.llama(), afina.SparseConfig(selection=selection))
    with pytest.raises(ConfigError, match="no gradient"):
        afina.preprocess_sparse(tiny.llama(), afina.SparseConfig(selection=selection), lambda: None)
