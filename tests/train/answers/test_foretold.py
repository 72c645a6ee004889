"""Answers that are known from the pass that measured the loss are those that decoding writes."""

from __future__ import annotations

import pytest
import torch

from afina.train.answers.foretold import foretold
from afina.train.answers.generate import answers, prompt_ids
from afina.train.answers.item_pass import Read, read_items
from afina.train.data.encode import Encoded

from ..data.test_encode import prompter
from .test_item_pass import llama
from .test_judge import collate, item

PROMPTS = ["abc", "d", "efghij"]


def given(most=4):
    """A model, what reads its prompts, the prompts' tokens, and what it writes after them, which ends at its fourth."""
    p, model = prompter(chat=False), llama()
    asked = prompt_ids(p, PROMPTS, False)
    written = []
    for ids in asked:
        out = model.generate(torch.tensor([ids]), max_new_tokens=most, do_sample=False, eos_token_id=None)
        written.append(out[0, len(ids) :].tolist())
    model.generation_config.eos_token_id = sorted({answer[-1] for answer in written})
    for answer in written:  # up to the first that ends
        end = next(n for n, token in enumerate(answer) if token in model.generation_config.eos_token_id)
        del answer[end + 1 :]
    return p, model, asked, written


def encoded(asked, written, source=None):
    items = [item([*a, *w], [-100] * len(a) + w) for a, w in zip(asked, written, strict=True)]
    return Encoded(items, list(range(len(items))) if source is None else source)


def known(p, model, rows, asked, limit=9):
    read = read_items(model, collate, rows.items, shifted=True, batch_size=2)
    return foretold(model, p, rows, read, asked, encoder=False, max_new_tokens=limit)


def test_they_are_what_decoding_writes():
    p, model, asked, written = given()
    found = known(p, model, encoded(asked, written), asked)
    decoded = answers(model, p, PROMPTS, max_new_tokens=9, batch_size=2)
    assert found == dict(enumerate(decoded))
    assert any(decoded)


def test_another_answer_is_not_known():
    p, model, asked, written = given()
    written[1] = [written[1][0] % 60 + 1, *written[1][1:]]
    assert set(known(p, model, encoded(asked, written), asked)) == {0, 2}


@pytest.mark.parametrize("why", ["no end", "too long", "another prompt", "one of two turns", "not at the end"])
def test_nothing_is_known_of_what_decoding_would_not_write(why):
    p, model, asked, written = given()
    rows = encoded(asked, written)
    if why == "no end":
        model.generation_config.eos_token_id = 319
    elif why == "one of two turns":
        rows = encoded(asked, written, [0, 0, 2])
    elif why == "another prompt":
        asked = [[*ids[:-1], ids[-1] + 1] for ids in asked]
    elif why == "not at the end":
        rows.items = [item([*one["input_ids"], 3], [*one["labels"], -100]) for one in rows.items]
    read = [Read(0.1, True)] * len(rows.items)
    limit = 0 if why == "too long" else 9
    found = foretold(model, p, rows, read, asked, encoder=False, max_new_tokens=limit)
    assert set(found) == ({2} if why == "one of two turns" else set())


def test_an_encoder_decoders_answer_is_its_labels():
    p, model, asked, written = given()
    rows = Encoded([{"input_ids": a, "labels": w} for a, w in zip(asked, written, strict=True)], [0, 1, 2])
    read = [Read(0.1, True), Read(0.1, False), Read(0.1, True)]
    found = foretold(model, p, rows, read, asked, encoder=True, max_new_tokens=9)
    assert found == {i: p.said(p.decoded(written[i])) for i in (0, 2)}
