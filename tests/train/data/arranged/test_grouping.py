from __future__ import annotations

import json
import random
import re
from types import SimpleNamespace

import pytest

from afina.errors import RecipeError
from afina.train.data.arranged.grouping import Grouped, grouped, padding_share
from afina.train.data.encode import Encoded

from ... import tiny
from ...loop.test_run import train
from .cut_off import ends_otherwise


def encoded(n, seed=0):
    draw = random.Random(seed)
    return Encoded([{"input_ids": [7] * draw.randint(1, 100)} for _ in range(n)], list(range(n)))


@pytest.mark.parametrize("n", [24, 100, 1003])
def test_every_row_comes_once_an_epoch_in_another_order(n):
    rows = Grouped(encoded(n), 4, seed=1)
    orders = []
    for epoch in (0, 1):
        rows.set_epoch(epoch)
        assert sorted(rows.order) == list(range(n))
        orders.append(list(rows.order))
    assert orders[0] != orders[1]
    again = Grouped(encoded(n), 4, seed=1)
    again.set_epoch(1)
    assert again.order == orders[1]
    assert Grouped(encoded(n), 4, seed=2).order != orders[0]


def test_batches_have_little_padding_and_the_longest_comes_first():
    rows = Grouped(encoded(1000), 8, seed=0)
    order = list(range(1000))
    assert padding_share(rows.lengths, order, 8) > 0.35
    assert padding_share(rows.lengths, rows.order, 8) < 0.05
    assert rows.lengths[rows.order[0]] == max(rows.lengths)


def test_share_of_padding_by_hand():
    assert padding_share([1, 3, 2, 2], [0, 1, 2, 3], 2) == pytest.approx(1 - 8 / 10)
    assert padding_share([2, 2], [0, 1], 2) == 0


def grouping(wanted, lengths, size=4):
    """What becomes of rows, and what is said of it."""
    notes = []
    recipe = SimpleNamespace(training=SimpleNamespace(group_by_length=wanted, batch_size=size, seed=0))
    given = Encoded([{"input_ids": [7] * n} for n in lengths], list(range(len(lengths))))
    out = grouped(recipe, given, SimpleNamespace(note=notes.append))
    return isinstance(out, Grouped), out is given, notes


UNLIKE, ALIKE = [1, 30] * 20, [9, 10] * 20


@pytest.mark.parametrize(
    ("wanted", "lengths", "done"),
    [(None, UNLIKE, True), (None, ALIKE, False), (True, ALIKE, True), (False, UNLIKE, False), (True, UNLIKE, True)],
)
def test_rows_are_grouped_as_the_recipe_says_or_where_it_saves_much(wanted, lengths, done):
    assert grouping(wanted, lengths)[:2] == (done, not done)


def test_saving_is_said():
    (note,) = grouping(None, UNLIKE)[2]
    after, before = (int(n) for n in re.findall(r"(\d+)%", note))
    assert after < 20 < before
    assert grouping(None, ALIKE)[2] == []


@pytest.mark.parametrize(("n", "done"), [(15, False), (16, True)])
def test_few_rows_are_not_grouped(n, done):
    found = grouping(True, ([1, 30] * 8)[:n])
    assert found[0] is done
    assert any("too few" in note for note in found[2]) is not done
    assert grouping(None, ([1, 30] * 8)[:15])[2] == []


def test_rows_of_a_pool_are_sorted_and_pools_are_mixed():
    lengths = list(range(1, 41))
    rows = Grouped(Encoded([{"input_ids": [7] * n} for n in lengths], list(range(40))), 2, seed=0)
    batches = [sorted(lengths[i] for i in rows.order[j : j + 2]) for j in range(0, 40, 2)]
    # 20 batches make 4 pools of 5: the two rows of a batch lie near each other in their own pool only.
    assert sum(high - low for low, high in batches) / 20 == pytest.approx(4, abs=1.5)
    assert rows[0] == {"input_ids": [7] * 40}


