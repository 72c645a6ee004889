"""`prepare_model_for_kbit_training`, compared with the reference's on a tiny 4-bit model."""

from __future__ import annotations

import copy

import pytest
import torch

import afina
from afina.errors import AfinaWarning

pytest.importorskip("bitsandbytes")
peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2)  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    return path


def loaded(folder, **options):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantise = BitsAndBytesConfig(bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16, **options)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantise, dtype=torch.bfloat16)


TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.mark.parametrize("options", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["nf4", "int8"])
@pytest.mark.parametrize("arguments", [{}, {"use_gradient_checkpointing": False},
                                       {"gradient_checkpointing_kwargs": {"use_reentrant": False}}])  # fmt: skip
def test_same_as_the_reference(folder, options, arguments):
    mine = afina.prepare_model_for_kbit_training(loaded(folder, **options), **copy.deepcopy(arguments))
    theirs = peft.prepare_model_for_kbit_training(loaded(folder, **options), **copy.deepcopy(arguments))
    ours, other = dict(mine.named_parameters()), dict(theirs.named_parameters())
    assert {n: (p.dtype, p.requires_grad) for n, p in ours.items()} == {
        n: (p.dtype, p.requires_grad) for n, p in other.items()
    }
    assert all(torch.equal(p, other[n]) for n, p in ours.items())
    assert mine.is_gradient_checkpointing == theirs.is_gradient_checkpointing
    embedded = mine.get_input_embeddings()(TOKENS), theirs.get_input_embeddings()(TOKENS)
    assert embedded[0].requires_grad == embedded[1].requires_grad


def test_checkpointed_qlora_has_the_gradients_of_the_plain_one(folder):
    def gradients(checkpointing: bool) -> list[torch.Tensor]:
        base = afina.prepare_model_for_kbit_training(loaded(folder, load_in_4bit=True), checkpointing)
        torch.manual_seed(0)
        model = afina.get_peft_model(base, afina.LoraConfig(target_modules="all-linear", init_lora_weights=False))
        model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
        return [p.grad for p in model.parameters() if p.requires_grad]

    plain, again = gradients(False), gradients(True)
    assert len(plain) == 2 * 7 * 2
    assert all(float((a - b).norm() / b.norm()) < 1e-5 for a, b in zip(again, plain, strict=True))


def test_a_dense_model_is_frozen_and_said_to_be_dense():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.warns(AfinaWarning, match="no layer of the model is quantised"):
        assert afina.prepare_model_for_kbit_training(model) is model
    assert not any(p.requires_grad for p in model.parameters())


def test_stand_in_has_it_under_the_references_paths():
    from afina.compat.modules import build

    for name in ("peft", "peft.utils", "peft.utils.other"):
        assert build("0")[name].prepare_model_for_kbit_training is afina.prepare_model_for_kbit_training
