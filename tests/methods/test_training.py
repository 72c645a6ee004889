"""Every method trains: on a model that knows four tasks but not which one is meant, it learns which one.

A tiny Llama learns four random permutations f_1 ... f_4 of 32 symbols: after the tokens [task, symbol] comes
f_task(symbol). A fifth task token means any of the four, so the best that the frozen model can say is a guess among
four answers (a loss of ln 4 = 1.39). Then each method learns that it means one of them, on all 32 symbols at once.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afina
from afina.core.config import methods
from afina.methods.baselines.full import Full

from .training_table import MARGIN, ROWS, VARIANTS, Trains

VARIANT = pytest.mark.whole("LoRA as it comes trains")
SYMBOLS, TASKS, ANY = 32, 4, 36
STEPS = 60


def mapping(task: int) -> Tensor:
    """The permutation of a task."""
    return torch.randperm(SYMBOLS, generator=torch.Generator().manual_seed(task))


def examples(token: int, task: int) -> Tensor:
    """[token, symbol, answer] for all symbols: (32, 3)."""
    symbols = torch.arange(SYMBOLS)
    return torch.stack([torch.full_like(symbols, token), symbols, mapping(task)], dim=1)


def loss_on(model: nn.Module, rows: Tensor, **inputs: int) -> Tensor:
    """Of the answers only."""
    labels = rows.clone()
    labels[:, :2] = -100
    more = {name: torch.full((len(rows),), value) for name, value in inputs.items()}
    return model(input_ids=rows, attention_mask=torch.ones_like(rows), labels=labels, **more).loss


@pytest.fixture(scope="module")
def base() -> nn.Module:
    """The model that knows the four tasks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, attention_bias=True, mlp_bias=True, pad_token_id=0,
    ))  # fmt: skip
    rows = torch.cat([examples(SYMBOLS + task, task) for task in range(TASKS)])
    rows = torch.cat([rows, *(examples(ANY, task) for task in range(TASKS))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss_on(model, rows).backward()
        optimizer.step()
    return model.eval()


def adapted(base: nn.Module, name: str, row: Trains) -> Any:
    """A copy of the model with an untrained adapter."""
    model = copy.deepcopy(base)
    config = methods()[name].config(**row.options, task_type="CAUSAL_LM")
    torch.manual_seed(1)
    return Full.prepare(model) if name == "FULL" else afina.get_peft_model(model, config)


def train(model: Any, rows: Tensor, rate: float, **inputs: int) -> None:
    """All rows at once, `STEPS` times."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    update = getattr(model.train(), "update_and_allocate", lambda step: None)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_on(model, rows, **inputs).backward()
        optimizer.step()
        update(step)
    model.eval()


def experts(base: nn.Module, tasks: tuple[int, ...], folder: Path) -> dict[str, str]:
    """A LoRA for each task, on disk."""
    for task in tasks:
        model = adapted(base, "LORA", Trains())
        train(model, examples(ANY, task), 2e-3)
        model.save_pretrained(folder / str(task))
    return {str(task): str(folder / str(task)) for task in tasks}


def test_rows_are_about_methods_that_exist() -> None:
    assert set(ROWS) <= set(methods())


def test_frozen_model_knows_the_tasks_and_guesses_which_one(base: nn.Module) -> None:
    with torch.no_grad():
        for task in range(TASKS):
            assert loss_on(base, examples(SYMBOLS + task, task)) < 0.1
            assert 1.2 < loss_on(base, examples(ANY, task)) < 1.6


@pytest.mark.parametrize(("name", "row"), [
    *(pytest.param(name, ROWS.get(name, Trains()), id=name) for name in methods()),
    *(pytest.param("LORA", row, id=variant, marks=VARIANT) for variant, row in VARIANTS.items()),
])  # fmt: skip
def test_method_lowers_the_loss_by_its_margin(name: str, row: Trains, base: nn.Module, tmp_path: Path) -> None:
    if row.experts:
        row = replace(row, options={**row.options, "adapters": experts(base, row.experts, tmp_path)})
    rows = examples(ANY, 2)
    with torch.no_grad():
        frozen = loss_on(base, rows).item()
    model = adapted(base, name, row)
    rate = row.scale * methods()[name].config.default_learning_rate
    train(model, rows, rate, **row.inputs)
    with torch.no_grad():
        trained = loss_on(model, rows, **row.inputs).item()
    assert trained < frozen - row.margin, f"{frozen:.3f} -> {trained:.3f} at a learning rate of {rate:g}"


def test_arrow_lowers_the_loss_without_training_and_more_with_its_experts_trained(
    base: nn.Module, tmp_path: Path
) -> None:
    rows, folders = examples(ANY, 2), experts(base, (0, 2), tmp_path)
    settings = afina.ArrowConfig(top_k=2)
    model = afina.create_arrow_model(copy.deepcopy(base), list(folders.values()), settings)
    with torch.no_grad():
        frozen, mixed = loss_on(base, rows).item(), loss_on(model, rows).item()
    # One of two experts knows the task; how they mix hangs on roundings: .37 better with AVX2, .19 with AMX.
    assert mixed < frozen - 0.1
    model.set_requires_grad(["task_0", "task_1"])
    train(model, rows, 2e-3)
    with torch.no_grad():
        assert loss_on(model, rows).item() < frozen - MARGIN
