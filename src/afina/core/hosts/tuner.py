"""All hosts of a model: activate, delete, merge. Works on any `nn.Module`."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ...errors import AfinaWarning, ConfigError, MergeError, NameTakenError, NotMergeable, NumericError, did_you_mean
from ..config import PeftConfig, method
from ..layers.sharded import ready
from ..layers.tensor_parallel import alike, remember_wholes
from ..layers.whole_model import report_lost, unpack
from ..prompts.encoder import PromptEncoder, PromptLearningConfig, PromptSite, complete
from ..prompts.mixed import MixedPlacement
from ..prompts.placement import Placement
from .adapter import Adapter
from .batch_rows import Rows
from .calls import Scope, current
from .held import shared_view
from .host import Host, hosts
from .host_kinds import refuse_hidden
from .light import Unreplicated
from .routing import routers
from .walk import outside_adapters, shared_holder


def adapter_names(model: nn.Module) -> list[str]:
    """Names of all adapters on a model, in the order of their arrival."""
    prompts = list(model.prompt_encoder) if isinstance(model, Tuner) else []
    return list(dict.fromkeys([*prompts, *(n for _, h in hosts(model) for n in h.names())]))


def scope_of(model: nn.Module) -> Scope:
    """What calls of the model belong to."""
    found = getattr(model, "scope", None) if isinstance(model, Tuner) else None
    found = found or next((h.scope for _, h in hosts(model)), None)
    return Scope() if found is None else found


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not loaded.

    Raises:
        NameTakenError: with the known names.
    """
    for name in names:
        if name not in list(known):
            raise NameTakenError("no adapter of this name is loaded", where="adapter_name", got=name,
                                 expected=", ".join(known) or "none", fix=did_you_mean(name, known))  # fmt: skip


def activate(model: nn.Module, names: tuple[str, ...], *, trainable: tuple[str, ...] | None = None) -> None:
    """Choose the active adapters; exactly `trainable` (all active ones if None) get gradients."""
    refuse_hidden(model, names)
    learning = names if trainable is None else trainable
    for name, router in routers(model).items():
        router.switch(_plain(model), active=name in names)
        learning += router.trains if name in learning else ()
    if isinstance(model, Tuner):
        model.set_prompt(names, learning)
    for _, host in hosts(model):
        host.set_active(names)
        host.require_grad(learning)
    for name, shared in shared_modules(model).items():
        frozen: frozenset[str] = getattr(shared, "frozen", frozenset())
        for key, parameter in shared.named_parameters():
            parameter.requires_grad_(name in learning and key not in frozen)


def set_requires_grad(model: nn.Module, names: Collection[str], requires_grad: bool) -> None:
    """Freeze or unfreeze adapters without activating them."""
    container = model if isinstance(model, Tuner) else getattr(model, "base_model", model)  # not its model's own
    for name, encoder in container.prompt_encoder.items() if isinstance(container, Tuner) else ():
        assert isinstance(encoder, PromptEncoder)
        for parameter in encoder.trainable().values() if name in names else ():
            parameter.requires_grad_(requires_grad)
    for name, shared in shared_modules(container).items():
        frozen: frozenset[str] = getattr(shared, "frozen", frozenset())
        for key, parameter in shared.named_parameters():
            if name in names and key not in frozen:
                parameter.requires_grad_(requires_grad)
    for _, host in hosts(model):
        for name in names:
            adapter = host.adapter(name)
            biases = [host.biases[name]] if name in host.biases else []
            for parameter in (*(adapter.trainable().values() if adapter is not None else ()), *biases):
                parameter.requires_grad_(requires_grad)


@contextlib.contextmanager
def training_kept(model: nn.Module) -> Iterator[None]:
    """What trains goes on training and nothing else does, whatever adapters come inside, or fail to."""
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    try:
        yield
    finally:
        for parameter in model.parameters():
            if parameter.requires_grad != (id(parameter) in trained):
                parameter.requires_grad_(id(parameter) in trained)


