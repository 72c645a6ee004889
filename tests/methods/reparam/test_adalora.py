"""AdaLoRA's budget: the same ranks are pruned at the same steps as in the reference, and files hold the survivors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import afina
from afina.errors import ConfigError

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
TOKENS = torch.randint(0, 64, (2, 9), generator=torch.Generator().manual_seed(2))
STEPS = 12


def base() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=64, **sizes))


def trained(library: Any, steps: int = STEPS) -> tuple[Any, list[tuple[float, list[int]]]]:
    """A model after some steps of SGD, and for each step the loss and the ranks left in every layer."""
    config = library.AdaLoraConfig(total_step=STEPS, init_r=6, target_r=3, tinit=2, tfinal=3, deltaT=2, lora_alpha=5,
                                   target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")  # fmt: skip
    model = library.get_peft_model(base(), config)
    names = {n.replace(".adapters.default", "").replace(".default", ""): p for n, p in model.named_parameters()}
    own = {n: p for n, p in sorted(names.items()) if p.requires_grad}
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in own.values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    optimizer = torch.optim.SGD(own.values(), lr=2.0)
    history = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        history.append((loss.item(), [int((p != 0).sum()) for n, p in own.items() if "lora_E" in n]))
    return model, history


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=TOKENS).logits


def test_same_ranks_are_pruned_at_the_same_steps_as_in_the_reference() -> None:
    (mine, my_history), (theirs, their_history) = trained(afina), trained(REFERENCE)
    assert [ranks for _, ranks in my_history] == [ranks for _, ranks in their_history]
    assert sum(my_history[-1][1]) == 3 * 6
    assert len({tuple(ranks) for _, ranks in my_history}) > 2
    for (a, _), (b, _) in zip(my_history, their_history, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert (output(mine) - output(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize("reader", [afina, REFERENCE], ids=["afina", "reference"])
@pytest.mark.parametrize("writer", [afina, REFERENCE], ids=["afina", "reference"])
def test_pruned_files_are_exchanged_with_the_reference(writer: Any, reader: Any, tmp_path: Path) -> None:
    model, history = trained(writer)
    expected = output(model)
    model.save_pretrained(tmp_path)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(t.shape[0] for n, t in held.items() if n.endswith("lora_E")) == sorted(history[-1][1])
    assert 0 in history[-1][1]  # a layer without any rank is a case of its own
    loaded = reader.PeftModel.from_pretrained(base(), tmp_path)
    assert (output(loaded) - expected).abs().max() < 1e-5
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())["rank_pattern"]
    assert again == json.loads((tmp_path / "adapter_config.json").read_text())["rank_pattern"]


def test_file_of_an_unfinished_schedule_holds_all_ranks(tmp_path: Path) -> None:
    model, _ = trained(afina, steps=5)
    expected = output(model)
    model.save_pretrained(tmp_path)
    assert all(t.shape[0] == 6 for n, t in load_file(tmp_path / "adapter_model.safetensors").items() if "lora_E" in n)
    loaded = afina.PeftModel.from_pretrained(base(), tmp_path)
    assert torch.equal(output(loaded), expected)


def test_pruned_state_returns_into_the_model_that_wrote_it() -> None:
    model, _ = trained(afina)
    expected, state = output(model), afina.get_peft_model_state_dict(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    afina.set_peft_model_state_dict(model, state)
    assert torch.equal(output(model), expected)


def test_loss_has_the_references_orthogonal_penalty() -> None:
    losses = []
    for library in (afina, REFERENCE):
        torch.manual_seed(3)
        config = library.AdaLoraConfig(total_step=STEPS, init_r=6, target_modules=["q_proj"], task_type="CAUSAL_LM")
        model = library.get_peft_model(base(), config).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape))
        losses.append(model(input_ids=TOKENS, labels=TOKENS).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize("steps", [{}, {"total_step": 5, "tinit": 3, "tfinal": 2}])
def test_schedule_without_room_is_refused(steps: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="total_step"):
        afina.AdaLoraConfig(**steps)
