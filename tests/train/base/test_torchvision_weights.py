from __future__ import annotations

from pathlib import Path

import pytest
import torch

from afina.errors import CheckpointError
from afina.train.base.base_model import base_location
from afina.train.recipe.sections import ModelSection
from afina.train.report.events import Reporter


def theirs(model, names=lambda name: f"features.{name}"):
    """A model's tensors under other names, in their order, as torchvision publishes them."""
    own = model.state_dict()
    return {("classifier.1." + n.rpartition(".")[2]) if n.startswith("classifier") else names(n): t
            for n, t in own.items()}  # fmt: skip


def test_weights_are_those_of_the_file_and_statistics_too(tmp_path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification, MobileNetV2Config
    from transformers import MobileNetV2ForImageClassification as MobileNetV2

    torch.manual_seed(0)
    model = MobileNetV2(MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, num_labels=7)).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
    torch.save(theirs(model), tmp_path / "mobilenet_v2-x.pth")
    folder = base_location(ModelSection(path=str(tmp_path / "mobilenet_v2-x.pth")), Reporter())
    again = AutoModelForImageClassification.from_pretrained(folder).eval()
    own = model.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in again.state_dict().items())
    assert any(bool((b != 1).all()) for name, b in again.named_buffers() if name.endswith("running_var"))
    assert (again.config.tf_padding, again.config.layer_norm_eps, again.config.num_labels) == (False, 1e-5, 7)
    assert AutoImageProcessor.from_pretrained(folder).crop_size["height"] == 224
    assert (Path(folder) / "origin.json").is_file()


@pytest.mark.parametrize("what", ["text", "another model", "a tensor less"])
def test_other_files_are_refused(what, tmp_path):
    file = tmp_path / "x.pth"
    if what == "text":
        file.write_text("hello")
    elif what == "another model":
        torch.save(torch.nn.Linear(2, 2).state_dict(), file)
    else:
        torch.save({"features.0": torch.zeros(3), "classifier.1.bias": torch.zeros(7)}, file)
    with pytest.raises(CheckpointError, match="not the weights of torchvision's MobileNetV2"):
        base_location(ModelSection(path=str(file)), Reporter())
