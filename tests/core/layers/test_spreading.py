"""How a base is spread: what is refused, and what a step costs then."""

from __future__ import annotations

import torch

import afina
from afina.core.layers import spreading

from ...battery import spread, whole
from .test_sharded import llama, lora, said_by


def alone_in_training() -> tuple[str, str]:
    with spread.two():
        model = afina.get_peft_model(spread.spread(llama()), lora()).train()
        apart = said_by(lambda: model(input_ids=whole.IDS))
        base = spread.spread(llama())
        met = spreading.meeting(afina.get_peft_model(base, lora()).train())
        return apart, said_by(lambda: met(input_ids=whole.IDS))


def test_an_adapter_that_came_after_sharding_is_refused_before_the_first_step_unless_gradients_meet(together):
    for apart, met in together(alone_in_training):
        assert "each process would train this adapter by itself" in apart
        assert met == "nothing"


def with_whole_numbers() -> str:
    with spread.two():
        base = llama()
        base.register_parameter("codes", torch.nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False))
        return said_by(lambda: spreading.shard(base, spread.CPU))


def test_weights_of_whole_numbers_are_refused(together):
    assert all("codes" in said and "cannot be spread" in said for said in together(with_whole_numbers))


def gathered_in_backward() -> list[str]:
    """What frozen weights cost in a backward pass: the names of its collectives."""
    from torch.profiler import ProfilerActivity, profile

    with spread.two():
        model = spreading.meeting(spread.spread(afina.get_peft_model(llama(), lora())))
        out = model(input_ids=whole.IDS[:1]).logits.square().mean()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            out.backward()
        return sorted({e.key for e in seen.key_averages() if e.key.startswith("c10d::")})


def test_frozen_weights_are_gathered_again_in_the_backward_pass_and_have_no_gradients_to_bring_together(together):
    for seen in together(gathered_in_backward):
        assert any("allgather" in name for name in seen), seen
        assert any("allreduce" in name for name in seen), seen  # the adapters'
        assert not any("reduce_scatter" in name for name in seen), seen
