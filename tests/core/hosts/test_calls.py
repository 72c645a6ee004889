"""What belongs to a call travels with the call: threads, tasks, recomputation and compiled layers see their own."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import nn

import afina
from afina.core.hosts.batch_rows import BASE, Rows
from afina.core.hosts.calls import Call, Scope, current, entered, innermost, node_number, switched_off, within
from afina.core.hosts.users import Users
from afina.errors import ConfigError

from ..model.test_passes import IDS, MASK, NAMES, OTHERS, PROMPTS, TASKS, llama

THREADS, ROUNDS = 6, 12


@pytest.fixture(scope="module")
def model() -> Any:
    return llama()


def together(jobs: list[Callable[[], Any]]) -> list[Any]:
    """What jobs give on threads of their own that start at once."""
    gate = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        gate.wait()
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(run, jobs))


def forward(model: Any, names: list[str] | None, rows: int = 2) -> torch.Tensor:
    more = {} if names is None else {"adapter_names": names}
    with torch.no_grad():
        out: torch.Tensor = model(IDS[:rows], attention_mask=MASK[:rows], task_ids=TASKS[:rows], **more).logits
    return out


def test_every_method_of_rows_gives_on_threads_what_it_gives_alone(model: Any) -> None:
    kinds = [list(k) for k in dict.fromkeys(zip(NAMES, [*NAMES[1:], NAMES[0]], strict=True))]
    alone = [forward(model, k) for k in kinds]
    assert len({a.double().sum().item() for a in alone}) == len(alone)  # each has an effect of its own
    for _ in range(3):
        got = together([lambda k=k: forward(model, k) for k in kinds])  # type: ignore[misc]
        for names, one, other in zip(kinds, alone, got, strict=True):
            assert torch.equal(one, other), names


def test_a_switched_off_thread_disturbs_no_other(model: Any) -> None:
    def off() -> torch.Tensor:
        with model.disable_adapter():
            return torch.stack([forward(model, None) for _ in range(ROUNDS)])

    def on() -> torch.Tensor:
        return torch.stack([forward(model, None) for _ in range(ROUNDS)])

    base, adapted = off(), on()
    assert not torch.equal(base, adapted)
    got = together([off if i % 2 else on for i in range(THREADS)])
    for i, out in enumerate(got):
        assert torch.equal(out, base if i % 2 else adapted)


@pytest.mark.parametrize("name", ["lora", "PromptTuningConfig", "PrefixTuningConfig", "XLoraConfig", BASE])
def test_generate_on_threads_gives_what_it_gives_alone(model: Any, name: str) -> None:
    def generated(adapter: str) -> torch.Tensor:
        return model.generate(input_ids=IDS[:2], attention_mask=MASK[:2], adapter_names=[adapter] * 2,
                              max_new_tokens=6, do_sample=False)  # fmt: skip

    alone = {n: generated(n) for n in (name, "second")}
    got = together([lambda n=n: generated(n) for n in (name, "second") * 3])  # type: ignore[misc]
    for i, out in enumerate(got):
        assert torch.equal(out, alone[(name, "second")[i % 2]])


def test_asyncio_tasks_keep_their_switches_to_themselves(model: Any) -> None:
    async def task(off: bool) -> torch.Tensor:
        with model.disable_adapter() if off else contextlib.nullcontext():
            outs = []
            for _ in range(3):
                outs.append(forward(model, None))
                await asyncio.sleep(0)
        return torch.stack(outs)

    async def both() -> list[torch.Tensor]:
        return await asyncio.gather(task(True), task(False))

    off, on = asyncio.run(both())
    assert torch.equal(on, torch.stack([forward(model, None)] * 3))
    with model.disable_adapter():
        assert torch.equal(off, torch.stack([forward(model, None)] * 3))


def test_merged_weights_and_switched_off_threads_do_not_meet() -> None:
    model = llama({})
    base = copy.deepcopy(model).unload()
    with torch.no_grad():
        plain = base(IDS[:2]).logits
    model.merge_adapter()

    def off() -> torch.Tensor:
        with model.disable_adapter(), torch.no_grad():
            return model(IDS[:2]).logits

    def on() -> torch.Tensor:
        with torch.no_grad():
            return model(IDS[:2]).logits

    merged = on()
    for i, out in enumerate(together([off if i % 2 else on for i in range(THREADS)])):
        assert torch.equal(out, plain if i % 2 else merged)


# -- layers that run again --------------------------------------------------------------------------------------------


def gradients(model: Any, call: Callable[[], torch.Tensor], elsewhere: bool = False) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = call()
    if elsewhere:  # as on a GPU, where a thread of autograd's own runs backward
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    else:
        loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def trainable(*names: str, **options: Any) -> Any:
    model = llama({n: {**PROMPTS, **OTHERS}.get(n, {}) for n in names}, **options)
    model.set_requires_grad(["lora", *names])
    model.enable_input_require_grads()
    return model


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_layers_see_the_rows_of_their_own_call_on_whatever_thread(reentrant: bool) -> None:
    model = trainable("other")

    def call() -> torch.Tensor:
        rows = model(IDS[:2], labels=IDS[:2], adapter_names=["lora", "other"]).loss
        with model.disable_adapter():  # another call comes between forward and backward
            model(IDS[:2])
        return rows

    plain = gradients(model, call)
    model.get_base_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for elsewhere in (False, True):
        again = gradients(model, call, elsewhere)
        assert plain.keys() == again.keys()
        assert any(".other." in n for n in plain)
        for name, gradient in plain.items():
            assert torch.allclose(gradient, again[name], atol=1e-6), name


def test_one_backward_of_two_calls_runs_each_ones_layers_again_as_they_were() -> None:
    model = trainable("other")

    def call() -> torch.Tensor:
        first = model(IDS[:2], labels=IDS[:2], adapter_names=["other", "other"]).loss
        second = model(IDS[2:4], labels=IDS[2:4]).loss
        return first + 2 * second

    plain = gradients(model, call)
    model.get_base_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = gradients(model, call)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], atol=1e-6), name


def test_task_numbers_are_seen_again_by_checkpointed_layers() -> None:
    torch.manual_seed(0)
    base = copy.deepcopy(llama({}).unload())
    model = afina.get_peft_model(
        base, afina.PolyConfig(n_tasks=3, r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "poly" in name:
            parameter.data.normal_(std=0.3)
    model.eval()
    model.enable_input_require_grads()

    def call() -> torch.Tensor:
        loss = model(IDS[:2], labels=IDS[:2], task_ids=torch.tensor([0, 2])).loss
        model(IDS[:2], task_ids=torch.tensor([1, 1]))
        return loss

    plain = gradients(model, call)
    model.get_base_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():  # Poly draws its weights in training
        if type(module).__name__ == "Poly":
            module.eval()
    again = gradients(model, call)
    assert any("poly" in n for n in plain)
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], atol=1e-6), name


def test_layers_called_inside_a_switched_off_context_run_again_switched_off() -> None:
    model = trainable()
    inner = model.get_base_model()

    def call() -> torch.Tensor:
        with model.disable_adapter():
            return inner(IDS[:2], labels=IDS[:2]).loss

    def embedding_gradient() -> torch.Tensor:
        table = inner.get_input_embeddings().weight
        table.requires_grad_(True)
        (out,) = torch.autograd.grad(call(), [table])
        return out

    plain = embedding_gradient()
    inner.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    assert torch.allclose(embedding_gradient(), plain, atol=1e-6)


def test_it_is_an_error_where_the_call_of_a_layer_cannot_be_known() -> None:
    scope = Scope()
    with entered(scope, enabled=False) as first:
        a = torch.ones(2, requires_grad=True) * 2
    first.keep_for_backward(a, 0)
    with entered(scope, enabled=False) as second:
        pass
    second.span = first.span
    second.graphs = first.graphs
    scope.alive.add(second)
    a.grad_fn.register_prehook(lambda _: current(scope))
    with pytest.raises(ConfigError, match="not known for which call"):
        a.sum().backward()


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Nothing of other tests is compiled, and all layers, which share their code, may be for each kind of call."""
    config: Any = torch._dynamo.config
    torch._dynamo.reset()
    before, config.recompile_limit = config.recompile_limit, 64  # for other threads too, unlike `config.patch`
    yield
    config.recompile_limit = before
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@torch._dynamo.config.patch(recompile_limit=64)
def test_compiled_layers_see_their_own_call() -> None:
    # Two layers by four kinds of call are torch's 8 already, and guards that several threads ask at once may fail there
    # for no reason: the code is then compiled once more. Threads have the limit only in a copy of this context.
    model = llama({"second": {}})
    layers = model.get_base_model().model.layers
    alone = {n: forward(model, [n] * 2) for n in ("lora", "second", BASE)}
    with model.disable_adapter():
        assert torch.equal(forward(model, None), alone[BASE])
    for layer in layers:
        layer.forward = torch.compile(layer.forward, backend="eager", fullgraph=True)
    for _ in range(2):
        for name, out in alone.items():
            assert torch.allclose(forward(model, [name] * 2), out, atol=1e-6)
        with model.disable_adapter():
            assert torch.allclose(forward(model, None), alone[BASE], atol=1e-6)
    jobs = [partial(contextvars.copy_context().run, forward, model, [name] * 2) for name in list(alone) * 2]
    for name, out in zip(list(alone) * 2, together(jobs), strict=True):
        assert torch.allclose(out, alone[name], atol=1e-6), name


