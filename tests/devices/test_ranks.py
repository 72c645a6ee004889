"""Processes that share a run find each other by torch's variables, whoever set them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest

from afina.devices import ranks
from afina.devices.found import processor
from afina.errors import RecipeError

STEP = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "123456",
        "SLURM_STEP_NODELIST": "node[07-08]"}  # fmt: skip
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch: Any) -> None:
    for name in (*OURS, *STEP):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")  # so that what a test sets is taken back
        monkeypatch.delenv(name)


def test_a_run_alone_is_the_first_of_one() -> None:
    assert (ranks.rank(), ranks.size(), ranks.is_first()) == (0, 1, True)
    assert ranks.from_first(lambda: 5) == 5
    assert ranks.gathered("a") == ["a"]
    assert ranks.most(7) == 7
    with ranks.joined(processor()):
        ranks.meet()


def test_outside_of_a_run_a_process_is_alone_whoever_was_started_with_it(monkeypatch: Any) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert (ranks.started(), ranks.is_first()) == (2, False)
    assert (ranks.rank(), ranks.size()) == (0, 1)
    assert ranks.gathered("a") == ["a"]  # nobody is waited for


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu[03-05,7]", "gpu03"), ("a-1,a-2", "a-1"), ("n7", "n7"), ("", "127.0.0.1")]
)
def test_the_first_node_of_a_list_is_where_all_meet(nodes: str, first: str, monkeypatch: Any) -> None:
    for name, value in {**STEP, "SLURM_STEP_NODELIST": nodes}.items():
        monkeypatch.setenv(name, value)
    ranks.take_over_slurm()
    assert os.environ["MASTER_ADDR"] == first


def test_srun_says_it_in_its_own_words(monkeypatch: Any) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    ranks.take_over_slurm()
    assert [os.environ[name] for name in OURS] == ["3", "4", "1", "node07", "23456"]
    assert (ranks.started(), ranks.is_first()) == (4, False)


@pytest.mark.parametrize("without", ["SLURM_STEP_ID", "SLURM_PROCID", "SLURM_NTASKS"])
def test_a_batch_script_is_no_task(without: str, monkeypatch: Any) -> None:
    for name, value in STEP.items():
        if name != without:
            monkeypatch.setenv(name, value)
    ranks.take_over_slurm()
    assert "WORLD_SIZE" not in os.environ


def test_what_torch_was_told_counts(monkeypatch: Any) -> None:
    for name, value in {**STEP, "WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    ranks.take_over_slurm()
    assert (ranks.started(), os.environ["RANK"]) == (2, "1")


def test_processes_that_cannot_meet_say_where_they_tried(monkeypatch: Any) -> None:
    monkeypatch.setattr(ranks, "MEETING", timedelta(seconds=1))
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    where = r"process 1 of 2 at 127\.0\.0\.1:1: the processes cannot meet"
    with pytest.raises(RecipeError, match=where) as caught, ranks.joined(processor()):
        pass
    assert len(str(caught.value).splitlines()) <= 4
