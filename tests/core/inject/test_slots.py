"""Tables and heads that share a weight, and stay one where a config says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

import afina
from afina.core.inject.slots import tied_table

from ..tiny import llama, nudge

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
