from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.evidence.candidates import DEFAULT_METHODS, candidates, recipe_for

from ..train import tiny


@pytest.fixture
def recipe(tmp_path):
    return str(tiny.write_recipe(tmp_path, tmp_path, training__learning_rate=0.03))


def one(text):
    (candidate,) = candidates(text)
    return candidate


def test_default_methods_are_known():
    assert [c.name for c in candidates(DEFAULT_METHODS)] == DEFAULT_METHODS.split(",")


def test_settings_follow_their_method_and_lists_keep_their_commas():
    found = candidates("full, lora:r=4:target_modules=[q_proj,v_proj] ,ia3")
    assert [c.name for c in found] == ["full", "lora:r=4:target_modules=[q_proj,v_proj]", "ia3"]
    assert found[1].overrides == (
        ("method.type", "lora"), ("method.r", "4"), ("method.target_modules", "[q_proj,v_proj]"),
    )  # fmt: skip


def test_ranks_that_no_method_takes_are_refused():
    for methods in ("ia3,full", "lora:r=3"):
        with pytest.raises(RecipeError, match="no method of the list has a rank to set"):
            candidates(methods, (4, 8))


def test_ranks_multiply_methods_that_have_one_and_leave_a_given_one_alone():
    names = [c.name for c in candidates("full,lora,ia3,loha:r=2,dora", (4, 16))]
    assert names == ["full", "lora r=4", "lora r=16", "ia3", "loha:r=2", "dora r=4", "dora r=16"]


def test_dora_is_lora_with_its_magnitudes(recipe):
    made, _ = recipe_for(recipe, (), one("dora"), None)
    assert made.method.type == "lora"
    assert made.method.fields == {"r": 8, "lora_alpha": 8, "target_modules": "all-linear", "use_dora": True}


def test_rank_keeps_the_ratio_of_alpha(recipe):
    made, _ = recipe_for(recipe, (("lora_alpha", "16"),), candidates("lora", (4,))[0], None)
    assert made.method.fields["r"] == 4
    assert made.method.fields["lora_alpha"] == 8


@pytest.mark.parametrize(
    ("method", "rate", "origin"),
    [("lora", 0.03, "recipe"), ("dora", 0.03, "recipe"), ("ia3", None, "default"), ("ia3:lr=0.2", 0.2, "given")],
)
def test_learning_rate_is_the_recipes_for_its_own_method_else_the_methods(recipe, method, rate, origin):
    made, whose = recipe_for(recipe, (), one(method), None)
    assert (made.training.learning_rate, whose) == (rate, origin)


def test_every_candidate_has_the_same_steps(recipe):
    assert {recipe_for(recipe, (), c, 5)[0].training.max_steps for c in candidates("full,lora,ia3")} == {5}


def test_no_run_stops_early_or_is_chosen_by_the_items_that_judge_it(recipe):
    asked = (("early_stopping", "2"), ("evaluation.every", "1"))
    made, _ = recipe_for(recipe, asked, one("lora"), None)
    assert (made.training.early_stopping, made.evaluation.every, made.evaluation.enabled) == (None, None, False)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("loraa", "no such method"), ("lora,lora", "named twice"), (" , ", "no methods"), ("lora:r", "KEY=VALUE"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_four_lines(methods, message):
    with pytest.raises(RecipeError, match=message) as caught:
        candidates(methods)
    assert len(str(caught.value).splitlines()) <= 4


def test_unknown_method_is_told_the_nearest():
    with pytest.raises(RecipeError, match="'lora'"):
        candidates("loraa")
