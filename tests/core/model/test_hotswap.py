from __future__ import annotations

import pytest
import torch
from torch import nn

from afina import (
    CheckpointError,
    ConfigError,
    IA3Config,
    LoraConfig,
    MergeError,
    NameTakenError,
    PeftModel,
    get_peft_model,
    hotswap_adapter,
    prepare_model_for_compiled_hotswap,
)

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(5))


def base():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))


def saved(folder, seed=1, targets=("0", "2"), **fields):
    torch.manual_seed(seed)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": list(targets), "init_lora_weights": False, **fields}
    )
    model = get_peft_model(base(), config)
    model.save_pretrained(folder)
    return model(X).detach()


def test_swapped_adapter_is_the_file_and_memory_stays(tmp_path):
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b", seed=2, lora_alpha=3)
    model = PeftModel.from_pretrained(base(), tmp_path / "a")
    where = [p.data_ptr() for p in model.parameters()]
    assert torch.equal(model(X), first)
    hotswap_adapter(model, tmp_path / "b", "default")
    assert torch.allclose(model(X), second, atol=1e-6)
    assert [p.data_ptr() for p in model.parameters()] == where
    hotswap_adapter(model, tmp_path / "a", "default")
    assert torch.allclose(model(X), first, atol=1e-6)


def test_other_ranks_and_scalings_compile_once(tmp_path):
    outs = [saved(tmp_path / str(r), seed=r, r=r, lora_alpha=5 * r) for r in (2, 6, 4)]
    model = PeftModel.from_pretrained(base(), tmp_path / "2")
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    compiled_times = []

    def backend(graph, inputs):
        compiled_times.append(1)
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(model.get_base_model(), backend=backend)
    with torch.no_grad():
        for r, out in zip((2, 6, 4), outs, strict=True):
            hotswap_adapter(model, tmp_path / str(r), "default")
            assert torch.allclose(compiled(X), out, atol=1e-5)
    assert len(compiled_times) == 1


def test_padded_adapter_is_saved_with_its_own_rank(tmp_path):
    saved(tmp_path / "2", r=2)
    out = saved(tmp_path / "3", seed=3, r=3)
    model = PeftModel.from_pretrained(base(), tmp_path / "2")
    prepare_model_for_compiled_hotswap(model, target_rank=8)
    hotswap_adapter(model, tmp_path / "3", "default")
    model.save_pretrained(tmp_path / "again")
    again = PeftModel.from_pretrained(base(), tmp_path / "again")
    assert again.peft_config["default"].r == 3
    assert torch.allclose(again(X), out, atol=1e-6)


def test_layers_that_the_new_adapter_lacks_fall_silent(tmp_path):
    saved(tmp_path / "both")
    out = saved(tmp_path / "one", seed=3, targets=("0",))
    model = PeftModel.from_pretrained(base(), tmp_path / "both")
    hotswap_adapter(model, tmp_path / "one", "default")
    assert torch.allclose(model(X), out, atol=1e-6)


def test_larger_rank_takes_new_memory_under_the_same_parameters(tmp_path):
    saved(tmp_path / "a", r=2)
    out = saved(tmp_path / "b", seed=2, r=8, lora_alpha=3)
    model = PeftModel.from_pretrained(base(), tmp_path / "a", is_trainable=True)
    before = list(model.parameters())
    hotswap_adapter(model, tmp_path / "b", "default")
    assert torch.allclose(model(X), out, atol=1e-6)
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
    assert model.peft_config["default"].r == 8
    model(X).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.save_pretrained(tmp_path / "again")
    assert torch.allclose(PeftModel.from_pretrained(base(), tmp_path / "again")(X), out, atol=1e-6)


@pytest.mark.parametrize(("fields", "words"), [
    ({"r": 8}, "larger than the loaded one"), ({"use_dora": True}, "cannot be swapped"),
])  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_changed(tmp_path, fields, words):
    out = saved(tmp_path / "a")
    saved(tmp_path / "b", seed=2, **fields)
    model = PeftModel.from_pretrained(base(), tmp_path / "a")
    compiled = torch.compile(model, backend="eager")
    with pytest.raises((CheckpointError, ConfigError), match=words):
        hotswap_adapter(compiled, tmp_path / "b", "default")
    assert torch.equal(model(X), out)


def test_an_unknown_name_is_refused(tmp_path):
    saved(tmp_path / "a")
    model = PeftModel.from_pretrained(base(), tmp_path / "a")
    with pytest.raises(NameTakenError, match="other"):
        hotswap_adapter(model, tmp_path / "a", "other")


def test_tensors_for_layers_without_an_adapter_are_refused(tmp_path):
    saved(tmp_path / "both")
    out = saved(tmp_path / "one", targets=("0",))
    model = PeftModel.from_pretrained(base(), tmp_path / "one")
    with pytest.raises(CheckpointError, match="belong to no layer"):
        hotswap_adapter(model, tmp_path / "both", "default")
    assert torch.equal(model(X), out)


def test_other_methods_and_compiled_models_are_refused(tmp_path):
    saved(tmp_path / "a")
    get_peft_model(base(), IA3Config(target_modules=["0"], feedforward_modules=[])).save_pretrained(tmp_path / "ia3")
    model = PeftModel.from_pretrained(base(), tmp_path / "a")
    with pytest.raises(ConfigError, match="two methods"):
        hotswap_adapter(model, tmp_path / "ia3", "default")
    compiled = torch.compile(model, backend="eager")
    with pytest.raises(ConfigError, match="compiled already"):
        prepare_model_for_compiled_hotswap(compiled, target_rank=8)
    with pytest.raises(ConfigError, match="higher rank"):
        prepare_model_for_compiled_hotswap(model, target_rank=2)


def test_a_merged_adapter_is_not_swapped(tmp_path) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(8, 8)), LoraConfig(target_modules=["0"], init_lora_weights=False))
    model.save_pretrained(tmp_path)
    model.merge_adapter()
    before = model(X)
    with pytest.raises(MergeError, match="merged adapter cannot be swapped"):
        hotswap_adapter(model, tmp_path, "default")
    assert torch.equal(model(X), before)
    model.unmerge_adapter()
    hotswap_adapter(model, tmp_path, "default")
