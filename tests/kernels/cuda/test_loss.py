"""The loss kernel is torch's loss, and runs only where it was tried and found faster."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from afina.errors import AfinaWarning
from afina.kernels import loss as losses
from afina.kernels import speed
from afina.kernels.cuda import loss_trial, trial
from afina.kernels.loss import linear_cross_entropy

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

CASES = [
    *((dtype, width, smoothing) for dtype in ("float32", "bfloat16", "float16") for width in (1, 7, 128, 300, 1025)
      for smoothing in (0.0, 0.1)), ("float32", 9001, 0.1), ("bfloat16", 9001, 0.0),
]  # fmt: skip

# Blocks of 128 logits, so that short rows have many of them; the two widest cases keep the kernel's own block.
INTERPRETED = """
import sys, torch
from afina.kernels.cuda import loss as triton_loss
own = triton_loss.LARGEST
out = {}
for name, (z, y, smoothing) in torch.load(sys.argv[1]).items():
    triton_loss.LARGEST = own if z.shape[1] > own else 128
    z_alone, g = z.clone(), z.clone()
    alone = triton_loss.losses(z_alone, y, smoothing, False)
    out[name] = (alone, z_alone, triton_loss.losses(g, y, smoothing, True), g)
torch.save(out, sys.argv[2])
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from afina.kernels.cuda.loss import row_loss
for capability in (80, 90):
    for backward in (False, True):
        types = dict(z_ptr="*bf16", y_ptr="*i64", loss_ptr="*fp32", width="i32", smoothing="fp32")
        fixed = dict(BACKWARD=backward, BLOCK=8192)
        source = ASTSource(row_loss, {**types, **dict.fromkeys(fixed, "constexpr")}, fixed)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 16})
        print(capability, backward, len(made.asm["cubin"]) > 0)
"""


def child(code: str, folder: Path, *arguments: str, **environment: str) -> str:
    paths = [str(Path(losses.__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(folder), "PYTHONPATH": os.pathsep.join(paths)}
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env={**inherited, **own, **environment},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def sample(dtype: str, width: int, smoothing: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    generator = torch.Generator().manual_seed(width)
    z = (torch.randn(5, width, generator=generator) * 4).to(getattr(torch, dtype))
    y = torch.randint(width, (5, 1), generator=generator)
    y[0], y[1] = width - 1, 0
    return z, y, smoothing


def inputs() -> dict[object, tuple[torch.Tensor, torch.Tensor, float]]:
    made: dict[object, tuple[torch.Tensor, torch.Tensor, float]] = {case: sample(*case) for case in CASES}
    z, y, _ = sample("float32", 300, 0.0)
    masked = z.clone()
    masked[:, :200] = -torch.inf
    outside = y.clone()
    outside[2], outside[3] = 300, -100
    return {**made, "masked": (masked, y.clamp(min=200), 0.0), "large": (z * 1e4, y, 0.1), "outside": (z, outside, 0.1)}


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[object, tuple[torch.Tensor, ...]]:
    """What Triton's interpreter gives for `inputs`: the loss alone with its logits, then loss and gradient."""
    folder = tmp_path_factory.mktemp("triton")
    torch.save(inputs(), folder / "inputs")
    child(INTERPRETED, folder, str(folder / "inputs"), str(folder / "outputs"), TRITON_INTERPRET="1")
    return torch.load(folder / "outputs")


def reference(z: torch.Tensor, y: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, torch.Tensor]:
    g = z.double()
    return losses._block(g, y, losses._How(-100, smoothing), True), g


