"""Recipes from YAML files and command-line overrides: sections or flat keys, common other names, errors with a line.

A key may stand in its section (`training.batch_size`), alone where it is unambiguous (`batch_size`), or under a name
that other tools give it (`per_device_train_batch_size`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from ...errors import ConfigError, RecipeError, did_you_mean
from ..report.output import RECIPE_NAME
from .anchoring import anchor
from .dialects import reason
from .other_names import ALIASES, VALUES
from .sections import DataSet, Recipe, RewardRule
from .task_types import TASK_TYPES
from .yamlfile import parse

_SECTIONS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        name: info.annotation
        for name, info in Recipe.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }
)
_IN_LISTS = (*DataSet.model_fields, *RewardRule.model_fields)
_METHOD = "method.type"
_UNKNOWN_STEPS = 10**9
"""Before the rows are read, a schedule cannot be checked against the length of the run."""
_MAIN_KEY: Mapping[str, str] = MappingProxyType(
    {"model": "model.path", "data": "data.train", "method": _METHOD, "output": "output.dir"}
)


@dataclass
class Draft:
    """Settings on their way to a `Recipe`: values by section, and where each was said."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def set(self, key: str, value: object, place: str) -> None:
        """Set `key`, written in any accepted way.

        Raises:
            RecipeError: no such key; names the nearest.
        """
        if key in _SECTIONS and isinstance(value, dict):
            for inner, inner_value in value.items():
                self._put(_within(key, inner, place), inner_value, place)
        else:
            self._put(_canonical(key, place, self.method), value, place)

    @property
    def method(self) -> str:
        """The method as far as it is known."""
        return str(self.values.get("method", {}).get("type", "lora"))

    def choose_method(self, value: object) -> None:
        """Leave out the settings of a former method, and its learning rate, where `value` names another."""
        name = value.get("type", self.method) if isinstance(value, dict) else value
        if _same_method(str(name), self.method):
            return
        left = sorted(k for k in self.values.pop("method", {}) if k != "type")
        if self.values.get("training", {}).pop("learning_rate", None) is not None:
            left.append("learning_rate")
        if left:
            self.remarks.append(f"{name} replaces the recipe's method, whose settings are left out: {', '.join(left)}")

    def _put(self, key: str, value: object, place: str) -> None:
        self.places[key] = place
        fix = VALUES.get((key, value.lower())) if isinstance(value, str) else None
        if fix is not None:
            raise RecipeError(f"another tool's word for {key}", where=place, got=value, fix=fix)
        section, _, inner = key.partition(".")
        if inner:
            self.values.setdefault(section, {})[inner] = value
        else:
            self.values[section] = value


def _canonical(key: str, place: str, method: str) -> str:
    """The `section.key` that `key` means; `method` is asked for its own settings last."""
    section, _, inner = key.partition(".")
    if inner and section in _SECTIONS:
        return _within(section, inner, place)
    if key in _MAIN_KEY:
        return _MAIN_KEY[key]
    if key in ALIASES:
        return ALIASES[key]
    if key in Recipe.model_fields and key not in _SECTIONS:
        return key
    owners = [name for name, model in _SECTIONS.items() if key in model.model_fields]
    if len(owners) == 1:
        return f"{owners[0]}.{key}"
    if len(owners) > 1:
        options = " or ".join(f"{owner}.{key}" for owner in owners)
        raise RecipeError(f"the key {key!r} is in several sections", where=place, expected=options)
    if key in (own := _method_fields(method)):
        return f"method.{key}"
    pairs = [(name, k) for name, model in _SECTIONS.items() for k in model.model_fields]
    pairs += [("method", k) for k in own]
    known = [".".join(pair) for pair in pairs] if inner else [*_SECTIONS, *ALIASES, *(k for _, k in pairs)]
    raise RecipeError(f"unknown key {key!r}", where=place, fix=reason(key) or did_you_mean(key, known))


def _within(section: str, key: str, place: str) -> str:
    model = _SECTIONS[section]
    if key in model.model_fields:
        return f"{section}.{key}"
    alias = ALIASES.get(key, "")
    if alias.startswith(f"{section}."):
        return alias
    if section == "method":  # the method's config class knows its own fields
        return f"{section}.{key}"
    fix = reason(key) or did_you_mean(key, model.model_fields)
    raise RecipeError(f"unknown key {section}.{key!s}", where=place, fix=fix)


def embedded_recipes() -> dict[str, str]:
    """The recipes that come with afina: name -> first line of its comment."""
    folder = files("afina.recipes")
    found = sorted((path for path in folder.iterdir() if path.name.endswith(".yaml")), key=lambda path: path.name)
    return {
        path.name.removesuffix(".yaml"): path.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for path in found
    }


def refuse_unmade(folder: str) -> None:
    """Refuse a base that a recipe which comes with afina would make, and has not made here.

    Raises:
        RecipeError: names the recipe.
    """
    path = Path(folder).expanduser()
    made = [n for n in embedded_recipes() if f"\n  dir: {folder}\n" in f"{_read(n)[0]}\n"]
    if made and not path.exists():
        raise RecipeError("no such folder here: it is another run's", where="model.path", got=folder,
                          fix=f"first: afina train {made[0]}")  # fmt: skip


def is_recipe(source: str) -> bool:
    """Whether `load_recipe` would take it: a YAML file, the folder of a run, or an embedded recipe's name."""
    path = Path(source).expanduser()
    if path.is_dir():
        return (path / RECIPE_NAME).is_file()
    return path.suffix in (".yaml", ".yml") or (not path.exists() and source in embedded_recipes())


