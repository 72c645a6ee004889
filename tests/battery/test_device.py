"""Every registered method on a device against the processor: outputs, gradients, training, files, merging, dtypes.

The same code runs on the processor against itself in `make test`, and on a GPU by `make test-gpu`.
"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import afina
from afina.core.config import methods
from afina.core.hosts.host import hosts
from afina.errors import NotMergeable
from afina.kernels.cuda.replay import Replays
from afina.kernels.speed import speed_up

from ..kernels.cuda.test_replay import Again
from . import whole
from .whole import IDS, MASK, OPTIONS, SHAPES, WIDTH, WITH_TASKS, Case

NAMES = sorted({*methods()} - {"FULL"})
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
IN_16_BITS_HERE = ("BOFT", "LORA", "PREFIX_TUNING", "VERA")
"""One of each way to change a layer: the processor's slice of the methods in 16 bits."""
CLOSE = 2e-3
"""Of outputs, relative to the largest, where another device sums in another order in float32."""


RECORDED = {
    "ADAMSS", "ADAPTION_PROMPT", "BEFT", "BITFIT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA",
    "GRALORA", "HIRA", "HRA", "IA3", "LAST_LAYERS", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF",
    "PEANUT", "PVERA", "RANDLORA", "REFT", "ROAD", "SHIRA", "SPARSE", "SUPERTUNING", "TRAINABLE_TOKENS", "VERA",
    "WAVEFT",
}  # fmt: skip
"""Methods whose steps are recorded as CUDA graphs: `steady` ones, on the layers of a causal model."""
OTHER_BASIS = {"ADAMSS", "OSF", "PSOFT", "XLORA"}
"""In 16 bits their gradients are of other tensors than in float32 (parts of the base's decomposition), or nearly 0."""
STILL = {"XLORA"}
"""Its two experts are alike here, so that the loss does not depend on what it trains: gradients are rounding."""
RECORDED_HERE = ("ADALORA", "IA3", "LORA", "OFT", "PREFIX_TUNING", "VERA")
"""Of steps that are recorded and of those that are not, the processor's slice."""
FURTHER_ON_A_GPU = {"ADAPTION_PROMPT": 0.25, "SPARSE": 0.1}
"""How far bfloat16's gradients may be from float32's: .16 and .074 on an H200, .008 and .011 on a processor; it is not
explained yet (docs/status.md)."""


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What routers need beside them."""
    return tmp_path_factory.mktemp("experts")


@pytest.fixture(autouse=True)
def _float32_as_it_is() -> Any:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def case_of(method: str) -> Case:
    return Case(method, SHAPES["decoder"], "plain", {})


def on(device: str, method: str) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": IDS, "attention_mask": MASK, "labels": IDS.where(MASK.bool(), -100)}
    if method in WITH_TASKS:
        inputs["task_ids"] = torch.tensor([0, 1, 2])
    return {name: t.to(device) for name, t in inputs.items()}


def put_there(method: str, device: str, beside: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The method, put on a model that lies on the device already."""
    case = case_of(method)
    base, config = case.shape.build(0, WIDTH).to(device, dtype), case.config()
    if case.routes:
        config.adapters = dict(whole.experts(case.shape, beside))
        config.__post_init__()
    return afina.get_peft_model(base, config)


def largest(difference: torch.Tensor, value: torch.Tensor) -> float:
    return float((difference.abs().max() / value.abs().max().clamp_min(1e-6)).detach())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", NAMES)
