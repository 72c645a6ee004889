"""What is searched: keys of a recipe with the values to try, as the command line says it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from types import MappingProxyType

from ..errors import RecipeError, did_you_mean
from ..train.recipe.other_names import ALIASES

_OUTSIDE_BRACKETS = r",(?![^\[\]]*\])"
_RANGE = re.compile(r"([-+.\deE]+)\.\.([-+.\deE]+)")
GRIDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "rate": ("x0.3", "x1", "x2", "x5", "x10"),
        "rank": ("4", "8", "16", "32"),
        "method": ("lora", "dora", "ia3", "bottleneck"),
        "alpha": ("x0.5", "x1", "x2", "x4"),
        "dropout": ("0.0", "0.05", "0.1"),
        "targets": (),
        "batch_size": ("x0.5", "x1", "x2"),
        "warmup": ("0.0", "0.1"),
        "scheduler": ("linear", "cosine", "constant"),
        "weight_decay": ("0.0", "0.01", "0.1"),
        "layerwise_decay": ("0.8", "0.9", "1.0"),
        "max_grad_norm": (),
        "gradient_accumulation": (),
        "optimizer": (),
        "beta": (),
        "loss_on_prompt": (),
    }
)
"""Keys that can be searched, with what is tried where no values are given. `xF` is F times the own value: the recipe's,
or for rates of other methods than the recipe's the method's own. Own rates train on every task, so better ones lie
above them more often than below (docs/learning-rates.md)."""
MULTIPLIED = ("rate", "rank", "alpha", "batch_size")
"""Keys that have an own value, of which there are multiples."""
_WORDS: Mapping[str, str] = MappingProxyType(
    {"training.learning_rate": "rate", "method.r": "rank", "method.type": "method", "method.target_modules": "targets",
     "method.lora_alpha": "alpha", "method.lora_dropout": "dropout", "learning_rate": "rate", "r": "rank"}
)  # fmt: skip
_REASONS: Mapping[str, str] = MappingProxyType(
    {
        "seed": "all candidates have the recipe's, so that they differ in their settings alone",
        "max_steps": "all have the recipe's length; give it as max_steps=...",
        "epochs": "all have the recipe's length; give it as epochs=...",
    }
)


@dataclass(frozen=True)
class Axis:
    """A key and what is tried for it.

    Attributes:
        key: of `GRIDS`, or `method.SETTING`.
        values: as the recipe's YAML has them, or `xF` for F times the own value.
        span: both ends where any number between them may be tried, in place of values.
    """

    key: str
    values: tuple[str, ...] = ()
    span: tuple[float, float] | None = None

    @property
    def whole(self) -> bool:
        """Whether a range is one of whole numbers."""
        return self.key in ("rank", "alpha", "batch_size", "gradient_accumulation")


def space(texts: Sequence[str]) -> list[Axis]:
    """The axes in texts such as `rate,rank` and `rate=1e-4,1e-3` and `rank=4..64`.

    Raises:
        RecipeError: a key cannot be searched or stands there twice, or there are no values.
    """
    given: dict[str, list[str] | None] = {}
    for text in texts:
        key = ""
        for word in (w.strip() for w in re.split(_OUTSIDE_BRACKETS, text)):
            name, equals, value = word.partition("=")
            if key and given[key] is not None and not equals and _plain(word) is None:
                given[key] = [*(given[key] or ()), word]
                continue
            key = _key(name)
            if key in given:
                raise RecipeError("a key is named twice", where="--space", got=key, fix="name it once")
            given[key] = [value] if equals else None
    if not given:
        raise RecipeError("nothing to search", where="--space", expected="e.g. rate,rank or rate=1e-4,1e-3")
    return [_axis(key, values) for key, values in given.items()]


def _plain(word: str) -> str | None:
    """The key that a word names, if it names one."""
    name = word.removeprefix("training.").replace("-", "_")
    target = ALIASES.get(name, name)
    for known in (word, name, target, target.removeprefix("training.")):
        known = _WORDS.get(known, known)
        if known in GRIDS:
            return known
    return word if word.startswith("method.") and word != "method." else None


def _key(word: str) -> str:
    key = _plain(word)
    if key is not None:
        return key
    if not word:
        raise RecipeError("nothing to search", where="--space", expected="e.g. rate,rank or rate=1e-4,1e-3")
    section, _, name = word.rpartition(".")
    close = did_you_mean(name, GRIDS) if section in ("", "training") else "give it to all: KEY=VALUE"
    raise RecipeError("this key cannot be searched", where="--space", got=word,
                      expected=f"{', '.join(GRIDS)}, or method.SETTING",
                      fix=_REASONS.get(name) or close)  # fmt: skip


def _axis(key: str, values: Sequence[str] | None) -> Axis:
    if values is None:
        values = GRIDS.get(key, ())
        if not values:
            raise RecipeError("this key has no values of its own to try", where=f"--space {key}",
                              fix=f"give some: --space {key}=VALUE,VALUE")  # fmt: skip
    if not all(values):
        raise RecipeError("an empty value", where=f"--space {key}", fix=f"give some: --space {key}=VALUE,VALUE")
    if len(set(values)) < len(values):
        raise RecipeError("a value stands there twice", where=f"--space {key}", got=",".join(values))
    for value in values:
        if key in MULTIPLIED and value.startswith("x") and factor_of(value) is None:
            raise RecipeError("a factor is a number above 0 behind an x", where=f"--space {key}", got=value,
                              expected="e.g. x0.3,x1,x3")  # fmt: skip
        if key not in MULTIPLIED and factor_of(value) is not None:
            raise RecipeError("this key has no own value to multiply", where=f"--space {key}", got=value,
                              expected=f"factors for {', '.join(MULTIPLIED)}")  # fmt: skip
    if any(".." in value for value in values):
        return _range(key, values)
    return Axis(key, tuple(values))


def _range(key: str, values: Sequence[str]) -> Axis:
    match = _RANGE.fullmatch(values[0])
    try:
        low, high = (float(end) for end in match.groups()) if match else (0.0, 0.0)
    except ValueError:
        low, high = 0.0, 0.0
    if len(values) > 1 or not 0 < low < high:
        raise RecipeError("a range is two numbers above 0, the lower one first", where=f"--space {key}",
                          got=",".join(values), expected="e.g. rate=1e-4..1e-2")  # fmt: skip
    return Axis(key, span=(low, high))


def factor_of(value: str) -> float | None:
    """F of a value `xF`; None of another."""
    try:
        number = float(value[1:]) if value.startswith("x") else 0.0
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def size(axes: Sequence[Axis]) -> float:
    """How many candidates a space has; infinitely many where it has ranges."""
    return float("inf") if any(axis.span for axis in axes) else prod(len(axis.values) for axis in axes)


def grid(axes: Sequence[Axis]) -> list[dict[str, str]]:
    """Every choice of values, in order."""
    return [dict(zip([a.key for a in axes], chosen, strict=True)) for chosen in product(*(a.values for a in axes))]
