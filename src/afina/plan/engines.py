"""What a run takes of each device, and sends in a step, where several share it: memory and traffic by formula.

Facts are read from a model with its adapter on tensors without data (`Spreadable`); an engine's cost (`cost`) is
arithmetic on them. Rings are assumed: to gather S bytes of which each of N devices has a part, each receives
S (N - 1) / N; to sum S bytes that all have, twice that.

ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054; FSDP: Zhao et al. 2023, arXiv 2304.11277; tensor parallel: Shoeybi et
al. 2019, arXiv 1909.08053.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from ..core.hosts.host import Host
from ..core.hosts.walk import outside_adapters

ENGINES = ("ddp", "fsdp2", "zero2", "zero3", "zero3_offload", "tp")
MOMENTS = 2
"""Numbers that the optimizer keeps of every trained one (AdamW)."""
_LIVE = 10**9
"""Numbers that ZeRO-3 gathers at most at once (DeepSpeed's stage3_max_live_parameters)."""
_INDEX = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class Part:
    """Bytes of one block of a model, or of what stands outside of blocks.

    Attributes:
        numbers, frozen: of the base's weights, how many and their bytes.
        trained: of the adapter's.
        cut, trained_cut: what of them tensor parallel cuts; the rest is whole in every process.
        forward, backward, gathers: what tensor parallel sums over the devices for a token in either pass, and gathers.
    """

    numbers: int = 0
    frozen: int = 0
    trained: int = 0
    cut: int = 0
    trained_cut: int = 0
    forward: int = 0
    backward: int = 0
    gathers: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def times(self, count: int) -> Part:
        """So many of it."""
        return Part(*(count * value for value in vars(self).values()))


@dataclass(frozen=True)
class Spreadable:
    """A model with an adapter, as engines see it.

    Attributes:
        outside: what stands outside of its blocks: embeddings, the last norm, the head.
        block: the largest block.
        blocks: all of them together.
        heads: of the keys, over which tensor parallel shares attention out; None where there is no plan for it.
        full: whether the base itself trains; its weights stand in `frozen` all the same.
    """

    outside: Part
    block: Part
    blocks: Part
    heads: int | None
    full: bool = False

    @property
    def all(self) -> Part:
        return self.outside + self.blocks

    def deepened(self, blocks: int) -> Spreadable:
        """The same model with so many blocks as its largest."""
        return replace(self, blocks=self.block.times(blocks))


@dataclass(frozen=True)
class Cost:
    """Bytes of a device, and what it sends.

    Attributes:
        base: the base's weights that stay.
        gathered: those that come and go.
        adapter: the adapter with its gradients and the optimizer's moments.
        activations: what a step keeps for the backward pass.
        host: of main memory, for what waits there.
        traffic: received in a step from other devices.
        copied: between the device and main memory in a step.
    """

    base: int
    gathered: int
    adapter: int
    activations: int
    host: int
    traffic: int
    copied: int = 0

    @property
    def memory(self) -> int:
        """Of a device in all."""
        return self.base + self.gathered + self.adapter + self.activations


def spreadable(model: nn.Module) -> Spreadable:
    """Look at a model with its adapter; tensors without data will do."""
    plan, parts, seen = tensor_parallel_plan(model), dict[str, Part](), set[int]()
    for path, module in outside_adapters(model):
        found = _part(module, plan.get(_plain(path)), seen)
        if isinstance(module, Host):
            found += _trained(module, plan.get(_plain(path)))
        key = match.group(0) if (match := re.search(r"^.*?\.\d+(?=\.|$)", path)) else ""
        parts[key] = parts.get(key, Part()) + found
    outside, blocks = parts.pop("", Part()), list(parts.values())
    config: Any = getattr(model, "config", None)
    text = None if config is None else config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", None)
    largest = max(blocks, key=lambda part: part.frozen, default=Part())
    hosts = any(isinstance(module, Host) for _, module in outside_adapters(model))
    full = not hosts and any(p.requires_grad for p in model.parameters())
    return Spreadable(outside, largest, sum(blocks, Part()), heads if plan else None, full)


def tensor_parallel_plan(model: nn.Module) -> Mapping[str, str]:
    """A module's path, with * for numbers -> how transformers cuts it; empty where it has no plan for the model."""
    plan = dict(getattr(model, "tp_plan", None) or {})
    return {_plain(path): style for path, style in plan.items()} if plan else {}


def _plain(path: str) -> str:
    return _INDEX.sub(".*", path.replace(".base_layer", "").replace(".original_module", ""))


def _part(module: nn.Module, style: str | None, seen: set[int]) -> Part:
    """Of a module's own parameters, and what cutting it makes the devices tell one another for each token."""
    own = [p for p in module._parameters.values() if p is not None and id(p) not in seen]
    seen |= set(map(id, own))  # tied ones count once
    count, size = sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)
    weight: Any = module._parameters.get("weight")
    if style is None or weight is None:
        return Part(count, size)
    out, width = (n * weight.element_size() for n in (weight.shape[0], weight.shape[-1]))
    kinds = {"colwise": (0, width, 0), "rowwise": (out, 0, 0), "colwise_gather_output": (0, width, out),
             "embedding_rowwise": (width, 0, 0)}  # fmt: skip
    forward, backward, gathers = kinds.get(style, (0, 0, 0))
    return Part(count, size, cut=size, forward=forward, backward=backward, gathers=gathers)


