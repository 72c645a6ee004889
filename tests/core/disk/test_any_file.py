"""Any value in any field of any method's config, and any header: a typed error that names the file, or an adapter that
works; within a second and 50 MB, and the base is what it was. By default a few methods on other models than decoders.

`AFINA_FILES=200` tries 200 configs and 200 headers for every method instead of a few, and all the numbers; the choice
is always the same.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from afina.core.config import CONFIG_NAME, methods
from afina.core.disk.checkpoint import WEIGHTS_NAME
from afina.errors import AfinaError
from tests.battery import whole

METHODS = [name for name in methods() if name != "FULL"]
MODELS = ("decoder", "tied", "encoder", "classifier", "seq2seq", "decoder-classifier")
FEW = ("LORA", "IA3", "PREFIX_TUNING", "VERA", "TRAINABLE_TOKENS")
"""Methods of several families, tried on every shape by default."""
WHOLE = pytest.mark.whole("every method has its decoder, every shape its few methods")
MANY = int(os.environ.get("AFINA_FILES", "0"))
CONFIGS, HEADERS = (MANY, MANY) if MANY else (10, 5)
LARGE = [10**12, 70_000, -1, 0, 2**63, 1e300] if MANY else [10**12]
MOST_SECONDS, MOST_BYTES = 1.0, 50_000_000
Entry = tuple[str, list[int], bytes]
"""dtype, shape, data"""
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}

HUGE = [10**12, -(10**12), 2**31, 2**63, 2**64, 70_000, 10**6, 1e300, -1e300, 1e-300]
NUMBERS = st.sampled_from([*HUGE, 0, -1, 1, 2, 3, 7, 0.0, 0.5, -0.5]) | st.integers() | st.floats(allow_nan=True)
PATTERNS = ["(", "[", "((a{1000}){1000}){1000}", "(.*a|.*[^a]){4}(.*){3}x"]
TEXTS = st.sampled_from([*PATTERNS, "", "q_proj", "x" * 5000, "../..", "/etc/passwd", "\u2028\x85\n\n\n\n\nx",
                         "\x1b[31m", "💥" * 300, "None", "all-linear"])  # fmt: skip
LEAVES = NUMBERS | TEXTS | st.booleans() | st.none() | st.text(max_size=20)
KEYS = st.sampled_from(["q_proj", "model.layers.0.self_attn.q_proj", "", "(", "embed_tokens", "r"]) | st.text(
    max_size=9
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
                      max_leaves=6)  # fmt: skip


class Asked(TorchDispatchMode):
    """How many bytes of memory torch takes in all, whatever is freed again."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.seen = 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {id(a.untyped_storage()._cdata) for a in args if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.seen and id(storage._cdata) not in inputs:
                    self.seen.add(storage.data_ptr())
                    self.bytes += storage.nbytes()
        return out


@dataclasses.dataclass
class Sound:
    """A method's adapter on disk, as it should be, and the base that it goes on."""

    case: whole.Case
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    experts: Path
    base: Any
    before: dict[str, Tensor]

    def try_file(self, config: bytes, weights: bytes) -> bool:
        """Whether it loads; what must hold in both cases is checked."""
        folder = Path(tempfile.mkdtemp())
        try:
            (folder / CONFIG_NAME).write_bytes(config)
            (folder / WEIGHTS_NAME).write_bytes(weights)
            return self._loads(folder)
        finally:
            shutil.rmtree(folder)

    def _loads(self, folder: Path) -> bool:
        asked, start = Asked(), time.process_time()
        try:
            with asked, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = self.case.loaded(folder, self.experts, self.base)
        except AfinaError as error:
            text = str(error)
            assert len(text.splitlines()) <= 4, text
            assert len(text) < 2000
            assert CONFIG_NAME in text or WEIGHTS_NAME in text, text
            assert text.isprintable() or text.replace("\n", "").isprintable()
            loaded = False
        else:
            loaded = True
        # Processor time: the machine may be busy.
        assert time.process_time() - start < MOST_SECONDS
        assert asked.bytes < MOST_BYTES
        if loaded:
            model.unload()
        now = self.base.state_dict()
        assert now.keys() == self.before.keys()
        assert all(torch.equal(now[name], tensor) for name, tensor in self.before.items())
        assert self.base.training is False or loaded
        if not loaded:
            assert all(p.requires_grad for p in self.base.parameters())
        self.base.requires_grad_(True).eval()
        return loaded


