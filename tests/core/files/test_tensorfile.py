"""Safetensors files: damaged ones are refused before anything is allocated."""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from afina.core.files.tensorfile import digest, read_header, read_tensors, to_bytes
from afina.errors import AfinaError, CheckpointError, NumericError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.arange(3)}


def packed(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file with the given header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    """A tensor's entry in a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


EIGHT = bytes(8)
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": bytes(7),
    "only a length": bytes(8),
    "random": random.Random(0).randbytes(300),
    "length beyond the file": packed({"a": entry()}, EIGHT, 10_000),
    "length 2^60": packed({"a": entry()}, EIGHT, 2**60),
    "length 2^64-1": packed({"a": entry()}, EIGHT, 2**64 - 1),
    "length too small": packed({"a": entry()}, EIGHT, 5),
    "not json": packed(b"hello world", EIGHT),
    "not utf-8": packed(b'{"\xff\xfe": 1}', EIGHT),
    "a list": packed([1, 2], EIGHT),
    "a number": packed(b"7", EIGHT),
    "null entry": packed({"a": None}, EIGHT),
    "deep": packed(b"[" * 50_000 + b"]" * 50_000),
    "long number": packed(b'{"a": ' + b"9" * 9000 + b"}", EIGHT),
    "duplicate keys": packed(
        b'{"a": ' + json.dumps(entry()).encode() + b', "a": ' + json.dumps(entry()).encode() + b"}", EIGHT
    ),
    "hole": packed({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)),
    "overlap": packed({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
    "trailing bytes": packed({"a": entry()}, bytes(12)),
    "cut short": packed({"a": entry()}, bytes(6)),
    "negative shape": packed({"a": entry(shape=[-2])}, EIGHT),
    "two negative shapes": packed({"a": entry(shape=[-1, -2])}, EIGHT),
    "negative offsets": packed({"a": entry(offsets=[-8, 0])}, EIGHT),
    "backward offsets": packed({"a": entry(shape=[0], offsets=[8, 0])}, EIGHT),
    "huge shape": packed({"a": entry(shape=[2**31, 2**31, 2**31])}, EIGHT),
    "overflowing shape": packed({"a": entry(shape=[2**62, 4])}, EIGHT),
    "float shape": packed({"a": entry(shape=[2.0])}, EIGHT),
    "bool shape": packed({"a": entry(shape=[True, 2])}, EIGHT),
    "text shape": packed({"a": entry(shape="2")}, EIGHT),
    "nan shape": packed(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 8]}}', EIGHT),
    "offsets are a number": packed({"a": entry(offsets=8)}, EIGHT),
    "three offsets": packed({"a": entry(offsets=[0, 8, 8])}, EIGHT),
    "one offset": packed({"a": entry(offsets=[8])}, EIGHT),
    "no shape": packed({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, EIGHT),
    "extra field": packed({"a": {**entry(), "code": "x"}}, EIGHT),
    "unknown dtype": packed({"a": entry(dtype="F99")}, EIGHT),
    "list dtype": packed({"a": entry(dtype=["F32"])}, EIGHT),
    "dict dtype": packed({"a": entry(dtype={})}, EIGHT),
    "null dtype": packed({"a": entry(dtype=None)}, EIGHT),
    "metadata list": packed({"__metadata__": [], "a": entry()}, EIGHT),
    "metadata number": packed({"__metadata__": {"x": 1}, "a": entry()}, EIGHT),
    "lone surrogate": packed(b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}", EIGHT),
    "zip polyglot": save(TENSORS) + b"PK\x05\x06" + bytes(18),
    "pickle": b"\x80\x04\x95" + bytes(60),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_file_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(DAMAGED[name])

    def read() -> None:
        read_header(path)
        read_tensors(path)

    with pytest.raises(CheckpointError) as caught:
        read()
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


def test_thousands_of_mutated_files_give_no_other_error(tmp_path: Path) -> None:
    whole = save(TENSORS, {"format": "pt"})
    path, chance = tmp_path / "x.safetensors", random.Random(1)
    header = 8 + int.from_bytes(whole[:8], "little")
    accepted = 0
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            data[chance.randrange(header)] = chance.choice([chance.randrange(256), *b'"[]{},:-.0123456789eE'])
        path.write_bytes(data)
        try:
            read_header(path)
            read_tensors(path)
            accepted += 1
        except (CheckpointError, NumericError):
            pass
    assert accepted < 1500


@pytest.mark.parametrize("size", [0, 1, 8, 50, 100, 150, -1])
def test_every_truncation_is_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(TENSORS)[:size])
    with pytest.raises(CheckpointError):
        read_header(path)


def test_sparse_giant_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed({"a": entry(shape=[2**38], offsets=[0, 2**40])}))
    os.truncate(path, path.stat().st_size + 2**39)
    with pytest.raises(CheckpointError):
        read_header(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_only_regular_files_are_opened(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    make(path)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(path)


def test_written_bytes_come_back_and_other_readers_agree(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_bytes(TENSORS, {"note": 1}))
    header = read_header(path)
    assert header.shapes == {n: tuple(t.shape) for n, t in TENSORS.items()}
    back = read_tensors(path, json.loads(header.metadata["afina"])["tensors_sha256"])
    theirs = load_file(path)
    for name, tensor in TENSORS.items():
        assert torch.equal(back[name], tensor)
        assert torch.equal(theirs[name], tensor)
        assert back[name].dtype == tensor.dtype


def test_same_tensors_give_the_same_bytes() -> None:
    assert to_bytes(TENSORS, {}) == to_bytes(dict(reversed(TENSORS.items())), {})


def test_shared_and_strided_tensors_are_written_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).view(3, 4)
    path = tmp_path / "x.safetensors"
    path.write_bytes(to_bytes({"a": base, "t": base.T, "again": base, "part": base[:, 1:3]}, {}))
    back = read_tensors(path)
    assert torch.equal(back["t"], base.T)
    assert torch.equal(back["part"], base[:, 1:3])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    bad = {"good": torch.ones(2), "bad": torch.tensor([1.0, value, value]).to(dtype)}
    with pytest.raises(NumericError, match="2 of 3"):
        to_bytes(bad, {})
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(bad))
    with pytest.raises(NumericError, match="bad"):
        read_tensors(path)


def test_a_shard_is_not_written() -> None:
    with pytest.raises(CheckpointError, match="gather"):
        to_bytes({"a": torch.empty(0)}, {})


def test_flipped_bit_is_found_by_the_digest(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(TENSORS))
    wanted = digest(TENSORS)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(AfinaError, match="checksum"):
        read_tensors(path, wanted)


def test_digest_depends_on_name_dtype_and_shape() -> None:
    ones = torch.ones(2, 2)
    others = [{"b": ones}, {"a": ones.half()}, {"a": ones.view(4)}, {"a": ones * 2}, {"a": ones, "b": ones}]
    assert len({digest(x) for x in [{"a": ones}, *others]}) == 6