@needs_triton
@pytest.mark.parametrize("case", [*CASES, "masked", "large"], ids=str)
def test_kernel_gives_torchs_loss_and_gradient(case, interpreted):
    z, y, smoothing = inputs()[case]
    _, _, loss, g = interpreted[case]
    true, true_g = reference(z, y, smoothing)
    assert (loss.dtype, g.dtype) == (torch.float32, z.dtype)
    assert torch.allclose(loss.double(), true, rtol=1e-6, atol=1e-6)
    # 16 bits: one step, because the interpreter cuts bfloat16 off where a GPU rounds.
    step = 0.0 if z.dtype == torch.float32 else torch.finfo(z.dtype).eps
    assert torch.allclose(g.double(), true_g, rtol=step, atol=1e-6)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=str)
def test_without_gradient_the_logits_stay(case, interpreted):
    alone, z_alone, loss, _ = interpreted[case]
    assert torch.equal(alone, loss)
    assert loss.isfinite().all()
    assert torch.equal(z_alone, inputs()[case][0])


@needs_triton
def test_targets_outside_the_vocabulary_make_their_rows_nan(interpreted):
    _, _, loss, g = interpreted["outside"]
    assert loss.isnan().tolist() == [False, False, True, True, False]
    assert g.isnan().all(1).tolist() == g.isnan().any(1).tolist() == [False, False, True, True, False]


@needs_triton
def test_kernel_compiles_for_gpus(tmp_path):
    told = child(COMPILED, tmp_path).split("\n")
    assert told[:4] == [f"{c} {b} True" for c in (80, 90) for b in (False, True)]


class Fake:
    """In the kernel's place: torch's own operations, spoilt as asked."""

    def __init__(self, spoilt: str = "") -> None:
        self.spoilt, self.calls = spoilt, 0

    def __call__(self, z_NV, y_N1, smoothing, backward):
        self.calls += 1
        if self.spoilt == "raises":
            raise RuntimeError("no compiler\nat all")
        out = losses._block(z_NV, y_N1, losses._How(-100, smoothing), backward)
        if self.spoilt == "gradient" and backward:
            z_NV[0, 0] += 1e-3
        return out * 1.001 if self.spoilt == "loss" else out


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A processor that passes for a GPU with Triton; puts a kernel in its place and says how fast it is."""

    def use(kernel, slow=2.0, fast=1.0):
        loss_trial.chosen.cache_clear()
        monkeypatch.setattr(losses, "is_on_gpu", lambda x: True)
        monkeypatch.setattr(losses, "has_triton", lambda: True)
        monkeypatch.setattr(trial, "_where", lambda device: {"device": "NVIDIA H100"})
        kernels = kernel if isinstance(kernel, dict) else {loss_trial.OURS: kernel}
        found = {name: lambda one=one: (one, (RuntimeError,)) for name, one in kernels.items()}
        monkeypatch.setattr(loss_trial, "candidates", lambda: found)
        fasts = fast if isinstance(fast, list) else [fast]
        monkeypatch.setattr(loss_trial, "milliseconds", lambda runs, device: [slow, *fasts])
        return kernel

    monkeypatch.setenv("AFINA_CACHE", str(tmp_path))
    yield use
    loss_trial.chosen.cache_clear()


def run(dtype=torch.float32, **options):
    """The loss and gradient of a small head, and those of torch; how often it warned."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(17, 6, generator=generator).to(dtype)
    targets = torch.randint(17, (9,), generator=generator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = linear_cross_entropy(hidden, weight, targets, **options)
    logits = hidden @ weight.mT
    true = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=options.get("label_smoothing", 0.0))
    if "softcap" not in options:
        assert torch.allclose(out, true, rtol=1e-5)
        assert torch.allclose(*(torch.autograd.grad(x, hidden)[0] for x in (out, true)), atol=1e-6)
    return [str(w.message) for w in caught if issubclass(w.category, AfinaWarning)]


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2}], ids=str)
def test_right_and_faster_kernel_is_used(options, gpu):
    kernel = gpu(Fake())
    assert run(**options) == []
    tried = kernel.calls
    assert (run(**options), kernel.calls) == ([], tried + 1)


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ("loss", "a wrong loss"),
        ("gradient", "gradient that is wrong by 0.001"),
        ("raises", "RuntimeError: no compiler)"),
    ],
)
def test_kernel_that_fails_or_differs_is_told_once_and_not_used(spoilt, told, gpu):
    kernel = gpu(Fake(spoilt))
    first, tried = run(), kernel.calls
    assert [told in t for t in first] == [True]
    assert tried > 0
    assert run() == []
    assert kernel.calls == tried


