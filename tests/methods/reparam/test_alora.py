"""aLoRA acts from the invocation tokens onwards, in a forward pass and in generation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.errors import ConfigError, NotMergeable
from afina.methods.reparam.alora import offsets_in

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
INVOCATION = [5, 6]
# An earlier and the last invocation; none at all; one at the very end.
IDS = torch.tensor([[1, 5, 6, 2, 5, 6, 3, 4], [1, 5, 7, 2, 6, 5, 3, 4], [1, 3, 7, 2, 6, 2, 5, 6]])


def base() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=16, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, bos_token_id=1, eos_token_id=2)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def model(library: Any = afina) -> Any:
    config = library.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], alora_invocation_tokens=INVOCATION,
                                init_lora_weights=False, task_type="CAUSAL_LM")  # fmt: skip
    torch.manual_seed(1)
    return library.get_peft_model(base(), config).eval()


def logits(of: Any, **kwargs: Any) -> torch.Tensor:
    with torch.no_grad():
        return of(**kwargs).logits


def test_offsets_count_from_the_last_invocation_to_the_end() -> None:
    assert offsets_in(IDS, INVOCATION).tolist() == [4, 0, 2]
    assert offsets_in(IDS[:, :1], INVOCATION).tolist() == [0, 0, 0]


def test_tokens_before_the_invocation_are_the_bases() -> None:
    plain, adapted = logits(base(), input_ids=IDS), logits(model(), input_ids=IDS)
    changed = (plain - adapted).abs().amax(-1) > 1e-6
    assert changed.int().tolist() == [[0] * 4 + [1] * 4, [0] * 8, [0] * 6 + [1] * 2]


def test_given_offsets_take_the_place_of_those_found() -> None:
    mine = model()
    assert torch.equal(logits(mine, input_ids=IDS, alora_offsets=[4, None, 2]), logits(mine, input_ids=IDS))
    moved = logits(mine, input_ids=IDS, alora_offsets=[None, 8, None])
    assert torch.equal(moved[[0, 2]], logits(base(), input_ids=IDS)[[0, 2]])
    assert not torch.equal(moved[1], logits(base(), input_ids=IDS)[1])


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_with_and_without_a_cache_is_the_same(beams: int) -> None:
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "num_beams": beams, "do_sample": False}
    mine = model()
    cached = mine.generate(input_ids=IDS, **options)
    assert torch.equal(cached, mine.generate(input_ids=IDS, use_cache=False, **options))


@pytest.mark.parametrize("writer", [afina, REFERENCE], ids=["afina", "reference"])
def test_reference_gives_the_same_outputs(writer: Any, tmp_path: Path) -> None:
    written = model(writer)
    written.save_pretrained(tmp_path)
    reader = REFERENCE if writer is afina else afina
    read = reader.PeftModel.from_pretrained(base(), tmp_path).eval()
    assert torch.allclose(logits(read, input_ids=IDS), logits(written, input_ids=IDS), atol=1e-6)


def test_unknown_places_are_refused_and_so_is_merging() -> None:
    mine = model()
    with pytest.raises(ConfigError, match="invocation"):
        mine(inputs_embeds=torch.zeros(1, 3, 16))
    with pytest.raises(NotMergeable):
        mine.merge_adapter()
    rows = afina.get_peft_model(nn.Sequential(nn.Linear(4, 4)),
                                afina.LoraConfig(target_modules=["0"], alora_invocation_tokens=[1]))  # fmt: skip
    with pytest.raises(ConfigError, match="batch, tokens"):
        rows(torch.zeros(2, 4), alora_offsets=[1, 1])


def test_training_changes_only_what_follows() -> None:
    mine = model().train()
    mine(input_ids=IDS[1:2]).logits.sum().backward()
    assert not any(p.grad is not None and p.grad.any() for p in mine.parameters())
    mine(input_ids=IDS[:1]).logits.square().sum().backward()
    assert all(p.grad.any() for p in mine.parameters() if p.requires_grad)
