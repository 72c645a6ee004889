"""What is compared: methods by name, each with settings of its own, at one or several ranks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import RecipeError, did_you_mean
from ..train.recipe.sections import Recipe
from ..train.recipe.settings import load_recipe, method_config

DEFAULT_METHODS = "full,last_layers,bitfit,lora,dora,ia3,bottleneck,prompt_tuning,prefix_tuning"
_OUTSIDE_BRACKETS = r"(?![^\[\]]*\])"
# Names that the field uses for a method with one setting changed.
VARIANTS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "dora": ("lora", "use_dora=true"),
        "rslora": ("lora", "use_rslora=true"),
        "pissa": ("lora", "init_lora_weights=pissa"),
        "olora": ("lora", "init_lora_weights=olora"),
        "houlsby": ("bottleneck", "placement=houlsby"),
        "pfeiffer": ("bottleneck", "placement=pfeiffer"),
        "parallel": ("bottleneck", "placement=parallel"),
    }
)


@dataclass(frozen=True)
class Candidate:
    """One row of the comparison.

    Attributes:
        name: as the table shows it.
        overrides: what it changes in the recipe, as `load_recipe` takes it.
    """

    name: str
    overrides: tuple[tuple[str, str], ...]

    @property
    def learning_rate_given(self) -> bool:
        """Whether the command line says this candidate's learning rate."""
        return any(key == "training.learning_rate" for key, _ in self.overrides)


def candidates(methods: str, ranks: Sequence[int] = (), *, where: str = "--methods") -> list[Candidate]:
    """The candidates in a list such as `full,lora,lora:r=4:lr=1e-3,dora`; settings are the method's own, `lr`, or keys
    with their section (`training.layerwise_decay=0.9`).

    `ranks` takes a method that has a rank `r`, and whose rank the list does not say, once at each of them.

    Raises:
        RecipeError: a method is unknown, named twice, or a setting is malformed.
    """
    out: list[Candidate] = []
    for word in (w.strip() for w in re.split("," + _OUTSIDE_BRACKETS, methods)):
        if not word:
            continue
        name, *settings = re.split(":" + _OUTSIDE_BRACKETS, word)
        method, extra = _method_of(name, where)
        pairs = [_pair(setting, word, where) for setting in (*extra, *settings)]
        own = any(key == "method.r" for key, _ in pairs)
        for rank in ranks if ranks and not own and _has_rank(method) else (None,):
            at = [("method.r", str(rank))] if rank is not None else []
            label = word if rank is None else f"{word} r={rank}"
            out.append(Candidate(label, (("method.type", method), *pairs, *at)))
    names = [candidate.name for candidate in out]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError("a method is named twice", where=where, got=name, fix="name it once")
    if not out:
        raise RecipeError("no methods to compare", where=where, expected="e.g. full,lora,ia3")
    if ranks and not any(key == "method.r" and value == str(rank) for candidate in out
                         for key, value in candidate.overrides for rank in ranks):  # fmt: skip
        raise RecipeError(
            "no method of the list has a rank to set", where="--ranks", got=list(ranks), fix="leave it out"
        )
    return out


def _method_of(name: str, where: str) -> tuple[str, tuple[str, ...]]:
    from ..methods.about import about_methods

    plain = name.lower().replace("-", "_")
    if plain in VARIANTS:
        method, setting = VARIANTS[plain]
        return method, (setting,)
    known = [about.name.lower() for about in about_methods()]
    if plain not in known:
        raise RecipeError("no such method", where=where, got=name, expected="a name that `afina methods` lists",
                          fix=did_you_mean(plain, [*known, *VARIANTS]))  # fmt: skip
    return plain, ()


def _pair(setting: str, word: str, where: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise RecipeError("a setting is KEY=VALUE", where=f"{where} {word}", got=setting, expected="e.g. lora:r=4")
    if key in ("lr", "learning_rate"):
        return "training.learning_rate", value
    return key if "." in key else f"method.{key}", value


def _has_rank(method: str) -> bool:
    from dataclasses import fields

    from ..core.config import config_class

    return any(field.name == "r" and field.init for field in fields(config_class(method, where="--methods")))


def recipe_for(
    source: str, overrides: Sequence[tuple[str, str]], candidate: Candidate, max_steps: int | None
) -> tuple[Recipe, str]:
    """The recipe with the candidate's method, and whose learning rate that is: given, recipe or default (which is
    filled in when the rows are known).

    A rank that `--ranks` sets keeps the ratio of alpha to rank.

    Raises:
        RecipeError, ConfigError: the candidate has no such setting.
    """
    recipe = load_recipe(source, [*overrides, *candidate.overrides])
    fields = recipe.method.model_extra or {}
    rank = next((int(value) for key, value in candidate.overrides if key == "method.r"), None)
    if rank is not None and not any("alpha" in key for key, _ in candidate.overrides):
        before = load_recipe(source, [*overrides, *(pair for pair in candidate.overrides if pair[0] != "method.r")])
        config = method_config(before)
        if config.get("lora_alpha") is not None:
            fields["lora_alpha"] = config.lora_alpha * rank / config.r
    if max_steps is not None:
        recipe.training.max_steps = max_steps
    origin = "given" if candidate.learning_rate_given else "recipe"
    if recipe.training.learning_rate is None:
        origin = "default"
    # The comparison measures by itself, item by item; every run has the whole budget and none is chosen by test items.
    recipe.evaluation.enabled, recipe.evaluation.every, recipe.training.early_stopping = False, None, None
    return recipe, origin
