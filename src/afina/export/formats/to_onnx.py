"""ONNX of the merged model, with any number of rows and any length."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...errors import MergeError
from ..contract import MERGED, Comparison, Format, Subject
from ..merged import encoded, told

OPSET = 18
FILE = "model.onnx"


class _Outputs(nn.Module):
    """The model as a function of its named inputs that gives one tensor."""

    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        given: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        if "input_ids" in given:
            given["use_cache"] = False
        found: Tensor = told(self.model(**given))
        return found


class Onnx(Format):
    """`model.onnx` (weights beside it) and the tokenizer; inputs as the model's own, output `outputs`: the logits, or
    of models without a head the hidden states. There is no cache: each further token runs over all before it."""

    name: ClassVar[str] = "onnx"
    target: ClassVar[str] = "ONNX Runtime"
    holds: ClassVar[str] = MERGED
    storages: ClassVar[tuple[str, ...]] = ("f32",)
    writes: ClassVar[bool] = False
    module: ClassVar[str] = "onnxruntime"
    program: ClassVar[str] = "run_onnx.py"
    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript")

    def write(self, subject: Subject, folder: Path) -> None:
        example = encoded(subject.trained)[0]
        if not subject.trained.task.streams:
            subject.outputs = _outputs(subject)
        model = subject.merged.float().eval()
        names = tuple(example)
        shapes = tuple(_dynamic(example[name]) for name in names)
        # Rows and positions of one would be taken for constants.
        inputs = tuple(example[name].repeat(2, *[1] * (example[name].dim() - 1)) for name in names)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            try:
                torch.onnx.export(_Outputs(model, names).eval(), inputs, folder / FILE, dynamo=True, verbose=False,
                                  opset_version=OPSET, input_names=names, output_names=("outputs",),
                                  dynamic_shapes=(shapes,), external_data=True)  # fmt: skip
            except torch.onnx.OnnxExporterError as error:
                raise MergeError("torch cannot write this model as ONNX", where=type(model).__name__,
                                 got=str(error.__cause__ or error).splitlines()[0]) from error  # fmt: skip
        model.config.save_pretrained(folder)
        subject.trained.prompter.keep(folder)

    def task(self, subject: Subject, folder: Path) -> dict[str, Any]:
        return {"file": FILE}

    def check(self, subject: Subject, folder: Path) -> Comparison:
        """Of models that write, their text too; of others what they give for six texts."""
        if subject.trained.task.streams:
            return super().check(subject, folder)
        if missing := subject.environment.lacks(self.module, self.program):
            return Comparison(self.target, missing=missing)
        probes = [{k: v.tolist() for k, v in probe.items()} for probe in encoded(subject.trained)]
        said = subject.environment.run(self.program, {"folder": folder, "file": FILE, "probes": probes})
        return _compared(self.target, subject, said)


def _outputs(subject: Subject) -> list[Tensor]:
    from ..merged import logits

    return logits(subject.trained.model, encoded(subject.trained))


def _compared(target: str, subject: Subject, said: Mapping[str, Any]) -> Comparison:
    assert subject.outputs is not None
    apart = [float((a - torch.tensor(b)).abs().max() / a.abs().max()) for a, b in
             zip(subject.outputs, said["outputs"], strict=True)]  # fmt: skip
    return Comparison(target, said["version"], f"outputs for {len(apart)} texts of several lengths", None, max(apart),
                      None, subject.tolerance)  # fmt: skip


def _dynamic(tensor: Tensor) -> dict[int, Any]:
    """The sizes that may vary: rows, and of token ids and masks their number."""
    rows = {0: torch.export.Dim.DYNAMIC}
    return rows if tensor.is_floating_point() or tensor.dim() < 2 else rows | {1: torch.export.Dim.DYNAMIC}
