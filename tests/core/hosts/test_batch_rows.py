"""Adapters per row of a batch, on real architectures and where it cannot be."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from afina import (
    BottleneckConfig,
    HRAConfig,
    IA3Config,
    LoraConfig,
    get_peft_model,
)
from afina.core.hosts.adapter import Activation, Site
from afina.core.hosts.batch_rows import Rows
from afina.core.hosts.calls import entered
from afina.core.hosts.host import Host
from afina.errors import ConfigError, MergeError, NameTakenError

NAMES = ["lora", "__base__", "ia3", "bottleneck", "hra", "lora"]
IDS = torch.randint(3, 60, (6, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, :3] = MASK[3, :2] = 0


def nudge(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, eos_token_id=2, bos_token_id=1,
    ))  # fmt: skip


@pytest.fixture
def model():
    """LLaMA with adapters of four methods."""
    model = get_peft_model(llama(), LoraConfig(task_type="CAUSAL_LM", r=4), "lora")
    nudge(model, 1)
    others = {
        "ia3": IA3Config(task_type="CAUSAL_LM"), "bottleneck": BottleneckConfig(task_type="CAUSAL_LM"),
        "hra": HRAConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "down_proj"]),
    }  # fmt: skip
    for seed, (name, config) in enumerate(others.items()):
        model.add_adapter(name, config)
        model.set_adapter(name)
        nudge(model, seed + 2)
    return model.eval()


def alone(model, name, run):
    if name == "__base__":
        with model.disable_adapter():
            return run()
    model.set_adapter(name)
    return run()


@torch.no_grad()
def test_four_methods_and_the_base_share_a_batch(model):
    mixed = model(IDS, attention_mask=MASK, adapter_names=NAMES).logits
    for i, name in enumerate(NAMES):
        row = slice(i, i + 1)
        out = alone(model, name, lambda row=row: model(IDS[row], attention_mask=MASK[row]).logits)
        seen = MASK[i].bool()
        assert torch.allclose(mixed[i][seen], out[0][seen], atol=1e-5), name


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_generate_equals_generating_row_by_row(model, options):
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, **options}
    mixed = model.generate(input_ids=IDS, attention_mask=MASK, adapter_names=NAMES, **settings)
    copies = options.get("num_return_sequences", 1)
    for i, name in enumerate(NAMES):
        row = slice(i, i + 1)
        out = alone(
            model, name, lambda row=row: model.generate(input_ids=IDS[row], attention_mask=MASK[row], **settings)
        )
        own = mixed[i * copies : (i + 1) * copies, : out.shape[1]]
        assert torch.equal(own, out), name


def test_the_next_call_is_an_ordinary_one(model):
    model.set_adapter("lora")
    with torch.no_grad():
        before = model(IDS).logits
        model(IDS, adapter_names=NAMES)
        assert torch.equal(model(IDS).logits, before)


def test_gradient_checkpointing_gives_the_same_gradients(model):
    model.set_requires_grad(["lora", "ia3", "bottleneck", "hra"])

    def gradients():
        model.zero_grad()
        model(IDS, attention_mask=MASK, labels=IDS, adapter_names=NAMES).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.train()
    plain = gradients()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    again = gradients()
    assert plain.keys() == again.keys()
    assert len({n.split("adapters.")[1].split(".")[0] for n in plain}) == 4
    assert all(torch.allclose(plain[n], again[n], atol=1e-6) for n in plain)


@torch.no_grad()
def test_every_row_has_its_own_trained_head():
    torch.manual_seed(0)
    base = BertForSequenceClassification(BertConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    ))  # fmt: skip
    config = LoraConfig(task_type="SEQ_CLS", bias="lora_only", target_modules=["query", "value"])
    model = get_peft_model(base, config, "a")
    nudge(model, 1)
    model.add_adapter("b", LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    model.set_adapter("b")
    nudge(model, 2)
    model.eval()
    names = ["a", "b", "__base__", "b", "a", "a"]
    mixed = model(IDS, adapter_names=names).logits
    for i, name in enumerate(names):
        out = alone(model, name, lambda i=i: model(IDS[i : i + 1]).logits)
        assert torch.allclose(mixed[i], out[0], atol=1e-5), name


def test_what_cannot_be_is_refused(model):
    with pytest.raises(NameTakenError, match="no adapter of this name"):
        model(IDS, adapter_names=["lora"] * 5 + ["lara"])
    with pytest.raises(ConfigError, match="as many names as rows"):
        model(IDS, adapter_names=["lora"] * 5)
    with pytest.raises(ConfigError, match="one adapter name for every row"):
        model(IDS, adapter_names="lora")
    model.set_adapter("lora")
    model.merge_adapter()
    with pytest.raises(MergeError, match="while an adapter is merged"):
        model(IDS, adapter_names=NAMES)


def test_input_that_does_not_divide_into_rows_is_refused():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(x[1:])

    model = get_peft_model(Odd(), LoraConfig(target_modules=["inner"]), "a")
    model.add_adapter("b", LoraConfig(target_modules=["inner"]))
    with pytest.raises(ConfigError, match="does not divide into the batch's rows"):
        model(torch.randn(4, 4), adapter_names=["a", "b", "a", "b"])


# -- one layer --------------------------------------------------------------------------------------------------------


class Times(Activation):
    """Multiplies what a module gives by a number, whatever its form."""

    def __init__(self, host, number):
        super().__init__(Site(host.base, "x", torch.float32, torch.device("cpu")), None)
        self.number = number

    @property
    def dtype(self):
        return torch.float32

    def forward(self, inner, x):
        def times(value):
            if isinstance(value, torch.Tensor):
                return value * self.number
            return type(value)(map(times, value)) if isinstance(value, (tuple, list)) else value

        return times(inner(x))


class Many(nn.Module):
    """Gives several things, some with an entry a row."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, mask, factor=1.0, extra=None, options=()):
        self.calls.append((x, mask, extra, options))
        return x * factor, [mask, 5], torch.tensor(7.0), "text"


