"""Every registered method in every format: exported so that it says the same, or refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import afina
from afina.core.config import methods
from afina.errors import ConfigError, MergeError, NotMergeable
from afina.export.formats.all_formats import FORMATS, format_named
from afina.export.make import make

from ..subjects import config_of, subject, write_base

METHODS = sorted({*methods()} - {"FULL"})
PIPELINES = {"diffusers", "kohya"}
TEXTS = {name: one for name, one in FORMATS.items() if name not in PIPELINES}
LOW = {name for name, one in TEXTS.items() if one.holds == "low-rank"}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("beside")


@pytest.fixture(scope="module")
def plain(base: Path) -> torch.Tensor:
    from transformers import LlamaForCausalLM

    return logits(LlamaForCausalLM.from_pretrained(base))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def served_as_trained(wanted: Any, base: Path, folder: Path, plain: torch.Tensor) -> None:
    """What is written for servers gives the adapter's own logits, read as PEFT's layout."""
    from transformers import LlamaForCausalLM

    expected = logits(wanted.trained.model)
    FORMATS["vllm"].write(wanted, folder)
    again = afina.PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), folder)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, plain, atol=1e-3)


def reasons(wanted: Any) -> dict[str, str]:
    """Format -> why it refuses the adapter."""
    found = {name: one.refusal(wanted) for name, one in TEXTS.items()}
    return {name: reason for name, reason in found.items() if reason is not None}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_exported_so_that_it_says_the_same_or_is_refused(
    method: str, base: Path, beside: Path, plain: torch.Tensor, tmp_path: Path
) -> None:
    wanted = subject(base, config_of(method, beside, base))
    refused = reasons(wanted)
    for reason in refused.values():
        assert len(reason) > 20
        assert method.lower().replace("_", "") not in reason.lower().replace(" ", "")
    assert not LOW & {*refused} or {*refused} >= LOW, "one low-rank format holds what another does not"
    if "vllm" not in refused:
        served_as_trained(wanted, base, tmp_path / "vllm", plain)
    out = tmp_path / "out"
    try:
        found = make(FORMATS["safetensors"], wanted, out)
    except NotMergeable as error:
        told = error.what
    else:
        told = None
    assert out.exists() == (told is None)
    if told is not None:
        assert told.startswith("safetensors cannot hold this adapter: ")
        assert "hub" in refused or make(FORMATS["hub"], wanted, tmp_path / "hub").difference == 0
        return
    assert "safetensors" not in refused
    assert found.missing is None
    assert found.difference is not None
    assert found.difference < 1e-3
    # What transformers read there is as near to the adapter as that; and the adapter does something.
    assert not torch.allclose(logits(wanted.trained.model), plain, atol=1e-3)


def test_of_all_methods_some_fit_everywhere_some_only_merged_and_some_nowhere(base: Path, beside: Path) -> None:
    kinds = {method: frozenset(reasons(subject(base, config_of(method, beside, base))))
             for method in ("LORA", "LOHA", "PROMPT_TUNING", "IA3", "XLORA")}  # fmt: skip
    assert kinds["LORA"] == frozenset()
    assert kinds["LOHA"] == kinds["IA3"] == LOW
    assert kinds["PROMPT_TUNING"] == {*TEXTS} - {"hub"}
    assert kinds["XLORA"] == {*TEXTS}


@pytest.mark.parametrize(("more", "says"), [
    ({"use_dora": True}, "more than a fixed low-rank product"),
    ({"bias": "all"}, "trained bias"),
    ({"lora_bias": True}, "more than a fixed low-rank product"),
    ({"modules_to_save": ["lm_head"]}, "trained copy"),
    ({"target_modules": ["embed_tokens"]}, "not linear"),
    ({"trainable_token_indices": [5, 6]}, "not linear"),
    ({"alora_invocation_tokens": [5]}, "more than a fixed low-rank product"),
])  # fmt: skip
def test_what_is_more_than_low_rank_updates_is_refused_by_the_formats_of_those(
    more: dict[str, Any], says: str, base: Path
) -> None:
    found = reasons(subject(base, afina.LoraConfig(r=2, task_type="CAUSAL_LM", **more)))
    assert {*found} >= LOW
    assert all(says in reason for name, reason in found.items() if name in LOW)


@pytest.mark.parametrize("more", [
    {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"v_proj": 32}}, {"use_rslora": True},
    {"init_lora_weights": "pissa"}, {"target_modules": "all-linear"},
], ids=str)  # fmt: skip
def test_every_low_rank_form_becomes_one_rank_and_one_scaling(
    more: dict[str, Any], base: Path, plain: torch.Tensor, tmp_path: Path
) -> None:
    wanted = subject(base, afina.LoraConfig(r=2, lora_alpha=6, task_type="CAUSAL_LM", **more))
    served_as_trained(wanted, base, tmp_path / "out", plain)
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert not {*settings} & {"rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"}


def test_ranks_that_a_server_does_not_take_are_refused(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = subject(base, afina.LoraConfig(r=4, task_type="CAUSAL_LM"))
    monkeypatch.setattr(type(FORMATS["vllm"]), "largest", 3)
    assert "ranks up to 3, not 4" in str(FORMATS["vllm"].refusal(wanted))


def test_formats_of_pipelines_hold_no_language_model(base: Path) -> None:
    wanted = subject(base, afina.LoraConfig(r=2, task_type="CAUSAL_LM"))
    assert all("pipelines that make images, not causal_lm" in str(FORMATS[name].refusal(wanted)) for name in PIPELINES)


def test_formats_are_known_by_name() -> None:
    assert format_named("gguf").name == "gguf"
    with pytest.raises(ConfigError, match="no such format"):
        format_named("ggml")


def test_an_adapted_embedding_that_the_head_shares_is_told(tmp_path: Path) -> None:
    base = write_base(tmp_path / "tied", tied=True)
    wanted = subject(base, afina.LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    with pytest.raises(MergeError, match="one tensor for both embeddings"):
        make(FORMATS["safetensors"], wanted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["mlx", "gguf-lora"])
def test_update_of_a_head_that_is_the_embedding_is_refused_where_no_layer_would_take_it(
    name: str, base: Path, tmp_path: Path
) -> None:
    config = afina.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    tied = subject(write_base(tmp_path / "tied", tied=True), config)
    assert "lm_head: the base's head is its embedding" in str(FORMATS[name].refusal(tied))
    assert FORMATS[name].refusal(subject(base, config)) is None


def test_in_four_bits_transformers_reads_what_was_rounded_and_the_loss_is_told(tmp_path: Path) -> None:
    import bitsandbytes
    from transformers import AutoModelForCausalLM

    base = write_base(tmp_path / "base", hidden_size=64)  # its kernels for processors want whole blocks of 64
    wanted = subject(base, afina.LoraConfig(r=2, target_modules=["up_proj"], task_type="CAUSAL_LM"), "nf4")
    found = make(FORMATS["safetensors"], wanted, tmp_path / "out")
    assert found.difference is not None
    assert 1e-3 < found.difference < 1
    assert str(found.note).startswith("rounding moved the adapted weights by 0.")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert type(model.lm_head) is torch.nn.Linear
    again = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    exact = wanted.trained.model.merge_and_unload().model.layers[0].mlp.up_proj.weight
    assert 0 < (again - exact).norm() / exact.norm() < 0.15
