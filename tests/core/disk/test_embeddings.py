"""Resized vocabularies in adapter files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import afina
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.errors import AfinaWarning, CheckpointError

from ..tiny import bits, llama, nudge, same_bits

TOKENS = torch.tensor([[1, 5, 9, 3]])


def on_disk(folder: Path, **options: Any) -> Any:
    """A tiny Llama that came from a folder, so that its own vocabulary is known."""
    base = llama(**options)
    base.save_pretrained(folder)
    return type(base).from_pretrained(folder).eval()


def resized(folder: Path, size: int = 40, tied: bool = False) -> Any:
    """The same with another vocabulary, adapted."""
    base = on_disk(folder, tied=tied)
    base.resize_token_embeddings(size, mean_resizing=False)
    torch.manual_seed(5)
    with torch.no_grad():
        base.get_input_embeddings().weight[32:] = torch.randn(size - 32, 16)
    return nudge(afina.get_peft_model(base, afina.LoraConfig(task_type="CAUSAL_LM"))).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_resized_vocabulary_is_saved_and_fits_a_fresh_base(tied: bool, tmp_path: Path) -> None:
    model = resized(tmp_path / "base", tied=tied)
    model.save_pretrained(tmp_path / "adapter")
    keys = load_file(tmp_path / "adapter" / WEIGHTS_NAME).keys()
    assert "base_model.model.model.embed_tokens.weight" in keys
    assert ("base_model.model.lm_head.weight" in keys) is not tied
    fresh = on_disk(tmp_path / "base", tied=tied)
    with pytest.warns(AfinaWarning, match="vocabulary resized from 32 to 40"):
        loaded = afina.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert loaded.config.vocab_size == 40
    tokens = torch.tensor([[1, 35, 39]])
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_reference_reads_the_resized_vocabulary(tmp_path: Path) -> None:
    model = resized(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    fresh = on_disk(tmp_path / "base")
    fresh.resize_token_embeddings(40, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    tokens = torch.tensor([[1, 35, 39]])
    assert torch.allclose(theirs(tokens).logits, model(tokens).logits, atol=1e-5)


def test_the_references_resized_vocabulary_is_read(tmp_path: Path) -> None:
    base = on_disk(tmp_path / "base")
    base.resize_token_embeddings(40, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = nudge(peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM"))).eval()
        theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
        mine = afina.PeftModel.from_pretrained(on_disk(tmp_path / "base"), tmp_path / "adapter")
    tokens = torch.tensor([[1, 35, 39]])
    assert torch.allclose(mine(tokens).logits, theirs(tokens).logits, atol=1e-5)


def test_unchanged_vocabulary_is_not_saved(tmp_path: Path) -> None:
    model = nudge(afina.get_peft_model(on_disk(tmp_path / "base"), afina.LoraConfig(task_type="CAUSAL_LM")))
    model.save_pretrained(tmp_path / "adapter")
    assert all("lora_" in k for k in load_file(tmp_path / "adapter" / WEIGHTS_NAME))
    model.save_pretrained(tmp_path / "all", save_embedding_layers=True)
    assert "base_model.model.lm_head.weight" in load_file(tmp_path / "all" / WEIGHTS_NAME)
    before = resized(tmp_path / "again")
    before.save_pretrained(tmp_path / "none", save_embedding_layers=False)
    assert all("lora_" in k for k in load_file(tmp_path / "none" / WEIGHTS_NAME))


def test_replaced_embeddings_are_told_of(tmp_path: Path) -> None:
    model = nudge(afina.get_peft_model(on_disk(tmp_path / "base"), afina.LoraConfig(task_type="CAUSAL_LM"))).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight += 1
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.warns(AfinaWarning, match="embeddings were replaced"):
        loaded = afina.PeftModel.from_pretrained(on_disk(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "lm_head"], ["q_proj"]], ids=str)
def test_resized_vocabulary_with_adapted_embeddings(targets: list[str], tmp_path: Path) -> None:
    base = on_disk(tmp_path / "base")
    base.resize_token_embeddings(40, mean_resizing=False)
    model = nudge(afina.get_peft_model(base, afina.LoraConfig(task_type="CAUSAL_LM", target_modules=targets))).eval()
    model.save_pretrained(tmp_path / "adapter")
    with pytest.warns(AfinaWarning, match="resized"):
        loaded = afina.PeftModel.from_pretrained(on_disk(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_second_adapter_with_another_vocabulary_changes_nothing(tmp_path: Path) -> None:
    resized(tmp_path / "base").save_pretrained(tmp_path / "big")
    model = nudge(afina.get_peft_model(on_disk(tmp_path / "base"), afina.LoraConfig(task_type="CAUSAL_LM")))
    before = bits(model)
    with pytest.raises(CheckpointError, match="embed_tokens"):
        model.load_adapter(tmp_path / "big", "second")
    assert same_bits(bits(model), before)


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    resized(tmp_path / "base").save_pretrained(tmp_path / "adapter")
    with pytest.raises(CheckpointError):
        afina.PeftModel.from_pretrained(llama(hidden_size=32), tmp_path / "adapter")


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_trained_embeddings_are_the_references(module: str, tmp_path: Path) -> None:
    options = {"task_type": "CAUSAL_LM", "modules_to_save": [module], "target_modules": ["q_proj"]}
    model = nudge(afina.get_peft_model(on_disk(tmp_path / "base"), afina.LoraConfig(**options))).eval()
    model.save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(on_disk(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.allclose(theirs(TOKENS).logits, model(TOKENS).logits, atol=1e-5)
    loaded = afina.PeftModel.from_pretrained(on_disk(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
