"""Runs that were cut off after a step, and go on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...loop.test_run import train


def ends_otherwise(whole: Path, steps: Iterable[int]) -> list[int]:
    """After which of the steps a run resumed ends with another adapter than the whole one.

    Args:
        whole: the folder of that one: `tiny.yaml`, and `out` with a checkpoint of every step.
    """
    different = []
    expected = load_file(whole / "out" / "adapter_model.safetensors")
    for k in steps:
        cut = whole.parent / f"cut{k}"
        shutil.copytree(whole, cut)
        for file in (cut / "tiny.yaml", cut / "out" / "recipe.yaml"):
            file.write_text(file.read_text().replace(str(whole), str(cut)))
        for left in (cut / "out").glob("checkpoint-*"):
            if int(left.name.split("-")[1]) > k:
                shutil.rmtree(left)
        (cut / "out" / "report.json").unlink()
        again, _ = train(cut / "tiny.yaml", resume=True)
        found = load_file(again.folder / "adapter_model.safetensors")
        if not all(torch.equal(expected[name], found[name]) for name in expected):
            different.append(k)
    return different
