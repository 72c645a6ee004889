from __future__ import annotations

import json

import pytest

from ..train import tiny
from ..train.child import command


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder, child):
    """A finished run, one that was not measured in a folder within, a begun one, a damaged one, and no run."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / ".cache"))
        for name, words in (("a", []), ("deep/b", ["evaluation.enabled=false", "method=ia3", "max_steps=1"])):
            recipe = tiny.write_recipe(folder.parent, model_folder)
            code, out, err = child(command, "train", recipe, f"output={folder / name}", "--json", *words)
            assert code == 0, err
            assert json.loads(out)["folder"] == str(folder / name)
    (folder / "begun").mkdir()
    (folder / "begun" / "afina_run.json").write_text("{}")
    (folder / "torn").mkdir()
    (folder / "torn" / "report.json").write_text("{")
    (folder / "other").mkdir()
    return folder


def test_runs_are_found_in_folders_of_folders_with_their_scores(runs, child):
    code, out, err = child(command, "runs", runs, "--json")
    assert code == 0, err
    found = {run["folder"].removeprefix(f"{runs}/"): run for run in json.loads(out)}
    assert sorted(found) == ["a", "begun", "deep/b", "torn"]
    a, b = found["a"], found["deep/b"]
    assert (a["method"], a["task"], a["state"], a["metric"], a["steps"]) == ("lora", "causal_lm", "done", "accuracy", 6)
    assert a["size_bytes"] == (runs / "a" / "adapter_model.safetensors").stat().st_size
    assert (b["method"], b["metric"], b["after"]) == ("ia3", None, None)
    assert (found["begun"]["state"], found["torn"]["state"]) == ("begun", "cannot be read")


def test_runs_are_listed_for_people(runs, child):
    code, out, err = child(command, "runs", runs)
    assert code == 0, err
    line = next(line for line in out.splitlines() if line.startswith(f"{runs / 'a'} "))
    assert "done" in line
    assert "accuracy 0." in line
    assert "KiB" in line


def test_no_folder_and_no_runs_are_told(tmp_path, child):
    code, _, err = child(command, "runs", tmp_path / "none")
    assert code == 2
    assert "no such folder" in err
    code, out, _ = child(command, "runs", tmp_path)
    assert (code, out) == (0, f"no runs in {tmp_path}\n")
