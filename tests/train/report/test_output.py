from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.train.report.output import claim

from .test_checkpoints import checkpoint


def finished(folder):
    run = claim(str(folder), overwrite=False, resume=False)
    (run.work / "report.json").write_text("{}")
    run.publish()


def test_second_run_on_the_same_folder_is_refused(tmp_path):
    finished(tmp_path / "out")
    first = claim(str(tmp_path / "out"), overwrite=True, resume=False)
    checkpoint(first.work, 1)
    for resume in (False, True):
        with pytest.raises(RecipeError, match="another run"):
            claim(str(tmp_path / "out"), overwrite=True, resume=resume)
    assert (first.work / "checkpoint-1").is_dir()
    first.publish()


def test_folder_in_the_way_of_a_replacement_is_not_touched(tmp_path):
    finished(tmp_path / "out")
    (tmp_path / "out.partial").mkdir()
    with pytest.raises(RecipeError, match="in the way"):
        claim(str(tmp_path / "out"), overwrite=True, resume=False)
    assert (tmp_path / "out.partial").is_dir()


def test_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("x")
    with pytest.raises(RecipeError, match="is a file"):
        claim(str(tmp_path / "out"), overwrite=True, resume=False)


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match="cannot write"):
        claim(str(tmp_path / "file" / "out"), overwrite=False, resume=False)


def test_abandoned_run_keeps_its_checkpoints_only_if_one_is_complete(tmp_path):
    run = claim(str(tmp_path / "out"), overwrite=False, resume=False)
    (run.work / "checkpoint-3").mkdir()
    run.abandon()
    assert not (tmp_path / "out").exists()
    run = claim(str(tmp_path / "out"), overwrite=False, resume=False)
    checkpoint(run.work, 3)
    run.abandon()
    assert claim(str(tmp_path / "out"), overwrite=False, resume=True).checkpoint.name == "checkpoint-3"


def test_replacement_that_was_cut_off_goes_on_or_is_swept(tmp_path):
    finished(tmp_path / "out")
    run = claim(str(tmp_path / "out"), overwrite=True, resume=False)
    checkpoint(run.work, 2)
    run.abandon()
    assert run.work == tmp_path / "out.partial"
    again = claim(str(tmp_path / "out"), overwrite=True, resume=True)
    assert again.checkpoint == tmp_path / "out.partial" / "checkpoint-2"
    again.abandon()
    fresh = claim(str(tmp_path / "out"), overwrite=True, resume=False)
    assert not (fresh.work / "checkpoint-2").exists()
    assert (tmp_path / "out" / "report.json").is_file()


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("former", [False, True])
def test_running_run_is_safe_from_every_second_one(tmp_path, former, flags):
    if former:
        finished(tmp_path / "out")
    first = claim(str(tmp_path / "out"), overwrite=former, resume=False)
    checkpoint(first.work, 1)
    with pytest.raises(RecipeError, match="another run writes"):
        claim(str(tmp_path / "out"), overwrite=flags[0], resume=flags[1])
    (first.work / "report.json").write_text("first")
    first.publish()
    assert (tmp_path / "out" / "report.json").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not (tmp_path / "out" / ".lock").exists()


def killed(run):
    """What the end of its process does to a run."""
    run.lock.release()


def test_run_that_was_killed_before_its_first_checkpoint_is_begun_anew(tmp_path):
    run = claim(str(tmp_path / "out"), overwrite=False, resume=False)
    (run.work / "checkpoint-1").mkdir()
    (run.work / "metrics.jsonl").write_text("{}")
    killed(run)
    with pytest.raises(RecipeError, match="nothing to resume") as told:
        claim(str(tmp_path / "out"), overwrite=False, resume=True)
    assert told.value.fix == "leave --resume out"
    again = claim(str(tmp_path / "out"), overwrite=False, resume=False)
    assert not (again.work / "checkpoint-1").exists()
    assert not (again.work / "metrics.jsonl").exists()


def test_run_that_was_killed_while_it_made_its_folder_is_begun_anew(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").touch()
    claim(str(tmp_path / "out"), overwrite=False, resume=False).abandon()
    assert not (tmp_path / "out").exists()


def test_run_that_was_killed_after_its_first_checkpoint_is_not_begun_anew(tmp_path):
    run = claim(str(tmp_path / "out"), overwrite=False, resume=False)
    (checkpoint(run.work, 1) / "weights").write_bytes(b"54321")
    killed(run)
    with pytest.raises(RecipeError, match="former run"):
        claim(str(tmp_path / "out"), overwrite=False, resume=False)
    with pytest.raises(RecipeError, match="no checkpoint is whole") as told:
        claim(str(tmp_path / "out"), overwrite=False, resume=True)
    assert "weights has other bytes" in str(told.value)


def test_replacement_does_not_take_another_run_for_its_own_work(tmp_path):
    finished(tmp_path / "out")
    finished(tmp_path / "out.partial")
    with pytest.raises(RecipeError, match="in the way"):
        claim(str(tmp_path / "out"), overwrite=True, resume=False)
    assert (tmp_path / "out.partial" / "report.json").is_file()


def test_refused_claim_leaves_no_folder(tmp_path):
    with pytest.raises(RecipeError, match="nothing to resume"):
        claim(str(tmp_path / "out"), overwrite=False, resume=True)
    assert not any(tmp_path.iterdir())


def test_contents_and_versions_are_remembered(tmp_path):
    run = claim(str(tmp_path / "out"), overwrite=False, resume=False)
    assert run.versions == {}
    run.remember({"rows": "1"}, {"torch": "2"})
    checkpoint(run.work, 1)
    killed(run)
    again = claim(str(tmp_path / "out"), overwrite=False, resume=True)
    assert again.contents == {"rows": "1"}
    assert again.versions == {"torch": "2"}


def test_run_that_does_not_tell_what_it_began_with_is_not_compared(tmp_path):
    run = claim(str(tmp_path / "out"), overwrite=False, resume=False)
    (run.work / "afina_run.json").write_text("{")
    with pytest.raises(RecipeError, match=r"afina_run\.json.*cannot be read"):
        run.contents
