from __future__ import annotations

import pytest
import torch

from afina.kernels import chunks
from afina.kernels.chunks import chunk_rows

GIB = 2**30


@pytest.mark.parametrize(
    ("vocabulary", "free", "rows"),
    [
        (128_256, 60 * GIB, 2048),  # an eighth of it would hold more
        (128_256, 12 * GIB, 1569),  # an eighth of it, at 8 bytes a logit
        (128_256, 4 * GIB, 1024),  # never fewer, as long as half of it holds them
        (128_256, GIB, 523),  # half of it
        (128_256, 0, 130),  # what a processor would take
        (128_256, None, 1024),
        (1000, 60 * GIB, 16_777),  # a small vocabulary: 64 MiB hold more
    ],
)
def test_a_gpus_chunk_has_at_least_1024_rows_and_more_where_memory_is_free(vocabulary, free, rows):
    assert chunk_rows(vocabulary, "cuda", free) == rows


def test_a_processors_chunk_is_what_64_mib_hold():
    assert [chunk_rows(v, "cpu", free) for v, free in ((49_152, None), (49_152, GIB))] == [341, 341]


def test_a_chunk_follows_the_device_of_the_head(monkeypatch):
    asked = []
    monkeypatch.setattr(chunks, "free_bytes", lambda device: asked.append(device.type) or 12 * GIB)
    head = torch.empty(128_256, 1, device="meta")
    assert chunks.rows_at_a_time(100, head, None) == 130  # all rows in one chunk: nobody is asked
    assert asked == []
    assert chunks.rows_at_a_time(5000, head, None) == 1569
    assert asked == ["meta"]
    assert chunks.rows_at_a_time(5000, head, 8 * 128_256) == 2  # what the caller says counts
    torch.use_deterministic_algorithms(True)
    try:
        assert chunks.rows_at_a_time(5000, head, None) == 1024
    finally:
        torch.use_deterministic_algorithms(False)
    assert chunks.rows_at_a_time(5000, torch.empty(49_152, 1), None) == 341
    assert asked == ["meta"]
