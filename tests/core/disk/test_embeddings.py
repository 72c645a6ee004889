"""Resized vocabularies in adapter files."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import afina
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.disk.embeddings import Vocabulary, is_resized, refuse_others, shapes, state, take_over, wanted
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
    with pytest.warns(AfinaWarning, match="vocabulary resized from 32 to 40") as told:
        loaded = afina.PeftModel.from_pretrained(fresh, tmp_path / "adapter")
    assert {w.filename for w in told} == {__file__}
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
    with pytest.warns(AfinaWarning, match="embeddings were replaced") as told:
        loaded = afina.PeftModel.from_pretrained(on_disk(tmp_path / "base"), tmp_path / "adapter")
    assert {w.filename for w in told} == {__file__}
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
    other = on_disk(tmp_path / "base")
    other.resize_token_embeddings(40, mean_resizing=False)
    for table in (other.get_input_embeddings(), other.get_output_embeddings()):
        table.weight.data[32:] = 0  # the file has to bring them
    theirs = peft.PeftModel.from_pretrained(other, tmp_path / "adapter").eval()
    assert torch.allclose(theirs(TOKENS).logits, model(TOKENS).logits, atol=1e-5)


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


# -- the tables of any model ------------------------------------------------------------------------------------------


class Words(nn.Module):
    """A table of words and a head; `tied` if they share it."""

    def __init__(self, size: int = 6, tied: bool = False, folder: Path | None = None) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(size, 4), nn.Linear(4, size, bias=False)
        if tied:
            self.head.weight = self.table.weight
        self.config = SimpleNamespace(vocab_size=size, _name_or_path=None if folder is None else str(folder))
        if folder is not None:
            folder.mkdir(exist_ok=True)
            (folder / "config.json").write_text(json.dumps({"vocab_size": 6}))

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def resize_token_embeddings(self, size: int, mean_resizing: bool = True) -> None:
        assert not mean_resizing  # which would draw numbers
        old, self.config.vocab_size = self.table.weight.shape[0], size
        self.table, self.head = nn.Embedding(size, 4), nn.Linear(4, size, bias=False)
        assert old != size


class Wordless(Words):
    """Cannot say what its embeddings are."""

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


def test_tables_are_found_at_their_places_with_or_without_adapters() -> None:
    model = Words()
    plain = {"table.weight", "table.base_layer.weight", "head.weight", "head.base_layer.weight"}
    assert shapes(model) == dict.fromkeys(plain, (6, 4))
    before = state(model, "default")
    assert before.keys() == {"table.weight", "head.weight"}
    afina.inject_adapter_in_model(afina.LoraConfig(target_modules=["table", "head"]), model)
    assert shapes(model) == dict.fromkeys(plain, (6, 4))
    assert all(state(model, "another")[k] is before[k] for k in before)
    below = state(model, "default")
    assert below["table.base_layer.weight"] is before["table.weight"]
    assert below["head.base_layer.weight"] is before["head.weight"]
    tied = state(Words(tied=True), "default")
    assert tied.keys() == {"table.weight"}
    assert state(Wordless(), "default").keys() == {"head.weight"}
    assert state(nn.Linear(2, 2), "default") == {}


def test_embeddings_are_saved_as_told_or_if_the_vocabulary_is_not_the_bases(tmp_path: Path) -> None:
    model = Words(folder=tmp_path / "base")
    assert not wanted(model, "auto")
    assert wanted(model, True)
    assert not wanted(model, False)
    model.config.vocab_size = 7
    assert wanted(model, "auto")
    assert not wanted(model, False)
    (tmp_path / "base" / "config.json").write_text('{"vocab_size": 1000}')
    model.config.vocab_size = int("1000")
    assert not wanted(model, "auto")
    model.config.vocab_size = None
    assert not wanted(model, "auto")
    assert not wanted(nn.Linear(2, 2), "auto")
    (tmp_path / "base" / "config.json").write_text("{}")
    model.config.vocab_size = 7
    assert not wanted(model, "auto")


def test_vocabulary_of_a_base_that_is_nowhere_is_unknown(tmp_path: Path) -> None:
    model = Words()
    for name in (None, "no-such/base", "no such name at all", str(tmp_path)):
        model.config._name_or_path = name
        assert not wanted(model, "auto")
        assert is_resized(model, [(6, 4)])
    del model.config._name_or_path
    model.name_or_path = str(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 6}))
    assert not is_resized(model, [(6, 4)])
    assert not is_resized(model, [])
    assert is_resized(model, [(6, 4), (7, 4)])
    assert is_resized(model, [(4, 6)])


def test_vocabulary_grows_to_that_of_the_file_and_its_own_comes_back() -> None:
    model = Words()
    before, parts = bits(model), (model.table, model.head)
    own = Vocabulary(model)
    assert not own.differs(model)
    own.fit(model, {"table.weight": (6, 4), "other": (9, 9)})
    assert not own.resized
    with pytest.warns(AfinaWarning, match="from 6 to 9 tokens"):
        own.fit(model, {"head.base_layer.weight": (9, 4)})
    assert own.resized
    assert own.differs(model)
    assert model.table.weight.shape == (9, 4)
    own.restore(model)
    assert (model.table, model.head) == parts
    assert same_bits(bits(model), before)
    assert model.config.vocab_size == 6


def test_embeddings_that_were_replaced_differ_and_come_back() -> None:
    model = Words()
    own, before = Vocabulary(model), bits(model)
    with pytest.warns(AfinaWarning, match="head.weight"):
        take_over(model, {"head.weight": torch.ones(6, 4)})
    assert own.differs(model)
    model.config.vocab_size = 5  # not by this file
    own.restore(model)
    assert not own.differs(model)
    assert same_bits(bits(model), before)
    assert model.config.vocab_size == 5


@pytest.mark.parametrize("shape", [(9, 5), (6, 5)])
def test_file_of_another_width_does_not_resize_a_vocabulary(shape: tuple[int, ...]) -> None:
    model = Words()
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        Vocabulary(model).fit(model, {"table.weight": shape})
    assert f"{shape}" in str(caught.value)
    assert "(6, 4)" in str(caught.value)


def test_model_that_cannot_be_resized_refuses_another_vocabulary() -> None:
    class Fixed(Words):
        resize_token_embeddings = property()  # type: ignore[assignment]

    with pytest.raises(CheckpointError, match="do not fit"):
        Vocabulary(Fixed()).fit(Fixed(), {"table.weight": (9, 4)})


@pytest.mark.parametrize("key", ["table.weight", "table.base_layer.weight"])
def test_tables_of_a_file_take_the_place_of_the_models_in_its_dtype(key: str) -> None:
    model = Words(tied=True).bfloat16()
    model.head.weight = model.table.weight
    old, new = model.table.weight, torch.randn(6, 4)
    with pytest.warns(AfinaWarning, match="replaced"):
        take_over(model, {key: new})
    assert torch.equal(model.table.weight, new.bfloat16())
    assert model.head.weight is model.table.weight is not old
    assert not model.table.weight.requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take_over(model, {key: new})  # is the same
    with pytest.raises(CheckpointError, match="do not fit"):
        take_over(model, {key: torch.zeros(7, 4)})


def test_table_that_is_not_in_the_file_stays() -> None:
    model = Words()
    head = model.head.weight
    with pytest.warns(AfinaWarning):
        take_over(model, {"table.weight": torch.ones(6, 4)})
    assert model.head.weight is head


def test_other_embeddings_than_the_models_are_refused_by_name() -> None:
    model = Words().bfloat16()
    same = {k: t.float() for k, t in state(model, "default").items()}
    refuse_others(model, same, "the-file")
    refuse_others(model, {}, "the-file")
    with pytest.raises(CheckpointError, match=r"head\.base_layer\.weight") as caught:
        refuse_others(
            model, {"table.weight": same["table.weight"], "head.base_layer.weight": torch.ones(6, 4)}, "a-file"
        )
    assert "a-file" in str(caught.value)
