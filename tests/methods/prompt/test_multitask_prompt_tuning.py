"""Multitask prompt tuning: task numbers, and starts from what other tasks have learnt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import afina

from ..test_prompts import TOKENS, adapted, build, ids

peft = pytest.importorskip("peft", reason="the reference is the oracle")


@pytest.mark.parametrize("start", ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"])
def test_start_from_other_tasks_is_the_references(start: str, tmp_path: Path) -> None:
    source, x = adapted(afina, "MultitaskPromptTuningConfig", "llama"), ids()
    source.save_pretrained(tmp_path)
    outs = []
    for library in (peft, afina):
        torch.manual_seed(5)
        config = library.MultitaskPromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, num_tasks=1, num_ranks=2, prompt_tuning_init=start,
            prompt_tuning_init_task=1, prompt_tuning_init_state_dict_path=str(tmp_path / "adapter_model.safetensors"),
        )  # fmt: skip
        model = library.get_peft_model(build("llama"), config).eval()
        with torch.no_grad():
            outs.append(model(input_ids=x, attention_mask=torch.ones_like(x), task_ids=torch.zeros(2).long()).logits)
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
    with torch.no_grad():
        learnt = source(input_ids=x, attention_mask=torch.ones_like(x), task_ids=torch.ones(2).long()).logits
    assert torch.allclose(outs[1], learnt, atol=1e-5) == (start == "EXACT_SOURCE_TASK")


def test_start_from_a_file_of_other_sizes_is_refused(tmp_path: Path) -> None:
    adapted(afina, "MultitaskPromptTuningConfig", "llama").save_pretrained(tmp_path)
    path = {"prompt_tuning_init_state_dict_path": str(tmp_path / "adapter_model.safetensors")}
    for wrong, told in (({"num_ranks": 3}, "shape"), ({"num_ranks": 2, "prompt_tuning_init_task": 3}, "fewer tasks")):
        config = afina.MultitaskPromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, prompt_tuning_init="EXACT_SOURCE_TASK", **path, **wrong
        )
        with pytest.raises(afina.errors.ConfigError, match=told):
            afina.get_peft_model(build("llama"), config)


def test_multitask_prompts_train_and_generate_on_encoder_decoder_models() -> None:
    model, x, tasks = adapted(afina, "MultitaskPromptTuningConfig", "t5"), ids(), torch.tensor([0, 2])
    model(input_ids=x, decoder_input_ids=x[:, :3], task_ids=tasks).logits.sum().backward()
    assert all(p.grad is not None for p in model.prompt_encoder.parameters())
    settings = {"max_new_tokens": 4, "do_sample": False}
    both = model.generate(input_ids=x, task_ids=tasks, **settings)
    for i in range(2):
        alone = model.generate(input_ids=x[i : i + 1], task_ids=tasks[i : i + 1], **settings)
        assert torch.equal(alone[0], both[i, : alone.shape[1]])


def test_one_task_is_that_of_all_rows() -> None:
    model, x = adapted(afina, "MultitaskPromptTuningConfig", "llama"), ids()
    with torch.no_grad():
        one, each = (model(input_ids=x, task_ids=tasks).logits for tasks in (torch.tensor([2]), torch.tensor([2, 2])))
        assert torch.equal(one, each)
        assert not torch.allclose(one, model(input_ids=x, task_ids=[1, 1]).logits, atol=1e-4)
    with pytest.raises(afina.errors.ConfigError, match="task_ids"):
        model(input_ids=x, task_ids=torch.tensor([0, 1, 2]))


def test_multitask_prompt_without_task_ids_is_an_error() -> None:
    model = adapted(afina, "MultitaskPromptTuningConfig", "llama")
    with pytest.raises(afina.errors.ConfigError, match="task"):
        model(input_ids=ids())


def test_generation_without_the_prompt_needs_no_task() -> None:
    model, x = adapted(afina, "MultitaskPromptTuningConfig", "llama"), ids()
    settings = {"attention_mask": torch.ones_like(x), "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    with model.disable_adapter():
        off = model.generate(input_ids=x, task_ids=torch.zeros(2, dtype=torch.long), **settings)
    assert torch.equal(off, build("llama").generate(input_ids=x, **settings))
