from __future__ import annotations

import pytest

from afina import IA3Config, LoraConfig
from afina.train.loop.cautions import cautions, supervised_tokens
from afina.train.recipe.sections import Recipe

ITEMS = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}] * 10


def recipe(**training):
    return Recipe.model_validate(
        {"task": "causal_lm", "model": {"path": "m"}, "data": {"train": "t.jsonl"}, "output": {"dir": "out"},
         "method": {"type": "lora"}, "training": training}
    )  # fmt: skip


def said(trainable=1000, config=None, steps=100, items=ITEMS, **training):
    return cautions(recipe(**training), config or LoraConfig(), items, trainable, steps)


def test_masked_tokens_and_unseen_rows_do_not_count():
    assert supervised_tokens(ITEMS, 10) == supervised_tokens(ITEMS, 1000) == 20
    assert supervised_tokens(ITEMS, 5) == 10


def test_rows_with_one_label_or_none_have_no_supervised_tokens():
    assert supervised_tokens([{"input_ids": [5], "labels": 1}, {"prompt_ids": [5]}], 10) == 0
    assert supervised_tokens([], 10) == 0


def test_fewer_parameters_than_tokens_are_told_with_both_numbers():
    (line,) = said(trainable=19)
    assert "(19)" in line
    assert "(20)" in line
    assert "raise its rank" in line


def test_as_many_parameters_as_tokens_are_enough():
    assert said(trainable=20) == []


@pytest.mark.parametrize(("batch_size", "accumulation"), [(33, 1), (8, 5)])
def test_batches_over_32_sequences_are_told_for_lora(batch_size, accumulation):
    (line,) = said(batch_size=batch_size, gradient_accumulation=accumulation)
    assert f"batches of {batch_size * accumulation} sequences" in line


def test_batches_up_to_32_sequences_and_other_methods_are_not():
    assert said(batch_size=8, gradient_accumulation=4) == []
    assert said(config=IA3Config(), batch_size=64) == []
