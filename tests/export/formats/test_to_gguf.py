"""GGUF files, read back by transformers and the `gguf` package; llama.cpp itself reads them in benchmarks.exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import afina
from afina.export.formats import gguf_names, gguf_tokens
from afina.export.formats.all_formats import FORMATS
from afina.export.formats.modelfile import around, modelfile

from ...train import tiny
from ..subjects import subject, write_base

IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


# transformers' reader gives heads their default size, and Gemma the rest of its defaults.
_GEMMA = {"head_dim": 256, "num_hidden_layers": 6, "tied": True}
OF_READER = {"Qwen3": {"head_dim": 128}, "Gemma": _GEMMA, "Gemma2": _GEMMA, "Gemma3": _GEMMA}


def lora(**more: Any) -> Any:
    return afina.LoraConfig(r=2, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM", **more)


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(fields, tensors as they are stored) of a file."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    return {n: f.contents() for n, f in reader.fields.items()}, {t.name: t for t in reader.tensors}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("family", ["Llama", "Qwen2", "Qwen3", "Gemma2", "Gemma3"])
def test_transformers_reads_from_it_what_the_adapter_says(family: str, tmp_path: Path) -> None:
    import transformers

    folder = write_base(tmp_path / "base", family, **OF_READER.get(family, {}))
    wanted = subject(folder, lora(), "f32")
    expected = logits(wanted.trained.model)
    with wanted.trained.model.disable_adapter():
        assert not torch.allclose(expected, logits(wanted.trained.model), atol=1e-3)
    assert FORMATS["gguf"].refusal(wanted) is None
    FORMATS["gguf"].write(wanted, tmp_path)
    kind = getattr(transformers, f"{family}ForCausalLM")
    again = kind.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-4)


def test_storages_keep_what_they_promise(base: Path, tmp_path: Path) -> None:
    from gguf import quants

    errors, sizes = {}, {}
    for storage in FORMATS["gguf"].storages:
        wanted = subject(base, lora(), storage)
        folder = tmp_path / storage
        folder.mkdir()
        FORMATS["gguf"].write(wanted, folder)
        tensors = read(folder / "model.gguf")[1]
        found = quants.dequantize(tensors["blk.0.ffn_up.weight"].data, tensors["blk.0.ffn_up.weight"].tensor_type)
        exact = wanted.merged.model.layers[0].mlp.up_proj.weight.detach().numpy()
        errors[storage] = float(np.abs(found - exact).max() / np.abs(exact).max())
        sizes[storage] = (folder / "model.gguf").stat().st_size
        assert tensors["output_norm.weight"].tensor_type.name == "F32"
    assert errors["f32"] == 0
    assert errors["f16"] < errors["bf16"] < errors["q4_0"] < 0.15
    assert errors["q8_0"] < 0.01
    assert sizes["q4_0"] < sizes["q8_0"] < sizes["f16"] == sizes["bf16"] < sizes["f32"]


def test_the_tokenizer_is_told_with_all_its_tokens(base: Path, tmp_path: Path) -> None:
    wanted = subject(base, lora(), "f16")
    FORMATS["gguf"].write(wanted, tmp_path)
    fields, _ = read(tmp_path / "model.gguf")
    tokenizer = wanted.trained.tokenizer
    assert fields["tokenizer.ggml.tokens"] == tokenizer.convert_ids_to_tokens(range(259))
    assert (fields["tokenizer.ggml.bos_token_id"], fields["tokenizer.ggml.eos_token_id"]) == (2, 1)
    assert fields["tokenizer.chat_template"] == tokenizer.chat_template
    assert fields["tokenizer.ggml.add_bos_token"] is False


def test_lora_alone_has_the_updates_in_the_order_of_the_base(base: Path, tmp_path: Path) -> None:
    wanted = subject(base, lora(), "f32")
    FORMATS["gguf-lora"].write(wanted, tmp_path)
    fields, tensors = read(tmp_path / "adapter.gguf")
    assert (fields["general.type"], fields["adapter.type"], fields["adapter.lora.alpha"]) == ("adapter", "lora", 6)
    names = gguf_names.Names(wanted.base.config)
    for path, factor in wanted.factors.items():
        a, b = (tensors[f"{names.of(path)}.weight.lora_{x}"].data for x in "ab")
        expected = names.rows(path, factor.scaling * factor.B @ factor.A).numpy()
        np.testing.assert_allclose(6 / len(a) * b @ a, expected, rtol=1e-5, atol=1e-6)
    assert len(tensors) == 2 * len(wanted.factors) == 28


def test_rows_of_queries_are_turned_and_others_are_not(base: Path) -> None:
    names = gguf_names.Names(subject(base, lora()).base.config)
    rows = torch.arange(32.0)[:, None]
    turned = names.rows("model.layers.0.self_attn.q_proj", rows)[:, 0].tolist()
    assert turned[:8] == [0, 4, 1, 5, 2, 6, 3, 7]
    assert sorted(turned) == rows[:, 0].tolist()
    assert names.rows("model.layers.0.self_attn.v_proj", rows) is rows


def test_rotary_frequencies_that_are_scaled_are_written(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    wanted = subject(write_base(tmp_path / "base", rope_parameters=rope), lora(), "f32")
    FORMATS["gguf"].write(wanted, tmp_path)
    np.testing.assert_allclose(read(tmp_path / "model.gguf")[1]["rope_freqs.weight"].data, 4, rtol=1e-5)


@pytest.mark.parametrize(("change", "says"), [
    ({"model_type": "bert"}, "models of type bert are not written"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "of type yarn"),
    ({"model_type": "qwen2", "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "of type linear"),
    ({"sliding_window": 16}, "sliding window"),
], ids=str)  # fmt: skip
def test_models_that_llama_cpp_would_misread_are_refused(change: dict[str, Any], says: str, base: Path) -> None:
    from types import SimpleNamespace

    config = subject(base, lora()).base.config
    assert gguf_names.refusal(config) is None
    assert says in str(gguf_names.refusal(SimpleNamespace(**{**config.to_dict(), **change})))


def _core(**change: Any) -> dict[str, Any]:
    step = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    return {"model": {"type": "BPE", "merges": [["a", "b"]]}, "pre_tokenizer": step, **change}


def test_ways_of_splitting_have_the_names_that_llama_cpp_gives_them() -> None:
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    digits = {"type": "Digits", "individual_digits": True}

    def split(pattern: str) -> dict[str, Any]:
        return _core(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}}, plain]})  # fmt: skip

    known = list(gguf_tokens.SPLITS)
    assert [gguf_tokens.split_name(split(pattern)) for pattern in known] == ["llama-bpe", "qwen2"]
    assert gguf_tokens.split_name(_core()) == "gpt-2"
    both = {"type": "Sequence", "pretokenizers": [digits, _core()["pre_tokenizer"]]}
    assert gguf_tokens.split_name(_core(pre_tokenizer=both)) == "smollm"
    assert gguf_tokens.split_name(split("[a-z]+")) is None
    assert gguf_tokens.split_name(_core(pre_tokenizer={**plain, "add_prefix_space": True, "use_regex": True})) is None


def test_other_tokenizers_are_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    assert "BPE is written, not WordLevel" in str(gguf_tokens.refusal(words))
    assert gguf_tokens.refusal(tiny.tokenizer()) is None


def test_the_modelfile_writes_what_the_chat_template_writes(base: Path) -> None:
    wanted = subject(base, lora())
    found = around(wanted.trained.prompter)
    assert found is not None
    assert (found.start, found.bare, found.between) == ("<|system|>", "<|user|>", "\n<|user|>")
    assert (found.middle, found.end) == ("\n<|assistant|>", "<eos>\n<|user|>")
    text = modelfile(wanted.trained, "./model.gguf")
    assert text.startswith("FROM ./model.gguf\nTEMPLATE ")
    assert 'PARAMETER stop "<eos>"' in text
    assert modelfile(wanted.trained, None, "./a.gguf").startswith(f"FROM {base}\nADAPTER ./a.gguf\n")


def test_a_template_that_is_more_than_text_around_messages_is_not_guessed(base: Path) -> None:
    wanted = subject(base, lora())
    odd = "{% for m in messages %}{{ loop.length }}{{ m['role'] }}{{ m['content'] }}{% endfor %}"
    wanted.trained.tokenizer.chat_template = odd
    assert around(wanted.trained.prompter) is None
    assert "TEMPLATE" not in modelfile(wanted.trained, "./model.gguf")
