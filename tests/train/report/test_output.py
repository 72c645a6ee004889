from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.train.report.output import claim

from .test_checkpoints import checkpoint


def test_second_run_on_the_same_folder_is_refused(tmp_path):
    claim(str(tmp_path / "out"), overwrite=False, resume=False).publish()
    first = claim(str(tmp_path / "out"), overwrite=True, resume=False)
    checkpoint(first.work, 1)
    for resume in (False, True):
        with pytest.raises(RecipeError, match="another run"):
            claim(str(tmp_path / "out"), overwrite=True, resume=resume)
    assert (first.work / "checkpoint-1").is_dir()
    first.publish()


def test_folder_in_the_way_of_a_replacement_is_not_touched(tmp_path):
    claim(str(tmp_path / "out"), overwrite=False, resume=False).publish()
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
    claim(str(tmp_path / "out"), overwrite=False, resume=False).publish()
    (tmp_path / "out" / "report.json").write_text("{}")
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
