"""`afina export` writes, compares, refuses, lists."""

from __future__ import annotations

import json

import pytest

from ..train.child import command
from .test_use import mistake, ok


def make_adapters(model, folder):
    from pathlib import Path

    import torch
    from transformers import AutoModelForCausalLM

    import afina

    for name, config in {
        "lora": afina.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        "loha": afina.LoHaConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        "tokens": afina.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    }.items():
        adapted = afina.get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn_like(parameter)
        adapted.save_pretrained(Path(folder) / name)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, model_folder, child):
    folder = tmp_path_factory.mktemp("adapters")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        child(make_adapters, str(model_folder), str(folder))
    return folder


def test_a_merged_model_is_compared_where_transformers_loads_it(adapters, tmp_path, child):
    out = tmp_path / "out"
    told = json.loads(ok(child(command, "export", adapters / "loha", "--to", "safetensors", "--out", out, "--json")))
    assert (told["format"], told["compared"], told["target"]) == ("safetensors", True, "transformers")
    assert told["difference"] <= told["tolerance"]
    assert "model.safetensors" in told["files"]
    assert told["bytes"] == sum(told["files"].values()) == sum(p.stat().st_size for p in out.iterdir())


def test_what_was_not_compared_says_so(adapters, tmp_path, child):
    (tmp_path / "node_modules").mkdir()
    words = ("export", adapters / "lora", "--to", "vllm", "--target", tmp_path, "--out", tmp_path / "out")
    assert "written, NOT compared: vllm is not installed" in ok(child(command, *words))
    told = json.loads(ok(child(command, *words, "--overwrite", "--json")))
    assert (told["compared"], told["version"], told["difference"]) == (False, None, None)
    assert "vllm is not installed" in told["missing"]


@pytest.mark.parametrize(("adapter", "words", "says"), [
    ("lora", ["--to", "ggml"], "no such format"),
    ("lora", ["--to", "gguf", "--dtype", "q2_k"], "no such storage"),
    ("lora", ["--to", "vllm", "--target", "/nowhere"], "neither an interpreter"),
    ("lora", ["--to", "vllm", "--dry-run"], "without a repository"),
    ("lora", ["--to", "vllm", "--push", "it"], "no name of a repository"),
    ("lora", ["--to", "vllm", "--licence", "mit"], "only the hub's card has it"),
    ("lora", ["--to", "hub"], "a card needs a licence"),
    ("lora", ["--to", "hub", "--licence", "mit"], "read from this machine"),
    ("loha", ["--to", "vllm"], "--rank 16 makes LoRA of it first"),
    ("loha", ["--to", "vllm", "--rank", "many"], "neither a rank nor a share"),
    ("tokens", ["--to", "vllm", "--rank", "4"], "virtual tokens"),
    ("loha", ["--to", "gguf-lora"], "more than a fixed low-rank product"),
    ("tokens", ["--to", "gguf"], "virtual tokens"),
    ("tokens", ["--to", "vllm"], "afina predict and chat use it as it is"),
    ("nothing", ["--to", "vllm"], "not an adapter folder"),
], ids=str)  # fmt: skip
def test_mistakes_write_nothing(adapter, words, says, adapters, tmp_path, child):
    assert says in mistake(child(command, "export", adapters / adapter, "--out", tmp_path / "out", *words))
    assert not (tmp_path / "out").exists()


def test_a_dry_run_lists_what_would_be_uploaded_and_asks_no_hub(adapters, tmp_path, child):
    words = ("export", adapters / "lora", "--to", "hub", "--out", tmp_path / "out", "--licence", "mit")
    out = ok(child(command, *words, "--hub-base", "owner/base", "--push", "me/it", "--dry-run"))
    listed = out.split("would be uploaded to me/it:\n")[1].splitlines()
    assert [line.split()[0] for line in listed] == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= {line.split()[0] for line in listed}


def test_another_method_becomes_lora_first_and_what_that_keeps_is_told(adapters, tmp_path, child):
    words = ("export", adapters / "loha", "--to", "vllm", "--out", tmp_path / "out", "--json", "--rank")
    told = json.loads(ok(child(command, *words, "2")))
    share = float(told["note"].removeprefix("as LoRA: ").split("%")[0])
    assert 10 < share < 99
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["r"] == 2
    more = json.loads(ok(child(command, *words, "0.999", "--overwrite")))
    assert float(more["note"].removeprefix("as LoRA: ").split("%")[0]) >= 99.9
