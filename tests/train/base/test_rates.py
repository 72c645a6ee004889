"""The learning rate of a run that names none."""

from __future__ import annotations

import pytest
from transformers import BertConfig, CLIPConfig, GPT2Config, LlamaConfig, PreTrainedConfig, T5Config

from afina.core.registry import methods
from afina.train.base.rates import MORE, SHORT, WIDTH, own_rate, width_of

CONFIGS = {
    "hidden_size": (LlamaConfig(hidden_size=48, num_attention_heads=4), 48),
    "another name for it": (GPT2Config(n_embd=24), 24),
    "encoder and decoder": (T5Config(d_model=40), 40),
    "encoder": (BertConfig(hidden_size=36, num_attention_heads=4), 36),
    "text beside images": (
        CLIPConfig(
            text_config={"hidden_size": 20, "num_attention_heads": 4},
            vision_config={"hidden_size": 28, "num_attention_heads": 4},
        ),
        20,
    ),
    "none": (PreTrainedConfig(), None),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_width_is_that_of_the_hidden_states_of_text(name: str) -> None:
    config, width = CONFIGS[name]
    assert width_of(config) == width


@pytest.mark.parametrize("name", methods())
def test_every_methods_rate_follows_its_rule(name: str) -> None:
    kind = methods()[name].config
    assert own_rate(kind, WIDTH, SHORT) == kind.default_learning_rate
    assert own_rate(kind, None, SHORT) == kind.default_learning_rate
    narrow = own_rate(kind, WIDTH // 4, SHORT) / kind.default_learning_rate
    assert narrow == pytest.approx(4**kind.rate_exponent, rel=0.05)
    wide = own_rate(kind, 4 * WIDTH, SHORT) / kind.default_learning_rate
    assert wide == pytest.approx(4**-kind.rate_exponent, rel=0.05)
    assert 0 <= kind.rate_exponent <= 1
    short = own_rate(kind, WIDTH, SHORT - 1) / kind.default_learning_rate
    assert short == pytest.approx(MORE, rel=0.05)


def test_lora_and_full_fine_tuning_have_the_published_rates_of_1b_and_8b() -> None:
    # Of Llama 4.9e-4 at width 2048 and 2.9e-4 at 4096, falling less for Qwen; a tenth in full fine-tuning ("LoRA
    # Without Regret", 2025).
    lora, full = methods()["LORA"].config, methods()["FULL"].config
    assert own_rate(lora, 2048, SHORT) == pytest.approx(4.9e-4, rel=0.05)
    assert own_rate(full, 2048, SHORT) == pytest.approx(4.9e-5, rel=0.05)
    assert 2.9e-4 < own_rate(lora, 4096, SHORT) < 4.9e-4
    assert own_rate(full, 4096, SHORT) == pytest.approx(2.9e-5, rel=0.15)
