"""An export counts as made only if its target said the same; otherwise nothing is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import afina
from afina.errors import CheckpointError, ConfigError, MergeError, NotMergeable
from afina.export.as_lora import as_lora
from afina.export.contract import Subject
from afina.export.formats.all_formats import FORMATS
from afina.export.make import check_request, make
from afina.export.target import Environment

from .subjects import subject, write_base


class Says(Environment):
    """A target that answers as it is told to."""

    wrong = 0

    def lacks(self, module: str, program: str) -> str | None:
        return None

    def run(self, program: str, task: dict[str, Any]) -> dict[str, Any]:
        said = TOLD[0].said
        ids = [[(token + self.wrong) % 259 for token in row] for row in said.ids]
        return {"version": "1", "ids": ids, "prompt_ids": said.prompt_ids, "last": [row.tolist() for row in said.last]}


class SaysOther(Says):
    wrong = 7


TOLD: list[Subject] = []


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def lora(base: Path, environment: Environment | None = None) -> Subject:
    out = subject(base, afina.LoraConfig(r=2, task_type="CAUSAL_LM"), None, environment)
    TOLD[:] = [out]
    return out


def test_what_says_the_same_is_made(base: Path, tmp_path: Path) -> None:
    found = make(FORMATS["mlx"], lora(base, Says()), tmp_path / "out")
    assert (found.same, found.version, found.missing) == (1.0, "1", None)
    assert found.difference == 0
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == ["adapter_config.json", "adapters.safetensors", "afina_export.json"]
    record = json.loads((tmp_path / "out" / "afina_export.json").read_text())
    assert (record["format"], record["target"], record["same"]) == ("mlx", "mlx-lm", 1.0)


def test_what_says_something_else_is_not_kept(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(MergeError, match="differs from the adapter"):
        make(FORMATS["mlx"], lora(base, SaysOther()), tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    assert not list((tmp_path / "out").iterdir())


def test_a_missing_target_is_said_and_never_counts_as_compared(base: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").mkdir()
    found = make(FORMATS["mlx"], lora(base, Environment(tmp_path)), tmp_path / "out")
    assert found.missing == f"mlx_lm is not installed in {tmp_path}"
    assert found.difference is found.version is None
    assert (tmp_path / "out" / "adapters.safetensors").is_file()
    assert "node-llama-cpp is not installed" in str(Environment().lacks("node-llama-cpp", "run_llama_cpp.mjs"))


def test_a_target_that_fails_is_told_in_its_own_words(tmp_path: Path) -> None:
    assert Environment().lacks("torch", "run_onnx.py") is None
    assert "is not installed" in str(Environment().lacks("no_such_module", "run_onnx.py"))
    with pytest.raises(MergeError, match="cannot load what was written") as told:
        Environment().run("run_mlx.py", {})
    assert "Error" in str(told.value)
    with pytest.raises(ConfigError, match="neither an interpreter nor a folder"):
        Environment(tmp_path)


def test_requests_that_no_adapter_could_meet_are_refused_first(tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(ConfigError, match="gguf has no such storage"):
        check_request(FORMATS["gguf"], "q2_k", tmp_path / "out", False)
    monkeypatch.setattr(type(FORMATS["gguf"]), "packages", ("no_such_package",))
    with pytest.raises(ConfigError, match="cannot be written without no_such_package"):
        check_request(FORMATS["gguf"], None, tmp_path / "out", False)


def test_inputs_and_what_is_in_the_way_are_kept(base: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    (tmp_path / "out" / "adapter_config.json").write_text("{}")  # a run's own folder is no export
    for overwrite in (False, True):
        with pytest.raises(CheckpointError, match="holds something"):
            make(FORMATS["vllm"], lora(base), tmp_path / "out", overwrite=overwrite)
    with pytest.raises(ConfigError, match="would overwrite the base"):
        make(FORMATS["safetensors"], lora(base), base, overwrite=True)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["adapter_config.json", "precious.txt"]


def test_a_former_export_is_replaced_when_asked_for(base: Path, tmp_path: Path) -> None:
    for overwrite in (False, True):
        make(FORMATS["mlx"], lora(base, Says()), tmp_path / "out", overwrite=overwrite)
    with pytest.raises(CheckpointError, match="holds something"):
        make(FORMATS["mlx"], lora(base, Says()), tmp_path / "out")


def test_tokens_that_the_target_reads_otherwise_are_a_difference(base: Path, tmp_path: Path) -> None:
    class ReadsOther(Says):
        def run(self, program: str, task: dict[str, Any]) -> dict[str, Any]:
            told = super().run(program, task)
            return {**told, "prompt_ids": [[*row, 5] for row in told["prompt_ids"]]}

    with pytest.raises(MergeError, match="2 differ"):
        make(FORMATS["mlx"], lora(base, ReadsOther()), tmp_path / "out")


def test_the_regret_of_another_choice_is_measured_on_the_adapter(base: Path) -> None:
    from afina.export.said import held

    wanted = lora(base)
    said = wanted.said
    second = [[int(said.last[i].topk(2).indices[1])] for i in range(2)]
    found = held(wanted.trained.model, said, second)
    gaps = [float((row.max() - row[token[0]]) / row.abs().max()) for row, token in zip(said.last, second, strict=True)]
    assert found.regret == pytest.approx(max(gaps), rel=1e-3)
    assert found.same == 0
    shifted = [row + torch.tensor(0.5) for row in said.last]
    assert held(wanted.trained.model, said, said.ids, last=shifted).logits == pytest.approx(
        max(0.5 / float(row.abs().max()) for row in said.last), rel=1e-3)  # fmt: skip


def test_what_a_base_in_16_bits_rounds_away_is_allowed_for(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = write_base(tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    wanted = lora(base, Says())
    assert (wanted.base_storage, wanted.tolerance) == ("bf16", 5e-2)
    assert make(FORMATS["mlx"], wanted, tmp_path / "out").tolerance == 5e-2
    assert make(FORMATS["safetensors"], lora(base), tmp_path / "merged").tolerance == 5e-2


def test_a_model_that_was_trained_as_a_whole_fits_the_formats_of_models(base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    trained = lora(base).trained
    whole = replace(trained, model=trained.model.unload(), is_adapter=False)
    for name, one in FORMATS.items():
        wanted = Subject(whole, licence="mit", hub_base="owner/base", prompts=2, new_tokens=2)
        assert (one.refusal(wanted) is None) == (one.holds == "merged"), name
    with pytest.raises(NotMergeable, match="cannot hold this model: the whole model was trained"):
        make(FORMATS["vllm"], Subject(whole), tmp_path / "out")
    assert make(FORMATS["safetensors"], Subject(whole), tmp_path / "out").difference == 0
    (tmp_path / "gguf").mkdir()
    FORMATS["gguf"].write(Subject(whole, "f32", prompts=2, new_tokens=2), tmp_path / "gguf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "gguf", gguf_file="model.gguf")
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, whole.model(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
    with pytest.raises(NotMergeable, match="no adapter to convert"):
        as_lora(whole, 4)


def test_a_probability_of_nothing_is_infinitely_different(base: Path, tmp_path: Path) -> None:
    class SaysNever(Says):
        def run(self, program: str, task: dict[str, Any]) -> dict[str, Any]:
            return {**super().run(program, task), "logprobs": [[None] * 3] * 2}

    with pytest.raises(MergeError, match="differs from the adapter"):
        make(FORMATS["mlx"], lora(base, SaysNever()), tmp_path / "out")