def each_method(test: Any) -> Any:
    """Parametrise over every method and shape that it is for."""
    every = [
        pytest.param(m, s, id=f"{m}-{s}", marks=() if s == "decoder" or m in FEW else WHOLE)
        for m in METHODS for s in MODELS if (m, s) not in whole.REFUSED
    ]  # fmt: skip
    return pytest.mark.parametrize(("method", "shape"), every)(test)


@functools.cache
def sound(method: str, shape: str) -> Sound:
    folder = Path(tempfile.mkdtemp())
    case = whole.Case(method, whole.SHAPES[shape], "plain", {})
    case.adapted(folder / "experts").save_pretrained(folder / "adapter")
    config = json.loads((folder / "adapter" / CONFIG_NAME).read_text())
    tensors = load_file(folder / "adapter" / WEIGHTS_NAME)
    base = case.shape.build(0, whole.WIDTH)
    return Sound(case, config, tensors, folder / "experts", base, whole.copies(base.state_dict()))


def packed(entries: dict[str, Entry]) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, data) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(data)]}
        end += len(data)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for *_, data in entries.values())


def plain(tensors: dict[str, Tensor]) -> dict[str, Entry]:
    kinds = {torch.float32: "F32", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL", torch.uint8: "U8"}
    return {n: (kinds[t.dtype], list(t.shape), t.numpy().tobytes()) for n, t in tensors.items()}


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 7, 16, 32, 48, 64, 1000]) | st.sampled_from(HUGE[:6]), max_size=4)


@st.composite
def headers(draw: st.DrawFn, entries: dict[str, Entry]) -> bytes:
    """A header that was changed at one to three places."""
    changed = dict(entries)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(changed))) if changed else ""
        dtype, shape, data = changed.pop(name, ("F32", [1], bytes(4)))
        kind = draw(st.sampled_from(["drop", "rename", "dtype", "shape", "transpose", "size", "extra", "any"]))
        if kind == "rename":
            others = [
                name + "s",
                name.replace("model", "mode1"),
                "",
                "base_model.model.lm_head.weight",
                "module." + name,
            ]
            name = draw(st.sampled_from(others) | st.text(max_size=30))
        if kind in ("dtype", "any"):
            dtype = draw(st.sampled_from([*BYTES, "F8_E4M3", "C64", ""]))
        if kind in ("shape", "any"):
            shape = draw(SHAPES)
        if kind == "transpose":
            shape = shape[::-1]
        if kind == "extra":
            changed[draw(st.text(max_size=30))] = ("F32", [1], bytes(4))
        wanted = math.prod(shape) * BYTES.get(dtype, 1)
        size = wanted if 0 <= wanted < 1_000_000 and kind != "size" else draw(st.integers(0, 100))
        if kind != "drop":
            changed[name] = (dtype, shape, data[:size] + bytes(max(size - len(data), 0)))
    return packed(changed)


def fields(method: str) -> Iterator[str]:
    yield from (f.name for f in dataclasses.fields(methods()[method].config))


def tried(count: int) -> Any:
    return settings(max_examples=count, deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))  # fmt: skip


@each_method
def test_any_value_in_a_config_is_refused_in_good_order_or_right(method: str, shape: str) -> None:
    file = sound(method, shape)
    weights = packed(plain(file.tensors))

    @tried(CONFIGS)
    @given(st.sampled_from(sorted(fields(method))), VALUES)
    def attempt(field: str, value: Any) -> None:
        file.try_file(json.dumps({**file.config, field: value}).encode(), weights)

    attempt()


@pytest.mark.parametrize("value", LARGE, ids=str)
@each_method
def test_no_number_of_a_config_asks_for_memory(method: str, shape: str, value: float) -> None:
    file = sound(method, shape)
    weights = packed(plain(file.tensors))
    numbers = [f for f in fields(method) if isinstance(file.config.get(f), (int, float)) or file.config.get(f) is None]
    for field in numbers:
        file.try_file(json.dumps({**file.config, field: value}).encode(), weights)


@each_method
def test_any_header_is_refused_in_good_order_or_right(method: str, shape: str) -> None:
    file = sound(method, shape)
    config = json.dumps(file.config).encode()
    assert file.try_file(config, packed(plain(file.tensors)))

    @tried(HEADERS)
    @given(headers(plain(file.tensors)))
    def attempt(weights: bytes) -> None:
        file.try_file(config, weights)

    attempt()
