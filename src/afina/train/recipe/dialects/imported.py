"""Another tool's recipe as one of ours: known by its keys, translated by its table, written with what is left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from ....errors import RecipeError
from ..other_names import ALIASES
from ..sections import Recipe
from ..yamlfile import line
from . import axolotl, llama_factory, peft_script, torchtune
from .draft import Imported, Left

DIALECTS: Mapping[str, Any] = MappingProxyType(
    {"llama-factory": llama_factory, "axolotl": axolotl, "torchtune": torchtune, "peft-script": peft_script}
)
"""Each has TABLE, MARKS (keys that it is known by) and `finish`."""
_TO_FILL_IN = {"model.path": "FILL-IN", "data.train": "FILL-IN", "output.dir": "runs/imported"}
_WHOLE = frozenset(
    {
        "training.batch_size",
        "training.gradient_accumulation",
        "training.keep_checkpoints",
        "data.max_length",
        "training.seed",
        "method.r",
        "evaluation.batch_size",
        "data.max_train_rows",
    }
)
_REAL = frozenset({"training.learning_rate", "training.weight_decay", "data.eval_split", "training.beta"})


def reason(key: str) -> str | None:
    """What another tool's key is about, where there is no such key here: for hints."""
    for name, module in DIALECTS.items():
        rule = module.TABLE.get(key)
        if isinstance(rule, Left):
            return f"leave it out: {rule.why}"
        if rule is not None and not isinstance(rule, str):
            return f"a key of {name}: afina import FILE translates it"
    return None


def import_recipe(path: Path, dialect: str | None = None) -> Imported:
    """Read a foreign recipe.

    Raises:
        RecipeError: it cannot be read, or is of no known tool.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("cannot read the recipe", where=path, got=error) from error
    values = _values(text, path)
    name = dialect or _dialect(values)
    if name not in DIALECTS:
        raise RecipeError(
            "a recipe of no known tool",
            where=path,
            got=", ".join(list(values)[:8]),
            expected=", ".join(DIALECTS),
            fix="say which with --from",
        )
    out = Imported(name, source=values)
    for key, value in values.items():
        if value is not None:
            _take(key, value, DIALECTS[name].TABLE.get(key, ALIASES.get(key)), out)
    try:
        DIALECTS[name].finish(out)
    except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
        raise RecipeError("values that do not go together", where=path, got=error) from error
    for key, default in _TO_FILL_IN.items():
        if key not in out.values:
            out.values[key] = default
            out.look.append(f"{key}: yours to fill in" if default == "FILL-IN" else f"{key}: a place of our choice")
    return out


def _values(text: str, path: Path) -> dict[str, Any]:
    if (given := peft_script.arguments(text)) is not None and path.suffix not in (".yaml", ".yml", ".json"):
        return given
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:  # tags (!!int) that do not fit
        raise RecipeError("neither YAML nor a command line", where=path, got=str(error).splitlines()[0]) from error
    if not isinstance(values, dict):
        raise RecipeError("neither YAML of keys and values nor a command line", where=path, got=type(values).__name__)
    if any(isinstance(part, dict) and "_component_" in part for part in values.values()):
        return torchtune.resolved(torchtune.flat(values))
    return {str(key): value for key, value in values.items()}


def _dialect(values: Mapping[str, Any]) -> str:
    """The tool most of whose marks are there."""
    found = {name: sum(mark in values for mark in module.MARKS) for name, module in DIALECTS.items()}
    best = max(found, key=lambda name: found[name])
    return best if found[best] else ""


def _take(key: str, value: Any, rule: Any, out: Imported) -> None:
    if isinstance(rule, Left):
        if value is not False:  # what is switched off is not missed
            out.leave(key, value, rule.why)
    elif rule is None:
        out.leave(key, value, "not known here")
    elif isinstance(rule, str):
        out.values[rule] = _typed(rule, value)
    else:
        try:
            rule(value, out)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            raise RecipeError("a value that cannot be understood", where=key, got=value) from error


def _typed(key: str, value: Any) -> Any:
    """Numbers that YAML 1.1 takes for text (1e-4), and whole numbers where a fraction may stand."""
    try:
        if key in _WHOLE:
            return int(value)
        return float(value) if key in _REAL else value
    except (TypeError, ValueError):
        return value


def written(found: Imported, source: str) -> str:
    """The recipe as YAML, with what has no counterpart above it."""
    lines = [f"# From {source} ({found.dialect}), by afina import."]
    if found.look:
        lines += ["#", "# To look at:", *(f"#   {line}" for line in found.look)]
    if found.left:
        width = min(44, max(len(_short(key)) for key in found.left))
        lines += ["#", "# Without a counterpart:"]
        lines += [f"#   {_short(key):{width}}  {why}" for key, why in found.left.items()]
    sections: dict[str, dict[str, Any]] = {}
    for key, value in found.values.items():
        section, _, inner = key.partition(".")
        sections.setdefault(section, {})[inner] = value
    for name, info in Recipe.model_fields.items():
        own = sections.get(name, {})
        if "" in own:
            lines += ["", line(name, own[""], info.description)]
        elif own:
            fields = getattr(info.annotation, "model_fields", {})
            told = {key: fields[key].description if key in fields else None for key in own}
            lines += ["", f"{name}:", *(f"  {line(key, value, told[key])}" for key, value in own.items())]
    return "\n".join([*lines, ""])


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 44 else line[:41] + "..."
