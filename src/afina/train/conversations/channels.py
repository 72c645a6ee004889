"""Answers that a model writes in channels (harmony, the format of gpt-oss), as they are shown to people: thoughts as
other families write them, then the answer itself; a call with the name of what is called."""

from __future__ import annotations

import re
from collections.abc import Iterable

WORDS = ("<|start|>", "<|channel|>", "<|message|>")
"""Tokens of the format."""
_ENDS = re.compile(r"<\|(?:end|return|call|start)\|>")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_TO = re.compile(r"\bto=([^\s<]+)")
_THOUGHT = ("<think>\n", "\n</think>\n\n")


def shown(raw: str, special: Iterable[str], *, ended: bool = True) -> str:
    """What a decoded answer says, special tokens and all.

    Args:
        raw: what follows the prompt, which ends in `<|start|>assistant`.
        special: the tokenizer's special tokens.
        ended: whether nothing follows; what is shown before that only grows.
    """
    parts = raw.split("<|start|>")
    out = ""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        head, begun, rest = part.partition("<|message|>")
        if not begun:  # a header is not written out yet; an answer may also have none
            out += part if ended and not number and "<|channel|>" not in part else ""
            continue
        body, *closed = _ENDS.split(rest, maxsplit=1)
        out += _said(head, body, closed=bool(closed) or not last or ended)
    for token in special:
        out = out.replace(token, "")
    return out.strip() if ended else out


def _said(head: str, body: str, *, closed: bool) -> str:
    channel, to = _CHANNEL.search(head), _TO.search(head)
    if to is not None:
        return f"to={to[1]} {body}"
    if channel is not None and channel[1] == "analysis":
        return _THOUGHT[0] + body + (_THOUGHT[1] if closed else "")
    return body + ("\n\n" if channel is not None and channel[1] == "commentary" and closed else "")


def without_thoughts(text: str) -> str:
    """The answer alone, of what was shown."""
    return text.rpartition(_THOUGHT[1].strip())[2].strip()
