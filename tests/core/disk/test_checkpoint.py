"""Saving whole or not at all, other bases, and the state dict functions."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import afina
from afina.core.config import CONFIG_NAME, FORMAT_VERSION, method
from afina.core.disk import checkpoint
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.files import jsonfile
from afina.errors import AfinaError, AfinaWarning, CheckpointError, ConfigError, NumericError

from ..tiny import FIRST, bits, config, inputs, listing, llama, load, mlp, nudge, same_bits, trained

# -- saving whole or not at all ---------------------------------------------------------------------------------------


def test_adapter_that_is_not_finite_leaves_the_old_files(folder: Path) -> None:
    before, model = listing(folder), trained(seed=9)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(NumericError):
        model.save_pretrained(folder)
    assert listing(folder) == before


def test_full_disk_leaves_the_old_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = listing(folder)

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jsonfile.os, "fsync", fail)
    with pytest.raises(CheckpointError, match="No space"):
        trained(seed=9).save_pretrained(folder)
    monkeypatch.undo()
    assert listing(folder) == before


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_file_modes_follow_the_umask(mask: int, tmp_path: Path) -> None:
    old = os.umask(mask)
    try:
        trained().save_pretrained(tmp_path / "a")
    finally:
        os.umask(old)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "a").iterdir()} == {0o666 & ~mask}


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        trained().save_pretrained(tmp_path / name)
    assert listing(tmp_path / "a") == listing(tmp_path / "b")


@pytest.mark.parametrize("count", range(1, 9))
def test_kill_at_any_replace_or_sync_leaves_a_whole_adapter(count: int, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    old, new = trained(seed=1), trained(seed=2, lora_alpha=30)
    old.save_pretrained(folder)
    outputs = [m(inputs()) for m in (old, new)]
    child = os.fork()
    if not child:
        calls = 0

        def dying(event: str, arguments: Any) -> None:
            nonlocal calls
            if event == "os.rename" or (event == "open" and str(folder) in str(arguments[0])):
                calls += 1
                if calls == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(dying)
        new.save_pretrained(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or count > 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AfinaWarning)
        out = load(folder)(inputs())
    assert any(torch.equal(out, expected) for expected in outputs)


def test_kill_between_the_two_renames_is_mended(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if not child:
        real, done = os.replace, []

        def replace(source: Any, target: Any) -> None:
            if done:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(real(source, target))

        checkpoint.os.replace = replace
        trained(seed=2, lora_alpha=30).save_pretrained(folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert json.loads((folder / CONFIG_NAME).read_text())["lora_alpha"] == 3
    with pytest.warns(AfinaWarning, match="interrupted") as told:
        loaded = load(folder)
    assert told[0].filename.endswith("tiny.py")  # whoever loads
    assert torch.equal(loaded(inputs()), trained(seed=2, lora_alpha=30)(inputs()))
    assert json.loads((folder / CONFIG_NAME).read_text())["lora_alpha"] == 30


@pytest.mark.parametrize("taken", [WEIGHTS_NAME, CONFIG_NAME])
def test_torn_pair_is_refused_either_way(taken: str, folder: Path, tmp_path: Path) -> None:
    trained(seed=2, lora_alpha=30).save_pretrained(tmp_path / "new")
    (folder / taken).write_bytes((tmp_path / "new" / taken).read_bytes())
    with pytest.raises(CheckpointError, match="do not belong together"):
        load(folder)


def test_config_that_a_save_left_behind_is_taken_only_if_it_is_that_of_the_weights(folder: Path) -> None:
    values = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**values, "lora_alpha": 77}))
    for alpha in range(10, 20):
        (folder / f".{CONFIG_NAME}.{alpha}").write_text(json.dumps({**values, "lora_alpha": alpha}))
    with pytest.raises(CheckpointError, match="do not belong together"):
        load(folder)
    (folder / f".{CONFIG_NAME}.30").write_text(json.dumps(values))
    with pytest.warns(AfinaWarning, match="interrupted"):
        load(folder)
    assert json.loads((folder / CONFIG_NAME).read_text()) == values


@pytest.mark.parametrize("key", ["base_model_name_or_path", "revision", "inference_mode", "task_type"])
def test_keys_without_mathematics_may_be_edited(key: str, folder: Path) -> None:
    values = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**values, key: "CAUSAL_LM" if key == "task_type" else values[key]}))
    load(folder)


# -- another base -----------------------------------------------------------------------------------------------------


def test_adapter_of_another_base_is_refused_unless_allowed(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="another base"):
        load(folder, mlp(seed=1))
    assert load(folder, mlp(seed=1), allow_other_base=True)(inputs()).isfinite().all()


def test_another_base_and_another_vocabulary_have_to_be_asked_for(folder: Path, tmp_path: Path) -> None:
    other = afina.get_peft_model(mlp(seed=1), config())
    with pytest.raises(CheckpointError, match="another base"):
        checkpoint.load_adapter(other, "default", checkpoint.open_adapter(folder))
    checkpoint.load_adapter(other, "default", checkpoint.open_adapter(folder), allow_other_base=True)
    model = words()
    head = model.get_base_model().lm_head
    with torch.no_grad():
        head.weight += 1
    model.save_pretrained(tmp_path / "all", save_embedding_layers=True)
    with torch.no_grad():
        head.weight -= 1
    with pytest.raises(CheckpointError, match="other embeddings"):
        checkpoint.load_adapter(model, "default", checkpoint.open_adapter(tmp_path / "all"))


@pytest.mark.parametrize("base", [lambda: mlp(width=16), lambda: mlp(depth=2), lambda: mlp(depth=4)])
def test_base_of_another_size_is_refused(base: Callable[[], Any], folder: Path) -> None:
    with pytest.raises(AfinaError):
        load(folder, base())


def test_base_in_another_dtype_is_accepted(folder: Path) -> None:
    loaded = load(folder, mlp().bfloat16())
    assert loaded(inputs().bfloat16()).dtype == torch.bfloat16


def test_base_that_was_merged_is_refused(folder: Path) -> None:
    merged = load(folder).merge_and_unload()
    with pytest.raises(CheckpointError, match="another base"):
        load(folder, merged)


# -- the state dict functions -----------------------------------------------------------------------------------------


def test_state_dict_has_the_references_keys_and_values() -> None:
    import peft

    mine = trained()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(mlp(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"]))
    nudge(theirs)
    a, b = afina.get_peft_model_state_dict(mine), peft.get_peft_model_state_dict(theirs)
    assert {k: v.shape for k, v in a.items()} == {k: v.shape for k, v in b.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = afina.set_peft_model_state_dict(mine, b)
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    assert torch.allclose(mine(inputs()), theirs(inputs()), atol=1e-6)
    result = peft.set_peft_model_state_dict(theirs, a)
    assert not result.unexpected_keys


def test_setting_a_state_dict_is_lenient_as_the_references_is() -> None:
    model = trained()
    state = {k: v.clone() for k, v in afina.get_peft_model_state_dict(model).items()}
    before = bits(model)
    state.pop(FIRST)
    state["base_model.model.head.weight"] = torch.zeros(4, 8)
    with pytest.warns(AfinaWarning, match="missing") as told:
        result = afina.set_peft_model_state_dict(model, state)
    assert result.missing_keys == [FIRST.removeprefix("base_model.model.")]
    assert result.unexpected_keys == ["head.weight"]
    assert told[0].filename == __file__
    assert same_bits(bits(model), before)
    state[FIRST] = torch.zeros(3, 3)
    with pytest.raises(CheckpointError, match="another shape"):
        afina.set_peft_model_state_dict(model, state)
    with pytest.warns(AfinaWarning):
        afina.set_peft_model_state_dict(model, state, ignore_mismatched_sizes=True)


def test_five_keys_of_either_kind_are_named_and_all_are_counted() -> None:
    model = trained()
    names = [f"layers.0.z{i}" for i in range(7)]
    with pytest.warns(AfinaWarning, match="12 and 7 keys") as told:
        missing, unexpected = afina.set_peft_model_state_dict(model, {n: torch.zeros(1) for n in names})
    text = str(told[0].message)
    assert (len(missing), unexpected) == (12, names)
    assert [n in text for n in names] == [True] * 5 + [False] * 2
    assert sum(n in text for n in missing) == 5


def test_gathered_state_is_saved_in_place_of_the_live_one(tmp_path: Path) -> None:
    model = trained()
    gathered = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(inputs())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    model.save_pretrained(tmp_path, state_dict=gathered)
    assert torch.equal(load(tmp_path)(inputs()), expected)


def test_unknown_adapter_is_an_error() -> None:
    with pytest.raises(AfinaError):
        afina.get_peft_model_state_dict(trained(), adapter_name="nope")
    with pytest.raises(AfinaError):
        trained().save_pretrained("/nonexistent", selected_adapters=["nope"])


def test_load_peft_weights_gives_the_files_tensors(folder: Path) -> None:
    tensors = afina.load_peft_weights(folder)
    assert tensors.keys() == load_file(folder / WEIGHTS_NAME).keys()


def test_injected_module_saves_without_the_wrappers_prefix() -> None:
    model = afina.inject_adapter_in_model(config(), mlp())
    state = afina.get_peft_model_state_dict(model)
    assert "layers.0.up.lora_A.weight" in state
    assert afina.set_peft_model_state_dict(model, state).unexpected_keys == []


def test_compiled_model_is_looked_into() -> None:
    model = trained()
    compiled: Any = SimpleNamespace(_orig_mod=model)
    assert afina.get_peft_model_state_dict(compiled, unwrap_compiled=True).keys() == (
        afina.get_peft_model_state_dict(model).keys()
    )


def test_what_all_layers_share_is_gathered_with_and_without_the_wrapper() -> None:
    options = afina.VeraConfig(target_modules=["up"], r=2)
    for model in (afina.get_peft_model(mlp(), options), afina.inject_adapter_in_model(options, mlp())):
        live = afina.get_peft_model_state_dict(model)
        gathered = {k: torch.full_like(t, 7.0) for k, t in model.state_dict().items()}
        found = afina.get_peft_model_state_dict(model, gathered)
        assert found.keys() == live.keys()
        assert all((t == 7).all() for t in found.values())
        shared = [k for k in live if "vera_A" in k or "vera_B" in k]
        assert shared
        assert all(k.startswith("base_model.") for k in shared) == isinstance(model, afina.PeftModel)


def words() -> Any:
    return nudge(afina.get_peft_model(llama(), afina.LoraConfig(task_type="CAUSAL_LM"))).eval()


HEAD = "base_model.model.lm_head.weight"


def test_resized_vocabulary_of_a_state_dict_is_taken_over_and_another_is_refused() -> None:
    model = words()
    state = afina.get_peft_model_state_dict(model, save_embedding_layers=True)
    state[HEAD] = state[HEAD] + 1
    with pytest.warns(AfinaWarning, match="replaced"):  # where the base lies is not known
        assert afina.set_peft_model_state_dict(model, state).unexpected_keys == []
    assert torch.equal(model.get_base_model().lm_head.weight, state[HEAD])
    short = {**state, HEAD: state[HEAD][:5]}
    with pytest.raises(CheckpointError, match="another shape"):
        afina.set_peft_model_state_dict(model, short)
    afina.set_peft_model_state_dict(model, short, ignore_mismatched_sizes=True)
    assert torch.equal(model.get_base_model().lm_head.weight, state[HEAD])


def test_embeddings_of_a_base_with_its_own_vocabulary_are_not_replaced(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    model = words()
    model.get_base_model().config._name_or_path = str(tmp_path)
    state = afina.get_peft_model_state_dict(model, save_embedding_layers=True)
    assert HEAD in state
    assert HEAD not in afina.get_peft_model_state_dict(model)
    assert HEAD not in afina.get_peft_model_state_dict(model, save_embedding_layers=False)
    afina.set_peft_model_state_dict(model, state)
    with pytest.raises(CheckpointError, match="other embeddings"):
        afina.set_peft_model_state_dict(model, {**state, HEAD: state[HEAD] + 1})


def test_state_dict_that_is_not_finite_is_refused() -> None:
    model = trained()
    with pytest.raises(NumericError):
        afina.set_peft_model_state_dict(model, {FIRST: torch.full((2, 8), float("nan"))})


def test_config_is_written_sorted_for_inference_and_with_the_format(folder: Path) -> None:
    text = (folder / CONFIG_NAME).read_text()
    values = json.loads(text)
    assert list(values) == sorted(values)
    assert text.endswith("}\n")
    assert values["inference_mode"] is True
    assert values["peft_version"] == FORMAT_VERSION


def test_file_remembers_its_base_and_whether_it_brings_a_vocabulary(folder: Path, tmp_path: Path) -> None:
    notes = checkpoint.open_adapter(folder).notes
    assert notes["base"]["class"] == "Mlp"
    assert "vocabulary" not in notes
    words().save_pretrained(tmp_path / "all", save_embedding_layers=True)
    assert checkpoint.open_adapter(tmp_path / "all").notes["vocabulary"] is True


def test_tensors_of_a_file_are_put_where_they_are_asked_for(folder: Path) -> None:
    assert all(t.is_meta for t in afina.load_peft_weights(folder, device="meta").values())


def test_virtual_tokens_go_into_no_layer() -> None:
    plain = config()
    assert checkpoint.layer_config(plain) is plain
    with pytest.raises(ConfigError, match="PROMPT_TUNING"):
        checkpoint.layer_config(afina.PromptTuningConfig(num_virtual_tokens=2))


def test_config_of_the_caller_is_taken_for_that_of_the_file(folder: Path) -> None:
    other = config(lora_alpha=9)
    assert checkpoint.open_adapter(folder, config=other).config is other
    assert checkpoint.open_adapter(folder).config.to_dict()["lora_alpha"] == 3


def test_lone_pickle_is_told_with_its_place_and_a_lone_config_without_one(folder: Path) -> None:
    (folder / WEIGHTS_NAME).rename(folder / checkpoint.PICKLE_NAME)
    with pytest.raises(CheckpointError, match=checkpoint.PICKLE_NAME):
        checkpoint.open_adapter(folder)
    (folder / checkpoint.PICKLE_NAME).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS_NAME) as caught:
        checkpoint.open_adapter(folder)
    assert checkpoint.PICKLE_NAME not in str(caught.value)


def test_pickles_of_other_libraries_have_to_be_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(checkpoint, "foreign_file", lambda path, beside, allow: asked.append(allow))
    checkpoint.open_adapter(folder)
    checkpoint.open_adapter(folder, allow_pickle=True)
    assert asked == [False, True]


def test_config_that_trains_is_kept_where_the_file_says_it_otherwise(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "config" not in checkpoint.open_adapter(folder).notes
    for alpha in range(10, 18):
        other = classmethod(lambda cls, c, a=alpha: {"lora_alpha": a})
        monkeypatch.setattr(method(config()).implementation, "disk_config", other)
        trained().save_pretrained(tmp_path / "other")
        assert json.loads((tmp_path / "other" / CONFIG_NAME).read_text())["lora_alpha"] == alpha
        file = checkpoint.open_adapter(tmp_path / "other")
        assert file.notes["config"]["lora_alpha"] == 3
        assert file.config.to_dict()["lora_alpha"] == 3
