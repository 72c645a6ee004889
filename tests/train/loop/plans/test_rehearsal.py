"""Every task's own trainer takes steps on tensors without data."""

from __future__ import annotations

from typing import Any

import pytest

from ... import tiny

_OTHERS = pytest.mark.whole("another trainer of TRL is rehearsed, and transformers' own")


def rehearsed(path: Any, overrides: Any = ()) -> dict[str, Any]:
    from afina.train.loop.plans.rehearsal import rehearse
    from afina.train.loop.plans.setting import setting_of
    from afina.train.recipe.settings import load_recipe
    from afina.train.report.events import Reporter

    found = rehearse(setting_of(load_recipe(str(path), overrides), Reporter()))
    live, most, parts = 0, 0, dict[str, int]()
    for event in found.events:
        live += event.size
        most = max(most, live)
        parts[found.parts[event.key]] = parts.get(found.parts[event.key], 0) + max(0, event.size)
    return {"weights": sum(found.weights.values()), "most": most, "left": live, "parts": parts, "sizes": found.sizes,
            "trainable": found.trainable, "trained": found.trained, "flops": found.work.flops}  # fmt: skip


@pytest.mark.parametrize(
    "task",
    [
        "preference",
        *(pytest.param(task, marks=_OTHERS) for task in
          ("embeddings", "reward", "kto", "orpo", "seq2seq", "token_classification", "extractive_qa", "pretraining",
           "image_classification")),
    ],
)  # fmt: skip
def test_a_step_of_every_task_is_rehearsed(task, tmp_path, models, child):
    found = child(rehearsed, tiny.write_task(tmp_path, task, models))
    assert found["parts"]["optimizer"] > 1.5 * found["trained"]  # a pooler that no loss asks has no gradient
    assert found["parts"]["gradients"] >= found["trained"]
    assert found["parts"]["activations"] > 10_000
    assert found["most"] > 4 * found["trained"]
    assert found["flops"] > 4 * found["weights"] // 4  # of at least one token, forward and backward


def test_the_weights_are_those_of_the_base_to_the_byte_and_in_few_bits_less(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, model__dtype="bfloat16")
    dense, few = child(rehearsed, recipe), child(rehearsed, recipe, (("model.quantize", "nf4"),))
    numbers = 259 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32) + 32  # embedding, blocks, last norm
    assert 0 <= dense["weights"] - 2 * numbers < 2048  # angles of positions beside them
    linear = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64)
    wide = 4 * (numbers - linear)  # what has no few bits goes to float32
    assert abs(few["weights"] - wide - linear * 4.13 / 8) < 2048


def test_full_fine_tuning_has_gradients_and_moments_of_all_weights(tmp_path, model_folder, child):
    found = child(rehearsed, tiny.write_recipe(tmp_path, model_folder, method={"type": "full"}))
    assert found["parts"]["gradients"] >= 3 * found["trained"]
    assert found["parts"]["optimizer"] >= 2 * found["trained"]
    assert found["most"] > 3 * found["trained"]


def of_drawn_answers(path: Any) -> dict[str, Any]:
    from afina.train.loop.plans.forecast import forecast, target_of
    from afina.train.loop.plans.setting import setting_of
    from afina.train.recipe.settings import load_recipe
    from afina.train.report.events import Reporter

    out: dict[str, Any] = {}
    for tokens in ("4", "64"):
        recipe = load_recipe(str(path), [("reinforcement.answer_tokens", tokens)])
        found = forecast(setting_of(recipe, Reporter()), target_of("cpu"))
        assert found.rehearsal.drawing is not None
        assert found.rehearsal.drawing.work is not None
        out[tokens] = {
            "bytes": found.bytes, "seconds": found.seconds, "calls": found.rehearsal.drawing.work.calls,
            "rows": found.rehearsal.batch["completion_ids"].shape,
        }  # fmt: skip
    return out


def test_a_task_that_draws_its_answers_is_planned_for_the_longest(tmp_path, models, child):
    found = child(of_drawn_answers, tiny.write_task(tmp_path, "grpo", models))
    assert found["64"]["rows"][1] == 64
    assert found["64"]["bytes"] > found["4"]["bytes"]
    assert found["64"]["calls"] > 10 * found["4"]["calls"]
    assert found["64"]["seconds"] > found["4"]["seconds"]
