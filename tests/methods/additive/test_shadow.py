"""ShadowPEFT: the reference's losses and files, generation with one cache for both networks, nothing left behind."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import afina
from afina.errors import ConfigError, TargetError

from ...reference import KNOWS_CACHES

REFERENCE = pytest.importorskip("peft", reason="the reference is the oracle")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(2))
MASK = torch.ones_like(IDS)
MASK[1, :4] = 0
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
BERT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                               resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=1,
                                               eos_token_id=2, pad_token_id=0)),
    "classifier": lambda: LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=3)),
}  # fmt: skip


def base(kind: str = "llama") -> Any:
    torch.manual_seed(0)
    return MODELS[kind]().eval()


def model(library: Any, kind: str = "llama", **options: Any) -> Any:
    task = "SEQ_CLS" if kind == "classifier" else "CAUSAL_LM"
    adapted = library.get_peft_model(base(kind), library.ShadowConfig(task_type=task, shadow_dropout=0.0, **options))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (p for _, p in sorted(named(adapted).items()) if p.requires_grad):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return adapted.eval()


def named(adapted: Any) -> dict[str, torch.Tensor]:
    """Parameters under names that do not depend on the library."""
    out = {}
    for name, parameter in adapted.named_parameters():
        for part in (".shared.default", ".adapters.default", ".modules_to_save.default", ".copy"):
            name = name.replace(part, "")
        out[name] = parameter
    return out


def output(adapted: Any) -> torch.Tensor:
    with torch.no_grad():
        return adapted(input_ids=IDS, attention_mask=MASK).logits


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(("writer", "reader"), [(afina, REFERENCE), (REFERENCE, afina), (afina, afina)],
                         ids=["to-reference", "from-reference", "own"])  # fmt: skip
def test_files_are_exchanged(writer: Any, reader: Any, kind: str, tmp_path: Path) -> None:
    written = model(writer, kind)
    assert (output(written) - output(base(kind))).abs().max() > 1e-2
    written.save_pretrained(tmp_path)
    read = reader.PeftModel.from_pretrained(base(kind), tmp_path).eval()
    assert (output(read) - output(written)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", MODELS)
def test_losses_and_gradients_in_training_are_those_of_the_reference(kind: str, tmp_path: Path) -> None:
    model(REFERENCE, kind).save_pretrained(tmp_path)
    labels = torch.tensor([0, 2, 1]) if kind == "classifier" else IDS.masked_fill(MASK == 0, -100)
    found = []
    for library in (afina, REFERENCE):
        adapted = library.PeftModel.from_pretrained(base(kind), tmp_path, is_trainable=True).train()
        loss = adapted(input_ids=IDS, attention_mask=MASK, labels=labels).loss
        loss.backward()
        plain = adapted.eval().get_base_model()(input_ids=IDS, attention_mask=MASK, labels=labels).loss
        assert loss.item() > plain.item() + 1e-3  # of the shadow's own
        found.append((loss.item(), {n: p.grad for n, p in named(adapted).items() if p.grad is not None}))
    (mine, my_gradients), (theirs, their_gradients) = found
    assert mine == pytest.approx(theirs, abs=1e-5)
    assert len(my_gradients) > 20
    assert my_gradients.keys() == their_gradients.keys()
    assert all((my_gradients[n] - their_gradients[n]).abs().max() < 1e-5 for n in my_gradients)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_generation_with_a_cache_is_that_without_and_that_of_the_reference(kind: str, tmp_path: Path) -> None:
    theirs = model(REFERENCE, kind)
    theirs.save_pretrained(tmp_path)
    mine = afina.PeftModel.from_pretrained(base(kind), tmp_path)
    call = {"input_ids": IDS, "attention_mask": MASK, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    tokens = mine.generate(**call)
    assert torch.equal(tokens, mine.generate(**call, use_cache=False))
    if KNOWS_CACHES:
        assert torch.equal(tokens, theirs.generate(**call))
    assert not torch.equal(tokens, base(kind).generate(**call))
    assert torch.equal(mine.generate(**call, num_beams=3), mine.generate(**call, num_beams=3, use_cache=False))


def test_caches_that_do_not_grow_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs a cache that grows"):
        model(afina).generate(input_ids=IDS, max_new_tokens=2, cache_implementation="static")


def test_gradient_checkpointing_changes_no_gradient() -> None:
    found = []
    for checkpointed in (False, True):
        adapted = model(afina).train()
        if checkpointed:
            adapted.get_base_model().gradient_checkpointing_enable()
        adapted(input_ids=IDS, attention_mask=MASK, labels=IDS).loss.backward()
        found.append({n: p.grad for n, p in named(adapted).items() if p.grad is not None})
    assert all(torch.allclose(found[0][n], g, atol=1e-6) for n, g in found[1].items())


def test_disabling_and_unloading_leave_the_bare_model() -> None:
    adapted, expected = model(afina), output(base())
    with adapted.disable_adapter():
        assert torch.equal(output(adapted), expected)
    other = copy.deepcopy(adapted)
    assert torch.equal(output(other), output(adapted))
    bare = adapted.unload()
    assert torch.equal(output(bare), expected)
    assert not bare._forward_pre_hooks
    other.delete_adapter("default")
    assert not other.get_base_model()._forward_pre_hooks


def test_two_adapters_do_not_disturb_each_other() -> None:
    adapted, config = model(afina), afina.ShadowConfig(task_type="CAUSAL_LM", init_weights=False)
    first = output(adapted)
    adapted.add_adapter("other", config)
    assert torch.equal(output(adapted), first)
    adapted.set_adapter("other")
    second = output(adapted)
    assert not torch.equal(second, first)
    adapted.set_adapter(["default", "other"])
    assert not torch.equal(output(adapted), second)
    adapted.set_adapter("default")
    assert torch.equal(output(adapted), first)


def test_encoders_can_have_a_shadow_too(tmp_path: Path) -> None:
    encoder = lambda: BertForSequenceClassification(BertConfig(**BERT)).eval()  # noqa: E731
    torch.manual_seed(0)
    plain = encoder()
    adapted = afina.get_peft_model(copy.deepcopy(plain), afina.ShadowConfig(task_type="SEQ_CLS"))
    types = torch.ones_like(IDS)
    call = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": types}
    adapted.train()(**call, labels=torch.tensor([0, 1, 1])).loss.backward()
    gradients = [p.grad for n, p in adapted.named_parameters() if "shadow_backbone" in n and "attention" in n]
    assert any(g is not None and g.abs().max() > 0 for g in gradients)
    with torch.no_grad():
        assert torch.equal(adapted.eval()(**call).logits, plain(**call).logits)
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.add_(0.1)
        adapted.save_pretrained(tmp_path)
        read = afina.PeftModel.from_pretrained(plain, tmp_path)
        assert torch.equal(read(**call).logits, adapted(**call).logits)


def test_what_is_no_stack_of_transformers_is_refused() -> None:
    foreign = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(3, 3)))
    pair = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8))
    for other, targets in ((foreign, "0"), (pair, None)):
        with pytest.raises(TargetError, match="encoder or decoder of transformers"):
            afina.get_peft_model(other, afina.ShadowConfig(target_modules=targets))
    with pytest.raises(ConfigError, match="checkpoint"):
        afina.ShadowConfig(shadow_model="some/model")
