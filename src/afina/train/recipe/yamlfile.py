"""Recipes as YAML text: read with the place of every key, written with a comment beside every key."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import BaseModel

from ...errors import RecipeError
from .sections import Recipe


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 1e-3 as a number (YAML 1.1 reads it as text)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise RecipeError("keys are words", where=_place(key_node), got=key)
        if key in seen:
            raise RecipeError(f"the key {key!r} is given twice", where=_place(key_node), fix="keep one of them")
        seen.add(key)
    return dict(loader.construct_mapping(node, deep=True))


def _place(node: yaml.Node) -> str:
    return f"{node.start_mark.name}:{node.start_mark.line + 1}"


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse(text: str, name: str) -> tuple[Any, dict[str, str]]:
    """The value of a YAML text called `name`, and where each of its keys (`section.key`) stands.

    Raises:
        RecipeError: it is not valid YAML, or a key is given twice.
    """
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise RecipeError("not valid YAML (a character that no text has)", where=f"{name}:{number}",
                          got=f"U+{error.character:04X}") from error  # fmt: skip
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        places: dict[str, str] = {}
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            places[key.value] = _place(key)
            for inner, _ in value.value if isinstance(value, yaml.MappingNode) else ():
                places[f"{key.value}.{inner.value}"] = _place(inner)
        return loader.construct_document(node), places
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise RecipeError(f"not valid YAML ({error.problem})", where=f"{name}:{line}") from error
    except (
        yaml.YAMLError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:  # keys that are lists, tags that do not fit
        raise RecipeError("not valid YAML", where=name, got=str(error).splitlines()[0]) from error
    finally:
        loader.dispose()


def dump(recipe: Recipe) -> str:
    """The recipe as YAML, every key written out and commented."""
    lines: list[str] = []
    for name, info in Recipe.model_fields.items():
        value = getattr(recipe, name)
        if not isinstance(value, BaseModel):
            lines += [line(name, value, info.description), ""]
            continue
        lines.append(f"{name}:")
        fields = type(value).model_fields
        for key, item in value.model_dump().items():
            lines.append("  " + line(key, item, fields[key].description if key in fields else None))
        lines.append("")
    return "\n".join(lines)


def line(key: str, value: object, comment: str | None) -> str:
    """A key with its value on one line, and what it means."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9).removesuffix("...\n").strip()
    return f"{key}: {text}  # {comment}" if comment else f"{key}: {text}"
