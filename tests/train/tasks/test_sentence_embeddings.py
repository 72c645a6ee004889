from __future__ import annotations

import json

import pytest
import torch

from afina.errors import AfinaError
from afina.train.data.rows import Rows
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny
from .alignment.test_preference import with_parts


def against_sentence_transformers(recipe):
    """Embeddings of the library's own mean pooling of the merged model, and ours."""
    from pathlib import Path

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    from afina.export.merged import merge
    from afina.train.loop.run import run
    from afina.train.use.predictions import predict
    from afina.train.use.trained import load_trained

    folder = run(recipe, Reporter()).folder
    trained = load_trained(folder, Reporter())
    rows = Rows(Path("x"), [{"text": t} for t in ("n1", "a longer text")], [1, 2])
    ours = [row["embedding"] for row in predict(trained, rows, Reporter(), batch_size=2).rows]
    told = trained.task.told(trained, "n1", 4)
    out = folder.parent / "merged"
    merge(trained, out, overwrite=True)
    backbone = Transformer(str(out))
    theirs = SentenceTransformer(modules=[backbone, Pooling(backbone.get_embedding_dimension()), Normalize()])
    return ours, theirs.encode(["n1", "a longer text"]).tolist(), told


def test_merged_model_embeds_in_sentence_transformers_as_here(models, child, tmp_path):
    recipe = load_recipe(str(tiny.write_task(tmp_path, "embeddings", models)))
    ours, theirs, told = child(against_sentence_transformers, recipe)
    assert torch.allclose(torch.tensor(ours), torch.tensor(theirs), atol=1e-4)
    assert [float(value) for value in told.split()] == pytest.approx(ours[0], abs=1e-4)


def test_rows_with_negatives_are_told_apart_from_them(models, child, tmp_path):
    file = tiny.write_task(tmp_path, "embeddings", models, training__max_steps=40)
    for name in ("rows", "held-out"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        text = "".join(json.dumps({**row, "negative": row["anchor"]}) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    result, keys = child(with_parts, load_recipe(str(file)), places)
    assert "negative_input_ids" in keys
    assert result.after.loss < result.before.loss


def places(parts):
    return set(parts["trainer"].data_collator(parts["data"].train.items[:2]))


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"training__batch_size": 1}, "batch of one row"), ({"data__train": "OTHER"}, "no column 'anchor'")],
)
def test_mistakes_are_refused(changes, told, models, child, tmp_path):
    changes = {k: str(tiny.write_rows(tmp_path / "o.jsonl", 4)) if v == "OTHER" else v for k, v in changes.items()}
    with pytest.raises(AfinaError, match=told):
        child(with_parts, load_recipe(str(tiny.write_task(tmp_path, "embeddings", models, **changes))), len)


def without_the_package(recipe):
    from afina.train.tasks import sentence_embeddings as embeddings

    known = embeddings.find_spec
    embeddings.find_spec = lambda name: None
    try:
        return with_parts(recipe, len)
    finally:
        embeddings.find_spec = known


def test_missing_package_is_told(models, child, tmp_path):
    with pytest.raises(AfinaError, match=r"(?s)sentence-transformers is missing.*afina\[embeddings\]"):
        child(without_the_package, load_recipe(str(tiny.write_task(tmp_path, "embeddings", models))))
