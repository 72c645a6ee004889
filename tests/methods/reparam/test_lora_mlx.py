"""Folders of mlx-lm: factors transposed, `scale` for alpha / r, DoRA's magnitudes as `m`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import afina
from afina.errors import AfinaError

from ...core.tiny import llama, nudge

IDS = torch.arange(1, 9)[None]
TARGETS = ["q_proj", "down_proj"]
PREFIX = "base_model.model."


def written(folder: Path, **options: Any) -> Any:
    """An adapter's outputs, and the folder as mlx-lm would write it."""
    config = afina.LoraConfig(
        **{"r": 3, "lora_alpha": 7, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **options}
    )
    model = nudge(afina.get_peft_model(llama(), config)).eval()
    tensors = {}
    for key, tensor in afina.get_peft_model_state_dict(model).items():
        path, _, leaf = key.removeprefix(PREFIX).partition(".lora_")
        name = {"A.weight": "lora_a", "B.weight": "lora_b", "embedding_A": "lora_a", "embedding_B": "lora_b",
                "magnitude_vector": "m"}[leaf]  # fmt: skip
        tensors[f"{path}.{name}"] = tensor.T.contiguous() if tensor.dim() == 2 else tensor
    change(folder, tensors)
    return model(IDS).logits


def change(folder: Path, tensors: dict[str, torch.Tensor], **values: Any) -> None:
    folder.mkdir(exist_ok=True)
    settings = {"rank": 3, "scale": 7 / 3, "dropout": 0.1, **values.pop("lora_parameters", {})}
    config = {"fine_tune_type": "lora", "num_layers": 2, "model": "some/model", "lora_parameters": settings, **values}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapters.safetensors", metadata={"format": "mlx"})


@pytest.mark.parametrize("kind", ["lora", "dora", "embeddings"])
def test_it_is_the_adapter(tmp_path: Path, kind: str) -> None:
    options = {"use_dora": True} if kind == "dora" else {}
    if kind == "embeddings":
        options = {"target_modules": [*TARGETS, "embed_tokens"]}
    expected = written(tmp_path, **options)
    if kind == "dora":
        values = json.loads((tmp_path / "adapter_config.json").read_text())
        (tmp_path / "adapter_config.json").write_text(json.dumps({**values, "fine_tune_type": "dora"}))
    model = afina.PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.allclose(model(IDS).logits, expected, atol=1e-5)
    assert not torch.allclose(llama()(IDS).logits, expected, atol=1e-3)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.base_model_name_or_path) == (3, pytest.approx(7), "some/model")


@pytest.mark.parametrize("wrong", [
    {"fine_tune_type": "full"}, {"lora_parameters": {"scale": None}}, {"lora_parameters": {"scale": 0}},
    "whole weight", "two ranks", "no weights",
])  # fmt: skip
def test_what_has_no_meaning_here_is_refused(tmp_path: Path, wrong: Any) -> None:
    A, B = torch.ones(16, 3), torch.ones(3, 16)
    tensors = {"model.layers.0.self_attn.q_proj.lora_a": A, "model.layers.0.self_attn.q_proj.lora_b": B}
    if wrong == "whole weight":
        tensors["model.norm.weight"] = torch.ones(16)
    elif wrong == "two ranks":
        tensors["model.layers.1.self_attn.q_proj.lora_a"] = A[:, :2].contiguous()
    change(tmp_path, tensors, **(wrong if isinstance(wrong, dict) else {}))
    if wrong == "no weights":
        (tmp_path / "adapters.safetensors").unlink()
    with pytest.raises(AfinaError):
        afina.PeftModel.from_pretrained(llama(), tmp_path)


def test_layers_that_the_model_lacks_are_told(tmp_path: Path) -> None:
    change(tmp_path, {"model.layers.9.self_attn.q_proj.lora_a": torch.ones(16, 3),
                      "model.layers.9.self_attn.q_proj.lora_b": torch.ones(3, 16)})  # fmt: skip
    with pytest.raises(AfinaError, match=r"layers\.9"):
        afina.PeftModel.from_pretrained(llama(), tmp_path)
