"""The terminal holds afina's own words: other libraries are heard where something is wrong, and only there."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ..train import tiny, tiny_images

# What afina itself says is left out, so that all that is still written is another's.
WITHOUT_OUR_WORDS = """
import functools, io, sys
import rich.console, typer
typer.echo = lambda *args, **options: None
rich.console.Console = functools.partial(rich.console.Console, file=io.StringIO())
from afina.cli import main
for words in {commands}:
    sys.argv = ["afina", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, f"{{words}} ended with {{end.code}}"
"""
IMPORTS = ("import afina", "from afina import LoraConfig, get_peft_model", "from afina import *")


def written(script: str, mode: str = "default") -> str:
    """Both streams of a process in which all warnings are shown, or (`error`) raised."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": mode}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    return done.stdout if done.returncode == 0 else f"exit code {done.returncode}\n{done.stdout}"


def others(*commands: tuple[object, ...]) -> str:
    """What other libraries write while these commands run."""
    return written(WITHOUT_OUR_WORDS.format(commands=[[str(word) for word in words] for words in commands]))


@pytest.mark.parametrize("statement", IMPORTS)
def test_importing_writes_and_warns_nothing(statement):
    assert written(statement, mode="error") == ""


def test_help_writes_only_itself():
    done = written("import sys; sys.argv = ['afina', '--help']; from afina.cli import main; main()")
    lines = done.splitlines()
    assert lines[0].startswith("Usage: ")
    assert lines[-1].startswith("  version ")


def test_commands_without_a_model_write_only_ours(tmp_path, model_folder):
    recipe = tiny.write_recipe(tmp_path, model_folder)
    assert others(("methods",), ("methods", "lora"), ("version",), ("--version",), ("schema",),
                  ("data", tmp_path / "train.jsonl"), ("train",), ("train", "--print-recipe", "ia3"),
                  ("train", recipe, "--dry-run"),
                  ("inspect", model_folder, "--methods", "lora,ia3")) == ""  # fmt: skip


@pytest.mark.whole("it takes half a minute, and its siblings run one way through the same")
def test_a_run_and_what_follows_write_only_ours(tmp_path, model_folder):
    recipe, run = tiny.write_recipe(tmp_path, model_folder), tmp_path / "out"
    chat = ("-p", "n1", "--max-new-tokens", 3)
    commands = [
        ("train", recipe), ("predict", run, tmp_path / "eval.jsonl"), ("chat", run, *chat, "--base"),
        ("chat", model_folder, "--adapter", f"a={run}", *chat), ("merge", run, tmp_path / "merged"),
        ("convert", run, tmp_path / "as-lora", "--rank", 2), ("inspect", run, "--base", model_folder),
    ]  # fmt: skip
    assert others(*commands) == ""


@pytest.mark.whole("it takes half a minute, and its siblings run one way through the same")
def test_every_task_trains_with_ours_only(tmp_path, model_folder):
    models = {"llama": model_folder, "t5": tiny.write_t5(tmp_path / "t5"),
              "encoder": tiny.write_encoder(tmp_path / "encoder"),
              "idefics3": tiny_images.write_idefics3(tmp_path / "idefics3")}  # fmt: skip
    commands = []
    kinds = ("seq2seq", "sequence_classification", "token_classification", "preference", "reward", "image_text_to_text")
    for task in kinds:
        (tmp_path / task).mkdir()
        commands.append(("train", tiny.write_task(tmp_path / task, task, models)))
    assert others(*commands) == ""


@pytest.mark.whole("it takes half a minute, and its siblings run one way through the same")
@pytest.mark.parametrize(("package", "storages"), [("bitsandbytes", ["nf4", "int8"]), ("torchao", ["int8wo"])])
def test_quantised_bases_train_with_ours_only(package, storages, tmp_path, model_folder):
    pytest.importorskip(package)
    recipe = tiny.write_recipe(tmp_path, model_folder)
    assert (
        others(*(("train", recipe, f"quantize={s}", "max_steps=2", f"output.dir={tmp_path / s}") for s in storages))
        == ""
    )


@pytest.mark.whole("it takes half a minute, and its siblings run one way through the same")
def test_compare_writes_only_ours(tmp_path, model_folder):
    recipe = tiny.write_recipe(tmp_path, model_folder, training__max_steps=2)
    assert others(("compare", recipe, "--methods", "lora", "--seeds", 1, "--out", tmp_path / "compared")) == ""


def test_all_other_remarks_are_heard():
    said = written(
        "import logging, warnings\n"
        "from afina.cli.console import ConsoleReporter\n"
        "from afina.cli.quiet import quiet_libraries\n"
        "from afina.errors import AfinaWarning\n"
        "quiet_libraries(ConsoleReporter())\n"
        "quiet_libraries(ConsoleReporter())\n"
        "log = logging.getLogger('transformers.trainer_utils').warning\n"
        "log('mtime may not be reliable on this filesystem')\n"
        "log('a setting is ignored')\n"
        "warnings.warn('`is_gradient_checkpointing` is deprecated and ...', FutureWarning)\n"
        "warnings.warn('a name is deprecated', FutureWarning)\n"
        "warnings.warn('of ours', AfinaWarning)\n"
    )
    assert "[transformers] a setting is ignored" in said
    assert "FutureWarning: a name is deprecated" in said
    assert "warning: of ours" in said
    assert "mtime" not in said
    assert "is_gradient_checkpointing" not in said
