"""Calls that cannot be meant so: each is told in a sentence, and nothing has changed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import afina
from afina.errors import CheckpointError, ConfigError, MergeError

from ..tiny import bits, config, inputs, listing, llama, mlp, nudge, same_bits, trained


def both() -> Any:
    model = trained()
    model.add_adapter("other", config(r=3))
    return model


@pytest.mark.parametrize("names", [None, 3, [3], ["other", "other"], {"other"}], ids=str)
@pytest.mark.parametrize("verb", ["set_adapter", "merge_adapter", "merge_and_unload"])
def test_what_are_no_names_each_once_is_refused(verb: str, names: Any) -> None:
    if names is None and verb != "set_adapter":
        return  # the active ones
    model = both()
    before, active = bits(model), model.active_adapters
    options = {"adapter_name": names} if verb == "set_adapter" else {"adapter_names": names}
    with pytest.raises(ConfigError, match="adapter_name"):
        getattr(model, verb)(**options)
    assert same_bits(bits(model), before)
    assert model.active_adapters == active


def test_one_name_of_several_letters_is_merged() -> None:
    model = trained()
    out = model(inputs())
    model.merge_adapter("default")
    assert torch.allclose(model(inputs()), out, atol=1e-6)
    assert model.base_model.model.layers[0]["up"].merged == ("default",)


@pytest.mark.parametrize("wrong", [3, {"peft_type": "LORA"}, None, "LORA"], ids=str)
def test_what_is_no_config_is_refused(wrong: Any) -> None:
    base = mlp()
    model = trained()
    for call in (lambda: afina.get_peft_model(base, wrong), lambda: afina.inject_adapter_in_model(wrong, base),
                 lambda: model.add_adapter("new", wrong), lambda: afina.PeftModel(base, wrong)):  # fmt: skip
        with pytest.raises(ConfigError, match="peft_config"):
            call()
    assert same_bits(bits(base), bits(mlp()))


def test_what_is_no_model_is_refused() -> None:
    for call in (lambda: afina.get_peft_model(3, config()), lambda: afina.inject_adapter_in_model(config(), "gpt2")):
        with pytest.raises(ConfigError, match="model"):
            call()


PLACES = ["", None, 3, "a\0b", "a" * 5000, "/dev/null/x", "/proc/nothing"]


@pytest.mark.parametrize("place", PLACES, ids=lambda p: repr(p)[:20])
def test_what_is_no_folder_is_not_written_to(place: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        trained().save_pretrained(place)
    assert len(str(caught.value)) < 1000
    assert not listing(tmp_path)


@pytest.mark.parametrize("place", ["a" * 5000, "a\0b", "circle"], ids=lambda p: repr(p)[:20])
def test_what_is_no_folder_is_not_read(place: str, tmp_path: Path) -> None:
    if place == "circle":
        trained().save_pretrained(tmp_path)
        (tmp_path / "adapter_config.json").unlink()
        os.symlink(tmp_path / "adapter_config.json", tmp_path / "adapter_config.json")
        place = str(tmp_path)
    with pytest.raises(CheckpointError):
        afina.PeftModel.from_pretrained(mlp(), place)


def test_a_state_without_the_adapters_tensors_is_not_saved(tmp_path: Path) -> None:
    model = trained(bias="lora_only")
    state = model.state_dict()
    for missing in (next(k for k in state if "lora_B" in k), next(k for k in state if ".biases." in k)):
        with pytest.raises(CheckpointError, match="lacks tensors"):
            model.save_pretrained(tmp_path, state_dict={k: t for k, t in state.items() if k != missing})
    assert not listing(tmp_path)
    model.save_pretrained(tmp_path, state_dict=state)
    assert torch.equal(afina.PeftModel.from_pretrained(mlp(), tmp_path)(inputs()), model(inputs()))


def test_no_adapters_and_none_chosen_are_two_things(tmp_path: Path) -> None:
    both().save_pretrained(tmp_path, selected_adapters=[])
    assert not listing(tmp_path)
    model = trained()
    model.delete_adapter("default")
    with pytest.raises(ConfigError, match="no adapter to save"):
        model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no adapter is active"):
        _ = model.active_peft_config
    assert torch.equal(model(inputs()), mlp()(inputs()))


def test_an_option_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_embedding_layers"):
        trained().save_pretrained(tmp_path, save_embedding_layers="odd")


class Twice(nn.Module):
    """One layer at two places, of which the first is adapted."""

    def __init__(self, shared: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 4)
        self.second = self.first if shared else nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.filterwarnings("ignore::afina.errors.AfinaWarning")
def test_merging_does_not_reach_where_nothing_is_adapted() -> None:
    x = torch.randn(3, 4)
    for shared in (True, False):
        base = Twice(shared)
        plain = base(x)
        model = nudge(afina.get_peft_model(base, config(target_modules=["first"]))).eval()
        out = model(x)
        assert not torch.equal(out, plain)
        if shared:
            for verb in (model.merge_adapter, model.merge_and_unload):
                with pytest.raises(MergeError, match="stands elsewhere"):
                    verb()
            assert torch.equal(model(x), out)
        else:  # the same weight in two layers: each has its own place for it
            model.merge_adapter()
            assert torch.allclose(model(x), out, atol=1e-6)
            model.unmerge_adapter()
        assert torch.equal(model.unload()(x), plain)


@pytest.mark.parametrize("options", [
    {"target_modules": ["embed_tokens"]}, {"target_modules": ["lm_head"]}, {"modules_to_save": ["lm_head"]},
    {"trainable_token_indices": [1]},
], ids=str)  # fmt: skip
def test_vocabulary_below_an_adapter_is_not_resized(options: dict[str, Any]) -> None:
    model = afina.get_peft_model(llama(), afina.LoraConfig(**{"target_modules": ["q_proj"], **options}))
    before = bits(model)
    with pytest.raises(ConfigError, match=r"(?s)made for their size.*resize the base first"):
        model.resize_token_embeddings(40)
    assert same_bits(bits(model), before)
    assert model.resize_token_embeddings().weight.shape[0] == 32


def test_vocabulary_without_an_adapter_on_it_is_resized() -> None:
    model = afina.get_peft_model(llama(), afina.LoraConfig(target_modules=["q_proj"]))
    assert model.resize_token_embeddings(40, mean_resizing=False).weight.shape[0] == 40
    assert model(torch.tensor([[39]])).logits.shape[-1] == 40


@pytest.mark.parametrize("in_settings", [False, True])
def test_prefix_with_a_cache_of_a_fixed_size_is_refused(in_settings: bool) -> None:
    prefix = afina.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    model = afina.get_peft_model(llama(), prefix)
    options = {} if in_settings else {"cache_implementation": "static"}
    if in_settings:
        model.get_base_model().generation_config.cache_implementation = "static"
    with pytest.raises(ConfigError, match=r"(?s)cache_implementation.*static.*leave it out"):
        model.generate(input_ids=torch.tensor([[1, 2]]), max_new_tokens=2, **options)
    model.get_base_model().generation_config.cache_implementation = None
    assert model.generate(input_ids=torch.tensor([[1, 2]]), max_new_tokens=2).shape[0] == 1
    with pytest.raises(ConfigError, match=r"^generate: no input_ids were given"):
        model.generate()
