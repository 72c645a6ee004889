"""VB-LoRA files that hold only the best vectors' weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import afina
from afina.errors import CheckpointError, ConfigError

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(2))


def model(library: Any, vectors: int = 6) -> Any:
    torch.manual_seed(0)
    config = library.VBLoRAConfig(r=4, num_vectors=vectors, vector_length=4, topk=3, init_vector_bank_bound=1.0,
                                  save_only_topk_weights=True, target_modules=["0"])  # fmt: skip
    return library.get_peft_model(nn.Sequential(nn.Linear(8, 12)), config).eval()


@pytest.mark.parametrize(("vectors", "dtype"), [(6, torch.uint8), (300, torch.int16)])
@pytest.mark.parametrize("reader", [afina, REFERENCE], ids=["afina", "reference"])
@pytest.mark.parametrize("writer", [afina, REFERENCE], ids=["afina", "reference"])
def test_best_weights_are_exchanged(writer: Any, reader: Any, vectors: int, dtype: torch.dtype, tmp_path: Path) -> None:
    written = model(writer, vectors)
    written.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert held["base_model.model.0.vblora_logits_A_topk_indices"].dtype == dtype
    torch.manual_seed(0)
    loaded = reader.PeftModel.from_pretrained(nn.Sequential(nn.Linear(8, 12)), tmp_path).eval()
    assert (loaded(X) - written(X)).abs().max() < 1e-5


def test_model_of_best_weights_alone_refuses_to_train(tmp_path: Path) -> None:
    model(afina).save_pretrained(tmp_path)
    torch.manual_seed(0)
    loaded = afina.PeftModel.from_pretrained(nn.Sequential(nn.Linear(8, 12)), tmp_path, is_trainable=True)
    with pytest.raises(ConfigError, match="cannot train"):
        loaded.train()(X)


def test_index_outside_the_bank_is_refused() -> None:
    own = model(afina)
    state = afina.get_peft_model_state_dict(own)
    state["base_model.model.0.vblora_logits_A_topk_indices"].fill_(200)
    with pytest.raises(CheckpointError, match="outside the bank"):
        afina.set_peft_model_state_dict(own, state)
