"""Getting a model with a quantised base ready to train adapters on."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AfinaWarning, ConfigError
from .quantised import QuantisedWeight
from .storages import quantised_weight
from .whole_model import unpack


def prepare_model_for_kbit_training(
    model: nn.Module,
    use_gradient_checkpointing: bool = True,
    gradient_checkpointing_kwargs: dict[str, Any] | None = None,
    auto_clear_cache: bool = True,
) -> nn.Module:
    """Freeze a quantised model, and make its training stable and small; call it before `get_peft_model`.

    What is not quantised (normalisations, embeddings, heads) goes to float32 if it has 16 bits, unless the quantised
    layers take inputs of one dtype only (all but bitsandbytes'). Under gradient checkpointing the input embeddings'
    output requires gradients, without which checkpointed blocks that are frozen would get none.

    Args:
        model: loaded with a quantised base; changed in place.
        use_gradient_checkpointing: recompute activations in the backward pass.
        gradient_checkpointing_kwargs: for `model.gradient_checkpointing_enable`, such as {"use_reentrant": False}.
        auto_clear_cache: hand the 16-bit copies' memory back to the GPU.

    Returns:
        The model.

    Raises:
        ConfigError: the model cannot do what `gradient_checkpointing_kwargs` asks for.
    """
    model.requires_grad_(False)
    found = [w for m in model.modules() if (w := quantised_weight(m)) is not None and w.quantised]
    if not found:
        warnings.warn("no layer of the model is quantised", AfinaWarning, stacklevel=2)
    unpack(model)
    if all(w.any_input_dtype for w in found):
        _upcast(model, found)
        if auto_clear_cache and torch.cuda.is_available():
            torch.cuda.empty_cache()
    if found and use_gradient_checkpointing:
        _checkpoint(model, gradient_checkpointing_kwargs or {})
    return model


def _upcast(model: nn.Module, quantised: list[QuantisedWeight]) -> None:
    stored = {id(w.weight) for w in quantised}
    for parameter in model.parameters():
        packed = id(parameter) in stored or type(parameter).__name__ == "Params4bit"
        if parameter.dtype in (torch.float16, torch.bfloat16) and not packed:
            parameter.data = parameter.data.to(torch.float32)


def _checkpoint(model: nn.Module, options: dict[str, Any]) -> None:
    anything: Any = model
    if options.get("use_reentrant", True):
        require_input_gradients(model)
    takes = "gradient_checkpointing_kwargs" in inspect.signature(anything.gradient_checkpointing_enable).parameters
    if options and not takes:
        raise ConfigError("this model's gradient checkpointing takes no options", where="gradient_checkpointing_kwargs",
                          got=options)  # fmt: skip
    anything.gradient_checkpointing_enable(**({"gradient_checkpointing_kwargs": options} if takes and options else {}))


def require_input_gradients(model: nn.Module) -> None:
    """Let gradients flow into the embeddings' output, without which reentrant checkpoints of a frozen base get none."""
    anything: Any = model
    if hasattr(model, "enable_input_require_grads"):
        anything.enable_input_require_grads()
    elif hasattr(model, "get_input_embeddings"):
        anything.get_input_embeddings().register_forward_hook(_require_grad)


def _require_grad(module: nn.Module, args: Any, output: Tensor) -> None:
    output.requires_grad_(True)
