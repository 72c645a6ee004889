"""What the reference accepts is accepted, with its numbers."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import afina
from afina.errors import AfinaWarning, ConfigError, NameTakenError, TargetError

X = torch.linspace(-1, 1, 12).view(3, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.conv, self.norm, self.head = nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(self.a(x)[..., None])[..., 0])))


class Renamed(Net):
    def __init__(self):
        super().__init__()
        self.first = self.a
        del self.a

    def forward(self, x):
        return self.head(torch.relu(self.norm(self.conv(self.first(x)[..., None])[..., 0])))


class KeywordHead(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Linear(4, 2)

    def forward(self, *, hidden, scale=1.0):
        return self.inner(hidden) * scale


class WithKeywords(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.head = nn.Linear(4, 4), KeywordHead()

    def forward(self, x):
        return self.head(hidden=self.a(x), scale=2.0)


def lora(library, **options):
    return library.LoraConfig(**{"target_modules": ["a"], "r": 2, "init_lora_weights": False, **options})


def both(make, **options):
    theirs = peft.get_peft_model(make(), lora(peft, **options))
    ours = afina.get_peft_model(make(), lora(afina, **options))
    afina.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))
    return theirs, ours


def test_of_a_target_that_is_in_modules_to_save_the_trained_copy_counts():
    theirs, ours = both(Net, target_modules=["a", "head"], modules_to_save=["head"])
    with torch.no_grad():
        for model in (theirs, ours):
            for name, parameter in model.named_parameters():
                if "modules_to_save" in name:
                    parameter.add_(1)
    assert torch.allclose(theirs(X), ours(X), atol=1e-6)
    state = afina.get_peft_model_state_dict(ours)
    assert state.keys() == peft.get_peft_model_state_dict(theirs).keys()
    assert ours.base_model.targeted_module_names == theirs.base_model.targeted_module_names == ["a"]
    with ours.disable_adapter():
        assert torch.equal(ours(X), Net()(X))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["a", "conv", "head"]},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_bias": True},
        {"modules_to_save": ["head", "norm"]},
        {"modules_to_save": ["conv"], "bias": "all"},
    ],
    ids=str,
)
def test_half_precision_models_run_with_float32_adapters(dtype, options):
    theirs, ours = both(lambda: Net().to(dtype), **options)
    out = ours(X.to(dtype))
    assert out.dtype == theirs(X.to(dtype)).dtype == dtype
    assert torch.allclose(out.float(), theirs(X.to(dtype)).float(), atol=2e-2)
    out.float().sum().backward()
    trained = [p for p in ours.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert all(p.grad is not None for p in trained)


@pytest.mark.parametrize("options", [{"modules_to_save": ["head"]}, {"target_modules": ["inner"]}])
def test_a_trained_copy_may_take_keywords_only(options):
    theirs, ours = both(WithKeywords, **options)
    assert torch.allclose(theirs(X), ours(X), atol=1e-6)


def test_a_copy_that_takes_keywords_only_runs_in_its_own_dtype():
    _, ours = both(lambda: WithKeywords().half(), modules_to_save=["head"])
    out = ours(X.half())
    assert out.dtype == torch.float16
    out.float().sum().backward()


def test_keys_are_renamed_while_loading(tmp_path):
    _, ours = both(Net)
    ours.save_pretrained(tmp_path)
    config = lora(afina, target_modules=["first"])
    mapping = {r"^(?:.*\.)?a\.": "first."}
    loaded = afina.PeftModel.from_pretrained(Renamed(), tmp_path, config=config, key_mapping=mapping,
                                             allow_other_base=True)  # fmt: skip
    assert torch.equal(loaded(X), ours(X))


class Classifier(Net):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(2, 2)

    def forward(self, x):
        return self.classifier(super().forward(x))


@pytest.mark.parametrize("copied", [True, False])
def test_a_config_that_is_given_need_not_name_the_heads_of_the_file(tmp_path, copied):
    task = {"task_type": "SEQ_CLS"} if copied else {}
    _, ours = both(Classifier, **task)
    with torch.no_grad():
        ours.get_base_model().classifier.bias.fill_(2)
    ours.save_pretrained(tmp_path)
    for library in (peft, afina) if copied else (afina,):  # the reference's stops with a KeyError
        base = Classifier()
        base.classifier.bias.data.fill_(-1)
        given = lora(library, task_type="SEQ_CLS")
        loaded = library.PeftModel.from_pretrained(base, tmp_path, config=given)
        assert loaded.get_base_model().classifier.bias.tolist() == [2 if copied else -1] * 2
        assert loaded.peft_config["default"] is given


def test_names_of_adapters_may_have_spaces(tmp_path):
    _, ours = both(Net)
    ours.add_adapter("adapter 1", lora(afina))
    ours.set_adapter("adapter 1")
    out = ours(X)
    ours.save_pretrained(tmp_path)
    for library in (peft, afina):
        assert torch.allclose(library.PeftModel.from_pretrained(Net(), tmp_path / "adapter 1")(X), out, atol=1e-6)
    assert not torch.allclose(out, Net()(X), atol=1e-3)


def test_settings_of_a_process_are_taken_and_not_saved(tmp_path):
    config = lora(afina, runtime_config=afina.LoraRuntimeConfig())
    config.save_pretrained(tmp_path)
    assert "runtime_config" not in json.loads((tmp_path / "adapter_config.json").read_text())
    with pytest.warns(AfinaWarning, match="ephemeral_gpu_offload has no effect"):
        afina.LoraRuntimeConfig(ephemeral_gpu_offload=True)
    with pytest.warns(AfinaWarning, match="runtime_config: of_tomorrow is not known"):
        config = afina.PeftConfig.from_dict({"peft_type": "LORA", "runtime_config": {"of_tomorrow": 1}})
    assert config.runtime_config == afina.LoraRuntimeConfig()


@pytest.mark.parametrize("name", ["training", "keys", "forward"])
def test_names_that_a_module_has_itself_are_refused(name):
    with pytest.raises(NameTakenError, match="not usable as an adapter's name"):
        afina.get_peft_model(Net(), lora(afina), name)


def test_a_target_of_which_another_adapter_trains_a_copy_is_refused():
    model = afina.get_peft_model(Net(), lora(afina, modules_to_save=["head"]))
    with pytest.raises(TargetError, match="another adapter trains a copy"):
        model.add_adapter("more", lora(afina, target_modules=["head"]))


class Uneven(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.inside = nn.Linear(6, 6), nn.ModuleDict({"b": nn.Linear(6, 2)})

    def forward(self, x):
        return self.inside["b"](self.a(x))


@pytest.mark.parametrize(
    "options", [{"oft_block_size": 4}, {"oft_block_size": 9}, {"r": 4, "oft_block_size": 0}], ids=str
)
def test_ofts_block_is_the_nearest_divisor_and_that_is_said(options):
    x = torch.randn(3, 6)
    theirs = peft.get_peft_model(Uneven(), peft.OFTConfig(target_modules=["a"], init_weights=False, **options))
    with pytest.warns(AfinaWarning, match="does not divide the layer's 6 inputs"):
        ours = afina.get_peft_model(Uneven(), afina.OFTConfig(target_modules=["a"], **options))
    afina.set_peft_model_state_dict(ours, peft.get_peft_model_state_dict(theirs))
    assert torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_configs_that_can_be_made_there_can_be_made():
    afina.LoraConfig(megatron_config=None, megatron_core="megatron.core")
    with pytest.raises(ConfigError, match="layers of Megatron"):
        afina.LoraConfig(megatron_config={"tensor_model_parallel_size": 2})
    model = afina.get_peft_model(Uneven(), afina.LoKrConfig(target_modules=["a"], init_weights="lycoris"))
    x = torch.randn(3, 6)
    assert torch.equal(model(x), Uneven()(x))
    config = afina.AdaptionPromptConfig()
    with pytest.raises(ConfigError, match="adapter_len: must be given"):
        afina.get_peft_model(Uneven(), config)


@pytest.mark.parametrize("projection", [False, True])
def test_a_prefix_can_start_as_zeros(projection):
    from transformers import LlamaConfig, LlamaForCausalLM

    base = LlamaForCausalLM(LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=16,
                                        num_attention_heads=2))  # fmt: skip
    config = afina.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM", init_weights="zero",
                                      prefix_projection=projection)  # fmt: skip
    encoder = afina.get_peft_model(base, config).base_model.prompt_encoder["default"]
    assert not encoder.encode().any()
    assert any(p.any() for p in encoder.parameters()) is projection


def test_without_targets_osf_takes_all_linear_layers_of_an_unknown_model():
    theirs = peft.get_peft_model(Uneven(), peft.OSFConfig(effective_rank=1))
    ours = afina.get_peft_model(Uneven(), afina.OSFConfig(effective_rank=1))
    assert ours.base_model.targeted_module_names == theirs.base_model.targeted_module_names == ["a", "inside.b"]


def test_a_copy_of_what_only_holds_modules_is_refused():
    for library, error in ((peft, TypeError), (afina, TargetError)):
        with pytest.raises(error):
            library.get_peft_model(Uneven(), lora(library, modules_to_save=["inside"]))


def distilbert():
    """A classifier with a `pre_classifier` before its `classifier`."""
    import transformers

    torch.manual_seed(0)
    config = transformers.DistilBertConfig(vocab_size=32, dim=16, hidden_dim=32, n_layers=2, n_heads=2, num_labels=3)
    return transformers.DistilBertForSequenceClassification(config).eval()


@pytest.mark.parametrize("saved", [None, ["sifier"], ["layer_norm", "classifier"]])
def test_trained_copies_are_of_all_modules_whose_names_end_so_as_there(saved, tmp_path):
    options = {"target_modules": ["q_lin"], "task_type": "SEQ_CLS", "modules_to_save": saved}
    theirs, ours = both(distilbert, **options)
    for model in (theirs, ours):
        for parameter in model.parameters():
            parameter.data += 0.1 * parameter.requires_grad
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    keys = [load_file(tmp_path / name / "adapter_model.safetensors").keys() for name in ("theirs", "ours")]
    assert keys[0] == keys[1]
    assert any("pre_classifier" in key for key in keys[0])
    tokens = torch.tensor([[1, 2, 3]])
    for library, folder in ((afina, "theirs"), (peft, "ours")):
        loaded = library.PeftModel.from_pretrained(distilbert(), tmp_path / folder).eval()
        made = theirs if folder == "theirs" else ours
        torch.testing.assert_close(loaded(tokens).logits, made.eval()(tokens).logits)
