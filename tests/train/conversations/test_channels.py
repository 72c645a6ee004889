"""Answers in channels are shown as those of other families: thoughts in front, then the answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from afina.train.answers.generate import Sampling, answers, stream
from afina.train.conversations.channels import shown, without_thoughts
from afina.train.data.prompts import Prompter
from afina.train.recipe.sections import DataSection

from .families import FAMILIES

SPECIAL = ("<|return|>", "<|end|>", "<|endoftext|>")
THOUGHT = "<|channel|>analysis<|message|>In Lisbon?<|end|><|start|>assistant"
CASES = {
    THOUGHT + "<|channel|>final<|message|>Tejo<|return|><|endoftext|>": "<think>\nIn Lisbon?\n</think>\n\nTejo",
    "<|channel|>final<|message|>Tejo": "Tejo",
    "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>final<|message|>Tejo<|return|>":
        "I look.\n\nTejo",
    THOUGHT + " to=functions.f<|channel|>commentary json<|message|>{\"x\": 1}<|call|>":
        "<think>\nIn Lisbon?\n</think>\n\nto=functions.f {\"x\": 1}",
    "<|channel|>analysis<|message|>In Lis": "<think>\nIn Lis\n</think>",
    "Tejo<|return|>": "Tejo", "<|channel|>ana": "",
}  # fmt: skip


@pytest.mark.parametrize("raw", CASES)
def test_channels_are_shown_without_their_names(raw):
    assert shown(raw, SPECIAL) == CASES[raw]


@pytest.mark.parametrize("raw", CASES)
def test_what_is_shown_while_it_comes_only_grows(raw):
    import re

    so_far, pieces = "", ""
    for piece in re.split(r"(<\|\w+\|>|\s)", raw):
        pieces += piece
        now = shown(pieces, SPECIAL, ended=False)
        assert now.startswith(so_far)
        assert "<|" not in now
        so_far = now


def test_thoughts_are_not_taken_back_into_the_talk():
    assert without_thoughts("<think>\nIn Lisbon?\n</think>\n\nTejo") == without_thoughts("Tejo") == "Tejo"


class Writes:
    """A model that writes a text whatever it is asked."""

    training, device = False, torch.device("cpu")
    generation_config = SimpleNamespace(eos_token_id=None)

    def __init__(self, ids):
        self.ids = torch.tensor(ids)

    def eval(self):
        pass

    def train(self, on):
        pass

    def generate(self, input_ids, streamer=None, **options):
        if streamer is not None:
            streamer.put(input_ids)
            for token in self.ids:
                streamer.put(token[None])
            streamer.end()
        return torch.cat([input_ids, self.ids.expand(len(input_ids), -1)], 1)


def test_predictions_and_chat_show_the_answer_of_gpt_oss():
    (family,) = (f for f in FAMILIES if f.name == "gpt-oss (harmony)")
    prompter = Prompter(DataSection(train="x"), family.tokenizer())
    raw = THOUGHT + "<|channel|>final<|message|>Tejo it is<|return|>"
    model = Writes(prompter.tokenizer(raw, add_special_tokens=False)["input_ids"])
    expected = "<think>\nIn Lisbon?\n</think>\n\nTejo it is"
    assert answers(model, prompter, [prompter.wrap("q")], max_new_tokens=9, batch_size=1) == [expected]
    pieces = []
    assert stream(model, prompter, prompter.wrap("q"), sampling=Sampling(9), on_text=pieces.append) == expected
    assert "".join(pieces).strip() == expected
    assert len([p for p in pieces if p]) > 2
    assert prompter.remembered(expected) == "Tejo it is"


def test_other_families_are_decoded_as_they_were():
    named = {f.name: Prompter(DataSection(train="x"), f.tokenizer()).channelled for f in FAMILIES}
    assert [name for name, found in named.items() if found] == ["gpt-oss (harmony)"]
