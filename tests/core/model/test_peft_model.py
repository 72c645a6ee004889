"""`PeftModel`: every public member, beside the reference's on the same toy."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import nn

import afina
from afina.core.hosts.host_kinds import ModulesToSaveWrapper
from afina.errors import AfinaError, AfinaWarning, CheckpointError, NameTakenError

from ..tiny import bert, bits, config, inputs, llama, mlp, nudge, same_bits, trained

TOKENS = torch.tensor([[1, 5, 9, 3], [2, 4, 8, 7]])


def theirs(base: nn.Module | None = None, **options: Any) -> Any:
    """The reference's model for the same config."""
    values = {"r": 2, "lora_alpha": 3, "target_modules": ["up", "down"], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(base or mlp(), peft.LoraConfig(**values))


def both(**options: Any) -> tuple[Any, Any]:
    """(ours, the reference's)."""
    return afina.get_peft_model(mlp(), config(**options)), theirs(**options)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"modules_to_save": ["head"]}], ids=str)
def test_counts_and_printed_line_are_the_references(
    options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    mine, reference = both(**options)
    assert mine.get_nb_trainable_parameters() == reference.get_nb_trainable_parameters()
    mine.print_trainable_parameters()
    first = capsys.readouterr().out
    reference.print_trainable_parameters()
    assert first == capsys.readouterr().out


def test_structure_and_facts_are_the_references() -> None:
    mine, reference = both(task_type="FEATURE_EXTRACTION")
    assert type(mine).__name__ == type(reference).__name__
    for attribute in ("active_adapter", "active_adapters"):
        assert getattr(mine, attribute) == getattr(reference, attribute)
    assert list(mine.peft_config) == list(reference.peft_config)
    assert mine.peft_type == reference.peft_type
    assert type(mine.base_model.model) is type(mine.get_base_model()) is type(reference.base_model.model)
    assert mine.base_model.prefix == reference.base_model.prefix
    assert mine.active_peft_config is mine.peft_config["default"]
    assert mine.head is mine.base_model.model.head


@pytest.mark.parametrize(
    ("task", "name"),
    [("CAUSAL_LM", "CausalLM"), ("SEQ_2_SEQ_LM", "Seq2SeqLM"), ("SEQ_CLS", "SequenceClassification"),
     ("TOKEN_CLS", "TokenClassification"), ("QUESTION_ANS", "QuestionAnswering"),
     ("FEATURE_EXTRACTION", "FeatureExtraction")],
)  # fmt: skip
def test_task_chooses_the_class(task: str, name: str) -> None:
    model = afina.get_peft_model(mlp(), config(task_type=task))
    assert type(model) is getattr(afina, f"PeftModelFor{name}")
    assert model.peft_config["default"].task_type == task


@pytest.mark.parametrize(
    ("head", "task"),
    [("BertForSequenceClassification", "SEQ_CLS"), ("BertForTokenClassification", "TOKEN_CLS"),
     ("BertForQuestionAnswering", "QUESTION_ANS")],
)  # fmt: skip
def test_classification_heads_train_along_as_in_the_reference(head: str, task: str, tmp_path: Path) -> None:
    mine = afina.get_peft_model(bert(head), afina.LoraConfig(task_type=task))
    reference = theirs(bert(head), r=8, lora_alpha=8, target_modules=None, task_type=task)
    assert mine.get_nb_trainable_parameters() == reference.get_nb_trainable_parameters()
    assert sorted(afina.get_peft_model_state_dict(mine)) == sorted(peft.get_peft_model_state_dict(reference))
    nudge(mine).eval()
    mine.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = peft.PeftModel.from_pretrained(bert(head), tmp_path).eval()
    a, b = mine(TOKENS), read(TOKENS)
    assert all(torch.allclose(a[k], b[k], atol=1e-5) for k in a)
    loaded = afina.PeftModel.from_pretrained(bert(head), tmp_path)
    assert type(loaded) is type(mine)
    assert all(torch.equal(a[k], v) for k, v in loaded(TOKENS).items())


def test_modules_to_save_keys_and_wrapper_are_the_references() -> None:
    mine, reference = both(modules_to_save=["head"])
    assert sorted(afina.get_peft_model_state_dict(mine)) == sorted(peft.get_peft_model_state_dict(reference))
    wrapper = mine.base_model.model.head
    assert isinstance(wrapper, ModulesToSaveWrapper)
    assert type(wrapper).__name__ == type(reference.base_model.model.head).__name__
    assert wrapper.original_module is not wrapper.modules_to_save["default"]
    assert [n for n, p in wrapper.named_parameters() if p.requires_grad]


def test_saved_module_goes_with_its_adapter() -> None:
    model = trained(modules_to_save=["head"])
    out = model(inputs())
    model.add_adapter("second", config(modules_to_save=["head"]))
    model.set_adapter("second")
    nudge(model, 8)
    other = model(inputs())
    assert not torch.allclose(out, other)
    model.set_adapter("default")
    assert torch.equal(model(inputs()), out)
    with model.disable_adapter():
        assert torch.equal(model(inputs()), mlp().requires_grad_(False)(inputs()))
    plain = model.merge_and_unload()
    assert isinstance(plain.head, nn.Linear)
    assert torch.allclose(plain(inputs()), out, atol=1e-5)


def test_unload_gives_the_original_head_back() -> None:
    assert same_bits(bits(trained(modules_to_save=["head"]).unload()), bits(mlp()))


def test_adapters_switch_and_stack_by_name() -> None:
    model = trained()
    model.add_adapter("b", config(use_dora=True))
    assert model.active_adapters == ["default"]
    model.set_adapter("b")
    assert (model.active_adapter, model.active_adapters) == ("b", ["b"])
    assert {n.split(".adapters.")[1].split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"b"}
    model.set_adapter(["default", "b"])
    assert model.active_adapters == ["default", "b"]
    model.set_adapter("default", inference_mode=True)
    assert not any(p.requires_grad for p in model.parameters())
    model.set_requires_grad("b", True)
    assert any(p.requires_grad for n, p in model.named_parameters() if ".b." in n)
    for call in (model.set_adapter, model.delete_adapter, lambda n: model.merge_adapter([n]), model.set_requires_grad):
        with pytest.raises(NameTakenError, match="defaul"):
            call("defaultt")


def test_deleting_the_active_adapter_activates_the_first_of_the_rest() -> None:
    model = trained()
    model.add_adapter("b", config())
    with pytest.warns(AfinaWarning, match="'b' is active now"):
        model.delete_adapter("default")
    assert list(model.peft_config) == ["b"]


def test_switching_while_merged_unmerges_first() -> None:
    model = trained()
    model.add_adapter("b", config())
    model.merge_adapter()
    with pytest.warns(AfinaWarning, match="unmerging"):
        model.set_adapter("b")
    assert same_bits(bits(model.unload()), bits(mlp()))


def test_disabling_nests_an_error() -> None:
    model = trained()
    out = model(inputs())
    with pytest.raises(RuntimeError), model.disable_adapter():
        raise RuntimeError
    assert torch.equal(model(inputs()), out)


def test_context_of_another_library_may_train_through_the_model() -> None:
    model = trained().train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(inputs()).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, p in model.named_parameters() if p.requires_grad}


