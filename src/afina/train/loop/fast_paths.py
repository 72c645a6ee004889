"""The fast paths of a run: which its rows, its device and its model allow, each told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ...core.layers.sharded import forget_passes
from ...devices.found import Device
from ...devices.place import TORCH, place
from ...devices.ranks import size, spread
from ...errors import RecipeError
from ...kernels.cuda.flash import reads_lengths, use_flash
from ...kernels.cuda.offload import Mover, Streams, offload_layers
from ...kernels.speed import are_on, speed_up
from ..data.arranged.packing import EndToEnd, check_apart
from ..data.encode import Data
from ..recipe.sections import Recipe
from ..recipe.zero_stages import STAGES, partitions_weights
from ..report.events import Reporter
from ..tasks import named
from .adapt import wants_logits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def speed_up_run(
    recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, steps: int, reporter: Reporter
) -> None:
    """Give the model of a run its fast paths."""
    if not (named(recipe.task).fast and recipe.training.fast):
        return
    t = recipe.training
    rows = data.train.items[:: max(1, len(data.train) // 100)]
    tokens = t.batch_size * round(sum(len(item["input_ids"]) for item in rows) / len(rows))
    compiles = t.compile and t.offload == "none" and not partitions_weights(recipe)
    passes = steps * t.gradient_accumulation if compiles else 0
    said = _attention(recipe, model, tokenizer, data, reporter)
    # Several processes that have all of the model each bring their gradients together after it.
    whole = not partitions_weights(recipe) and (size() == 1 or not (spread() or recipe.distributed in STAGES))
    replay = t.replay and whole and t.offload == "none" and place(recipe.model.device).kind == "cuda"
    said += speed_up(model, keep_logits=wants_logits(model), steps=passes, tokens=tokens,
                     replay=replay)  # fmt: skip
    if spread():  # a trial that failed leaves weights gathered
        forget_passes(model)
    reporter.note(f"fast paths: {are_on(said)} on, {len(said) - are_on(said)} off (--explain says which, and why)")
    for sentence in said:
        reporter.detail(f"fast path: {sentence}")


def check_offload(recipe: Recipe, device: Device) -> None:
    """Refuse `training.offload` where it cannot be had.

    Raises:
        RecipeError: no CUDA device, or gradient checkpointing, which keeps nothing that could be moved.
    """
    if recipe.training.offload == "none":
        return
    if device.kind != "cuda":
        raise RecipeError("activations can be moved out of a CUDA device only", where="training.offload",
                          got=device.name, fix="leave it out")  # fmt: skip
    if recipe.training.gradient_checkpointing:
        raise RecipeError("activations that are computed again need not be kept elsewhere", where="training.offload",
                          got="training.gradient_checkpointing=true", fix="leave one of them out")  # fmt: skip


def offload(recipe: Recipe, model: Any, reporter: Reporter, mover: Mover | None = None) -> None:
    """Let a model's layers keep what they need for the backward pass in main memory, where the recipe wants it.

    Args:
        mover: what copies; CUDA streams of the recipe's device if None.

    Raises:
        RecipeError: the model has no decoder layers.
    """
    if recipe.training.offload == "none":
        return
    count = offload_layers(model, mover or Streams(torch.device(place(recipe.model.device).name)))
    if not count:
        raise RecipeError("no decoder layers were found, whose activations could be moved", where="training.offload",
                          got=type(model).__name__, fix="leave it out")  # fmt: skip
    reporter.note(f"activations of {count} layers wait for the backward pass in main memory")


def _attention(
    recipe: Recipe, model: Any, tokenizer: PreTrainedTokenizerBase, data: Data, reporter: Reporter
) -> list[str]:
    """A GPU's own attention. Rows that were to lie end to end are padded where it cannot keep them apart."""
    device, laid = place(recipe.model.device), isinstance(data.train, EndToEnd)
    if device.kind == "cpu" or wants_logits(model):
        said = "attention by lengths: off, because an adapter looks at the model's output or puts tokens before it"
        out = []
    else:
        said = use_flash(model, device, packed=bool(recipe.training.packing) or laid)
        if laid and reads_lengths(model):
            said = _apart(model, tokenizer) or said
        out = [said]
    if laid and not reads_lengths(model):
        reporter.note(f"batches are padded after all: {said}")
    return out


def _apart(model: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Torch's attention again where rows would see each other; says so."""
    try:
        check_apart(model, tokenizer, by_lengths=True)
    except RecipeError as error:
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        base.set_attn_implementation(TORCH)
        return f"attention by lengths: off, because {str(error).splitlines()[0]}"
    return ""
