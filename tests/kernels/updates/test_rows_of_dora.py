"""Rows whose adapters have magnitudes are made in one product too, also on layers in few bits, and are what each is by
itself."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import afina
from afina.kernels.cuda import few_bits
from afina.kernels.cuda.few_bits import share_buffer
from afina.kernels.updates import rows_trial, siblings, wide_trial
from afina.kernels.updates.joint import Layer
from afina.kernels.updates.row_columns import RowColumns, magnified
from afina.kernels.updates.wide import ADDED, CARRY, Way

from .test_wide import IDS, rand, same, step

CPU = torch.device("cpu")
ROWS = RowColumns(6, [([0, 3], 2), ([1], 1), ([4, 2], 3)], CPU)
"""The last row goes through no adapter."""
OF_ROW = (0, 1, 2, 0, 2, None)
NAMES = (["default", "dora"], ["dora", "lora"], ["lora", "default"], ["dora", "__base__"], ["wide", "dora"])
ADAPTERS = {"dora": {"use_dora": True, "r": 5}, "lora": {"r": 3}, "wide": {"use_dora": True, "r": 9}}
KINDS = [("nf4", 0.0), ("int8", 0.0), ("int8", 6.0), ("int8, inputs as they are", 0.0)]


def test_every_row_is_multiplied_by_its_own_adapters_magnitudes():
    y, n = rand(6, 2, 5, seed=0).requires_grad_(), [rand(5, seed=i).requires_grad_() for i in (1, 2)]
    of_all = [n[0], None, n[1]]
    found = magnified(y, of_all, ROWS)
    one_by_one = [row if i is None or of_all[i] is None else row * of_all[i] for i, row in zip(OF_ROW, y, strict=True)]
    torch.testing.assert_close(found, torch.stack(one_by_one))
    assert (found - y)[0].abs().max() > 0.1
    assert torch.autograd.gradcheck(lambda y, a, b: magnified(y, [a, None, b], ROWS), (y, *n))
    torch.testing.assert_close(magnified(y.flatten(0, 1), of_all, ROWS), found.flatten(0, 1))


def test_magnitudes_that_are_no_numbers_spoil_no_rows_but_their_own():
    y, n = rand(6, 2, 5, seed=0).requires_grad_(), [rand(5, seed=i).requires_grad_() for i in (1, 2, 3)]
    bad = [n[0], torch.full_like(n[1], float("nan")).requires_grad_(), n[2]]
    found, expected = magnified(y, bad, ROWS), magnified(y, n, ROWS)
    own = torch.tensor([i == 1 for i in OF_ROW])
    assert found[own].isnan().all()
    torch.testing.assert_close(found[~own], expected[~own])
    spoilt, right = (torch.autograd.grad(out[~own].square().sum(), [y, n[0], n[2]]) for out in (found, expected))
    torch.testing.assert_close([spoilt[0][~own], *spoilt[1:]], [right[0][~own], *right[1:]])


def dense(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=1, attention_bias=True,
                         num_attention_heads=4, num_key_value_heads=2)  # fmt: skip
    base = LlamaForCausalLM(config)
    for name, bias in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(bias)
    lora = afina.LoraConfig(init_lora_weights=False, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True)
    return afina.get_peft_model(base.to(dtype), lora).train()


def in_4_bits():
    from ..cuda.test_few_bits import llama

    return llama()


def in_8_bits():
    from ..cuda.test_eight_bits import llama

    return llama()


def with_more(made, choose, device="cpu"):
    """A model with four adapters; rows are made as `choose` says, or one group after the other."""
    model = made().to(device)
    torch.manual_seed(1)
    for name, fields in ADAPTERS.items():
        config = afina.LoraConfig(init_lora_weights=False, target_modules="all-linear", **fields)
        model.add_adapter(name, config)
    for _, host in siblings.hosts(model.get_base_model()):
        host.require_grad(("default", *ADAPTERS))
        for name in ("default", "dora", "wide"):  # as after some training
            if isinstance(m := getattr(host.adapter(name), "lora_magnitude_vector", None), torch.Tensor):
                m.data *= torch.linspace(0.5, 2, m.numel()).view(m.shape)
    if choose is not None:
        share_buffer(model.get_base_model())
        siblings.join(model.get_base_model(), lambda: model(input_ids=IDS.to(device)), choose)
    return model.to(device)


@pytest.mark.sampled(2, "each pair of adapters meets two ways at the least")
@pytest.mark.parametrize("names", NAMES, ids=" ".join)
@pytest.mark.parametrize(
    ("made", "way"), [(dense, ADDED), (dense, Way(CARRY, CARRY)), (in_4_bits, ADDED), (in_8_bits, ADDED)]
)
def test_a_models_step_is_that_of_rows_one_after_the_other(made, way, names, calls, places, writes_where_it_is_told):
    expected = step(with_more(made, None), adapter_names=names)
    assert not calls
    assert not places
    model = with_more(made, lambda *_: way)
    found = step(model, adapter_names=names)
    same(found, expected)
    layers = model.get_base_model().config.num_hidden_layers
    # In 8 bits products of LoRA are with rounded inputs, those of DoRA are not.
    apart = made is in_8_bits and "dora" in names and "wide" not in names
    assert calls == ([] if apart else [3, 1, 2, 1] * layers)
    assert (len(places) > 0) == (made is not dense)
    with torch.no_grad():
        a, b = (m(input_ids=IDS, adapter_names=names).logits for m in (model, with_more(made, None)))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bits_are_no_further_from_the_exact_result_than_each_adapter_by_itself(dtype, calls):
    names = ["dora", "default"]

    def logits(model, adapter_names=None):
        return model(input_ids=IDS, adapter_names=adapter_names).logits.double()

    exact = logits(with_more(dense, None).double(), names)
    model, alone = with_more(lambda: dense(dtype), lambda *_: ADDED), []
    found = logits(model, names)
    assert calls
    for i, name in enumerate(names):
        model.set_adapter(name)
        alone.append(logits(model)[i])
    assert (found - exact).norm() <= 1.2 * (torch.stack(alone) - exact).norm()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("scaled", [False, True])
def test_what_is_timed_of_layers_in_few_bits_is_the_same_thing(kind, scaled, places, writes_where_it_is_told):
    case = rows_trial.Case(((128, 64), 64, (5, 3)), 13, 2, torch.float32, CPU, kind=kind, magnified=scaled)
    batch, found = rows_trial.Batch(case), []
    for outputs in (batch.together(), batch.apart()):
        gradients = torch.autograd.grad(outputs, [batch.x, *batch.factors], batch.g)
        found.append([*(y.detach() for y in outputs), *gradients])
    torch.testing.assert_close(*found)
    assert len(batch.factors) == 4 + 4 * scaled
    assert places


def test_a_trial_is_asked_of_what_the_layers_are(monkeypatch):
    """By storage and magnitudes; where layers are stored in several ways, nothing is."""
    asked, cuda = [], torch.device("cuda:0")
    x = SimpleNamespace(device=cuda, dtype=torch.bfloat16, shape=(2, 9, 4), numel=lambda: 72)
    monkeypatch.setattr(rows_trial, "kept", lambda question, *_: asked.append(question) or rows_trial._YES)
    monkeypatch.setattr(wide_trial, "kept", lambda *_: "carried; carried")
    for known in (rows_trial.gains, wide_trial._known):
        known.cache_clear()
    layer = Layer(torch.ones(3, 4), None, torch.ones(2, 4), torch.ones(3, 2), 1.0,
                  rows=RowColumns(2, [([0], 1), ([1], 1)], CPU))  # fmt: skip
    few = layer._replace(weight=few_bits.Stored(torch.ones(6, 1), SimpleNamespace(quant_type="nf4"), few_bits.Buffer()))
    try:
        assert wide_trial.way([layer], x) == Way(CARRY, CARRY)
        assert wide_trial.way([layer._replace(magnified=True)], x) == Way(CARRY, CARRY)
        assert wide_trial.way([few], x) == ADDED
        assert wide_trial.way([few, layer], x) is None
    finally:
        for known in (rows_trial.gains, wide_trial._known):
            known.cache_clear()
    assert [(q["kind"], q["magnified"], q["tokens"]) for q in asked] == [
        ("None", "False", "32"), ("None", "True", "32"), ("('nf4', 0.0)", "False", "32")]  # fmt: skip
