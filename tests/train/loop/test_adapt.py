"""Every method by name, full fine-tuning and layer-wise decay, from the recipe to the files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from afina.core.config import methods
from afina.errors import AfinaError, MergeError, RecipeError
from afina.train.base.rates import own_rate
from afina.train.loop.adapt import planned_steps
from afina.train.recipe.settings import load_recipe, method_config
from afina.train.report.events import Reporter

from .. import tiny

# What a method needs on a model of 32 numbers a token; all others train as they come.
OPTIONS = {
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 1},
    "C3A": {"block_size": 16},
    "CPT": {"cpt_token_ids": [5, 6, 7]},
    "FOURIERFT": {"n_frequency": 50},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 3},
    "POLY": {"n_tasks": 3},
    "PSOFT": {"r": 8},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [5, 6, 7]},
    "VBLORA": {"num_vectors": 16, "vector_length": 16},
    "WAVEFT": {"n_frequency": 64},
}


def method_of(name: str):
    return methods()[name]


def by_name(recipe: Path, name: str, *more: tuple[str, str]):
    """The recipe with another method, and that method's options."""
    options = [(f"method.{key}", json.dumps(value)) for key, value in OPTIONS.get(name, {}).items()]
    return load_recipe(str(recipe), [("method.type", name.lower()), *options, *more])


def two_loras(folder: Path, model_folder) -> dict[str, str]:
    """Adapters of the tiny model on disk, for a method that routes among them."""
    from transformers import AutoModelForCausalLM

    import afina

    for name in ("0", "1"):
        model = AutoModelForCausalLM.from_pretrained(model_folder)
        config = afina.LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM")
        afina.get_peft_model(model, config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("0", "1")}


def run_and_use(recipe):
    """Train, load what was written, answer with it."""
    from afina.train.data.rows import read_rows
    from afina.train.loop.run import run
    from afina.train.use.predictions import predict
    from afina.train.use.trained import load_trained

    from .test_run import Heard

    heard = Heard()
    result = run(recipe, heard)
    trained = load_trained(result.folder, Reporter())
    done = predict(trained, read_rows(Path(recipe.data.eval)), Reporter(), batch_size=4)
    return result, heard.notes, done, {n: p.detach().clone() for n, p in trained.model.named_parameters()}


def ready(name: str, folder: Path, model_folder: Path, **changes):
    """A recipe of three steps with a method as it comes, and what it needs beside it."""
    if name == "BITFIT":  # wants biases, which the model of all others has not
        model_folder = tiny.write_model(folder / "biased", attention_bias=True, mlp_bias=True)
    own = {"training__max_steps": 3, "training__save_steps": 3, "training__learning_rate": None}
    file = tiny.write_recipe(folder, model_folder, **{**own, **changes})
    tasked = bool(getattr(method_of(name).implementation, "inputs", None))
    more = [("data.task_column", "task")] if tasked else []
    if name == "XLORA":
        more = [("method.adapters", json.dumps(two_loras(folder / "loras", model_folder)))]
    return by_name(file, name, *more)


@pytest.mark.product("training by name", strength=1)
@pytest.mark.parametrize("name", methods())
def test_every_method_trains_by_name_at_its_own_rate(name, tmp_path, model_folder, child):
    recipe = ready(name, tmp_path, model_folder, evaluation__max_new_tokens=3)
    result, notes, done, _ = child(run_and_use, recipe)
    rate = own_rate(method_of(name).config, 32, 3)
    assert load_recipe(str(result.folder)).training.learning_rate == rate
    plan = next(note for note in notes if note.startswith("plan: "))
    assert f"method {name}, learning rate {rate:g} (the method's own), 3 steps of 4 rows" in plan
    assert result.after.loss != result.before.loss
    # What was loaded answers as what was trained did.
    assert done.scores.accuracy == result.report["after"]["accuracy"]
    samples = result.report["after"]["samples"]
    assert [row["prediction"] for row in done.rows[: len(samples)]] == [sample["got"] for sample in samples]


TASKS = {
    "no column": ("poly", [], "needs the number of every row's task"),
    "too many": ("multitask_prompt_tuning", [("data.task_column", "task")], "more tasks than the method"),
    "none wanted": ("lora", [("data.task_column", "task")], "knows no tasks"),
    "full": ("full", [("data.task_column", "task")], "knows no tasks"),
    "no such column": ("poly", [("data.task_column", "tasks")], "tasks"),
    "no number": ("poly", [("data.task_column", "label")], "train.jsonl:1"),
}


@pytest.mark.parametrize(("name", "overrides", "told"), TASKS.values(), ids=TASKS)
def test_mistakes_with_task_numbers_are_told(name, overrides, told, tmp_path, model_folder, child):
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder)), [("method.type", name), *overrides])
    with pytest.raises(AfinaError, match=told):
        child(run_and_use, recipe)


