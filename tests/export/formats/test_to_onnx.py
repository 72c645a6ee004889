"""ONNX, where its packages are installed (`pip install 'afina[export]'`); benchmarks.exports compares a real model."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

import afina
from afina.export.contract import Subject
from afina.export.formats.all_formats import FORMATS
from afina.export.make import make
from afina.train.tasks import named

from ...train import tiny
from ..subjects import nudge, subject, trained, write_base

MISSING = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} not installed"),
    pytest.mark.whole("torch takes ten seconds to write a model as ONNX"),
]


def test_a_language_model_says_the_same_at_every_length(tmp_path: Path) -> None:
    wanted = subject(write_base(tmp_path / "base"), afina.LoHaConfig(r=2, task_type="CAUSAL_LM"))
    found = make(FORMATS["onnx"], wanted, tmp_path / "out")
    assert found.same == 1
    assert found.difference is not None
    assert found.difference < 1e-4


def test_an_encoder_gives_the_same_for_texts_of_every_length(tmp_path: Path) -> None:
    from transformers import BertForSequenceClassification

    base = tiny.write_encoder(tmp_path / "base")
    model = afina.get_peft_model(BertForSequenceClassification.from_pretrained(base),
                                 afina.IA3Config(task_type="SEQ_CLS"))  # fmt: skip
    nudge(model, 1)
    like = trained(write_base(tmp_path / "other"), afina.LoraConfig(task_type="CAUSAL_LM"))
    of_encoder = replace(like, model=model.eval(), task=named("sequence_classification"))
    found = make(FORMATS["onnx"], Subject(of_encoder), tmp_path / "out")
    assert found.what == "outputs for 6 texts of several lengths"
    assert found.difference is not None
    assert found.difference < 1e-4
