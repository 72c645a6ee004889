"""SentencePiece's BPE (Llama 2, Mistral v1, Gemma) as GGUF holds it: pieces with scores, the highest merged first.

`tokenizer.json` has a list of merges, the first merged first. Both say the same where a piece is merged from all its
halves at one time, which the lists that are made of SentencePiece's files do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

BLANK = "▁"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_PREFIXED, _PLAIN = "prefixed", "plain"


def refusal(core: dict[str, Any], tokenizer: Any) -> str | None:
    """Why llama.cpp would read another tokenizer than this one; None if it reads this one."""
    if begins(core) is None:
        return "its tokenizer rewrites texts in a way that llama.cpp would not"
    vocab: dict[str, int] = core["model"]["vocab"]
    if any(f"<0x{byte:02X}>" not in vocab for byte in range(256)):
        return "its tokenizer has not a token for each byte, into which llama.cpp cuts what it does not know"
    try:
        scores(core)
    except ValueError as error:
        return f"its tokenizer merges pieces in an order that no scores give ({error})"
    if begins(core) == _PREFIXED and (text := _blanks_added(core, tokenizer)) is not None:
        return f"llama.cpp puts a blank after every special token, which its tokenizer does not (in {text!r})"
    return None


def begins(core: dict[str, Any]) -> str | None:
    """Whether texts begin with a blank of the tokenizer's own; None where they are rewritten in another way."""
    normal, before = _steps(core.get("normalizer"), "normalizers"), _steps(core.get("pre_tokenizer"), "pretokenizers")
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    # After the blanks were replaced there is none left to split at.
    splits = [step for step in before if step.get("pattern") != {"String": " "}]
    if normal == [{"type": "Prepend", "prepend": BLANK}, blanks] and not splits:
        return _PREFIXED
    if normal == [blanks] and not splits:
        return _PLAIN
    if not normal and len(before) == 1 and before[0]["type"] == "Metaspace" and not before[0].get("split", True):
        scheme = before[0].get("prepend_scheme", "always")
        return _PLAIN if scheme == "never" else _PREFIXED
    return None


def scores(core: dict[str, Any]) -> dict[str, float]:
    """Piece -> its score: of merged ones, the number of its merges counted from the last.

    Raises:
        ValueError: the merges say more than scores can; the piece.
    """
    vocab = core["model"]["vocab"]
    ranks: dict[str, int] = {}
    halves: set[tuple[str, str]] = set()
    last = None
    for merge in core["model"]["merges"]:
        left, right = merge if not isinstance(merge, str) else merge.split(" ")
        piece = left + right
        halves.add((left, right))
        if piece != last and piece in ranks:
            raise ValueError(piece)
        ranks.setdefault(piece, len(ranks))
        last = piece
    apart = _apart(core)
    for piece in vocab:
        if len(piece) < 2 or piece in apart or _BYTE.fullmatch(piece):
            continue
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        if any(cut not in halves and cut[0] in vocab and cut[1] in vocab for cut in cuts):
            raise ValueError(piece)
    return {piece: float(-ranks.get(piece, 0)) for piece in vocab}


def _apart(core: dict[str, Any]) -> set[str]:
    """Tokens that are looked for before anything is merged."""
    return {added["content"] for added in core.get("added_tokens", [])}


def write_pieces(writer: Any, core: dict[str, Any], size: int) -> None:
    """Tell a GGUF writer the pieces, their scores and kinds.

    Args:
        size: rows of the embedding; those without a token are named `[PAD...]`.
    """
    import gguf

    kinds, found = gguf.TokenType, scores(core)
    known: dict[int, tuple[str, float, int]] = {}
    for piece, i in core["model"]["vocab"].items():
        known[i] = (piece, found[piece], int(kinds.BYTE if _BYTE.fullmatch(piece) else kinds.NORMAL))
    for added in core.get("added_tokens", []):
        kind = kinds.CONTROL if added["special"] else kinds.USER_DEFINED
        if added["content"] == (core["model"].get("unk_token") or "<unk>"):
            kind = kinds.UNKNOWN
        known[added["id"]] = (added["content"], 0.0, int(kind))
    listed = [known.get(i, (f"[PAD{i}]", 0.0, int(kinds.UNUSED))) for i in range(size)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece for piece, _, _ in listed])
    writer.add_token_scores([score for _, score, _ in listed])
    writer.add_token_types([kind for _, _, kind in listed])
    writer.add_add_space_prefix(begins(core) == _PREFIXED)


def _blanks_added(core: dict[str, Any], tokenizer: Any) -> str | None:
    """A prompt that becomes other tokens where a blank is put before the text after each special token."""
    prompts = ["a"]
    if isinstance(tokenizer.chat_template, str):
        talk = [{"role": "user", "content": "a"}]
        prompts.append(str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)))
    return next((text for text in prompts if _ids(tokenizer, text) != list(_cut_ids(core, tokenizer, text))), None)


def _cut_ids(core: dict[str, Any], tokenizer: Any, text: str) -> Iterator[int]:
    """The tokens of a text whose parts between special tokens are read each by itself, as llama.cpp does."""
    apart = {added["content"]: added["id"] for added in core.get("added_tokens", [])}
    longest_first = "|".join(re.escape(word) for word in sorted(apart, key=len, reverse=True))
    for part in re.split(f"({longest_first})", text) if apart else [text]:
        if part in apart:
            yield apart[part]
        elif part:
            yield from _ids(tokenizer, part)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _steps(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    return [] if part is None else part.get(key, [part])
