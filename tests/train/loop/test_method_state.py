"""An interrupted and resumed run ends as the uninterrupted one, also where the method keeps a state of its own."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from .. import tiny

METHODS = {
    "adalora": {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 4, "deltaT": 2},
    "adamss": {"r": 8, "num_subspaces": 3, "use_asa": True, "asa_target_subspaces": 3, "init_warmup": 1,
               "final_warmup": 9, "mask_interval": 5},
}  # fmt: skip
"""AdaLoRA's last pruning is at step 8, AdaMSS's only choice at step 5."""


def resumed_from(recipe, step):
    """Of a run, and of the same run resumed from its checkpoint of that step: what was written, and the method's state
    in the next checkpoint."""
    from afina.train.loop.run import run

    def written():
        config = json.loads((folder / "adapter_config.json").read_text())
        state = load_file(folder / f"checkpoint-{step + 2}" / "method_state.safetensors")
        return {**load_file(folder / "adapter_model.safetensors"), **state}, config.get("rank_pattern")

    folder = run(recipe, Reporter()).folder
    whole = written()
    (folder / "report.json").unlink()
    for later in [p for p in folder.glob("checkpoint-*") if int(p.name.split("-")[1]) > step]:
        shutil.rmtree(later)
    run(recipe, Reporter(), resume=True)
    return whole, written()


@pytest.mark.sampled(2, "steps of one and the same schedule")
@pytest.mark.parametrize(("name", "step"), [("adalora", 4), ("adalora", 8), ("adalora", 10), ("adamss", 2),
                                            ("adamss", 6)])  # fmt: skip
def test_resumed_run_ends_as_the_uninterrupted_one(name, step, tmp_path, model_folder, child):
    file = tiny.write_recipe(tmp_path, model_folder, training__max_steps=12, training__save_steps=2,
                             training__keep_checkpoints=9, training__learning_rate=1e-2,
                             method={"type": name, "target_modules": "all-linear", **METHODS[name]})  # fmt: skip
    (whole, ranks), (resumed, same) = child(resumed_from, load_recipe(str(file)), step)
    assert ranks == same
    assert ranks is None or len({sum(kept) for kept in ranks.values()}) > 1
    assert whole.keys() == resumed.keys()
    parts = {key.split("/")[1] for key in whole if "/" in key}
    assert parts & ({"smoothed", "spread"} if step < 6 else {"kept", "stopped"})
    assert all(torch.equal(whole[n], resumed[n]) for n in whole)
