"""Attention in C++: in 16 bits nearer to the exact numbers than the products of torch, whatever the sizes and masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from afina.kernels.cpu import attention
from afina.kernels.cpu.native import attention as native

pytestmark = pytest.mark.usefixtures("each_library")


LIMITS = {torch.bfloat16: 0.004, torch.float32: 1e-6}


def numbers(b: int, h: int, kv: int, t: int, d: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, ...]:
    """q, k, v as (B, heads, T, D) and the gradient of the output as (B, T, H, D)."""
    random = torch.Generator().manual_seed(0)
    q, k, v, g = (torch.randn(b, t, n, d, generator=random).to(dtype) for n in (h, kv, kv, h))
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), g


def mask(kind: str | None, b: int, t: int) -> Tensor | None:
    random = torch.Generator().manual_seed(1)
    if kind == "keys":
        allowed = torch.ones(b, 1, 1, t, dtype=torch.uint8)
        allowed[0, ..., : t // 3] = 0
        return allowed
    at = torch.arange(t)
    causal = at[:, None] >= at
    if kind == "packed":  # examples of a row, the same in each row of the batch
        return ((at[:, None] // (1 + t // 5) == at // (1 + t // 5)) & causal)[None, None]
    if kind == "window":  # and padding on the left: the first queries of the first row see nothing
        allowed = ((at[:, None] - at < 70) & causal)[None, None].repeat(b, 1, 1, 1)
        allowed[0, ..., : t // 4] = False
        return allowed
    return (torch.rand(b, 1, t, t, generator=random) < 0.7) | torch.eye(t, dtype=torch.bool) if kind else None


def formula(q: Tensor, k: Tensor, v: Tensor, g: Tensor, allowed: Tensor | None, scale: float) -> list[Tensor]:
    """The output where a query sees something, and all gradients, in float64."""
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    t, groups = q.shape[2], q.shape[1] // k.shape[1]
    seen = torch.ones(t, t, dtype=torch.bool).tril()[None, None].expand(len(q), 1, t, t)
    if allowed is not None:
        seen = seen & allowed.bool() if allowed.shape[2] == 1 else allowed
    scores = (scale * q @ k.repeat_interleave(groups, 1).mT).masked_fill(~seen, torch.finfo(torch.float64).min)
    out = (scores.softmax(-1) @ v.repeat_interleave(groups, 1)).transpose(1, 2) * sees(seen)
    return [out, *torch.autograd.grad((out * g.double()).sum(), (q, k, v))]


def sees(seen: Tensor) -> Tensor:
    return seen.any(-1).transpose(1, 2)[..., None]


def errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((a.double() - e).norm() / e.norm()) for a, e in zip(found, exact, strict=True)]


@pytest.mark.product("attention in C++")
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("kind", [None, "keys", "full", "packed", "window"])
@pytest.mark.parametrize("sizes", [
    (2, 9, 3, 256, 64), (1, 4, 1, 37, 32), (2, 4, 4, 300, 128), (1, 3, 3, 513, 80), (1, 2, 1, 700, 16),
    (4, 2, 1, 9, 16), (16, 2, 2, 49, 48),
], ids=str)  # fmt: skip
def test_output_and_gradients_are_nearer_the_formulas_than_torchs(sizes, kind, dtype, monkeypatch):
    b, _, _, t, d = sizes
    q, k, v, g = numbers(*sizes, dtype)
    allowed, scale = mask(kind, b, t), d**-0.5
    if allowed is not None:  # what sees nothing sends nothing back
        g = g * sees(allowed.bool() & torch.ones(t, t, dtype=torch.bool).tril() if kind == "keys" else allowed)
    exact = formula(q, k, v, g, allowed, scale)
    assert native.fits(q, k, v, allowed)
    found = []
    for _ in range(2):
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        out = attention.short_attention(*leaves, allowed, scale)
        grads = torch.autograd.grad(out, leaves, g)
        found.append(errors([out.detach() * (exact[0] != 0), *grads], exact))
        monkeypatch.setattr(native, "library", lambda: None)
    assert max(found[0]) < LIMITS[dtype]
    # Where a query sees few keys, what both round alike (inputs, outputs) is most of the error.
    assert dtype == torch.float32 or all(ours <= 1.05 * torchs for ours, torchs in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_share_the_work_without_changing_it(threads, dtype):
    before = torch.get_num_threads()
    q, k, v, g = numbers(1, 6, 1, 130, 32, dtype)
    exact = formula(q, k, v, g, None, 0.2)
    try:
        torch.set_num_threads(threads)
        found = []
        for _ in range(2):
            out, stats = native.forward(q, k, v, None, 0.2)
            found.append([out, *native.backward(g, q, k, v, None, out, stats, 0.2)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert max(errors(found[0], exact)) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_layouts_do_not_matter(dtype):
    q, k, v, g = numbers(2, 4, 2, 40, 16, dtype)
    out, stats = native.forward(q, k, v, None, 0.25)
    whole = [out, *native.backward(g, q, k, v, None, out, stats, 0.25)]
    wide = torch.zeros(2, 40, 4, 17, dtype=q.dtype)[..., :16].copy_(g)  # odd rows
    q_, k_, v_ = q.contiguous(), k.mT.contiguous().mT, torch.stack([v, v], -1)[..., 0]
    out_, stats_ = native.forward(q_, k_, v_, None, 0.25)
    odd = torch.zeros(2, 40, 4 * 16 + 1, dtype=q.dtype)[..., :-1].unflatten(-1, (4, 16)).copy_(g)  # odd tokens
    for g_ in (wide, odd):
        parts = [out_, *native.backward(g_, q_, k_, v_, None, out_, stats_, 0.25)]
        assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_query_that_sees_nothing_gets_the_mean_of_keys_not_later():
    q, k, v, _ = numbers(1, 1, 1, 6, 16)
    allowed = torch.zeros(1, 1, 1, 6, dtype=torch.uint8)
    out, _ = native.forward(q, k, v, allowed, 1.0)
    means = v[0, 0].float().cumsum(0) / torch.arange(1, 7)[:, None]
    torch.testing.assert_close(out[0, :, 0].float(), means, atol=0.02, rtol=0.01)


def test_numbers_that_are_not_finite_show():
    q, k, v, _ = numbers(1, 1, 1, 40, 16)
    q[0, 0, 20, 3] = float("nan")
    out, _ = native.forward(q, k, v, None, 1.0)
    assert out[0, 20].isnan().all()
    assert not out[0, :20].isnan().any()


def test_long_rows_in_float32_are_for_the_kernel_alone(monkeypatch):
    q, k, v, _ = numbers(1, 2, 1, attention.KEPT + 1, 16, torch.float32)
    q.requires_grad_()
    assert attention._fits(q, k, v, None)
    monkeypatch.setattr(native, "library", lambda: None)
    assert not attention._fits(q, k, v, None)
    assert attention._fits(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:], None)


@pytest.mark.parametrize("change", [
    "float64", "values in float32", "size", "fewer keys", "added mask", "a mask for each head", "a narrow mask",
    "keys in bool",
])  # fmt: skip
def test_other_cases_are_left_to_torch(change):
    q, k, v, _ = numbers(1, 2, 1, 4, 24 if change == "size" else 16)
    shapes = {"a mask for each head": (1, 2, 4, 4), "a narrow mask": (1, 1, 4, 3), "keys in bool": (1, 1, 1, 4)}
    allowed = torch.ones(shapes[change], dtype=torch.bool) if change in shapes else None
    if change == "added mask":
        allowed = torch.zeros(1, 1, 4, 4)
    elif change == "float64":
        q, k, v = q.double(), k.double(), v.double()
    elif change == "values in float32":
        v = v.float()
    elif change == "fewer keys":
        k, v = k[:, :, :3], v[:, :, :3]
    assert native.fits(*numbers(1, 2, 1, 4, 16)[:3], None)
    assert not native.fits(q, k, v, allowed)
