"""EVA: start A at the directions in which a layer's inputs vary most, and give rank to where they explain most.

    A = the top principal directions of the layer's inputs, B = 0
    over all layers, the (number of layers · r) directions with the largest share of explained variance are kept

Paischer, Hauzenberger, Schmied, Alkin, Deisenroth, Hochreiter 2024, arXiv 2410.07170. The decomposition is
incremental and stops, layer by layer, when no direction turns by more than arccos(tau) in a batch. The inputs are
centred, so that it is the variance that is explained (as in the reference, measured). Unlike there, one pass over the
data is the limit (the reference never ends when each batch has fewer rows than directions), and `whiten` divides by
the standard deviation along each direction rather than by a power of the amount of data.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from . import gather
from .eva_inputs import (
    LayerInputs,
    Watch,
    forward_fn_dict,
    prepare_layer_inputs_fn_language_modeling,
    prepare_model_inputs_fn_language_modeling,
)
from .eva_ranks import adopt
from .start import Start, check_rank

PUBLIC = ("get_eva_state_dict", "initialize_lora_eva_weights")


def eva(weight_OI: Tensor, rank: int, directions_KI: Tensor) -> Start:
    """The first `rank` directions as A, zero B.

    Raises:
        ConfigError: the rank exceeds min(in, out), or fewer directions were gathered.
    """
    check_rank(weight_OI, rank)
    if len(directions_KI) < rank:
        raise ConfigError("fewer directions were gathered than the rank", where="eva", got=len(directions_KI),
                          expected=f"at least {rank}", fix="gather again with this config")  # fmt: skip
    B_OR = torch.zeros(weight_OI.shape[0], rank, device=weight_OI.device)
    return Start(directions_KI[:rank].to(weight_OI), B_OR, subtract=False)


def get_eva_state_dict(
    model: Any,
    dataloader: Iterable[Any],
    peft_config: Any = None,
    forward_fn: Callable[[Any, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: Callable[[Any, Any], Any] | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: LayerInputs | Mapping[str, LayerInputs] | None = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = False,
) -> dict[str, Tensor]:
    """The principal directions of the inputs of each linear target, as many as the layer's new rank.

    Args:
        model: the plain model, or a PeftModel (its adapters are off during the run).
        dataloader: batches; read once, as far as needed.
        peft_config: the LoRA config with `eva_config`; that of `adapter_name` if None.
        forward_fn: (model, batch) -> anything; runs the model.
        prepare_model_inputs_fn: (batch, config) -> what `prepare_layer_inputs_fn` gets as its second argument.
        prepare_layer_inputs_fn: (layer input, that, layer name) -> rows (N, in); or a mapping of such by layer name.
        adapter_name: the adapter's name.
        gather_distributed_inputs: not supported on several processes; give each the same data and set it to False.
        show_progress_bar: nothing is printed here; kept for the reference's callers.

    Returns:
        module name (in the plain model) -> (rank, in), float32. Layers whose new rank is 0 are missing.

    Raises:
        ConfigError: a target saw no data or too few rows, or inputs are not finite.
    """
    _check_processes(gather_distributed_inputs)
    injected = hasattr(model, "peft_config")
    config = peft_config if peft_config is not None or not injected else model.peft_config[adapter_name]
    if config is None:
        raise ConfigError("a plain model needs the LoRA config", where="peft_config", got=None)
    base = model.get_base_model() if injected else model
    modules = gather.linear_targets(base, config)
    watch = Watch(modules, config, prepare_model_inputs_fn, prepare_layer_inputs_fn)
    off = model.disable_adapter() if injected else contextlib.nullcontext()
    with off, gather.evaluating(model), torch.no_grad(), gather.watching(modules, watch.see) as hooks:
        for batch in dataloader:
            watch.begin(batch)
            forward_fn(model, batch)
            for name in watch.settled():
                hooks.pop(name).remove()
            if not hooks:
                break
    return watch.result()


def _check_processes(gather_distributed_inputs: bool) -> None:
    if gather_distributed_inputs and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ConfigError("inputs are not gathered from several processes", where="gather_distributed_inputs", got=True,
                          fix="give every process the same data and set it to False")  # fmt: skip


def initialize_lora_eva_weights(
    model: Any,
    dataloader: Iterable[Any] | None = None,
    eva_state_dict: Mapping[str, Tensor] | None = None,
    forward_fn: Callable[[Any, Any], Any] = forward_fn_dict,
    prepare_model_inputs_fn: Callable[[Any, Any], Any] | None = prepare_model_inputs_fn_language_modeling,
    prepare_layer_inputs_fn: LayerInputs | Mapping[str, LayerInputs] | None = prepare_layer_inputs_fn_language_modeling,
    adapter_name: str = "default",
    gather_distributed_inputs: bool = True,
    show_progress_bar: bool = False,
) -> Any:
    """Start an adapter of a PeftModel by EVA: its ranks are redistributed and its factors made anew.

    Args:
        model: a PeftModel whose adapter has init_lora_weights="eva"; returned.
        dataloader: as for `get_eva_state_dict`, like all arguments below but the next.
        eva_state_dict: what `get_eva_state_dict` gave before, instead of a dataloader.
        forward_fn: runs the model.
        prepare_model_inputs_fn: says what counts of a batch.
        prepare_layer_inputs_fn: picks rows of a layer's input.
        adapter_name: the adapter's name.
        gather_distributed_inputs: not supported on several processes.
        show_progress_bar: accepted for the reference's sake, without effect.

    Raises:
        ConfigError: the adapter is not set up for EVA; neither data nor directions are given.
    """
    config = model.peft_config[adapter_name]
    if config.init_lora_weights != "eva":
        raise ConfigError("the adapter is not set up for EVA", where="init_lora_weights",
                          got=config.init_lora_weights, expected="eva")  # fmt: skip
    if eva_state_dict is None:
        if dataloader is None:
            raise ConfigError("there is nothing to start from", where="dataloader", got=None,
                              expected="a dataloader or an eva_state_dict")  # fmt: skip
        eva_state_dict = get_eva_state_dict(
            model, dataloader, config, forward_fn, prepare_model_inputs_fn, prepare_layer_inputs_fn, adapter_name,
            gather_distributed_inputs,
        )  # fmt: skip
    adopt(model.get_base_model(), config, eva_state_dict)
    active = list(model.active_adapters)
    model.delete_adapter(adapter_name)
    model.add_adapter(adapter_name, config)
    model.set_adapter(active)
    return model
