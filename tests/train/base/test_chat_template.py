from __future__ import annotations

import pytest

from afina.errors import RecipeError
from afina.train.base.base_model import load_tokenizer
from afina.train.recipe.sections import ModelSection
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny

TEMPLATE = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"


def loaded(model_folder, file):
    return load_tokenizer(str(model_folder), ModelSection(path=str(model_folder), chat_template=str(file)), Reporter())


def test_template_of_a_file_takes_the_place_of_the_tokenizers(model_folder, tmp_path):
    (tmp_path / "t.jinja").write_text(TEMPLATE)
    tokenizer = loaded(model_folder, tmp_path / "t.jinja")
    chat = [{"role": "user", "content": "a"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "[a]>"


@pytest.mark.parametrize(("text", "told"), [("{% for %}", "Expected"), (None, "No such file"), (b"\xff", "utf-8")])
def test_what_is_no_template_is_told_with_its_file(text, told, model_folder, tmp_path):
    file = tmp_path / "t.jinja"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RecipeError, match=r"(?s)not a chat template.*t\.jinja|t\.jinja.*not a chat template") as caught:
        loaded(model_folder, file)
    assert told in str(caught.value)


def prompts(recipe, file):
    from afina.train.loop.run import run
    from afina.train.use.trained import load_trained

    folder = run(recipe, Reporter()).folder
    file.unlink()
    return load_trained(folder, Reporter()).prompter.wrap("a")


@pytest.mark.whole
def test_trained_adapter_keeps_the_template_without_its_file(model_folder, child, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATE)
    recipe = load_recipe(str(tiny.write_recipe(tmp_path, model_folder, model__chat_template=str(file))))
    assert child(prompts, recipe, file) == "[a]>"


def test_flat_key_still_means_whether_there_is_one(model_folder, tmp_path):
    file = tiny.write_recipe(tmp_path, model_folder)
    assert load_recipe(str(file), [("chat_template", "false")]).data.chat_template is False
