"""Safetensors files: the header checked before anything is allocated, the whole written or nothing."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from ...errors import CheckpointError, NumericError
from .jsonfile import parse_json

MAX_HEADER = 16_000_000
MAX_TENSORS = 100_000
"""An adapter on each of 256 experts of 60 layers has 92,160 tensors, whose names take 14 MB."""
MAX_SIZE = 2**48
MAX_DIMENSIONS = 8
_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says that it holds."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check a safetensors header against the file's size.

    Raises:
        CheckpointError: not a regular file, cut short, padded, or with a header that contradicts itself.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError("not a regular file", where=path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _torn(path, f"the header says {length} bytes, the file has {size}")
        if length > MAX_HEADER:
            raise CheckpointError("the header is too large for an adapter", where=path, got=f"{length} bytes",
                                  expected=f"<= {MAX_HEADER}")  # fmt: skip
        raw = file.read(length)
    try:
        entries = parse_json(raw.decode("utf-8"), f"{path} (header)")
    except (UnicodeDecodeError, ValueError) as error:
        raise _torn(path, f"the header is not readable ({type(error).__name__})") from None
    if not isinstance(entries, dict):
        raise _torn(path, "the header is not an object")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _torn(path, "the metadata are not strings")
    if len(entries) > MAX_TENSORS:
        raise CheckpointError("too many tensors for an adapter", where=path, got=len(entries),
                              expected=f"<= {MAX_TENSORS}")  # fmt: skip
    _check_spans(path, entries, size - 8 - length)
    return Header(
        {n: tuple(e["shape"]) for n, e in entries.items()}, {n: e["dtype"] for n, e in entries.items()}, metadata
    )


def _torn(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"not a whole safetensors file: {why}", where=path, fix="re-download or re-save it")


def _is_size(n: object) -> bool:
    return type(n) is int and 0 <= n <= MAX_SIZE


def _check_spans(path: Path, entries: Mapping[str, object], size: int) -> None:
    """Every tensor's bytes must follow the one before and end with the file."""
    spans: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _torn(path, f"tensor {name!r} has a malformed entry")
        shape, dtype, offsets = entry["shape"], entry["dtype"], entry["data_offsets"]
        lists = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        known = isinstance(dtype, str) and dtype in _BYTES
        if not known or not lists or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, (*shape, *offsets))):
            raise _torn(path, f"tensor {name!r} has a malformed entry")
        if math.prod(shape) * _BYTES[dtype] != offsets[1] - offsets[0]:
            raise _torn(path, f"tensor {name!r} has shape {shape} but {offsets[1] - offsets[0]} bytes")
        spans.append((offsets[0], offsets[1], name))
    end = 0
    for start, stop, name in sorted(spans):
        if start != end:
            raise _torn(path, f"tensor {name!r} starts at byte {start}, expected {end}")
        end = stop
    if end != size:
        raise _torn(path, f"the tensors take {end} bytes, the file has {size}")


def read_tensors(path: Path, expected_digest: str | None = None) -> dict[str, Tensor]:
    """All tensors of a file whose header was checked, held in memory and independent of the file.

    Raises:
        CheckpointError: the content does not have the digest that was recorded when it was saved.
        NumericError: a tensor is not finite; names it and counts the elements.
    """
    try:
        tensors: dict[str, Tensor] = load_bytes(path.read_bytes())
    except SafetensorError as error:
        raise _torn(path, str(error)) from None
    if expected_digest is not None and digest(tensors) != expected_digest:
        raise CheckpointError("the tensors are not those that were saved (checksum differs)", where=path,
                              fix="re-download or re-save it")  # fmt: skip
    check_finite(tensors, path)
    return tensors


def check_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Refuse NaN and infinity.

    Raises:
        NumericError: names the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            bad = int((~torch.isfinite(tensor.float())).sum())
            if bad:
                raise NumericError(f"{bad} of {tensor.numel()} elements are not finite", where=f"{where}: {name}")


def to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> bytes:
    """A safetensors file's bytes; shared and non-contiguous tensors are written out in full."""
    plain = {n: t.detach().to("cpu").contiguous().clone() for n, t in sorted(tensors.items())}
    for name, tensor in plain.items():
        if tensor.shape == (0,):  # a matrix of no rows is whole: all ranks of a layer may have been pruned
            raise CheckpointError("the tensor is empty: this process holds a shard, or it was freed", where=name,
                                  fix="gather the state first (FSDP, ZeRO-3) and pass it as state_dict=")  # fmt: skip
    check_finite(plain, "saving")
    notes = json.dumps({**metadata, "tensors_sha256": digest(plain)}, sort_keys=True, allow_nan=False)
    data = save_bytes(plain, {"format": "pt", "afina": notes})
    plain.clear()  # so that no more than two copies are in memory
    return _ordered(data)


def _ordered(data: bytes) -> bytes:
    """The same file with its header's keys in order: the library writes the metadata in a random one."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join([len(header).to_bytes(8, "little"), header, memoryview(data)[end:]])


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        flat = tensor.detach().contiguous().view(-1)
        total.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return total.hexdigest()