def rows_of(host, names, *args, **kwargs):
    with entered(host.scope, Rows(tuple(names))):
        return host(*args, **kwargs)


def many():
    host = Host(Many())
    host.add("a", Times(host, 2.0))
    host.add("b", Times(host, 3.0))
    host.set_active(("a",))
    return host


X = torch.arange(1.0, 9.0).reshape(4, 2)


def test_rows_are_grouped_in_the_order_of_their_adapters():
    rows = Rows(("b", "a", "b", "__base__"))
    assert rows.groups == {"b": [0, 2], "a": [1], "__base__": [3]}
    assert rows.pick("b", [5, 6, 7, 8]) == rows.pick("b", (5, 6, 7, 8)) == [5, 7]
    assert rows.pick("b", torch.tensor([5, 6, 7, 8])).tolist() == [5, 7]
    for whole in ([5, 6, 7], [5, 6, 7, 8, 9], torch.arange(3), torch.arange(5), torch.tensor(4), "abcd", None):
        assert rows.pick("b", whole) is whole


def test_outputs_of_all_forms_come_back_in_the_batchs_order():
    host, mask = many(), torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    out, (masks, number), scalar, text = rows_of(host, ["b", "a", "__base__", "b"], X, mask, factor=1.0)
    by = torch.tensor([[3.0], [2.0], [1.0], [3.0]])
    assert torch.equal(out, X * by)
    assert torch.equal(masks, mask * by)
    assert (number, text) == (5, "text")
    assert scalar.dim() == 0
    assert len(host.base_layer.calls) == 1  # the layer runs once for all


def test_rows_of_one_adapter_need_no_splitting():
    host = many()
    out, *_ = rows_of(host, ["b"] * 4, X, X)
    assert torch.equal(out, X * 3)
    out, *_ = rows_of(host, ["__base__"] * 4, X, X)
    assert torch.equal(out, X)
    out, *_ = rows_of(host, ["c", "d", "c", "d"], X, X)
    assert torch.equal(out, X)


class Asks(Activation):
    """Runs the layer on another input than its own, so that it has to run for these rows alone."""

    dtype = torch.float32

    def __init__(self, host):
        super().__init__(Site(host.base, "x", torch.float32, torch.device("cpu")), None)

    def forward(self, inner, x):
        assert inner.rows == 2
        return inner(x + 1)


Named = namedtuple("Named", "first second")


def test_what_a_layer_was_called_with_is_split_where_it_has_an_entry_a_row():
    host = Host(Many())
    host.add("a", Asks(host))
    mask, extra = torch.arange(4.0), {"m": torch.arange(4), "n": torch.arange(3), "s": torch.tensor(1)}
    kept = Named(torch.arange(4), 2)
    rows_of(host, ["__base__", "a", "a", "__base__"], X, mask, extra=extra, options=(kept, [torch.arange(4)]))
    (_, whole, *_), (x, given, more, options) = host.base_layer.calls
    assert whole is mask
    assert torch.equal(x, X[1:3] + 1)
    assert given.tolist() == [1.0, 2.0]
    assert [more[k].tolist() for k in "mns"] == [[1, 2], [0, 1, 2], 1]
    assert options[0] is kept
    assert options[1][0].tolist() == [1, 2]


