from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from afina.errors import AfinaError
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny
from .test_run import Heard


def trained(recipe):
    from afina.train.loop.run import run

    heard = Heard()
    return run(recipe, heard), heard.notes


def logits(folder):
    from afina.train.use.trained import load_trained

    model = load_trained(folder, Reporter()).model
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


def tensors(folder):
    return load_file(folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def first(model_folder, child, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        child(trained, load_recipe(str(tiny.write_recipe(folder, model_folder, training__max_steps=20))))
    return folder / "out"


def recipe_on(folder, model_folder, first, **changes):
    return load_recipe(str(tiny.write_recipe(folder, model_folder, **{"model__adapter": str(first), **changes})))


def test_adapter_goes_on_from_where_it_was(first, model_folder, child, tmp_path):
    recipe = recipe_on(tmp_path, model_folder, first, training__max_steps=1, training__learning_rate=1e-12)
    result, notes = child(trained, recipe)
    assert f"going on with {first}" in notes
    was, now = tensors(first), tensors(result.folder)
    assert was.keys() == now.keys()
    assert all(torch.allclose(was[n], now[n], atol=1e-9) for n in was)
    former = json.loads((first / "report.json").read_text())["after"]
    assert result.before.loss == pytest.approx(former["loss"], rel=1e-5)  # measured with the adapter, not without


def test_other_method_stands_on_base_and_adapter(first, model_folder, child, tmp_path):
    recipe = recipe_on(tmp_path, model_folder, first, method={"type": "ia3"}, training__max_steps=2)
    result, notes = child(trained, recipe)
    assert any("merged into the base" in note for note in notes)
    former = json.loads((first / "report.json").read_text())["after"]
    assert result.before.loss == pytest.approx(former["loss"], rel=1e-4)
    assert set(tensors(result.folder)).isdisjoint(tensors(first))
    whole = child(logits, result.folder)
    alone = child(logits, first)
    assert 0 < float((whole - alone).abs().max()) < float(alone.abs().max())
    assert load_recipe(str(result.folder)).model.adapter_as == "base"


def test_same_method_can_be_put_on_top(first, model_folder, child, tmp_path):
    recipe = recipe_on(tmp_path, model_folder, first, model__adapter_as="base", training__max_steps=1,
                       method={"type": "lora", "r": 2})  # fmt: skip
    result, _ = child(trained, recipe)
    assert result.folder.joinpath("adapter_config.json").read_text().count('"r": 2') == 1


def test_reference_of_a_preference_run_is_the_adapter_below(first, models, child, tmp_path):
    file = tiny.write_task(tmp_path, "preference", models, model__adapter=str(first), training__max_steps=2)
    result, notes = child(trained, load_recipe(str(file)))
    assert any("merged into the base" in note for note in notes)
    assert (result.before.loss, result.before.accuracy) == (pytest.approx(0.693147, abs=1e-5), 0.5)


def cut_off_and_resumed(recipe):
    from afina.train.loop.run import run

    folder = run(recipe, Reporter()).folder
    whole = tensors(folder)
    (folder / "report.json").unlink()
    shutil.rmtree(folder / "checkpoint-6")
    run(recipe, Reporter(), resume=True)
    return whole, tensors(folder)


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_resumed_run_ends_as_the_uninterrupted_one(method, first, model_folder, child, tmp_path):
    own = {} if method == "lora" else {"method": {"type": method}}
    whole, again = child(cut_off_and_resumed, recipe_on(tmp_path, model_folder, first, **own))
    assert all(torch.equal(whole[n], again[n]) for n in whole)


MISTAKES = {
    "no adapter": ({"model__adapter": "DIR/nothing"}, "no such folder"),
    "nothing to use": ({"model__adapter": None, "model__adapter_as": "base"}, "no adapter to use"),
    "another rank": ({"method": {"type": "lora", "r": 2}}, r"(?s)another setting.*|method\.r"),
    "another method": ({"method": {"type": "ia3"}, "model__adapter_as": "start"}, "its own method"),
    "quantised": ({"method": {"type": "ia3"}, "model__quantize": "int8wo"}, "quantised base"),
    "unknown use": ({"model__adapter_as": "under"}, "adapter_as"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_refused(name, first, model_folder, child, tmp_path):
    changes, told = MISTAKES[name]
    changes = {k: v.replace("DIR", str(tmp_path)) if isinstance(v, str) else v for k, v in changes.items()}
    with pytest.raises(AfinaError, match=told):
        child(trained, recipe_on(tmp_path, model_folder, first, **changes))


def test_changed_adapter_below_is_not_resumed_on(first, model_folder, child, tmp_path):
    shutil.copytree(first, tmp_path / "a")
    recipe = recipe_on(tmp_path, model_folder, tmp_path / "a", method={"type": "ia3"})
    result, _ = child(trained, recipe)
    (result.folder / "report.json").unlink()
    (tmp_path / "a" / "adapter_config.json").write_text(
        (tmp_path / "a" / "adapter_config.json").read_text().replace("{", "{ ", 1)
    )
    with pytest.raises(AfinaError, match=r"adapter: adapter_config\.json"):
        child(resume_it, recipe)


def resume_it(recipe):
    from afina.train.loop.run import run

    run(recipe, Reporter(), resume=True)


def loaded_three_ways(folder, base):
    """Logits by `AutoPeftModel` and by the recipe, and what the plain base says to it."""
    from transformers import AutoModelForCausalLM

    import afina

    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        auto = afina.AutoPeftModelForCausalLM.from_pretrained(folder)(input_ids=ids).logits
    try:
        afina.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
    except AfinaError as error:
        return auto, logits(folder), str(error)
    return auto, logits(folder), ""


def test_adapter_on_top_of_another_names_it_and_is_refused_on_the_plain_base(first, model_folder, child, tmp_path):
    recipe = recipe_on(tmp_path, model_folder, first, method={"type": "ia3"}, training__max_steps=2)
    result, _ = child(trained, recipe)
    auto, by_recipe, told = child(loaded_three_ways, result.folder, model_folder)
    torch.testing.assert_close(auto, by_recipe)
    assert f"trained on a base with the adapter {first} merged in" in told
    assert len(told.splitlines()) <= 4
