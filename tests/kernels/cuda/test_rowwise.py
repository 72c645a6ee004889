"""liger-kernel's operations behind our interface are the formulas; run in Triton's interpreter, not on a GPU."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from afina.kernels import backends
from afina.kernels.cuda import rowwise, trial

from .test_loss import child

needs_liger = pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="no liger-kernel installed")

# Every operation as `trial` runs it, on few rows; errors of the kernel and of torch's operations from the exact result.
INTERPRETED = """
import json, numpy, torch
import triton.language as tl
from triton.runtime import interpreter
plain_cvt = interpreter._implicit_cvt

def convert(value):  # the compiler makes float32 of numbers; the interpreter hands them on as they are
    if not isinstance(value, float):
        return plain_cvt(value)
    return tl.tensor(interpreter.TensorHandle(numpy.array([value], dtype=numpy.float32), tl.float32), tl.float32)

interpreter._implicit_cvt = convert
import liger_kernel.ops.rms_norm as norms
norms.rsqrt = lambda x: tl.rsqrt(x)  # the interpreter has no device library
from afina.kernels.cuda import liger_loss, rowwise, trial
out = {}
for dtype in (torch.float32, torch.float16):  # numpy, which the interpreter computes with, has no bfloat16
    for name, (kernel, plain, shapes) in trial._CASES.items():
        draw = torch.Generator().manual_seed(0)
        inputs = [torch.randn(9, *(min(n, 96) for n in s[1:]), generator=draw).to(dtype) for s in shapes]
        exact = plain(*[t.double() for t in inputs])
        pairs = zip(kernel(*[t.clone() for t in inputs]), plain(*inputs), exact, strict=True)
        out[f"{name} {dtype}"] = [(trial._error(a, e), trial._error(b, e)) for a, b, e in pairs]
x = [torch.randn(1, 4, 6, 16, generator=draw) for _ in range(2)]
angles = torch.linspace(0, 7, 96).view(1, 6, 16)
before = [t.clone() for t in x]
rowwise.turn(*x, angles.cos(), angles.sin())
rowwise.turn(*(t.transpose(1, 2).contiguous().transpose(1, 2) for t in x), angles.cos(), angles.sin(), back=True)
g, y, w = torch.randn(5, 32), torch.randn(5, 32), torch.randn(32)
kept, held = rowwise.rms_norm(y, w, 1e-6)[1], g.clone()
assert rowwise.rms_norm_backward(g, y, w, kept)[1] is None
out["left as they were"] = all(torch.equal(a, b) for a, b in zip([*x, g], [*before, held]))
for width in (7, 300, 1025):
    for smoothing in (0.0, 0.1):
        z, y = 4 * torch.randn(5, width), torch.randint(width, (5, 1))
        exact = z.double().requires_grad_()
        true = torch.nn.functional.cross_entropy(exact, y[:, 0], label_smoothing=smoothing, reduction="none")
        (gradient,) = torch.autograd.grad(true.sum(), exact)
        kept, g = z.clone(), z.clone()
        alone, loss = (liger_loss.losses(at, y, smoothing, back) for at, back in ((kept, False), (g, True)))
        assert torch.equal(kept, z) and torch.equal(alone, loss)
        far = [float((a - b).abs().max()) for a, b in ((loss, true), (g, gradient))]
        out[f"loss {width} {smoothing}"] = far
print("RESULT", json.dumps(out))
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[float, float]]]:
    said = child(INTERPRETED, tmp_path_factory.mktemp("triton"), TRITON_INTERPRET="1")
    out: dict[str, list[tuple[float, float]]] = json.loads(said.split("RESULT", 1)[1])
    return out


@needs_liger
@pytest.mark.parametrize("width", [7, 300, 1025])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_and_its_gradient_are_torchs(width, smoothing, interpreted):
    assert max(interpreted[f"loss {width} {smoothing}"]) < 1e-5


@needs_liger
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("name", "results"), [("norms", 3), ("feed-forward", 3), ("rotary positions", 4)])
def test_outputs_and_gradients_are_no_further_from_the_formula_than_torchs(name, results, dtype, interpreted):
    found = interpreted[f"{name} {dtype}"]
    assert len(found) == results
    for kernel, torchs in found:
        assert kernel <= 1.5 * torchs + 1e-6


@needs_liger
def test_inputs_and_gradients_that_others_may_hold_are_left_as_they_were(interpreted):
    assert interpreted["left as they were"] is True


class OnGPU(torch.Tensor):
    """Says that it lies on a GPU."""

    device = torch.device("cuda:0")


@pytest.mark.parametrize("installed", [True, False])
def test_only_plain_contiguous_tensors_of_one_dtype_on_a_gpu_fit(installed, monkeypatch):
    monkeypatch.setattr(rowwise, "is_installed", lambda: installed)
    monkeypatch.setattr(rowwise, "is_plain", lambda x: isinstance(x, OnGPU))
    monkeypatch.setattr(trial, "why_not", lambda *how: "")
    x, y = (torch.randn(4, 8).as_subclass(OnGPU) for _ in range(2))
    assert rowwise.fits(x, y) == installed
    assert not rowwise.fits(x, y.bfloat16())
    assert not rowwise.fits(x.double())
    assert not rowwise.fits(x.T)
    assert not rowwise.fits(x, torch.randn(4, 8))
    assert not rowwise.fits(torch.empty(1, 70_000).as_subclass(OnGPU))
    q, cos = torch.randn(2, 3, 5, 8).as_subclass(OnGPU), torch.randn(1, 5, 8).as_subclass(OnGPU)
    assert backends.can_turn(q, q, cos, cos) == installed
    for other in (cos[:, :4].contiguous(), cos[..., :6].contiguous(), torch.cat([cos] * 3)):
        assert not backends.can_turn(q, q, other, other)


def test_tensors_of_a_processor_do_not_fit():
    assert not rowwise.fits(torch.randn(4, 8))


def test_nothing_of_liger_is_imported_without_a_gpu(tmp_path: Path):
    code = "import sys, afina.kernels.speed; print('liger_kernel' in sys.modules)"
    assert child(code, tmp_path).strip() == "False"
