"""What one adapter's folder may cost: small files are answered at once, whatever is in them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from afina.core.config import CONFIG_NAME
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.files.budget import PATTERN_SECONDS, budget
from afina.errors import AfinaError, CheckpointError, ConfigError

from ..tiny import load, mlp, rewrite, trained

BOMB = "((a{1000}){1000}){1000}"
SLOW = "(.*a|.*[^a]){4}(.*){3}x"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    trained().save_pretrained(tmp_path)
    rewrite(tmp_path, lambda tensors: None)
    return tmp_path


def edit(folder: Path, **fields: Any) -> None:
    path = folder / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def _many_tensors(tensors: dict[str, Tensor]) -> None:
    tensors |= {f"base_model.model.layers.{i}.up.lora_A.weight": torch.zeros(1) for i in range(3, 16_000)}


def _header(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS_NAME).write_bytes(len(header).to_bytes(8, "little") + header)


def _large_header(folder: Path) -> None:
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    _header(folder, ("{" + ",".join(f'"layers.{i}.up":{entry}' for i in range(1_300_000)) + "}").encode())


def _huge_shape(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [10**4000] * 1000, "data_offsets": [0, 0]}
    _header(folder, json.dumps({"layers.0.up": entry}).encode())


def _keys(count: int) -> str:
    return ",".join(f'"k{i}":{i}' for i in range(count))


HOSTILE: dict[str, Callable[[Path], Any]] = {
    **{f"bomb in {key}": lambda f, key=key: edit(f, **{key: BOMB}) for key in ("target_modules", "exclude_modules")},
    "bomb in rank_pattern": lambda f: edit(f, rank_pattern={BOMB: 2}),
    "bomb in layers_pattern": lambda f: edit(f, layers_to_transform=[0], layers_pattern=[BOMB]),
    "2,000 slow patterns": lambda f: edit(f, rank_pattern={f"{SLOW}{i}": 2 for i in range(2000)}),
    "slow layers": lambda f: edit(f, layers_to_transform=[0], layers_pattern=[f"{SLOW}{i}" for i in range(2000)]),
    "duplicate key": lambda f: (f / CONFIG_NAME).write_text("{" + _keys(20_000) + ',"k19999":1}'),
    "20,000 unknown keys": lambda f: edit(f, **{f"target_{i}": 1 for i in range(20_000)}),
    "500,000 targets": lambda f: edit(f, target_modules=[f"up{i}" for i in range(500_000)]),
    "16,000 unexpected tensors": lambda f: rewrite(f, _many_tensors),
    "large header": _large_header,
    "huge shape": _huge_shape,
    "deep config": lambda f: (f / CONFIG_NAME).write_text('{"peft_type":' + "[" * 100_000 + "]" * 100_000 + "}"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_refused_at_once_by_its_name(change: Callable[[Path], Any], folder: Path) -> None:
    change(folder)
    start = time.process_time()
    with pytest.raises(AfinaError) as caught:
        load(folder)
    # The promise is a second; processor time, because the machine may be busy.
    assert time.process_time() - start < 1
    text = str(caught.value)
    assert str(folder) in text
    assert len(text.splitlines()) <= 4
    assert len(text) < 2000


def test_thousands_of_exact_names_are_read_within_the_budget(folder: Path) -> None:
    names = [f"layers.{i}.{part}" for i in range(2000) for part in ("up", "down")]
    edit(folder, target_modules=names, rank_pattern=dict.fromkeys(names, 2), alpha_pattern=dict.fromkeys(names, 3))
    start = time.process_time()
    with pytest.warns(UserWarning, match=r"without effect on this model: .*more"):
        load(folder)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("count", [250, 2000])
def test_work_is_linear_in_the_number_of_layers(count: int) -> None:
    """A layer takes as long in a model of eight times the layers."""
    model = mlp(width=2, depth=count)
    names = [f"layers.{i}.up" for i in range(count)]
    start = time.process_time()
    trained(model, target_modules=names, rank_pattern=dict.fromkeys(names, 1))
    assert (time.process_time() - start) / count < 4e-3


def test_budget_that_is_open_is_the_one_that_is_spent() -> None:
    with budget() as outer, budget() as inner:
        assert inner is outer
    with budget() as other:
        assert other is not outer


def test_time_of_all_patterns_is_added_up() -> None:
    with budget() as left:
        for _ in range(9):
            with left.matching("rank_pattern", "x"):
                left.seconds -= PATTERN_SECONDS / 10
        with pytest.raises(ConfigError, match="take too long"), left.matching("rank_pattern", "x"):
            left.seconds -= PATTERN_SECONDS / 10


def test_weights_error_names_the_weights_and_config_error_the_config(folder: Path) -> None:
    rewrite(folder, _many_tensors)
    with pytest.raises(CheckpointError, match=WEIGHTS_NAME):
        load(folder)
    edit(folder, target_modules=["nothing"])
    with pytest.raises(AfinaError, match=CONFIG_NAME):
        load(folder)


def test_counted_repetitions_are_patterns_still() -> None:
    counted = trained(target_modules=r"layers\.\d{1,3}\.(up|down){1}")
    assert sum(p.requires_grad for p in counted.parameters()) == 12
