"""Layers whose parents read their weights: what is read is the adapted weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

import afina
from afina.core.inject.reading import is_read
from afina.errors import NotMergeable

from ..tiny import config, nudge

IDS = torch.arange(3, 11)[None]


class Reader(nn.Module):
    """Calls one layer, reads another, and asks a third for its dtype alone."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.used, self.asked = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        nn.init.ones_(self.called.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(self.called(x), self.used.weight, self.used.bias)
        return self.asked(x.to(self.asked.weight.dtype)) if isinstance(self.asked.weight, Tensor) else x


class Inherits(Reader):
    pass


@pytest.mark.parametrize("kind", [Reader, Inherits])
def test_what_code_reads_is_known(kind: type[nn.Module]) -> None:
    parent = kind()
    assert [n for n in ("called", "used", "asked") if is_read(parent, n)] == ["used"]


def test_heads_that_models_tie_are_not_taken_for_read() -> None:
    from ..hosts.test_host_kinds import reading

    assert not is_read(reading(adapted=False), "lm_head")


@pytest.mark.parametrize("target", ["called", "used", "asked"])
def test_an_adapter_counts_wherever_it_sits(target: str) -> None:
    torch.manual_seed(0)
    base, x = nn.Sequential(Reader()), torch.randn(3, 4)
    plain = base(x)
    model = nudge(afina.get_peft_model(base, config(target_modules=[target]))).eval()
    out = model(x)
    assert (out - plain).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(model(x), plain)
    assert torch.allclose(model.merge_and_unload()(x), out, atol=1e-6)


def mamba(**options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 8, "state_size": 4, "num_hidden_layers": 1}
    base = transformers.MambaForCausalLM(transformers.MambaConfig(**sizes)).eval()
    plain = base(IDS).logits
    return plain, nudge(afina.get_peft_model(base, afina.LoKrConfig(r=2, alpha=2000, **options))).eval()


@pytest.mark.parametrize("target", ["dt_proj", "conv1d", "x_proj"])
def test_a_state_space_mixer_uses_the_adapter_with_and_without_its_cache(target: str) -> None:
    plain, model = mamba(target_modules=[target])
    whole = model(IDS, use_cache=False).logits
    assert (whole - plain).abs().max() > 1e-5
    first = model(IDS[:, :7], use_cache=True)
    last = model(IDS[:, 7:], cache_params=first.cache_params, use_cache=True, cache_position=torch.tensor([7])).logits
    assert torch.allclose(last, whole[:, 7:], atol=1e-5)
    assert torch.allclose(model.merge_and_unload()(IDS).logits, whole, atol=1e-5)


def test_a_method_without_a_merged_form_is_refused_where_its_layer_is_read() -> None:
    model = afina.get_peft_model(nn.Sequential(Reader()), afina.BottleneckConfig(target_modules=["used"]))
    with pytest.raises(NotMergeable):
        model(torch.ones(1, 4))
