"""Names on disk: which tensor of a model's state is which key of an adapter file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ...errors import CheckpointError
from ..config import PeftConfig
from ..hosts.adapter import Adapter
from ..hosts.host import Host, hosts
from ..hosts.walk import shared_holder
from ..layers.sharded import whole
from ..prompts.encoder import PromptEncoder

PREFIX = "base_model.model."
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@dataclass
class Piece:
    """An adapter's tensors at one place.

    Attributes:
        path: the place's key prefix on disk, e.g. `model.layers.0.self_attn.q_proj.`.
        runtime: the prefix of its tensors in the model's `state_dict()`.
        owner: what holds them: an adapter, or the host for a bias, or a module shared by all layers.
    """

    path: str
    runtime: str
    owner: nn.Module
    bias_of: str | None = None
    shared: bool = False


def pieces(model: nn.Module, name: str) -> Iterator[Piece]:
    """Every place of a model that holds tensors of the adapter `name`; paths are relative to `model`."""
    for path, host in hosts(model):
        dotted = f"{path}." if path else ""
        adapter = host.adapter(name)
        if adapter is not None:
            yield Piece(dotted, f"{dotted}{host.adapter_slot}.{name}.", adapter)
        if name in host.biases:
            leaf = host.base.bias_name
            disk = f"{dotted}base_layer.{leaf}" if adapter is not None else f"{dotted}{leaf}"
            yield Piece(disk, f"{dotted}biases.{name}", host, bias_of=name)


def config_in_use(model: nn.Module, name: str, config: PeftConfig) -> PeftConfig:
    """The config by which the adapter `name` was made, where a script has changed its words since."""
    for piece in pieces(model, name):
        made = getattr(piece.owner, "made_by", None) if isinstance(piece.owner, Adapter) else None
        config = config if made is None else made(config)
    return config


def shared_piece(container: nn.Module, name: str) -> Piece | None:
    """The parameters that all layers of the adapter share, if any; not those whose adapters store them (`on_disk`)."""
    held = shared_holder(container)
    if held is not None and name in held[1] and getattr(held[1][name], "on_disk", True):
        return Piece("", f"{held[0]}.{name}.", held[1][name], shared=True)
    return None


def prompt_piece(container: nn.Module, name: str) -> Piece | None:
    """The virtual tokens of the adapter, if it has any."""
    encoders = container._modules.get("prompt_encoder")
    if isinstance(encoders, nn.ModuleDict) and name in encoders:
        return Piece("", f"prompt_encoder.{name}.", encoders[name], shared=True)
    return None


def disk_prefix(model: nn.Module, name: str) -> str:
    """What keys begin with: that of the model class; nothing for a model that was injected without being wrapped."""
    _, container, inside = layout(model)
    if not inside:
        return ""
    return "base_model." if prompt_piece(container, name) is not None else PREFIX


def piece_state(piece: Piece, state: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Key on disk -> tensor, read from the live model or from a gathered `state` (keys relative to the model)."""
    if piece.bias_of is not None:
        assert isinstance(piece.owner, Host)
        live: Tensor = whole(piece.owner.biases[piece.bias_of])
        if state is not None:
            _refuse_missing(state, [piece.runtime])
        return {piece.path: live if state is None else state[piece.runtime]}
    if isinstance(piece.owner, PromptEncoder):
        # The table is computed, so it comes from the live encoder.
        return {n: whole(t) for n, t in piece.owner.disk_state().items()}
    own = dict(piece.owner.state_dict())
    if state is not None:
        _refuse_missing(state, [f"{piece.runtime}{n}" for n in own])
    own = {n: whole(t) if state is None else state[f"{piece.runtime}{n}"] for n, t in own.items()}
    if isinstance(piece.owner, Adapter):
        own = piece.owner.disk_state(own)
    return {f"{piece.path}{n}": whole(t) if state is None else t for n, t in own.items()}


def _refuse_missing(state: Mapping[str, Tensor], keys: list[str]) -> None:
    missing = [k for k in keys if k not in state]
    if missing:
        raise CheckpointError("the state lacks tensors of the adapter", where="state_dict", got=", ".join(state),
                              expected=", ".join(missing), fix="gather the state of the whole model")  # fmt: skip


def own_key(key: str, prompts: bool = False) -> str:
    """A key without the prefixes of wrappers (compiled, sharded, parallel) and of the model class.

    Args:
        prompts: the key is of an adapter with virtual tokens, in whose files nothing but `base_model.` stands before
            the path, so that a path may begin with `model.`.
    """
    for wrapper in _WRAPPERS:
        key = key.removeprefix(wrapper).replace(f".{wrapper}", ".")
    key = key.removeprefix("module.") if key.startswith("module.base_model.") else key
    return key.removeprefix(PREFIX) if key.startswith(PREFIX) and not prompts else key.removeprefix("base_model.")


def layout(model: nn.Module) -> tuple[nn.Module, nn.Module, str]:
    """(the user's model, what holds shared parameters, the prefix of the user's model in `model.state_dict()`)."""
    from ..hosts.tuner import Tuner

    tuner = model if isinstance(model, Tuner) else getattr(model, "base_model", None)
    if isinstance(tuner, Tuner):
        return tuner.model, tuner, PREFIX if tuner is not model else "model."
    return model, model, ""
