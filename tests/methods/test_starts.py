"""LoRA's computed starts on disk: what is subtracted is written as ranks r..2r, which every reader understands."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file

import afina
from afina.errors import AfinaError

from ..core.tiny import bits, config, inputs, mlp, nudge, same_bits

TOLERANCE = 1e-5
LAYERS = [f"layers.{i}.{part}" for i in range(3) for part in ("up", "down")]
SUBTRACTING = ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True},
    {"use_dora": True},
    {"rank_pattern": {"up": 3}, "alpha_pattern": {r".*\.1\.down": 5}},
    {"use_rslora": True, "use_dora": True, "rank_pattern": {"up": 3}},
]


def started(name: str, **options: Any) -> Any:
    """A toy model with a nudged adapter of that start."""
    values = config(init_lora_weights=name, **options)
    generator = torch.Generator().manual_seed(0)
    base = mlp()
    shapes = {n: base.get_submodule(n).weight.shape for n in LAYERS}
    if name == "corda":
        draws = {n: torch.randn(64, s[1], generator=generator) for n, s in shapes.items()}
        values.statistics = {n: x.T @ x / 64 for n, x in draws.items()}
    if name == "lora_ga":
        values.statistics = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    return afina.get_peft_model(base, values).eval()


def reference(folder: Path) -> Any:
    """The reference's model of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(mlp(), folder).eval()


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("name", SUBTRACTING)
def test_subtracted_start_is_read_by_the_reference_and_comes_back_here(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = started(name, **options)
    assert torch.allclose(model(inputs()), mlp()(inputs()), atol=1e-5)
    nudge(model)
    out = model(inputs())
    model.save_pretrained(tmp_path)
    assert torch.allclose(reference(tmp_path)(inputs()), out, atol=TOLERANCE)
    loaded = afina.PeftModel.from_pretrained(mlp(), tmp_path)
    assert torch.equal(loaded(inputs()), out)
    assert same_bits(bits(loaded), bits(model))
    assert loaded.peft_config["default"].init_lora_weights == name
    again = afina.PeftModel.from_pretrained(mlp(), tmp_path, is_trainable=True)
    assert again.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()
    assert same_bits(bits(loaded.unload()), bits(mlp()))


@pytest.mark.parametrize("name", SUBTRACTING)
def test_file_of_a_subtracted_start_is_plain_lora_of_twice_the_rank(name: str, tmp_path: Path) -> None:
    nudge(started(name)).save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (values["init_lora_weights"], values["r"], values["lora_alpha"]) == (True, 4, 6)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert tensors["base_model.model.layers.0.up.lora_A.weight"].shape == (4, 8)
    assert tensors["base_model.model.layers.0.up.lora_B.weight"].shape == (16, 4)


@pytest.mark.parametrize("name", SUBTRACTING)
def test_base_keeps_its_bits_under_every_start(name: str) -> None:
    model = started(name)
    base = mlp().requires_grad_(False)(inputs())
    with model.disable_adapter():
        assert torch.equal(model(inputs()), base)
    model.merge_adapter()
    model.unmerge_adapter()
    assert same_bits(bits(model.unload()), bits(mlp()))


@pytest.mark.parametrize("name", SUBTRACTING)
def test_two_subtracted_adapters_do_not_disturb_each_other(name: str) -> None:
    model = nudge(started(name))
    out = model(inputs())
    model.add_adapter("second", config(init_lora_weights="pissa"))
    assert torch.equal(model(inputs()), out)
    model.set_adapter("second")
    assert torch.allclose(model(inputs()), mlp()(inputs()), atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_the_references_file_of_rank_r_is_read_here(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(
            mlp(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"], init_lora_weights=name, **options)
        ).eval()
        nudge(theirs)
        out = theirs(inputs())
        theirs.save_pretrained(tmp_path)
    loaded = afina.PeftModel.from_pretrained(mlp(), tmp_path)
    assert torch.allclose(loaded(inputs()), out, atol=TOLERANCE)
    loaded.save_pretrained(tmp_path / "again")
    assert torch.allclose(reference(tmp_path / "again")(inputs()), out, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["pissa", "olora", "pissa_niter_4"])
def test_the_references_converted_file_is_read_here(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(
            mlp(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"], init_lora_weights=name)
        ).eval()
        theirs.peft_config["default"].init_lora_weights = True
        theirs.save_pretrained(tmp_path / "start")
        theirs.peft_config["default"].init_lora_weights = name
        nudge(theirs)
        out = theirs(inputs())
        theirs.save_pretrained(tmp_path / "end", path_initial_model_for_weight_conversion=tmp_path / "start")
    loaded = afina.PeftModel.from_pretrained(mlp(), tmp_path / "end")
    assert torch.allclose(loaded(inputs()), out, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["pissa", "olora", "lora_ga"])
def test_file_of_a_config_that_no_longer_names_its_start_has_it(name: str, tmp_path: Path) -> None:
    model = nudge(started(name)).eval()
    model.peft_config["default"].init_lora_weights = True  # as the reference asks for before the start is saved
    model.save_pretrained(tmp_path)
    assert model.peft_config["default"].init_lora_weights is True
    out = model(inputs())
    assert not torch.allclose(out, mlp()(inputs()), atol=1e-3)
    loaded = afina.PeftModel.from_pretrained(mlp(), tmp_path)
    assert torch.equal(loaded(inputs()), out)
    assert loaded.peft_config["default"].r == 2
    assert torch.allclose(reference(tmp_path)(inputs()), out, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["pissa_niter_4", "corda", "lora_ga"])
def test_file_whose_start_cannot_be_computed_again_is_refused(name: str, tmp_path: Path) -> None:
    nudge(afina.get_peft_model(mlp(), config())).save_pretrained(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    from safetensors.torch import save_file

    (tmp_path / "adapter_model.safetensors").unlink()
    save_file(state, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    (tmp_path / "adapter_config.json").write_text(json.dumps({**values, "init_lora_weights": name}))
    base = mlp()
    with pytest.raises(AfinaError) as caught:
        afina.PeftModel.from_pretrained(base, tmp_path)
    assert len(str(caught.value).splitlines()) <= 4
    assert same_bits(bits(base), bits(mlp()))


@pytest.mark.parametrize("name", ["gaussian", "orthogonal", "mica", True, False])
def test_plain_starts_are_exchanged_as_they_are(name: Any, tmp_path: Path) -> None:
    model = nudge(afina.get_peft_model(mlp(), config(init_lora_weights=name))).eval()
    model.save_pretrained(tmp_path / "mine")
    assert torch.allclose(reference(tmp_path / "mine")(inputs()), model(inputs()), atol=TOLERANCE)
    assert torch.equal(afina.PeftModel.from_pretrained(mlp(), tmp_path / "mine")(inputs()), model(inputs()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(
            mlp(), peft.LoraConfig(r=2, lora_alpha=3, target_modules=["up", "down"], init_lora_weights=name)
        ).eval()
        nudge(theirs).save_pretrained(tmp_path / "theirs")
    loaded = afina.PeftModel.from_pretrained(mlp(), tmp_path / "theirs")
    assert torch.allclose(loaded(inputs()), theirs(inputs()), atol=TOLERANCE)
    assert model.get_nb_trainable_parameters() == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize("name", ["OLoRA", "Gaussian", "MiCA"])
def test_names_of_starts_are_taken_as_the_reference_takes_them(name: str) -> None:
    assert afina.LoraConfig(init_lora_weights=name).init_lora_weights == name.lower()  # type: ignore[arg-type]
