"""What `afina inspect` sees of an adapter is what was trained."""

from __future__ import annotations

import json

import pytest

from afina.errors import CheckpointError
from afina.train.use import look_adapter

from .. import tiny


def trained(path):
    from afina.train.loop.run import run
    from afina.train.recipe.settings import load_recipe
    from afina.train.report.events import Reporter

    result = run(load_recipe(str(path)), Reporter())
    return result.folder, result.report["parameters"]["trainable"]


def fits(adapter, base):
    return look_adapter.check_fit(adapter, str(base))


@pytest.fixture(scope="module", params=["causal_lm", "sequence_classification"])
def adapter(request, tmp_path_factory, model_folder, child):
    folder = tmp_path_factory.mktemp("adapter")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AFINA_CACHE", str(folder / "cache"))
        recipe = tiny.write_recipe(folder, model_folder, task=request.param, training__max_steps=2)
        return child(trained, recipe)


def test_adapter_is_told_as_it_is(adapter, model_folder):
    folder, trainable = adapter
    found = look_adapter.look(folder)
    assert (found.method, found.base) == ("LORA", str(model_folder))
    assert found.parameters == trainable
    assert found.dtypes == {"F32": found.tensors}
    assert found.size_bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert "r" not in found.settings  # 8 is the default
    assert any("2 steps" in line for line in found.origin)
    assert any("LlamaFor" in line for line in found.origin)


def test_adapter_fits_the_base_that_it_was_trained_on(adapter, model_folder, child):
    assert child(fits, adapter[0], model_folder) == look_adapter.look(adapter[0]).tensors


def test_adapter_does_not_fit_another_base(adapter, model_folder, tmp_path, child):
    other = tmp_path / "other"
    other.mkdir()
    config = json.loads((model_folder / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 64, "head_dim": 16}))
    with pytest.raises(CheckpointError) as caught:
        child(fits, adapter[0], other)
    assert len(str(caught.value).splitlines()) <= 4


def test_adapters_of_images_and_sounds_are_fitted_to_a_base_of_their_kind(tmp_path):
    from transformers import AutoModelForAudioClassification

    from afina import LoraConfig, get_peft_model

    from .. import tiny_sounds

    base = tiny_sounds.write_wav2vec2(tmp_path / "base")
    model = AutoModelForAudioClassification.from_pretrained(base, num_labels=5)
    config = LoraConfig(target_modules=["q_proj"], modules_to_save=["projector", "classifier"])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    assert look_adapter.check_fit(tmp_path / "adapter", str(base)) == 2 * 2 + 4
