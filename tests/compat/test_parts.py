"""Helpers of the reference's inner modules: with its numbers."""

from __future__ import annotations

from types import SimpleNamespace

import peft
import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer as Theirs
from peft.utils import constants, merge_utils, other
from torch import nn
from transformers import Trainer

import afina
from afina.compat import parts
from afina.compat.asa import AdamssAsaCallback
from afina.core.config import methods
from afina.errors import ConfigError

from ..core.tiny import mlp


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("magnitude_based_pruning", (0.4,)),
        ("prune", (0.4, "magnitude")),
        ("prune", (0.4, "random", True)),
        ("prune", (0.4, "random")),
        ("random_pruning", (0.4, True)),
        ("random_pruning", (0.4, False)),
        ("calculate_majority_sign_mask", ()),
        ("calculate_majority_sign_mask", ("frequency",)),
    ],
)
def test_masks_are_the_references(name: str, arguments: tuple[object, ...]) -> None:
    tensor, found = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)), []
    for library in (merge_utils, parts):
        torch.manual_seed(1)
        found.append(getattr(library, name)(tensor, *arguments))
    assert torch.allclose(found[0].float(), found[1].float(), atol=1e-6)
    assert not torch.equal(found[0].float(), tensor)


def test_merges_of_masked_tensors_are_the_references() -> None:
    tensors = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    mask, weights = tensors > 0, torch.tensor([1.0, 2.0, 3.0])
    assert torch.allclose(parts.disjoint_merge(tensors, mask), merge_utils.disjoint_merge(tensors, mask))
    theirs = merge_utils.reshape_weight_task_tensors(tensors, weights)
    assert torch.equal(parts.reshape_weight_task_tensors(tensors, weights), theirs)


@pytest.mark.parametrize("key", ["model.layers.0.q_proj", "q_proj", "other"])
def test_patterns_find_the_references_key(key: str) -> None:
    patterns = ["v_proj", r"layers\.\d\.q_proj", "q_proj"]
    assert parts.get_pattern_key(patterns, key) == other.get_pattern_key(patterns, key)
    assert bool(parts.match_target_against_key(r".*q_proj", key)) == bool(
        other.match_target_against_key(r".*q_proj", key)
    )


@pytest.mark.parametrize("word", ["Yes", "off", "1", "FALSE"])
def test_words_are_yes_or_no(word: str) -> None:
    assert parts.str_to_bool(word) == other.str_to_bool(word)


def test_other_words_and_kinds_are_refused() -> None:
    for use in (lambda: parts.str_to_bool("maybe"), lambda: parts.prune(torch.ones(2), 0.5, "other"),
                lambda: parts.calculate_majority_sign_mask(torch.ones(2), "other")):  # fmt: skip
        with pytest.raises(ConfigError):
            use()


def test_default_targets_are_the_references_where_both_know_the_model() -> None:
    compared = 0
    for name in vars(constants):
        if name.endswith("_TARGET_MODULES_MAPPING") and (ours := parts.default_targets(name)):
            theirs = getattr(constants, name)
            assert isinstance(ours, dict)
            compared += sum(set(ours[k]) == set(theirs[k]) for k in ours.keys() & theirs.keys())
    assert compared > 500


def test_prefixes_are_the_references() -> None:
    theirs = peft.mapping.PEFT_TYPE_TO_PREFIX_MAPPING
    ours = parts.prefixes()
    different = {k.value for k, v in theirs.items() if k.value in methods() and v != ours[k.value]}
    assert different == {"ADAPTION_PROMPT"}  # no tensor there begins with what the table says
    assert len(ours) >= len(theirs)


def test_whole_parameters_are_left_alone() -> None:
    weight = nn.Parameter(torch.ones(2))
    with parts.gather_params_ctx(weight):
        weight.data.add_(1)
    assert torch.equal(weight.data, torch.full((2,), 2.0))
    assert parts.dequantize_bnb_weight(weight) is weight


def test_the_callback_lets_subspaces_be_chosen() -> None:
    seen: list[int] = []
    model = SimpleNamespace(update_and_allocate=seen.append)
    AdamssAsaCallback().on_optimizer_step(None, SimpleNamespace(global_step=3), None, model=model)
    AdamssAsaCallback().on_optimizer_step(None, SimpleNamespace(global_step=4), None, model=mlp())
    assert seen == [3]
    config = afina.AdamssConfig(target_modules=["up"], r=4, num_subspaces=2, subspace_rank=1, use_asa=True,
                                asa_target_subspaces=1, init_warmup=1, final_warmup=5, mask_interval=1)  # fmt: skip
    assert callable(afina.get_peft_model(mlp(), config).update_and_allocate)


def test_the_mixin_for_a_trainer_adds_nothing_to_the_loss() -> None:
    class Own(parts.MontecloraTrainerMixin, Trainer):
        pass

    assert Own.compute_loss is Trainer.compute_loss
    assert not issubclass(Own, Theirs)
