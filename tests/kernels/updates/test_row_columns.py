"""Rows of a batch with adapters of their own in one product are what each is by itself, whoever is beside it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import afina
from afina.kernels.updates import siblings
from afina.kernels.updates.joint import Layer, lora_linears
from afina.kernels.updates.row_columns import RowColumns
from afina.kernels.updates.wide import ADD, CARRY, Way, make_room

from .test_wide import IDS, llama, rand, same, step

CPU = torch.device("cpu")
WAYS = (Way(ADD, ADD), Way(CARRY, ADD), Way(ADD, CARRY), Way(CARRY, CARRY))
ROWS = ([0, 3], [1], [4, 2])
"""Of five rows, those of three adapters; none of them in a row of more than one."""
RANKS = ((2, 1, 3), (1, 4, 2))
"""Of these adapters on two layers."""


def layers(dtype=torch.float64):
    out = []
    for i, (width, ranks) in enumerate(zip((5, 3), RANKS, strict=True)):
        rows = RowColumns(6, list(zip(ROWS, ranks, strict=True)), CPU)
        out.append(Layer(nn.Parameter(rand(width, 5, seed=i, dtype=dtype), requires_grad=False),
                         rand(width, seed=9, dtype=dtype) if i else None, rand(sum(ranks), 5, seed=10 + i).to(dtype),
                         rand(width, sum(ranks), seed=20 + i).to(dtype), 0.5 + i, rows=rows))  # fmt: skip
    return out


def one_by_one(x, layer, ranks):
    """The formula of each row; the last goes through none."""
    parts = zip(torch.split(layer.a, ranks), torch.split(layer.b, ranks, 1), ROWS, strict=True)
    y = F.linear(x, layer.weight, layer.bias)
    own = {row: layer.scale * x[row] @ a.mT @ b.mT for a, b, rows in parts for row in rows}
    return torch.stack([y[i] + own.get(i, 0) for i in range(len(x))])


@pytest.mark.parametrize("more", [0, 3])
@pytest.mark.parametrize("way", WAYS)
def test_outputs_and_gradients_are_each_rows_formula(way, more):
    """Also where the buffer has room for more than these adapters take."""
    x, given = rand(6, 2, 5, seed=30).requires_grad_(), layers()
    expected = [one_by_one(x, layer, ranks) for layer, ranks in zip(given, RANKS, strict=True)]
    plain = [F.linear(x, layer.weight, layer.bias) for layer in given]
    room = make_room([layer.weight for layer in given], [len(layer.a) + more for layer in given], way)
    found = lora_linears(x, given, room)
    torch.testing.assert_close(list(found), expected)
    assert all((y - p)[-1].abs().max() < 1e-12 < (y - p)[0].abs().max() for y, p in zip(found, plain, strict=True))

    def run(x, *flat):
        pairs = zip(given, flat[::2], flat[1::2], strict=True)
        return lora_linears(x, [layer._replace(a=a, b=b) for layer, a, b in pairs], room)

    factors = [t.requires_grad_() for layer in given for t in (layer.a, layer.b)]
    assert torch.autograd.gradcheck(run, (x, *factors))


@pytest.mark.parametrize("what", ["a", "b"])
@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_that_is_no_number_spoils_no_rows_but_its_own(way, what):
    x, given = rand(6, 2, 5, seed=30).requires_grad_(), layers()
    bad = [layer._replace(**{what: getattr(layer, what).clone()}) for layer in given]
    for layer, ranks in zip(bad, RANKS, strict=True):
        columns = slice(ranks[0], ranks[0] + ranks[1])  # of the second adapter
        (layer.a if what == "a" else layer.b.mT)[columns] = float("nan")
    results = []
    for one in (given, bad):
        factors = [t.requires_grad_() for layer in one for t in (layer.a, layer.b)]
        room = make_room([layer.weight for layer in one], [len(layer.a) for layer in one], way)
        out = torch.cat(lora_linears(x, one, room), -1)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *factors])])
    (out, dx, *gradients), (found, spoilt, *others) = results
    own = torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor(ROWS[1]), True)
    assert found[own].isnan().all()
    torch.testing.assert_close([found[~own], spoilt[~own]], [out[~own], dx[~own]])
    for i, (a, b) in enumerate(zip(gradients, others, strict=True)):
        ranks = RANKS[i // 2]
        rest = torch.arange(sum(ranks)).lt(ranks[0]) | torch.arange(sum(ranks)).ge(ranks[0] + ranks[1])
        a, b = (t if i % 2 == 0 else t.mT for t in (a, b))
        torch.testing.assert_close(b[rest], a[rest])
        assert b[~rest].isnan().any()


MADE = {("b", "default"): [3, 1, 2, 1], ("default", "b"): [3, 1, 2, 1], ("b", "__base__"): [3], ("c", "b"): [3]}
"""How many layers each joint operation has, by the rows' adapters: "b" is on q, k, v and up; "c", on q, is DoRA."""
NAMES = [list(names) for names in MADE]


