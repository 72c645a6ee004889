"""What the frozen layers below the lowest trained one give out: computed without autograd, and once per example.

Methods that train the top of a model only (`layers_to_transform`, last-k-layers, a head) send every example through the
same frozen layers in every epoch. Their outputs are kept in memory and taken from there when the example comes again.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.hosts.calls import current
from ..core.hosts.host import hosts
from ..errors import AfinaError

_KNOWN = ("input_ids", "attention_mask", "position_ids")


@dataclass
class Kept:
    """States of examples, which runs on one base may have in common.

    Attributes:
        depth: how many layers they went through; None while there are none.
        made_by: the layers' weights, and what is active on them, as they were then.
        used: bytes taken.
    """

    depth: int | None = None
    made_by: tuple[Any, ...] | None = None
    states: dict[bytes, Tensor] = field(default_factory=dict)
    used: int = 0

    def clear(self) -> None:
        """Forget all of them."""
        self.states.clear()
        self.used = 0


_COMMON: ContextVar[Kept | None] = ContextVar("afina_kept", default=None)


@contextmanager
def kept_in(common: Kept) -> Iterator[None]:
    """Runs within, whose models have the weights of one base, find what the others kept there; those with other layers
    frozen than the first one's keep their own."""
    token = _COMMON.set(common)
    try:
        yield
    finally:
        _COMMON.reset(token)