def test_copies_have_calls_of_their_own() -> None:
    model = llama({"second": {}})
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        adapted = forward(twin, None)
        with model.disable_adapter():
            assert torch.equal(forward(twin, None), adapted)
            assert not torch.equal(forward(model, None), adapted)


# -- changes ----------------------------------------------------------------------------------------------------------


class Slow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.inside, self.go_on = threading.Event(), threading.Event()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inside.set()
        assert self.go_on.wait(10)
        return self.up(x)  # type: ignore[no-any-return]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "add": lambda m: m.add_adapter("new", afina.LoraConfig(target_modules=["up"])),
    "set": lambda m: m.set_adapter("second"),
    "delete": lambda m: m.delete_adapter("second"),
    "merge": lambda m: m.merge_adapter(),
    "unmerge": lambda m: m.unmerge_adapter(),
    "unload": lambda m: m.unload(),
    "fuse": lambda m: m.merge_and_unload(),
    "combine": lambda m: m.add_weighted_adapter(["default", "second"], [1.0, 1.0], "sum", combination_type="cat"),
    "convert": lambda m: afina.convert_to_lora(m, 2, "default"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_adapters_waits_for_the_calls_of_other_threads(change: str) -> None:
    slow = Slow()
    model = afina.get_peft_model(slow, afina.LoraConfig(target_modules=["up"], init_lora_weights=False))
    model.add_adapter("second", afina.LoraConfig(target_modules=["up"], init_lora_weights=False))
    slow.go_on.set()
    x = torch.ones(1, 4)
    before = model(x).detach()
    slow.go_on.clear()
    slow.inside.clear()
    done = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(lambda: model(x).detach())
        assert slow.inside.wait(10)
        changing = pool.submit(lambda: (CHANGES[change](model), done.set()))
        assert not done.wait(0.2)
        slow.go_on.set()
        assert torch.equal(running.result(10), before)
        changing.result(10)
    assert done.is_set()


def test_a_call_waits_for_a_change() -> None:
    users, order = Users(), []

    def call() -> None:
        with users.calling():
            order.append("call")

    with users.changing(), users.changing():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join(0.1)
        order.append("change")
    thread.join(10)
    assert order == ["change", "call"]


def test_two_threads_that_change_inside_their_calls_are_told_instead_of_waiting_for_ever() -> None:
    users, refused = Users(), []
    gate = threading.Barrier(2)

    def job() -> None:
        try:
            with users.calling():
                gate.wait(10)
                with users.changing():
                    pass
        except ConfigError as error:
            refused.append(error)

    threads = [threading.Thread(target=job) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(t.is_alive() for t in threads)
    assert len(refused) == 1


def test_a_change_inside_a_call_of_the_same_thread_goes_on() -> None:
    users = Users()
    with users.calling(), users.changing(), users.calling():
        pass
    with users.changing():
        pass


# -- what a call is ----------------------------------------------------------------------------------------------------


def test_call_is_plain_that_changes_nothing() -> None:
    scope = Scope()
    assert Call(scope).is_plain
    assert not Call(scope, Rows(("a",))).is_plain
    assert not Call(scope, enabled=False).is_plain
    assert not Call(scope, inputs={"a": {"task_ids": 1}}).is_plain
    noted = Call(scope)
    noted.notes["x"] = 1
    assert not noted.is_plain


def test_some_rows_of_a_call_see_what_it_holds() -> None:
    call = Call(Scope(), Rows(("a", "b")), enabled=False, inputs={"a": {"x": 1}})
    inner = call.narrowed(Rows(("a",)))
    inner.notes["k"] = 2
    assert inner.rows is not None
    assert (inner.scope, inner.rows.names, inner.enabled, inner.inputs) == (call.scope, ("a",), False, call.inputs)
    assert call.notes == {"k": 2}


def test_calls_nest_and_each_model_sees_its_own() -> None:
    one, two = Scope(), Scope()
    assert current(one) is None
    assert current(None) is None
    with within(Call(one)) as outer, within(Call(two)) as inner:
        assert innermost() is inner
        assert (current(one), current(two)) == (outer, inner)
        assert inner.outer is outer
        with entered(one) as again:
            assert current(one) is again
        assert current(one) is outer
    assert innermost() is None
    with pytest.raises(KeyError), within(Call(one)):
        raise KeyError
    assert innermost() is None


def test_switch_of_the_surroundings_is_kept_to() -> None:
    scope = Scope()
    with entered(scope) as call:
        assert call.enabled
    with entered(scope, enabled=False) as call:
        assert not call.enabled
        with entered(scope) as inner:
            assert not inner.enabled
        with entered(Scope()) as other:
            assert other.enabled


def test_call_is_known_as_long_as_its_outputs_can_be_differentiated() -> None:
    scope, x = Scope(), torch.ones(2, requires_grad=True)
    call, start = Call(scope), node_number()
    out = {"a": [x * 2, (x * 3,)], "b": 5}
    call.keep_for_backward(out, start)
    assert list(scope.alive) == [call]
    assert call.span == (start, start + 2)
    assert call.graphs == set()
    out["a"][1][0].sum().backward()  # type: ignore[index]
    assert len(call.graphs) == 1
    plain = Call(scope)
    plain.keep_for_backward([x.detach(), x], node_number())  # nothing was computed
    assert list(scope.alive) == [call]
    assert plain.span == (0, 0)


def test_context_without_adapters_is_remembered_if_layers_ran_in_it() -> None:
    scope, x = Scope(), torch.ones(2, requires_grad=True)
    with switched_off(scope):
        pass
    with switched_off(scope), torch.no_grad():
        x * 2
    with torch.no_grad(), switched_off(scope):
        x * 2
    assert list(scope.contexts) == []
    with switched_off(scope):
        assert not current(scope).enabled  # type: ignore[union-attr]
        x * 2
    (call,) = scope.contexts
    assert call.span[1] == call.span[0] + 1
    for _ in range(20):
        with switched_off(scope):
            x * 2
    assert len(scope.contexts) == 16


class Again(torch.autograd.Function):
    """Asks in the backward pass which call runs again."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scope: Scope, found: list[Any]) -> torch.Tensor:
        ctx.scope, ctx.found = scope, found
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:  # type: ignore[override]
        ctx.found.append(current(ctx.scope))
        return grads[0], None, None


def test_call_is_found_again_by_the_node_that_runs() -> None:
    scope, found = Scope(), list[Any]()
    x = torch.ones(2, requires_grad=True)
    calls, outs = [], []
    for name in "ab":
        start = node_number()
        with within(Call(scope, Rows((name,)))) as call:
            outs.append(Again.apply(x, scope, found))
        call.keep_for_backward(outs[-1], start)
        calls.append(call)
    outside = Again.apply(x, scope, found)
    outs[1].sum().backward()
    outs[0].sum().backward()
    assert found == calls[::-1]
    with pytest.raises(ConfigError, match="not known for which call"):
        outside.sum().backward()
    assert scope.again() is None  # outside of any backward pass
    plain = Scope()
    start = node_number()
    Call(plain).keep_for_backward(kept := x * 2, start)
    Again.apply(x, plain, found).sum().backward()
    assert found[-1] is None
    del kept


def test_calls_whose_numbers_overlap_are_told_apart_by_the_backward_pass() -> None:
    scope, found = Scope(), list[Any]()
    x = torch.ones(2, requires_grad=True)
    calls, outs = [Call(scope, Rows((name,))) for name in "ab"], []
    for call in calls:
        start = node_number()
        with within(call):
            outs.append(Again.apply(x, scope, found) * 2)
        call.keep_for_backward(outs[-1], start)
    for call in calls:
        call.span = (0, node_number())  # as if each were of a thread of its own
    outs[1].sum().backward()
    outs[0].sum().backward()
    assert found == calls[::-1]


def test_copy_of_a_scope_is_a_fresh_one() -> None:
    scope = Scope()
    scope.contexts.append(Call(scope))
    other = copy.deepcopy(scope)
    assert other is not scope
    assert (list(other.contexts), list(other.alive)) == ([], [])
