"""Runs on a tensor-parallel base: the steps, files and checkpoints of one process."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file

from afina.errors import RecipeError

from ...reference import cuts_here
from .test_sharing import looked, recipe_in, resumed
from .test_together import written

pytestmark = cuts_here


@pytest.mark.whole
def test_a_cut_model_trains_answers_and_goes_on_as_a_whole_one(model_folder, child, together, tmp_path):
    more = {"training__gradient_checkpointing": True, "evaluation__every": 2, "training__max_grad_norm": 0.1}
    folder, report, _, _ = child(looked, recipe_in(tmp_path / "one", model_folder, **more))
    done = together(looked, recipe_in(tmp_path / "two", model_folder, distributed="tp", **more))
    assert not [d for d in done if isinstance(d, Exception)], done
    (cut, told, notes, (every, sharded, here)), _ = done
    assert sharded > every / 2
    assert here < 60
    assert any("14 of 14 adapters on cut layers are cut along" in note for note in notes), notes
    (steps, _), (again, _) = written(folder), written(cut)
    for key in ("loss", "grad_norm", "learning_rate"):
        assert [step[key] for step in again] == pytest.approx([step[key] for step in steps], rel=1e-3)
    for stage in ("before", "after"):
        assert told[stage]["loss"] == pytest.approx(report[stage]["loss"], rel=1e-3)
        assert told[stage]["accuracy"] == report[stage]["accuracy"]


@pytest.mark.whole("what is written is compared above")
def test_a_cut_run_goes_on_in_one_process_and_the_other_way_round(model_folder, child, together, tmp_path):
    runs, found = {"one": lambda *a: [child(*a)], "two": together}, []
    for first, then in (("one", "one"), ("two", "one"), ("one", "two")):
        name, how = f"{first}-{then}", {"evaluation__enabled": False}
        kinds = {"one": {}, "two": {"distributed": "tp"}}
        folder = runs[first](looked, recipe_in(tmp_path / name, model_folder, **how, **kinds[first]))[0][0]
        (folder / "report.json").unlink()
        shutil.rmtree(folder / "checkpoint-4")
        done = runs[then](resumed, recipe_in(tmp_path / name, model_folder, **how, **kinds[then]))
        assert not [d for d in done if isinstance(d, Exception)], done
        found.append(load_file(done[0] / "adapter_model.safetensors"))
    for other in found[1:]:
        assert max(float((other[n] - t).abs().max()) for n, t in found[0].items()) < 1e-3


@pytest.mark.parametrize(
    ("key", "changes"),
    [("method.type", {"method": {"type": "full"}}), ("model.quantize", {"model__quantize": "nf4"}),
     ("num_key_value_heads", {})],
)  # fmt: skip
def test_what_cannot_be_cut_is_refused_before_anything_is_loaded(key, changes, model_folder, together, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(model_folder, odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 1}))
    for error in together(looked, recipe_in(tmp_path / "run", odd, distributed="tp", **changes)):
        assert isinstance(error, RecipeError)
        assert key in str(error)
