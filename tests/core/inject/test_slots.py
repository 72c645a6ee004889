"""Tables and heads that share a weight, and stay one where a config says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import afina
from afina.core.inject.slots import tied_table
from afina.errors import ConfigError

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


def test_place_of_the_table_is_known_only_where_the_head_shares_its_weight() -> None:
    place = tied_table(llama(tied=True))
    assert place is not None
    assert place.name == "model.embed_tokens"
    assert tied_table(llama()) is None
    assert tied_table(torch.nn.Linear(2, 2)) is None


WORDS = {
    "lora": lambda library: library.LoraConfig(r=2, target_modules=["q"], trainable_token_indices=[1, 5]),
    "alone": lambda library: library.TrainableTokensConfig(token_indices=[1, 5]),
}


@pytest.mark.parametrize("words", WORDS)
def test_tokens_of_an_encoder_decoder_train_wherever_the_table_is_used(words: str, tmp_path: Path) -> None:
    call = {"input_ids": TOKENS, "decoder_input_ids": TOKENS}
    outs, states, models = [], [], []
    for library in (peft, afina):
        model = library.get_peft_model(t5(), WORDS[words](library))
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad and "trainable_tokens" in n]
        assert len(trained) == 1
        trained[0][1].data.copy_(torch.linspace(-1, 1, trained[0][1].numel()).view_as(trained[0][1]))
        model.train()(**call).logits.sum().backward()
        assert trained[0][1].grad.abs().sum() > 0
        models.append(model.eval())
        outs.append(model(**call).logits)
        states.append({k for k in library.get_peft_model_state_dict(model) if "tokens" in k})
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
    assert not torch.allclose(outs[1], t5()(**call).logits, atol=1e-3)
    assert states[0] == states[1]
    models[0].save_pretrained(tmp_path)
    loaded = afina.PeftModel.from_pretrained(t5(), tmp_path)
    assert torch.allclose(loaded(**call).logits, outs[0], atol=1e-5)
    merged = models[1].merge_and_unload()
    assert torch.allclose(merged(**call).logits, outs[1], atol=1e-5)
    table = merged.get_input_embeddings().weight
    assert all(m.weight is table for m in (merged.lm_head, merged.encoder.embed_tokens, merged.decoder.embed_tokens))


def test_tokens_on_a_table_that_nothing_calls_are_refused() -> None:
    base = t5()
    for part in (base.encoder, base.decoder):
        part.embed_tokens = torch.nn.Embedding(*base.shared.weight.shape)
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    model = afina.get_peft_model(base, WORDS["alone"](afina)).train()
    with pytest.raises(ConfigError, match="not called"):
        model(input_ids=TOKENS, decoder_input_ids=TOKENS)
