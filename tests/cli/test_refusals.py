"""What arguments, recipe and files tell to be wrong is refused in four lines at most, before a model is loaded."""

from __future__ import annotations

import shutil

import pytest

from afina import LoraConfig, PromptTuningConfig

from ..train import tiny
from ..train.child import command

COMMANDS = {
    "merge into a filled folder": (["merge", "LM", "FULL"], "FULL: the output holds something"),
    "merge onto the base": (["merge", "LM", "MODEL"], "OUT: this would overwrite the base model"),
    "merge below a file": (["merge", "LM", "ROWS/x"], "cannot write there: Not a directory"),
    "convert below a file": (["convert", "LM", "ROWS/x"], "cannot write there: Not a directory"),
    "export below a file": (["export", "LM", "--to", "safetensors", "--out", "ROWS/x"], "cannot write there"),
    "predict below a file": (["predict", "LM", "ROWS", "--out", "ROWS/x"], "cannot write there: Not a directory"),
    "compare below a file": (["compare", "RECIPE", "--out", "ROWS/x"], "cannot write there: Not a directory"),
    "search below a file": (["tune", "RECIPE", "--out", "ROWS/x"], "cannot write there: Not a directory"),
    "transcript below a file": (["chat", "LM", "-p", "a", "--transcript", "ROWS/x"], "cannot write there"),
    "train below a file": (["train", "RECIPE", "output.dir=ROWS/x"], "cannot write there: Not a directory"),
    "import below a file": (["import", "LM", "--out", "ROWS/x"], "cannot write there: Not a directory"),
    "recipe below a file": (["import", "OTHERS", "--out", "ROWS/x"], "cannot write there: Not a directory"),
    "a name that is too long": (["predict", "LM", "LONG"], "File name too long"),
    "a long name to write": (["predict", "LM", "ROWS", "--out", "LONG"], "cannot write there: File name too long"),
    "a long name of a run": (["train", "RECIPE", "output.dir=LONG"], "File name too long"),
    "the base of another recipe": (["train", "dreambooth"], "first: afina train handwriting"),
    "merge virtual tokens": (["merge", "PROMPTS", "NEW"], "it cannot be merged: virtual tokens"),
    "convert virtual tokens": (["convert", "PROMPTS", "NEW"], "it cannot be written as LoRA: virtual tokens"),
    "card without licence": (["export", "LM", "--to", "hub", "--out", "NEW"], "a card needs a licence"),
    "card without base": (["export", "LM", "--to", "hub", "--out", "NEW", "--licence", "mit"], "--hub-base"),
    "classes as text": (["export", "CLASSES", "--to", "gguf", "--out", "NEW"], "models that write after a prompt"),
    "no text to limit": (["predict", "CLASSES", "ROWS", "--max-new-tokens", "4"], "--max-new-tokens"),
    "no such storage": (["predict", "LM", "ROWS", "--quantize", "int3"], "no such storage"),
    "rows without text": (["predict", "LM", "BARE"], "BARE:1: no column 'text'"),
    "rows of other labels": (["predict", "CLASSES", "OTHER"], "OTHER:2: label out of range"),
    "chat of no task": (["chat", "LM", "-p", "a", "--task", "1"], "this method knows no tasks"),
    "chat without a picture": (["chat", "LM", "-p", "a", "--image", "ROWS"], "only models trained on images see them"),
    "nothing is drawn": (["chat", "LM", "-p", "a", "--seed", "1"], "--seed: nothing is drawn"),
    "nowhere to write": (["chat", "LM", "-p", "a", "--transcript", "NEW/t.jsonl"], "no such folder to write to"),
    "classes are not drawn": (["chat", "CLASSES", "-p", "a", "--temperature", "1"], "--temperature"),
    "classes without base": (["chat", "CLASSES", "-p", "a", "--base"], "only language models answer"),
    "several with a base": (["chat", "MODEL", "--adapter", "a=LM", "-p", "a", "--base"], "the base always answers"),
    "several with a picture": (["chat", "MODEL", "--adapter", "a=LM", "-p", "a", "--image", "ROWS"], "to texts only"),
    "a folder of something": (["train", "RECIPE", "output.dir=FULL"], "holds something that is not a run of afina"),
    "onto the recipe's base": (["train", "RECIPE", "output.dir=MODEL", "--overwrite"], "not a run of afina"),
    "no such model": (["train", "RECIPE", "model.path=/no/model", "output.dir=NEW"], "no such model"),
    "an answer of classes": (["train", "CLASSIFIER", "evaluation.max_new_tokens=4", "output.dir=NEW"], "task write no"),
    "compare no model": (["compare", "RECIPE", "model.path=FULL"], "not a model folder"),
    "compare of a method": (["compare", "RECIPE", "--methods", "lora", "method.type=ia3"], "named by --methods"),
    "search among something": (["tune", "RECIPE", "--out", "FULL"], "FULL: the output holds something"),
    "tokens of no model": (["data", "ROWS", "--max-length", "9"], "--max-length: only a model's tokenizer"),
    "masks of no model": (["data", "ROWS", "--show", "masks"], "--show masks: only a model's tokenizer"),
    "no such column": (["data", "ROWS", "--column", "text=txt"], "no column 'txt' to take as 'text'"),
    "no usable row": (["data", "BARE"], "no row can be used"),
}  # fmt: skip


