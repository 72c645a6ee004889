"""Which tensor of a model's state is which key of an adapter's file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import afina
from afina.core.disk.names import (
    disk_prefix,
    layout,
    own_key,
    piece_state,
    pieces,
    prompt_piece,
    shared_piece,
)  # fmt: skip

from ..tiny import config, llama, mlp, trained


@pytest.mark.parametrize(
    ("key", "own"),
    [
        ("base_model.model.layers.0.up.weight", "layers.0.up.weight"),
        ("base_model.layers.0.up.weight", "layers.0.up.weight"),
        ("layers.0.up.weight", "layers.0.up.weight"),
        ("module.base_model.model.up.weight", "up.weight"),
        ("module.up.weight", "module.up.weight"),
        ("_orig_mod.base_model.model.up.weight", "up.weight"),
        ("base_model.model._fsdp_wrapped_module.up._checkpoint_wrapped_module.weight", "up.weight"),
        ("base_model.model.model.up.weight", "model.up.weight"),
    ],
)
def test_prefixes_of_wrappers_are_no_part_of_a_tensors_name(key: str, own: str) -> None:
    assert own_key(key) == own


def test_path_in_a_file_of_virtual_tokens_may_begin_with_model() -> None:
    assert own_key("base_model.model.embed.weight", prompts=True) == "model.embed.weight"


def test_bias_beside_an_adapter_lies_below_the_layer_that_it_wraps() -> None:
    model = trained(bias="all").get_base_model()
    found = {p.path: p for p in pieces(model, "default")}
    assert "layers.0.up.base_layer.bias" in found
    assert "head.bias" in found  # has no adapter
    assert found["head.bias"].runtime == "head.biases.default"
    assert found["layers.0.up."].runtime == "layers.0.up.adapters.default."
    state = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    for piece in found.values():
        live, other = piece_state(piece, None), piece_state(piece, state)
        assert live.keys() == other.keys()
        assert not any(t.any() for t in other.values())
    assert piece_state(found["head.bias"], None)["head.bias"].any()
    assert list(pieces(model, "other")) == []


def test_adapter_on_a_model_that_is_one_layer_has_no_path() -> None:
    host = next(m for _, m in trained().named_modules() if hasattr(m, "add_bias"))
    (piece,) = pieces(host, "default")
    assert (piece.path, piece.runtime, piece.bias_of, piece.shared) == ("", "adapters.default.", None, False)
    assert piece_state(piece, None).keys() == {"lora_A.weight", "lora_B.weight"}


def test_layout_knows_what_wraps_the_users_model() -> None:
    base = mlp()
    model = afina.get_peft_model(base, config())
    assert layout(model) == (base, model.base_model, "base_model.model.")
    assert layout(model.base_model) == (base, model.base_model, "model.")
    assert layout(base) == (base, base, "")
    assert disk_prefix(model, "default") == "base_model.model."
    assert disk_prefix(base, "default") == ""


def test_virtual_tokens_lie_below_base_model_alone() -> None:
    model = afina.get_peft_model(llama(), afina.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert disk_prefix(model, "default") == "base_model."
    piece = prompt_piece(model.base_model, "default")
    assert piece is not None
    assert (piece.path, piece.runtime, piece.shared) == ("", "prompt_encoder.default.", True)
    assert piece_state(piece, {}).keys() == {"prompt_embeddings"}
    assert prompt_piece(model.base_model, "other") is None
    assert prompt_piece(nn.Linear(2, 2), "default") is None


def test_what_all_layers_share_is_a_piece_of_its_own() -> None:
    model = afina.get_peft_model(mlp(), afina.VeraConfig(target_modules=["up"], r=2))
    piece = shared_piece(model.base_model, "default")
    assert piece is not None
    assert (piece.path, piece.shared) == ("", True)
    assert piece.runtime.endswith(".default.")
    assert all(f"{piece.runtime}{n}" in model.base_model.state_dict() for n in piece.owner.state_dict())
    assert shared_piece(model.base_model, "other") is None
    assert shared_piece(mlp(), "default") is None