def load_recipe(source: str, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """The recipe in the file `source`, or the embedded one of that name, with `overrides` (key, YAML value) applied.
    Paths in the file count from its folder, those in `overrides` from the current one.

    Raises:
        RecipeError: the file is missing or malformed, or a key or value is wrong; the message has file and line.
    """
    text, name, folder = _read(source)
    return recipe_of_text(text, name, folder, overrides)


def recipe_of_text(
    text: str, name: str, folder: Path | None = None, overrides: Sequence[tuple[str, str]] = ()
) -> Recipe:
    """The recipe in a YAML text called `name`, whose paths count from `folder`.

    Raises:
        RecipeError: as `load_recipe`.
    """
    values, places = parse(text, name)
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of keys to values", where=name, got=type(values).__name__)
    draft = Draft()
    # The method goes first: its settings may stand alone too.
    for key, value in sorted(values.items(), key=lambda item: not _names_method(item[0])):
        if key in _SECTIONS and isinstance(value, dict):
            for inner, inner_value in value.items():
                draft.set(f"{key}.{inner}", inner_value, places.get(f"{key}.{inner}", name))
        else:
            draft.set(key, value, places.get(key, name))
    if folder is not None:
        anchor(draft.values, folder)
    given = [(key, parse(value, f"override {key}")[0]) for key, value in overrides]
    for key, setting in sorted(given, key=lambda item: not _names_method(item[0])):
        if _names_method(key):
            draft.choose_method(setting)
        draft.set(key, setting, f"override {key}")
    return _validated(draft, name)


def _names_method(key: str) -> bool:
    return key == _METHOD or ALIASES.get(key, _MAIN_KEY.get(key)) == _METHOD


def _same_method(a: str, b: str) -> bool:
    return a.upper().replace("-", "_") == b.upper().replace("-", "_")


def _read(source: str) -> tuple[str, str, Path | None]:
    """Text, name and folder of a recipe; embedded ones have no folder that paths could count from."""
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / RECIPE_NAME
    embedded = embedded_recipes()
    if not path.is_file() and source in embedded:
        return (files("afina.recipes") / f"{source}.yaml").read_text(encoding="utf-8"), source, None
    if not path.is_file():
        raise RecipeError(
            "no such recipe",
            got=source,
            expected=f"a YAML file, or one of: {', '.join(embedded)}",
            fix=did_you_mean(source, embedded),
        )
    try:
        return path.read_text(encoding="utf-8-sig"), str(path), path.parent
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError("cannot read the recipe", where=path, got=error) from error


def _validated(draft: Draft, name: str) -> Recipe:
    try:
        recipe = Recipe.model_validate(draft.values)
    except ValidationError as error:
        first = error.errors()[0]
        # Of a value of several kinds: what is wrong within the kind that was meant.
        first = max((e for e in error.errors() if e["loc"][:2] == first["loc"][:2]), key=lambda e: len(e["loc"]))
        key = ".".join(str(part) for part in first["loc"] if isinstance(part, str) and part in _words())
        if first["type"] == "missing":
            raise RecipeError(f"the key {key} is missing", where=name, fix=f"add it, or give {key}=...") from error
        place = next((draft.places[k] for k in (key, ".".join(key.split(".")[:2])) if k in draft.places), name)
        if first["type"] == "extra_forbidden":  # in a part of a list
            word = str(first["loc"][-1])
            raise RecipeError(
                f"unknown key {word!r} in {key}", where=place, fix=did_you_mean(word, _IN_LISTS)
            ) from error
        got = f"{first['input']!r} ({type(first['input']).__name__})"
        expected = "{path: ..., weight: ..., name: ...}" if first["type"] == "model_type" else first["msg"]
        raise RecipeError(f"wrong value for {key}", where=place, got=got[:200], expected=expected) from error
    method_config(recipe, draft.places, name)
    recipe._remarks = tuple(draft.remarks)
    return recipe


def _words() -> set[str]:
    return {*Recipe.model_fields, *DataSet.model_fields} | {
        key for model in _SECTIONS.values() for key in model.model_fields
    }


def method_config(
    recipe: Recipe, places: Mapping[str, str] | None = None, name: str = "recipe", *, total_steps: int | None = None
) -> Any:
    """The method's config object from the method section, checked by its own class.

    A method whose schedule ends with the run (`total_step`) gets `total_steps`, unless the recipe says otherwise.

    Raises:
        RecipeError: the method or one of its fields is unknown; names the nearest.
        ConfigError: a field's value is wrong.
    """
    cls = _config_class(recipe.method.type)
    own = _method_fields(recipe.method.type)
    places = places or {}
    for key in recipe.method.fields:
        if key not in own:
            where = places.get(f"method.{key}", name)
            what = f"{recipe.method.type} has no setting {key!r}"
            raise RecipeError(what, where=where, fix=did_you_mean(key, own))
    fields = dict(recipe.method.fields)
    if "total_step" in own:
        fields.setdefault("total_step", total_steps or recipe.training.max_steps or _UNKNOWN_STEPS)
    try:
        return cls(**fields, task_type=TASK_TYPES[recipe.task])
    except TypeError as error:
        raise ConfigError(f"wrong settings for {recipe.method.type}", where=name, got=error) from error


def _config_class(method: str) -> type[Any]:
    from ...core.config import config_class

    return config_class(method, where="method.type")


def _method_fields(method: str) -> list[str]:
    """The settings of a method that a recipe may give."""
    from dataclasses import fields

    return [f.name for f in fields(_config_class(method)) if f.init and f.name not in ("task_type", "peft_type")]
