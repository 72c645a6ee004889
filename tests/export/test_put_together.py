"""What several processes wrote of a model in parts, put together without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import checkpoint
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor, Shard

from afina.devices.ranks import meet
from afina.errors import CheckpointError
from afina.export.put_together import parts, put_together
from afina.train.report.checkpoints import mark_complete

from ..battery import spread, whole
from ..train.child import command

SHAPE = whole.SHAPES["decoder"]


def written(folder: str) -> None:
    """The decoder, half of every tensor in each of two processes."""
    from torch.distributed.device_mesh import init_device_mesh

    with spread.two():
        mesh, model = init_device_mesh("cpu", (2,)), SHAPE.build(0, whole.WIDTH)
        halves = {n: DTensor.from_local(torch.chunk(t, 2)[mesh.get_local_rank()], mesh, [Shard(0)])
                  for n, t in model.state_dict().items()}  # fmt: skip
        checkpoint.save(halves, storage_writer=HuggingFaceStorageWriter(folder, save_distributed=True))
        meet()


@pytest.fixture
def folder(together, tmp_path: Path) -> Path:
    out = tmp_path / "checkpoint-2"
    assert together(written, str(out)) == [None, None]
    SHAPE.build(0, whole.WIDTH).config.save_pretrained(out)
    mark_complete(out)
    return out


def test_parts_make_the_model_that_was_written(folder, tmp_path):
    model = SHAPE.build(0, whole.WIDTH)
    assert len(parts(folder)) == 2
    assert put_together(folder, tmp_path / "out") == len(model.state_dict())
    again = type(model).from_pretrained(tmp_path / "out")
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in model.state_dict().items())
    with pytest.raises(CheckpointError, match="holds something"):
        put_together(folder, tmp_path / "out")
    assert put_together(folder, tmp_path / "out", overwrite=True)


def test_a_missing_part_is_told_and_nothing_is_written(folder, tmp_path):
    lost = parts(folder)[1]
    assert load_file(lost)
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"{lost.name} is missing"):
        put_together(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    shutil.rmtree(folder)
    folder.mkdir()
    assert parts(folder) == []


def test_the_command_takes_no_base_for_what_stands_on_none(folder, tmp_path, child):
    code, _, err = child(command, "merge", folder, tmp_path / "out", "--base", "another")
    assert code == 2
    assert "--base: the whole model was trained, it stands on no base" in err
    assert not (tmp_path / "out").exists()
    code, _, err = child(command, "merge", folder, tmp_path / "out")
    assert code == 0, err
    assert (tmp_path / "out" / "config.json").is_file()
