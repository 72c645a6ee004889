from __future__ import annotations

import json

import pytest
import torch

from afina.errors import AfinaError
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny

TOKENS = ["<even>", "<odd>"]


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    from transformers import AutoModelForCausalLM

    folder = tiny.write_model(tmp_path_factory.mktemp("untied"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone().flip(0))
    model.config.tie_word_embeddings = False
    model.save_pretrained(folder)
    return folder


def recipe_of(folder, model, **changes):
    file = tiny.write_recipe(folder, model, model__new_tokens=TOKENS, data__completion="{label}", data__labels=TOKENS,
                             **changes)  # fmt: skip
    for name in ("train", "eval"):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**row, "label": f"<{row['label']}>"}) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    return load_recipe(str(file))


def trained_and_merged(recipe, out):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from afina.export.merged import merge
    from afina.train.loop.run import run
    from afina.train.use.trained import load_trained

    found = {}

    class Looking(Reporter):
        def reached(self, stage, parts):
            ids = torch.arange(3, 261)[None]
            if stage == "ready":
                named = parts["trainer"].model.named_parameters()
                found["trained"] = {n: p.detach().clone() for n, p in named if "trainable_tokens" in n}
            elif stage == "trained":
                with torch.no_grad():
                    found["logits"] = parts["trainer"].model.eval()(input_ids=ids).logits
                named = parts["trainer"].model.named_parameters()
                found["after"] = {n: p.detach().clone() for n, p in named if "trainable_tokens" in n}

    result = run(recipe, Looking())
    loaded = load_trained(result.folder, Reporter())
    merge(loaded, out, overwrite=True)
    whole, own = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    again = load_trained(result.folder, Reporter())
    with torch.no_grad():
        ids = torch.arange(3, 261)[None]
        found |= {"loaded": again.model(input_ids=ids).logits, "merged": whole(input_ids=ids).logits,
                  "ids": own("<odd>n<even>")["input_ids"], "report": result.report}  # fmt: skip
    return found


METHODS = {
    "lora": {"type": "lora", "r": 8, "target_modules": "all-linear"},
    "trainable_tokens": {"type": "trainable_tokens"}, "full": {"type": "full"},
}  # fmt: skip


@pytest.mark.parametrize("head", ["tied", "untied"])
@pytest.mark.parametrize("method", METHODS)
def test_new_tokens_train_and_are_the_same_when_saved_and_merged(method, head, model_folder, untied, child, tmp_path):
    model = model_folder if head == "tied" else untied
    recipe = recipe_of(tmp_path, model, method=METHODS[method], training__max_steps=30)
    found = child(trained_and_merged_or_loaded if method == "full" else trained_and_merged, recipe, tmp_path / "merged")
    assert [i for i in found["ids"] if i >= 259] == [260, 259]
    assert found["logits"].shape[-1] == 261
    assert torch.allclose(found["logits"], found["loaded"], atol=1e-5)
    assert torch.allclose(found["logits"], found["merged"], atol=1e-4)
    assert found["report"]["after"]["loss"] < found["report"]["before"]["loss"]
    if method != "full":
        assert len(found["trained"]) == (1 if head == "tied" else 2)
        assert all(not torch.equal(found["trained"][n], found["after"][n]) for n in found["trained"])


def trained_and_merged_or_loaded(recipe, out):
    from transformers import AutoTokenizer

    from afina.train.loop.run import run
    from afina.train.use.trained import load_trained

    found = {}

    class Looking(Reporter):
        def reached(self, stage, parts):
            if stage == "trained":
                with torch.no_grad():
                    found["logits"] = parts["trainer"].model.eval()(input_ids=torch.arange(3, 261)[None]).logits

    result = run(recipe, Looking())
    with torch.no_grad():
        loaded = load_trained(result.folder, Reporter()).model(input_ids=torch.arange(3, 261)[None]).logits
    ids = AutoTokenizer.from_pretrained(result.folder)("<odd>n<even>")["input_ids"]
    return {**found, "loaded": loaded, "merged": loaded, "ids": ids, "report": result.report}


def test_new_token_starts_as_the_mean_of_what_spells_it(untied):
    from afina.train.base.base_model import load_tokenizer
    from afina.train.recipe.sections import ModelSection
    from afina.train.tasks import named

    section = ModelSection(path=str(untied), new_tokens=TOKENS, dtype="float32")
    tokenizer = load_tokenizer(str(untied), section, Reporter())
    model = named("causal_lm").load(section, str(untied), None, tokenizer)
    spelt = tiny.tokenizer()("<odd>")["input_ids"]
    for weight in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert torch.equal(weight[260], weight[spelt].mean(0))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": {"type": "ia3"}}, "does not train new tokens"),
        ({"model__new_tokens": ["<a>", "<a>"]}, "named twice"),
        ({"task": "kto"}, "cannot train in this task"),
        ({"model__new_tokens": [" "]}, "empty"), ({"model__new_tokens": "<a>"}, r"model\.new_tokens"),
    ],
)  # fmt: skip
def test_mistakes_are_refused(changes, told, model_folder, child, tmp_path):
    if "task" in changes:
        file = tiny.write_task(tmp_path, changes["task"], {"llama": model_folder}, model__new_tokens=TOKENS)
    else:
        file = tiny.write_recipe(tmp_path, model_folder, **{"model__new_tokens": TOKENS, **changes})
    with pytest.raises(AfinaError, match=told):
        child(run_it, load_recipe(str(file)))


def test_adapter_with_the_tokens_goes_on(model_folder, child, tmp_path):
    recipe = recipe_of(tmp_path, model_folder)
    child(run_it, recipe)
    more = recipe.model_copy(deep=True)
    more.model.adapter, more.output.dir = recipe.output.dir, str(tmp_path / "more")
    child(run_it, more)
    config = json.loads((tmp_path / "more" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"model.embed_tokens": [259, 260]}


def run_it(recipe):
    from afina.train.loop.run import run

    run(recipe, Reporter())


def test_tokens_that_the_tokenizer_has_are_told_once(tmp_path, model_folder):
    from afina.train.base.base_model import load_tokenizer
    from afina.train.recipe.sections import ModelSection

    class Heard(Reporter):
        def __init__(self):
            self.warned = []

        def warn(self, text):
            self.warned.append(text)

    heard = Heard()
    load_tokenizer(str(model_folder), ModelSection(path=str(model_folder), new_tokens=["<new>", "a", "<eos>"]), heard)
    (told,) = heard.warned
    assert told.startswith("model.new_tokens: 'a', '<eos>': the tokenizer has them already")
    load_tokenizer(str(model_folder), ModelSection(path=str(model_folder), new_tokens=["<new>"]), heard)
    assert len(heard.warned) == 1
