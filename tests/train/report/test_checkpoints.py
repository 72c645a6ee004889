from __future__ import annotations

import pytest

from afina.train.report.checkpoints import is_complete, mark_complete, newest_complete


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
    "manifest", ["", "[]", "{}", '{"sizes": []}', '{"sizes": {"weights": 4}}', '{"sizes": {"x": 1}}']
)
def test_checkpoint_with_another_manifest_is_not_complete(tmp_path, manifest):
    path = checkpoint(tmp_path, 1)
    assert is_complete(path)
    (path / "complete.json").write_text(manifest)
    assert not is_complete(path)
