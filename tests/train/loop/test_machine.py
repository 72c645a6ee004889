"""What the machine does to a run: signals, kills, full disks, flipped bits, other contents under the same names."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from afina.errors import ConfigError, RecipeError
from afina.train.recipe.settings import load_recipe
from afina.train.report.checkpoints import newest_complete

from .. import tiny
from .test_resume import start, wait_for_step
from .test_run import Heard, train, train_with


def run_with(recipe, flags):
    """A run, and what it said also where it ended in an error."""
    from afina.train.loop.run import run

    heard = Heard()
    try:
        run(load_recipe(str(recipe)), heard, **flags)
    except RecipeError as error:
        return error, heard
    return None, heard


@pytest.fixture(scope="module")
def half(tmp_path_factory, model_folder, child):
    """A run of six steps that was cut off after its last checkpoint, on a base of its own."""
    folder = tmp_path_factory.mktemp("half")
    shutil.copytree(model_folder, folder / "base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        child(train, tiny.write_recipe(folder, folder / "base", training__save_steps=2, evaluation__enabled=False))
    for name in ("report.json", "adapter_model.safetensors"):
        (folder / "out" / name).unlink()
    return folder


@pytest.fixture
def cut_off(half, tmp_path):
    """A copy of it, with its recipe."""
    for path in half.iterdir():
        shutil.copytree(path, tmp_path / path.name) if path.is_dir() else shutil.copy(path, tmp_path)
    for name in ("tiny.yaml", "out/recipe.yaml"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace(str(half), str(tmp_path)))
    shutil.rmtree(tmp_path / "out" / "checkpoint-6")
    return tmp_path


def change_rows(folder):
    rows = (folder / "train.jsonl").read_text().splitlines()
    swapped = [row.replace("odd", "x").replace("even", "odd").replace("x", "even") for row in rows]
    (folder / "train.jsonl").write_text("\n".join(swapped) + "\n")


def add_row(folder):
    with (folder / "eval.jsonl").open("a") as file:
        file.write(json.dumps({"text": "n7", "label": "odd", "task": 1}) + "\n")


def change_base(folder):
    path = folder / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] *= 1.5  # no adapter is there
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "what"),
    [(change_rows, "rows of train"), (add_row, "rows of eval"), (change_base, "base: model.safetensors")],
)
def test_other_contents_are_not_resumed_on(cut_off, child, change, what):
    change(cut_off)
    error, heard = child(run_with, cut_off / "tiny.yaml", {"resume": True})
    assert "the data and the base that it began with" in str(error)
    assert what in str(error)
    assert len(str(error).splitlines()) <= 4
    assert any(what in note and "began with" in note for note in heard.notes)
    assert newest_complete(cut_off / "out").name == "checkpoint-4"


def test_same_contents_in_other_files_are_resumed_on(cut_off, child):
    rows = [json.loads(row) for row in (cut_off / "train.jsonl").read_text().splitlines()]
    (cut_off / "train.jsonl").write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    error, heard = child(run_with, cut_off / "tiny.yaml", {"resume": True})
    assert error is None
    assert "resuming from checkpoint-4" in heard.notes


def test_other_versions_are_told_and_the_same_ones_are_not(cut_off, child):
    mark = cut_off / "out" / "afina_run.json"
    known = json.loads(mark.read_text())
    mark.write_text(json.dumps({**known, "versions": {**known["versions"], "torch": "2.5.0"}}))
    (cut_off / "out" / "checkpoint-5").write_text("a file")
    error, heard = child(run_with, cut_off / "tiny.yaml", {"resume": True})
    assert error is None
    told = [line for line in heard.warnings if "resumed with" in line]
    assert len(told) == 1
    assert "(began with 2.5.0)" in told[0]
    assert "afina" not in told[0]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "optimizer.pt"])
def test_flipped_bit_is_noticed_and_the_checkpoint_before_is_taken(cut_off, child, name):
    path = cut_off / "out" / "checkpoint-4" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    error, heard = child(run_with, cut_off / "tiny.yaml", {"resume": True})
    assert error is None
    assert f"checkpoint-4 is not whole ({name} has other bytes than were written): going on from checkpoint-2" in (
        heard.warnings
    )
    assert "resuming from checkpoint-2" in heard.notes
    assert (cut_off / "out" / "damaged-checkpoint-4").is_dir()
    assert newest_complete(cut_off / "out").name == "checkpoint-6"


def marked(path):
    """A run that was begun in this folder."""
    path.mkdir()
    (path / "afina_run.json").write_text("{}")
    (path / "report.json").write_text("{}")
    return path


@pytest.mark.parametrize("what", ["rows", "base", "recipe"])
def test_output_that_holds_what_a_run_is_made_from_is_refused(tmp_path, model_folder, child, what):
    out = marked(tmp_path / "out")
    recipe = tiny.write_recipe(tmp_path, model_folder)
    if what == "rows":
        shutil.move(tmp_path / "train.jsonl", out / "train.jsonl")
        text = recipe.read_text().replace(str(tmp_path / "train.jsonl"), str(out / "train.jsonl"))
    elif what == "base":
        shutil.copytree(model_folder, out / "base")
        text = recipe.read_text().replace(str(model_folder), str(out / "base"))
    else:
        text = recipe.read_text()
        recipe = out / "mine.yaml"
    recipe.write_text(text)
    before = sorted(out.rglob("*"))
    with pytest.raises(ConfigError, match="would overwrite"):
        child(train_with, recipe, {"overwrite": True, "source": str(recipe)})
    assert sorted(out.rglob("*")) == before


def wait_for(process, sign):
    """Until the run has said this on stderr."""
    said = ""
    for line in process.stderr:
        said += line
        if sign in line:
            return said
    raise AssertionError(said)


@pytest.mark.whole("test_resume.py sends signals while steps run")
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.whole("SIGTERM takes the same way"))]
)
@pytest.mark.parametrize(
    "sign", [pytest.param("rows of", marks=pytest.mark.whole("the other one is later")), "trainable parameters"]
)
def test_signal_before_the_first_step_ends_in_good_order_and_a_rerun_works(tmp_path, model_folder, number, sign, child):
    path = tiny.write_recipe(tmp_path, model_folder, training__max_steps=1)
    process = start(path)
    said = wait_for(process, sign)
    process.send_signal(number)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 128 + number, said + rest
    assert f"stopped by {number.name}" in rest
    assert "lost" in rest
    assert "Traceback" not in rest
    assert not (tmp_path / "out").exists()
    child(train, path)


@pytest.mark.whole("the terminal that goes away below sends it")
def test_hangup_finishes_the_step_and_saves(tmp_path, model_folder):
    path = tiny.write_recipe(tmp_path, model_folder, training__max_steps=5000, training__save_steps=1,
                             training__keep_checkpoints=2, evaluation__enabled=False)  # fmt: skip
    process = start(path)
    wait_for_step(tmp_path / "out", process)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 129, said
    step = int(said.split("stopped by SIGHUP after step ")[1].split()[0])
    assert newest_complete(tmp_path / "out").name == f"checkpoint-{step}"


@pytest.mark.whole("SIGTERM takes the same way in test_resume.py")
def test_a_terminal_that_goes_away_costs_no_step(tmp_path, model_folder):
    path = tiny.write_recipe(tmp_path, model_folder, training__max_steps=5000, training__save_steps=1,
                             training__keep_checkpoints=2, evaluation__enabled=False)  # fmt: skip
    terminal, inside = os.openpty()
    code = "import os, sys; os.login_tty(int(sys.argv.pop(1))); from afina.cli import main; main()"
    process = subprocess.Popen([sys.executable, "-c", code, str(inside), "train", str(path)], pass_fds=[inside])
    os.close(inside)
    # What is printed is read, or the run would wait for its reader.
    while newest_complete(tmp_path / "out") is None:
        assert os.read(terminal, 4096)
    os.close(terminal)
    assert process.wait(timeout=120) == 128 + signal.SIGHUP
    step = int(newest_complete(tmp_path / "out").name.removeprefix("checkpoint-"))
    assert 0 < step < 5000
    assert load_file(newest_complete(tmp_path / "out") / "adapter_model.safetensors")


@pytest.mark.whole("a signal before the first step above, kills after it in test_resume.py")
def test_kill_before_the_first_checkpoint_costs_nothing(tmp_path, model_folder, child):
    path = tiny.write_recipe(tmp_path, model_folder, training__max_steps=2, training__save_steps=2)
    process = start(path)
    wait_for(process, "trainable parameters")
    process.kill()
    process.communicate()
    assert (tmp_path / "out").is_dir()
    error, _ = child(run_with, path, {"resume": True})
    assert error.fix == "leave --resume out"
    child(train, path)


@pytest.mark.whole("tests/core/files/test_unwritable.py has full disks of every kind")
def test_full_disk_ends_a_run_in_four_lines_that_name_what_is_whole(tmp_path, model_folder):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        path = tiny.write_recipe(tmp_path, model_folder, output__dir=str(disk / "out"), training__save_steps=1,
                                 training__keep_checkpoints=6, training__max_steps=60)  # fmt: skip
        process = start(path)
        _, said = process.communicate(timeout=120)
        whole = newest_complete(disk / "out")
        assert process.returncode == 2, said
        assert "Traceback" not in said
        assert "bug" not in said
        error = said[said.index("error: ") :].splitlines()
        assert len(error) <= 4
        assert "cannot write" in error[0]
        assert "bytes free" in error[1]
        assert "bytes" in error[2]
        assert f"{whole.name} is whole" in error[3]
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("name", "says"), [("nonsense", "no such tracker"), ("tensorbord", "did you mean 'tensorboard'?"),
                       ("mlflow", "the tracker's package is missing")],
)  # fmt: skip
def test_tracker_that_is_not_there_is_told_before_anything_is_loaded(tmp_path, model_folder, child, name, says):
    path = tiny.write_recipe(tmp_path, tmp_path / "no-model", training__report_to=[name])
    error, _ = child(run_with, path, {})
    assert says in str(error)
    assert len(str(error).splitlines()) <= 4
    assert not (tmp_path / "out").exists()


@pytest.mark.whole("a tracker that is not there is told above")
def test_missing_tensorboard_is_told(tmp_path, model_folder):
    path = tiny.write_recipe(tmp_path, model_folder)
    code = ("import importlib.util as u; find = u.find_spec;"
            "u.find_spec = lambda n, *a: None if n.startswith('tensorboard') else find(n, *a);"
            "from afina.cli import main; main()")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code, "train", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install 'afina[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_sources_that_the_run_writes_itself_may_be_replaced(tmp_path, model_folder, child):
    path = tiny.write_recipe(tmp_path, model_folder, training__max_steps=1, evaluation__enabled=False)
    child(train, path)
    own = Path(tmp_path / "out" / "recipe.yaml")
    child(train_with, own, {"overwrite": True, "source": str(own)})
