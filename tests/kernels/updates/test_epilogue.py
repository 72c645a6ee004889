"""One kernel gives the product with its update: in Triton's interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from ..cuda.test_loss import child

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

SIZES = [(37, 50, 45, 5), (1, 16, 16, 1), (20, 33, 40, 70)]
"""Tokens, inputs, outputs, rank; none a multiple of a tile, ranks above one reading too."""
DTYPES = ["float32", "bfloat16", "float16"]
ROUNDED = {"float32": 5e-7, "bfloat16": 2**-7, "float16": 2**-11}
"""Half a step, relative; in bfloat16 a whole one, because the interpreter cuts off what a GPU rounds."""

INTERPRETED = """
import json, sys, torch
from types import MappingProxyType
import triton.language as tl
from triton.runtime import interpreter
plain_dot = interpreter.InterpreterBuilder.create_dot

def dot(self, a, b, *more):  # numpy, which the interpreter computes with, has no bfloat16
    def wide(t):
        if t.dtype.scalar != tl.bfloat16:
            return t
        return interpreter.TensorHandle((t.data.astype("uint32") << 16).view("float32"), tl.float32)
    return plain_dot(self, wide(a), wide(b), *more)

interpreter.InterpreterBuilder.create_dot = dot
from afina.kernels.updates import epilogue
epilogue.TILES = MappingProxyType({"small": epilogue.Tile(16, 32, 16, 4, 2), **epilogue.TILES})
sizes, out = json.loads(sys.argv[1]), {}
for tile, wanted in (("small", sizes), *((name, sizes[-1:]) for name in list(epilogue.TILES)[1:])):
    for n, i, o, r in wanted:
        for name in ("float32", "bfloat16", "float16") if tile == "small" else ("bfloat16",):
            draw, dtype = torch.Generator().manual_seed(n), getattr(torch, name)
            shapes = (n, i), (o, i), (n, r), (o, r), (o,)
            x, w, t, b, bias = (torch.randn(shape, generator=draw).to(dtype) for shape in shapes)
            exact = x.double() @ w.double().mT + t.double() @ b.double().mT
            alone = x.double() @ w.double().mT
            far = lambda y, true: float((y.double() - true).norm() / true.norm())
            forward = epilogue.product(x, w.mT, t, b.mT, None, tile)
            biased = epilogue.product(x, w.mT, t, b.mT, bias, tile)
            # The backward pass reads the weight the other way: g W + u A.
            g, a = torch.randn(n, o, generator=draw).to(dtype), torch.randn(r, i, generator=draw).to(dtype)
            buffer = torch.zeros(o + 3, i + 8, dtype=dtype)
            lies = buffer[:o, :i].copy_(w)  # in a buffer with room
            backward = epilogue.product(g, lies, t, a, None, tile)
            true = g.double() @ w.double() + t.double() @ a.double()
            assert forward.dtype == dtype
            out[f"{tile} {n} {i} {o} {r} {name}"] = {
                "ours": [far(forward, exact), far(biased, exact + bias.double()), far(backward, true)],
                "update": far(alone, exact)}
print("RESULT", json.dumps(out))
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from afina.kernels.updates.epilogue import TILES, tile_of_sum
names = tile_of_sum.arg_names
for capability in (80, 90):
    for name, tile in TILES.items():
        for last in ("row", "column"):  # of the weight: contiguous along its inputs, and along its outputs
            one = {"x_column": 1, "t_column": 1, f"w_{last}": 1, f"b_{last}": 1}
            fixed = dict(one, BIASED=True, ROWS=tile.rows, COLUMNS=tile.columns, INPUTS=tile.inputs, SIDE=8, RANK=16)
            types = {n: "constexpr" if n in fixed else "*bf16" if n.endswith("_ptr") else "i32" for n in names}
            sixteen = {(names.index(n),): [["tt.divisibility", 16]] for n in names if n not in fixed}
            source = ASTSource(tile_of_sum, types, fixed, sixteen)
            made = triton.compile(source, target=GPUTarget("cuda", capability, 32),
                                  options={"num_warps": tile.warps, "num_stages": tile.stages})
            units = {80: "mma.sync", 90: "wgmma.mma_async"}[capability]
            print("FITS", units in made.asm["ptx"], made.metadata.shared <= {80: 163, 90: 227}[capability] * 1024)
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("triton")
    said = child(INTERPRETED, folder, json.dumps(SIZES), TRITON_INTERPRET="1")
    return json.loads(said.split("RESULT ")[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_it_is_the_formula_rounded_once(size, dtype, interpreted):
    found = interpreted[f"small {' '.join(map(str, size))} {dtype}"]
    assert max(found["ours"]) <= ROUNDED[dtype]
    assert found["update"] > 0.05  # which is there


def test_the_tiles_that_a_trial_chooses_from_are_the_formula(interpreted):
    found = [v["ours"] for k, v in interpreted.items() if k.startswith("tiles of")]
    assert len(found) == 3
    assert max(map(max, found)) <= ROUNDED["bfloat16"]


@pytest.mark.whole
def test_it_compiles_for_gpus_to_their_matrix_units_and_memory(tmp_path):
    said = [line for line in child(COMPILED, tmp_path).splitlines() if line.startswith("FITS")]
    assert said == ["FITS True True"] * 12


def test_nothing_of_nothing_starts_no_kernel():
    from afina.kernels.updates.epilogue import product

    assert product(torch.ones(0, 4), torch.ones(4, 3), torch.ones(0, 2), torch.ones(2, 3)).shape == (0, 3)
