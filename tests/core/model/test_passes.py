"""Rows with virtual tokens, whole-model routing and the like: equal to each row alone, in as few passes as can be."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import afina
from afina.core.hosts.batch_rows import BASE
from afina.core.model import passes
from afina.core.model.rows_of_call import make_rows
from afina.errors import ConfigError

TASK = {"task_type": "CAUSAL_LM"}
PROMPTS: dict[str, dict[str, Any]] = {
    "PromptTuningConfig": {"num_virtual_tokens": 3},
    "PrefixTuningConfig": {"num_virtual_tokens": 4},
    "PromptEncoderConfig": {"num_virtual_tokens": 5, "encoder_hidden_size": 16},
    "CartridgeConfig": {"num_virtual_tokens": 6},
    "MultitaskPromptTuningConfig": {"num_virtual_tokens": 2, "num_tasks": 3, "num_ranks": 2},
    "CPTConfig": {"cpt_token_ids": [5, 6, 7, 8], "cpt_mask": [1] * 4, "cpt_tokens_type_mask": [1, 2, 3, 4],
                  "opt_weighted_loss_type": "decay", "opt_loss_decay_factor": 0.7},
}  # fmt: skip
"""Methods with virtual tokens: one pass in a causal model's forward; `test_the_plan_...` says what `generate` takes."""
OTHERS: dict[str, dict[str, Any]] = {
    "ShadowConfig": {"shadow_dropout": 0.0},
    "AdaptionPromptConfig": {"adapter_len": 3, "adapter_layers": 1},
    "XLoraConfig": {"adapters": {"lora": "", "second": ""}},
}
"""Methods whose rows get a pass of their own."""
NAMES = ["lora", *PROMPTS, BASE, *OTHERS, "lora", "PromptTuningConfig"]
SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}  # fmt: skip
IDS = torch.randint(3, 60, (len(NAMES), 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, :3] = MASK[3, :2] = MASK[5, :4] = MASK[8, :1] = 0
LABELS = IDS.masked_fill(MASK == 0, -100)
TASKS = torch.arange(len(NAMES)) % 3


def nudge(model: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)


def with_all(base: Any, methods: dict[str, dict[str, Any]], **common: Any) -> Any:
    """A model with a LoRA and an adapter of each method, all of them trained a little."""
    model = afina.get_peft_model(base, afina.LoraConfig(**common, r=4), "lora")
    nudge(model, 1)
    second = {"second": {}} if "XLoraConfig" in methods else {}
    for seed, (name, options) in enumerate({**second, **methods}.items(), 2):
        config = getattr(afina, name) if name.endswith("Config") else afina.LoraConfig
        model.add_adapter(name, config(**common, **options))
        model.set_adapter(name)
        nudge(model, seed)
    model.set_adapter("lora")
    return model.eval()


def llama(methods: dict[str, dict[str, Any]] | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, **options))
    return with_all(base, {**PROMPTS, **OTHERS} if methods is None else methods, **TASK)


def alone(model: Any, name: str, run: Any) -> Any:
    before = model.active_adapters
    model.set_adapter(before if name == BASE else name)
    with model.disable_adapter() if name == BASE else contextlib.nullcontext():
        out = run()
    model.set_adapter(before)
    return out


def row(i: int, name: str, **values: Any) -> dict[str, Any]:
    """One row of a batch, with the task that one of the methods asks for."""
    more = {"task_ids": TASKS[i : i + 1]} if name.startswith("Multitask") else {}
    return {**{k: v[i : i + 1] for k, v in values.items() if v is not None}, **more}


def count_passes(model: Any) -> list[int]:
    seen = [0]

    def hook(*_: Any) -> None:
        seen[0] += 1

    model.get_base_model().register_forward_pre_hook(hook)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("mask", [MASK, None], ids=["padded", "unpadded"])
def test_virtual_tokens_weights_and_the_base_share_one_pass(mask: Any) -> None:
    model = llama(PROMPTS)
    names = [n if n not in OTHERS else "lora" for n in NAMES]
    seen = count_passes(model)
    mixed = model(IDS, attention_mask=mask, adapter_names=names, task_ids=TASKS).logits
    assert seen == [1]
    compare(model, mixed, names, mask)


@torch.no_grad()
def test_every_method_shares_a_batch() -> None:
    model = llama()
    seen = count_passes(model)
    mixed = model(IDS, attention_mask=MASK, adapter_names=NAMES, task_ids=TASKS, output_hidden_states=True)
    assert seen == [1 + len(OTHERS)]
    compare(model, mixed.logits, NAMES, MASK)
    assert len(mixed.hidden_states) == 3
    assert mixed.hidden_states[0].shape[:2] == mixed.logits.shape[:2]
    assert mixed.past_key_values is None


