"""Recorded steps are the steps themselves: on a GPU as CUDA graphs, here by a stand-in that runs what it recorded."""

from __future__ import annotations

import copy
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, masking_utils

import afina
from afina.errors import AfinaError, AfinaWarning
from afina.kernels.cuda import replay as module
from afina.kernels.cuda.graphs import Graphs
from afina.kernels.cuda.replay import SEEN, Replays, plain_masks
from afina.kernels.listening import heard_by
from afina.kernels.speed import speed_up

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
WORDS = 160


class Again:
    """Repeats what it was given to record; counts how often."""

    def __init__(self):
        self.records = self.repeats = 0

    def warm(self, run):
        run()

    def recorded(self, run):
        self.records += 1
        run()

        def repeat():
            self.repeats += 1
            run()

        return repeat

    def draws(self):
        return torch.get_rng_state()

    def set_draws(self, state):
        torch.set_rng_state(state)


class Waits(Again):
    """Waits, when it is told to, before it repeats."""

    def __init__(self):
        super().__init__()
        self.entered, self.go, self.waits = threading.Event(), threading.Event(), False

    def recorded(self, run):
        repeat = super().recorded(run)

        def later():
            if self.waits:
                self.waits = False
                self.entered.set()
                assert self.go.wait(60)
            repeat()

        return later


class Wrong(Again):
    """Repeats the forward pass with another model than was recorded."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def recorded(self, run):
        repeat = super().recorded(run)
        if self.records > 1:
            return repeat

        def other():
            with torch.no_grad():
                next(p for p in self.model.parameters() if p.requires_grad).add_(0.5)
            repeat()

        return other


def llama(device="cpu", dtype=torch.float32, dropout=0.0, config=None):
    torch.manual_seed(0)
    sizes = LlamaConfig(vocab_size=WORDS, hidden_size=64, intermediate_size=96, num_hidden_layers=2, head_dim=32,
                        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1)  # fmt: skip
    base = LlamaForCausalLM(sizes).to(device, dtype)
    lora = afina.LoraConfig(target_modules="all-linear", init_lora_weights=False, lora_dropout=dropout,
                            task_type="CAUSAL_LM")  # fmt: skip
    return afina.get_peft_model(base, config or lora).train()


def replayed(device="cpu", machine=None, **how):
    model = llama(device, **how)
    said = speed_up(model, keep_logits=False, replay=device == "cuda")
    base = model.get_base_model()
    if device == "cuda":
        assert "replayed steps: those whose shapes come again" in said
        base.replays.machine = machine or Counted(torch.device(device))
    else:
        base.replays = Replays(base, machine or Again())
    return model, base.replays


class Counted(Graphs):
    """CUDA graphs, counted."""

    def __init__(self, device):
        super().__init__(device)
        self.records = self.repeats = 0

    def recorded(self, run):
        self.records += 1
        replay = super().recorded(run)

        def repeat():
            self.repeats += 1
            replay()

        return repeat


def batch(number, device="cpu", rows=2, tokens=24, padded=0):
    draw = torch.Generator().manual_seed(number)
    ids = torch.randint(1, WORDS, (rows, tokens), generator=draw)
    labels = ids.clone()
    labels[:, : tokens // 3] = -100
    out = {"input_ids": ids, "labels": labels}
    if padded:
        mask = torch.ones_like(ids)
        mask[1, -padded - number % 2 :] = 0
        out |= {"attention_mask": mask, "labels": labels.where(mask.bool(), -100)}
    return {k: v.to(device) for k, v in out.items()}


def trained(model, batches, accumulated=1, scale=1.0):
    """Losses and the parameters after a step for each batch."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    losses = []
    torch.manual_seed(3)
    for data in batches:
        for _ in range(accumulated):
            loss = model(**data, use_cache=False).loss
            (loss * scale).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss.detach()))
        del loss
    return losses, [p.detach().clone() for p in parameters]


