"""Two processes whose steps DeepSpeed's engine takes: the steps of one process, and the same files."""

from __future__ import annotations

import json
import os
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afina.core.config import methods
from afina.core.layers.partitioned import is_partitioned
from afina.devices.ranks import spread
from afina.errors import RecipeError
from afina.train.loop import zero
from afina.train.loop.sharing import why_whole
from afina.train.recipe import zero_stages
from afina.train.recipe.settings import load_recipe
from afina.train.recipe.zero_stages import partitions_weights
from afina.train.report.events import Reporter
from afina.train.tasks import TASKS, arguments

from .. import tiny
from .test_adapt import ready
from .test_together import DRAWS, differ, ran, written
from .together import Together

HAS = zero_stages.is_installed()
NEEDS = pytest.mark.skipif(not HAS or "AFINA_ZERO" not in os.environ,
                           reason="needs DeepSpeed and minutes: make test-zero has both")  # fmt: skip
STEPS = 3


@pytest.fixture(scope="module")
def engine() -> Iterator[Together]:
    """Two processes of their own: DeepSpeed holds on to the first group that it meets."""
    out = Together()
    yield out
    out.end()


class Look(Reporter):
    """What lies in parts while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = self.as_read = 0

    def reached(self, place, values) -> None:
        if place in ("base", "trained"):
            found = sum(map(is_partitioned, values["model"].parameters()))
            self.parts, self.as_read = (self.parts, found) if place == "base" else (found, self.as_read)


def by_engine(recipe, resume=False):
    """The run's folder, report, how many weights lay in parts at its end, and once they were read; none is small
    enough to stay whole."""
    from afina.train.loop.run import run

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")

    def settings(recipe):
        made = zero_stages.engine_settings(recipe)
        if made is not None:
            made["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return made

    arguments.engine_settings = settings
    look = Look()
    try:
        done = run(recipe, look, resume=resume)
    except (
        RuntimeError,
        TypeError,
        ArithmeticError,
        AttributeError,
        LookupError,
    ) as error:  # whose places do not travel
        raise AssertionError(traceback.format_exc()[-2500:]) from error
    assert not spread()
    return done.folder, done.report, look.parts, look.as_read


def compared(child, engine, tmp_path, recipe_of, distributed):
    """What one process wrote, and what two with an engine did."""
    found = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = recipe_of(folder, {"distributed": distributed} if number else {})
        done = engine(by_engine, recipe) if number else [child(ran, recipe)]
        assert not isinstance(done[0], Exception), str(done[0])
        if number:
            assert (done[0][2] > 0) == (done[0][3] > 0) == (distributed != "zero2")
        found.append((*written(done[0][0]), done[0][1]))
    return found


def assert_same(found, nearly=False):
    (steps, state, report), (again, shared, told) = found
    assert steps[0]["loss"] != steps[-1]["loss"]
    assert [s["loss"] for s in again] == pytest.approx([s["loss"] for s in steps], rel=0.05 if nearly else 1e-3)
    assert state.keys() == shared.keys()
    if nearly:  # a mean over fewer rows, where short ones weigh more
        return
    assert [s["grad_norm"] for s in again] == pytest.approx([s["grad_norm"] for s in steps], rel=1e-2)
    assert differ(state, shared) < 0.01
    for when in ("before", "after"):
        if report.get(when):
            assert told[when]["loss"] == pytest.approx(report[when]["loss"], rel=1e-3)
            assert told[when]["accuracy"] == report[when]["accuracy"]


@NEEDS
@pytest.mark.parametrize("distributed", list(zero_stages.STAGES))
@pytest.mark.parametrize("task", ["causal_lm", "seq2seq", "sequence_classification"])
def test_two_processes_with_an_engine_take_the_steps_of_one(task, distributed, models, child, engine, tmp_path):
    def recipe(folder, how):
        file = tiny.write_task(folder, task, models, training__max_steps=STEPS, training__save_steps=STEPS, **how)
        return load_recipe(str(file))

    assert_same(compared(child, engine, tmp_path, recipe, distributed), TASKS[task].shares == "nearly")


@NEEDS
@pytest.mark.parametrize("distributed", ["zero2", "zero3"])
@pytest.mark.parametrize("name", [n for n in methods() if n != "FULL"])
def test_every_method_takes_the_steps_of_one_process(name, distributed, model_folder, child, engine, tmp_path):
    def recipe(folder, how):
        return ready(name, folder, model_folder, evaluation__enabled=False, **how)

    found = compared(child, engine, tmp_path, recipe, distributed)
    if name not in DRAWS:
        assert_same(found)


@NEEDS
@pytest.mark.parametrize("name", ["LORA", "ADALORA"])
@pytest.mark.parametrize("distributed", list(zero_stages.STAGES))
def test_a_run_goes_on_where_it_was_cut_off(distributed, name, model_folder, engine, tmp_path):
    made = ready(name, tmp_path, model_folder, distributed=distributed, training__max_steps=4, training__save_steps=2,
                 evaluation__enabled=False)  # fmt: skip
    done = engine(by_engine, made)
    assert not isinstance(done[0], Exception), str(done[0])
    folder = done[0][0]
    whole = load_file(folder / "adapter_model.safetensors")
    names = {p.name for p in folder.rglob("*") if p.is_file()}
    assert "optimizer.safetensors" in names
    assert not any("model_states" in n or "optim_states" in n for n in names)  # DeepSpeed's pickles
    (folder / "report.json").unlink()
    shutil.rmtree(folder / "checkpoint-4")
    (folder / "adapter_model.safetensors").unlink()
    done = engine(by_engine, made, True)
    assert not isinstance(done[0], Exception), str(done[0])
    again = load_file(folder / "adapter_model.safetensors")
    assert all(torch.allclose(again[n], whole[n], rtol=1e-4, atol=1e-6) for n in whole)


@pytest.mark.parametrize(("distributed", "inside"), [("zero3", "x"), ("ddp", "global_step2"), ("auto", "global_step2")])
def test_a_checkpoint_with_another_form_of_the_optimizer_is_refused(distributed, inside, model_folder, tmp_path):
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, distributed=distributed)))
    (tmp_path / "checkpoint-2" / inside).mkdir(parents=True)
    with pytest.raises(RecipeError, match="another form of the optimizer's state"):
        zero.refuse_other_state(recipe, tmp_path / "checkpoint-2")
    zero.refuse_other_state(recipe, None)


@pytest.mark.skipif(HAS, reason="DeepSpeed is here")
def test_without_deepspeed_the_error_says_how_to_get_it(model_folder, together, tmp_path):
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, distributed="zero3")))
    for error in together(ran, recipe):
        assert isinstance(error, RecipeError)
        assert zero_stages.INSTALL in str(error)
        assert len(str(error).splitlines()) <= 4


def checked(recipe) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        zero_stages.check_engine(recipe)
    return caught.value


@pytest.mark.parametrize(("setting", "key"), [({"training__optimizer": "adafactor"}, "training.optimizer"),
                                              ({"training__bf16": True}, "training.bf16"),
                                              ({"model__quantize": "int8wo"}, "model.quantize"),
                                              ({"model__quantize": "int4wo"}, "model.quantize")])  # fmt: skip
def test_what_an_engine_would_do_otherwise_is_refused(setting, key, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(zero_stages, "is_installed", lambda: True)
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, distributed="zero2", **setting)))
    assert key in str(checked(recipe))


@pytest.mark.parametrize("distributed", ["zero3", "zero3_offload"])
@pytest.mark.parametrize(
    ("key", "changes"),
    [("method.type", {"method": {"type": "full"}}), *(("model.quantize", {"model__quantize": storage})
                                                     for storage in ("nf4", "fp4", "int8", "int8wo", "int4wo"))],
)  # fmt: skip
def test_what_zero3_needs_whole_is_refused(key, changes, distributed, model_folder, tmp_path):
    """By `tell_sharing`, before anything is loaded."""
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, distributed=distributed, **changes)))
    assert partitions_weights(recipe)
    found = why_whole(recipe)
    assert found is not None
    assert found[0] == key


def write_mt5(folder):
    """A model of mT0's architecture: gated feed-forward parts, a head of its own."""
    from transformers import MT5Config, MT5ForConditionalGeneration

    torch.manual_seed(0)
    config = MT5Config(vocab_size=259, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.0,
                       decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)  # fmt: skip
    MT5ForConditionalGeneration(config).save_pretrained(folder)
    tiny.tokenizer(chat=False).save_pretrained(folder)
    return folder


