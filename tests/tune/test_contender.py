from __future__ import annotations

import pytest

from afina.errors import ConfigError, RecipeError
from afina.tune.contender import Record, contender, slug

from ..train import tiny


@pytest.fixture
def made(tmp_path, model_folder):
    source = str(tiny.write_recipe(tmp_path, model_folder))  # LoRA, r = lora_alpha = 8, rate 0.01, 4 rows a step

    def of(overrides=(), **choice):
        return contender(source, overrides, choice, 24, None)

    return of


def test_a_rate_is_given_or_so_many_times_the_own_one(made):
    one = made(rate="3e-3")
    assert (one.name, one.recipe.training.learning_rate) == ("rate=0.003", 3e-3)
    assert made(rate="x3").recipe.training.learning_rate == 0.03


def test_the_own_rate_of_another_method_is_that_methods(made):
    own = made(method="ia3").recipe.training.learning_rate
    assert own != 0.01
    assert made(method="ia3", rate="x2").recipe.training.learning_rate == pytest.approx(2 * own, rel=0.05)
    assert made(method="lora", rate="x2").name == "lora rate=0.02"


def test_a_rank_keeps_the_ratio_of_alpha_to_it_unless_alpha_is_searched(made):
    assert made(rank="4").recipe.method.fields["lora_alpha"] == 4
    both = made(rank="4", alpha="x2").recipe.method.fields
    assert (both["r"], both["lora_alpha"]) == (4, 16)


def test_multiples_are_of_the_recipes_own_value(made):
    one = made(batch_size="x0.5", rank="x2")
    assert (one.recipe.training.batch_size, one.recipe.method.fields["r"]) == (2, 16)
    assert one.name == "batch_size=2 rank=16"
    assert one.rows_per_step == 2


def test_methods_without_a_setting_leave_it_out(made):
    one = made(method="ia3", rank="4", rate="x1")
    assert "rank" not in one.name
    assert one.used == ("method", "rate")
    assert made(method="lora", rank="4", rate="x1").used == ("method", "rate", "rank")
    with pytest.raises(RecipeError, match="ia3 has no setting 'r'"):
        made([("method.type", "ia3")], rank="4")


def test_names_that_the_field_uses_are_methods_too(made):
    assert made(method="dora").recipe.method.fields["use_dora"] is True
    assert made(method="dora").settings != made(method="lora").settings


@pytest.mark.parametrize("choice", [{"rate": "fast"}, {"rank": "0"}, {"method.no_such": "1"}, {"weight_decay": "-1"}])
def test_wrong_values_are_refused(made, choice):
    with pytest.raises((RecipeError, ConfigError)):
        made(**choice)


def test_what_became_of_it_is_kept_and_found_again(made, tmp_path):
    one = made(rate="3e-3")
    one.at(tmp_path / "one")
    assert one.record == Record()
    one.record.rungs[1], one.record.status = (5, [1.0, float("inf")]), "left"
    one.keep()
    again = made(rate="3e-3")
    again.at(tmp_path / "one")
    assert again.record == one.record


def test_folders_have_plain_names():
    assert slug("lora rate=0.002") == "lora-rate-0-002"
