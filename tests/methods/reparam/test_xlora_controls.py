"""What users ask X-LoRA's router and tell it."""

from __future__ import annotations

import pytest
import torch

from afina.errors import ConfigError

from .experts import IDS, base, logits, mixed


def test_settings_change_what_follows_and_the_log_keeps_it(experts: dict[str, str]) -> None:
    model = mixed(experts)
    assert model.get_latest_scalings() is None
    first = logits(model)
    model.enable_scalings_logging()
    logits(model), logits(model, IDS[:, :3])
    model.disable_scalings_logging()
    logits(model)
    assert [tuple(s.shape) for s in model.get_scalings_log()] == [(2, 8, 6, 3), (2, 3, 6, 3)]
    assert {k: v[0] for k, v in model.get_bucketed_scalings_log().items()} == {8: [0], 3: [1]}
    model.clear_scalings_log()
    assert model.get_scalings_log() == []
    assert torch.allclose(model.get_latest_scalings().sum(-1), torch.ones(()))

    model.set_global_scaling_weight(0.0)
    assert model.get_global_scaling_weight() == 0.0
    assert torch.allclose(logits(model), logits(base()), atol=1e-7)
    model.set_global_scaling_weight(1.0)
    model.set_topk_lora(1)
    assert not torch.equal(logits(model), first)
    with pytest.raises(ConfigError, match="top_k_lora"):
        model.set_topk_lora(4)
    model.set_topk_lora(None)
    model.set_scaling_pass_value(None)
    assert model.peft_config["default"].scaling_pass_value == pytest.approx(1 / 3)
    assert not torch.equal(logits(model), first)
    model.set_scaling_pass_value(0.0)
    assert torch.equal(logits(model), first)
