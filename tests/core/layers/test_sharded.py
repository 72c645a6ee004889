"""Weights of which a process has a part: what is refused, and what is read."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

import afina
from afina.core.layers import sharded
from afina.core.layers.whole_model import dense_copy
from afina.devices.ranks import meet, rank
from afina.errors import AfinaError

from ...battery import spread, whole

DECODER = whole.SHAPES["decoder"]


def llama() -> Any:
    return DECODER.build(0, whole.WIDTH)


def lora() -> Any:
    return afina.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM", target_modules=["q_proj"])


def said_by(run: Any) -> str:
    try:
        run()
    except AfinaError as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def merged() -> list[str]:
    with spread.two():
        model = afina.get_peft_model(spread.spread(llama()), lora())
        return [said_by(run) for run in (model.merge_adapter, model.merge_and_unload)]


def test_merging_into_a_part_of_a_weight_is_refused(together):
    for said in together(merged):
        assert all("the weight is spread over processes" in s for s in said), said


def saved_alone(folder: str) -> tuple[str, bool]:
    from torch.distributed.fsdp import fully_shard

    patience, sharded.PATIENCE = sharded.PATIENCE, timedelta(seconds=1)
    try:
        with spread.two():
            model = afina.get_peft_model(llama(), lora())
            for block in model.get_base_model().model.layers:
                fully_shard(block)
            fully_shard(model)
            said = said_by(lambda: model.save_pretrained(f"{folder}/alone")) if rank() == 0 else ""
            meet()
            model.save_pretrained(f"{folder}/together")
            meet()
            part = {n: p for n, p in model.named_parameters() if sharded.is_sharded(p)}
            refused = said_by(lambda: model.save_pretrained(f"{folder}/part", state_dict=part))
            return said + refused, Path(folder, "together", "adapter_model.safetensors").exists()
    finally:
        sharded.PATIENCE = patience


def test_a_process_that_saves_its_part_alone_is_told_so_and_all_together_can_still_save(together, tmp_path):
    (first, there), (second, _) = together(saved_alone, str(tmp_path))
    assert there
    assert "not all others came" in first
    assert "this process has a part of the tensor" in second
    assert not (tmp_path / "part" / "adapter_model.safetensors").exists()


def copied() -> tuple[bool, bool, str]:
    with spread.two():
        base = spread.spread(llama())
        block: Any = dense_copy(base.model.layers[0])
        plain = llama().model.layers[0]
        same = all(torch.equal(a, b) for a, b in zip(block.parameters(), plain.parameters(), strict=True))
        return same, not any(map(sharded.is_sharded, block.parameters())), type(block).__name__


def test_the_copy_of_a_sharded_block_is_whole(together):
    assert together(copied) == [(True, True, "LlamaDecoderLayer")] * 2
