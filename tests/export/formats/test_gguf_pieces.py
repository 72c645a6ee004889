"""SentencePiece's BPE in GGUF: scores merge as the merges do, and what scores cannot say is refused.

What llama.cpp makes of them is compared in benchmarks.exports, with tokenizers that SentencePiece has trained.
"""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from typing import Any

import pytest

from afina.export.formats import gguf_pieces, gguf_tokens

TEXTS = ("Hello  world 12", " the end.\n\nthe  other", "é€ ▁ a", "", "theother then")
PREPENDED = {"type": "Sequence", "normalizers": [
    {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}  # fmt: skip
PIECES = ("th", "the", "▁the", "he", "er", "ther", "other", "▁o", "nd", "end", "▁end", "ll", "lo", "llo", "▁▁", "\n\n")
"""In the order in which they are merged."""


def tokenizer(normalizer: Any = None, template: str | None = None, **change: Any) -> Any:
    """One of these pieces, all letters and all bytes, as transformers makes it of SentencePiece's file."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    letters = sorted({letter for word in (*TEXTS, *PIECES) for letter in word if ord(letter) < 128} | {"▁"})
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *PIECES]
    vocab = {name: number for number, name in enumerate(dict.fromkeys(names))}
    merges = [[piece[:at], piece[at:]] for piece in PIECES for at in range(1, len(piece))
              if piece[:at] in vocab and piece[at:] in vocab]  # fmt: skip
    core = json.loads(Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "pre_tokenizer": None,
        "post_processor": None, "decoder": None, "normalizer": normalizer or PREPENDED,
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "vocab": vocab,
                  "merges": merges},
    })).to_str())  # fmt: skip
    core.update(change)
    out = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(core)), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    out.chat_template = template
    return out


def core_of(made: Any) -> dict[str, Any]:
    return json.loads(made.backend_tokenizer.to_str())


def merged_by_scores(text: str, scores: dict[str, float], vocab: dict[str, int]) -> list[int]:
    """The tokens of a text: the neighbours whose piece has the highest score are merged, the first of equal ones."""
    parts = list(text)
    while True:
        pairs = [(scores[a + b], -i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in vocab]
        if not pairs:
            break
        at = -max(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    out = []
    for part in parts:
        out += [vocab[part]] if part in vocab else [vocab[f"<0x{byte:02X}>"] for byte in part.encode()]
    return out


def test_scores_merge_what_the_merges_merge() -> None:
    made = tokenizer()
    core = core_of(made)
    scores, vocab = gguf_pieces.scores(core), core["model"]["vocab"]
    assert gguf_tokens.refusal(made) is None
    for text in TEXTS:
        blanks = f"▁{text.replace(' ', '▁')}" if text else ""
        assert merged_by_scores(blanks, scores, vocab) == made(text, add_special_tokens=False)["input_ids"], text
    assert len(made("theother then", add_special_tokens=False)["input_ids"]) == 4  # ▁the other ▁the n


def test_the_file_has_pieces_scores_and_kinds(tmp_path: Any) -> None:
    import gguf

    made = tokenizer()
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    gguf_tokens.write_tokens(writer, made, len(made) + 2, [made.eos_token_id])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    found = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "t.gguf").fields.items()}
    kinds = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"], strict=True))
    known = gguf.TokenType
    assert found["tokenizer.ggml.model"] == "llama"
    assert found["tokenizer.ggml.add_space_prefix"] is True
    assert found["tokenizer.ggml.tokens"][: len(made)] == made.convert_ids_to_tokens(range(len(made)))
    wanted = {"<unk>": known.UNKNOWN, "<s>": known.CONTROL, "<0x41>": known.BYTE, "the": known.NORMAL,
              f"[PAD{len(made) + 1}]": known.UNUSED}  # fmt: skip
    assert {piece: kinds[piece] for piece in wanted} == {piece: int(kind) for piece, kind in wanted.items()}
    scores = dict(zip(found["tokenizer.ggml.tokens"], found["tokenizer.ggml.scores"], strict=True))
    assert [scores[piece] for piece in PIECES] == sorted((scores[piece] for piece in PIECES), reverse=True)


def test_ways_in_which_texts_begin_are_known() -> None:
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    cases = [
        ({"normalizer": PREPENDED}, "prefixed"), ({"normalizer": blanks, "pre_tokenizer": split}, "plain"),
        ({"pre_tokenizer": space}, "prefixed"), ({"pre_tokenizer": {**space, "prepend_scheme": "never"}}, "plain"),
        ({"pre_tokenizer": {**space, "split": True}}, None), ({"normalizer": {"type": "NFKC"}}, None),
        ({"normalizer": blanks, "pre_tokenizer": {"type": "Digits"}}, None), ({}, None),
    ]  # fmt: skip
    for core, expected in cases:
        assert gguf_pieces.begins(core) == expected, core


def test_merges_that_no_scores_give_are_refused() -> None:
    core = core_of(tokenizer())
    twice = copy.deepcopy(core)
    twice["model"]["merges"].append(["th", "e"])  # merged at two times
    with pytest.raises(ValueError, match="the"):
        gguf_pieces.scores(twice)
    lacking = copy.deepcopy(core)
    lacking["model"]["merges"].remove(["o", "ther"])  # llama.cpp would merge them all the same
    with pytest.raises(ValueError, match="other"):
        gguf_pieces.scores(lacking)
    assert "order that no scores give" in str(gguf_pieces.refusal(lacking, None))
    lacking["model"]["vocab"].pop("<0x00>")
    assert "a token for each byte" in str(gguf_pieces.refusal(lacking, None))


def test_blanks_that_llama_cpp_puts_after_special_tokens_are_not_passed_over() -> None:
    template = "{{ bos_token }}{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    first = tokenizer(template=template, normalizer={"type": "Sequence", "normalizers": []}, pre_tokenizer=space)
    always = tokenizer(template=template)
    assert (
        first("a<s>a", add_special_tokens=False)["input_ids"] != always("a<s>a", add_special_tokens=False)["input_ids"]
    )
    assert "puts a blank after every special token" in str(gguf_tokens.refusal(first))
    assert gguf_tokens.refusal(always) is None
    first.chat_template = None
    assert gguf_tokens.refusal(first) is None


def test_unigram_tokenizers_are_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, True)))
    assert "not Unigram" in str(gguf_tokens.refusal(made))