def _trained(host: Host, style: str | None) -> Part:
    """Of the adapters on a layer."""
    found = Part()
    for adapter in host._adapters.children():
        dims = adapter.cut_dims() if style in ("colwise", "rowwise") else None  # type: ignore[operator]
        for name, parameter in adapter.named_parameters():
            size = parameter.numel() * parameter.element_size()
            cut = dims is not None and dims[name][style == "rowwise"] is not None
            found += Part(trained=size, trained_cut=size if cut else 0)
        found += _exchanged(host, adapter, style, dims)
    biases = sum(b.numel() * b.element_size() for b in host.biases.values())
    return found + Part(trained=biases)


def _exchanged(host: Host, adapter: nn.Module, style: str | None, dims: Mapping[str, Any] | None) -> Part:
    """What an adapter makes the devices tell one another for each token; weights that a method reads not counted."""
    if style not in ("colwise", "rowwise"):
        return Part()
    if dims is not None:  # what stands between a matrix of inputs and one of outputs meets
        inner = [p for n, p in adapter.named_parameters() if dims[n] == (None, 1) and p.shape[0] > 1]
        thin = sum(p.shape[0] * p.element_size() for p in inner)
        return Part(forward=thin) if style == "rowwise" else Part(backward=thin)
    width = host.base.out_features if style == "colwise" else host.base.in_features
    return Part(gathers=2 * width * host.base.dtype.itemsize)


def cost(
    engine: str,
    model: Spreadable,
    devices: int,
    *,
    activations: int,
    tokens: int,
    passes: int = 1,
    again: bool = False,
    logits: int = 0,
) -> Cost | None:
    """What an engine takes of each of some devices; None where it cannot share the model out over so many.

    Args:
        engine: one of `ENGINES`.
        activations: bytes that one device would keep for all rows of a pass.
        tokens: in all rows of a pass.
        passes: forward and backward passes in a step (gradient accumulation).
        again: whether blocks run again in the backward pass (gradient checkpointing).
        logits: bytes of all rows' logits and what the loss makes of them, which tensor parallel has at once.
    """
    if model.full:
        return _full(engine, model, devices, activations, passes)
    whole, n = model.all, devices
    state = whole.trained * (2 + MOMENTS)
    ring = (n - 1) / n
    rows = activations // n
    if engine == "tp":
        return _tensor_parallel(model, n, activations + logits, tokens * passes, again)
    summed = round(2 * ring * whole.trained)
    if engine == "ddp":  # DDP keeps gradients once more, in its buckets
        return Cost(whole.frozen, 0, state + whole.trained, rows, 0, summed)
    if engine == "fsdp2":
        gathered = model.outside.frozen + 2 * model.block.frozen  # one runs while the next one comes
        traffic = round(ring * passes * (model.outside.frozen + 2 * model.blocks.frozen)) + summed
        return Cost(_share(whole.frozen, n), gathered, state + whole.trained, rows, 0, traffic)
    moments = _share(MOMENTS * whole.trained, n)
    adapter = 2 * whole.trained + moments if engine == "zero2" else whole.trained + _share(whole.trained, n) + moments
    if engine == "zero2":
        return Cost(whole.frozen, 0, adapter, rows, 0, summed)
    live = min(1, _LIVE / whole.numbers) * whole.frozen
    traffic = round(2 * ring * passes * whole.frozen) + summed
    base = _share(whole.frozen, n)
    if engine == "zero3":
        return Cost(base, round(live), adapter, rows, 0, traffic)
    copied = 2 * passes * base + _share(2 * whole.trained, n)
    return Cost(0, round(live), adapter - moments, rows, base + moments, traffic, copied)


def _full(engine: str, model: Spreadable, n: int, activations: int, passes: int) -> Cost | None:
    """Of full fine-tuning, where gradients and moments are the weights' size: whole in each process with ddp; with
    fsdp2 and ZeRO-3 slices as the weights are; with ZeRO-2 gradients whole as they come, moments in slices."""
    size, ring, rows = model.all.frozen, (n - 1) / n, activations // n
    part = _share(size, n)
    summed = round(2 * ring * size)
    if engine == "ddp":
        return Cost(size, 0, (2 + MOMENTS) * size, rows, 0, summed)
    if engine == "zero2":
        return Cost(size, 0, size + MOMENTS * part, rows, 0, summed)
    if engine == "fsdp2":
        gathered = model.outside.frozen + 2 * model.block.frozen
        traffic = round(ring * passes * (model.outside.frozen + 2 * model.blocks.frozen + size))
        return Cost(part, gathered, (1 + MOMENTS) * part, rows, 0, traffic)
    if engine == "tp":
        return None
    live = round(min(1, _LIVE / model.all.numbers) * size)
    traffic = round(ring * passes * 3 * size)
    if engine == "zero3":
        return Cost(part, live, (1 + MOMENTS) * part, rows, 0, traffic)
    return Cost(0, live, part, rows, (1 + MOMENTS) * part, traffic, 2 * passes * part + 2 * part)


def _tensor_parallel(model: Spreadable, n: int, activations: int, tokens: int, again: bool) -> Cost | None:
    if not model.heads or model.heads % n:
        return None
    whole, ring = model.all, (n - 1) / n
    sums = whole.forward + whole.backward + again * model.blocks.forward
    base = _share(whole.cut, n) + whole.frozen - whole.cut
    trained = _share(whole.trained_cut, n) + whole.trained - whole.trained_cut
    traffic = round(ring * tokens * (2 * sums + whole.gathers))
    return Cost(base, 0, trained * (2 + MOMENTS), activations, 0, traffic)


def _share(size: int, devices: int) -> int:
    return -(-size // devices)


def costs(model: Spreadable, devices: int, **how: Any) -> Iterator[tuple[str, Cost | None]]:
    """Every engine with its cost."""
    return ((engine, cost(engine, model, devices, **how)) for engine in ENGINES)
