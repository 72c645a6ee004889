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
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core import targets
from ...errors import ConfigError
from . import gather
from .incremental_pca import IncrementalPca
from .start import Start, check_finite, check_rank, settings

PUBLIC = ("EvaConfig", "get_eva_state_dict", "initialize_lora_eva_weights")


@dataclass
class EvaConfig:
    """Settings of EVA; fields as in the reference.

    Attributes:
        rho: a layer may get up to rho · r directions; 1 leaves all ranks as they are.
        tau: |cosine| between a direction before and after a batch at which it counts as found.
        use_label_mask: use only positions whose label is not `label_mask_value` (where the batch has labels).
        whiten: divide each direction by the standard deviation along it.
        adjust_scaling_factors: change alpha with the rank, so that a layer's scale stays.
    """

    rho: float = 2.0
    tau: float = 0.99
    use_label_mask: bool = True
    label_mask_value: int = -100
    whiten: bool = False
    adjust_scaling_factors: bool = True

    def __post_init__(self) -> None:
        if not self.rho >= 1:
            raise ConfigError("out of range", where="eva_config.rho", got=self.rho, expected=">= 1")
        if not 0 <= self.tau <= 1:
            raise ConfigError("out of range", where="eva_config.tau", got=self.tau, expected="0 to 1")


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


def forward_fn_dict(model: nn.Module, inputs: Mapping[str, Any]) -> Any:
    """Run the model on a batch given as keyword arguments, on the model's device."""
    device = next(model.parameters()).device
    return model(**{k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()})


def prepare_model_inputs_fn_language_modeling(model_input: Any, peft_config: Any) -> Tensor | None:
    """The positions (batch, time) that count: attended, and with a label if the config says so; None for all."""
    options = settings(EvaConfig, peft_config.eva_config)
    masks = []
    if isinstance(model_input, Mapping) and model_input.get("attention_mask") is not None:
        masks.append(model_input["attention_mask"].bool())
    if options.use_label_mask and isinstance(model_input, Mapping) and model_input.get("labels") is not None:
        masks.append(model_input["labels"] != options.label_mask_value)
    return None if not masks else torch.stack(masks).all(0)


def prepare_layer_inputs_fn_language_modeling(layer_input: Any, model_input: Any, layer_name: str) -> Tensor:
    """The rows (N, in) of a layer's input at the positions that count; all of a layer that sees other positions."""
    x: Tensor = layer_input[0] if isinstance(layer_input, tuple) else layer_input
    if isinstance(model_input, Tensor) and model_input.shape == x.shape[:-1]:
        return x[model_input.to(x.device)]
    return x.reshape(-1, x.shape[-1])


LayerInputs = Callable[[Any, Any, str], Tensor]


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
        prepare_model_inputs_fn: (batch, config) -> what `prepare_layer_inputs_fn` gets as its second argument.
        prepare_layer_inputs_fn: (layer input, that, layer name) -> rows (N, in); or a mapping of such by layer name.
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
    watch = _Watch(modules, config, prepare_model_inputs_fn, prepare_layer_inputs_fn)
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


