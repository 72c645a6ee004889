"""All hosts of a model at once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import afina
from afina.core.hosts import tuner
from afina.core.hosts.batch_rows import Rows
from afina.core.hosts.host import hosts
from afina.errors import AfinaWarning, ConfigError, MergeError, NameTakenError, NotMergeable

from ..tiny import bits, config, inputs, llama, mlp, nudge, same_bits, t5


def training(model: nn.Module) -> set[str]:
    """Which adapters have parameters that train."""
    parts = ("adapters", "prompt_encoder", "biases", "modules_to_save", "shared")
    names = [n.split(".") for n, p in model.named_parameters() if p.requires_grad]
    return {n[i + 1] for n in names for i in range(len(n) - 1) if n[i] in parts}


@pytest.fixture
def model() -> Any:
    """LoRA with biases as "a", VeRA as "b"."""
    out = afina.get_peft_model(mlp(), config(bias="all", modules_to_save=["head"]), "a")
    nudge(out)
    out.add_adapter("b", afina.VeraConfig(target_modules=["up"], r=2))
    return out.eval()


def virtual(name: str = "p") -> Any:
    options = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 2}
    return afina.get_peft_model(llama(), afina.PromptTuningConfig(**options), name).eval()


def test_adapters_are_named_in_the_order_of_their_arrival(model: Any) -> None:
    assert tuner.adapter_names(model.base_model) == ["a", "b"]
    assert tuner.adapter_names(model.get_base_model()) == ["a", "b"]
    mixed = virtual()
    mixed.add_adapter("l", afina.LoraConfig(task_type="CAUSAL_LM"))
    assert tuner.adapter_names(mixed.base_model) == ["p", "l"]
    assert tuner.adapter_names(mlp()) == []


def test_a_models_calls_belong_to_one_scope(model: Any) -> None:
    scope = model.base_model.scope
    assert tuner.scope_of(model.base_model) is scope
    assert tuner.scope_of(model.get_base_model()) is scope
    assert tuner.scope_of(mlp()) is not scope


def test_unknown_names_are_refused_with_those_there_are() -> None:
    tuner.check_known([], [])
    tuner.check_known(["a"], ["b", "a"])
    with pytest.raises(NameTakenError, match="adapter1") as caught:
        tuner.check_known(["a", "adapter1"], ["a", "adapter2"])
    assert "a, adapter2" in str(caught.value)
    with pytest.raises(NameTakenError, match="none"):
        tuner.check_known(["a"], [])


def test_exactly_the_wanted_adapters_train(model: Any) -> None:
    base = model.base_model
    for names, trainable, expected in (
        (("a",), None, {"a"}), (("b",), None, {"b"}), (("a", "b"), None, {"a", "b"}), (("a", "b"), ("b",), {"b"}),
        (("a",), (), set()), ((), None, set()),
    ):  # fmt: skip
        tuner.activate(base, names, trainable=trainable)
        assert training(model) == expected
        assert all(h.active == names for _, h in hosts(model))
        assert base.active == names
    # Of what VeRA's layers share nothing trains.
    tuner.activate(base, ("b",))
    assert not any(p.requires_grad for p in base.shared.parameters())


def test_adapters_are_frozen_and_thawed_without_being_activated(model: Any) -> None:
    tuner.activate(model.base_model, ("a",))
    for place in (model, model.base_model, model.get_base_model()):
        tuner.set_requires_grad(place, ["a"], False)
        assert training(model) == set()
        tuner.set_requires_grad(place, ["b"], True)
        assert training(model) == {"b"}
        tuner.set_requires_grad(place, iter(["a", "b"]), True)
        assert training(model) == {"a", "b"}
        tuner.set_requires_grad(place, ["b"], False)
        assert training(model) == {"a"}
    assert {h.active for _, h in hosts(model)} == {("a",)}
    assert not any(p.requires_grad for p in model.base_model.shared.parameters())


def test_virtual_tokens_are_frozen_and_thawed(model: Any) -> None:
    prompts = virtual()
    encoder = prompts.base_model.prompt_encoder["p"]
    for place in (prompts, prompts.base_model):
        tuner.set_requires_grad(place, ["p"], False)
        assert not any(p.requires_grad for p in encoder.parameters())
        tuner.set_requires_grad(place, ["other"], True)
        assert not any(p.requires_grad for p in encoder.parameters())
        tuner.set_requires_grad(place, ["p"], True)
        assert {p.requires_grad for p in encoder.trainable().values()} == {True}


def test_trained_parts_that_layers_share_train_with_their_adapter() -> None:
    model = afina.get_peft_model(mlp(), afina.VBLoRAConfig(target_modules=["up"], vector_length=4, num_vectors=6), "v")
    model.add_adapter("l", config())

    def learns() -> set[bool]:
        return {p.requires_grad for p in tuner.shared_modules(model.base_model)["v"].parameters()}

    assert learns() == {True}
    tuner.activate(model.base_model, ("l",))
    assert learns() == {False}
    tuner.set_requires_grad(model, ["v"], True)
    assert learns() == {True}
    tuner.set_requires_grad(model, ["l"], False)
    assert learns() == {True}
    tuner.set_requires_grad(model, ["v"], False)
    assert learns() == {False}


def test_what_trains_goes_on_training_whatever_comes_inside(model: Any) -> None:
    tuner.activate(model.base_model, ("a",))
    kept = {n for n, p in model.named_parameters() if p.requires_grad}
    assert kept

    def fail() -> None:
        with tuner.training_kept(model):
            tuner.activate(model.base_model, ("b",))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {n for n, p in model.named_parameters() if p.requires_grad} == kept


def test_all_adapters_are_switched_off_and_on(model: Any) -> None:
    out = model(inputs())
    tuner.enable(model.base_model, False)
    assert not model.base_model.enabled
    assert torch.equal(model(inputs()), mlp()(inputs()))
    tuner.enable(model.base_model, True)
    assert model.base_model.enabled
    assert torch.equal(model(inputs()), out)


class Takes:
    """A method that consumes two arguments, and finds the first where neither is given."""

    inputs = frozenset({"task_ids", "weights"})

    @classmethod
    def find_inputs(cls, config: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"task_ids": (config, args, dict(kwargs))}


def test_what_methods_consume_is_taken_out_of_the_call() -> None:
    methods: Any = {"a": (Takes, "c"), "b": (SimpleNamespace(inputs=(), find_inputs=lambda *_: {}), None)}
    kwargs = {"x": 1, "task_ids": [5, 6, 7]}
    assert tuner.taken_inputs(methods, (), kwargs) == {"a": {"task_ids": [5, 6, 7], "weights": None}, "b": {}}
    assert kwargs == {"x": 1}
    assert tuner.taken_inputs(methods, (2,), {"x": 1})["a"] == {"task_ids": ("c", (2,), {"x": 1}), "weights": None}
    found = tuner.taken_inputs(methods, (), {"task_ids": [5, 6, 7]}, Rows(("a", "b", "a")))
    assert found["a"] == {"task_ids": [5, 7], "weights": None}


def test_merge_that_one_layer_refuses_changes_nothing(model: Any) -> None:
    before = bits(model)
    last = [h for _, h in hosts(model)][-2]
    with torch.no_grad():
        last.adapter("a").lora_B.fill_(float("nan"))
    broken = bits(model)
    with pytest.raises(ValueError, match="not finite"):
        tuner.merge(model.base_model, ("a",))
    assert {n for n, t in bits(model).items() if not torch.equal(t, before[n])} == {
        n for n, t in broken.items() if not torch.equal(t, before[n])
    }
    assert not any(h.merged for _, h in hosts(model))


def test_method_without_a_merged_form_is_told_with_its_layer() -> None:
    model = afina.get_peft_model(mlp(), afina.BottleneckConfig(target_modules=["up"]))
    with pytest.raises(NotMergeable, match=r"layers\.0\.up"):
        tuner.merge(model.base_model, ("default",))
    prompts = virtual()
    with pytest.raises(NotMergeable, match="virtual tokens"):
        tuner.merge(prompts.base_model, ("p",))


def test_merged_weights_come_back_to_the_bit(model: Any) -> None:
    before = bits(model)
    tuner.merge(model.base_model, ("a",))
    assert {h.merged for _, h in hosts(model) if h.parameter is None and h.stack == ()} >= {("a",)}
    assert not same_bits(bits(model), before)
    tuner.unmerge(model.base_model)
    assert same_bits(bits(model), before)


def test_prefix_is_that_of_the_first_adapters_method(model: Any) -> None:
    assert model.base_model.prefix == "lora_"
    assert tuner.Tuner(mlp()).prefix == ""


def test_only_one_adapter_with_virtual_tokens_can_be_active() -> None:
    model = virtual()
    model.add_adapter("q", afina.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ConfigError, match="'p', 'q'"):
        tuner.activate(model.base_model, ("p", "q"))
    base = model.base_model
    tuner.activate(base, ("q",))
    assert training(model) == {"q"}
    assert base.placement().config.num_virtual_tokens == 3
    tuner.activate(base, ("p",), trainable=())
    assert training(model) == set()
    assert base.placement().config.num_virtual_tokens == 2
    assert base.placements(["q", "none"]).keys() == {"q"}
    tuner.enable(base, False)
    assert base.placement() is None
    tuner.enable(base, True)
    with model.disable_adapter():
        assert base.placement() is None
    tuner.activate(base, ())
    assert base.placement() is None


@pytest.mark.parametrize(("dtype", "autocast", "expected"), [
    (torch.float32, True, torch.float32), (torch.bfloat16, True, torch.float32),
    (torch.bfloat16, False, torch.bfloat16), (torch.float64, True, torch.float64),
])  # fmt: skip
def test_virtual_tokens_have_the_models_dtype_and_halves_are_widened(
    dtype: torch.dtype, autocast: bool, expected: torch.dtype
) -> None:
    base = tuner.Tuner(llama().to(dtype)).eval()
    made = base.made_prompt(afina.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), autocast)
    assert {p.dtype for p in made.parameters()} == {expected}
    assert [tuple(p.shape) for p in made.parameters()] == [(2, 16)]
    assert not made.training


def test_encoder_and_decoder_have_virtual_tokens_of_their_own_where_those_are_embeddings() -> None:
    base, options = tuner.Tuner(t5()), {"task_type": "SEQ_2_SEQ_LM", "num_virtual_tokens": 2}
    embedded = base.made_prompt(afina.PromptTuningConfig(**options), True)
    assert [tuple(p.shape) for p in embedded.parameters()] == [(2 * 2, 16)]
    cached = base.made_prompt(afina.PrefixTuningConfig(**options), True)
    assert [p.shape[0] for p in cached.parameters()] == [2]


def test_tuner_answers_for_its_model_and_for_what_methods_offer(model: Any) -> None:
    base = model.base_model
    assert base.layers is base.model.layers
    assert base.vera_A["b"] is tuner.shared_modules(base)["b"].vera_A
    with pytest.raises(AttributeError, match="nothing"):
        base.nothing
    held = tuner.shared_modules(base)["b"]
    held.offers, held.update = frozenset({"update"}), lambda: 5
    tuner.activate(base, ("b",))
    assert base.update() == 5
    tuner.activate(base, ("a",))
    with pytest.raises(AttributeError):
        base.update
    empty = tuner.Tuner.__new__(tuner.Tuner)
    nn.Module.__init__(empty)
    with pytest.raises(AttributeError, match="model"):
        empty.model


def test_generation_is_told_what_a_method_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**routers: Any) -> Callable[[dict[str, Any]], Any]:
        monkeypatch.setattr(tuner, "routers", lambda _: routers)
        return lambda given: tuner.generation_options(mlp(), given)

    on, off = (SimpleNamespace(runs=runs, generation={"use_cache": False}) for runs in (True, False))
    assert of(a=off)({"use_cache": True}) == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert of(a=on)({"use_cache": False}) == of(a=on)({}) == {"use_cache": False}
    with pytest.warns(AfinaWarning, match="use_cache=True"):
        assert of(a=on, b=off)({"use_cache": True}) == {"use_cache": False}


def test_merge_of_a_quantised_base_is_refused_with_its_layer(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    path, host = next(iter(hosts(model.get_base_model())))

    def refuse(requantise: bool) -> None:
        if not requantise:
            raise MergeError("it is quantised", where="weight")

    monkeypatch.setattr(host.base, "check_merge", refuse, raising=False)
    with pytest.raises(MergeError, match=f"{path}: weight"):
        tuner.merge(model.get_base_model(), ("a",))
    tuner.merge(model.get_base_model(), ("a",), requantise=True)
    assert host.merged == ("a",)


def test_packed_weights_are_unpacked_to_train_and_to_be_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[Any] = []
    monkeypatch.setattr(tuner, "unpack", unpacked.append)
    base = tuner.Tuner(mlp())
    assert base.eval() is base
    assert not base.model.training
    assert unpacked == []
    assert base.train() is base
    assert base.model.training
    assert base.state_dict().keys() == {f"model.{n}" for n in mlp().state_dict()}
    assert unpacked == [base.model] * 2


def test_a_prompt_encoder_made_for_a_model_in_eval_drops_nothing_until_train() -> None:
    config = afina.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_reparameterization_type="LSTM", encoder_dropout=0.5,
        encoder_hidden_size=16, encoder_num_layers=2,
    )  # fmt: skip
    model = afina.get_peft_model(llama().eval(), config)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, model(ids).logits)
        model.train()
        assert not torch.equal(model(ids).logits, model(ids).logits)
