"""Adapters on layers that are cut over two processes: by torch's own functions, several at once, refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import afina
from afina.core.layers.sharded import is_sharded
from afina.errors import ConfigError, MergeError

from ...battery.spread import two
from ...train.loop.together import Together


class Block(nn.Module):
    """Two layers, the first of which hands parts on to the second."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.tanh(self.down(torch.tanh(self.up(x)))))
        return out


def blocks(dtype: torch.dtype = torch.float32, **styles: Any) -> tuple[Block, nn.Module]:
    """A block, and the same cut over the processes."""
    torch.manual_seed(0)
    whole = Block().to(dtype)
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel(), "head": ColwiseParallel(output_layouts=Replicate())}
    return whole, parallelize_module(copy.deepcopy(whole), init_device_mesh("cpu", (2,)), plan | styles)


def compared(configs: list[dict[str, Any]], dtype: torch.dtype) -> dict[str, float]:
    """How far outputs and gradients of adapters on a cut block are from those on a whole one."""
    with two():
        models, outs = [afina.get_peft_model(b, afina.LoraConfig(**configs[0])) for b in blocks(dtype)], []
        for number, config in enumerate(configs[1:]):
            for model in models:
                model.add_adapter(f"more{number}", afina.LoraConfig(**config))
                model.base_model.set_adapter(["default", *(f"more{i}" for i in range(number + 1))])
        state = {n: t + 0.2 * torch.randn(t.shape) for n, t in of(models[0]).items()}
        x = torch.randn(3, 5, 8, dtype=dtype)
        for model in models:
            put(model, state)
            given = x.clone().requires_grad_()
            out = model(given)
            out.float().square().sum().backward()
            grads = {n: p.grad.full_tensor() if is_sharded(p.grad) else p.grad for n, p in model.named_parameters()
                     if p.requires_grad}  # fmt: skip
            outs.append({"out": out.detach(), "x": given.grad, **grads})
        assert any(is_sharded(p) for p in models[1].parameters() if p.requires_grad)
        assert all(v.abs().max() > 0 for v in outs[0].values())
        return {n: float((outs[1][n].float() - t.float()).norm() / t.float().norm()) for n, t in outs[0].items()}


def of(model: Any) -> dict[str, torch.Tensor]:
    """All adapters of a model."""
    return {f"{name} {n}": t for name in model.peft_config
            for n, t in afina.get_peft_model_state_dict(model, adapter_name=name).items()}  # fmt: skip


def put(model: Any, state: dict[str, torch.Tensor]) -> None:
    for name in model.peft_config:
        own = {n.partition(" ")[2]: t for n, t in state.items() if n.startswith(f"{name} ")}
        afina.set_peft_model_state_dict(model, own, adapter_name=name)


LAYERS = {"target_modules": ["up", "down", "head"], "r": 3, "init_lora_weights": False}


@pytest.mark.parametrize(
    ("configs", "dtype", "close"),
    [([LAYERS], torch.float32, 1e-5), ([{**LAYERS, "use_dora": True}], torch.float32, 1e-5),
     ([LAYERS, {**LAYERS, "use_dora": True}], torch.float32, 1e-5), ([LAYERS], torch.bfloat16, 2e-2)],
    ids=["lora", "dora", "both", "bfloat16"],
)  # fmt: skip
def test_outputs_and_gradients_are_those_of_whole_layers(
    configs: list[dict[str, Any]], dtype: torch.dtype, close: float, together: Together
) -> None:
    for far in together(compared, configs, dtype):
        assert max(far.values()) < close, far


def refusals() -> list[str]:
    """What is said to what cannot be done."""
    out = []
    with two():
        odd = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel(input_layouts=Shard(-1))}
        for config, styles in ((afina.LoraConfig(target_modules=["up"]), odd),
                               (afina.LoraConfig(target_modules=["down"], modules_to_save=["up"]), {})):  # fmt: skip
            try:
                afina.get_peft_model(blocks(**styles)[1], config)
            except ConfigError as error:
                out.append(str(error))
        model = afina.get_peft_model(blocks()[1], afina.LoraConfig(**LAYERS))
        try:
            model.merge_adapter()
        except MergeError as error:
            out.append(str(error))
    return out


def test_what_cannot_follow_is_refused_in_a_sentence(together: Together) -> None:
    for said in together(refusals):
        assert [line.splitlines()[0] for line in said] == [
            "up: adapters cannot follow how this module is cut over processes",
            "up: adapters cannot follow how this module is cut over processes",
            "model.up: Linear: the layer is cut over processes",
        ]
