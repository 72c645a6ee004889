from __future__ import annotations

import pytest

from ..train import tiny
from ..train.child import command


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, model_folder, child):
    folder = tmp_path_factory.mktemp("inspected")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        recipe = tiny.write_recipe(folder, model_folder, training__max_steps=2, method__r=4)
        code, _, err = child(command, "train", str(recipe))
    assert code == 0, err
    return folder / "out"


def test_model_is_shown_with_modules_and_counts(model_folder, child):
    code, out, _ = child(command, "inspect", str(model_folder), "--methods", "lora,bitfit,full")
    assert code == 0
    lines = [line.split() for line in out.splitlines()]
    assert ["model.layers.*.mlp.up_proj", "Linear", "64", "x", "32", "2", "times"] in lines
    assert ["full", "26,880", "100.000%"] in lines
    assert "default targets: q_proj, v_proj (4 modules)" in out
    assert "memory: weights 105 KiB in float32" in out
    assert any(line[:2] == ["bitfit", "-"] for line in lines)
    assert ["ia3"] not in [line[:1] for line in lines]


def test_adapter_is_shown_with_what_differs_from_the_defaults(adapter, model_folder, child):
    code, out, _ = child(command, "inspect", str(adapter))
    assert code == 0
    assert "method    lora, task CAUSAL_LM" in out
    assert "setting   r: 4" in out
    assert f"base      {model_folder}" in out
    assert "not checked (--base MODEL)" in out


def test_adapter_that_fits_is_told_so(adapter, model_folder, child):
    code, out, _ = child(command, "inspect", str(adapter), "--base", str(model_folder))
    assert code == 0
    assert "yes: all 28 tensors" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "--methods", "loraa"], "did you mean 'lora'?"),
        (["MODEL", "--base", "MODEL"], "this is a model"),
        (["ADAPTER", "--methods", "lora"], "this is an adapter"),
        (["no/such/folder/here"], "no such model"),
        (["ADAPTER", "--base", "no/such/folder/here"], "no such model"),
    ],
)
def test_mistakes_end_with_two_and_four_lines(adapter, model_folder, child, words, message):
    names = {"MODEL": str(model_folder), "ADAPTER": str(adapter)}
    code, _, err = child(command, "inspect", *(names.get(word, word) for word in words))
    assert code == 2
    assert message in err
    assert len(err.splitlines()) <= 4


def test_a_pipelines_models_are_a_line_each(model_folder, tmp_path, child):
    (tmp_path / "text_encoder").symlink_to(model_folder)
    (tmp_path / "model_index.json").write_text('{"text_encoder": ["transformers", "LlamaForCausalLM"]}')
    code, out, err = child(command, "inspect", str(tmp_path))
    assert code == 0, err
    assert out.splitlines()[-1].split()[:4] == ["text_encoder", "LlamaForCausalLM", "26,880", "parameters"]
