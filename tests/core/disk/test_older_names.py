"""Files from before an architecture was built otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.core.disk.older_names import names_since
from afina.errors import CheckpointError

from ..tiny import nudge, rewrite


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)


class Now(nn.Module):
    """A model whose blocks lay one level higher once."""

    _checkpoint_conversion_mapping = {"^blocks": "inner.blocks", "^head": "inner.head"}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleDict({"blocks": nn.ModuleList([Block(), Block()])})

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.inner["blocks"]:  # type: ignore[union-attr]
            x = block.proj(x).tanh()
        return x


def older(folder: Path, now: str, then: str) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        for key in [k for k in tensors if now in k]:
            tensors[key.replace(now, then)] = tensors.pop(key)

    rewrite(folder, change)


def test_model_tells_how_its_modules_were_called(tmp_path: Path) -> None:
    model = nudge(afina.get_peft_model(Now(), afina.LoraConfig(target_modules=["proj"], r=2))).eval()
    model.save_pretrained(tmp_path)
    older(tmp_path, "inner.blocks", "blocks")
    x = torch.randn(2, 4)
    loaded = afina.PeftModel.from_pretrained(Now(), tmp_path)
    assert torch.equal(loaded(x), model(x))
    assert not torch.allclose(loaded(x), Now()(x))
    again = afina.get_peft_model(Now(), afina.LoraConfig(target_modules=["proj"], r=2), "first")
    again.load_adapter(tmp_path, "second")
    again.set_adapter("second")
    assert torch.equal(again(x), model(x))


def test_keys_that_no_name_helps_are_refused(tmp_path: Path) -> None:
    model = afina.get_peft_model(Now(), afina.LoraConfig(target_modules=["proj"], r=2))
    model.save_pretrained(tmp_path)
    older(tmp_path, "inner.blocks", "head")
    with pytest.raises(CheckpointError, match="missing"):
        afina.PeftModel.from_pretrained(Now(), tmp_path)


@pytest.mark.whole  # imports a model of images and texts
def test_transformers_names_of_before_are_known() -> None:
    import transformers

    text = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2, "vocab_size": 32}  # fmt: skip
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2}
    with torch.device("meta"):
        model = transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
        )
    afina.inject_adapter_in_model(afina.LoraConfig(target_modules=["q_proj", "qkv"]), model)
    layer, image = "layers.0.self_attn.q_proj.lora_A.weight", "visual.blocks.0.attn.qkv.lora_A.weight"
    assert names_since(model, [f"model.{layer}", image]) == {
        f"model.{layer}": f"model.language_model.{layer}", image: f"model.{image}"
    }  # fmt: skip
    assert names_since(model, [f"model.language_model.{layer}", "elsewhere.lora_A.weight"]) == {}
    assert names_since(nn.Linear(2, 2), ["weight"]) == {}