@NEEDS
def test_the_documented_recipe_for_mt0_takes_the_steps_of_one_process(child, engine, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "distributed.md").read_text(encoding="utf-8")
    (text,) = [block for block in page.split("```yaml\n")[1:] if "bigscience/mt0-large" in block]
    model = write_mt5(tmp_path / "mt5")
    for name, n, start in (("train", 24, 0), ("test", 10, 100)):
        # Two rows of a step have as many tokens to learn, so that a mean of means is the mean.
        rows = [{"text": f"n{i}", "label": "even" if i % 2 else "odd."} for i in range(start, start + n)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def recipe(folder, how):
        (folder / "mt0.yaml").write_text(text.partition("```")[0], encoding="utf-8")
        own = {"model.path": model, "data.train": tmp_path / "train.jsonl", "data.eval": tmp_path / "test.jsonl",
               "output.dir": folder / "out", "training.max_steps": STEPS, "training.learning_rate": 0.01,
               "training.batch_size": 4, "method.lora_dropout": 0.0, "model.dtype": "float32"}  # fmt: skip
        own |= {} if how else {"distributed": "auto"}
        return load_recipe(str(folder / "mt0.yaml"), [(key, str(value)) for key, value in own.items()])

    assert recipe(tmp_path, {"distributed": "zero3_offload"}).distributed == "zero3_offload"
    assert_same(compared(child, engine, tmp_path, recipe, "zero3_offload"))


@NEEDS
@pytest.mark.parametrize("distributed", ["zero2", "zero3"])
def test_a_base_in_16_bits_trains_beside_adapters_in_32(distributed, model_folder, child, engine, tmp_path):
    def recipe(folder, how):
        file = tiny.write_recipe(folder, model_folder, training__max_steps=STEPS, evaluation__enabled=False,
                                 model__dtype="bfloat16", **how)  # fmt: skip
        return load_recipe(str(file))

    (steps, state, _), (again, shared, _) = compared(child, engine, tmp_path, recipe, distributed)
    assert {t.dtype for t in shared.values()} == {torch.float32}
    assert [s["loss"] for s in again] == pytest.approx([s["loss"] for s in steps], rel=1e-2)
    assert differ(state, shared) < 0.1


@NEEDS
def test_everything_trains_in_two_processes_with_zero2(model_folder, child, engine, tmp_path):
    def recipe(folder, how):
        return ready("FULL", folder, model_folder, evaluation__enabled=False, **how)

    assert_same(compared(child, engine, tmp_path, recipe, "zero2"))


@NEEDS
@pytest.mark.parametrize("storage", ["nf4", "fp4", "int8"])
def test_a_quantised_base_trains_with_zero2(storage, model_folder, child, engine, tmp_path):
    def recipe(folder, how):
        return ready("LORA", folder, model_folder, evaluation__enabled=False, model__quantize=storage, **how)

    assert_same(compared(child, engine, tmp_path, recipe, "zero2"))