def test_training_here_follows_the_references_training() -> None:
    mine, reference = both(lora_alpha=8)
    state = {k: v.clone() for k, v in afina.get_peft_model_state_dict(mine).items()}
    peft.set_peft_model_state_dict(reference, state)
    outputs = []
    for model in (mine.train(), reference.train()):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            (model(inputs()) - 1).square().mean().backward()
            optimizer.step()
        outputs.append(model(inputs()).detach())
    assert torch.allclose(*outputs, atol=1e-5)


def test_same_seed_gives_the_references_start() -> None:
    torch.manual_seed(3)
    mine = afina.get_peft_model(mlp(), config())
    names = {k: v.shape for k, v in afina.get_peft_model_state_dict(mine).items()}
    assert names == {k: v.shape for k, v in peft.get_peft_model_state_dict(theirs()).items()}


def test_adapter_config_records_base_and_revision(tmp_path: Path) -> None:
    base = llama()
    base.save_pretrained(tmp_path / "base")
    base = type(base).from_pretrained(tmp_path / "base")
    model = afina.get_peft_model(base, afina.LoraConfig(task_type="CAUSAL_LM"), revision="abc")
    model.save_pretrained(tmp_path / "adapter")
    read = afina.PeftConfig.from_pretrained(tmp_path / "adapter")
    assert (read.base_model_name_or_path, read.revision, read.inference_mode) == (str(tmp_path / "base"), "abc", True)