def test_before_is_measured_on_the_base_model(tmp_path, model_folder, child):
    """Also where an untrained adapter changes the model, as random virtual tokens do."""
    before = []
    for name in ("lora", "prompt_tuning", "prefix_tuning"):
        (tmp_path / name).mkdir()
        file = tiny.write_recipe(tmp_path / name, model_folder, training__max_steps=1)
        before.append(child(run_and_use, by_name(file, name.upper()))[0].before)
    assert before[0] == before[1] == before[2]


# -- settings ---------------------------------------------------------------------------------------------------------


def test_another_methods_settings_are_left_out_and_told(tmp_path, model_folder):
    recipe = by_name(tiny.write_recipe(tmp_path, model_folder), "IA3")
    assert recipe.method.fields == {}
    assert recipe.training.learning_rate is None
    (remark,) = recipe.remarks
    assert remark == (
        "ia3 replaces the recipe's method, whose settings are left out: lora_alpha, r, target_modules, learning_rate"
    )


def test_what_the_caller_gives_is_kept_wherever_it_stands(tmp_path, model_folder):
    file = tiny.write_recipe(tmp_path, model_folder)
    given = [("r", "3"), ("lr", "0.5"), ("method", "vera"), ("target_modules", "[q_proj]")]
    recipe = load_recipe(str(file), given)
    assert recipe.method.fields == {"r": 3, "target_modules": ["q_proj"]}
    assert recipe.training.learning_rate == 0.5


def test_the_recipes_own_method_named_again_keeps_its_settings(tmp_path, model_folder):
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder)), [("method.type", "LoRA")])
    assert recipe.method.fields["r"] == 8
    assert recipe.training.learning_rate == 0.01
    assert recipe.remarks == ()


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (24, {}, 6),
        (25, {}, 7),
        (24, {"epochs": 2.5}, 15),
        (25, {"gradient_accumulation": 2}, 4),
        (3, {"max_steps": 9}, 9),
    ],
)
def test_planned_steps_are_those_that_are_made(rows, settings, steps, tmp_path, model_folder):
    changes = {f"training__{k}": v for k, v in settings.items()}
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, **{"training__max_steps": None, **changes})))
    assert planned_steps(recipe, rows) == steps


def test_schedule_of_ranks_ends_with_the_run(tmp_path, model_folder, child):
    file = tiny.write_recipe(tmp_path, model_folder, training__max_steps=None, training__gradient_accumulation=2)
    recipe = by_name(file, "ADALORA", ("method.init_r", "4"), ("method.target_r", "2"), ("epochs", "2"))
    result, *_ = child(run_and_use, recipe)
    config = json.loads((result.folder / "adapter_config.json").read_text())
    assert (config["total_step"], result.report["training"]["steps"]) == (6, 6)
    kept = [sum(ranks) for ranks in config["rank_pattern"].values()]
    assert sum(kept) == 2 * len(kept)


def test_prefixes_refuse_gradient_checkpointing_before_anything_runs(tmp_path, model_folder, child):
    from .test_run import train_with

    recipe = tiny.write_recipe(
        tmp_path, model_folder, method={"type": "prefix_tuning"}, training__gradient_checkpointing=True
    )
    with pytest.raises(RecipeError, match=r"training.gradient_checkpointing"):
        child(train_with, recipe, {})
    assert not (tmp_path / "out").exists()


# -- full fine-tuning -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_folder, child):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        file = tiny.write_recipe(folder, model_folder, method={"type": "full"}, training__max_steps=40,
                                 training__learning_rate=2e-3, model__dtype="auto")  # fmt: skip
        return child(run_and_use, load_recipe(str(file)))


def test_full_fine_tuning_trains_everything_and_helps(whole):
    result = whole[0]
    parameters = result.report["parameters"]
    assert parameters["trainable"] == parameters["total"] == 26_880
    assert result.after.loss < 0.5 * result.before.loss


