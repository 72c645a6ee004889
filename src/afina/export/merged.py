"""A merged model: the adapter folded into its base, saved, read back and compared before it counts as made."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.config import method
from ..core.files import leftovers
from ..core.files.overwriting import refuse_occupied, refuse_overwriting
from ..core.files.unwritable import told_if_unwritable
from ..errors import MergeError, NotMergeable
from ..train.answers.generate import keep_ends
from ..train.base.pipelines.part_files import INDEX
from ..train.tasks.base import Known, Trained
from .factors import class_fault

# Text of several kinds; what matters is that the two models see the same.
_PROBES = (
    "The capital of France is",
    "I love this so much, thank you!",
    "def add(a, b):\n    return",
    "On Monday it rained all day, and nobody came.",
    "1 2 3 4 5",
    "¿Dónde está la estación? 駅はどこですか。",
)
# Largest difference of logits over their largest size: float32 sums in another order; 16-bit weights are rounded
# once more when the update is added to them (2^-8 for bfloat16, over tens of layers).
_TOLERANCE_32, _TOLERANCE_16 = 1e-4, 5e-2


@dataclass(frozen=True)
class Check:
    """How the merged model compares with the adapter's own outputs.

    Attributes:
        difference: largest difference of logits, relative to the largest logit.
        agreement: share of positions with the same first choice.
        probes: number of texts compared.
    """

    difference: float
    agreement: float
    probes: int


def check_request(known: Known, out: Path, overwrite: bool) -> None:
    """Refuse what cannot be merged, or not into that folder, as far as files tell.

    Raises:
        CheckpointError: `out` holds something, or cannot be written.
        ConfigError: `out` holds the adapter or the base.
        MergeError: there is no adapter, or its method cannot be merged.
    """
    if not known.is_adapter:
        raise MergeError("nothing to merge: the whole model was trained", where=known.folder,
                         fix="use the folder as it is")  # fmt: skip
    base = Path(known.recipe.model.path).expanduser()
    refuse_overwriting(out, {"the adapter": known.folder, "the base model": base}, "OUT")
    kinds = ("config.json", "*.safetensors"), (INDEX, "*/*.safetensors")
    is_model = any((out / config).is_file() and any(out.glob(weights)) for config, weights in kinds)
    refuse_occupied(out, "a model", is_model, overwrite)
    if (fault := class_fault(known.folder)) is not None:
        raise NotMergeable(f"it cannot be merged: {fault}", where=known.folder, got=known.recipe.method.type,
                           fix="afina predict and chat use it as it is")  # fmt: skip


def merge(trained: Trained, out: Path, *, overwrite: bool = False) -> Check:
    """Write the merged model and tokenizer to `out`, if what was written agrees with the adapter.

    Raises:
        CheckpointError: `out` holds something, or cannot be written.
        ConfigError: `out` holds the adapter or the base.
        MergeError: the method cannot be merged, or the merged model read back differs from the adapter.
    """
    check_request(trained, out, overwrite)
    refuse_overwriting(out, {"the base": Path(trained.model.get_base_model().name_or_path)}, "OUT")
    probes = encoded(trained)
    expected = logits(trained.model, probes)
    try:
        merged = trained.model.merge_and_unload(safe_merge=True)
    except NotMergeable as error:
        raise NotMergeable(error.what, where=trained.folder, got=error.got or trained.recipe.method.type,
                           fix=error.fix or "afina predict and chat use it as it is") from error  # fmt: skip
    work = leftovers.room_beside(out, "the merged model")
    try:
        with told_if_unwritable(work, lambda: sum(int(p.nbytes) for p in merged.parameters())):
            if trained.task.streams:
                keep_ends(merged, trained.prompter)
            merged.save_pretrained(work)
            trained.prompter.keep(work)
        check = compare(expected, logits(reloaded(work, merged), probes))
        tolerance = _TOLERANCE_32 if merged.dtype.itemsize >= 4 else _TOLERANCE_16
        if not check.difference <= tolerance:
            raise MergeError(
                "the merged model differs from the adapter",
                where=out,
                got=f"{check.difference:.2e} of the largest logit",
                expected=f"at most {tolerance:.0e}",
                fix="nothing was written; merge in a wider dtype: --dtype float32",
            )
        publish(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return check


def against(trained: Trained, merged: Path) -> Check:
    """How a merged model differs from the adapter on another base, such as the quantised one it was trained on.

    Args:
        trained: the adapter on that base.
        merged: folder of the merged model.
    """
    probes = encoded(trained)
    model = _on(type(trained.model.get_base_model()), merged, "auto", trained.model.device)
    return compare(logits(trained.model, probes), logits(model, probes))


def encoded(trained: Trained) -> list[Any]:
    """Six texts as the model takes them; of several tasks the first, or the one that it is asked about."""
    import torch

    config: Any = trained.model.active_peft_config if trained.is_adapter else None
    more: dict[str, Any] = {}
    if config is not None and "task_ids" in getattr(method(config).implementation, "inputs", ()):
        more = {"task_ids": torch.tensor([trained.task_number or 0], device=trained.model.device)}
    probes = [trained.task.probe(trained.prompter, text, trained.model.device) for text in _PROBES]
    return [{**probe, **more} for probe in probes]


def told(output: Any) -> Any:
    """What a model says: logits, those of the ends of an answer, what a denoiser predicts, or, of a model without a
    head, its hidden states."""
    import torch

    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], -1)
    kinds = ("logits", "sample", "last_hidden_state")
    return next(getattr(output, kind) for kind in kinds if hasattr(output, kind))


def logits(model: Any, probes: list[Any]) -> list[Any]:
    """What a model says to each of them, in float32."""
    import torch

    model.eval()
    with torch.no_grad():
        return [told(model(**probe)).float().cpu() for probe in probes]


def reloaded(folder: Path, merged: Any) -> Any:
    """The model of a folder, of the class, dtype and device of another one."""
    return _on(type(merged), folder, merged.dtype, merged.device)


def _on(kind: Any, folder: Path, dtype: Any, device: Any) -> Any:
    """A model read straight to its device."""
    place = {} if device.type == "cpu" else {"device_map": {"": device}}
    return kind.from_pretrained(folder, dtype=dtype, **place)


def compare(expected: list[Any], got: list[Any]) -> Check:
    """The comparison of logits; a value that is not finite counts as infinitely different."""
    difference, same, positions = 0.0, 0, 0
    for a, b in zip(expected, got, strict=True):
        relative = ((a - b).abs().max() / a.abs().max().clamp_min(1e-12)).item()
        difference = max(difference, relative if relative == relative else float("inf"))
        same += int((a.argmax(-1) == b.argmax(-1)).sum())
        positions += a.argmax(-1).numel()
    return Check(difference, same / positions, len(expected))


def publish(work: Path, out: Path) -> None:
    from ..cache import open_up

    open_up(work)
    if out.is_dir():
        former = out.with_name(f".{out.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        out.rename(former)
        work.rename(out)
        shutil.rmtree(former)
    else:
        work.rename(out)
