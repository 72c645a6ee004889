"""QLoRA from a recipe: a tiny model, each storage, from training to the merged model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from afina.core.layers.storages import Bits4Weight, quantised_weight
from afina.errors import RecipeError
from afina.train.recipe.settings import load_recipe
from afina.train.report.events import Reporter

from ..child import command
from ..tiny import write_model, write_recipe

pytest.importorskip("bitsandbytes")
pytest.importorskip("torchao")
STORAGES = ("nf4", "fp4", "int8", "int8wo", "int4wo")


class Notes(Reporter):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def trained(recipe):
    from afina.train.loop.run import run

    notes = Notes()
    return run(recipe, notes), notes.said


@pytest.fixture(scope="module")
def runs(tmp_path_factory, child):
    root = tmp_path_factory.mktemp("runs")
    model, done = write_model(root / "model"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(root / "cache"))
        for storage in STORAGES:
            (root / storage).mkdir()
            done[storage] = child(trained, load_recipe(str(write_recipe(root / storage, model, quantize=storage))))
    return done


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


@pytest.mark.parametrize("storage", STORAGES)
def test_training_on_the_storage_lowers_the_loss(runs, storage):
    result, said = runs[storage]
    assert result.after.loss < 0.8 * result.before.loss
    assert any(line.startswith("plan:") and f"base stored in {storage}" in line for line in said)


@pytest.mark.parametrize("storage", STORAGES)
def test_file_is_a_plain_lora(runs, storage):
    folder = runs[storage][0].folder
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert "quant" not in json.dumps({k: v for k, v in config.items() if k != "use_qalora" and v})
    held = load_file(folder / "adapter_model.safetensors")
    assert {k.rsplit(".", 2)[-2] for k in held} == {"lora_A", "lora_B"}
    assert all(t.dtype == torch.float32 for t in held.values())


@pytest.mark.parametrize("storage", STORAGES)
def test_adapter_is_used_on_the_storage_it_was_trained_on(runs, storage):
    from afina.train.use.trained import load_trained

    folder = runs[storage][0].folder
    used = load_trained(folder, Reporter())
    assert used.recipe.model.quantize == used.trained_on == storage
    found = [w for m in used.model.modules() if (w := quantised_weight(m)) is not None]
    assert len(found) == 14  # two blocks of seven layers; the head is not quantised
    dense = load_trained(folder, Reporter(), "none")
    assert not any(quantised_weight(m) for m in dense.model.modules())
    assert dense.trained_on == storage
    difference = (logits(used.model) - logits(dense.model)).norm() / logits(dense.model).norm()
    # The weights are random; four bits change the logits of such a model by half, and those of another model by 1.4.
    assert 0 < difference < (0.1 if storage.startswith("int8") else 0.8)


def test_layers_that_the_cpu_kernel_cannot_pack_are_run_without_it(runs):
    from afina.train.use.trained import load_trained

    used = load_trained(runs["nf4"][0].folder, Reporter())
    logits(used.model.eval())  # 16 outputs; bitsandbytes 0.50 alone stops with an assertion where it packs
    narrow = [w for m in used.model.modules() if isinstance(w := quantised_weight(m), Bits4Weight)]
    assert any(w.out_features % 32 for w in narrow)
    assert not any(w.is_packed for w in narrow if w.out_features % 32)


def test_merge_takes_the_dense_base_and_tells_the_difference(runs, tmp_path, child):
    code, out, _ = child(command, "merge", runs["nf4"][0].folder, tmp_path / "merged")
    assert code == 0
    assert "against the adapter on the nf4 base that it was trained on" in out
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config
    held = load_file(tmp_path / "merged" / "model.safetensors")
    assert held["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32


def test_full_fine_tuning_of_a_quantised_base_is_refused(tmp_path, child):
    recipe = write_recipe(tmp_path, write_model(tmp_path / "model"), quantize="nf4", method={"type": "full"})
    with pytest.raises(RecipeError, match="quantised weights cannot train"):
        child(trained, load_recipe(str(recipe)))


def test_unknown_storage_is_refused_with_the_known_ones(runs):
    from afina.train.use.trained import load_trained

    with pytest.raises(RecipeError, match="nf4, fp4, int8"):
        load_trained(runs["nf4"][0].folder, Reporter(), "nf5")
