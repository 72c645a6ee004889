from __future__ import annotations

import json

import pytest
import torch

from afina.kernels.cpu import native

from ..train import tiny
from ..train.child import command


def test_doctor_tells_device_dtype_kernels_and_packages_on_one_screen(child):
    code, out, _ = child(command, "doctor", "--device", "cpu")
    assert code == 0
    assert all(word in out for word in ("devices\n  ", "dtype: ", "attention: ", "kernels on cpu", "packages"))
    assert len(out.splitlines()) <= 40


def test_doctor_tells_programs_the_same(child):
    code, out, _ = child(command, "doctor", "--json", "--device=cpu")
    value = json.loads(out)
    assert code == 0
    assert value["device"] == "cpu"
    off = {k["why"] for k in value["kernels"] if k["state"] == "off"}
    assert value["instructions"] == native.instructions(), off
    assert value["dtype"]["dtype"] in ("float32", "bfloat16")
    assert {k["state"] for k in value["kernels"]} <= {"right", "off"}
    assert value["devices"][-1]["name"] == "cpu"
    assert {"name", "version", "install"} <= value["packages"][0].keys()


def wrong_kernel(*words):
    """`afina doctor` on a machine whose LoRA is wrong."""
    from afina.kernels import selftest

    real = selftest.lora_linear
    selftest.lora_linear = lambda x, w, bias, a, b, s: real(x, w, bias, a, b, 2 * s)
    return command(*words)


def test_doctor_ends_with_2_where_a_kernel_is_not_its_formula(child):
    code, out, _ = child(wrong_kernel, "doctor", "--device", "cpu")
    assert code == 2
    assert "not right: LoRA with its frozen layer" in out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is such a device here")
@pytest.mark.parametrize("verb", ["train", "compare", "tune", "chat", "predict", "merge", "convert", "doctor"])
def test_every_command_that_runs_a_model_refuses_a_device_that_is_not_there(verb, tmp_path, model_folder, child):
    import afina

    recipe = tiny.write_recipe(tmp_path, model_folder)
    adapter = tmp_path / "adapter"
    if verb in ("chat", "predict", "merge", "convert"):
        from transformers import AutoModelForCausalLM

        model = afina.get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), afina.LoraConfig())
        model.save_pretrained(adapter)
    words = {
        "train": [recipe],
        "compare": [recipe],
        "tune": [recipe],
        "chat": [adapter, "--prompt", "a"],
        "predict": [adapter, tmp_path / "eval.jsonl"],
        "merge": [adapter, tmp_path / "merged"],
        "convert": [adapter, tmp_path / "converted"],
        "doctor": [],
    }
    code, _, err = child(command, verb, *words[verb], "--device", "cuda")
    assert code == 2
    assert "this device is not there" in err
    assert "got: cuda; expected: cpu (" in err
    assert not (tmp_path / "out").exists()
