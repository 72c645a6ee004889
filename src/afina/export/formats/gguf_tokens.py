"""A tokenizer as GGUF holds it: byte-level BPE from `tokenizer.json`, split as llama.cpp has a name for; or
SentencePiece's BPE (`gguf_pieces`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from . import gguf_pieces

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    _LETTERS + r"\p{N}{1,3}" + _REST: "llama-bpe",
    _LETTERS + r"\p{N}" + _REST: "qwen2",
}
"""The patterns of published tokenizers -> their name in llama.cpp."""


def refusal(tokenizer: Any) -> str | None:
    """Why llama.cpp cannot read a tokenizer as it is written here; None if it can."""
    core = _core(tokenizer)
    if core is None:
        return "its tokenizer has no tokenizer.json"
    if core["model"]["type"] != "BPE":
        return f"of tokenizers BPE is written, not {core['model']['type']}"
    if core["model"].get("byte_fallback"):
        return gguf_pieces.refusal(core, tokenizer)
    if (normal := core.get("normalizer")) is not None and normal["type"] != "NFC":
        return f"its tokenizer rewrites texts ({normal['type']}), which llama.cpp would not"
    return None if split_name(core) else "its tokenizer splits texts in a way that llama.cpp has no name for here"


def split_name(core: dict[str, Any]) -> str | None:
    """llama.cpp's name for the way in which a tokenizer splits texts before it merges bytes."""
    before = core.get("pre_tokenizer") or {}
    steps: list[dict[str, Any]] = before.get("pretokenizers", [before])
    kinds = [step.get("type") for step in steps]
    if kinds[-1:] != ["ByteLevel"] or steps[-1].get("add_prefix_space"):
        return None
    if not core["model"]["merges"]:
        return "gpt-2"  # where nothing is merged, it does not matter where texts are split
    if len(steps) == 1:
        return "gpt-2" if steps[0].get("use_regex", True) else None
    if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and steps[1].get("use_regex", True):
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and not steps[1].get("use_regex", True):
        return SPLITS.get(steps[0]["pattern"].get("Regex", ""))
    return None


def write_tokens(writer: Any, tokenizer: Any, size: int, ends: Sequence[int]) -> None:
    """Tell a GGUF writer a tokenizer.

    Args:
        size: rows of the embedding; those without a token are named `[PAD...]`.
        ends: tokens that end an answer, the tokenizer's own first.
    """
    core = _core(tokenizer)
    assert core is not None
    if core["model"].get("byte_fallback"):
        gguf_pieces.write_pieces(writer, core, size)
    else:
        _write_bytes(writer, core, size)
    writer.add_add_bos_token(begins(tokenizer))
    special = {"bos": tokenizer.bos_token_id, "eos": ends[0], "eot": ends[-1], "pad": tokenizer.pad_token_id}
    for role, token in special.items():
        if token is not None:
            getattr(writer, f"add_{role}_token_id")(int(token))
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _write_bytes(writer: Any, core: dict[str, Any], size: int) -> None:
    """Tokens and merges of a byte-level BPE."""
    import gguf

    known = {i: (token, gguf.TokenType.NORMAL) for token, i in core["model"]["vocab"].items()}
    for added in core.get("added_tokens", []):
        kind = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
        known[added["id"]] = (added["content"], kind)
    listed = [known.get(i, (f"[PAD{i}]", gguf.TokenType.UNUSED)) for i in range(size)]
    name = split_name(core)
    assert name is not None
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list([token for token, _ in listed])
    writer.add_token_types([int(kind) for _, kind in listed])
    # llama.cpp refuses a list that is empty; two tokens that never meet change nothing.
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in core["model"]["merges"]] or ["Ā ā"])
    writer.add_add_space_prefix(False)


def begins(tokenizer: Any) -> bool:
    """Whether a tokenizer puts its first token before every text."""
    found = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and found[:1] == [tokenizer.bos_token_id]


def _core(tokenizer: Any) -> dict[str, Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    found: dict[str, Any] | None = None if backend is None else json.loads(backend.to_str())
    return found
