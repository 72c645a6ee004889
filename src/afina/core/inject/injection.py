"""Put an adapter on every layer that a config targets; all or nothing. Works on any `nn.Module`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import AfinaWarning, NameTakenError, TargetError, nearest_to_all
from ..config import LayerConfig, method
from ..files.budget import budget
from ..hosts.adapter import Adapter, Site
from ..hosts.host import Host
from ..hosts.host_kinds import ModulesToSaveWrapper, host_of
from ..hosts.replacement import Replacement
from ..hosts.routing import Router
from ..hosts.tuner import adapter_names, scope_of, shared_modules
from ..hosts.walk import hold_shared, outside_adapters
from ..layers.cut import refuse_cut
from ..layers.sharded import freeze, whole
from ..layers.tensor_parallel import alike, remember_wholes
from ..layers.weights import BaseWeight
from ..validate import check_name
from .effects import warn_of_idle_entries
from .patterns import Matcher
from .reading import is_read
from .slots import Slot, input_table, plain_module, refuse_container, shares_weights, slots, with_tables
from .targets import saved_slots, select_slots


@dataclass
class _Planned:
    """One adapter that was built but not yet put."""

    slot: Slot
    host: Host
    adapter: Adapter | None
    bias: nn.Parameter | None = None


@budget()
def inject(
    model: nn.Module,
    config: LayerConfig,
    name: str,
    *,
    low_cpu_mem_usage: bool = False,
    autocast_adapter_dtype: bool = True,
    container: nn.Module | None = None,
) -> list[str]:
    """Put a new adapter on every layer that the config targets; all or nothing.

    Args:
        container: the module that holds parameters shared by all layers; the model itself if None.

    Returns:
        The names of the adapted modules.

    Raises:
        TargetError: nothing matches, or a matching layer cannot be adapted.
        NameTakenError: the name is taken or unusable.
    """
    check_name(name)
    if name in adapter_names(container or model):
        raise NameTakenError("the model already has an adapter of this name", where="adapter_name", got=name)
    builder = _Builder(model, config, name, low_cpu_mem_usage, autocast_adapter_dtype, container or model)
    planned = builder.plan()
    if not adapter_names(container or model):
        freeze(model)
    group = remember_wholes(model)
    for item in planned:
        _put(item, name)
        alike(item.adapter, group)
    alike(shared_modules(container or model).get(name), group)
    if any(isinstance(item.host, ModulesToSaveWrapper) and item.host.is_tied for item in planned):
        builder.scope.watch(model)
    return [item.slot.name for item in planned if item.adapter is not None]


def _put(item: _Planned, name: str) -> None:
    if item.adapter is not None:
        item.host.add(name, item.adapter)
    if item.bias is not None:
        item.host.add_bias(name, item.bias)
    standing: Any = item.slot.parent._modules[item.slot.attribute]
    if not any(module is item.host for module in _chain(standing)):
        item.slot.put(item.host)
    if isinstance(item.slot.parent, (nn.TransformerEncoderLayer, nn.MultiheadAttention)):
        # torch's fused encoder layer reads weights past the hosts; it steps aside where a hook is attached.
        item.host.register_forward_pre_hook(_no_op)


def _chain(module: nn.Module) -> list[nn.Module]:
    """A module and, while they are hosts, what they wrap."""
    out = [module]
    while isinstance(out[-1], Host):
        out.append(out[-1].base_layer)
    return out


def _own_parameter(name: str, host: Host) -> tuple[str, ...]:
    """The path of the parameter that a host adapts alone, if it does so."""
    return () if host.parameter is None else (f"{name}.{host.parameter.rpartition('.')[2]}".strip("."),)


def _no_op(module: nn.Module, args: Any) -> None: ...


class _Builder:
    """Builds all adapters of one config before any is put, so that an error leaves the model as it was."""

    def __init__(
        self, model: nn.Module, config: LayerConfig, name: str, low_memory: bool, autocast: bool, container: nn.Module
    ) -> None:
        self.model, self.config, self.name, self.container = model, config, name, container
        self.low_memory, self.autocast = low_memory, autocast
        implementation = method(config).implementation
        self.layered = issubclass(implementation, Adapter)
        self.adapter_class: type[Adapter] = implementation.for_config(config) if self.layered else Adapter
        self.fresh: dict[tuple[int, str], Host] = {}
        self.inside: frozenset[str] = frozenset()
        self.scope = scope_of(container)

    def plan(self) -> list[_Planned]:
        self.adapter_class.check_model(self.model, self.config)
        planned = self._saved_modules()
        elsewhere = planned or getattr(self.config, "target_parameters", None) or not self.layered
        targets = [] if elsewhere and self.config.target_modules == [] else select_slots(self.model, self.config)
        self._warn_of_second_places(targets)
        places = [(s, self._host(s)) for s in self._with_attention_outputs(targets)]
        places += self._parameters()
        saved = {p.slot.name for p in planned}
        # Of a module that is both, the trained copy is what counts, as in the reference.
        places = [(s, h) for s, h in places if s.name not in saved]
        clash = next((s.name for s, h in places if isinstance(h, ModulesToSaveWrapper)), None)
        if clash:
            raise TargetError("another adapter trains a copy of this module", where=clash,
                              fix="leave it out with exclude_modules, or name it in modules_to_save too")  # fmt: skip
        for slot, host in places:
            self.adapter_class.check_kind(slot.name, host.base)
            refuse_cut(slot.name, plain_module(slot.module), host.parameter)
        shared = self._shared({s.name: h.base for s, h in places})
        for slot, host in places:
            planned.append(_Planned(slot, host, self._adapter(slot.name, host, shared)))
        if shared is not None:
            shared.train(self.model.training)
            hold_shared(self.container, self.name, shared)
            if isinstance(shared, Router):
                shared.name, shared.scope = self.name, self.scope
        adapted = [(s.name, *_own_parameter(s.name, h)) for s, h in places]
        self._tied(planned)
        warn_of_idle_entries(self.model, self.config, adapted, [p.adapter for p in planned])
        self._biases(planned)
        for companion in self.config.companions():
            planned += self._companion(companion, planned)
        return planned

    def _companion(self, config: LayerConfig, planned: list[_Planned]) -> list[_Planned]:
        """Another method's adapters under the same name, on other modules."""
        builder = _Builder(self.model, config, self.name, self.low_memory, self.autocast, self.container)
        more = builder.plan()
        taken = {id(p.host.base_layer) for p in planned if p.adapter is not None}
        clash = next((p.slot.name for p in more if id(p.host.base_layer) in taken), None)
        if clash:
            raise TargetError("two parts of one config adapt the same module", where=clash)
        return more

    def _tied(self, planned: list[_Planned]) -> None:
        """Adapt what shares the input embedding's weight along with it, if the method does so: an output head, and the
        embeddings of an encoder and a decoder."""
        table = input_table(self.model)
        source = next((p for p in planned if p.adapter is not None and p.host.base.kind == "embedding"
                       and plain_module(p.slot.module) is table), None)  # fmt: skip
        if table is None or source is None or source.adapter is None:
            return
        taken = {id(plain_module(p.slot.module)) for p in planned}
        for slot in slots(self.model):
            plain = plain_module(slot.module)
            if id(plain) not in taken and plain._parameters.get("weight") is table.weight:
                host = self._host(slot)
                tied = source.adapter.tied(self._site(slot.name, host.base))
                if tied is not None:
                    planned.append(_Planned(slot, host, tied))

    def _warn_of_second_places(self, targets: list[Slot]) -> None:
        """A module that stands at two places is adapted at the first, as in the reference."""
        places = Counter(id(child) for _, parent in outside_adapters(self.model) for child in parent._modules.values())
        if twice := [s.name for s in targets if places[id(s.module)] > 1]:
            warnings.warn(f"{', '.join(twice[:3])}: the module also stands elsewhere in the model, where it is not "
                          "adapted", AfinaWarning, stacklevel=5)  # fmt: skip

    def _dtype(self, base: BaseWeight) -> torch.dtype:
        dtype = base.dtype
        if not dtype.is_floating_point or dtype.itemsize == 1:
            return torch.float32
        return torch.float32 if self.autocast and dtype.itemsize == 2 else dtype

    def _site(self, name: str, base: BaseWeight, shared: nn.Module | None = None) -> Site:
        device = torch.device("meta") if self.low_memory else base.device
        statistics = (getattr(self.config, "statistics", None) or {}).get(name)
        return Site(base, name, self._dtype(base), device, shared, statistics)

    def _adapter(self, name: str, host: Host, shared: nn.Module | None) -> Adapter:
        site = self._site(name, host.base, shared)
        site.inside_target = name in self.inside
        site.parameter = next(iter(_own_parameter("", host)), None)
        return self.adapter_class(site, self.config)

    def _shared(self, layers: Mapping[str, BaseWeight]) -> nn.Module | None:
        dtype = self._dtype(next(iter(layers.values()))) if layers else torch.float32
        return self.adapter_class.build_shared(self.config, layers, dtype)

    def _host(self, slot: Slot) -> Host:
        """The host that stands there, or a new one (the same one for one place)."""
        module = slot.module
        while isinstance(module, Host) and module.parameter is not None:
            module = module.base_layer
        if isinstance(module, Host):
            return module
        if (key := (id(slot.parent), slot.attribute)) not in self.fresh:
            self.fresh[key] = host_of(module, self.scope, is_read(slot.parent, slot.attribute))
        return self.fresh[key]

    def _with_attention_outputs(self, targets: list[Slot]) -> list[Slot]:
        """Attention's output projection goes with its input projection."""
        if not self.adapter_class.with_attention_output:
            return targets
        chosen = {s.name for s in targets}
        extra = [f"{s.name}.out_proj" for s in targets if isinstance(plain_module(s.module), nn.MultiheadAttention)]
        self.inside = frozenset(extra)
        if self.inside and self.adapter_class.attention_note:
            warnings.warn(f"{extra[0]}: {self.adapter_class.attention_note}", AfinaWarning, stacklevel=5)
        return targets + [s for s in slots(self.model) if s.name in self.inside - chosen]

    def _parameters(self) -> list[tuple[Slot, Host]]:
        """Hosts for `target_parameters`: one around the other where a module has several."""
        wanted: list[str] = getattr(self.config, "target_parameters", None) or []
        if not wanted:
            return []
        places, is_wanted = list[tuple[Slot, Host]](), Matcher(wanted, "target_parameters")
        for slot in slots(self.model):
            for parameter, _ in plain_module(slot.module).named_parameters(recurse=False):
                if is_wanted(f"{slot.name}.{parameter}"):
                    host = self._parameter_host(slot, parameter, places)
                    places.append((slot, host))
        if not places:
            every = [n for n, p in self.model.named_parameters() if p.dim() in (2, 3)]
            raise TargetError("the targets match no parameter of the model", where="target_parameters", got=wanted,
                              fix=nearest_to_all(wanted, every))  # fmt: skip
        return places

    def _parameter_host(self, slot: Slot, parameter: str, places: list[tuple[Slot, Host]]) -> Host:
        module: Any = slot.module
        while isinstance(module, Host):
            if module.parameter is not None and module.parameter.rpartition(".")[2] == parameter:
                return module
            module = module.base_layer
        around: nn.Module = next((h for s, h in reversed(places) if s.name == slot.name), slot.module)
        depth, inner = 0, around
        while isinstance(inner, Host):
            depth, inner = depth + 1, inner.base_layer
        return Host(around, parameter="base_layer." * depth + parameter, scope=self.scope)

    def _saved_modules(self) -> list[_Planned]:
        """Trainable copies of whole modules."""
        wanted, planned = self.config.modules_to_save or [], list[_Planned]()
        for slot in with_tables(self.model, self.config, saved_slots(self.model, wanted)):
            refuse_container(slot, "modules_to_save")
            refuse_cut(slot.name, plain_module(slot.module), copied=True)
            wrapper = slot.module if isinstance(slot.module, ModulesToSaveWrapper) else None
            if wrapper is None and isinstance(slot.module, Host):
                raise TargetError("the module is already adapted", where=f"modules_to_save: {slot.name}")
            host = wrapper or ModulesToSaveWrapper(slot.module, scope=self.scope)
            host.is_tied = host.is_tied or shares_weights(self.model, plain_module(slot.module))
            planned.append(_Planned(slot, host, Replacement(self._site(slot.name, host.base), self.config)))
        if wanted and not planned:
            raise TargetError("matches no module of the model", where="modules_to_save", got=wanted,
                              fix=nearest_to_all(wanted, (s.name for s in slots(self.model))))  # fmt: skip
        return planned

    def _biases(self, planned: list[_Planned]) -> None:
        """Trainable copies of biases: of all modules ("all"), or of the adapted ones ("<method>_only")."""
        if (which := getattr(self.config, "bias", "none")) in ("none", False, True):
            return
        by_place = {(id(p.slot.parent), p.slot.attribute): p for p in planned}
        for slot in slots(self.model) if which == "all" else []:
            key = (id(slot.parent), slot.attribute)
            bare = plain_module(slot.module)
            # Only what is called `bias` counts, as in the reference: attention's `in_proj_bias` stays frozen.
            if key not in by_place and bare._parameters.get("bias") is not None:
                planned.append(_Planned(slot, self._host(slot), None))
        for item in planned:
            bias = item.host.base.bias if item.host.base.bias_name == "bias" else None
            if bias is not None and not isinstance(item.host, ModulesToSaveWrapper):
                item.bias = nn.Parameter(whole(bias).detach().to(self._dtype(item.host.base), copy=True))
