from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.tune.space import GRIDS, Axis, factor_of, grid, size, space


def test_keys_alone_have_values_of_their_own():
    assert space(["rate,rank"]) == [Axis("rate", GRIDS["rate"]), Axis("rank", GRIDS["rank"])]


@pytest.mark.parametrize(
    ("texts", "axes"),
    [
        (["rate=1e-4,1e-3"], [Axis("rate", ("1e-4", "1e-3"))]),
        (["rate=1e-4,1e-3,rank,method=lora,ia3"],
         [Axis("rate", ("1e-4", "1e-3")), Axis("rank", GRIDS["rank"]), Axis("method", ("lora", "ia3"))]),
        (["lr=x1,x3", "lora_r=4"], [Axis("rate", ("x1", "x3")), Axis("rank", ("4",))]),
        (["training.learning_rate=1"], [Axis("rate", ("1",))]),
        (["targets=all-linear,[q_proj,v_proj]"], [Axis("targets", ("all-linear", "[q_proj,v_proj]"))]),
        (["method.use_rslora=true,false"], [Axis("method.use_rslora", ("true", "false"))]),
        (["rate=1e-4..1e-2", "rank=4..64"], [Axis("rate", span=(1e-4, 1e-2)), Axis("rank", span=(4, 64))]),
    ],
)  # fmt: skip
def test_values_can_be_given(texts, axes):
    assert space(texts) == axes


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([""], "nothing to search"),
        ([], "nothing to search"),
        (["rates"], "did you mean 'rate'?"),
        (["seed=1,2"], "all candidates have the recipe's"),
        (["epochs"], "give it as epochs="),
        (["model.path=a,b"], "give it to all"),
        (["rate="], "an empty value"),
        (["rate=1e-3,"], "an empty value"),
        (["rate=1,1"], "stands there twice"),
        (["rate,lr=1"], "named twice"),
        (["targets"], "no values of its own"),
        (["rate=x-3"], "a factor is a number above 0"),
        (["dropout=x2"], "no own value to multiply"),
        (["rate=1..0.1"], "the lower one first"),
        (["rate=1e..2"], "the lower one first"),
        (["rate=1e-3..1e-2,5"], "the lower one first"),
    ],
)  # fmt: skip
def test_what_makes_no_space_is_refused(texts, message):
    with pytest.raises(RecipeError, match="--space") as caught:
        space(texts)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


def test_a_grid_has_every_choice_once():
    axes = space(["rank=4,8", "rate=1e-3,1e-2"])
    assert size(axes) == 4
    assert grid(axes)[:2] == [{"rank": "4", "rate": "1e-3"}, {"rank": "4", "rate": "1e-2"}]
    assert size(space(["rate=1e-4..1e-2", "rank"])) == float("inf")


@pytest.mark.parametrize(("value", "factor"), [("x3", 3.0), ("x0.5", 0.5), ("3", None), ("x0", None), ("xy", None)])
def test_factors_are_numbers_behind_an_x(value, factor):
    assert factor_of(value) == factor