class Chosen:
    """Answers as a trial would, and counts; None has rows made one group after the other."""

    def __init__(self, of_rows):
        self.of_rows, self.groups = of_rows, []

    def __call__(self, layers, x):
        groups = max(0 if layer.rows is None else len(layer.rows.groups) for layer in layers)
        self.groups.append(groups)
        return self.of_rows if groups else WAYS[-1]


def with_two(way, **options):
    model = llama(chosen := Chosen(way), **options)
    torch.manual_seed(1)
    model.add_adapter("b", afina.LoraConfig(r=6, init_lora_weights=False, target_modules=["q_proj", "k_proj", "v_proj",
                                                                                          "up_proj"]))  # fmt: skip
    dora = afina.LoraConfig(r=2, use_dora=True, init_lora_weights=False, target_modules=["q_proj"])
    model.add_adapter("c", dora)
    for host in (h for _, h in siblings.hosts(model.get_base_model())):
        host.require_grad(("default", "b", "c"))
    return model, chosen


@pytest.mark.parametrize("names", NAMES, ids=" ".join)
@pytest.mark.parametrize("way", WAYS)
def test_a_models_step_is_that_of_rows_one_after_the_other(way, names, calls):
    expected = step(with_two(None)[0], adapter_names=names)
    assert calls == []
    model, chosen = with_two(way)
    found = step(model, adapter_names=names)
    same(found, expected)
    assert calls == MADE[tuple(names)]
    assert chosen.groups == {4: [2, 1, 2, 1], 1: [1 if "__base__" in names else 2]}[len(calls)]


def test_where_nothing_is_learnt_too_and_repeated_with_other_rows(calls):
    (model, _), (plain, _) = with_two(WAYS[-1]), with_two(None)
    with torch.no_grad():
        for names in NAMES:
            a, b = (m.eval()(input_ids=IDS, adapter_names=names).logits for m in (model, plain))
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert (a - model(input_ids=IDS).logits).abs().max() > 1e-3
    assert calls
    with torch.inference_mode():
        calls.clear()
        found = model(input_ids=IDS, adapter_names=NAMES[0]).logits
        torch.testing.assert_close(found, plain(input_ids=IDS, adapter_names=NAMES[0]).logits, rtol=1e-4, atol=1e-5)
    assert calls == []  # such tensors do not tell whether they were changed


def test_what_was_made_where_nothing_is_learnt_is_no_answer_where_something_is():
    model, _ = with_two(WAYS[-1])
    attention, x, rows = model.get_base_model().model.layers[0].self_attn, torch.randn(2, 12, 32), NAMES[0]
    taken = []

    def asks(first, second):
        def forward(*_, **__):
            with torch.set_grad_enabled(first):
                attention.q_proj(x)
            with torch.set_grad_enabled(second):
                taken.append(attention.k_proj(x))
            return x, None

        return forward

    for first, second in ((False, True), (True, False), (True, True)):
        attention.forward = asks(first, second)
        model(input_ids=IDS, adapter_names=rows)
        assert taken[-1].requires_grad == second


def test_plain_steps_and_those_of_rows_in_turn_are_right_as_the_buffer_grows(calls):
    (model, _), (plain, _) = with_two(WAYS[-1]), with_two(None)
    for names in (None, NAMES[0], None, NAMES[2], NAMES[0]):
        same(step(model, adapter_names=names), step(plain, adapter_names=names))
    assert calls


def test_a_buffer_that_grows_before_a_backward_pass_leaves_that_right():
    (model, _), (plain, _) = with_two(WAYS[-1]), with_two(None)
    found = []
    for one in (plain, model):
        one.zero_grad()
        loss = one(input_ids=IDS, labels=IDS).loss  # carried, in room for four columns
        with torch.no_grad():
            one(input_ids=IDS, adapter_names=NAMES[0])  # takes more
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in one.parameters() if p.grad is not None)])
    same(*reversed(found))


def test_steps_with_checkpointing_and_of_copies_are_the_same(calls):
    model, _ = with_two(WAYS[-1])
    first = step(model, adapter_names=NAMES[0])
    same(step(copy.deepcopy(model), adapter_names=NAMES[0]), first)
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.get_base_model().enable_input_require_grads()
    before = len(calls)
    same(step(model, adapter_names=NAMES[0]), first)
    assert len(calls) > before
