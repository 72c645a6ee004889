from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from afina.core.layers.base_files import original_weight, weight_files
from afina.errors import CheckpointError


@pytest.mark.parametrize("stored", ["layer.weight", "model.layer.weight"])
@pytest.mark.parametrize("asked", ["layer", "model.layer"])
def test_weight_is_found_with_and_without_the_base_models_prefix(tmp_path, stored, asked):
    weight = torch.arange(6.0).reshape(2, 3)
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    save_file({stored: weight}, tmp_path / "b.safetensors")
    assert torch.equal(original_weight(weight_files(tmp_path), asked, "model"), weight)


def test_missing_files_and_weights_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no unquantised weights"):
        weight_files(tmp_path)
    save_file({"other.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"layer\.weight"):
        original_weight(weight_files(tmp_path / "a.safetensors"), "layer", "model")
