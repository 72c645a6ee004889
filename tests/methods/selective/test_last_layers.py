"""Which layers are trained, on four architectures, and that whole blocks behave as adapters do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import afina
from afina.errors import AfinaWarning, ConfigError, NumericError, TargetError

from ...core import tiny

STACKS = {"llama": "model.layers", "bert": "bert.encoder.layer", "gpt2": "transformer.h", "t5": "decoder.block"}
IDS = torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(2))


def adapted(kind: str, **options: Any) -> Any:
    return afina.get_peft_model(getattr(tiny, kind)(), afina.LastLayersConfig(**options))


def output(model: Any, kind: str) -> torch.Tensor:
    more = {"decoder_input_ids": IDS} if kind == "t5" else {}
    with torch.no_grad():
        return model(input_ids=IDS, **more).logits


@pytest.mark.parametrize("kind", STACKS)
@pytest.mark.parametrize(
    ("options", "numbers"),
    [({"layers": 1}, {1}), ({"layers": 2}, {0, 1}), ({"layers": 9}, {0, 1}), ({"layer_range": [0, 1]}, {0}),
     ({"layer_range": [-2, -1]}, {0}), ({"layer_range": [1, 2]}, {1}), ({"layer_range": [0, 2]}, {0, 1})],
)  # fmt: skip
def test_exactly_the_chosen_layers_train(kind: str, options: dict[str, Any], numbers: set[int]) -> None:
    model = adapted(kind, **options)
    blocks = [getattr(tiny, kind)().get_submodule(f"{STACKS[kind]}.{i}") for i in sorted(numbers)]
    trained = {n.split(".adapters.")[0] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"base_model.model.{STACKS[kind]}.{i}" for i in numbers}
    assert model.get_nb_trainable_parameters()[0] == sum(p.numel() for b in blocks for p in b.parameters())


@pytest.mark.parametrize("kind", STACKS)
def test_blocks_start_switch_merge_and_save_as_adapters_do(kind: str, tmp_path: Path) -> None:
    base = output(getattr(tiny, kind)(), kind)
    model = adapted(kind, layers=1).eval()
    assert torch.equal(output(model, kind), base)
    tiny.nudge(model)
    first = output(model, kind)
    model.save_pretrained(tmp_path)
    model.add_adapter("other", afina.LastLayersConfig(layer_range=[0, 1]))
    model.set_adapter("other")
    tiny.nudge(model, 5)
    assert not torch.allclose(output(model, kind), first)
    model.set_adapter("default")
    assert torch.equal(output(model, kind), first)
    with model.disable_adapter():
        assert torch.equal(output(model, kind), base)
    assert torch.equal(output(afina.PeftModel.from_pretrained(getattr(tiny, kind)(), tmp_path), kind), first)
    merged = model.merge_and_unload()
    assert not [n for n in merged.state_dict() if "adapters" in n]
    assert torch.allclose(output(merged, kind), first, atol=1e-6)


def test_ranges_without_a_layer_are_refused() -> None:
    with pytest.raises(TargetError, match="no layer lies in this range"):
        adapted("llama", layer_range=[2, 5])
    with pytest.raises(ConfigError, match="two numbers"):
        afina.LastLayersConfig(layer_range=[1])
    with pytest.raises(TargetError, match="no stack"):
        afina.get_peft_model(torch.nn.Linear(2, 2), afina.LastLayersConfig())


@pytest.mark.parametrize("kind", STACKS)
def test_float32_blocks_train_inside_a_bfloat16_model(kind: str) -> None:
    model = afina.get_peft_model(getattr(tiny, kind)().bfloat16(), afina.LastLayersConfig(layers=1)).train()
    more = {"decoder_input_ids": IDS} if kind == "t5" else {}
    out = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), **more).logits
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in trained)
    assert sum(p.grad is not None and bool(p.grad.any()) for p in trained) > 5


@pytest.mark.parametrize("options", [{"peft_type": "LAST_LAYERS"}, {"modules_to_save": ["lm_head"]}], ids=str)
def test_a_copy_that_is_not_finite_is_not_put_in_place(options: dict[str, Any]) -> None:
    kind = afina.LastLayersConfig if "peft_type" in options else afina.LoraConfig
    model = afina.get_peft_model(tiny.llama(), kind(task_type="CAUSAL_LM", **options))
    copied = next(p for n, p in model.named_parameters() if p.requires_grad and "lora" not in n)
    copied.data.flatten()[0] = float("nan")
    with pytest.raises(NumericError, match="trained copy is not finite"):
        model.merge_and_unload()
    assert any(p is copied for p in model.parameters())  # nothing was changed


def test_more_layers_than_there_are_is_told() -> None:
    with pytest.warns(AfinaWarning, match=r"layers: 9 \(the model has 2\)"):
        adapted("llama", layers=9)
