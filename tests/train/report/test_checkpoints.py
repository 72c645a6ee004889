from __future__ import annotations

import pytest

from afina.train.report.checkpoints import clear, fault_of, is_complete, look, mark_complete, newest_complete


def checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "weights").write_bytes(b"12345")
    mark_complete(path)
    return path


def test_newest_complete_checkpoint_is_the_one_with_the_most_steps(tmp_path):
    for step in (9, 10, 100):
        checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-200").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    assert newest_complete(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize(
    "manifest",
    [
        "",
        "[]",
        "{}",
        '{"sizes": {"weights": 5}}',
        '{"sha256": []}',
        '{"sha256": {"weights": "0"}}',
        '{"sha256": {"x": "0"}}',
    ],
)
def test_checkpoint_with_another_manifest_is_not_complete(tmp_path, manifest):
    path = checkpoint(tmp_path, 1)
    assert is_complete(path)
    (path / "complete.json").write_text(manifest)
    assert not is_complete(path)


def test_flipped_bit_is_noticed_and_named(tmp_path):
    path = checkpoint(tmp_path, 1)
    (path / "weights").write_bytes(b"12344")
    assert fault_of(path) == "weights has other bytes than were written"


def test_file_that_is_gone_is_noticed_and_named(tmp_path):
    path = checkpoint(tmp_path, 1)
    (path / "weights").unlink()
    assert fault_of(path) == "weights is missing"


def test_cleared_checkpoints_are_out_of_the_way_and_sealed_ones_are_kept_aside(tmp_path):
    checkpoint(tmp_path, 1)
    for step in (2, 3):
        (checkpoint(tmp_path, step) / "weights").write_bytes(b"54321")
    (tmp_path / "checkpoint-3" / "complete.json").unlink()
    found = look(tmp_path)
    assert found.whole == tmp_path / "checkpoint-1"
    assert [path.name for path in found.faults] == ["checkpoint-3", "checkpoint-2"]
    clear(found.faults)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "damaged-checkpoint-2"]
