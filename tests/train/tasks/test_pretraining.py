from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from afina.errors import DataError
from afina.train.data.prompts import Prompter
from afina.train.data.rows import Rows
from afina.train.recipe.sections import DataSection
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter
from afina.train.tasks import named
from afina.train.tasks.pretraining import pieces

from .. import tiny


def encoded(texts, **data):
    rows = Rows(Path("x"), [{"text": text} for text in texts], list(range(1, len(texts) + 1)))
    prompter = Prompter(DataSection(train="", **data), tiny.tokenizer())
    return named("pretraining").encode(rows, prompter, None, 259)


@pytest.mark.parametrize("length", [2, 3, 8, 9, 15, 16, 100])
def test_every_token_but_the_first_is_predicted_once(length):
    ids = list(range(length))
    made = list(pieces(ids, 8))
    assert all(2 <= len(piece) <= 8 for piece in made)
    assert [token for piece in made for token in piece[1:]] == ids[1:]


def test_document_ends_and_its_pieces_are_of_one_row():
    out = encoded(["a" * 20, "b"], max_length=8)
    assert out.source == [0, 0, 0, 1]
    assert out.items[-1]["input_ids"][-1] == tiny.tokenizer().eos_token_id
    assert out.items[-1]["labels"][0] == -100
    assert out.items[-1]["labels"][1:] == out.items[-1]["input_ids"][1:]


def test_documents_without_a_token_to_predict_are_counted_or_refused():
    assert encoded(["", "ab"]).masked == 1
    with pytest.raises(DataError, match="no document has a token"):
        encoded([""])


def alone(recipe):
    """The held-out loss as reported, and as the exponent of a perplexity over the tokens of all documents."""
    from afina.train.loop.run import run
    from afina.train.use.trained import load_trained

    result = run(recipe, Reporter())
    trained = load_trained(result.folder, Reporter())
    total = count = 0
    for line in Path(recipe.data.eval).read_text().splitlines():
        import json

        ids = torch.tensor([tiny.tokenizer()(json.loads(line)["text"])["input_ids"] + [1]])
        with torch.no_grad():
            logits = trained.model(input_ids=ids).logits[0, -ids.shape[1] : -1]
        total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        count += ids.shape[1] - 1
    return result.report["after"]["loss"], total / count


@pytest.mark.parametrize("method", ["lora", "prompt_tuning"])
def test_held_out_loss_is_the_mean_over_tokens(method, models, child, tmp_path):
    own = {"type": method} if method != "lora" else {"type": "lora", "target_modules": "all-linear"}
    file = tiny.write_task(tmp_path, "pretraining", models, evaluation__batch_size=4, method=own)
    reported, expected = child(alone, load_recipe(str(file)))
    assert reported == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(reported)


def continued(recipe):
    from afina.train.loop.run import run
    from afina.train.use.trained import load_trained

    trained = load_trained(run(recipe, Reporter()).folder, Reporter())
    return trained.task.told(trained, "n4 is ev", 4)


@pytest.mark.whole
def test_text_goes_on_as_it_was_learnt(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "pretraining", models, training__max_steps=200, training__packing=True)
    assert child(continued, load_recipe(str(file))).startswith("en")
