"""What every registered method does in one of two processes beside a base that is spread over both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import afina
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.core.hosts.walk import outside_adapters
from afina.core.layers.sharded import is_sharded, reshard
from afina.core.layers.spreading import meeting, shard
from afina.devices.place import place
from afina.devices.ranks import joined, meet, rank, size

from . import whole
from .whole import IDS, WIDTH, Case

CLOSE = 2e-5


def _in_four_bits(seed: int, width: int) -> Any:
    """The decoder with its layers in NF4, whose codes lie in numbers of the kind of the weights beside them."""
    from bitsandbytes.nn import Linear4bit

    model: Any = whole.SHAPES["decoder"].build(seed, width)
    for path, layer in list(model.model.named_modules()):
        if type(layer) is nn.Linear:
            made = Linear4bit(layer.in_features, layer.out_features, layer.bias is not None, quant_type="nf4",
                              compute_dtype=torch.float32, quant_storage=torch.float32)  # fmt: skip
            made.load_state_dict(layer.state_dict())
            made.support_avx512bf16_for_cpu = False  # it would compute in bfloat16 in one process only
            owner, _, name = path.rpartition(".")
            setattr(model.model.get_submodule(owner), name, made.to("cpu").requires_grad_(False))
    return model.eval()


NF4 = dataclasses.replace(whole.SHAPES["decoder"], name="nf4", make=_in_four_bits)
CPU = torch.device("cpu")
# What they draw for every row, two processes draw otherwise than one.
DRAWS = frozenset({"POLY", "PVERA", "XLORA"})
# Its router takes the mean over the rows that it sees at once.
MIXES = frozenset({"LILY"})
STEPS = 3


@contextmanager
def two() -> Iterator[None]:
    """The two processes in one group."""
    with joined(place("cpu")):
        yield
        meet()


def parts(base: nn.Module) -> tuple[int, int, int]:
    """Of a base: how many weights there are, how many are sharded, and what share of their numbers lies here (%)."""
    own = {p for _, m in outside_adapters(base) for p in m._parameters.values() if p is not None}
    here = sum(p.to_local().numel() if is_sharded(p) else p.numel() for p in own)  # type: ignore[attr-defined]
    return len(own), sum(map(is_sharded, own)), round(100 * here / sum(p.numel() for p in own))


def spread(model: nn.Module) -> nn.Module:
    """A model, or the base of one with adapters, spread over the processes."""
    base: Any = model.get_base_model() if isinstance(model, afina.PeftModel) else model
    own = {p for _, m in outside_adapters(base) for p in m._parameters.values()}
    shard(base, CPU, [p for p in base.parameters() if p not in own])
    every, sharded, here = parts(base)
    assert sharded == every, f"{sharded} of {every} weights are sharded"
    assert here < 60, f"{here} % of the numbers lie in each process"
    return model


def adapted(case: Case, experts: Path, order: str) -> Any:
    """The method's adapter, put in before the base is spread or after."""
    if order == "before":
        return spread(case.adapted(experts))
    return begun_on(spread(case.shape.build(0, WIDTH)), case, experts)


def begun_on(base: nn.Module, case: Case, experts: Path) -> Any:
    """The method's adapter, begun on a base as it is."""
    torch.manual_seed(0)
    config = case.config()
    if case.routes:
        config.adapters = dict(whole.experts(case.shape, experts))
        config.__post_init__()
    model = afina.get_peft_model(base, config)
    whole.nudge(model, 1)
    return model.eval()


def inputs_of(case: Case, mine: slice) -> dict[str, Any]:
    """Some of two rows, as the model takes them."""
    inputs: dict[str, Any] = {"input_ids": IDS[:2][mine]}
    if case.shape.task == "SEQ_2_SEQ_LM":
        inputs["decoder_input_ids"] = IDS[:2, :4][mine]
    if case.method in whole.WITH_TASKS:
        inputs["task_ids"] = torch.tensor([0, 1])[mine]
    return inputs


def loss_of(out: Any) -> Tensor:
    """Something that depends on all that a model gives out."""
    found = getattr(out, "logits", None)
    loss: Tensor = (out.last_hidden_state if found is None else found).float().square().mean()
    return loss


