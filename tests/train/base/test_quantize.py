"""QLoRA from a recipe: a tiny model, each storage, from training to the merged model."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from afina.core.layers.storages import Bits4Weight, quantised_weight
from afina.devices.found import Device
from afina.errors import RecipeError
from afina.train.base.quantize import check, in_fp8
from afina.train.recipe.sections import ModelSection
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


# -- products in float8 -----------------------------------------------------------------------------------------------


def bfloat16_llama(width=32):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=width, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    return LlamaForCausalLM(config).to(torch.bfloat16)


def test_float8_products_are_near_those_of_bfloat16_and_train_an_adapter_alone():
    import afina

    ids, found = torch.arange(3, 35).view(2, 16), []
    for convert in (lambda m: m, lambda m: in_fp8(m, emulate=True)):
        model = convert(bfloat16_llama())
        before = {n: p.clone() for n, p in model.named_parameters()}
        lora = afina.LoraConfig(init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM")
        adapted = afina.get_peft_model(model, lora).train()
        out = adapted(input_ids=ids, labels=ids)
        out.loss.backward()
        found.append((out.logits.detach().float(), [p.grad for p in adapted.parameters() if p.grad is not None]))
        assert all("lora" in n for n, p in adapted.named_parameters() if p.requires_grad)
        assert all(torch.equal(before[n], p) for n, p in adapted.unload().named_parameters())
    (plain, expected), (few, gradients) = found
    assert 1e-3 < float((few - plain).norm() / plain.norm()) < 0.1
    assert len(gradients) == len(expected) == 28
    for a, b in zip(gradients, expected, strict=True):
        assert float((a - b).norm() / b.norm()) < 0.4


def test_float8_is_refused_in_words_where_it_cannot_be():
    section = ModelSection(path="x", quantize="fp8")
    check(section, Device("cuda:0", "NVIDIA H100", capability=(9, 0)))
    for device in (Device("cpu", "a processor"), Device("cuda:0", "NVIDIA A100", capability=(8, 0))):
        with pytest.raises(RecipeError, match="need an NVIDIA GPU of Hopper or newer") as caught:
            check(section, device)
        assert f"fp8 on {device.name} ({device.title})" in str(caught.value)
    with pytest.raises(RecipeError, match="made of bfloat16"):
        in_fp8(bfloat16_llama().float(), emulate=True)
    with pytest.raises(RecipeError, match=r"do not divide.*"):
        in_fp8(bfloat16_llama(40), emulate=True)
