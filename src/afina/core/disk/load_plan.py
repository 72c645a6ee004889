"""What an adapter expects from a file, compared with what the file holds, before anything is changed."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ...errors import AfinaWarning, CheckpointError, nearest
from ..hosts.adapter import Adapter
from ..hosts.host import Host, hosts
from ..hosts.host_kinds import ModulesToSaveWrapper
from ..layers.sharded import ready, reshard, shared_like
from ..prompts.encoder import PromptEncoder
from . import embeddings
from .names import Piece, layout, piece_state, pieces, prompt_piece, shared_piece


class LoadResult(NamedTuple):
    """Keys that a lenient load could not place, as `nn.Module.load_state_dict` reports them."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class LoadPlan:
    """What an adapter expects, compared with what a file holds."""

    def __init__(
        self, model: nn.Module, name: str, found: Mapping[str, tuple[int, ...]], whole_numbers: Collection[str] = ()
    ) -> None:
        root, container, _ = layout(model)
        self.name, self.root, self.model = name, root, model
        shared = shared_piece(container, name)
        prompt = prompt_piece(container, name)
        if prompt is not None:
            ready(model)  # its shapes are those of what it computes
        self.pieces = [*pieces(root, name), *(p for p in (shared, prompt) if p is not None)]
        if not self.pieces:
            raise CheckpointError("the model has no adapter of this name", where=name)
        self.expected: dict[str, tuple[int, ...]] = {}
        self.owned: list[tuple[Piece, list[str]]] = []
        there = _below({p.path for p in self.pieces}, found)
        for piece in self.pieces:
            shapes = _piece_shapes(piece, there[piece.path])
            self.expected |= shapes
            self.owned.append((piece, list(shapes)))
        tables = embeddings.shapes(root)
        known = {**tables, **self.expected}
        # Embeddings that no adapter trains a copy of: the base's own, or a resized vocabulary's.
        self.of_vocabulary = [k for k in found if k in tables and k not in self.expected]
        self.missing = [k for k in self.expected if k not in found]
        leftovers = _leftovers(root, found)
        self.unexpected = [k for k in found if k not in known and k not in leftovers]
        self.misshapen = [k for k in known if k in found and found[k] != known[k]]
        self.known = known
        ready(model)  # asking for states has freed it
        floating = {k for p in self.pieces for k, t in piece_state(p, None).items() if t.is_floating_point()}
        self.whole = [k for k in whole_numbers if k in floating or k in tables]
        self.found = found

    def refuse_problems(self, where: object, any_shape: bool = False) -> None:
        if self.misshapen and any_shape:
            warnings.warn(f"{len(self.misshapen)} tensors of another shape are left out and start afresh: "
                          f"{_few(self.misshapen)}", AfinaWarning, stacklevel=4)  # fmt: skip
        elif self.misshapen:
            key = self.misshapen[0]
            raise CheckpointError(
                f"{len(self.misshapen)} tensors have another shape, e.g. {key}", where=where, got=self.found[key],
                expected=f"{self.known[key]} by this model and config", fix="is this the base it was trained on?",
            )  # fmt: skip
        if self.whole:
            raise CheckpointError(f"{len(self.whole)} tensors are no floating-point numbers", where=where,
                                  got=_few(self.whole), fix="re-download or re-save it")  # fmt: skip
        if self.unexpected:
            base = dict(self.root.named_parameters())
            stray = [k for k in self.unexpected if k in base]
            if stray:
                raise CheckpointError("the file holds tensors of the frozen base model", where=where,
                                      got=", ".join(stray[:5]), fix="do not load it, or remove them")  # fmt: skip
        if self.missing or self.unexpected:
            close = nearest(self.unexpected[0], self.missing) if self.unexpected else []
            raise CheckpointError(
                f"{len(self.missing)} of {len(self.expected)} tensors are missing, {len(self.unexpected)} unexpected",
                where=where, got=f"unexpected: {_few(self.unexpected)}", expected=f"missing: {_few(self.missing)}",
                fix=f"was {self.unexpected[0]!r} meant to be {close[0]!r}?" if close else "is it for another base?",
            )  # fmt: skip

    def apply(self, tensors: Mapping[str, Tensor]) -> None:
        reshard(self.model)  # what is whole for the moment is not what stays
        for piece, keys in self.owned:
            present = {k: tensors[k] for k in keys if k in tensors and k not in self.misshapen}
            if not present:
                continue
            if piece.bias_of is not None:
                assert isinstance(piece.owner, Host)
                bias = piece.owner.biases[piece.bias_of].data
                bias.copy_(shared_like(bias, present[piece.path]))
                continue
            local = {k[len(piece.path) :]: t for k, t in present.items()}
            current = piece_state(piece, None) if len(present) < len(keys) else {}
            # A lenient load may lack some tensors: those keep their present values.
            local |= {k[len(piece.path) :]: t for k, t in current.items() if k not in present}
            if isinstance(piece.owner, (Adapter, PromptEncoder)):
                piece.owner.load_disk_state(local)
            else:
                now = piece.owner.state_dict()
                own = {n: shared_like(now[n], t) if n in now else t for n, t in local.items()}
                piece.owner.load_state_dict(own, assign=_on_meta(piece.owner))
        for _, host in hosts(self.root):
            adapter = host.adapter(self.name)
            if adapter is not None and host.base.device.type != "meta":
                # A file is read into main memory.
                adapter.to(host.base.device)


def _leftovers(root: nn.Module, found: Mapping[str, tuple[int, ...]]) -> set[str]:
    """Second copies that the reference writes by mistake (bias="all" with modules_to_save); not read."""
    wrappers = [n for n, h in hosts(root) if isinstance(h, ModulesToSaveWrapper)]
    inside = tuple(f"{n}.{part}." for n in wrappers for part in ("original_module", "modules_to_save"))
    return {k for k in found if inside and k.startswith(inside)}


def _on_meta(module: nn.Module) -> bool:
    return any(p.is_meta for p in module.parameters())


def _below(paths: Collection[str], found: Mapping[str, tuple[int, ...]]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Path of a place -> what was found below it, by its name there."""
    out: dict[str, dict[str, tuple[int, ...]]] = {path: {} for path in paths}
    for key, shape in found.items():
        at = 0
        while True:
            if key[:at] in out:
                out[key[:at]][key[at:]] = shape
            dot = key.find(".", at)
            if dot < 0:
                break
            at = dot + 1
    return out


def _piece_shapes(piece: Piece, there: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    if isinstance(piece.owner, (Adapter, PromptEncoder)):
        return {f"{piece.path}{n}": s for n, s in piece.owner.disk_shapes(there).items()}
    return {k: tuple(t.shape) for k, t in piece_state(piece, None).items()}


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") or "none"
