"""Every dropout that a config offers does something in training, and nothing outside of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import afina
from afina.core.config import methods

from .harness import adapted, call, distance
from .kinds import KINDS
from .table import ROWS, Row


def _rates(row: Row) -> list[str]:
    fields = dataclasses.fields(getattr(afina, row.config))
    return [f.name for f in fields if "dropout" in f.name and isinstance(f.default, float)]


# One plain row for each config; variants of LoRA have ways of their own to treat the input.
_PLAIN = {r.config: r for r in reversed(ROWS) if "linear" in r.kinds and r.config != "LoraConfig"}
_LORA = [r for r in ROWS if r.config == "LoraConfig" and "linear" in r.kinds and not r.options.get("lora_dropout")]
_CASES = [(r, n) for r in (*_PLAIN.values(), *_LORA) for n in _rates(r)]


def _outputs(row: Row, **options: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Several outputs in training, and the one in evaluation."""
    kind = dataclasses.replace(KINDS["linear"], extra=row.inputs)
    torch.manual_seed(0)
    model = adapted(dataclasses.replace(row, options={**row.options, **options}), kind)
    with torch.no_grad():
        evaluated = call(model, kind, kind.inputs())
        model.train()
        return [call(model, kind, kind.inputs()) for _ in range(6)], evaluated


@pytest.mark.parametrize(("row", "field"), _CASES, ids=str)
def test_dropout_drops_in_training_only(row: Row, field: str) -> None:
    trained, evaluated = _outputs(row, **{field: 0.5})
    assert max(distance(t, trained[0]) for t in trained) > 1e-3
    torch.testing.assert_close(evaluated, _outputs(row)[1])


def test_every_config_with_a_dropout_is_tested() -> None:
    offered = {m.config.__name__ for m in methods().values() for f in dataclasses.fields(m.config)
               if "dropout" in f.name}  # fmt: skip
    # Whole-model methods, which have torch's modules in a place of their own.
    elsewhere = {"PromptEncoderConfig", "ShadowConfig", "XLoraConfig"}
    assert offered - {r.config for r, _ in _CASES} == elsewhere
