"""Times, memory, loss and gradient of one contender's step; the floor; the operations of a step."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .contenders import adapted, base, surroundings
from .page import why
from .rows import EQUAL, LENGTHS, Row

WARM, TIMED = 4, 8
Step = Callable[[], torch.Tensor]


def measured(name: str, row: Row, device: str, tiny: bool) -> dict[str, Any]:
    """One contender: milliseconds, the first step's loss and gradient norm, MiB at the most beyond the weights."""
    free(device)
    with surroundings(name):
        model, said = adapted(name, row, device, tiny)
        out = timed(model, batch(name, row, device, tiny), row, device)
        said += [f"gradients: none, because of {out.pop('no_gradient')}"] if "no_gradient" in out else []
        said += [f"replayed steps: not after all, because {off}"] if (off := _off(model)) else []
        del model
    free(device)
    return {**out, "said": said}


def _off(model: Any) -> str:
    """Why steps that were to be replayed were not."""
    get_base: Any = getattr(model, "get_base_model", None)
    off: str = getattr(getattr(model if get_base is None else get_base(), "replays", None), "off", "")
    return off


def timed(model: Any, data: dict[str, Any], row: Row, device: str) -> dict[str, Any]:
    """The same of a model that is there."""
    held = _allocated(device)
    first = first_step(model, data, row.adapters)
    _forget_peak(device)
    found = times(stepper(model, data, row, device), device)
    return {**found, **first, "beyond_mib": _mib(_peak(device), held), "weights_mib": _mib(held, 0)}


def batch(name: str, row: Row, device: str, tiny: bool) -> dict[str, Any]:
    """Random tokens in the form that the contender takes them in."""
    words, draw = row.shape(tiny)["vocab_size"], torch.Generator().manual_seed(0)
    lengths = torch.linspace(row.tokens / 16, row.tokens, row.batch).int().tolist() if row.lengths else None
    if lengths is not None and not name.startswith(EQUAL):
        parts = [torch.randint(8, words, (n,), generator=draw) for n in lengths]
        return _uneven(parts, name.startswith(LENGTHS), device)
    rows = max(1, round(sum(lengths) / row.tokens)) if lengths else row.batch
    tokens = sum(lengths) // rows if lengths else row.tokens
    ids = torch.randint(8, words, (rows, tokens), generator=draw)
    labels = ids.clone()
    labels[:, : round(tokens * (1 - row.supervised))] = -100
    out: dict[str, Any] = {"input_ids": ids.to(device), "labels": labels.to(device)}
    if row.adapters:
        out["adapter_names"] = ["default", *map(str, range(1, row.batch))]
    return out


def _uneven(rows: list[torch.Tensor], by_lengths: bool, device: str) -> dict[str, Any]:
    from afina.kernels.cuda.varlen import RowLengths

    if by_lengths:
        told = RowLengths.of([len(row) for row in rows]).inputs()
        labels = torch.cat([torch.cat([torch.tensor([-100]), row[1:]]) for row in rows])
        out = {"input_ids": torch.cat(rows)[None], "labels": labels[None], **told}
    else:
        ids, labels = (nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=p) for p in (0, -100))
        out = {"input_ids": ids, "labels": labels, "attention_mask": (labels != -100).long()}
    return {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in out.items()}


def first_step(model: Any, data: dict[str, Any], may_fail: bool = False) -> dict[str, Any]:
    """Loss, and norm of all gradients, before anything is trained.

    Args:
        may_fail: whether those are measured too that have no gradient of this; then it says why.
    """
    try:
        loss = model(**data, use_cache=False).loss
        loss.backward()
    except RuntimeError as error:
        if not may_fail:
            raise
        with torch.no_grad():
            loss = model(**data, use_cache=False).loss
        return {"loss": float(loss), "gradient_norm": None, "no_gradient": why(error)}
    gradients = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
    model.zero_grad(set_to_none=True)
    return {"loss": float(loss), "gradient_norm": float(torch.stack(gradients).norm())}


def stepper(model: Any, data: dict[str, Any], row: Row, device: str) -> Step:
    """What is timed: forward, backward and AdamW; of many adapters forward alone."""
    if row.adapters:
        inputs = {key: value for key, value in data.items() if key != "labels"}
        return torch.no_grad()(lambda: model(**inputs, use_cache=False).logits)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def step() -> torch.Tensor:
        loss: torch.Tensor = model(**data, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def times(step: Step, device: str) -> dict[str, float]:
    """Median and least milliseconds of `TIMED` steps after `WARM`."""
    for _ in range(WARM):
        step()
    found = []
    for _ in range(TIMED):
        _wait(device)
        at = time.perf_counter()
        step()
        _wait(device)
        found.append(1e3 * (time.perf_counter() - at))
    return {"ms": statistics.median(found), "ms_min": min(found)}


def floor(row: Row, device: str, tiny: bool) -> dict[str, float]:
    """The frozen layers' products, forward and towards their inputs, and what they reach of the device."""
    free(device)
    weights = [m.weight.data for m in base(_plain(row), device, tiny).modules() if isinstance(m, nn.Linear)]
    tokens = batch(LENGTHS, row, device, tiny)["input_ids"].numel()
    widths = {n for w in weights for n in w.shape}
    states = {n: torch.randn(tokens, n, dtype=torch.bfloat16, device=device) for n in widths}

    @torch.no_grad()
    def step() -> torch.Tensor:
        for weight in weights:
            out, width = weight.shape
            _ = states[width] @ weight.T
            if not row.adapters:
                _ = states[out] @ weight
            if row.method == "full":
                _ = states[out].T @ states[width]
        return states[width]

    found = times(step, device)
    products = 1 if row.adapters else {"full": 3}.get(row.method, 2)
    work = 2 * tokens * products * sum(w.numel() for w in weights)
    return {**found, "tflops": work / found["ms"] / 1e9}


def _plain(row: Row) -> Row:
    from dataclasses import replace

    return replace(row, stored="")


def profile(name: str, row: Row, device: str, tiny: bool, lines: int = 30) -> list[dict[str, Any]]:
    """The operations of a step that take the longest by themselves, in milliseconds a step."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as recorded

    cuda, steps = device == "cuda", 2
    with surroundings(name):
        model, _ = adapted(name, row, device, tiny)
        step = stepper(model, batch(name, row, device, tiny), row, device)
        for _ in range(WARM):
            step()
        with recorded(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
            for _ in range(steps):
                step()
            _wait(device)
    key = "self_device_time_total" if cuda else "self_cpu_time_total"
    ranked = sorted(seen.key_averages(), key=lambda e: -getattr(e, key))
    return [{"operation": e.key[:110], "ms": round(getattr(e, key) / 1e3 / steps, 3), "calls": e.count / steps}
            for e in ranked[:lines]]  # fmt: skip


def free(device: str) -> None:
    """Give back what earlier models took."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _allocated(device: str) -> int | None:
    return torch.cuda.memory_allocated() if device == "cuda" else None


def _forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def _peak(device: str) -> int | None:
    return torch.cuda.max_memory_allocated() if device == "cuda" else None


def _mib(more: int | None, less: int | None) -> int | None:
    return None if more is None or less is None else (more - less) >> 20
