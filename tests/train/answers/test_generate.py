"""What a model is asked, batch by batch, and what is read from what it writes."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from afina.errors import RecipeError
from afina.train.answers.generate import (
    Sampling,
    answers,
    class_probabilities,
    continuation,
    end_tokens,
    greedy,
    keep_ends,
    longest_label,
    stream,
)  # fmt: skip
from afina.train.data.encode import token_ids

from .. import tiny
from ..data.test_encode import begins, prompter

PROMPTS = ["abc", "d", "efghij", "kl", "mnopq"]
CPU = torch.device("cpu")


class Mirror:
    """Answers with what it was asked, backwards; remembers every call."""

    def __init__(self, encoder=False):
        self.training, self.device, self.encoder, self.calls = True, CPU, encoder, []
        self.generation_config = SimpleNamespace(eos_token_id=None)

    def eval(self):
        self.training = False

    def train(self, mode):
        self.training = mode

    def generate(self, input_ids, attention_mask, streamer=None, **options):
        assert not torch.is_grad_enabled()
        self.calls.append({"ids": input_ids, "mask": attention_mask, "training": self.training, **options})
        rows = [ids[mask.bool()].flip(0) for ids, mask in zip(input_ids, attention_mask, strict=True)]
        width = max(map(len, rows)) + 1
        said = torch.tensor([[*row.tolist(), 1, *[0] * (width - len(row) - 1)] for row in rows])
        for piece in [input_ids[0], *said[0]] if streamer else []:
            streamer.put(piece.reshape(-1))
        if streamer:
            streamer.end()
        return said if self.encoder else torch.cat([input_ids, said], 1)


def ask(model, p, prompts=PROMPTS, batch_size=2, **options):
    return answers(model, p, prompts, max_new_tokens=9, batch_size=batch_size, **options)


@pytest.mark.parametrize("encoder", [False, True])
def test_answers_stand_in_the_prompts_order_without_prompt_and_special_tokens(encoder):
    model = Mirror(encoder)
    assert ask(model, prompter(chat=False), encoder=encoder) == ["cba", "d", "jihgfe", "lk", "qponm"]
    assert model.training


@pytest.mark.parametrize("encoder", [False, True])
def test_batches_hold_prompts_of_like_length_and_the_mask_covers_exactly_them(encoder):
    model = Mirror(encoder)
    ask(model, prompter(chat=False), encoder=encoder)
    assert [call["mask"].sum(1).tolist() for call in model.calls] == [[6, 5], [3, 2], [1]]
    assert all(torch.equal(call["mask"] == 0, call["ids"] == 0) for call in model.calls)
    edge = 0 if encoder else -1  # what is next to the answer is never padding
    assert all(call["mask"][:, edge].all() for call in model.calls)
    assert not any(call["training"] for call in model.calls)


def test_batch_size_changes_no_answer_of_a_model(tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.write_model(tmp_path)).eval()
    p = prompter(chat=False)
    alone = ask(model, p, batch_size=1)
    assert ask(model, p, batch_size=5) == alone
    assert len(set(alone)) > 1
    assert alone[1] == continuation(model, p, token_ids(p, "d", first=True), max_new_tokens=9).strip()
    assert not model.training


def test_prompts_are_cut_at_their_beginning_and_those_of_an_encoder_before_their_last_token():
    decoder, encoder = Mirror(), Mirror(encoder=True)
    assert ask(decoder, prompter(chat=False, max_length=3)) == ["cba", "d", "jih", "lk", "qpo"]
    assert ask(encoder, prompter(chat=False, max_length=3), encoder=True) == ["cba", "d", "jfe", "lk", "qnm"]


def test_task_numbers_go_with_their_prompts():
    model = Mirror()
    ask(model, prompter(chat=False), tasks=[10, 11, 12, 13, 14])
    assert [call["task_ids"].tolist() for call in model.calls] == [[12, 14], [10, 13], [11]]
    ask(model, prompter(chat=False))
    assert "task_ids" not in model.calls[-1]


def test_progress_counts_the_prompts_that_are_answered():
    told = []
    ask(Mirror(), prompter(chat=False), progress=told.append)
    assert told == [2, 4, 5]


def test_model_is_asked_for_the_likeliest_tokens_whatever_its_own_settings():
    model, p = Mirror(), prompter(chat=False)
    ask(model, p)
    own = {"ids", "mask", "training"}
    assert {k: v for k, v in model.calls[0].items() if k not in own} == greedy(model, p, 9) == {
        "max_new_tokens": 9, "do_sample": False, "temperature": None, "top_p": None, "top_k": None,
        "pad_token_id": 0, "eos_token_id": [1],
    }  # fmt: skip


def test_answer_ends_at_each_token_that_tokenizer_model_or_template_end_with():
    p, model = prompter(chat=False), Mirror()
    assert end_tokens(model, p) == [1]
    model.generation_config.eos_token_id = 7
    assert end_tokens(model, p) == [1, 7]
    model.generation_config.eos_token_id = [8, 1, 9]
    assert end_tokens(model, p) == [1, 8, 9]
    assert end_tokens(SimpleNamespace(), p) == [1]
    chat = prompter()
    chat.tokenizer.chat_template = tiny.CHAT_TEMPLATE.replace("<eos>", "<bos>")
    assert end_tokens(SimpleNamespace(), chat) == [1, 2]


def test_model_keeps_the_tokens_that_end_an_answer():
    p, model = prompter(chat=False), Mirror()
    keep_ends(model, p)
    assert model.generation_config.eos_token_id == 1
    model.generation_config.eos_token_id = 7
    keep_ends(model, p)
    assert model.generation_config.eos_token_id == [1, 7]
    keep_ends(SimpleNamespace(), p)  # has no settings
    p.tokenizer.eos_token, model.generation_config.eos_token_id = None, None
    keep_ends(model, p)
    assert model.generation_config.eos_token_id is None
    assert greedy(model, p, 9)["eos_token_id"] is None


@pytest.mark.parametrize(
    ("key", "bad", "edge"),
    [("max_new_tokens", 0, 1), ("temperature", -0.5, 0.0), ("temperature", math.inf, 0.5), ("top_p", 0.0, 0.5),
     ("top_p", -0.5, 0.5), ("top_p", 1.5, 1.0)],
)  # fmt: skip
def test_setting_of_sampling_has_a_range(key, bad, edge):
    assert getattr(Sampling().changed(key, str(edge)), key) == edge
    with pytest.raises(RecipeError, match=key):
        Sampling(**{key: bad})
    with pytest.raises(RecipeError, match=key):
        Sampling().changed(key, "many")


def test_unknown_setting_of_sampling_is_told_with_the_nearest():
    with pytest.raises(RecipeError, match="temperature"):
        Sampling().changed("temprature", "1")


def test_settings_of_sampling_are_told_as_they_are_given():
    assert str(Sampling(20, 0.5, 0.25)) == "max_new_tokens=20 temperature=0.5 top_p=0.25"
    assert str(Sampling()) == "max_new_tokens=256 temperature=0 top_p=1"


def test_temperature_of_zero_draws_nothing():
    model, p = Mirror(), prompter(chat=False)
    assert Sampling(5).options(model, p) == greedy(model, p, 5)
    assert Sampling(5, 0.7, 0.9).options(model, p) == {
        **greedy(model, p, 5), "do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0,
    }  # fmt: skip


@pytest.mark.parametrize("sizes", [5, 2])
def test_class_probabilities_stand_in_the_order_of_the_texts(sizes):
    calls = []

    class Classifier:
        device = CPU
        training = True

        def eval(self):
            self.training = False

        def __call__(self, input_ids, attention_mask, task_ids, **_):
            assert not torch.is_grad_enabled()
            assert not self.training
            calls.append(task_ids.tolist())
            length = attention_mask.sum(1)
            return SimpleNamespace(logits=torch.stack([length, input_ids[:, 0] % 5, 0 * length], 1).half())

    p = prompter(chat=False, max_length=5)
    found = class_probabilities(Classifier(), p, PROMPTS, batch_size=sizes, tasks=[4, 3, 2, 1, 0])
    first = [p.tokenizer(text)["input_ids"][0] % 5 for text in PROMPTS]
    expected = torch.tensor([[min(len(t), 5), f, 0.0] for t, f in zip(PROMPTS, first, strict=True)]).softmax(-1)
    torch.testing.assert_close(found, expected)
    assert [len(call) for call in calls] == ([5] if sizes == 5 else [2, 2, 1])
    assert [n for call in calls for n in call] == [4, 3, 2, 1, 0]


def test_room_for_an_answer_is_that_of_the_longest_label_and_three_tokens_more():
    assert longest_label(prompter(chat=False), ["a", "abcd", "ab"]) == 4 + 3


def test_prompt_begins_with_the_start_token_and_a_label_does_not():
    model, p = Mirror(), begins(prompter(chat=False))
    assert ask(model, p, ["ab"]) == ["ba"]
    assert model.calls[0]["ids"][0, 0] == 2
    assert longest_label(p, ["abcd"]) == 4 + 3


def test_streamed_answer_comes_in_pieces_without_prompt_and_special_tokens():
    pieces, model = [], Mirror()
    p = prompter(chat=False)
    whole = stream(model, p, "a b c d", sampling=Sampling(6, 0.5), on_text=pieces.append)
    assert whole == "".join(pieces) == "d c b a"
    assert len(pieces) > 1
    assert model.calls[0]["temperature"] == 0.5
    assert model.calls[0]["mask"].all()


def test_continuation_sees_the_last_tokens_that_fit():
    model, p = Mirror(), prompter(chat=False, max_length=3)
    assert continuation(model, p, token_ids(p, "abcd", first=True), max_new_tokens=9) == "dcb"
    assert not model.calls[0]["training"]
    assert model.calls[0]["max_new_tokens"] == 9
