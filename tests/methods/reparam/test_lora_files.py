"""Our LoRA files are what servers of the reference's files (vLLM) load: the same bytes under the same names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import afina
from afina.errors import AfinaWarning

from ...battery.kinds import KINDS
from ...core import tiny

peft = pytest.importorskip("peft")
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SERVED = ("r", "lora_alpha", "target_modules", "use_rslora", "use_dora", "bias", "modules_to_save", "peft_type",
          "task_type", "lora_dropout", "rank_pattern", "alpha_pattern", "fan_in_fan_out")  # fmt: skip
"""The fields of the config that a server reads, or refuses to serve."""


def written(library, source, folder, **options):
    """The files that a library writes after it has loaded those of `source`."""
    library.PeftModel.from_pretrained(tiny.llama(), source, **options).save_pretrained(folder)
    return folder


def assert_same_files(ours, theirs):
    name = "adapter_model.safetensors"
    mine, other = load_file(ours / name), load_file(theirs / name)
    assert list(mine) == list(other)
    for key, tensor in mine.items():
        assert tensor.dtype == other[key].dtype
        assert tensor.shape == other[key].shape
        assert tensor.view(torch.uint8).equal(other[key].view(torch.uint8))
    with safe_open(ours / name, "pt") as one, safe_open(theirs / name, "pt") as two:
        assert one.metadata()["format"] == two.metadata()["format"]
    mine, other = (json.loads((f / "adapter_config.json").read_text()) for f in (ours, theirs))
    # What is not written is what a reader of the format takes for granted.
    default = peft.LoraConfig().to_dict()
    assert all(other[k] == default[k] for k in other.keys() - mine.keys())
    for key in SERVED:
        one, two = (sorted(v[key]) if isinstance(v[key], list) else v[key] for v in (mine, other))
        assert one == two, key


@pytest.mark.parametrize("options", [
    {}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 5}},
    {"target_modules": "all-linear"},
], ids=str)  # fmt: skip
def test_files_are_the_references_files(options, tmp_path):
    config = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **options}
    model = tiny.nudge(afina.get_peft_model(tiny.llama(), afina.LoraConfig(**config)))
    model.save_pretrained(tmp_path / "ours")
    assert_same_files(tmp_path / "ours", written(peft, tmp_path / "ours", tmp_path / "theirs"))
    # ... and the other way round, from files that the reference made.
    assert_same_files(written(afina, tmp_path / "theirs", tmp_path / "again"), tmp_path / "theirs")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_files_are_the_references_files(dtype, tmp_path):
    config = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    model = afina.get_peft_model(tiny.llama().to(dtype), afina.LoraConfig(**config), autocast_adapter_dtype=False)
    tiny.nudge(model).save_pretrained(tmp_path / "ours")
    for library, name in ((peft, "theirs"), (afina, "again")):
        library.PeftModel.from_pretrained(
            tiny.llama().to(dtype), tmp_path / "ours", autocast_adapter_dtype=False
        ).save_pretrained(tmp_path / name)
    assert {t.dtype for t in load_file(tmp_path / "ours" / "adapter_model.safetensors").values()} == {dtype}
    assert_same_files(tmp_path / "ours", tmp_path / "theirs")
    assert_same_files(tmp_path / "again", tmp_path / "theirs")


@pytest.mark.parametrize("rank", [4, 0.9])
def test_converted_adapter_has_the_same_form(rank, tmp_path):
    config = afina.LoHaConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    model = tiny.nudge(afina.get_peft_model(tiny.llama(), config))
    afina.save_as_lora(tmp_path / "ours", model, rank)
    assert_same_files(tmp_path / "ours", written(peft, tmp_path / "ours", tmp_path / "theirs"))
    values = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    # A server scales all layers by one alpha / r and makes room for r ranks.
    tensors = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    assert values["lora_alpha"] == values["r"] == max(len(t) for k, t in tensors.items() if "lora_A" in k)
    assert values["alpha_pattern"] == values["rank_pattern"]
    layers = {k.removesuffix(".lora_A.weight") for k in tensors if "lora_A" in k}
    assert tensors.keys() == {f"{n}.lora_{x}.weight" for n in layers for x in "AB"}
    assert {n.rpartition(".")[2] for n in layers} == set(TARGETS)
    assert all(n.startswith("base_model.model.model.layers.") for n in layers)


def test_combined_adapter_has_the_same_form(tmp_path):
    config = {"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM"}
    model = tiny.nudge(afina.get_peft_model(tiny.llama(), afina.LoraConfig(**config), "a"))
    model.add_adapter("b", afina.LoraConfig(**{**config, "r": 2}))
    model.set_adapter("b")
    tiny.nudge(model, 2)
    model.add_weighted_adapter(["a", "b"], [1, -1], "new", combination_type="cat")
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    assert_same_files(tmp_path / "new", written(peft, tmp_path / "new", tmp_path / "theirs"))


def attention_model(**options: Any) -> Any:
    torch.manual_seed(0)
    base = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 4, batch_first=True)}).eval()
    with pytest.warns(AfinaWarning, match="counts twice"):
        model = afina.get_peft_model(base, afina.LoraConfig(r=2, target_modules=["attention"], **options))
    return model.eval()


def attended(model: Any) -> torch.Tensor:
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model.base_model.model["attention"](x, x, x)[0]


def test_attentions_output_update_means_what_the_release_that_the_file_names_says(tmp_path: Path) -> None:
    model = attention_model(init_lora_weights=False)
    out = attended(model)
    model.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "adapter_config.json").read_text())
    assert values["peft_version"] == "0.21.2"
    loaded, later = {}, ("0.21.2", "0.22.0", "0.21.3.dev0@abc", None)
    for version in later:
        (tmp_path / "adapter_config.json").write_text(json.dumps({**values, "peft_version": version}))
        torch.manual_seed(0)
        base = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 4, batch_first=True)}).eval()
        with pytest.warns(AfinaWarning, match="counts twice"):
            loaded[version] = afina.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(attended(loaded["0.21.2"]), out)
    assert torch.equal(attended(loaded[None]), out)
    once = attended(loaded["0.22.0"])
    assert not torch.allclose(once, out, atol=1e-4)
    assert torch.equal(attended(loaded["0.21.3.dev0@abc"]), once)
    loaded["0.22.0"].save_pretrained(tmp_path / "again")  # written so that the release that it names means the same
    torch.manual_seed(0)
    base = nn.ModuleDict({"attention": nn.MultiheadAttention(16, 4, batch_first=True)}).eval()
    with pytest.warns(AfinaWarning, match="counts twice"):
        again = afina.PeftModel.from_pretrained(base, tmp_path / "again")
    assert torch.equal(attended(again), once)


def test_patterns_of_a_reference_file_that_name_parameters_are_read(tmp_path):
    """All linear layers, with `target_parameters`: `rank_pattern` and `alpha_pattern` name what is below a module."""
    kind = KINDS["experts"]
    options = {"rank_pattern": {r".*\.up": 3}, "alpha_pattern": {r".*\.down": 5}, "init_lora_weights": False}
    theirs = peft.get_peft_model(
        kind.build(),
        peft.LoraConfig(r=2, target_modules="all-linear", target_parameters=["mixture.up", "mixture.down"], **options),
    ).eval()
    theirs.save_pretrained(tmp_path)
    ours = afina.PeftModel.from_pretrained(kind.build(), tmp_path)
    # The update is added to the output here, to the weight there.
    assert torch.allclose(ours(*kind.inputs()), theirs(*kind.inputs()), atol=1e-5)