def compare(model: Any, mixed: torch.Tensor, names: list[str], mask: Any) -> None:
    for i, name in enumerate(names):
        given = row(i, name, attention_mask=mask)
        out = alone(model, name, lambda i=i, given=given: model(input_ids=IDS[i : i + 1], **given)).logits[0]
        seen = 7 if mask is None else int(mask[i].sum())
        virtual = len(out) - 7
        assert (mixed[i, -seen:] - out[-seen:]).abs().max() < 1e-5, name
        if virtual:
            assert (mixed[i, -len(out) : -7] - out[:virtual]).abs().max() < 1e-5, name


@pytest.mark.parametrize("methods", [PROMPTS, {**PROMPTS, **OTHERS}], ids=["one pass", "several"])
def test_the_loss_is_the_mean_over_all_labels_and_its_gradients_are_the_rows_own(methods: Any) -> None:
    model = llama(methods)
    names = [n if n in (*methods, BASE) else "lora" for n in NAMES]
    every = [n for n in model.peft_config if n in names]
    model.set_requires_grad(every)
    out = model(IDS, attention_mask=MASK, labels=LABELS, adapter_names=names, task_ids=TASKS)
    out.loss.backward()
    mixed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    model.zero_grad()
    losses, counts = [], []
    for i, name in enumerate(names):
        given = row(i, name, attention_mask=MASK, labels=LABELS)
        counts.append(passes._labels_seen(model, name, LABELS[i : i + 1]))

        def run(i: int = i, given: Any = given) -> torch.Tensor:
            model.set_requires_grad(every)
            return model(input_ids=IDS[i : i + 1], **given).loss

        losses.append(alone(model, name, run))
    total = sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)
    assert torch.allclose(out.loss, total, atol=1e-5)
    model.set_requires_grad(every)
    total.backward()
    own = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert mixed.keys() == own.keys()
    assert {n for n in every if any(n in key.split(".") for key in own)} == set(every)
    assert all(torch.allclose(mixed[n], own[n], atol=1e-5) for n in own)


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_beams": 2},
        {"eos_token_id": list(range(3, 12))},
        {"repetition_penalty": 1.5},
        {"max_new_tokens": None, "max_length": 14},
    ],
    ids=str,
)
def test_generate_equals_generating_row_by_row(options: dict[str, Any]) -> None:
    model = llama()
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, **options}
    mixed = model.generate(input_ids=IDS, attention_mask=MASK, adapter_names=NAMES, task_ids=TASKS, **settings)
    for i, name in enumerate(NAMES):
        given = row(i, name, input_ids=IDS, attention_mask=MASK)
        out = alone(model, name, lambda given=given: model.generate(**given, **settings))[0]
        assert torch.equal(mixed[i, : len(out)], out), name
        # Beam search takes a padding token of 0 for none, and fills up with the end token.
        assert set(mixed[i, len(out) :].tolist()) <= ({0, 2} if "num_beams" in options else {0})


@torch.no_grad()
def test_models_with_windows_and_encoder_decoders_take_one_pass_for_each_prompt() -> None:
    torch.manual_seed(0)
    methods = {n: PROMPTS[n] for n in ("PromptTuningConfig", "PrefixTuningConfig")}
    names = ["lora", "PromptTuningConfig", "PrefixTuningConfig", BASE, "lora", "PrefixTuningConfig"]
    windowed = MistralForCausalLM(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=6))
    model = with_all(windowed, methods, **TASK)
    seen = count_passes(model)
    mixed = model(IDS[:6], attention_mask=MASK[:6], adapter_names=names).logits
    assert seen == [3]
    compare(model, mixed, names, MASK)

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8,
                                             decoder_start_token_id=0))  # fmt: skip
    model = with_all(t5, methods, task_type="SEQ_2_SEQ_LM")
    inputs = {"input_ids": IDS[:6], "attention_mask": MASK[:6], "labels": LABELS[:6, 2:]}
    out = model(**inputs, adapter_names=names)
    total = 0.0
    for i, name in enumerate(names):
        own = alone(model, name, lambda i=i: model(**{k: v[i : i + 1] for k, v in inputs.items()}))
        assert (out.logits[i] - own.logits[0]).abs().max() < 1e-5, name
        total += own.loss * (inputs["labels"][i] != -100).sum()
    assert torch.allclose(out.loss, total / (inputs["labels"] != -100).sum(), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("task", "build"), [("SEQ_CLS", BertForSequenceClassification),
                                             ("TOKEN_CLS", BertForTokenClassification)])  # fmt: skip
