"""Base and adapter from one folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import afina
from afina.core.config import CONFIG_NAME
from afina.core.disk import fingerprint
from afina.core.files.package_folder import model_folder
from afina.core.model.auto import on_adapter
from afina.errors import AfinaError, AfinaWarning, CheckpointError, ConfigError

from ..tiny import bert, gpt2, llama, nudge, saved, t5

TOKENS = torch.tensor([[1, 5, 9, 3]])

MODELS: list[tuple[str, Callable[[], Any], str, str]] = [
    ("llama", llama, "CAUSAL_LM", "CausalLM"),
    ("gpt2", gpt2, "CAUSAL_LM", "CausalLM"),
    ("t5", t5, "SEQ_2_SEQ_LM", "Seq2SeqLM"),
    ("sequence", bert, "SEQ_CLS", "SequenceClassification"),
    ("tokens", lambda: bert("BertForTokenClassification"), "TOKEN_CLS", "TokenClassification"),
    ("answers", lambda: bert("BertForQuestionAnswering"), "QUESTION_ANS", "QuestionAnswering"),
    ("features", lambda: bert("BertModel"), "FEATURE_EXTRACTION", "FeatureExtraction"),
]


def run(model: Any) -> torch.Tensor:
    """The first output."""
    more = {"decoder_input_ids": TOKENS} if model.config.model_type == "t5" else {}
    with torch.no_grad():
        return model(input_ids=TOKENS, **more)[0]


@pytest.mark.parametrize(("name", "build", "task", "suffix"), MODELS, ids=lambda v: v if isinstance(v, str) else "")
def test_base_and_adapter_come_from_one_folder(name: str, build: Any, task: str, suffix: str, tmp_path: Path) -> None:
    model = nudge(afina.get_peft_model(saved(build(), tmp_path / "base"), afina.LoraConfig(task_type=task))).eval()
    model.save_pretrained(tmp_path / "adapter")
    for cls in (afina.AutoPeftModel, getattr(afina, f"AutoPeftModelFor{suffix}")):
        loaded = cls.from_pretrained(tmp_path / "adapter")
        assert type(loaded) is type(model)
        assert torch.equal(run(loaded), run(model))
        assert not any(p.requires_grad for p in loaded.parameters())
    assert any(
        p.requires_grad
        for p in afina.AutoPeftModel.from_pretrained(tmp_path / "adapter", is_trainable=True).parameters()
    )


def test_class_of_another_task_is_refused(tmp_path: Path) -> None:
    model = afina.get_peft_model(saved(llama(), tmp_path / "base"), afina.LoraConfig(task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="another task"):
        afina.AutoPeftModelForSeq2SeqLM.from_pretrained(tmp_path / "adapter")


def test_without_a_task_the_recorded_class_is_used(tmp_path: Path) -> None:
    model = nudge(afina.get_peft_model(saved(gpt2(), tmp_path / "base"), afina.LoraConfig())).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = afina.AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert type(loaded.get_base_model()).__name__ == "GPT2LMHeadModel"
    assert torch.equal(run(loaded), run(model))


@pytest.mark.parametrize(
    "mapping",
    [
        {"parent_library": "subprocess", "base_model_class": "Popen"},
        {"parent_library": "transformers_evil", "base_model_class": "X"},
        {"parent_library": "transformers.models.gpt2", "base_model_class": "GPT2LMHeadModel.from_pretrained"},
        {"parent_library": "transformers", "base_model_class": "pipeline"},
        {"parent_library": "transformers", "base_model_class": "NoSuchModel"},
        {"parent_library": ["transformers"], "base_model_class": 3},
        {},
    ],
    ids=str,
)
def test_file_does_not_decide_what_is_imported(mapping: dict[str, Any], tmp_path: Path) -> None:
    model = afina.get_peft_model(saved(gpt2(), tmp_path / "base"), afina.LoraConfig())
    model.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_mapping": mapping}))
    with pytest.raises(AfinaError, match="transformers"):
        afina.AutoPeftModel.from_pretrained(tmp_path / "adapter")


def test_adapter_without_a_base_says_so(tmp_path: Path) -> None:
    afina.get_peft_model(gpt2(), afina.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="which base"):
        afina.AutoPeftModelForCausalLM.from_pretrained(tmp_path)


def test_options_of_the_base_are_passed_on(tmp_path: Path) -> None:
    afina.get_peft_model(saved(llama(), tmp_path / "base"), afina.LoraConfig(task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "a"
    )
    loaded = afina.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.bfloat16)
    assert loaded.get_base_model().lm_head.weight.dtype == torch.bfloat16


def test_the_class_itself_cannot_be_built() -> None:
    with pytest.raises(OSError, match="from_pretrained"):
        afina.AutoPeftModelForCausalLM()


class Elsewhere(torch.nn.Module):
    """A base that no package of the default list has."""

    @classmethod
    def from_pretrained(cls, name: str, **_: Any) -> Any:
        return saved_base(name)


def saved_base(name: str) -> Any:
    from transformers import GPT2LMHeadModel

    return GPT2LMHeadModel.from_pretrained(name)


def test_a_package_is_imported_from_if_the_caller_allows_it(tmp_path: Path) -> None:
    afina.get_peft_model(saved(gpt2(), tmp_path / "base"), afina.LoraConfig()).save_pretrained(tmp_path / "a")
    path = tmp_path / "a" / CONFIG_NAME
    values = json.loads(path.read_text())
    path.write_text(
        json.dumps({**values, "auto_mapping": {"parent_library": __name__, "base_model_class": "Elsewhere"}})
    )
    for allowed in (None, ["transformers"], ["tests.core.mode"]):
        with pytest.raises(ConfigError, match="import_allowlist"):
            afina.AutoPeftModel.from_pretrained(tmp_path / "a", import_allowlist=allowed)
    for allowed in ([__name__], ["tests"]):
        assert afina.AutoPeftModel.from_pretrained(tmp_path / "a", import_allowlist=allowed).peft_config
    path.write_text(json.dumps({**values, "auto_mapping": {"parent_library": "no_such", "base_model_class": "X"}}))
    with pytest.raises(ConfigError, match="cannot be imported"):
        afina.AutoPeftModel.from_pretrained(tmp_path / "a", import_allowlist=["no_such"])


def test_a_revision_that_takes_anothers_place_is_told() -> None:
    config = afina.LoraConfig(revision="old")
    with pytest.warns(AfinaWarning, match="'new' takes the place"):
        assert afina.get_peft_model(gpt2(), config, revision="new").peft_config["default"].revision == "new"


def test_base_in_a_package_is_found_where_it_was_fetched_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFINA_CACHE", str(tmp_path / "cache"))
    config = afina.LoraConfig(task_type="CAUSAL_LM")
    model = nudge(afina.get_peft_model(saved(llama(), tmp_path / "base"), config)).eval()
    model.peft_config["default"].base_model_name_or_path = "package:thing==1.0/inside"
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="in a package that is not here") as caught:
        afina.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert "package:thing==1.0/inside" in str(caught.value)
    inside = tmp_path / "cache" / "packages" / "package-thing-1.0" / "files" / "inside"
    shutil.copytree(tmp_path / "base", inside)
    loaded = afina.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(run(loaded), run(model))
    (inside / "model.gguf").write_bytes(b"GGUF")
    model.peft_config["default"].base_model_name_or_path = "package:thing==1.0/inside/model.gguf"
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="not here"):
        afina.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    digest = hashlib.sha256(b"GGUF").hexdigest()[:16]
    shutil.copytree(tmp_path / "base", tmp_path / "cache" / "models" / f"model-{digest}")
    assert torch.equal(run(afina.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")), run(model))


@pytest.mark.parametrize("reference", ["package:thing/../x", "package:thing//etc"])
def test_base_stays_inside_its_package(reference: str) -> None:
    with pytest.raises(ConfigError, match="stays inside"):
        model_folder(reference)


def test_names_that_are_no_packages_are_left_to_transformers() -> None:
    assert [model_folder(name) for name in ("owner/name", "/a/b", "sdist:a/b")] == ["owner/name", "/a/b", "sdist:a/b"]


def test_adapter_on_a_merged_one_is_told_apart_where_little_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SAMPLED_TENSORS", 1)
    only = afina.LoraConfig(task_type="CAUSAL_LM", target_modules=["down_proj"], layers_to_transform=[1])
    below = nudge(afina.get_peft_model(saved(llama(), tmp_path / "base"), only))
    below.save_pretrained(tmp_path / "below")
    config = afina.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])

    def on_top() -> None:
        merged = on_adapter(llama(), str(tmp_path / "below"))
        nudge(afina.get_peft_model(merged, config)).save_pretrained(tmp_path / "top")

    with pytest.MonkeyPatch.context() as without:
        without.setattr(fingerprint, "_CHANGED", 0)
        on_top()
        afina.PeftModel.from_pretrained(llama(), tmp_path / "top")  # the one sampled tensor is the same
    on_top()
    with pytest.raises(CheckpointError, match=r"with the adapter .*below merged in"):
        afina.PeftModel.from_pretrained(llama(), tmp_path / "top")
    by_hand = afina.PeftModel.from_pretrained(llama(), tmp_path / "below").merge_and_unload()
    afina.PeftModel.from_pretrained(by_hand, tmp_path / "top")