def assert_same(found, expected, far):
    (losses, parameters), (other, weights) = found, expected
    assert losses == pytest.approx(other, rel=far)
    assert len({round(x, 4) for x in losses}) > 1
    for a, b in zip(parameters, weights, strict=True):
        assert float((a - b).float().norm()) <= far * float(b.float().norm())


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("padded", [0, 3])
@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("device", DEVICES)
def test_a_run_of_recorded_steps_is_the_run(device, accumulated, padded, dropout):
    batches = [batch(n, device, padded=padded) for n in range(6)]
    plain = llama(device, dropout=dropout)
    speed_up(plain, keep_logits=False)
    model, replays = replayed(device, dropout=dropout)
    found = trained(model, batches, accumulated, 0.5)
    assert replays.off == ""
    assert replays.machine.records >= 2
    assert replays.machine.repeats >= 2 * accumulated
    assert_same(found, trained(plain, batches, accumulated, 0.5), 1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_a_run_of_dora_is_recorded_too(device):
    lora = {"target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    config = afina.LoraConfig(use_dora=True, **lora)
    batches = [batch(n, device) for n in range(5)]
    plain = llama(device, config=config)
    speed_up(plain, keep_logits=False)
    model, replays = replayed(device, config=config)
    found = trained(model, batches)
    assert (replays.off, len(replays.steps)) == ("", 1)
    assert_same(found, trained(plain, batches), 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.gpu
def test_in_16_bits_the_run_is_as_near_as_another_run(dtype):
    batches = [batch(n, "cuda", rows=8, tokens=64) for n in range(6)]
    plain = llama("cuda", dtype)
    speed_up(plain, keep_logits=False)
    model, replays = replayed("cuda", dtype=dtype)
    found = trained(model, batches)
    assert (replays.off, replays.machine.records) == ("", 2)
    assert_same(found, trained(plain, batches), 2e-2)


@pytest.mark.gpu
def test_after_a_recording_that_fails_random_numbers_come_as_before():
    model, replays = replayed("cuda", dropout=0.2)

    def looks(run):
        return lambda given, room: run({**given}, room) * float(given["labels"].float().mean() < 1e9)

    loss, data = replays.loss, batch(0, "cuda")
    replays.loss = lambda run, inputs: loss(looks(run), inputs)
    model(**data).loss.backward()
    with pytest.warns(AfinaWarning, match="not replayed as CUDA graphs"):
        model(**data).loss.backward()
    state = torch.cuda.get_rng_state()
    first = float(model(**data).loss.detach())
    assert float(model(**data).loss.detach()) != first
    torch.cuda.set_rng_state(state)
    assert float(model(**data).loss.detach()) == first
    assert torch.randn(3, device="cuda").isfinite().all()


@pytest.mark.gpu
def test_rows_end_to_end_with_empty_ones_are_recorded():
    from afina.devices.place import place
    from afina.kernels.cuda.flash import use_flash
    from afina.train.data.arranged.packing import _laid_out

    found = []
    for fast in (False, True):
        model = llama("cuda", torch.bfloat16)
        assert use_flash(model, place("cuda"), packed=True) == "attention by lengths: on"
        speed_up(model, keep_logits=False, replay=fast)
        losses = []
        for number in range(5):
            draw = torch.Generator().manual_seed(number)
            rows = [torch.randint(1, WORDS, (n + number,), generator=draw).tolist() for n in (40, 3, 64, 21)]
            items = [{"input_ids": r, "labels": [-100, *r[1:]], "position_ids": [*range(len(r))]} for r in rows]
            data = _laid_out(items, 0 if fast else None)
            data = {k: v.to("cuda") if torch.is_tensor(v) else v for k, v in data.items()}
            loss = model(**data, use_cache=False).loss
            loss.backward()
            losses.append((float(loss.detach()), [p.grad.float() for p in model.parameters() if p.grad is not None]))
            model.zero_grad()
            del loss
        found.append(losses)
    replays = model.get_base_model().replays
    assert (replays.off, len(replays.steps)) == ("", 1)
    for (plain, expected), (fast, gradients) in zip(*found, strict=True):
        assert fast == pytest.approx(plain, rel=3e-2)
        for a, b in zip(gradients, expected, strict=True):
            assert float((a - b).norm()) <= 6e-2 * float(b.norm())


def test_shapes_are_recorded_when_they_come_again_but_no_more_than_so_many(monkeypatch):
    model, replays = replayed()
    for n in range(SEEN):
        assert not replays.steps
        model(**batch(n)).loss.backward()
    assert len(replays.steps) == 1
    monkeypatch.setattr(module, "MOST", 3)
    for tokens in (8, 9, 10, 11):
        for _ in range(SEEN):
            model(**batch(1, tokens=tokens)).loss.backward()
    assert len(replays.steps) == 3


def test_other_numbers_and_adapters_switched_off_are_computed():
    model, replays = replayed()
    plain = llama()
    data, machine = batch(0), replays.machine
    for _ in range(SEEN + 1):
        model(**data).loss.backward()
    known = machine.repeats
    assert known >= 3

    def same():
        before = machine.repeats
        assert float(model(**data).loss.detach()) == pytest.approx(float(plain(**data).loss.detach()), rel=1e-4)
        assert machine.repeats == before

    for one in (model, plain):
        one.get_base_model().model.layers[0].self_attn.q_proj.set_scale("default", 3.0)
    same()
    with model.disable_adapter(), plain.disable_adapter():
        same()


@pytest.mark.parametrize("target", ["q_proj", "down_proj"])
def test_an_adapter_that_comes_later_is_learnt_also_on_layers_that_had_none(target):
    config = afina.LoraConfig(target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    model, replays = replayed(config=config)
    plain, found = llama(config=config), []
    for _ in range(SEEN + 1):
        model(**batch(0)).loss.backward()
    for one in (model, plain):
        torch.manual_seed(9)
        one.add_adapter("other", afina.LoraConfig(target_modules=[target], init_lora_weights=False))
        one.base_model.set_adapter(["default", "other"])
        for number in range(SEEN + 2):
            one.zero_grad()
            loss = one(**batch(number)).loss
            loss.backward()
        found.append([loss.detach(), *(p.grad for p in one.parameters() if p.requires_grad)])
    assert len(found[0]) > 9
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
    assert all(g is not None and g.any() for g in found[0])
    assert len(replays.steps) == 1


def test_another_thread_computes_while_one_has_the_recorded_step():
    machine = Waits()
    model, _ = replayed(machine=machine)
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(number):
        return torch.autograd.grad(model(**batch(number)).loss, parameters)

    expected = [gradients(number) for number in range(SEEN + 1)]
    machine.waits, before = True, machine.repeats
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(gradients, 0)
        assert machine.entered.wait(60)
        second = gradients(1)
        assert machine.repeats == before
        machine.go.set()
        first = first.result()
    assert machine.repeats == before + 2
    for found, wanted in zip((first, second), expected, strict=False):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert any(g.any() for g in found)


def test_masks_are_other_ones_for_the_thread_that_records_alone():
    from transformers.masking_utils import find_packed_sequence_indices as own

    packed = torch.tensor([[0, 1, 2, 0, 1]])
    with plain_masks(), ThreadPoolExecutor(1) as pool:
        assert masking_utils.find_packed_sequence_indices(packed) is None
        elsewhere = pool.submit(lambda: masking_utils.find_packed_sequence_indices(packed)).result()
    assert elsewhere.tolist() == own(packed).tolist() == [[0, 0, 0, 1, 1]]


def test_a_forward_pass_while_a_backward_pass_is_due_is_computed():
    model, replays = replayed()
    data, other = batch(0), batch(1)
    for _ in range(SEEN):
        model(**data).loss.backward()
    model.zero_grad()
    first, second = model(**data).loss, model(**other).loss
    (first + second).backward()
    plain = llama()
    speed_up(plain, keep_logits=False)
    (plain(**data).loss + plain(**other).loss).backward()
    grads = [[p.grad for p in m.parameters() if p.grad is not None] for m in (model, plain)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-6)
    del first, second
    gc.collect()
    before = replays.machine.repeats
    model(**data).loss.backward()
    assert replays.machine.repeats == before + 2


def test_a_second_backward_pass_through_a_recorded_step_is_refused():
    model, _ = replayed()
    for _ in range(SEEN):
        loss = model(**batch(0)).loss
        loss.backward(retain_graph=True)
    with pytest.raises(AfinaError, match="one backward pass"):
        loss.backward()


def test_a_recorded_step_that_is_another_one_is_told_of_and_not_used():
    model, _ = replayed()
    model.get_base_model().replays = Replays(model.get_base_model(), Wrong(model))
    model(**batch(0)).loss.backward()
    with pytest.warns(AfinaWarning, match="not replayed as CUDA graphs"):
        model(**batch(1)).loss.backward()
    assert not model.get_base_model().replays.steps
    assert "differs" in model.get_base_model().replays.off


@pytest.mark.parametrize("config", [
    afina.AdaLoraConfig(target_modules=["q_proj"], total_step=10, task_type="CAUSAL_LM"),
    afina.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
])  # fmt: skip
def test_what_may_be_another_thing_at_each_step_is_not_recorded(config):
    model, replays = replayed(config=config)
    for _ in range(SEEN + 1):
        model(**batch(0)).loss.backward()
    assert not replays.steps


def test_nothing_is_recorded_without_gradients_or_for_who_hears_each_position():
    model, replays = replayed()
    heard = []
    for _ in range(SEEN + 1):
        with torch.no_grad():
            model(**batch(0))
        with heard_by(lambda *found: heard.append(found)):
            model(**batch(0)).loss.backward()
    assert not replays.steps
    assert len(heard) == SEEN + 1


def test_copies_compute_anew():
    model, _ = replayed()
    again = copy.deepcopy(model)
    assert again.get_base_model().replays is None
    again(**batch(0)).loss.backward()


def test_rows_without_a_mask_are_the_same_while_transformers_looks_at_none():
    model, ids = llama().eval(), batch(0)["input_ids"]
    plain = model(input_ids=ids).logits
    with plain_masks():
        assert torch.equal(model(input_ids=ids).logits, plain)


def test_on_a_processor_it_says_that_it_takes_cuda_graphs():
    assert "replayed steps: off, because it takes CUDA graphs" in speed_up(llama(), keep_logits=False, replay=True)
