"""Rows that several runs read alike are encoded once, and every run is told what the first was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from afina.train.conversations.ledger import Ledger
from afina.train.data.encode import Encoded
from afina.train.data.encoded_once import EncodedOnce, encoded_in, store
from afina.train.data.rows import Rows


def rows_of(*values: Any) -> Rows:
    return Rows(Path("rows.jsonl"), [{"text": value, "more": 1} for value in values], list(range(1, len(values) + 1)))


class Encoder:
    """Counts what it is asked for."""

    def __init__(self, *, tensors: bool = False) -> None:
        self.asked, self.tensors, self.ledger = 0, tensors, Ledger()

    def __call__(self, rows: Rows) -> Encoded:
        self.asked += 1
        out = Encoded(rows=rows, truncated=1)
        for index in range(len(rows)):
            rows.value(index, "text")
            ids = [index, index + 1]
            out.items.append({"input_ids": torch.tensor(ids) if self.tensors else ids})
            out.source.append(index)
        self.ledger.told["short rows"] += len(rows)
        self.ledger.unread["key 'x'"] += 1
        return out


def test_same_rows_are_encoded_once_and_everything_is_told_again():
    kept, first, again = EncodedOnce(), Encoder(), Encoder()
    first.ledger.told["short rows"] = again.ledger.told["short rows"] = 5  # of other rows
    one, other = rows_of("a", "b"), rows_of("a", "b")
    made = kept.encoded("key", one, first.ledger, first)
    found = kept.encoded("key", other, again.ledger, again)
    assert (first.asked, again.asked, kept.spared) == (1, 0, 1)
    assert (found.items, found.source, found.truncated) == (made.items, made.source, 1)
    assert found.rows is other
    assert made.rows is one
    assert again.ledger == first.ledger == Ledger({"key 'x'": 1}, {"short rows": 7})  # type: ignore[arg-type]
    assert other.unread() == one.unread() == {"more": 2}


def test_what_a_run_does_to_its_items_is_its_own():
    kept, encoder = EncodedOnce(), Encoder()
    made = kept.encoded("key", rows_of("a"), encoder.ledger, encoder)
    made.items[0]["labels"] = [1]
    made.source.append(9)
    assert kept.encoded("key", rows_of("a"), encoder.ledger, encoder).items == [{"input_ids": [0, 1]}]
    assert kept.encoded("key", rows_of("a"), encoder.ledger, encoder).source == [0]


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        ("other", rows_of(1)),
        ("key", rows_of(True)),
        ("key", rows_of(2)),
        ("key", Rows(Path("b"), rows_of(1).values, [1])),
    ],
)
def test_whatever_differs_is_encoded_anew(key: str, rows: Rows):
    kept, encoder = EncodedOnce(), Encoder()
    kept.encoded("key", rows_of(1), encoder.ledger, encoder)
    kept.encoded(key, rows, encoder.ledger, encoder)
    assert (encoder.asked, kept.spared) == (2, 0)


def test_images_and_sounds_are_read_anew():
    kept, encoder = EncodedOnce(), Encoder(tensors=True)
    made = [kept.encoded("key", rows_of("a"), encoder.ledger, encoder) for _ in range(2)]
    assert encoder.asked == 2
    assert made[0].items[0]["input_ids"] is not made[1].items[0]["input_ids"]


def test_nothing_is_kept_where_nobody_else_reads():
    assert store() is None
    with encoded_in(EncodedOnce()) as _:
        assert store() is not None
    assert store() is None
