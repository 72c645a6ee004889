"""Texts that are no recipe are refused as such, with their place, whatever PyYAML makes of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from afina.errors import RecipeError
from afina.train.recipe.dialects import import_recipe
from afina.train.recipe.yamlfile import parse

FACTORY = "model_name_or_path: a/b\nstage: sft\nfinetuning_type: lora\ndataset: x\n"
BROKEN = {
    "a control character": ('task: causal_lm\nmodel: "a\x01b"\n', "r.yaml:2: not valid YAML.*\\nU?.*U\\+0001"),
    "a list as a key": ("? [a]\n: b\n", "not valid YAML"),
    "a mapping as a key": ("model:\n  ? {a: 1}\n  : b\n", "not valid YAML"),
    "a tag that does not fit": ("task: !!int seven\n", "not valid YAML.*"),
    "a tag of Python": ("task: !!python/object:os.system x\n", "r.yaml:1: not valid YAML"),
    "brackets without end": ("a: " + "[" * 3000, "not valid YAML"),
    "a key twice": ("task: a\ntask: b\n", "r.yaml:2"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_text_that_is_no_recipe_is_refused(name: str) -> None:
    text, said = BROKEN[name]
    with pytest.raises(RecipeError, match=said) as caught:
        parse(text, "r.yaml")
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize("name", [n for n in BROKEN if n not in ("a key twice",)])
def test_other_tools_recipe_that_is_no_yaml_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(FACTORY + BROKEN[name][0], encoding="utf-8")
    with pytest.raises(RecipeError, match="neither YAML nor a command line") as caught:
        import_recipe(path, None)
    assert len(str(caught.value).splitlines()) <= 4


def test_values_of_other_tools_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(f"{FACTORY}lora_rank: {{a: b}}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="do not go together"):
        import_recipe(path, None)
