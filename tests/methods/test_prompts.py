"""Virtual tokens: placed alike for every method, exchanged with the reference, and generated with."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import afina
from afina.core.config import methods
from afina.core.prompts.encoder import PromptEncoder

from ..reference import KNOWS_CACHES, knows_caches

peft = pytest.importorskip("peft")

TOKENS = 5
LLAMA = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
BERT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 64, "num_labels": 3}  # fmt: skip
MODELS = {
    "llama": (lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)), "CAUSAL_LM"),
    "gpt2": (lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                                bos_token_id=1, eos_token_id=2)), "CAUSAL_LM"),
    "t5": (lambda: T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4,
                                                       d_kv=8, decoder_start_token_id=0)), "SEQ_2_SEQ_LM"),
    "bert": (lambda: BertForSequenceClassification(BertConfig(**BERT)), "SEQ_CLS"),
    "bert-tokens": (lambda: BertForTokenClassification(BertConfig(**BERT)), "TOKEN_CLS"),
}  # fmt: skip
CPT = {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 4]}
METHODS: dict[str, dict[str, Any]] = {
    "PromptTuningConfig": {},
    "PrefixTuningConfig": {},
    "PromptEncoderConfig": {"encoder_hidden_size": 16},
    "PromptEncoderConfig of an LSTM": {"encoder_hidden_size": 16, "encoder_reparameterization_type": "LSTM"},
    "PrefixTuningConfig with projection": {"encoder_hidden_size": 16, "prefix_projection": True},
    "CartridgeConfig": {},
    "MultitaskPromptTuningConfig": {"num_tasks": 3, "num_ranks": 2},
    "CPTConfig": CPT,
}
CACHED = ("PrefixTuningConfig", "CartridgeConfig", "PrefixTuningConfig with projection")
ANYWHERE = [m for m in METHODS if not m.startswith(("CPT", "Multitask"))]
"""On every kind of model; CPT is for causal models, and the reference cannot place task numbers elsewhere."""
CASES = [(method, model) for method in METHODS for model in MODELS if model in ("llama", "gpt2") or method in ANYWHERE]
DECODERS = [case for case in CASES if case[1] in ("llama", "gpt2")]


def build(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name][0]().eval()


def ids(length: int = 7, rows: int = 2) -> Tensor:
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(5))


def options(method: str, model: str) -> dict[str, Any]:
    count = {} if method == "CPTConfig" else {"num_virtual_tokens": TOKENS}
    return {"task_type": MODELS[model][1], **count, **METHODS[method]}


def adapted(library: Any, method: str, model: str, nudge: bool = True) -> Any:
    torch.manual_seed(3)
    out = library.get_peft_model(build(model), getattr(library, method.split()[0])(**options(method, model)))
    torch.manual_seed(4)
    with torch.no_grad():
        for parameter in out.parameters():
            if parameter.requires_grad and nudge:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return out.eval()


def call(model: Any, method: str, name: str, x: Tensor | None = None, **more: Any) -> Tensor:
    x = ids() if x is None else x
    extra = {"task_ids": torch.arange(len(x)) % 3} if method.startswith("Multitask") else {}
    if name == "t5":
        extra["decoder_input_ids"] = x[:, :3]
    mask = more.pop("attention_mask", torch.ones_like(x))
    return model(input_ids=x, attention_mask=mask, **extra, **more).logits


@pytest.mark.parametrize(("method", "name"), CASES)
def test_files_are_exchanged_with_the_reference(method: str, name: str, tmp_path: Path) -> None:
    if method in CACHED and name.startswith("bert") and not KNOWS_CACHES:
        pytest.skip("the reference here gives no caches to these models")
    theirs, ours = adapted(peft, method, name), adapted(afina, method, name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    here = afina.PeftModel.from_pretrained(build(name), tmp_path / "theirs")
    there = peft.PeftModel.from_pretrained(build(name), tmp_path / "ours").eval()
    with torch.no_grad():
        assert torch.allclose(call(here, method, name), call(theirs, method, name), atol=1e-5)
        assert torch.allclose(call(there, method, name), call(ours, method, name), atol=1e-5)
    assert ours.get_nb_trainable_parameters()[0] == theirs.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(("method", "name"), CASES)
def test_loaded_prompt_gives_the_saved_outputs_and_trains_on(method: str, name: str, tmp_path: Path) -> None:
    ours = adapted(afina, method, name)
    ours.save_pretrained(tmp_path)
    again = afina.PeftModel.from_pretrained(build(name), tmp_path, is_trainable=True).eval()
    with torch.no_grad():
        assert torch.equal(call(again, method, name), call(ours, method, name))
    assert again.get_nb_trainable_parameters() == ours.get_nb_trainable_parameters()


@pytest.mark.parametrize(("method", "name"), CASES)
def test_gradients_reach_only_the_prompt_and_the_head(method: str, name: str) -> None:
    model = adapted(afina, method, name)
    call(model, method, name).square().sum().backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.prompt_encoder.parameters())


@pytest.mark.parametrize(("method", "name"), CASES)
def test_disabled_prompt_gives_the_bases_bits(method: str, name: str) -> None:
    model, base = adapted(afina, method, name), build(name)
    x = ids()
    with torch.no_grad(), model.disable_adapter():
        inputs = {"input_ids": x, "attention_mask": torch.ones_like(x)}
        if name == "t5":
            inputs["decoder_input_ids"] = x[:, :3]
        # The heads are copies that start with the base's values, and are off as well.
        assert torch.equal(model(**inputs).logits, base(**inputs).logits)


@pytest.mark.parametrize(("method", "name"), [c for c in DECODERS if not c[0].startswith("Multitask")])
@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_changes_no_real_token(method: str, name: str, left: bool) -> None:
    model = adapted(afina, method, name)
    x = ids(5, 1)
    pad, gap = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, dtype=torch.long)
    padded = torch.cat([pad, x] if left else [x, pad], dim=1)
    mask = torch.cat([gap, torch.ones_like(x)] if left else [torch.ones_like(x), gap], dim=1)
    with torch.no_grad():
        alone = call(model, method, name, x)[:, -1]
        both = call(model, method, name, padded, attention_mask=mask)
    assert torch.allclose(alone, both[:, -1 if left else -4], atol=1e-6)


@pytest.mark.parametrize(("method", "name"), [c for c in CASES if c[1] in ("llama", "gpt2", "t5")
                                              and not c[0].startswith(("Multitask", "CPT"))])  # fmt: skip
@pytest.mark.parametrize("beams", [1, 2])
@knows_caches
def test_generation_equals_the_references(method: str, name: str, beams: int, tmp_path: Path) -> None:
    if method == "CartridgeConfig" and beams > 1:
        pytest.skip("the reference does not repeat a cartridge for beams")
    theirs = adapted(peft, method, name)
    theirs.save_pretrained(tmp_path)
    ours = afina.PeftModel.from_pretrained(build(name), tmp_path)
    x = ids()
    settings = {"attention_mask": torch.ones_like(x), "max_new_tokens": 5, "do_sample": False, "num_beams": beams,
                "pad_token_id": 0}  # fmt: skip
    assert torch.equal(ours.generate(input_ids=x, **settings), theirs.generate(input_ids=x, **settings))


def test_every_method_of_virtual_tokens_is_among_them() -> None:
    kinds = {m.config.__name__ for m in methods().values() if issubclass(m.implementation, PromptEncoder)}
    assert kinds == {name.partition(" ")[0] for name in METHODS}


@pytest.mark.parametrize(("method", "name"), [c for c in CASES if not c[1].startswith("bert")])
def test_generation_is_that_of_whole_passes(method: str, name: str) -> None:
    model, x = adapted(afina, method, name), ids()
    more = {"task_ids": torch.arange(len(x)) % 3} if method.startswith("Multitask") else {}
    settings = {"attention_mask": torch.ones_like(x), "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0,
                "eos_token_id": None, **more}  # fmt: skip
    tokens = torch.zeros(len(x), 1, dtype=torch.long) if name == "t5" else x
    with torch.no_grad():
        for _ in range(4):
            seen = {"decoder_input_ids": tokens, "input_ids": x} if name == "t5" else {"input_ids": tokens}
            tokens = torch.cat([tokens, model(**seen, **more).logits[:, -1:].argmax(-1)], dim=1)
        bare = build(name)(**seen).logits[:, -1:]
        assert not torch.allclose(model(**seen, **more).logits[:, -1:], bare, atol=1e-3)
    assert torch.equal(model.generate(input_ids=x, **settings), tokens)


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_generation_with_left_padding_equals_generation_alone(method: str) -> None:
    model = adapted(afina, method, "llama")
    x = ids(5, 1)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), x], dim=1)
    mask = (padded != 0).long()
    settings: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(input_ids=x, attention_mask=torch.ones_like(x), **settings)
    together = model.generate(input_ids=padded, attention_mask=mask, **settings)
    assert torch.equal(alone[:, 5:], together[:, 8:])


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("CPT")])
@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS"])
@pytest.mark.parametrize("left", [True, False])
def test_decoders_that_classify_ignore_padding_on_either_side(method: str, task: str, left: bool) -> None:
    torch.manual_seed(0)
    kind = LlamaForSequenceClassification if task == "SEQ_CLS" else LlamaForTokenClassification
    base = kind(LlamaConfig(**LLAMA, num_labels=3, initializer_range=0.3)).eval()
    config = getattr(afina, method.split()[0])(**{**options(method, "llama"), "task_type": task})
    model = afina.get_peft_model(base, config).eval()
    x, pad = ids(5, 1), torch.zeros(1, 3, dtype=torch.long)
    padded = torch.cat([pad, x] if left else [x, pad], dim=1)
    with torch.no_grad():
        alone = call(model, method, "llama", x)
        both = call(model, method, "llama", padded, attention_mask=(padded != 0).long())
    real = slice(None) if task == "SEQ_CLS" else slice(-5, None) if left else slice(-8, -3)
    assert torch.allclose(alone if task == "SEQ_CLS" else alone[:, -5:], both[:, real], atol=1e-5)


@pytest.mark.parametrize(("method", "name"), [c for c in DECODERS if not c[0].startswith("Multitask")])
def test_gradient_checkpointing_works_or_is_refused(method: str, name: str) -> None:
    model = adapted(afina, method, name)
    call(model, method, name).square().sum().backward()
    plain = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if method in CACHED:
        with pytest.raises(afina.errors.ConfigError, match="gradient checkpointing"):
            call(model, method, name)
        return
    call(model, method, name).square().sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.grad, plain[key], atol=1e-4), key


def test_two_prompts_switch_and_a_prompt_joins_a_weight_method() -> None:
    model = adapted(afina, "PromptTuningConfig", "llama")
    first = call(model, "PromptTuningConfig", "llama")
    model.add_adapter("other", afina.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    model.add_adapter("weights", afina.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False))
    model.set_adapter("other")
    assert call(model, "PromptTuningConfig", "llama").shape[1] == 7 + 3
    model.set_adapter(["default", "weights"])
    both = call(model, "PromptTuningConfig", "llama")
    assert both.shape == first.shape
    assert not torch.allclose(both, first)
    with pytest.raises(afina.errors.ConfigError, match="only one"):
        model.set_adapter(["default", "other"])
    model.set_adapter("default")
    assert torch.equal(call(model, "PromptTuningConfig", "llama"), first)
    model.delete_adapter("default")
    assert "default" not in model.peft_config


def test_merging_a_prompt_is_refused() -> None:
    model = adapted(afina, "PromptTuningConfig", "llama")
    with pytest.raises(afina.errors.NotMergeable, match="virtual tokens"):
        model.merge_and_unload()


@pytest.mark.parametrize(("kind", "expected"), [("none", [1.0] * 3), ("decay", [0.25, 0.5, 0.5])])
def test_cpt_loss_counts_the_contexts_answers_as_the_reference_does(kind: str, expected: list[float]) -> None:
    x, count = ids(), 9
    context = {"cpt_token_ids": list(range(10, 10 + count)), "cpt_mask": [1] * count, "opt_weighted_loss_type": kind,
               "cpt_tokens_type_mask": [1, 2, 3, 4, 5, 6, 7, 8, 8], "opt_loss_decay_factor": 0.5}  # fmt: skip
    labels = torch.cat([torch.full_like(x[:, :3], -100), x[:, 3:]], dim=1)
    results = []
    for library in (peft, afina):
        model = library.get_peft_model(build("llama"), library.CPTConfig(task_type="CAUSAL_LM", **context))
        (delta,) = (p for p in model.parameters() if p.requires_grad)
        loss = model(input_ids=x, attention_mask=torch.ones_like(x), labels=labels.clone()).loss
        loss.backward()
        results.append((loss.item(), delta.grad))
    (theirs, their_gradient), (mine, my_gradient) = results
    assert theirs == pytest.approx(mine, abs=1e-5)
    answers = torch.tensor(context["cpt_tokens_type_mask"]) % 4 == 0
    assert torch.allclose(their_gradient[~answers], my_gradient[~answers], atol=1e-5)
    weights = model.base_model.prompt_encoder["default"].label_weights()
    assert expected == ([1.0] * 3 if weights is None else weights[answers].tolist())


def test_cpt_bounds_are_those_of_the_reference() -> None:
    context = {"cpt_token_ids": [5, 6, 7, 8, 9], "cpt_mask": [1] * 5, "cpt_tokens_type_mask": [0, 1, 2, 3, 4],
               "opt_projection_epsilon": 0.3, "opt_projection_format_epsilon": 0.7}  # fmt: skip
    change, tables = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)), []
    for library in (peft, afina):
        model = library.get_peft_model(build("llama"), library.CPTConfig(task_type="CAUSAL_LM", **context))
        (delta,) = (p for p in model.parameters() if p.requires_grad)
        delta.data.copy_(change)
        tables.append(library.get_peft_model_state_dict(model)["prompt_embeddings"].detach())
    words = build("llama").get_input_embeddings().weight[5:10]
    assert torch.allclose(tables[0], tables[1], atol=1e-6)
    assert not torch.allclose(tables[1][1:4], words[1:4], atol=1e-3)
    assert torch.equal(tables[1][4], words[4])


def test_cartridge_takes_the_cache_of_a_text() -> None:
    model = adapted(afina, "CartridgeConfig", "llama")
    base, x = copy.deepcopy(build("llama")), ids(TOKENS, 1)
    with torch.no_grad():
        cache = base(input_ids=x, use_cache=True).past_key_values
        afina.initialize_kv_prefix_from_past_key_values(model, "default", cache)
        tail = ids(3, 1)
        with_cartridge = model(input_ids=tail, attention_mask=torch.ones_like(tail)).logits
        whole = base(input_ids=torch.cat([x, tail], dim=1)).logits[:, TOKENS:]
    assert torch.allclose(with_cartridge, whole, atol=1e-5)


@pytest.mark.parametrize(("method", "name"), DECODERS)
def test_positions_that_are_given_count_the_callers_tokens(method: str, name: str) -> None:
    model, x = adapted(afina, method, name), ids()
    places = torch.arange(x.shape[1]).expand_as(x)
    with torch.no_grad():
        own = call(model, method, name)
        assert torch.allclose(call(model, method, name, position_ids=places), own, atol=1e-5)
        assert not torch.allclose(call(model, method, name, position_ids=2 * places), own, atol=1e-5)


@pytest.mark.parametrize(("method", "name"), DECODERS)
@pytest.mark.parametrize("place", ["argument", "settings", "model"])
def test_lengths_of_generation_count_the_callers_tokens(method: str, name: str, place: str) -> None:
    model, x = adapted(afina, method, name), ids()
    more = {"task_ids": torch.arange(len(x)) % 3} if method.startswith("Multitask") else {}
    more |= {"attention_mask": torch.ones_like(x), "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(input_ids=x, max_new_tokens=4, min_new_tokens=4, **more)
    lengths: dict[str, Any] = {"max_length": x.shape[1] + 4, "min_length": x.shape[1] + 4}
    if place == "settings":
        settings = GenerationConfig(**lengths, **{k: more.pop(k) for k in ("do_sample", "pad_token_id")})
        lengths = {"generation_config": settings}
    elif place == "model":
        model.get_base_model().generation_config.update(**lengths)
        lengths = {}
    assert wanted.shape[1] == x.shape[1] + 4
    assert torch.equal(model.generate(input_ids=x, **lengths, **more), wanted)
    if place == "settings":
        assert settings.max_length == x.shape[1] + 4


class Words:
    """A tokenizer of numbers, with a template that puts a 9 before a system message."""

    chat_template: str | None = None

    def __call__(self, text: str, truncation: bool = False, max_length: int | None = None, **_: Any) -> Any:
        return {"input_ids": torch.tensor([[int(w) for w in text.split()]])[:, : max_length if truncation else None]}

    def apply_chat_template(self, messages: Any, **_: Any) -> Tensor:
        (message,) = messages
        assert message["role"] == "system"
        return self("9 " + message["content"])["input_ids"]


@pytest.mark.parametrize("method", ["CartridgeConfig", "PrefixTuningConfig"])
@pytest.mark.parametrize("template", ["{{}}", None])
def test_a_text_fills_a_cache_as_in_the_reference(method: str, template: str | None) -> None:
    words, outs = Words(), []
    words.chat_template = template
    without = words if template else words.__call__  # which has no template, and no method for one
    for library, tokenizer in ((peft, without), (afina, words)):
        model = adapted(library, method, "llama")
        start = library.tuners.cartridge.utils if library is peft else afina
        table = start.initialize_kv_prefix_from_text(model, tokenizer, text="3 4 5 6 7 8 10 11", max_length=6)
        assert table.shape == (TOKENS, 2 * 2 * 16)
        outs.append(call(model, method, "llama"))
    assert torch.allclose(outs[0], outs[1], atol=1e-5)
    assert not torch.allclose(outs[1], call(adapted(afina, method, "llama"), method, "llama"), atol=1e-3)


def test_only_an_adapter_that_holds_a_cache_of_this_length_is_filled() -> None:
    cache = build("llama")(input_ids=ids(TOKENS, 1), use_cache=True).past_key_values
    fill = afina.initialize_kv_prefix_from_past_key_values
    for method, told in (
        ("PromptTuningConfig", "CartridgeConfig or"),
        ("PrefixTuningConfig with projection", "projection"),
    ):
        with pytest.raises(afina.errors.ConfigError, match=told):
            fill(adapted(afina, method, "llama"), past_key_values=cache)
    with pytest.raises(afina.errors.ConfigError, match="another number of tokens"):
        fill(adapted(afina, "CartridgeConfig", "llama"), past_key_values=cache, num_virtual_tokens=TOKENS - 1)
