from __future__ import annotations

from afina.cli.console import ConsoleReporter
from afina.train.report.events import Progress


def test_plain_lines_tell_the_time_left(capsys, monkeypatch):
    now = iter([0.0, 60.0, 120.0])
    monkeypatch.setattr("time.monotonic", lambda: next(now))
    reporter = ConsoleReporter()
    for step in (1, 2, 3):  # a minute each
        reporter.progress(Progress("training", step, 60))
        reporter.told = -1
    lines = capsys.readouterr().err.splitlines()
    assert "left" not in lines[0]
    assert lines[1].endswith("58 min left")
    assert lines[2].endswith("57 min left")


def test_details_are_told_if_asked_for(capsys):
    ConsoleReporter().detail("why")
    assert capsys.readouterr().err == ""
    ConsoleReporter(explain=True).detail("why")
    assert capsys.readouterr().err == "why\n"