def trained(case: Case, model: Any, mine: slice) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of a few steps on some of the rows, and the adapter afterwards."""
    inner = model.module if hasattr(model, "module") else model
    inner.train("Llama" in type(inner.get_base_model()).__name__)  # others drop out
    optimizer = torch.optim.SGD([p for p in inner.parameters() if p.requires_grad], lr=0.02)
    inputs, losses = inputs_of(case, mine), []
    for _ in range(STEPS):
        loss = loss_of(model(**inputs))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        value = loss.detach().clone()
        if size() > 1:
            torch.distributed.all_reduce(value)
        losses.append(float(value) / size())
    return losses, {n: t.clone() for n, t in afina.get_peft_model_state_dict(inner).items()}


def trained_otherwise(case: Case, one: Any, losses: list[float], state: dict[str, Tensor]) -> list[str]:
    """What a few steps came to otherwise than those of the model `one` in one process."""
    before, out = {n: t.clone() for n, t in afina.get_peft_model_state_dict(one).items()}, list[str]()
    alone, expected = trained(case, one, slice(None))
    if all(torch.equal(before[n], t) for n, t in expected.items()):
        out.append("it does not train")
    if any(abs(a - b) > 1e-4 * abs(b) for a, b in zip(losses, alone, strict=True)):
        out.append(f"its losses are {losses} and not {alone}")
    far = max(float((state[n] - t).float().norm()) for n, t in expected.items())
    far /= max(float(t.float().norm()) for t in expected.values())
    if far > 1e-3:
        out.append(f"after training its tensors differ by {far:.2g}")
    return out


def notes(file: Path) -> dict[str, Any]:
    """What an adapter's file says of itself."""
    with safe_open(file, "pt") as opened:
        return dict(json.loads(opened.metadata()["afina"]))


def problems(case: Case, order: str, folder: Path, experts: Path) -> list[str]:
    """What is otherwise than in one process."""
    one = case.adapted(experts)
    wanted, plain = case.logits(one), case.logits(case.shape.build(0, WIDTH))
    out, name = [], f"{case.method.lower()}-{case.shape}-{case.option}-{order}"
    with two():
        model = adapted(case, experts, order)
        if far := off(case.logits(model), wanted):
            out.append(f"its outputs differ by {far}")
        with model.disable_adapter():
            if far := off(case.logits(model), plain):
                out.append(f"switched off its outputs differ by {far}")
        if rank() == 0:
            one.save_pretrained(folder / name / "one")
            model.save_pretrained(folder / name / "two")  # alone: adapters are whole in each
        meet()
        first, second = (folder / name / which / WEIGHTS_NAME for which in ("one", "two"))
        here, there = load_file(second), load_file(first)
        if here.keys() != there.keys() or any(off(here[k], there[k]) for k in here):
            out.append("its file has other tensors")
        if notes(first)["base"] != notes(second)["base"]:
            out.append("its file says that it has another base")
        again = case.loaded(second.parent, experts, spread(case.shape.build(0, WIDTH)), is_trainable=True).eval()
        if far := off(case.logits(again), wanted):
            out.append(f"loaded onto a sharded base its outputs differ by {far}")
        if case.method in DRAWS | MIXES:
            return out
        losses, state = trained(case, meeting(again, find_unused_parameters=True), slice(rank(), rank() + 1))
    return out + trained_otherwise(case, one, losses, state)


def by_hand(case: Case, folder: Path, experts: Path) -> list[str]:
    """What is otherwise than in one process where the user has sharded adapters and all."""
    one, out, file = case.adapted(experts), list[str](), folder / f"{case.method}-by-hand"
    wanted = case.logits(one)
    with two():
        model = case.adapted(experts)
        for block in model.get_base_model().model.layers:
            fully_shard(block)
        fully_shard(model)
        if case.method not in whole.WITH_TASKS:
            said = [m.generate(input_ids=IDS[:1, :4], max_new_tokens=3, do_sample=False) for m in (one, model)]
            if not torch.equal(*said):
                out.append("it says something else")
        if far := off(case.logits(model), wanted):
            out.append(f"its outputs differ by {far}")
        reshard(model)
        losses, state = trained(case, model, slice(rank(), rank() + 1))
        model.eval().save_pretrained(file)
        meet()
        saved = load_file(file / WEIGHTS_NAME)
        if any(off(saved[n], t) for n, t in state.items()):
            out.append("its file has other tensors")
        model.load_adapter(file, "default")
        if not all(map(torch.equal, afina.get_peft_model_state_dict(model).values(), state.values())):
            out.append("loaded again it has other tensors")
    if case.method in DRAWS | MIXES:
        return out
    return out + trained_otherwise(case, one, losses, saved)


def off(a: Tensor, b: Tensor) -> str:
    """How far two tensors are apart; nothing where that is rounding."""
    if a.shape != b.shape:
        return f"{tuple(a.shape)} and {tuple(b.shape)}"
    return "" if torch.allclose(a, b, atol=CLOSE, rtol=1e-4) else f"{float((a - b).abs().max()):.2g}"


def found(keys: list[tuple[str, str, str, str]], folder: str, experts: str) -> dict[str, list[str]]:
    """Of several cases in several orders, what is wrong."""
    import traceback

    out = {}
    for method, shape, option, order in keys:
        made = NF4 if shape == NF4.name else whole.SHAPES[shape]
        case = Case(method, made, option, dict(whole.options_of(method, made))[option])
        try:
            wrong = (
                by_hand(case, Path(folder), Path(experts))
                if order == "by hand"
                else problems(case, order, Path(folder), Path(experts))
            )
        except Exception as error:
            wrong = [f"{type(error).__name__}: {error} {traceback.format_exc()[-3000:]}"]
        if wrong:
            out["-".join((method, shape, option, order))] = wrong
    return out