def test_classifiers_share_a_batch_and_each_has_its_own_head(task: str, build: Any) -> None:
    torch.manual_seed(0)
    bert = build(BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                            num_attention_heads=4, num_labels=3))  # fmt: skip
    methods = {n: PROMPTS[n] for n in ("PromptTuningConfig", "PrefixTuningConfig")}
    model = with_all(bert, methods, task_type=task)
    names = ["lora", "PromptTuningConfig", "PrefixTuningConfig", BASE, "lora", "PrefixTuningConfig"]
    labels = IDS[:6, 0] % 3 if task == "SEQ_CLS" else (IDS[:6] % 3).masked_fill(MASK[:6] == 0, -100)
    inputs = {"input_ids": IDS[:6], "attention_mask": MASK[:6], "labels": labels}
    out = model(**inputs, adapter_names=names)
    total, counts = 0.0, [1 if task == "SEQ_CLS" else int(MASK[i].sum()) for i in range(6)]
    for i, name in enumerate(names):
        own = alone(model, name, lambda i=i: model(**{k: v[i : i + 1] for k, v in inputs.items()}))
        size = own.logits.shape[1]
        part = out.logits[i] if task == "SEQ_CLS" else out.logits[i, -size:]
        assert (part - own.logits[0]).abs().max() < 1e-5, name
        total += own.loss * counts[i]
    assert torch.allclose(out.loss, torch.as_tensor(total / sum(counts)), atol=1e-5)


@torch.no_grad()
def test_rows_of_one_adapter_do_not_ask_which_one_is_active() -> None:
    model = llama()
    for name in (*PROMPTS, *OTHERS, "lora", BASE):
        more = {"task_ids": TASKS} if name.startswith("Multitask") else {}
        expected = alone(model, name, lambda more=more: model(IDS, attention_mask=MASK, **more).logits)
        for active in ("lora", "PromptTuningConfig", "XLoraConfig"):
            model.set_adapter(active)
            out = model(IDS, attention_mask=MASK, adapter_names=[name] * len(IDS), **more).logits
            assert torch.allclose(out, expected, atol=1e-6), (name, active)
            assert model.active_adapters == [active]


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_run_again_after_several_passes_see_the_rows_of_their_own_pass(reentrant: bool) -> None:
    def gradients(checkpoint: bool) -> dict[str, torch.Tensor]:
        model = llama()
        model.train()
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        for name in ("lora", "ShadowConfig"):
            model.set_requires_grad(name)
        if checkpoint:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
        model(IDS[:3], labels=IDS[:3], adapter_names=["lora", "ShadowConfig", "lora"]).loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain, checkpointed = gradients(False), gradients(True)
    assert plain.keys() == checkpointed.keys()
    assert any(".lora." in n for n in plain)
    assert any(".ShadowConfig." in n for n in plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, checkpointed[name], atol=1e-6), name


def test_what_cannot_be_divided_is_refused() -> None:
    model = llama()
    names = ["lora", "ShadowConfig", "lora"]
    with pytest.raises(ConfigError, match="cannot be divided into the batch's rows"):
        model(IDS[:3], attention_mask=MASK[:2], adapter_names=names)
    with pytest.raises(ConfigError, match="a cache cannot be divided"):
        model(IDS[:3], past_key_values=object(), adapter_names=names)
    with pytest.raises(ConfigError, match="only the sequences"):
        model.generate(input_ids=IDS[:3], adapter_names=names, return_dict_in_generate=True)


def test_the_plan_has_one_pass_for_all_that_can_share_it() -> None:
    model = llama()
    rows = make_rows(NAMES, model.peft_config)
    assert passes.plan(model, rows, {})[0] == ("lora", *PROMPTS, BASE)
    assert passes.plan(model, rows, {})[1:] == [(n,) for n in OTHERS]
    embedded = tuple(n for n in PROMPTS if n not in ("PrefixTuningConfig", "CartridgeConfig"))
    cached = [("PrefixTuningConfig",), ("CartridgeConfig",)]
    others = [(n,) for n in OTHERS]
    planned = passes.plan(model, rows, {"max_new_tokens": 3}, generating=True)
    assert planned == [("lora", BASE), embedded, *cached, *others]
    planned = passes.plan(model, rows, {"max_length": 30}, generating=True)
    assert planned == [("lora", BASE), *((n,) for n in (*PROMPTS, *OTHERS))]
