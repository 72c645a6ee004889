"""X-LoRA: two passes, a mixture for every token, and experts that are adapters of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import afina
from afina.core.hosts.host import hosts
from afina.errors import AfinaError, AfinaWarning, CheckpointError, ConfigError, NameTakenError, TargetError
from afina.methods.reparam.lora import Lora

from .experts import IDS, base, logits, mixed, save_expert

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
CASES: list[dict[str, Any]] = [
    {},
    {"layerwise_scalings": True, "xlora_depth": 3, "xlora_size": 8},
    {"xlora_depth": 2, "xlora_size": 5, "xlora_dropout_p": 0.0, "softmax_temperature": 0.3},
    {"top_k_lora": 2, "global_scaling_weight": 2.0},
    {"top_k_lora": 2, "enable_softmax": False, "enable_softmax_topk": True, "scaling_pass_value": 0.5},
    {"enable_softmax": False, "scaling_pass_value": 1.0},
    {"use_trainable_adapters": True},
]


def classifier(model: Any) -> dict[str, torch.Tensor]:
    """The classifier's tensors in the reference, whose own `save_pretrained` loses some of them."""
    return {k: v.clone() for k, v in model.state_dict().items() if "internal_xlora_classifier" in k}


@pytest.mark.parametrize("options", CASES, ids=str)
def test_outputs_parameters_and_scalings_are_the_references(options: dict[str, Any], experts: dict[str, str]) -> None:
    mine, theirs = mixed(experts, **options), mixed(experts, REFERENCE, **options)
    expected = logits(theirs)
    assert (logits(mine) - expected).abs().max() < 1e-5
    assert (expected - logits(base())).abs().max() > 1e-2
    assert torch.allclose(mine.get_latest_scalings(), theirs.base_model.get_latest_scalings(), atol=1e-5)
    assert mine.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_files_of_either_library_are_read_by_the_other(
    options: dict[str, Any], experts: dict[str, str], tmp_path: Path
) -> None:
    mine = mixed(experts, **options)
    mine.save_pretrained(tmp_path / "mine")
    read = REFERENCE.PeftModel.from_pretrained(base(), tmp_path / "mine").eval()
    assert (logits(read) - logits(mine)).abs().max() < 1e-5
    assert sorted(load_file(tmp_path / "mine" / "adapter_model.safetensors")) == sorted(classifier(read))

    theirs = mixed(experts, REFERENCE, **options)
    theirs.save_pretrained(tmp_path / "theirs")
    save_file(classifier(theirs), tmp_path / "theirs" / "adapter_model.safetensors")
    read = afina.PeftModel.from_pretrained(base(), tmp_path / "theirs", adapters=experts)
    assert (logits(read) - logits(theirs)).abs().max() < 1e-5


def test_file_of_the_reference_without_its_classifier_is_refused(experts: dict[str, str], tmp_path: Path) -> None:
    mixed(experts, REFERENCE).save_pretrained(tmp_path)
    assert not load_file(tmp_path / "adapter_model.safetensors")
    plain = base()
    with pytest.raises(CheckpointError, match="missing"):
        afina.PeftModel.from_pretrained(plain, tmp_path, adapters=experts)
    assert not list(hosts(plain))
    assert torch.equal(logits(plain), logits(base()))


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_is_the_references(beams: int, experts: dict[str, str]) -> None:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "num_beams": beams}
    mine = mixed(experts).generate(input_ids=IDS, **options)
    assert torch.equal(mine, mixed(experts, REFERENCE).generate(input_ids=IDS, **options))


def test_saved_folder_holds_everything_that_loading_needs(experts: dict[str, str], tmp_path: Path) -> None:
    named = {name: shutil.copytree(folder, tmp_path / f"from-{name}") for name, folder in
             zip(("maths", "prose", "law"), experts.values(), strict=True)}  # fmt: skip
    model = mixed({n: str(f) for n, f in named.items()}, layerwise_scalings=True)
    model.save_pretrained(tmp_path / "all")
    for folder in named.values():
        shutil.rmtree(folder)
    read = afina.PeftModel.from_pretrained(base(), tmp_path / "all")
    assert torch.equal(logits(read), logits(model))
    again = afina.get_peft_model(base(), afina.LoraConfig(target_modules=["o_proj"]))
    again.load_adapter(tmp_path / "all", "mixture")
    again.set_adapter("mixture")
    assert torch.equal(logits(again), logits(model))


def test_experts_have_one_order_however_they_are_given() -> None:
    names = afina.XLoraConfig(adapters=dict.fromkeys(["10", "law", "2", "art"], "")).adapters
    assert list(names) == ["2", "10", "art", "law"]


