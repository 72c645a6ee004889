"""What is shown on the hub: the card, and no path of this machine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import afina
from afina.errors import ConfigError
from afina.export.formats.all_formats import FORMATS
from afina.export.formats.hub_folder import base_id
from afina.export.make import make

from ..subjects import subject, write_base

SCORES = {
    "loss": 0.5, "rows": 10, "accuracy": 0.9, "low": 0.6, "high": 1.0, "majority": 0.5, "f1": None, "samples": [],
    "metric": "accuracy", "f1_of": "entity", "sets": None, "confusion": None, "wrong": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def measured_subject(base: Path, folder: Path) -> Any:
    """A subject whose run left a report."""
    out = subject(base, afina.LoHaConfig(r=2, task_type="CAUSAL_LM"))
    folder.mkdir()
    values = {"training": {}, "before": {**SCORES, "accuracy": 0.4}, "after": SCORES}
    (folder / "report.json").write_text(json.dumps(values))
    out.trained = replace(out.trained, folder=folder)
    return out


def test_the_card_has_results_licence_and_the_bases_id_and_no_path(base: Path, tmp_path: Path) -> None:
    wanted = measured_subject(base, tmp_path / "my-run")
    found = make(FORMATS["hub"], wanted, tmp_path / "out")
    assert found.missing is None
    assert found.difference is not None
    assert found.difference < 1e-5
    text = (tmp_path / "out" / "README.md").read_text()
    head = yaml.safe_load(text.split("---")[1])
    assert (head["base_model"], head["license"], head["library_name"]) == ("owner/base", "apache-2.0", "peft")
    (result,) = head["model-index"][0]["results"]
    assert {m["type"]: m["value"] for m in result["metrics"]} == {"accuracy": 0.9, "loss": 0.5}
    assert "| accuracy | 0.400 | 0.900 |" in text
    for file in (tmp_path / "out").iterdir():
        assert str(base).encode() not in file.read_bytes(), file.name
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "owner/base"


@pytest.mark.parametrize(("change", "says"), [
    ({"licence": None}, "a card needs a licence"),
    ({"hub_base": None}, "read from this machine"),
    ({"hub_base": "/models/base"}, "no id of a model on the hub"),
])  # fmt: skip
def test_what_a_card_would_lack_is_told(change: dict[str, Any], says: str, base: Path, tmp_path: Path) -> None:
    wanted = measured_subject(base, tmp_path / "run")
    for name, value in change.items():
        setattr(wanted, name, value)
    with pytest.raises(ConfigError, match=says):
        make(FORMATS["hub"], wanted, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_base_of_the_hub_is_named_by_itself(base: Path, tmp_path: Path) -> None:
    wanted = measured_subject(base, tmp_path / "run")
    wanted.hub_base = None
    for path, known in (("someone/model", True), ("gpt2", True), ("package:x==1/a.gguf", False), ("~/m", False)):
        wanted.trained.recipe.model.path = path
        if known:
            assert base_id(wanted) == path
        else:
            with pytest.raises(ConfigError, match="read from this machine"):
                base_id(wanted)
