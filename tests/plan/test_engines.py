"""What engines take is what torch itself lays out, for group sizes that no test could start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

import afina
from afina.core.hosts.walk import outside_adapters
from afina.plan.engines import ENGINES, Part, Spreadable, cost, costs, spreadable

SHAPES = {"vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64,
          "num_key_value_heads": 8}  # fmt: skip


def llama(targets: str | list[str] = "all-linear", blocks: int = 1, **shapes: Any) -> Any:
    import transformers

    with torch.device("meta"):
        config = transformers.LlamaConfig(num_hidden_layers=blocks, **{**SHAPES, **shapes})
        base = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
        return afina.get_peft_model(base, afina.LoraConfig(r=16, target_modules=targets))


@contextmanager
def pretended(processes: int) -> Iterator[None]:
    """A group of so many processes, of which this one alone is there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def local_bytes(tensors: Any) -> int:
    return sum(p.to_local().numel() * p.element_size() if hasattr(p, "to_local") else p.numel() * p.element_size()
               for p in tensors)  # fmt: skip


def fully_sharded(processes: int) -> int:
    """Bytes of this one's slices of the base, as `fully_shard` lays them out."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    with pretended(processes):
        base = llama().unload()
        mesh = init_device_mesh("cpu", (processes,))
        for module in (*base.model.layers, base):
            fully_shard(module, mesh=mesh)
        return local_bytes(base.parameters())


def cut(processes: int) -> tuple[int, int]:
    """Bytes of this one's parts of the base and of an adapter, as transformers and afina cut them."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    with pretended(processes):
        base = llama().unload()
        mesh = init_device_mesh("cpu", (processes,), mesh_dim_names=("tp",))
        plan = base._expand_parallel_plan(base.tp_plan)
        for name in list(base.tp_plan):
            style = {n: s for n, s in plan.items() if n.endswith(name.rpartition("*")[2])}
            plan |= {f"{n}.weight": s for n, s in style.items()}
        apply_tensor_parallelism(base, mesh, plan)
        model = afina.get_peft_model(base, afina.LoraConfig(r=16, target_modules="all-linear"), low_cpu_mem_usage=True)
        own = {id(p) for _, m in outside_adapters(model.get_base_model()) for p in m._parameters.values()}
        every = list(model.parameters())
        return local_bytes(p for p in every if id(p) in own), local_bytes(p for p in every if id(p) not in own)


@pytest.mark.parametrize("processes", [8, 64])
def test_slices_are_those_that_fully_shard_makes(processes: int, child: Any) -> None:
    model = spreadable(llama().get_base_model())
    found = cost("fsdp2", model, processes, activations=0, tokens=1)
    assert found is not None
    assert found.base == child(fully_sharded, processes)


def test_parts_are_those_of_a_tensor_parallel_base_and_adapter(child: Any) -> None:
    model = spreadable(llama().get_base_model())
    found = cost("tp", model, 8, activations=0, tokens=1)
    assert found is not None
    base, adapter = child(cut, 8)
    assert found.base == base
    assert found.adapter == 4 * adapter
    assert cost("tp", model, 64, activations=0, tokens=1) is None  # eight heads


def test_facts_are_the_models_own_numbers() -> None:
    model = llama(["q_proj"], blocks=2, tie_word_embeddings=True)
    found = spreadable(model.get_base_model())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    assert (found.all.frozen, found.all.trained) == (frozen, trained)
    assert found.deepened(2) == found
    assert found.blocks == found.block.times(2)


def test_traffic_follows_the_rings() -> None:
    model = Spreadable(Part(50, 100, 0), Part(500, 1000, 10), Part(1000, 2000, 20), None)
    found = dict(costs(model, 4, activations=400, tokens=7, passes=3))
    assert list(found) == list(ENGINES)
    made = {engine: cost for engine, cost in found.items() if cost is not None}
    assert made["ddp"].traffic == made["zero2"].traffic == 30  # twice 3/4 of 20
    assert made["fsdp2"].traffic == 3 * 0.75 * (100 + 2 * 2000) + 30
    assert made["zero3"].traffic == 2 * 3 * 0.75 * 2100 + 30
    assert {cost.activations for cost in made.values()} == {100}
    assert made["zero2"].adapter == made["ddp"].adapter - 20 - 30  # buckets, and three quarters of the moments
    assert (made["zero3_offload"].base, made["zero3_offload"].host) == (0, made["zero3"].base + 10)
    assert "tp" not in made


def test_full_fine_tuning_is_cut_as_torch_cuts_it_and_counted_once(child: Any) -> None:
    import transformers

    with torch.device("meta"):
        config = transformers.LlamaConfig(num_hidden_layers=1, **SHAPES)
        model = spreadable(transformers.LlamaForCausalLM(config).to(torch.bfloat16))
    assert model.full
    assert not spreadable(llama().get_base_model()).full
    found = {engine: cost for engine, cost in costs(model, 8, activations=8, tokens=1) if cost is not None}
    whole = model.all.frozen
    part = child(fully_sharded, 8)
    assert (found["fsdp2"].base, found["fsdp2"].adapter) == (part, 3 * part)
    assert found["fsdp2"].memory - found["fsdp2"].gathered == 4 * part + 1
    assert found["fsdp2"].gathered == model.outside.frozen + 2 * model.block.frozen
    assert found["ddp"].adapter == 4 * whole  # gradients, DDP's buckets, two moments
    assert found["zero2"].adapter == whole + 2 * part
    assert (found["zero3_offload"].base, found["zero3_offload"].host) == (0, 3 * part)
    assert "tp" not in found
