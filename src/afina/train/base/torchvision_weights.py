"""MobileNetV2 as torchvision publishes it (`mobilenet_v2-*.pth`), converted once to a transformers folder in the cache.

Both have the same tensors in the same order under other names. Weights are read without running code.
"""

from __future__ import annotations

import json
from pathlib import Path

from ...cache import make_once, sha256
from ...core.files.package_folder import converted_at
from ...errors import CheckpointError
from ..report.events import Reporter

_EPSILON = 1e-5
"""Of torchvision's batch normalisation."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's images, by which its weights were trained."""


def converted(file: Path, reporter: Reporter) -> Path:
    """The folder with `file` as safetensors, with its config and its image processor.

    Raises:
        CheckpointError: the file does not hold the weights of a MobileNetV2.
    """
    folder = converted_at(file, digest := sha256(file))
    if folder.is_dir():
        return folder
    reporter.note(f"converting {file.name} to safetensors (once)")
    return make_once(folder, lambda work: _convert(file, digest, work))


def _convert(file: Path, digest: str, work: Path) -> None:
    import pickle

    import torch
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification
    from transformers.models.mobilenet_v2.image_processing_pil_mobilenet_v2 import MobileNetV2ImageProcessorPil

    try:
        theirs = torch.load(file, map_location="cpu", weights_only=True)
        labels = len(theirs["classifier.1.bias"])
    except (OSError, RuntimeError, pickle.UnpicklingError, KeyError, TypeError) as error:
        raise _not_ours(file, type(error).__name__) from error
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=_EPSILON, num_labels=labels)
    model = MobileNetV2ForImageClassification(config)
    own = model.state_dict()
    pairs = list(zip(own, theirs.values(), strict=False))
    wrong = next((name for name, tensor in pairs if own[name].shape != tensor.shape), None)
    if wrong is not None or len(own) != len(theirs):
        raise _not_ours(file, f"{len(theirs)} tensors" + (f", another shape for {wrong}" if wrong else ""))
    model.load_state_dict(dict(pairs))
    model.save_pretrained(work)
    eye = MobileNetV2ImageProcessorPil(
        size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}, image_mean=_MEAN, image_std=_STD
    )
    eye.save_pretrained(work)
    origin = {"source": file.name, "source_sha256": digest}
    (work / "origin.json").write_text(json.dumps(origin, indent=2) + "\n", encoding="utf-8")


def _not_ours(file: Path, got: str) -> CheckpointError:
    return CheckpointError("not the weights of torchvision's MobileNetV2", where=file, got=got,
                           fix="name a model folder, as transformers saves it")  # fmt: skip
