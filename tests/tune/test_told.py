from __future__ import annotations

from afina.tune.told import advice, cells, fate, heads, notes, saved

from .made import contender, ended, found


def fates(result):
    return {row["name"]: fate(row, result) for row in result["rows"]}


def test_every_candidate_is_told_what_became_of_it_and_why(recipe):
    idle = contender(recipe, "idle", 0.02, **ended(0.1, verdict="flat"))
    assert fates(found(recipe, idle, contender(recipe, "bad", 0.03, **ended(2.0)))) == {
        "rate=0.01": "the best", "idle": "not trained", "bad": "significantly worse",
        "rate=1e-05": "not trained; out at step 20: significantly worse than rate=0.01 (+1.0 [0.9, 1.1])",
        "rate=<b>1</b>": "failed: the loss is not finite",
    }  # fmt: skip


def test_every_row_has_a_cell_under_every_head(recipe):
    result = found(recipe)
    assert {len(cells(row, result)) for row in result["rows"]} == {len(heads(result))} == {7}
    for row in result["rows"]:
        row["right"] = None
    assert "right" not in dict(heads(result))
    assert {len(cells(row, result)) for row in result["rows"]} == {6}


def test_advice_names_the_best_and_those_that_were_not_trained(recipe):
    said = advice(found(recipe, contender(recipe, "idle", 0.02, **ended(0.1, verdict="flat"))))
    assert said.startswith("Take rate=0.01: held-out loss 0.800, 100.0% right.")
    assert said.endswith("Not trained (their loss did not fall by more than its noise): idle.")
    assert advice(found(recipe, best="")).startswith("No candidate was trained")


def test_candidate_that_left_because_of_one_that_failed_later_is_named(recipe):
    left = contender(recipe, "good", 0.02, status="left", steps=20, rungs={0: (20, [2.0] * 70)},
                     reason="it was worse", worse_than="rate=<b>1</b>")  # fmt: skip
    other = contender(recipe, "other", 0.03, status="left", steps=20, rungs={0: (20, [2.0] * 70)},
                      reason="significantly worse than rate=<b>1</b> (", worse_than="rate=0.01")  # fmt: skip
    told = "good left because of one that failed later"
    result = found(recipe, left, other)
    assert advice(result).startswith("Take rate=0.01")
    assert told in advice(result)
    assert told not in advice(found(recipe))
    result["rows"] = [row for row in result["rows"] if row["status"] != "done"]
    assert advice({**result, "best": ""}).startswith(f"No candidate came to its end: the table says why. {told}")


def test_what_was_saved_is_told_in_rows_and_time(recipe):
    said = saved(found(recipe))
    assert said.startswith("412 rows went through training instead of 960: 57% saved; 60 s instead of about 2 min")


def test_notes_say_what_is_special(recipe):
    told = notes(found(recipe))
    assert "Passes of their own: rate=1e-05 (it draws random numbers)." in told
    both = notes(found(recipe, contender(recipe, "late", 0.02, **ended(0.1), alone="it draws random numbers")))
    assert [line for line in both if "own:" in line] == [
        "Passes of their own: late, rate=1e-05 (it draws random numbers)."]  # fmt: skip
    assert not any("Optuna" in note for note in told)
    assert any("Optuna" in note for note in notes(found(recipe, sampled=True)))
    assert any("70.0%" in note for note in told)
    assert any(
        "Too short" in n for n in notes(found(recipe, contender(recipe, "s", 1.0, **ended(1, verdict="too short"))))
    )