class _Watch:
    """The incremental decompositions of all targets while the model runs."""

    def __init__(self, modules: Mapping[str, nn.Module], config: Any, for_model: Any, for_layer: Any) -> None:
        self.config, self.options = config, settings(EvaConfig, config.eva_config)
        self.for_model, self.for_layer = for_model, for_layer
        self.model_input: Any = None
        self.found: dict[str, IncrementalPca] = {}
        self.waiting: dict[str, list[Tensor]] = {}
        self.ranks = {n: int(config.rank_at(n)) for n in modules}
        for name, module in modules.items():
            weight = gather.weight_of(module)
            limit = min(weight.out_features, weight.in_features)
            wanted = min(limit, math.ceil(self.ranks[name] * self.options.rho))
            check_rank(torch.empty(weight.shape, device="meta"), self.ranks[name])
            self.found[name] = IncrementalPca(wanted, weight.in_features, weight.device)
            self.waiting[name] = []

    def begin(self, batch: Any) -> None:
        self.model_input = batch if self.for_model is None else self.for_model(batch, self.config)

    def see(self, name: str, args: Any, kwargs: Any) -> None:
        prepare = self.for_layer.get(name) if isinstance(self.for_layer, Mapping) else self.for_layer
        layer_input = args[0] if args else next(iter(kwargs.values()))
        rows_NI = (prepare or prepare_layer_inputs_fn_language_modeling)(layer_input, self.model_input, name)
        check_finite(rows_NI, "an input", name)
        self.waiting[name].append(rows_NI.detach().float())

    def settled(self) -> list[str]:
        """Take in what came; the layers whose directions no longer turn."""
        done = []
        for name, pca in self.found.items():
            if sum(map(len, self.waiting[name])) < pca.components:
                continue
            self._take(name)
            if pca.similarity >= self.options.tau:
                done.append(name)
        return done

    def _take(self, name: str) -> None:
        rows, self.waiting[name] = self.waiting[name], []
        self.found[name].update(torch.cat(rows))

    def result(self) -> dict[str, Tensor]:
        for name, rows in self.waiting.items():
            if sum(map(len, rows)):
                self._take(name)
        gather.check_seen([n for n, p in self.found.items() if p.count], self.found, "data")
        for name, pca in self.found.items():
            if pca.count <= self.ranks[name]:
                raise ConfigError("too few rows for the rank", where=name, got=pca.count,
                                  expected=f"more than {self.ranks[name]}", fix="give more data")  # fmt: skip
        ranks = redistribute({n: p.explained for n, p in self.found.items()}, sum(self.ranks.values()))
        return {n: self._directions(n, r) for n, r in ranks.items() if r}

    def _directions(self, name: str, rank: int) -> Tensor:
        pca = self.found[name]
        directions_KI = pca.directions_KI[:rank]
        return directions_KI / pca.deviations[:rank, None] if self.options.whiten else directions_KI


def redistribute(explained: Mapping[str, Tensor], budget: int) -> dict[str, int]:
    """The rank of each layer when `budget` directions with the largest shares are kept over all layers."""
    every = [(-share, order, name) for name, shares in explained.items() for order, share in enumerate(shares.tolist())]
    kept = Counter(name for _, _, name in sorted(every)[:budget])
    return {name: kept[name] for name in explained}


def adopt(model: nn.Module, config: Any, directions: Mapping[str, Tensor]) -> None:
    """Write gathered directions and the ranks that follow from them into a LoRA config, for the plain `model`.

    Sets `statistics`, `rank_pattern`, `alpha_pattern` (if `adjust_scaling_factors`), and `target_modules` if layers go
    empty.

    Raises:
        ConfigError: the directions are of other layers than the config's targets.
    """
    found = {n.removeprefix("base_model.model."): d for n, d in directions.items()}
    linear = gather.linear_targets(model, config)
    unknown = sorted(set(found) - set(linear))
    if unknown or not found:
        raise ConfigError("the directions are of other layers than the targets", where="eva_state_dict",
                          got=", ".join(unknown[:3]) or "none", expected=", ".join(list(linear)[:3]))  # fmt: skip
    ranks = {n: len(d) for n, d in found.items() if len(d) != config.rank_at(n)}
    if settings(EvaConfig, config.eva_config).adjust_scaling_factors:
        size = math.sqrt if config.use_rslora else float
        alphas = {n: config.scaling_at(n) * size(r) for n, r in ranks.items()}
        config.alpha_pattern = alphas | {k: v for k, v in config.alpha_pattern.items() if k not in alphas}
    if len(found) < len(linear):
        config.target_modules = [n for n in targets.select(model, config) if n in found or n not in linear]
        config.layers_to_transform = config.layers_pattern = None
    config.rank_pattern = ranks | {k: v for k, v in config.rank_pattern.items() if k not in ranks}
    config.statistics = found


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
        dataloader: as for `get_eva_state_dict`, like all arguments that are not named here.
        eva_state_dict: what `get_eva_state_dict` gave before, instead of a dataloader.

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