def test_incomplete_batch_stays_the_last():
    lengths = [100, *[1] * 16]
    for epoch in range(30):
        rows = Grouped(Encoded([{"input_ids": [7] * n} for n in lengths], list(range(17))), 5, seed=0)
        rows.set_epoch(epoch)
        assert sorted(rows.order) == list(range(17))
        assert rows.order.index(0) in (0, 15, 16)
    assert Grouped(Encoded([], []), 4, seed=0).order == []
    assert len(Grouped(Encoded([{"input_ids": [1]}], [0]), 4, seed=0).order) == 1


def write_rows(path, n, start=0):
    """Rows whose lengths differ much."""
    rows = [{"text": f"n{i}" * (1 + i * 7 % 13), "label": "odd" if i % 2 else "even"} for i in range(start, start + n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def recipe(folder, model_folder, **changes):
    file = tiny.write_recipe(folder, model_folder, **{"data__max_length": 128, **changes})
    write_rows(folder / "train.jsonl", 24)
    return file


def said(heard):
    return [n for n in heard.notes if "group_by_length" in n]


def test_rows_of_unlike_length_are_grouped_by_default_and_it_is_said(tmp_path, model_folder, child):
    result, heard = child(train, recipe(tmp_path, model_folder))
    (note,) = said(heard)
    assert note.endswith("in random ones (group_by_length)")
    assert result.report["training"]["steps"] == 6


@pytest.mark.parametrize(("wanted", "notes"), [(True, 1), (False, 0)])
def test_recipe_has_the_last_word(wanted, notes, tmp_path, model_folder, child):
    file = recipe(tmp_path, model_folder, training__group_by_length=wanted, training__max_steps=1)
    assert len(said(child(train, file)[1])) == notes


def test_rows_of_like_length_are_left_as_they_are(tmp_path, model_folder, child):
    _, heard = child(train, tiny.write_recipe(tmp_path, model_folder, training__max_steps=1))
    assert said(heard) == []


def test_trainers_that_draw_rows_by_themselves_refuse_it(tmp_path, model_folder, child):
    file = tiny.write_task(tmp_path, "preference", {"llama": model_folder}, training__group_by_length=True)
    with pytest.raises(RecipeError, match=r"training\.group_by_length"):
        child(train, file)


def resumed_everywhere(folder, model_folder, accumulation, workers):
    """For every k, whether a grouped run resumed after step k ends otherwise; epochs end in the middle of the run."""
    own = folder / "whole"
    own.mkdir()
    method = {"type": "lora", "r": 4, "lora_dropout": 0.1, "target_modules": "all-linear"}
    path = recipe(own, model_folder, method=method, evaluation={"enabled": False}, training__max_steps=9,
                  training__save_steps=1, training__keep_checkpoints=9, training__workers=workers,
                  training__gradient_accumulation=accumulation)  # fmt: skip
    _, heard = train(path)
    assert len(said(heard)) == 1
    return ends_otherwise(own, range(1, 9))


WHOLE = pytest.mark.whole("here without, and in test_resume.py with accumulation")


@pytest.mark.parametrize("accumulation", [1, pytest.param(3, marks=WHOLE)])
def test_grouped_run_resumes_to_the_bit_after_every_step(tmp_path, model_folder, child, accumulation):
    assert child(resumed_everywhere, tmp_path, model_folder, accumulation, 0) == []


def order_of_epochs(path):
    """The order of the rows at the start of every epoch of a run."""
    from afina.train.data.arranged import grouping

    seen = []
    plain = grouping.Grouped.set_epoch

    def watched(self, epoch):
        plain(self, epoch)
        seen.append((epoch, tuple(self.order)))

    grouping.Grouped.set_epoch = watched
    try:
        train(path)
    finally:
        grouping.Grouped.set_epoch = plain
    return dict(seen)


def test_trainer_tells_the_rows_the_epoch(tmp_path, model_folder, child):
    found = child(order_of_epochs, recipe(tmp_path, model_folder, training__max_steps=None, training__epochs=3))
    assert {0, 1, 2} <= set(found)
    assert len({found[e] for e in (0, 1, 2)}) == 3
