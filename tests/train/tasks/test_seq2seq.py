from __future__ import annotations

from afina.train.tasks.seq2seq import Seq2Seq

from ..data.test_encode import prompter, rows


def test_prompt_is_the_encoders_and_the_answer_the_decoders_with_its_end():
    p = prompter(chat=False)
    (item,) = Seq2Seq().encode(rows({"prompt": "why", "completion": "so"}), p, None, 259).items
    assert p.tokenizer.decode(item["input_ids"]) == "why"
    assert p.tokenizer.decode(item["labels"]) == "so<eos>"


def test_long_sides_are_cut_and_counted():
    p = prompter(chat=False, max_length=4)
    values = [{"prompt": "abcdef", "completion": "x"}, {"prompt": "a", "completion": "uvwxyz"}]
    encoded = Seq2Seq().encode(rows(*values), p, None, 259)
    assert encoded.truncated == 2
    assert [len(item["input_ids"]) for item in encoded.items] == [4, 1]
    assert [len(item["labels"]) for item in encoded.items] == [2, 4]


def test_messages_give_the_last_answer():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    p = prompter()
    (item,) = Seq2Seq().encode(rows({"messages": turns}), p, None, 259).items
    assert p.tokenizer.decode(item["input_ids"]) == "<|user|>a\n<|assistant|>"
    assert p.tokenizer.decode(item["labels"]) == "b<eos>"