class FrozenPrefix:
    """Within `with FrozenPrefix(model) as prefix:` training passes skip frozen layers whose outputs are known.

    An example is known by its tokens, its mask and its positions, without padding at its end; at its start the padding
    has to be the same. A hit gives the states of the first time; they differ from new ones by the rounding of another
    batch's products at most. Whatever changes the frozen layers (weights, active adapters) empties the cache.

    Args:
        model: a transformers model with a decoder, adapted or not.
        memory: bytes that the states may take; what comes later is computed each time.

    Raises:
        AfinaError: no decoder, nothing frozen below, or the frozen layers are random in training (dropout).

    Attributes:
        depth: how many layers are skipped. hits, misses: batches found and not found. kept: the states.
    """

    def __init__(self, model: nn.Module, *, memory: int = 2**30) -> None:
        get_base: Any = getattr(model, "get_base_model", None)
        base: Any = model if get_base is None else get_base()
        decoder: Any = base.get_decoder() if hasattr(base, "get_decoder") else None
        self.decoder, layers = decoder, getattr(decoder, "layers", None)
        if not isinstance(layers, nn.ModuleList):
            raise AfinaError("outputs of frozen layers can be kept for decoders with `layers` only",
                             where=type(base).__name__)  # fmt: skip
        trained = (n for n, layer in enumerate(layers) if any(p.requires_grad for p in layer.parameters()))
        self.depth = next(trained, len(layers))
        embedding: nn.Module = decoder.get_input_embeddings()
        if not self.depth or any(p.requires_grad for p in embedding.parameters()):
            raise AfinaError(
                "the lowest layer or the embedding is trained, so nothing below is frozen",
                where=type(base).__name__,
                fix="train upper layers only (layers_to_transform)",
            )
        self.layers, self.embedding = list(layers[: self.depth]), embedding
        self.memory, self.hits, self.misses = memory, 0, 0
        common = _COMMON.get()
        shares = common is not None and common.depth in (None, self.depth)
        self.kept = common if common is not None and shares else Kept()
        self.kept.depth = self.depth
        self._keys: list[bytes] | None = None
        self._lengths: list[int] = []
        self._found: Tensor | None = None
        self._hook: Any = None

    def __enter__(self) -> FrozenPrefix:
        self._hook = self.decoder.register_forward_pre_hook(self._arrives, with_kwargs=True)
        for number, layer in enumerate(self.layers):
            layer.forward = functools.partial(self._layer, number, layer)
        try:
            self._check()
        except AfinaError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self._hook.remove()
        for layer in self.layers:
            del layer.forward
        self._keys = self._found = None
        if self.kept is not _COMMON.get():
            self.clear()

    def clear(self) -> None:
        """Forget all states."""
        self.kept.clear()
        self._keys = self._found = None

    def _check(self) -> None:
        """Run the layers twice on a few tokens."""
        was, kept, self.kept = self.decoder.training, self.kept, Kept()
        ids = torch.arange(8, device=(device := next(self.embedding.parameters()).device))[None]
        self.decoder.train()
        gpus = {"devices": [device], "device_type": device.type} if device.type in ("cuda", "xpu") else {"devices": []}
        try:
            with torch.random.fork_rng(**gpus), torch.no_grad():
                found = []
                for _ in range(2):
                    self.clear()
                    self.decoder(input_ids=ids)
                    found.append(next(iter(self.kept.states.values()), None))
        finally:
            self.decoder.train(was)
            self.kept, self._keys, self._found = kept, None, None
        self.hits = self.misses = 0
        if found[0] is not None and found[1] is not None and not torch.equal(found[0], found[1]):
            raise AfinaError("the frozen layers are random in training, so their outputs cannot be kept",
                             where=type(self.decoder).__name__, fix="set their dropout to 0")  # fmt: skip

    def _arrives(self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._keys = self._found = None
        others = [n for n, x in kwargs.items() if x is not None and n not in _KNOWN and not isinstance(x, (bool, str))]
        ids = args[0] if len(args) == 1 else kwargs.get("input_ids")
        states = kwargs.get("output_hidden_states") or decoder.config.output_hidden_states
        if not decoder.training or len(args) > 1 or others or states or kwargs.get("use_cache") or ids is None:
            return None
        masks = [kwargs.get(n) for n in _KNOWN[1:]]
        if any(m is not None and m.shape != ids.shape for m in masks):
            return None
        if (now := self._state()) != self.kept.made_by:
            self.clear()
            self.kept.made_by = now
        self._lengths = _lengths(ids, *masks)
        self._keys = _keys([ids, *masks], self._lengths)
        if all(k in self.kept.states for k in self._keys):
            rows = [self.kept.states[k] for k in self._keys]
            self._found = torch.stack([F.pad(row, (0, 0, 0, ids.shape[1] - len(row))) for row in rows])
        self.hits, self.misses = self.hits + (self._found is not None), self.misses + (self._found is None)
        return args, {**kwargs, "use_cache": False}

    def _state(self) -> tuple[Any, ...]:
        modules = (self.embedding, *self.layers)
        on = [h for m in modules for _, h in hosts(m) if (call := current(h.scope)) is None or call.is_plain]
        stacks = tuple((h.enabled, *((id(a), *_settings(a)) for a in h.stack)) for h in on)
        tensors = (t for m in modules for t in (*m.parameters(), *m.buffers()))
        return stacks, tuple((id(t), t._version) for t in tensors)

    def _layer(self, number: int, layer: nn.Module, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        last = number == self.depth - 1
        if self._found is not None:
            return self._found.requires_grad_(hidden.requires_grad) if last else hidden
        if self._keys is None:
            return type(layer).forward(layer, hidden, *args, **kwargs)
        with torch.no_grad():
            out = type(layer).forward(layer, hidden, *args, **kwargs)
        if not isinstance(out, Tensor):
            raise AfinaError("the layer gives out more than hidden states", where=type(layer).__name__)
        if last:
            self._keep(out)
        return out.requires_grad_(hidden.requires_grad)

    def _keep(self, out: Tensor) -> None:
        for key, row, length in zip(self._keys or (), out, self._lengths, strict=True):
            row = row[:length]
            size = row.numel() * row.itemsize
            if key not in self.kept.states and self.kept.used + size <= self.memory:
                self.kept.states[key] = row.detach().clone()
                self.kept.used += size


def _settings(adapter: nn.Module) -> tuple[Any, ...]:
    """What an adapter holds that may be set anew and is no parameter, such as its scale."""
    held = vars(adapter).values()
    return tuple((id(v), v._version) if isinstance(v, Tensor) else v for v in held
                 if isinstance(v, bool | int | float | str | Tensor))  # fmt: skip


def _lengths(ids: Tensor, mask: Tensor | None, positions: Tensor | None) -> list[int]:
    """How many tokens of every row come before the padding at its end."""
    if mask is None or positions is not None or mask.dim() != 2:
        return [ids.shape[1]] * len(ids)
    places = torch.arange(1, ids.shape[1] + 1, device=mask.device)
    return [int(n) for n in (mask.bool() * places).amax(1)]


def _keys(parts: list[Tensor | None], lengths: list[int]) -> list[bytes]:
    """What identifies each row."""
    rows = [None if x is None else x.detach().cpu().numpy() for x in parts]
    return [
        b"|".join(b"" if r is None else r[i, :n].tobytes() + str(r.dtype).encode() for r in rows)
        for i, n in enumerate(lengths)
    ]