@pytest.mark.parametrize("fast", [2.0, 3.0])
def test_kernel_that_is_no_faster_is_told_once_and_not_used(fast, gpu):
    kernel = gpu(Fake(), slow=2.0, fast=fast)
    told, tried = run(), kernel.calls
    assert [f"no faster: {fast:.3g} ms for torch's 2 ms" in t for t in told] == [True]
    assert run() == []
    assert kernel.calls == tried


def test_kernel_that_cannot_be_imported_is_told_once(gpu, monkeypatch):
    gpu(Fake())

    def broken():
        raise ImportError("libtriton.so is torn")

    monkeypatch.setattr(loss_trial, "candidates", lambda: {loss_trial.OURS: broken})
    assert ["ImportError: libtriton.so is torn" in told for told in run()] == [True]
    assert run() == []


@pytest.mark.parametrize(("times", "used"), [([1.0, 0.5], "liger"), ([0.5, 1.0], "ours"), ([3.0, 4.0], "")])
def test_the_fastest_kernel_is_used_and_known_to_the_next_process(times, used, gpu):
    kernels = {"ours": Fake(), "liger": Fake()}
    for process in range(2):
        gpu(kernels, fast=times)
        tried = {name: kernel.calls for name, kernel in kernels.items()}
        assert len(run()) == (not used)
        more = {name: kernel.calls - tried[name] for name, kernel in kernels.items()}
        assert more == {name: 2 * (process == 0) + (name == used) for name in kernels}


def test_a_wrong_kernel_leaves_the_loss_to_the_other(gpu):
    kernels = {"ours": Fake("loss"), "liger": Fake()}
    gpu(kernels)
    assert run() == []
    assert kernels["liger"].calls == 3


def test_a_kernel_that_did_not_run_is_tried_again_by_the_next_process(gpu):
    gpu(Fake("raises"))
    assert len(run()) == 1
    gpu(Fake())
    assert run() == []


def test_missing_triton_is_no_fault(gpu, monkeypatch):
    kernel = gpu(Fake())
    monkeypatch.setattr(losses, "has_triton", lambda: False)
    assert run() == []
    assert kernel.calls == 0


@pytest.mark.parametrize("options", [{"softcap": 2.0}, {"dtype": torch.float64}], ids=str)
def test_what_the_kernel_cannot_do_is_done_by_torch(options, gpu):
    kernel = gpu(Fake())
    assert run(**options) == []
    assert kernel.calls == 0


def test_deterministic_algorithms_leave_nothing_to_a_timing(gpu):
    kernel = gpu(Fake())
    torch.use_deterministic_algorithms(True)
    try:
        assert run() == []
    finally:
        torch.use_deterministic_algorithms(False)
    assert kernel.calls == 0


def test_trial_leaves_the_random_numbers_as_they_are(gpu):
    gpu(Fake())
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run()
    assert torch.equal(torch.get_rng_state(), before)


def test_speed_up_says_that_triton_is_missing(monkeypatch):
    class Base:
        loss_function = staticmethod(losses.supervised_loss)

        def get_output_embeddings(self):
            return torch.nn.Identity()

    monkeypatch.setattr(speed, "is_on_gpu", lambda x: True)
    monkeypatch.setattr(torch.nn.Identity, "weight", torch.ones(1), raising=False)
    sentence = "loss kernel: off, because Triton is not installed"
    for installed in (True, False):
        monkeypatch.setattr(speed, "has_triton", lambda there=installed: there)
        assert (sentence in speed._loss(Base(), True)) is not installed
