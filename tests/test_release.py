"""What is published: two builds of one commit are the same bytes, and the workflow builds in that way."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from scripts import release

ROOT = Path(__file__).resolve().parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
BUILDS = all(importlib.util.find_spec(name) for name in ("build", "hatchling")) and (ROOT / ".git").exists()
needs_build = pytest.mark.skipif(not BUILDS, reason="build and hatchling are not installed, or this is no repository")


@needs_build
def test_two_builds_of_a_commit_are_the_same_bytes(tmp_path: Path) -> None:
    sums = release.main(tmp_path, "--no-isolation")
    (wheel,) = tmp_path.glob("*.whl")
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() == sums[wheel.name]
    assert {path.name for path in tmp_path.iterdir()} == {*sums, release.SUMS}
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert "afina/train/report/live.html" in names
        assert not [name for name in names if name.startswith(("tests/", "docs/"))]


def test_builds_that_differ_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter(({"a.whl": b"1", "b": b"2"}, {"a.whl": b"3", "b": b"2"}))
    monkeypatch.setattr(release, "built", lambda *given: next(found))
    with pytest.raises(SystemExit, match=r"differ: a\.whl"):
        release.main(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="this is no repository")
def test_what_is_built_is_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The build is given the commit's files and time, and nothing that merely lies there."""
    seen = []
    run = subprocess.run

    def listen(command: list[str], **options: object) -> object:
        if command[0] != "sh":
            return run(command, **options)
        seen.append((command, options["env"]))
        (Path(str(options["cwd"])) / "dist").mkdir()
        return None

    monkeypatch.setattr(subprocess, "run", listen)
    release.built(tmp_path / "b", "0077", "1", ())
    ((command, environment),) = seen
    assert environment["SOURCE_DATE_EPOCH"] == release.committed()
    assert "umask 0077" in command[2]
    packed = run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        files = {member.name for member in archive.getmembers() if member.isfile()}
    source = tmp_path / "b" / "source"
    assert {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()} == files


def test_the_workflow_signs_in_its_own_name_and_keeps_no_token() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    found = yaml.safe_load(text)
    jobs = found["jobs"]
    assert found["permissions"] == {}
    assert {name: job["permissions"] for name, job in jobs.items()} == {
        "build": {"contents": "read", "id-token": "write", "attestations": "write"},
        "publish": {"id-token": "write"},
    }
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["environment"] == "release"
    assert "secrets." not in text
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert any("scripts/release.py dist" in step.get("run", "") for step in steps)
    used = {step["uses"].partition("@")[0] for step in steps if "uses" in step}
    assert {"actions/attest-build-provenance", "actions/attest-sbom", "pypa/gh-action-pypi-publish"} <= used
    assert all("@" in step["uses"] for step in steps if "uses" in step)
