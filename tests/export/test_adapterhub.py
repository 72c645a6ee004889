"""Adapters of AdapterHub's library: its files read, and written again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import afina
from afina.errors import AfinaError, AfinaWarning, CheckpointError, ConfigError
from afina.export import adapterhub
from afina.train.report.events import Reporter
from afina.train.use.trained import load_trained

from ..train.tiny import write_model
from .adapterhub_cases import CASES, FOLDER, NAME, Case, build, fill, output

WEIGHTS = "adapter.safetensors"
LOCAL = ("bert_par_bn", "bert_post_add", "gpt2_par_bn", "llama_seq_bn", "t5_double_seq_bn")


def expected(key: str) -> torch.Tensor:
    return load_file(FOLDER / key / "expected.safetensors")["output"]


def loaded(key: str, folder: Path | None = None, **options: Any) -> Any:
    return afina.PeftModel.from_pretrained(build(CASES[key]), folder or FOLDER / key, **options)


def copied(key: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER / key, tmp_path / key))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    values["config"] |= {k: v for k, v in changes.items() if k in values["config"] or k == "architecture"}
    values |= {k: v for k, v in changes.items() if k not in values["config"] and k != "architecture"}
    path.write_text(json.dumps(values))


def edit_weights(folder: Path, change: Any) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def test_every_case_has_its_files_and_no_others() -> None:
    assert {p.name for p in FOLDER.iterdir()} == set(CASES)


@pytest.mark.parametrize("key", CASES)
def test_outputs_equal_those_of_adapterhub(key: str) -> None:
    torch.testing.assert_close(output(loaded(key), CASES[key]), expected(key), rtol=1e-5, atol=1e-5)
    assert (output(build(CASES[key]), CASES[key]) - expected(key)).abs().max() > 0.05


@pytest.mark.parametrize("key", CASES)
def test_written_files_equal_those_of_adapterhub_bit_for_bit(key: str, tmp_path: Path) -> None:
    adapterhub.save(loaded(key), tmp_path, name=NAME)
    theirs, ours = load_file(FOLDER / key / WEIGHTS), load_file(tmp_path / WEIGHTS)
    assert set(theirs) == set(ours)
    assert all(theirs[n].equal(ours[n]) and theirs[n].dtype == ours[n].dtype for n in theirs)
    configs = [json.loads((f / "adapter_config.json").read_text()) for f in (FOLDER / key, tmp_path)]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("key", LOCAL)
def test_an_adapter_of_adapterhub_survives_our_own_format(key: str, tmp_path: Path) -> None:
    loaded(key).save_pretrained(tmp_path)
    torch.testing.assert_close(output(loaded(key, tmp_path), CASES[key]), expected(key), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("key", "other"), [("bert_par_bn", "BertForSequenceClassification"), ("bert_seq_bn", "BertModel")]
)
def test_names_fit_with_and_without_a_head(key: str, other: str) -> None:
    case = Case("bert", other, "")
    base = build(case)
    plain = output(base, case)
    model = afina.PeftModel.from_pretrained(base, FOLDER / key)
    assert (output(model, case) - plain).abs().max() > 0.01


def test_a_second_adapter_switches_and_unloading_gives_the_base_back() -> None:
    case = CASES["bert_par_bn"]
    plain = output(build(case), case)
    model = loaded("bert_par_bn")
    model.load_adapter(FOLDER / "bert_post_add", "second")
    model.set_adapter("second")
    torch.testing.assert_close(output(model, case), expected("bert_post_add"), rtol=1e-5, atol=1e-5)
    model.set_adapter("default")
    torch.testing.assert_close(output(model, case), expected("bert_par_bn"), rtol=1e-5, atol=1e-5)
    with model.disable_adapter():
        assert output(model, case).equal(plain)
    assert output(model.unload(), case).equal(plain)


def test_layers_that_only_hand_on_the_stream_do_not_count() -> None:
    status = afina.get_model_status(loaded("bert_par_bn"))
    assert (status.num_adapter_layers, status.requires_grad) == (3, {"default": False})


def test_other_adapters_on_the_same_layers_keep_their_names(tmp_path: Path) -> None:
    model = loaded("bert_post_add")
    model.add_adapter("lora", afina.LoraConfig(r=2, target_modules=["query", "dense"]))
    model.save_pretrained(tmp_path, selected_adapters=["lora"])
    names = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight" in names
    assert not any("base_layer" in n for n in names)


@pytest.mark.parametrize("key", ["bert_post_add", "llama_par_bn", "t5_par_bn"])
def test_gradients_are_the_same_under_checkpointing(key: str) -> None:
    grads = []
    for checkpointing in (False, True):
        model = loaded(key, is_trainable=True).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        ids = torch.arange(3, 9)[None]
        more = {"decoder_input_ids": ids} if key.startswith("t5") else {}
        torch.manual_seed(0)  # for the models' dropout
        model(input_ids=ids, **more)[0].square().sum().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert all(g is not None and g.abs().sum() > 0 for n, g in grads[0].items() if n.endswith("up.weight"))
    for name, gradient in grads[0].items():
        torch.testing.assert_close(grads[1][name], gradient)


def test_compiling_breaks_no_graph_where_the_stream_is_handed_on() -> None:
    case = CASES["bert_post_add"]
    model = torch.compile(loaded("bert_post_add"), backend="eager", fullgraph=True)
    torch.testing.assert_close(output(model, case), expected("bert_post_add"), rtol=1e-5, atol=1e-5)


def test_a_bfloat16_base_keeps_its_dtype() -> None:
    for key in ("bert_post_add", "llama_par_bn"):
        case = CASES[key]
        model = afina.PeftModel.from_pretrained(build(case).to(torch.bfloat16), FOLDER / key)
        found = output(model, case)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), expected(key), rtol=0.1, atol=0.15)


# -- refused ----------------------------------------------------------------------------------------------------------


def refused(key: str, folder: Path, error: type[AfinaError], words: str) -> None:
    """Loading fails with at most four lines, and leaves the model as it was."""
    base = build(CASES[key])
    with pytest.raises(error, match=words) as caught:
        afina.PeftModel.from_pretrained(base, folder)
    assert len(str(caught.value).splitlines()) <= 4
    assert output(base, CASES[key]).equal(output(build(CASES[key]), CASES[key]))


def test_damaged_tensors_are_refused(tmp_path: Path) -> None:
    first = "encoder.layer.0.output.adapters.tiny.adapter_up.weight"
    changes = {
        "missing": lambda t: {n: v for n, v in t.items() if n != first},
        "shape": lambda t: {**t, first: t[first][:, :1].contiguous()},
        "unexpected": lambda t: {**t, first.replace("tiny", "another"): t[first].clone()},
        "not finite": lambda t: {**t, first: t[first] * float("nan")},
        "twice": lambda t: {**t, f"bert.{first}": t[first].clone()},
    }
    for word, change in changes.items():
        folder = copied("bert_par_bn", tmp_path / word)
        edit_weights(folder, change)
        refused("bert_par_bn", folder, AfinaError, word)


def test_an_adapter_of_another_architecture_is_refused() -> None:
    refused("bert_par_bn", FOLDER / "roberta_seq_bn", CheckpointError, "another architecture")


@pytest.mark.parametrize(
    "changes",
    [{"inv_adapter": "nice"}, {"phm_layer": True}, {"ln_after": True}, {"architecture": "prefix_tuning"},
     {"original_ln_after": False}, {"non_linearity": "prelu"}],
)  # fmt: skip
def test_options_that_are_not_available_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = copied("bert_par_bn", tmp_path)
    edit_config(folder, **changes)
    refused("bert_par_bn", folder, ConfigError, next(iter(changes)) if "architecture" not in changes else "bottleneck")


def test_a_pickle_is_read_only_if_allowed(tmp_path: Path) -> None:
    folder = copied("bert_par_bn", tmp_path)
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_adapter.bin")
    (folder / WEIGHTS).unlink()
    refused("bert_par_bn", folder, CheckpointError, "allow_pickle=True")
    model = loaded("bert_par_bn", folder, allow_pickle=True)
    torch.testing.assert_close(output(model, CASES["bert_par_bn"]), expected("bert_par_bn"), rtol=1e-5, atol=1e-5)


def test_an_allowed_pickle_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (tmp_path / "ran",))

    folder = copied("bert_par_bn", tmp_path)
    (folder / WEIGHTS).unlink()
    torch.save({"x": Evil()}, folder / "pytorch_adapter.bin")
    with pytest.raises(CheckpointError, match="not a file of tensors"):
        loaded("bert_par_bn", folder, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_a_head_beside_the_adapter_is_mentioned(tmp_path: Path) -> None:
    folder = copied("bert_seq_bn", tmp_path)
    (folder / "head_config.json").write_text("{}")
    with pytest.warns(AfinaWarning, match="head"):
        loaded("bert_seq_bn", folder)


def test_files_without_a_version_have_the_older_names(tmp_path: Path) -> None:
    folder = copied("bert_seq_bn", tmp_path)
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text())
    del values["version"]
    values["config"]["non_linearity"] = "gelu_orig"
    path.write_text(json.dumps(values))
    edit_weights(folder, lambda t: {n.replace(".adapters.", ".layer_text_task_adapters."): v for n, v in t.items()})
    torch.testing.assert_close(output(loaded("bert_seq_bn", folder), CASES["bert_seq_bn"]), expected("bert_seq_bn"),
                               rtol=1e-5, atol=1e-5)  # fmt: skip


# -- writing what was made here ---------------------------------------------------------------------------------------


def test_a_new_adapter_is_written_and_read(tmp_path: Path) -> None:
    case = CASES["llama_par_bn"]
    config = afina.BottleneckConfig(placement="houlsby", reduction_factor=4, layers_to_transform=[0, 2])
    model = afina.get_peft_model(build(case), config)
    fill((n, p) for n, p in model.named_parameters() if p.requires_grad)
    model.eval()
    adapterhub.save(model, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["config"]["leave_out"] == [1]
    assert output(loaded("llama_par_bn", tmp_path), case).equal(output(model, case))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (afina.LoraConfig(target_modules=["query"]), "only bottleneck"),
        (afina.BottleneckConfig(target_modules=["pooler"]), "no adapter at this place"),
        (afina.BottleneckConfig(placement="houlsby", target_modules=["output.dense", "layer.1.output.dense"],
                                exclude_modules=["layer.0.attention.output.dense"]), "same places"),
        (afina.BottleneckConfig(modules_to_save=["pooler"]), "no place for this"),
    ],
)  # fmt: skip
def test_what_the_layout_cannot_hold_is_not_written(config: Any, words: str, tmp_path: Path) -> None:
    model = afina.get_peft_model(build(CASES["bert_par_bn"]), config)
    with pytest.raises(ConfigError, match=words) as caught:
        adapterhub.save(model, tmp_path / "out")
    assert len(str(caught.value).splitlines()) <= 4
    assert not (tmp_path / "out").exists()


# -- on the command line ----------------------------------------------------------------------------------------------


def made_on_tiny_llama(folder: Path, base: type) -> Any:
    model = afina.get_peft_model(base.from_pretrained(write_model(folder / "base")), afina.BottleneckConfig())
    fill((n, p) for n, p in model.named_parameters() if p.requires_grad)
    adapterhub.save(model.eval(), folder / "adapter")
    return model


def test_commands_take_a_folder_of_adapterhub(tmp_path: Path) -> None:
    model = made_on_tiny_llama(tmp_path, transformers.LlamaForCausalLM)
    trained = load_trained(tmp_path / "adapter", Reporter())
    ids = torch.arange(3, 20)[None]
    assert trained.model(input_ids=ids).logits.equal(model(input_ids=ids).logits)


def test_commands_refuse_a_folder_whose_head_is_elsewhere(tmp_path: Path) -> None:
    made_on_tiny_llama(tmp_path, transformers.LlamaForSequenceClassification)
    with pytest.raises(CheckpointError, match="heads are not read") as caught:
        load_trained(tmp_path / "adapter", Reporter())
    assert len(str(caught.value).splitlines()) <= 4
