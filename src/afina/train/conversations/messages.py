"""Messages in the shapes that people have them, brought to the one that chat templates read.

That is OpenAI's: `role` and `content` as text, tool calls as functions with their arguments as objects. ShareGPT's
`from` and `value`, calls and results in their own roles, parts of content, and JSON in text become this.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from ...errors import DataError, did_you_mean
from .images import PLACE, image_in

Message = dict[str, Any]
"""`role` and `content`; `images` where it has some; `train: False` where an answer is not to be learnt; keys of the
template's own."""

ASSISTANT = "assistant"
ROLES = MappingProxyType(
    {
        **dict.fromkeys(("system", "developer", "user", ASSISTANT, "tool"), ""),
        **dict.fromkeys(("human", "prompter"), "user"),
        **dict.fromkeys(("gpt", "model", "chatgpt", "bing", "bard", "function_call"), ASSISTANT),
        **dict.fromkeys(("observation", "function", "function_response", "ipython"), "tool"),
    }
)
"""Roles, and what each is called here (empty: the same)."""
SWITCHES = ("weight", "train", "loss")
"""Keys that say whether an answer is learnt."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Keys of an answer's thoughts; transformers hands each to the template under all three names."""


def normalised(value: Any, where: str, column: str = "messages") -> list[Message]:
    """The messages in a column.

    Raises:
        DataError: it holds something else; names what.
    """
    if isinstance(value, str):
        value = _json(value) or value
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else type(value).__name__
        raise DataError(f"{column!r} is not a list of messages", where=where, got=got)
    return [message_of(one, where) for one in value]


def message_of(value: Any, where: str) -> Message:
    """One message.

    Raises:
        DataError: it has no role or no content, or a switch that is none.
    """
    role = value.get("role", value.get("from")) if isinstance(value, Mapping) else None
    if not isinstance(role, str):
        raise DataError("malformed message", where=where, got=str(value), expected='{"role": "user", "content": "..."}')
    if role not in ROLES:
        hint = did_you_mean(role, ROLES)
        raise DataError(
            "unknown role", where=where, got=role, expected=", ".join(k for k, v in ROLES.items() if not v), fix=hint
        )
    known = ("role", "from", "content", "value", "tool_calls", "function_call", *SWITCHES)
    rest = {k: v for k, v in value.items() if k not in known and v is not None}
    content = value.get("content", value.get("value"))
    out: Message = {"role": ROLES[role] or role, "content": "", **rest}
    calls = value.get("tool_calls") or value.get("function_call")
    if role == "function_call":
        calls, content = _json(content), None
    if calls or role == "function_call":
        out["tool_calls"] = [_call(one, where) for one in _listed(calls)]
    if content is None and not (calls or any(rest.get(k) for k in REASONING) or "content" in value):
        raise DataError("malformed message", where=where, got=str(value), expected='{"role": "user", "content": "..."}')
    out["content"], images = _text(content, where)
    if images:
        out["images"] = images
        if out["role"] == ASSISTANT:
            raise DataError(
                "an answer has an image, which no model here writes", where=where, fix="leave such rows out"
            )
    if not all(_is_on(value[key], key, where) for key in SWITCHES if value.get(key) is not None):
        out["train"] = False
    return out


def history_of(value: Any, where: str) -> list[Message]:
    """Earlier turns of an alpaca row: pairs of question and answer, or messages.

    Raises:
        DataError: they are neither.
    """
    if not value:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, (list, dict)) for pair in value):
        raise DataError("column 'history' is no list of pairs", where=where, got=type(value).__name__)
    out: list[Message] = []
    for pair in value:
        if isinstance(pair, dict):
            out.append(message_of(pair, where))
        elif len(pair) == 2 and all(isinstance(text, str) for text in pair):
            out += [{"role": role, "content": text} for role, text in zip(("user", ASSISTANT), pair, strict=True)]
        else:
            raise DataError("a turn of 'history' is no pair of texts", where=where, got=str(pair))
    return out


def _is_on(value: Any, key: str, where: str) -> bool:
    if value in (0, 1):  # true and false too
        return bool(value)
    raise DataError(f"{key!r} of a message says whether it is learnt", where=where, got=value, expected="0 or 1")


def _text(content: Any, where: str) -> tuple[str, list[Any]]:
    """Content as text, and the images whose places are in it; parts of text are joined."""
    if content is None or isinstance(content, str):
        return content or "", []
    if not isinstance(content, list):
        raise DataError("content of a message is not text", where=where, got=f"{type(content).__name__} {content}")
    texts, images = list[str](), list[Any]()
    for part in content:
        is_image, source = image_in(part)
        text = PLACE if is_image else part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise DataError("a message has a part that is neither text nor image", where=where, got=kind,
                            expected="text, image", fix="leave such rows out")  # fmt: skip
        texts.append(text)
        images += [source] * is_image
    return "".join(texts), images


def _call(value: Any, where: str) -> dict[str, Any]:
    """A call as OpenAI writes it, its arguments as an object where they are JSON."""
    function = value.get("function", value) if isinstance(value, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError("malformed tool call", where=where, got=str(value),
                        expected='{"type": "function", "function": {"name": "...", "arguments": {}}}')  # fmt: skip
    arguments = function.get("arguments", function.get("parameters", {}))
    parsed = _json(arguments) if isinstance(arguments, str) else arguments
    outer = {k: v for k, v in value.items() if k not in ("function", "name", "arguments", "parameters")}
    return {**outer, "type": "function",
            "function": {"name": function["name"], "arguments": arguments if parsed is None else parsed}}  # fmt: skip


def tools_of(value: Any, where: str) -> list[dict[str, Any]] | None:
    """The tools in a column, JSON or a list, each as `{"type": "function", "function": ...}`; None if there are none.

    Raises:
        DataError: it holds something else.
    """
    if value is None or value == "":
        return None
    parsed = _json(value) if isinstance(value, str) else value
    if not isinstance(parsed, (list, Mapping)):
        raise DataError("'tools' is no list of tools, and no JSON of one", where=where, got=str(value))
    out = [_json(one) if isinstance(one, str) else one for one in _listed(parsed)]
    wrong = next((one for one in out if not isinstance(one, Mapping)), None)
    if wrong is not None or None in out:
        raise DataError("a tool is no object", where=where, got=str(wrong))
    return [dict(one) if "function" in one else {"type": "function", "function": dict(one)} for one in out] or None


def _listed(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else [value]


def _json(text: Any) -> Any:
    """What JSON in text says; None where it is none."""
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def is_empty(message: Message) -> bool:
    """Whether an answer says nothing: no text, no call, no thought."""
    return not (message["content"].strip() or message.get("tool_calls") or thought_of(message).strip())


def thought_of(message: Message) -> str:
    """The thoughts that a message has in a key of their own."""
    return next((str(message[key]) for key in REASONING if message.get(key)), "")


def shared_system(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """The system message that all rows have, in a column or as their first message; None where they differ."""
    found = {_system(row) for row in rows}
    (only,) = found if len(found) == 1 else (None,)
    return only


def _system(row: Mapping[str, Any]) -> str | None:
    messages, own = row.get("messages"), row.get("system")
    first = messages[0] if isinstance(messages, list) and messages else None
    if isinstance(first, Mapping) and first.get("role") in ("system", "developer"):
        own = first.get("content")
    return own if isinstance(own, str) and own else None