@pytest.fixture(scope="module")
def things(tmp_path_factory, model_folder):
    """Placeholder -> path. Adapters have no weights, which nobody should look for."""
    home = tmp_path_factory.mktemp("refusals")
    out = {name: home / name.lower() for name in ("FULL", "ROWS", "BARE", "OTHER", "NEW", "RECIPE", "CLASSIFIER")}
    out["LONG"], out["OTHERS"] = home / ("l" * 300), home / "others.yaml"
    out["OTHERS"].write_text("model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\ndataset: rows.jsonl\n")
    out["FULL"].mkdir()
    (out["FULL"] / "a").touch()
    for name in ("ROWS", "BARE", "OTHER"):
        out[name] = out[name].with_suffix(".jsonl")
    tiny.write_rows(out["ROWS"], 2)
    out["BARE"].write_text('{"question": "a"}\n')
    out["OTHER"].write_text('{"text": "a", "label": "odd"}\n{"text": "a", "label": "prime"}\n')
    configs = {"LM": LoraConfig(), "CLASSES": LoraConfig(), "PROMPTS": PromptTuningConfig(num_virtual_tokens=2)}
    for name, config in configs.items():
        (folder := home / f"run-{name.lower()}").mkdir()
        task = "sequence_classification" if name == "CLASSES" else "causal_lm"
        out[{"LM": "RECIPE", "CLASSES": "CLASSIFIER"}.get(name, "")] = recipe = tiny.write_recipe(
            folder, model_folder, task=task
        )
        config.base_model_name_or_path = str(model_folder)
        config.save_pretrained(out.setdefault(name, folder / "out"))
        shutil.copy(recipe, out[name] / "recipe.yaml")
    return {**out, "MODEL": model_folder}


def refused(words):
    """What a command says; loading a model fails the test."""
    from transformers import PreTrainedModel

    def load(*args, **kwargs):
        raise AssertionError("a model is loaded")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PreTrainedModel, "from_pretrained", load)
        return command(*words)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_refusal_takes_four_lines_at_most_and_loads_no_model(name, things, child):
    words, said = COMMANDS[name]

    def filled(text):
        for key in sorted(things, key=len, reverse=True):
            text = text.replace(key, str(things[key])) if key else text
        return text

    code, _, err = child(refused, [filled(word) for word in words])
    lines = [line for line in err.splitlines() if "stands in for peft" not in line]  # once a process
    assert code == 2, err
    assert filled(said) in err
    assert len(lines) <= 4, err
    assert not things["NEW"].exists()