def test_moved_there_it_has_the_processors_outputs_and_gradients(method: str, device: str, beside: Path) -> None:
    here = case_of(method).adapted(beside)
    there = copy.deepcopy(here).to(device)
    a, b = here(**on("cpu", method)), there(**on(device, method))
    assert b.logits.device.type == device
    assert largest(a.logits - b.logits.cpu(), a.logits) <= CLOSE
    a.loss.backward()
    b.loss.backward()
    found = 0
    for (name, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            assert method in STILL or largest(p.grad - q.grad.cpu(), p.grad) <= CLOSE, name
            found += int(bool(p.grad.any()))
    assert found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", NAMES)
def test_put_there_it_trains_and_is_saved_loaded_and_merged(
    method: str, device: str, beside: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, case, inputs = put_there(method, device, beside), case_of(method), on(device, method)
    assert {p.device.type for p in model.parameters()} == {device}
    before = float(model.eval()(**inputs).loss)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for number in range(4):
        model.train()(**inputs).loss.backward()
        optimizer.step()
        if method == "ADALORA":
            model.update_and_allocate(number + 1)
        optimizer.zero_grad()
    out = model.eval()(**inputs)
    assert float(out.loss) < before or method in STILL
    model.save_pretrained(tmp_path)
    loaded = case.loaded(tmp_path, beside, case.shape.build(0, WIDTH).to(device)).eval()
    assert {p.device.type for p in loaded.parameters()} == {device}
    assert largest(loaded(**inputs).logits - out.logits, out.logits) <= 1e-4
    with contextlib.suppress(NotMergeable):
        merged = model.merge_and_unload()
        inputs.pop("task_ids", None)
        assert largest(merged(**inputs).logits - out.logits, out.logits) <= CLOSE


@pytest.mark.parametrize(("device", "dtype", "method"), [
    *(("cpu", torch.bfloat16, m) for m in IN_16_BITS_HERE),
    *(pytest.param("cuda", d, m, marks=pytest.mark.gpu) for d in (torch.bfloat16, torch.float16) for m in NAMES),
])  # fmt: skip
def test_on_a_base_of_16_bits_its_gradients_are_finite_and_near_those_of_float32(
    device: str, dtype: torch.dtype, method: str, beside: Path
) -> None:
    found = []
    for chosen in (torch.float32, dtype):
        torch.manual_seed(0)
        model, inputs = put_there(method, device, beside, chosen).train(), on(device, method)
        loss = model(**inputs).loss
        loss.backward()
        gradient = torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])
        assert bool(gradient.isfinite().all())
        found.append((float(loss), gradient))
    (plain, true), (few, gradient) = found
    assert few == pytest.approx(plain, rel=2e-2)
    far = FURTHER_ON_A_GPU.get(method, 0.05) if device == "cuda" else 0.05
    assert method in OTHER_BASIS or float((gradient - true).norm()) <= far * float(true.norm()) > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["LORA", "BOFT", "PROMPT_TUNING"])
def test_it_trains_under_autocast_and_with_checkpointing(method: str, device: str, beside: Path) -> None:
    model, inputs = put_there(method, device, beside).train(), on(device, method)
    with torch.autocast(device, torch.bfloat16):
        plain = model(**inputs, use_cache=False).loss
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with torch.autocast(device, torch.bfloat16):
        again = model(**inputs, use_cache=False).loss
    again.backward()
    assert float(again) == pytest.approx(float(plain), rel=1e-2)
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_every_option_of_this_table_is_for_a_method_that_there_is() -> None:
    assert {*OPTIONS, *IN_16_BITS_HERE} <= {*NAMES}


@pytest.mark.parametrize(("device", "method"), [
    *(pytest.param("cpu", m, marks=[] if m in RECORDED_HERE else pytest.mark.whole) for m in NAMES),
    *(pytest.param("cuda", m, marks=pytest.mark.gpu) for m in NAMES),
])  # fmt: skip
def test_with_steps_that_are_recorded_it_trains_as_without(method: str, device: str, beside: Path) -> None:
    found, base = [], None
    for recorded in (False, True):
        torch.manual_seed(0)
        model, inputs = put_there(method, device, beside).train(), on(device, method)
        speed_up(model, keep_logits=False, replay=recorded and device == "cuda")
        base = model.get_base_model()
        if recorded and device == "cpu":
            base.replays = Replays(base, Again())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for number in range(5):
            ids = torch.roll(inputs["input_ids"], number, 1)
            labels = ids.where(inputs["attention_mask"].bool(), -100)
            loss = model(**{**inputs, "input_ids": ids, "labels": labels}, use_cache=False).loss
            loss.backward()
            optimizer.step()
            if method == "ADALORA":
                model.update_and_allocate(number + 1)
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
            del loss
        found.append(losses)
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    replays = getattr(base, "replays", None)
    assert replays is None or replays.off == ""
    if method in RECORDED:
        assert all(vars(type(a)).get("steady") for _, h in hosts(base) for a in h.stack)
        assert replays is not None
        assert replays.steps