def test_paths_in_a_file_are_not_followed(experts: dict[str, str], tmp_path: Path) -> None:
    mixed(experts).save_pretrained(tmp_path, selected_adapters=["default"])
    assert Path(experts["0"]).is_dir()
    with pytest.raises(CheckpointError, match="adapters="):
        afina.PeftModel.from_pretrained(base(), tmp_path)
    assert afina.PeftModel.from_pretrained(base(), tmp_path, adapters=experts).active_adapters == ["default"]


def test_training_reaches_exactly_the_classifier(experts: dict[str, str]) -> None:
    model = mixed(experts).train()
    model(input_ids=IDS).logits.square().sum().backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()} == trained
    assert trained
    assert all("internal_xlora_classifier" in n for n in trained)


def test_trainable_experts_train_along(experts: dict[str, str]) -> None:
    model = mixed(experts, use_trainable_adapters=True)
    model.set_adapter("0")
    model.set_adapter("default")
    model(input_ids=IDS).logits.square().sum().backward()
    touched = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert touched == {n for n, p in model.named_parameters() if p.requires_grad}
    assert any(".adapters.2.lora_A" in n for n in touched)


def test_experts_outlive_the_router_but_not_the_other_way_round(experts: dict[str, str]) -> None:
    model = mixed(experts)
    with pytest.raises(NameTakenError, match="routes"):
        model.delete_adapter("0")
    with pytest.warns(AfinaWarning, match="active now"):
        model.delete_adapter("default")
    assert not model.get_base_model()._forward_pre_hooks
    model.delete_adapter("0")
    assert model.active_adapters == ["1"]


def test_experts_on_the_model_already_are_routed_among(experts: dict[str, str]) -> None:
    model = afina.PeftModel.from_pretrained(base(), experts["0"], adapter_name="0")
    model.load_adapter(experts["1"], "1")
    model.add_adapter("mixture", afina.XLoraConfig(adapters={"0": "", "1": experts["1"]}))
    model.set_adapter("mixture")
    assert logits(model).isfinite().all()
    assert model.get_latest_scalings().shape == (2, 8, 4, 2)
    with pytest.raises(NameTakenError, match="another adapter of this name"):
        model.add_adapter("other", afina.XLoraConfig(adapters={"0": experts["1"]}))
    assert list(model.peft_config) == ["0", "1", "mixture"]


def test_failed_injection_leaves_the_model_alone(experts: dict[str, str], tmp_path: Path) -> None:
    dora = save_expert(tmp_path / "dora", 7, use_dora=True)
    attempts: list[tuple[dict[str, Any], type[AfinaError]]] = [
        ({"adapters": {**experts, "3": str(tmp_path / "nowhere")}}, CheckpointError),
        ({"adapters": {**experts, "3": dora}}, TargetError),
        ({"adapters": experts, "hidden_size": 17}, ConfigError),
        ({}, ConfigError),
    ]
    for options, error in attempts:
        plain = base()
        with pytest.raises(error):
            afina.get_peft_model(plain, afina.XLoraConfig(**options))
        assert not list(hosts(plain))
        assert all(p.requires_grad for p in plain.parameters())
    for options in ({"top_k_lora": 4}, {"enable_softmax_topk": True}, {"softmax_temperature": 0.0}, {"xlora_depth": 0}):
        with pytest.raises(ConfigError):
            afina.XLoraConfig(adapters=experts, **options)


def test_bfloat16_base_mixes_in_float32(experts: dict[str, str]) -> None:
    config = afina.XLoraConfig(adapters=dict(experts))
    half = afina.PeftModel.from_pretrained(base().bfloat16(), experts["0"], adapter_name="0", allow_other_base=True)
    half.load_adapter(experts["1"], "1", allow_other_base=True)
    half.load_adapter(experts["2"], "2", allow_other_base=True)
    config.adapters = dict.fromkeys(experts, "")
    half.add_adapter("mixture", config)
    half.set_adapter("mixture")
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    out = half(input_ids=IDS).logits
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in half.parameters() if p.requires_grad)


def test_embeddings_can_be_routed_too(tmp_path: Path) -> None:
    folders = {str(i): save_expert(tmp_path / str(i), i, target_modules=["embed_tokens", "v_proj"]) for i in range(2)}
    mine, theirs = mixed(folders), mixed(folders, REFERENCE)
    assert (logits(mine) - logits(theirs)).abs().max() < 1e-5
    assert (logits(mine) - logits(base())).abs().max() > 1e-2


def test_lora_gives_the_update_that_is_weighed(experts: dict[str, str]) -> None:
    model = afina.PeftModel.from_pretrained(base(), experts["0"])
    host = next(h for _, h in hosts(model))
    adapter, x = host.adapter("default"), torch.randn(2, 3, 16)
    assert isinstance(adapter, Lora)
    with torch.no_grad():
        assert torch.allclose(host(x) - host.base_layer(x), adapter.update(host.base, x), atol=1e-6)
