"""X-LoRA's first pass: when it runs, what it needs, and that its decision outlives it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import afina
from afina.core.hosts.host import hosts
from afina.errors import AfinaWarning, ConfigError

from .experts import IDS, base, logits, mixed


def passes(model: Any) -> int:
    """How often the layers run in one call of the model."""
    ran: list[int] = []
    handle = model.get_base_model().model.layers[0].register_forward_hook(lambda *_: ran.append(1))
    logits(model)
    handle.remove()
    return len(ran)


def test_models_without_hidden_states_and_layers_without_tokens_are_refused(experts: dict[str, str]) -> None:
    class Pooled(torch.nn.Module):
        def __init__(self, states: bool) -> None:
            super().__init__()
            self.llama, self.states = base(), states
            self.q_proj = torch.nn.Linear(16, 16)

        def forward(self, input_ids: torch.Tensor, **kwargs: Any) -> Any:
            out = self.llama(input_ids=input_ids, output_hidden_states=True)
            out.logits = self.q_proj(out.hidden_states[-1][:, 0])
            return out if self.states else out.logits

    for states, message in ((True, "tokens"), (False, "hidden states")):
        model = afina.get_peft_model(Pooled(states), afina.LoraConfig(target_modules=["q_proj"]), adapter_name="0")
        model.add_adapter("mixture", afina.XLoraConfig(adapters={"0": ""}, hidden_size=16))
        model.set_adapter("mixture")
        with pytest.raises(ConfigError, match=message):
            model(input_ids=IDS)


def test_disabled_and_unloaded_are_the_bases_bits_in_one_pass(experts: dict[str, str]) -> None:
    model = mixed(experts)
    assert passes(model) == 2
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(base()))
        assert passes(model) == 1
    assert passes(model) == 2
    model.set_adapter("1")
    assert passes(model) == 1
    alone = afina.PeftModel.from_pretrained(base(), experts["1"])
    assert torch.equal(logits(model), logits(alone))
    routed = model(input_ids=IDS, adapter_names=["default", "default"]).logits
    assert torch.equal(logits(model), logits(alone))  # the next call without names goes through the active one
    assert passes(model) == 1
    model.set_adapter("default")
    assert torch.equal(routed, logits(model))
    assert not torch.equal(routed, logits(alone))
    plain = model.unload()
    assert torch.equal(logits(plain), logits(base()))
    assert not plain._forward_pre_hooks
    assert not list(hosts(plain))


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies_route_by_themselves(how: str, experts: dict[str, str]) -> None:
    model = mixed(experts)
    # transformers hangs hooks that cannot be pickled on a model that has been asked for hidden states.
    out = logits(model if how == "deepcopy" else copy.deepcopy(model))
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    assert torch.equal(logits(twin), out)
    twin.set_topk_lora(1)
    assert not torch.equal(logits(twin), out)
    assert torch.equal(logits(model), out)
    assert passes(model) == passes(twin) == 2
    plain = twin.unload()
    assert not plain._forward_pre_hooks
    assert passes(model) == 2


def test_gradient_checkpointing_gives_the_same_gradients(experts: dict[str, str]) -> None:
    def gradients(checkpointed: bool) -> list[torch.Tensor]:
        model = mixed(experts, layerwise_scalings=True).train()
        if checkpointed:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model(input_ids=IDS, labels=IDS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]

    plain, again = gradients(False), gradients(True)
    assert plain
    assert all(torch.equal(a, b) for a, b in zip(again, plain, strict=True))


def test_reentrant_checkpointing_is_an_error_and_not_a_wrong_gradient(experts: dict[str, str]) -> None:
    model = mixed(experts).train()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(RuntimeError, match="second time"):
        model(input_ids=IDS, labels=IDS).loss.backward()


def test_compiles_without_a_graph_break(experts: dict[str, str]) -> None:
    torch._dynamo.reset()
    model = mixed(experts, layerwise_scalings=True, top_k_lora=2)
    expected = logits(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.allclose(logits(compiled), expected, atol=1e-6)


def test_generation_runs_without_a_cache_and_says_so(experts: dict[str, str]) -> None:
    model = mixed(experts)
    with pytest.warns(AfinaWarning, match="use_cache"):
        model.generate(input_ids=IDS, max_new_tokens=2, use_cache=True)
    with pytest.raises(ConfigError, match="whole sequence"):
        model.get_base_model().generate(input_ids=IDS, max_new_tokens=2, use_cache=True)
