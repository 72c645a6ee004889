"""LLaMA-Adapter against the reference, and on models that it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import afina
from afina.errors import NotMergeable, TargetError

from ...core import tiny

peft = pytest.importorskip("peft", reason="the reference is the oracle")
IDS = torch.randint(3, 30, (2, 7), generator=torch.Generator().manual_seed(2))


def base(kind: str = "llama") -> Any:
    return tiny.llama(num_key_value_heads=1, initializer_range=0.3) if kind == "llama" else tiny.gpt2()


def adapted(library: Any, layers: int, kind: str = "llama") -> Any:
    config = library.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=layers)
    return tiny.nudge(library.get_peft_model(base(kind), config)).eval()


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("layers", [1, 2])
def test_files_are_exchanged_with_the_reference(layers: int, kind: str, tmp_path: Path) -> None:
    for writer, reader in ((afina, peft), (peft, afina)):
        written = adapted(writer, layers, kind)
        written.save_pretrained(tmp_path / writer.__name__)
        read = reader.PeftModel.from_pretrained(base(kind), tmp_path / writer.__name__).eval()
        assert torch.allclose(output(read), output(written), atol=1e-5)
        assert (output(written) - output(base(kind))).abs().max() > 1e-3
    ours, theirs = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("afina", "peft"))
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    # len · dim + 1 a layer
    assert adapted(afina, layers, kind).get_nb_trainable_parameters()[0] == layers * (4 * 16 + 1)


def test_it_starts_at_the_base_and_switches_as_others_do() -> None:
    plain = output(base())
    model = afina.get_peft_model(base(), afina.AdaptionPromptConfig(adapter_len=4, adapter_layers=2)).eval()
    assert torch.equal(output(model), plain)
    tiny.nudge(model)
    first = output(model)
    model.add_adapter("other", afina.AdaptionPromptConfig(adapter_len=2, adapter_layers=1))
    model.set_adapter("other")
    tiny.nudge(model, 5)
    assert not torch.allclose(output(model), first)
    model.set_adapter("default")
    assert torch.equal(output(model), first)
    with model.disable_adapter():
        assert torch.equal(output(model), plain)
    with pytest.raises(NotMergeable):
        model.merge_adapter()
    assert torch.equal(output(model.unload()), plain)


def test_gradients_reach_exactly_prompt_and_gate_also_under_checkpointing() -> None:
    grads = []
    for checkpointing in (False, True):
        model = adapted(afina, 2).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert {n.rpartition(".")[2] for n in grads[0]} == {"adaption_prompt", "adaption_gate"}
    assert len(grads[0]) == 4
    assert all(torch.allclose(g, grads[1][n], atol=1e-6) for n, g in grads[0].items())


def test_generation_with_and_without_a_cache_is_the_same() -> None:
    model = adapted(afina, 2)
    settings: dict[str, Any] = {"attention_mask": torch.ones_like(IDS), "max_new_tokens": 5, "do_sample": False}
    cached, plain = (model.generate(input_ids=IDS, use_cache=c, **settings) for c in (True, False))
    assert torch.equal(cached, plain)
    assert not torch.equal(cached, base().generate(input_ids=IDS, **settings))


def test_other_attention_and_too_many_layers_are_refused() -> None:
    for model, layers in ((tiny.bert(), 1), (base(), 3)):
        with pytest.raises(TargetError):
            afina.get_peft_model(model, afina.AdaptionPromptConfig(adapter_len=4, adapter_layers=layers))