def linear(bias=None):
    host = Host(nn.Linear(2, 2))
    host.add("a", Times(host, 2.0))
    if bias is not None:
        host.add_bias("b", nn.Parameter(torch.full((2,), bias)))
    return host


def test_trained_bias_goes_with_its_rows():
    host = linear(7.0)
    out = rows_of(host, ["a", "b", "__base__", "b"], X)
    plain = host.base_layer(X)
    shifted = plain - host.base_layer.bias + 7
    assert torch.allclose(out, torch.stack([plain[0] * 2, shifted[1], plain[2], shifted[3]]))
    assert torch.allclose(rows_of(host, ["b"] * 4, X), shifted)


def test_several_rows_of_a_layer_may_belong_to_one_of_the_batch_and_one_to_all():
    host = linear()
    by = torch.tensor([2.0, 2.0, 1.0, 1.0])[:, None]
    assert torch.allclose(rows_of(host, ["a", "__base__"], X), host.base_layer(X) * by)
    one = rows_of(host, ["a", "__base__"], X[:1])
    assert torch.allclose(one, host.base_layer(X[:1]) * torch.tensor([[2.0], [1.0]]))
    assert rows_of(host, ["a"], X[:1]).shape == (1, 2)
    with pytest.raises(ConfigError, match="a multiple of 3 rows"):
        rows_of(host, ["a", "__base__", "a"], X)


def test_rows_are_for_adapters_that_are_switched_on():
    host = linear()
    host.enable_adapters(False)
    assert torch.equal(rows_of(host, ["a"] * 4, X), host.base_layer(X))


@pytest.mark.parametrize("first", [True, False])
def test_attention_has_its_rows_where_it_says(first):
    host = Host(nn.MultiheadAttention(2, 1, batch_first=first))
    adapter = LoraConfig(r=1, target_modules=["0"])
    model = nn.Sequential(host.base_layer)
    model = get_peft_model(model, adapter, "a")
    host = next(m for m in model.modules() if isinstance(m, Host))
    good = torch.randn(2, 3, 2) if first else torch.randn(3, 2, 2)
    rows_of(host, ["a", "a"], good, good, good)
    for bad in (good.transpose(0, 1), good[:, :, 0]):
        with pytest.raises(ConfigError, match="2 rows"):
            rows_of(host, ["a", "a"], bad, bad, bad)


def test_rows_of_experts_that_are_given_all_tokens_one_expert_after_the_other():
    torch.manual_seed(0)
    model = Llama4ForCausalLM(Llama4TextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, intermediate_size_mlp=32, num_local_experts=3,
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=8, pad_token_id=0,
    ))  # fmt: skip
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    config = LoraConfig(target_modules=[], target_parameters=["experts.down_proj", "experts.gate_up_proj"], r=4)
    model = get_peft_model(model, config, "a")
    nudge(model, 1)
    model.add_adapter("b", config)
    model.set_adapter("b")
    nudge(model, 2)
    model.eval()
    names, ids = ["a", "b", "__base__", "b"], IDS[:4]
    with torch.no_grad():
        mixed = model(ids, adapter_names=names).logits
        with model.disable_adapter():
            alone = {"__base__": model(ids).logits}
        for name in ("a", "b"):
            model.set_adapter(name)
            alone[name] = model(ids).logits
    for row, name in enumerate(names):
        assert torch.allclose(mixed[row], alone[name][row], atol=1e-5)
    assert not torch.allclose(alone["a"], alone["b"], atol=1e-3)


def test_experts_that_do_not_tell_whose_tokens_they_get_are_refused():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3, 4))

        def forward(self, tokens):
            return torch.bmm(tokens.view(2, -1, 3), self.weight).flatten(0, 1)

    config = LoraConfig(target_modules=[], target_parameters=["0.weight"], r=2)
    model = get_peft_model(nn.Sequential(Experts()), config)
    assert model(torch.randn(8, 3)).shape == (8, 4)
    with pytest.raises(ConfigError, match="tokens alone"):
        model(torch.randn(4, 3), adapter_names=["default", "__base__"] * 2)
