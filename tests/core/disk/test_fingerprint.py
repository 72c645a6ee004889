"""What identifies a base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.core.disk.fingerprint import base_parameters, compare, fingerprint
from afina.errors import CheckpointError

from ..tiny import config, gpt2, llama, mlp, trained


def of(model: object) -> dict[str, object]:
    """The fingerprint of an adapted model's base."""
    return fingerprint(model.get_base_model())  # type: ignore[attr-defined]


def test_same_base_has_the_same_fingerprint_whatever_the_adapter() -> None:
    assert of(trained(seed=1)) == of(trained(seed=2, r=4))


def test_merging_disabling_and_other_adapters_do_not_change_it() -> None:
    model = trained()
    plain = of(model)
    model.add_adapter("b", config(target_modules=["up"]))
    assert of(model) == plain
    model.merge_adapter()
    assert of(model) == plain
    with model.disable_adapter():
        assert of(model) == plain


def test_other_weights_change_it() -> None:
    assert of(trained(mlp(seed=1))) != of(trained())
    base = mlp()
    with torch.no_grad():
        base.layers[1]["down"].weight[0, 0] += 1e-3
    assert of(trained(base)) != of(trained())


def test_another_storage_is_not_compared() -> None:
    compare(of(trained()), trained(mlp().bfloat16()).get_base_model(), "file")


def test_what_was_not_recorded_is_not_compared() -> None:
    compare({}, trained().get_base_model(), "file")


@pytest.mark.parametrize(("key", "value"), [("model_type", "gpt2"), ("hidden_size", 4096), ("num_hidden_layers", 80)])
def test_other_architecture_or_size_is_named(key: str, value: object) -> None:
    model = afina.get_peft_model(llama(), afina.LoraConfig())
    with pytest.raises(CheckpointError, match=key) as caught:
        compare({**of(model), key: value}, model.get_base_model(), "file")
    assert len(str(caught.value).splitlines()) <= 4


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


def test_fingerprint_tells_class_sizes_dtype_and_weights() -> None:
    found = fingerprint(frozen(llama(num_hidden_layers=1)))
    assert {k: v for k, v in found.items() if k != "weights"} == {
        "class": "LlamaForCausalLM", "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 1,
        "weights_dtype": "torch.float32",
    }  # fmt: skip
    assert "lm_head.weight" not in found["weights"]
    assert "model.layers.0.mlp.up_proj.weight" in found["weights"]
    assert all(len(digest) == 16 for digest in found["weights"].values())


def test_vectors_and_what_trains_are_sampled_only_where_there_is_nothing_else() -> None:
    assert {n.rpartition(".")[2] for n in fingerprint(frozen(mlp()))["weights"]} == {"weight"}
    norm = frozen(nn.LayerNorm(4))
    assert set(fingerprint(norm)["weights"]) == {"weight", "bias"}
    assert set(base_parameters(nn.Embedding(3, 4))) == {"weight"}
    half = frozen(mlp())
    half.layers[0]["up"].weight.requires_grad_(True)
    assert "layers.0.up.weight" not in fingerprint(half)["weights"]
    assert "weights" not in fingerprint(mlp())


def test_sample_of_a_deep_model_is_small_and_lies_evenly() -> None:
    found = list(fingerprint(frozen(mlp(width=2, depth=100)))["weights"])
    assert found[:3] == ["layers.0.up.weight", "layers.1.down.weight", "layers.3.up.weight"]
    assert len(found) == 67


def test_sampled_numbers_lie_evenly_in_a_tensor() -> None:
    def digest(change: int | None = None) -> Any:
        layer = nn.Linear(64, 64, bias=False)
        with torch.no_grad():
            layer.weight.zero_()
            if change is not None:
                layer.weight.view(-1)[change] = 1
        return fingerprint(frozen(layer))["weights"]["weight"]

    assert digest(16) != digest()  # 4096 numbers, every 16th
    assert digest(4080) != digest()
    assert digest(17) == digest()


def test_numbers_of_another_kind_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.codes = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    layer.empty = nn.Parameter(torch.ones(2, device="meta"))
    layer.missing = None
    assert set(base_parameters(layer)) == {"weight", "bias"}


def test_what_an_adapter_trains_a_copy_of_may_be_new_every_time() -> None:
    found = of(trained(modules_to_save=["head"]))["weights"]
    assert isinstance(found, dict)
    assert not any(n.startswith("head") for n in found)
    assert "head.weight" in of(trained())["weights"]  # type: ignore[operator]


def test_original_bits_of_merged_layers_count() -> None:
    model = trained(bias="all")
    base = model.get_base_model()
    before = {n: p.parameter.clone() for n, p in base_parameters(base).items()}
    model.merge_adapter()
    after = base_parameters(base)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n].parameter) for n in before)
    assert "layers.0.up.bias" in after
    assert not torch.equal(base.layers[0]["up"].base_layer.weight, before["layers.0.up.weight"])


def test_heads_and_embeddings_may_be_resized_unless_nothing_else_is_there() -> None:
    base = gpt2()
    names = base_parameters(base)
    assert not {"transformer.wte.weight", "transformer.wpe.weight", "lm_head.weight"} & names.keys()
    head = afina.get_peft_model(llama(), afina.LoraConfig(target_modules=["lm_head", "q_proj"]))
    assert "lm_head.weight" not in base_parameters(head.get_base_model())


class Plain(nn.Module):
    """Says, as models do that have none, that it cannot give its embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError


def test_model_that_has_no_embeddings_has_a_fingerprint() -> None:
    assert "up.weight" in fingerprint(frozen(Plain()))["weights"]


def test_other_weights_are_named_and_those_that_are_now_trained_are_compared_too() -> None:
    saved = fingerprint(frozen(mlp()))

    def partly(seed: int) -> nn.Module:
        base = frozen(mlp(seed=seed))
        base.layers[0]["up"].weight.requires_grad_(True)
        return base

    compare(saved, partly(0), "file")
    with pytest.raises(CheckpointError, match="another base") as caught:
        compare(saved, partly(1), "the-file")
    text = str(caught.value)
    assert "the-file" in text
    first, *_ = saved["weights"]
    assert f"{first}={saved['weights'][first]}" in text
    assert text.count("=") == 2 * 3 + 1  # three names on either side, and the way out
    gone = {**saved, "weights": {**saved["weights"], "gone.weight": "0" * 16}}
    with pytest.raises(CheckpointError, match=r"gone\.weight"):
        compare(gone, frozen(mlp()), "file")
