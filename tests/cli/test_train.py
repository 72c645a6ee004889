from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import yaml

from afina.cli.train import split_arguments
from afina.errors import RecipeError

from ..train import tiny
from ..train.child import command


def test_words_of_the_command_line_become_overrides():
    words = ["--lr", "1e-3", "tweets", "batch_size=4", "--training.seed=3", "--bf16", "--data.max-length", "64"]
    overrides = [
        ("lr", "1e-3"),
        ("batch_size", "4"),
        ("training.seed", "3"),
        ("bf16", "true"),
        ("data.max_length", "64"),
    ]
    # a lone --key takes the next word that is no key
    assert split_arguments([*words[:5], "--data.max-length", "64", "--bf16"])[1] == [
        *overrides[:3],
        overrides[4],
        overrides[3],
    ]
    assert split_arguments(words[:5]) == ("tweets", overrides[:3])


def test_values_may_hold_equals_signs_and_keys_may_follow_keys():
    assert split_arguments(["r.yaml", "data.prompt=a=b", "--bf16", "--seed", "1"]) == (
        "r.yaml",
        [("data.prompt", "a=b"), ("bf16", "true"), ("seed", "1")],
    )


def test_two_recipes_are_refused():
    with pytest.raises(RecipeError, match="more than one recipe"):
        split_arguments(["a", "b"])


def test_train_alone_lists_the_embedded_recipes(child):
    code, out, _ = child(command, "train")
    assert code == 0
    assert "tweets-classifier" in out


def test_dry_run_prints_the_resolved_recipe_and_writes_nothing(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder)
    code, out, _ = child(command, "train", recipe, "--dry-run", "--lora_r", "2", "batch_size=3")
    assert code == 0
    values = yaml.safe_load(out)
    assert (values["method"]["r"], values["training"]["batch_size"], values["training"]["seed"]) == (2, 3, 0)
    assert not (tmp_path / "out").exists()
    plan = [line for line in out.splitlines() if line.startswith("# ")]
    assert "6 steps of 3 rows" in plan[0]
    assert "trained parameters: 2,048 of " in plan[2]
    assert "it fits" in plan[-2]
    assert plan[-1].startswith("# time: ")


def test_train_ends_with_the_scores_and_the_next_commands(tmp_path, model_folder, child):
    code, out, err = child(command, "train", tiny.write_recipe(tmp_path, model_folder))
    assert code == 0, err
    assert "before: accuracy" in out
    assert "after:  accuracy" in out
    for verb in ("chat", "predict", "merge"):
        assert f"  afina {verb} {tmp_path / 'out'}" in out
    assert "[[even<eos>]]" in err
    assert "trainable parameters: " in err


def row(**values):
    return json.dumps(values) + "\n"


