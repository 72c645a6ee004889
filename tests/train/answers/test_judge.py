"""What is read from a model's outputs, by a model whose outputs are a table: one row of numbers for each token."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from afina.errors import NumericError
from afina.train.answers.judge import (
    answer_log_probs,
    item_span_losses,
    judging,
    mean_pooled,
    span_scores,
    text_embeddings,
    text_scores,
    token_classes,
    token_loss,
)  # fmt: skip

from ..data.test_encode import prompter

TABLE = torch.randn(9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROWS = [[3, 5, 7], [4], [6, 1, 8, 2], [7, 7]]
P = prompter(chat=False)


class Table:
    """Every token's logits are its row of the table; five virtual tokens stand before a text's own."""

    def __init__(self, encoder=False, pooled=False, scale=1.0):
        self.training, self.device, self.pooled, self.scale = True, torch.device("cpu"), pooled, scale
        self.config = SimpleNamespace(is_encoder_decoder=encoder)
        self.shapes = []

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def __call__(self, input_ids, attention_mask, labels=None):
        assert not torch.is_grad_enabled()
        assert not self.training
        assert (labels is not None) == self.config.is_encoder_decoder
        self.shapes.append(tuple(input_ids.shape))
        mask = attention_mask[..., None]
        table = TABLE * self.scale
        if self.pooled:
            return SimpleNamespace(logits=(table[input_ids] * mask).sum(1)[:, :4])
        virtual = torch.full((len(input_ids), 5, 9), 50.0, dtype=table.dtype)
        out = torch.cat([virtual, table[input_ids]], 1)
        return SimpleNamespace(logits=out, last_hidden_state=out, start_logits=out[..., 0], end_logits=out[..., 1])


def collate(items, fill=-100):
    longest = max(len(item["input_ids"]) for item in items)
    fills = {"input_ids": 0, "attention_mask": 0, "labels": fill}
    return {
        key: torch.tensor([[*item[key], *[fills[key]] * (longest - len(item[key]))] for item in items]) for key in fills
    }


def item(ids, labels):
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


ITEMS = [item([3, 5, 7], [-100, 5, 7]), item([4], [4]), item([6, 1, 8, 2], [2, -100, 8, 0]), item([7, 7], [-100, -100])]


def log_prob(token, of):
    return float(TABLE[token].log_softmax(-1)[of])


@pytest.mark.parametrize("before", [True, False])
def test_judging_needs_no_gradients_and_gives_the_mode_back(before):
    model = Table()
    model.training = before

    def fail():
        with judging(model):
            assert not model.training
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert model.training is before


def test_every_token_of_every_row_gets_its_likeliest_class():
    told = []
    found = token_classes(Table(), P, ROWS, batch_size=3, progress=told.append)
    assert found == [[int(TABLE[i].argmax()) for i in row] for row in ROWS]
    assert told == [3, 4]


class Told(Table):
    """Gives a loss that it is told."""

    def __init__(self, *losses):
        super().__init__()
        self.losses = list(losses)

    def __call__(self, **batch):
        assert not self.training
        assert len(batch["labels"]) <= 2
        return SimpleNamespace(loss=torch.tensor(self.losses.pop(0)))


def test_loss_of_a_set_is_the_mean_over_its_trained_tokens():
    told, model = [], Told(2.0, 5.0, 9.0)
    items = [*ITEMS, ITEMS[3]]  # 3 trained tokens, then 3, then none
    assert token_loss(model, collate, items, batch_size=2, progress=told.append) == (2.0 * 3 + 5.0 * 3) / 6
    assert told == [2, 4, 5]
    assert token_loss(Told(2.0), collate, ITEMS[1:2], batch_size=2) == 2
    assert token_loss(Told(2.0), collate, ITEMS[3:], batch_size=2) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_of_a_set_that_is_not_finite_is_refused(bad):
    with pytest.raises(NumericError, match="not finite"):
        token_loss(Told(2.0, bad), collate, ITEMS, batch_size=2)


def test_score_of_a_text_is_the_models_one_output():
    class One(Table):
        def __call__(self, input_ids, attention_mask):
            assert not self.training
            return SimpleNamespace(logits=(input_ids + 100 * attention_mask).sum(1, keepdim=True).half())

    assert text_scores(One(), P, ROWS, batch_size=3) == [100.0 * len(row) + sum(row) for row in ROWS]


def test_likelihood_of_an_answer_is_the_product_over_its_tokens():
    pairs = [([3, 5], [7, 1]), ([4], [6]), ([8, 8, 2], [1, 2, 3])]
    found = answer_log_probs(Table(), P, pairs)
    for (prompt, answer), got in zip(pairs, found, strict=True):
        seen = [prompt[-1], *answer[:-1]]
        assert got == pytest.approx(sum(map(log_prob, seen, answer)), abs=1e-5)


def spans(items):
    ends = {f"{end}_positions": torch.tensor([e[end] for e in items]) for end in ("start", "end")}
    batch = collate([item(e["input_ids"], e["input_ids"]) for e in items])
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], **ends}


def test_spans_are_scored_at_the_texts_own_tokens():
    told = []
    items = [{"input_ids": row, "attention_mask": [1] * len(row)} for row in ROWS]
    found = span_scores(Table(), P.tokenizer, items, batch_size=3, progress=told.append)
    assert told == [3, 4]
    for row, ends in zip(ROWS, found, strict=True):
        for column, got in enumerate(ends):
            assert got == pytest.approx(TABLE[row, column].tolist(), abs=1e-5)


def test_loss_of_a_span_is_the_mean_of_its_two_ends():
    model = Table()
    items = [{"input_ids": row, "start": 1, "end": 2} for row in ([3, 5, 7], [4, 8, 2], [6, 1, 1])]
    found = item_span_losses(model, spans, items, batch_size=2)
    for each, got in zip(items, found, strict=True):
        logits = TABLE[each["input_ids"]]
        ends = [float(logits[:, 0].log_softmax(0)[1]), float(logits[:, 1].log_softmax(0)[2])]
        assert got == pytest.approx(-sum(ends) / 2, abs=1e-5)
    assert model.shapes == [(2, 3), (1, 3)]


def test_embedding_of_a_text_is_the_mean_over_its_own_tokens_at_length_one():
    told = []
    found = text_embeddings(Table(), P, ROWS, batch_size=3, progress=told.append)
    for row, got in zip(ROWS, found, strict=True):
        mean = TABLE[row].mean(0)
        torch.testing.assert_close(got, (mean / mean.norm()).float())
    assert told == [3, 4]


def test_text_without_tokens_has_an_embedding_of_zeros():
    with judging(model := Table()):
        found = mean_pooled(model, {"input_ids": torch.tensor([[0, 0]]), "attention_mask": torch.tensor([[0, 0]])})
    assert not found.any()
