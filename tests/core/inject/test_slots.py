"""Tables and heads that share a weight, and stay one where a config says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import afina
from afina.core.inject.slots import tied_slots
from afina.errors import TargetError

from ..tiny import llama, nudge, t5

TOKENS = torch.tensor([[1, 5, 9, 3]])
TABLE, HEAD = "embed_tokens", "lm_head"
PLACES = [
    {field: names} for field in ("modules_to_save", "target_modules") for names in ([TABLE], [HEAD], [TABLE, HEAD])
]


def tying(package: Any, places: dict[str, list[str]]) -> Any:
    places = {k: list(v) for k, v in places.items()}  # the reference adds to the lists
    return package.LoraConfig(**{"target_modules": ["q_proj"], **places}, ensure_weight_tying=True, r=2)


@pytest.mark.parametrize("places", PLACES, ids=str)
def test_table_and_head_train_as_one(places: dict[str, list[str]]) -> None:
    model = nudge(afina.get_peft_model(llama(tied=True), tying(afina, places))).eval()
    changed = model(TOKENS).logits
    merged = model.merge_and_unload()
    table, head = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert torch.equal(table, head)
    assert not torch.equal(table, llama(tied=True).get_input_embeddings().weight)
    torch.testing.assert_close(merged(TOKENS).logits, changed)


@pytest.mark.parametrize("places", PLACES, ids=str)
@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "theirs"])
def test_file_of_tied_places_means_the_same_in_the_reference(
    places: dict[str, list[str]], theirs: bool, tmp_path: Path
) -> None:
    maker, reader = (peft, afina) if theirs else (afina, peft)
    model = nudge(maker.get_peft_model(llama(tied=True), tying(maker, places))).eval()
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = reader.PeftModel.from_pretrained(llama(tied=True), tmp_path).eval()
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits)
    with loaded.disable_adapter():
        plain = loaded(TOKENS).logits
    assert torch.equal(plain, llama(tied=True)(TOKENS).logits)
    assert not torch.allclose(plain, model(TOKENS).logits)


def test_places_of_one_weight_are_known_the_input_embedding_first() -> None:
    assert [s.name for s in tied_slots(llama(tied=True))] == ["model.embed_tokens", "lm_head"]
    names = [s.name for s in tied_slots(t5())]
    assert names[0] == "shared"
    assert set(names[1:]) == {"encoder.embed_tokens", "decoder.embed_tokens", "lm_head"}
    assert tied_slots(llama()) == []
    assert tied_slots(torch.nn.Linear(2, 2)) == []


def ways(model: Any) -> torch.Tensor:
    out: torch.Tensor = model(input_ids=TOKENS, decoder_input_ids=TOKENS).logits
    return out


TOKENS_OF: list[Any] = [
    lambda package: package.LoraConfig(target_modules=["q"], trainable_token_indices=[1, 5]),
    lambda package: package.LoraConfig(target_modules=["q"], trainable_token_indices={"encoder.embed_tokens": [1, 5]}),
    lambda package: package.TrainableTokensConfig(token_indices=[1, 5]),
    lambda package: package.TrainableTokensConfig(token_indices=[1, 5], target_modules=["embed_tokens"]),
]


@pytest.mark.parametrize("made", TOKENS_OF, ids=["beside", "one", "alone", "two"])
@pytest.mark.parametrize("theirs", [False, True], ids=["ours", "theirs"])
def test_tokens_of_an_encoder_decoder_mean_the_same_in_the_reference(made: Any, theirs: bool, tmp_path: Path) -> None:
    maker, reader = (peft, afina) if theirs else (afina, peft)
    model = nudge(maker.get_peft_model(t5(), made(maker))).eval()
    changed = ways(model)
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = reader.PeftModel.from_pretrained(t5(), tmp_path).eval()
    torch.testing.assert_close(ways(loaded), changed)
    assert not torch.allclose(ways(t5()), changed)


def test_merged_tokens_leave_the_embeddings_one() -> None:
    model = nudge(afina.get_peft_model(t5(), TOKENS_OF[0](afina))).eval()
    changed = ways(model)
    merged = model.merge_and_unload()
    torch.testing.assert_close(ways(merged), changed)
    assert merged.encoder.embed_tokens.weight is merged.shared.weight is merged.lm_head.weight
    assert merged.config.tie_word_embeddings


def tokens(ids: dict[str, list[int]], tying: bool = False) -> Any:
    return afina.LoraConfig(target_modules=["q_proj"], trainable_token_indices=ids, ensure_weight_tying=tying)


def test_tokens_asked_for_on_table_and_head_are_one_if_they_are_the_same() -> None:
    model = afina.get_peft_model(llama(tied=True), tokens({HEAD: [1, 5], TABLE: [1, 5]})).get_base_model()
    table, head = model.get_input_embeddings(), model.lm_head
    assert head.trainable_tokens_delta["default"] is table.trainable_tokens_delta["default"]
    assert table.token_adapter is table
    assert head.token_adapter.token_indices == {"default": [1, 5]}


def test_other_tokens_of_the_head_are_its_own() -> None:
    model = afina.get_peft_model(llama(tied=True), tokens({HEAD: [1], TABLE: [5, 9]})).get_base_model()
    table, head = model.get_input_embeddings(), model.lm_head
    assert (table.token_indices["default"], head.token_indices["default"]) == ([5, 9], [1])
    with pytest.raises(TargetError, match="stay tied"):
        afina.get_peft_model(llama(tied=True), tokens({HEAD: [1], TABLE: [5, 9]}, tying=True))


def test_layer_without_tokens_has_no_token_adapter() -> None:
    model = afina.get_peft_model(llama(), tokens({TABLE: [1]})).get_base_model()
    assert not hasattr(model.lm_head, "token_adapter")
    assert not hasattr(model.model.layers[0].self_attn.q_proj, "token_adapter")


def test_tokens_of_both_by_themselves_are_one() -> None:
    config = afina.TrainableTokensConfig(token_indices=[1, 5], target_modules=[TABLE, HEAD])
    model = nudge(afina.get_peft_model(llama(tied=True), config)).eval()
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert [n.split(".")[-1] for n in trained] == ["trainable_tokens_delta"]
    hidden = model.get_base_model().get_input_embeddings()(torch.tensor([5]))
    head = model.get_base_model().lm_head
    assert torch.allclose(head(hidden)[0, 5], hidden.square().sum())


def test_embedding_of_a_model_that_does_not_tell_is_the_one_of_the_usual_name() -> None:
    table = torch.nn.Embedding(9, 4)
    model = torch.nn.ModuleDict({"places": torch.nn.Embedding(9, 4), "embed_tokens": table})
    made = afina.get_peft_model(model, afina.TrainableTokensConfig(token_indices=[1])).get_base_model()
    assert made["places"] is model["places"]
    assert made["embed_tokens"].base_layer is table
    two = torch.nn.ModuleDict({"a": torch.nn.Embedding(9, 4), "b": torch.nn.Embedding(9, 4)})
    with pytest.raises(TargetError, match="does not tell"):
        afina.get_peft_model(two, afina.TrainableTokensConfig(token_indices=[1]))