def test_model_card_keeps_the_users_text(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    card = tmp_path / "README.md"
    assert "library_name: peft" in card.read_text()
    card.write_text("---\nlicense: mit\n---\nMy own words.\n" + card.read_text().split("# Adapter")[1])
    model.create_or_update_model_card(tmp_path)
    text = card.read_text()
    assert text.startswith("---\nlicense: mit\nlibrary_name: peft\ntags:\n- lora\n- afina\n---\nMy own words.")
    assert text.count("<!-- written by afina") == 1
    model.save_pretrained(tmp_path)
    assert card.read_text() == text


def test_push_to_hub_uploads_what_save_pretrained_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    seen: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            seen["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> Any:
            seen["repo"] = (repo_id, options)
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: str, **options: Any) -> str:
            seen["files"] = sorted(p.name for p in Path(folder_path).iterdir())
            return "done"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert trained().push_to_hub("me/it", token="t", private=True) == "done"
    assert seen["repo"] == ("me/it", {"private": True, "exist_ok": True})
    assert seen["files"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]


def test_works_on_a_module_that_is_no_transformer() -> None:
    model = afina.get_peft_model(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), config(target_modules=["0"])
    )
    assert model(torch.ones(2, 4)).shape == (2, 2)


def test_root_module_itself_cannot_be_replaced_and_says_so() -> None:
    with pytest.raises(AfinaError):
        afina.get_peft_model(nn.Linear(4, 4), config(target_modules="all-linear"))


def test_what_trains_goes_on_training_when_another_adapter_comes(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path / "first")
    trained(seed=2).save_pretrained(tmp_path / "second")
    model = afina.PeftModel.from_pretrained(mlp(), tmp_path / "first", "a")
    assert not any(p.requires_grad for p in model.parameters())
    model.set_adapter("a")
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert learning
    model.load_adapter(tmp_path / "second", "b")
    model.add_adapter("c", config())
    afina.load_adapters(model, {"d": tmp_path / "second"})
    assert {n for n, p in model.named_parameters() if p.requires_grad} == learning
    with pytest.raises(CheckpointError):
        model.load_adapter(tmp_path / "nowhere", "e")
    assert {n for n, p in model.named_parameters() if p.requires_grad} == learning


def test_an_adapter_loaded_to_be_trained_is_in_an_optimizer_made_before_it_is_active(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path / "first")
    trained(seed=2, modules_to_save=["head"]).save_pretrained(tmp_path / "second")
    model = afina.PeftModel.from_pretrained(mlp(), tmp_path / "first", "a")
    model.load_adapter(tmp_path / "second", "b", is_trainable=True)
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    assert model.active_adapters == ["a"]
    model.set_adapter("b")
    assert learning == {n for n, p in model.named_parameters() if p.requires_grad} != set()


def test_tensors_of_another_shape_are_left_out_on_request_and_told(tmp_path: Path) -> None:
    mine = trained(mlp(), target_modules=["up"], modules_to_save=["head"])
    mine.save_pretrained(tmp_path)
    base = mlp()
    base.head = nn.Linear(base.head.in_features, base.head.out_features + 1)
    fresh = base.head.weight.clone()
    with pytest.raises(CheckpointError, match="another shape"):
        afina.PeftModel.from_pretrained(base, tmp_path, allow_other_base=True)
    options = {"ignore_mismatched_sizes": True, "allow_other_base": True}
    with pytest.warns(AfinaWarning, match=r"2 tensors of another shape are left out and start afresh: head"):
        model = afina.PeftModel.from_pretrained(base, tmp_path, **options)
    with pytest.warns(AfinaWarning, match="another shape"):
        model.load_adapter(tmp_path, "second", **options)
    read = afina.get_peft_model_state_dict(mine)
    for name in ("default", "second"):
        here = afina.get_peft_model_state_dict(model, adapter_name=name)
        assert torch.equal(here.pop("base_model.model.head.weight"), fresh)
        assert [torch.equal(read[k], t) for k, t in here.items() if "lora" in k] == [True] * 6
    assert torch.isfinite(model(inputs())).all()