MISTAKES = {
    "unknown key": ({}, ["training.batch_sise=3"], None, "did you mean 'batch_size'"),
    "unknown method setting": ({}, ["lora_alfa=3"], None, "lora_alpha"),
    "mistyped flag": ({}, ["--overwite"], None, "did you mean --overwrite?"),
    "wrong type": ({}, ["batch_size=many"], None, "training.batch_size"),
    "wrong range": ({}, ["batch_size=0"], None, "training.batch_size"),
    "wrong method value": ({}, ["lora_r=0"], None, "r"),
    "targets that match nothing": ({}, ["target_modules=[q_prj]"], None, "q_proj"),
    "unknown schedule": ({}, ["scheduler=linaer"], None, "linaer"),
    "no such model": ({}, ["model=./nowhere"], None, "no such model"),
    "no such data": ({}, ["data=nowhere.jsonl"], None, "no such file"),
    "malformed line": ({}, [], row(text="a", label="odd") + '{"text": \n', "train.jsonl:2"),
    "missing column": ({}, [], row(text="a", label="odd") + row(txt="a", label="odd"), "train.jsonl:2"),
    "missing label": ({}, [], row(text="a", label="odd") + row(text="a"), "train.jsonl:2"),
    "wrong type in a row": ({}, [], row(text="a", label="odd") + row(text=[1], label="odd"), "train.jsonl:2"),
    "label out of range": ({}, [], row(text="a", label="odd") + row(text="a", label="old"), "did you mean 'odd'"),
    "number out of range": ({}, [], row(text="a", label=0) + row(text="a", label=2), "train.jsonl:2"),
    "empty data": ({}, [], "\n", "no rows"),
    "answers cut away": ({"data__max_length": 5}, [], None, "no answer left"),
    "prompt names no column": ({"data__prompt": "{txt}"}, [], None, "did you mean 'text'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_exits_2_with_four_lines_and_leaves_nothing(name, tmp_path, model_folder, child):
    changes, words, rows, expected = MISTAKES[name]
    recipe = tiny.write_recipe(tmp_path, model_folder, **changes)
    if rows is not None:
        (tmp_path / "train.jsonl").write_text(rows)
    code, out, err = child(command, "train", recipe, *words)
    assert code == 2, err
    message = err[err.index("error: ") :]
    assert len(message.splitlines()) <= 4
    assert expected in message
    assert "Traceback" not in out + err
    assert not (tmp_path / "out").exists()


def test_existing_output_exits_2_and_is_untouched(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    for words in ([], ["--overwrite"], ["--resume"]):
        code, _, err = child(command, "train", recipe, *words)
        assert code == 2
        assert "output.dir" in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious.txt"]


def afina(*words, **options):
    script = "from afina.cli import main; main()"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, env=environment, **options
    )


@pytest.mark.whole("tests/train/loop/test_resume.py starts, stops and resumes such processes")
def test_train_in_a_process_of_its_own(tmp_path, model_folder):
    done = afina("train", tiny.write_recipe(tmp_path, model_folder), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.json").is_file()
    assert "Traceback" not in done.stderr


def test_help_imports_neither_torch_nor_transformers():
    script = (
        "import sys\nfrom afina.cli import main\nsys.argv = ['afina', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'transformers', 'pydantic', 'rich', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "train" in done.stdout


def test_bug_of_ours_exits_1_with_its_traceback(tmp_path):
    script = (
        "import sys\nfrom afina.cli import main\nimport afina.train.recipe.settings as s\n"
        "def broken(*a): raise RuntimeError('inside')\ns.load_recipe = broken\n"
        "sys.argv = ['afina', 'train', 'tweets']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "this is a bug in afina" in done.stderr


def test_ctrl_c_exits_130():
    script = (
        "import sys\nfrom afina.cli import main\nimport afina.train.recipe.settings as s\n"
        "def stopped(*a): raise KeyboardInterrupt\ns.load_recipe = stopped\n"
        "sys.argv = ['afina', 'train', 'tweets']\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 130
    assert "Traceback" not in done.stderr


def test_print_recipe_writes_one_that_dry_run_takes(tmp_path, child):
    code, out, err = child(command, "train", "--print-recipe", "ia3", "task=sequence_classification", "epochs=2")
    assert code == 0, err
    (tmp_path / "r.yaml").write_text(out)
    values = yaml.safe_load(out)
    assert (values["method"]["type"], values["task"]) == ("ia3", "sequence_classification")
    assert values["training"]["epochs"] == 2
    assert out.startswith("# ")
    code, _, err = child(command, "train", "tweets", "--print-recipe", "ia3")
    assert code == 2
    assert "takes none" in err


def test_live_page_follows_a_run_to_its_end(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder)
    code, _, err = child(command, "train", recipe, "--live")
    assert code == 0, err
    assert f"live page: file://{tmp_path}/out.live.html" in err
    text = (tmp_path / "out.live.html").read_text()
    assert '"state", "done"' in text
    assert '"running": false' in text
    code, _, err = child(command, "train", recipe, "--live", "--overwrite", "lr=1e30", "evaluation.enabled=false")
    assert code == 2
    assert '"state", "ended early: ' in (tmp_path / "out.live.html").read_text()