def shared_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Adapter name -> the parameters that all its layers share."""
    held = shared_holder(model)
    return {} if held is None else dict(held[1].items())


def generation_options(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """What `generate` has to be called with, instead of what was `given`."""
    needed = {k: v for r in routers(model).values() if r.runs for k, v in r.generation.items()}
    for key in (k for k in needed if given.get(k, needed[k]) != needed[k]):
        warnings.warn(f"{key}={given[key]} is not possible with this method; {needed[key]} is used", AfinaWarning, 4)
    return needed


def _plain(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, Tuner) else model


def enable(model: nn.Module, enabled: bool) -> None:
    """Switch all adapters on or off."""
    for router in routers(model).values():
        router.switch(_plain(model), enabled=enabled)
    if isinstance(model, Tuner):
        model.enabled = enabled
    for _, host in hosts(model):
        host.enable_adapters(enabled)


def taken_inputs(
    methods: Mapping[str, tuple[type[Adapter], PeftConfig]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rows: Rows | None = None,
) -> dict[str, dict[str, Any]]:
    """Take out of `kwargs` what methods (adapter name -> class and config) consume: adapter name -> its inputs."""
    given = {key: kwargs.pop(key, None) for key in {k for m, _ in methods.values() for k in m.inputs}}
    out: dict[str, dict[str, Any]] = {}
    for name, (implementation, config) in methods.items():
        values = {key: given[key] for key in implementation.inputs}
        if all(v is None for v in values.values()):
            values |= implementation.find_inputs(config, args, kwargs)
        if rows is not None:
            values = {key: rows.pick(name, value) for key, value in values.items()}
        out[name] = values
    return out


def merge(model: nn.Module, names: tuple[str, ...], requantise: bool = False) -> None:
    """Merge adapters into all hosts; if one refuses, the model is as before."""
    if isinstance(model, Tuner) and any(n in model.prompt_encoder for n in names):
        raise NotMergeable("virtual tokens are no change of the weights", where=", ".join(names))
    refuse_hidden(model, names)
    _refuse_second_places(model, names)
    done: list[Host] = []
    try:
        for path, host in hosts(model):
            try:
                host.merge(names, requantise=requantise)
            except (NotMergeable, MergeError, NumericError) as error:
                error.where = f"{path}: {error.where}"
                raise
            done.append(host)
    except (NotMergeable, MergeError, ValueError):
        for host in done:
            host.unmerge()
        raise
    report_lost(host.base for host in done if host.merged)


def _refuse_second_places(model: nn.Module, names: tuple[str, ...]) -> None:
    """A module that also stands where it is not adapted would be changed there too."""
    places = Counter(id(child) for _, parent in outside_adapters(model) for child in parent._modules.values())
    for path, host in hosts(model):  # its one place of its own is inside its host
        if places[id(host.base_layer)] > 1 and any(n in names for n in host.names()):
            raise MergeError("the layer also stands elsewhere in the model, where merging would change it too",
                             where=path, fix="give the model a layer of its own there (copy.deepcopy)")  # fmt: skip


def unmerge(model: nn.Module) -> None:
    """Give every base weight its original bits back."""
    for _, host in hosts(model):
        host.unmerge()


class Tuner(Unreplicated):
    """The reference's `base_model`: holds the user's model as `model`, and every adapter's config."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.peft_config: dict[str, PeftConfig] = {}
        self.prompt_encoder = nn.ModuleDict()
        self.active: tuple[str, ...] = ()
        self.enabled = True
        self.scope = Scope()
        self.vocabulary: Any = None
        """The model's own embeddings, where a file has brought others."""

    @property
    def prefix(self) -> str:
        """What the active method's parameters' names begin with."""
        first = next(iter(self.peft_config.values()), None)
        return "" if first is None else str(method(first).implementation.prefix)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        placement = self.placement()
        return self.model(*args, **kwargs) if placement is None else placement.forward(args, kwargs)

    def train(self, mode: bool = True) -> Tuner:
        """As torch's; quantised weights that inference packed into a form without gradients are unpacked."""
        if mode:
            unpack(self.model)
        super().train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As torch's, of unpacked weights."""
        unpack(self.model)
        return super().state_dict(*args, **kwargs)

    def placements(self, names: Iterable[str]) -> dict[str, Placement]:
        """Those of the named adapters that have virtual tokens."""
        out = {}
        for name in (n for n in names if n in self.prompt_encoder):
            encoder, config = self.prompt_encoder[name], self.peft_config[name]
            assert isinstance(encoder, PromptEncoder)
            assert isinstance(config, PromptLearningConfig)
            out[name] = Placement(self.model, encoder, config)
        return out

    def placement(self) -> Placement | MixedPlacement | None:
        """The active virtual tokens, or those of the batch's rows, if any."""
        call = current(self.scope)
        if not len(self.prompt_encoder) or not self.enabled or (call is not None and not call.enabled):
            return None
        rows = None if call is None else call.rows
        found = self.placements(self.active if rows is None else rows.groups)
        if rows is not None and found and len(rows.groups) > 1:
            return MixedPlacement(self.model, rows, found)
        return next(iter(found.values()), None)

    def set_prompt(self, names: tuple[str, ...], learning: tuple[str, ...]) -> None:
        """Choose the active virtual tokens and whether they train.

        Raises:
            ConfigError: several adapters with virtual tokens at once.
        """
        prompts = [n for n in names if n in self.prompt_encoder]
        if len(prompts) > 1:
            raise ConfigError("only one adapter with virtual tokens can be active", where="set_adapter", got=prompts)
        self.active = names
        for name, encoder in self.prompt_encoder.items():
            assert isinstance(encoder, PromptEncoder)
            encoder.requires_grad_(False)
            for parameter in encoder.trainable().values():
                parameter.requires_grad_(name in learning)

    def made_prompt(self, config: PromptLearningConfig, autocast: bool) -> PromptEncoder:
        """The encoder of an adapter with virtual tokens, to be put into `prompt_encoder` under its name.

        Raises:
            ConfigError: it does not fit the model.
        """
        implementation = method(config).implementation
        complete(config, self.model, implementation.goes_into)
        sizes = config.token_dim, config.num_layers, config.num_attention_heads
        assert all(isinstance(n, int) for n in sizes)
        first = next(p for p in self.model.parameters() if p.is_floating_point())
        half = autocast and first.dtype.itemsize <= 2
        parts = (config.num_transformer_submodules or 1) if implementation.goes_into == "embeddings" else 1
        get_embeddings = getattr(self.model, "get_input_embeddings", None)
        site = PromptSite(
            config.num_virtual_tokens * parts, *sizes,  # type: ignore[arg-type]
            get_embeddings() if callable(get_embeddings) else None,
            torch.float32 if half else first.dtype, first.device, self.model,
        )  # fmt: skip
        ready(self.model)  # which the encoder may ask for embeddings
        made: PromptEncoder = implementation(site, config).train(self.model.training)
        alike(made, remember_wholes(self.model))
        return made

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "model" or "model" not in self.__dict__.get("_modules", {}):
                raise
        for shared in (m for n, m in shared_modules(self).items() if n in self.active):
            if name in getattr(shared, "offers", ()):
                # What a method does around optimizer steps is called on the whole model.
                return getattr(shared, name)
        found = {} if hasattr(self.model, name) else shared_view(shared_modules(self), name)
        return found or getattr(self.model, name)