def test_full_fine_tuning_writes_a_model_folder_that_anyone_can_load(whole, model_folder):
    from transformers import AutoModelForCausalLM

    result, _, _, state = whole
    assert not (result.folder / "adapter_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(result.folder)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(p, state[n]) for n, p in model.named_parameters())
    before = load_file(model_folder / "model.safetensors")
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert "library_name: transformers" in (result.folder / "README.md").read_text()
    assert (result.folder / "model.safetensors").stat().st_mode & 0o044


def test_full_fine_tuning_has_nothing_to_merge(whole, tmp_path):
    from afina.export.merged import merge
    from afina.train.use.trained import load_trained

    with pytest.raises(MergeError, match="nothing to merge"):
        merge(load_trained(whole[0].folder, Reporter()), tmp_path / "merged")


def test_full_fine_tuning_is_no_adapter():
    import afina
    from afina.errors import ConfigError

    with pytest.raises(ConfigError, match="cannot be injected"):
        afina.get_peft_model(torch.nn.Linear(2, 2), afina.FullConfig())


# -- layer-wise decay -------------------------------------------------------------------------------------------------


def groups_of(recipe):
    """The learning rates by depth in the Trainer's optimizer, and which parameters it holds."""
    from afina.train.base.base_model import load_tokenizer
    from afina.train.loop.adapt import adapted
    from afina.train.loop.trainer import make_trainer
    from afina.train.tasks import named

    folder = Path(recipe.output.dir)
    tokenizer = load_tokenizer(recipe.model.path, recipe.model, Reporter())
    base = named(recipe.task).load(recipe.model, recipe.model.path, None, tokenizer)
    model = adapted(recipe, base, method_config(recipe))

    class NoRows(list):
        rows = ()

    data = SimpleNamespace(train=NoRows())
    trainer = make_trainer(recipe, model, tokenizer, data, folder, 0.1, Reporter()).trainer
    found = trainer.create_optimizer().param_groups
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {g["depth"]: g["lr"] for g in found}, sum(p.numel() for g in found for p in g["params"]) == trainable


@pytest.mark.parametrize(("name", "depths"), [("FULL", {0, 1, 2, 3}), ("LORA", {1, 2}), ("LN_TUNING", {1, 2, 3})])
def test_recipes_take_layerwise_decay_with_any_method(name, depths, tmp_path, model_folder, child):
    file = tiny.write_recipe(tmp_path, model_folder, training__layerwise_decay=0.5)
    rates, complete = child(groups_of, by_name(file, name))
    assert complete
    assert rates == pytest.approx({depth: 0.1 * 0.5 ** (3 - depth) for depth in depths})


def test_layerwise_decay_trains_and_is_told(tmp_path, model_folder, child):
    file = tiny.write_recipe(tmp_path, model_folder, training__layerwise_decay=0.5, training__max_steps=20)
    result, notes, *_ = child(run_and_use, load_recipe(str(file)))
    assert result.after.loss < 0.9 * result.before.loss
    assert any("times 0.5 for every layer further down" in note for note in notes)


def test_layerwise_decay_goes_with_other_optimizers(tmp_path, model_folder, child):
    from .test_run import train_with

    file = tiny.write_recipe(tmp_path, model_folder, training__layerwise_decay=0.5, training__optimizer="adafactor")
    result, _ = child(train_with, file, {})
    assert result.after.loss != result.before.loss


def test_optimizer_with_groups_of_its_own_is_refused_with_layerwise_decay(tmp_path, model_folder, monkeypatch):
    from transformers import Trainer

    from afina.train.loop.trainer import _layerwise

    own = staticmethod(lambda arguments, model=None: (torch.optim.SGD, {"params": []}))
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", own)
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, training__layerwise_decay=0.5)))
    with pytest.raises(RecipeError, match="groups of its own"):
        _layerwise(recipe, None, torch.nn.Linear(2, 2), 0.1)


def interrupted_and_resumed(recipe, weights):
    """The written tensors of a run, and of the same run resumed from its checkpoint in the middle."""
    import shutil

    from afina.train.loop.run import run

    folder = run(recipe, Reporter()).folder
    uninterrupted = load_file(folder / weights)
    (folder / "report.json").unlink()
    shutil.rmtree(folder / "checkpoint-6")
    run(recipe, Reporter(), resume=True)
    return uninterrupted, load_file(folder / weights)


@pytest.mark.parametrize("name", ["full", "lora", "prompt_tuning"])
def test_resumed_run_with_layerwise_decay_ends_as_the_uninterrupted_one(name, tmp_path, model_folder, child):
    file = tiny.write_recipe(tmp_path, model_folder, training__layerwise_decay=0.5)
    recipe = load_recipe(str(file), [("method.type", name)])
    weights = "model.safetensors" if name == "full" else "adapter_model.safetensors"
    whole, resumed = child(interrupted_and_resumed, recipe, weights)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)


@pytest.mark.parametrize("path", ["package:some-model==1.0/model", "owner/name"])
def test_an_adapter_names_its_base_so_that_others_find_it(tmp_path, model_folder, path):
    from transformers import AutoModelForCausalLM

    from afina.train.loop.adapt import adapted
    from afina.train.recipe.settings import method_config

    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder)))
    recipe.model.path = path
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    if not path.startswith("package:"):
        base.config._name_or_path = path  # as the hub's models have it
    adapted(recipe, base, method_config(recipe)).save_pretrained(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == path
    assert str(model_folder) not in (tmp_path / "a" / "adapter_config.json").read_text()
