from __future__ import annotations

import re

import pytest

from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from ... import tiny


def told(path, overrides=(), free=2**36):
    """The plan's lines on a machine with so much free memory."""
    from afina.train.loop.plans import planning

    real, planning.free_bytes = planning.free_bytes, lambda device: free
    try:
        return planning.planned(load_recipe(str(path), overrides), Reporter())
    finally:
        planning.free_bytes = real


def memory_of_a_step(lines):
    (line,) = [line for line in lines if line.startswith("memory: weights")]
    number, unit = re.search(r"([\d.]+) (KiB|MiB)$", line).groups()
    return float(number) * {"KiB": 1, "MiB": 1024}[unit]


def test_plan_says_rows_steps_parameters_and_memory(tmp_path, model_folder, child):
    lines = child(told, tiny.write_recipe(tmp_path, model_folder))
    assert lines[0].startswith("plan: method LORA, learning rate 0.01, 6 steps of 4 rows")
    assert lines[1] == "rows: 24 to train on, 10 held out"
    assert re.match(r"trained parameters: 8,192 of [\d,]+ \(\d+\.\d+%\); 32 KiB on disk, 96 KiB in each of 3", lines[2])
    assert "a step of 4 rows of up to" in lines[3]
    assert lines[4].endswith("64.0 GiB are free: it fits")
    assert re.search(r"in all \d+ MiB \(weights 105 KiB, adapters 32 KiB, .*\), beside [\d.]+ [GM]iB of the", lines[4])
    assert re.match(r"time: training about \d+ (s|min) here, [\d.]+ s a step", lines[5])
    assert not (tmp_path / "out").exists()


_OTHERS = pytest.mark.whole("other pairs of the same methods and tasks are estimated")


@pytest.mark.parametrize(
    ("task", "method"),
    [
        ("causal_lm", "full"), ("causal_lm", "prefix_tuning"), ("sequence_classification", "prompt_tuning"),
        *(pytest.param("causal_lm", method, marks=_OTHERS) for method in ("prompt_tuning", "last_layers", "oft")),
        *(pytest.param("sequence_classification", method, marks=_OTHERS)
          for method in ("lora", "full", "prefix_tuning", "last_layers", "oft")),
    ],
)  # fmt: skip
def test_memory_is_estimated_for_every_kind_of_method(tmp_path, model_folder, child, task, method):
    path = tiny.write_recipe(tmp_path, model_folder, task=task)
    lines = child(told, path, (("method", method),))
    assert memory_of_a_step(lines) > 10


def test_what_each_of_several_devices_takes_is_said_for_every_engine_or_the_recipes_own(tmp_path, model_folder, child):
    path = tiny.write_recipe(tmp_path, model_folder)
    every = child(told_for, path, (), 2)
    assert [line.split()[0] for line in every] == ["ddp", "fsdp2", "zero2", "zero3", "zero3_offload", "tp"]
    sizes = {line.split()[0]: float(line.split(": ")[1].split()[0]) for line in every}
    assert sizes["zero2"] <= sizes["ddp"]
    assert "base 105 KiB" in every[0]
    assert "base 52 KiB" in every[1]
    assert child(told_for, path, (("distributed", "tp"),), 2) == [every[-1]]
    assert child(told_for, path, (("distributed", "zero2"),), 2) == [every[2]]  # asks for no DeepSpeed here
    (lines,) = child(told_for, path, (("distributed", "tp"),), 3)
    assert lines.endswith("cuts this model's heads over so many")


def told_for(path, overrides, processes):
    """The plan's lines about engines."""
    from afina.train.loop.plans.planning import planned

    return [line for line in planned(load_recipe(str(path), overrides), Reporter(), processes) if " devices: " in line]


def test_what_does_not_fit_is_told_with_what_would(tmp_path, model_folder, child):
    path = tiny.write_recipe(tmp_path, model_folder)
    fits = child(told, path)
    lines = child(told, path, (), 1000)
    assert lines[4].endswith("are free: it does not fit")
    assert [line.split(" with ")[1] for line in lines[5:-1]] == [
        "training.gradient_checkpointing=true",
        "training.gradient_checkpointing=true training.batch_size=1 training.gradient_accumulation=4",
        "training.gradient_checkpointing=true training.batch_size=1 training.gradient_accumulation=4 "
        "model.quantize=nf4",
    ]
    assert len(lines) > len(fits)


def test_quantised_weights_take_less(tmp_path, model_folder, child):
    path = tiny.write_recipe(tmp_path, model_folder)
    whole, small = child(told, path), child(told, path, (("model.quantize", "nf4"),))
    sizes = [int(re.search(r"weights (\d+) KiB", lines[3])[1]) for lines in (whole, small)]
    assert sizes[1] < 0.6 * sizes[0]


def fitting(path, free, in_turn=False):
    from afina.train.loop.plans import planning

    real, planning.free_bytes = planning.free_bytes, lambda device: free
    try:
        return planning.fitting(load_recipe(str(path)), in_turn=in_turn)
    finally:
        planning.free_bytes = real


def test_as_many_runs_fit_at_once_as_there_is_memory_for_beside_one_base(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder)
    few, more, many = (child(fitting, recipe, free) for free in (2**26, 2**27, 2**28))
    # What there is once for all is counted once, and each adds as much as the one before.
    assert abs((many - more) - 2 * (more - few)) <= 3
    own = 2**27 / (many - more)
    assert 0 < 2**26 - few * own < 2**26
    assert own < 1024 * memory_of_a_step(child(told, recipe))
    assert child(fitting, recipe, 1) == 1
    assert child(fitting, recipe, None) is None


def test_runs_that_take_turns_add_no_step_each(tmp_path, model_folder, child):
    recipe = tiny.write_recipe(tmp_path, model_folder, training__batch_size=24)
    together, in_turn = (child(fitting, recipe, 2**28, turns) for turns in (False, True))
    assert in_turn > 2 * together > 0
