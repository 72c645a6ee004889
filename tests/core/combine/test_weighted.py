"""Weighted combinations equal the reference's, mean what they say, and behave like any other adapter."""

from __future__ import annotations

import itertools
import json
import warnings

import pytest
import torch
from torch import nn

import afina
from afina.core.combine.low_rank_form import update_of
from afina.core.combine.offer import TYPES
from afina.core.hosts.host import hosts
from afina.errors import AfinaWarning, ConfigError, MergeError, NameTakenError, NotMergeable

from .. import tiny

LAYERS = ("table", "up", "image", "down")


class Net(nn.Module):
    """One layer of each kind that the reference combines."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.up = nn.Embedding(11, 8), nn.Linear(8, 12)
        self.image, self.down = nn.Conv2d(3, 6, 3), nn.Linear(12, 8)
        self.conv = nn.Conv2d(4, 8, 1)

    def forward(self, ids):
        return self.down(torch.tanh(self.up(self.table(ids))))


def net():
    torch.manual_seed(0)
    return Net().eval()


CONFIGS = {
    "a": {"r": 4, "lora_alpha": 6, "target_modules": [*LAYERS]},
    "b": {"r": 4, "lora_alpha": 3, "target_modules": [*LAYERS, "conv"]},
    "c": {"r": 2, "lora_alpha": 5, "target_modules": ["up", "image"]},
}


def nudge(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)


def combined_from(configs, base=None, method=afina.LoraConfig):
    model = None
    for seed, (name, options) in enumerate(configs.items()):
        if model is None:
            model = afina.get_peft_model(base or net(), method(**options), name)
        else:
            model.add_adapter(name, method(**options))
            model.set_adapter(name)
        nudge(model, seed)
    return model.eval()


@pytest.fixture
def model():
    return combined_from(CONFIGS)


def updates(model, name):
    return {p: update_of(h, name, p) for p, h in hosts(model.get_base_model()) if h.adapter(name) is not None}


@pytest.fixture
def reference(model, tmp_path, request):
    """The same adapters in the reference."""
    peft = pytest.importorskip("peft")
    model.save_pretrained(tmp_path)
    other = None
    for name in model.peft_config:
        if other is None:
            other = peft.PeftModel.from_pretrained(net(), tmp_path / name, name)
        else:
            other.load_adapter(tmp_path / name, name)
    return other


def reference_updates(other, name):
    from peft.tuners.tuners_utils import BaseTunerLayer

    out = {}
    for path, layer in other.base_model.model.named_modules():
        if isinstance(layer, BaseTunerLayer) and name in {*layer.lora_A, *layer.lora_embedding_A}:
            delta = layer.get_delta_weight(name).detach()
            out[path] = delta.T if isinstance(layer.get_base_layer(), nn.Embedding) else delta
    return out


@pytest.fixture
def same_masks(monkeypatch):
    """The n-th mask is the same one in both libraries; the call starts counting."""
    count = [itertools.count()]

    def bernoulli(share):
        generator = torch.Generator().manual_seed(next(count[0]))
        return (torch.rand(share.shape, generator=generator) < share).to(share.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)

    def restart():
        count[0] = itertools.count()

    return restart


def assert_same_updates(ours, theirs):
    assert sorted(ours) == sorted(theirs)
    for path, delta in ours.items():
        torch.testing.assert_close(delta, theirs[path], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [(0.7, 0.4), (1.5, -0.6)], ids=["positive", "negative"])
@pytest.mark.parametrize("kind", TYPES)
def test_combination_equals_the_references(model, reference, same_masks, kind, weights):
    options = {"combination_type": kind, "density": 0.5}
    for one in (model, reference):
        same_masks()
        one.add_weighted_adapter(["a", "b"], list(weights), "new", **options)
    assert_same_updates(updates(model, "new"), reference_updates(reference, "new"))


@pytest.mark.parametrize("kind", ["ties", "ties_svd", "dare_ties"])
def test_majority_by_frequency_equals_the_references(model, reference, same_masks, kind):
    for one in (model, reference):
        same_masks()
        one.add_weighted_adapter(["a", "b"], [0.7, 0.4], "new", combination_type=kind, density=0.6,
                                 majority_sign_method="frequency")  # fmt: skip
    assert_same_updates(updates(model, "new"), reference_updates(reference, "new"))


@pytest.mark.parametrize("options", [
    {"combination_type": "cat"}, {"combination_type": "svd"}, {"combination_type": "svd", "svd_rank": 3},
    {"combination_type": "svd", "svd_clamp": 0.9, "svd_full_matrices": False},
    {"combination_type": "ties_svd", "density": 0.4}, {"combination_type": "magnitude_prune_svd", "density": 0.4},
], ids=str)  # fmt: skip
def test_different_ranks_scalings_and_targets_equal_the_references(model, reference, options):
    for one in (model, reference):
        one.add_weighted_adapter(["a", "b", "c"], [0.7, 0.4, 1.3], "new", **options)
    assert_same_updates(updates(model, "new"), reference_updates(reference, "new"))


def test_one_adapter_is_scaled_linearly_whatever_the_kind(model, reference):
    for one in (model, reference):
        one.add_weighted_adapter(["a"], [-0.5], "new", combination_type="ties", density=0.5)
    ours = updates(model, "new")
    assert_same_updates(ours, reference_updates(reference, "new"))
    assert_same_updates(ours, {p: -0.5 * d for p, d in updates(model, "a").items()})


def test_ia3_combines_linearly_as_in_the_reference(tmp_path):
    peft = pytest.importorskip("peft")
    model = combined_from({"a": {"target_modules": ["up"], "feedforward_modules": []},
                           "b": {"target_modules": ["up", "down"], "feedforward_modules": ["down"]}},
                          method=afina.IA3Config)  # fmt: skip
    model.save_pretrained(tmp_path)
    other = peft.PeftModel.from_pretrained(net(), tmp_path / "a", "a")
    other.load_adapter(tmp_path / "b", "b")
    for one in (model, other):
        one.add_weighted_adapter(["a", "b"], [0.7, -0.4], "new")
        one.set_adapter("new")
    ids = torch.arange(11)[None]
    torch.testing.assert_close(model(ids), other(ids), rtol=1e-5, atol=1e-5)
    assert not model(ids).equal(net()(ids))
    with pytest.raises(NotMergeable):
        model.add_weighted_adapter(["a", "b"], [1, 1], "other", combination_type="cat")


@pytest.mark.parametrize("kind", ["cat", "svd"])
def test_cat_and_svd_of_enough_rank_are_the_weighted_sum(model, kind):
    kept = model.add_weighted_adapter(["a", "b", "c"], [2, -1, 0.5], "new", combination_type=kind, svd_rank=10)
    parts = [updates(model, n) for n in "abc"]
    want = {p: sum(w * u[p] for w, u in zip((2, -1, 0.5), parts, strict=True) if p in u) for p in updates(model, "new")}
    assert_same_updates(updates(model, "new"), want)
    assert kept.total.share == pytest.approx(1, abs=1e-10)


def test_cat_of_rslora_is_the_weighted_sum():
    configs = {n: {**CONFIGS[n], "use_rslora": True} for n in "ab"}
    model = combined_from(configs)
    model.add_weighted_adapter(["a", "b"], [1, 2], "new", combination_type="cat")
    a, b = updates(model, "a"), updates(model, "b")
    want = {p: a.get(p, 0) + 2 * b[p] for p in b}
    assert_same_updates(updates(model, "new"), want)


def test_retained_energy_is_the_share_of_the_squared_norm(model):
    kept = model.add_weighted_adapter(["a", "b"], [1, 1], "new", svd_rank=2)
    a, b, new = (updates(model, n) for n in ("a", "b", "new"))
    whole = lost = 0
    for path, layer in kept.layers.items():
        want = a.get(path, 0) + b[path]
        assert layer.share == pytest.approx(1 - float((new[path] - want).norm() / want.norm()) ** 2, abs=1e-5)
        assert 0 < layer.share < 1
        whole, lost = whole + float(want.norm() ** 2), lost + float((new[path] - want).norm() ** 2)
    assert kept.total.share == pytest.approx(1 - lost / whole, abs=1e-5)
    assert "kept in 5 layers" in str(kept)


def test_linear_tells_how_far_it_is_from_the_weighted_sum(model):
    kept = model.add_weighted_adapter(["a", "b"], [1, 1], "new", combination_type="linear")
    a, b, new = (updates(model, n)["up"] for n in ("a", "b", "new"))
    assert kept.layers["up"].error == pytest.approx(float((new - a - b).norm() / (a + b).norm()), rel=1e-4)
    assert kept.layers["up"].error > 0.1


def test_svd_takes_any_methods_updates(tmp_path):
    model = afina.get_peft_model(tiny.mlp(), tiny.config(), "a")
    tiny.nudge(model)
    for name, config in {"loha": afina.LoHaConfig(r=2, target_modules=["up"]),
                         "oft": afina.OFTConfig(oft_block_size=4, target_modules=["down"]),
                         "dora": tiny.config(use_dora=True)}.items():  # fmt: skip
        model.add_adapter(name, config)
        model.set_adapter(name)
        tiny.nudge(model)
    model.eval()
    names = ["a", "loha", "oft", "dora"]
    with pytest.raises(ConfigError, match="svd_rank"):
        model.add_weighted_adapter(names, [1] * 4, "new")
    with pytest.raises(NotMergeable):
        model.add_weighted_adapter(["a", "dora"], [1, 1], "new", combination_type="cat")
    model.add_weighted_adapter(names, [1, 2, -1, 0.5], "new", svd_rank=8)
    parts = [updates(model, n) for n in names]
    want = {p: sum(w * u[p] for w, u in zip((1, 2, -1, 0.5), parts, strict=True) if p in u)
            for p in updates(model, "new")}  # fmt: skip
    assert_same_updates(updates(model, "new"), want)


def test_combination_saves_loads_merges_and_deletes_like_any_other(model, tmp_path):
    model.add_weighted_adapter(["a", "b", "c"], [0.7, 0.4, 1.3], "new", combination_type="cat")
    ids = torch.arange(11)[None]
    model.set_adapter("new")
    want = model(ids)
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    again = afina.PeftModel.from_pretrained(net(), tmp_path / "new")
    assert again(ids).equal(want)
    torch.testing.assert_close(again.merge_and_unload()(ids), want, rtol=1e-5, atol=1e-5)
    peft = pytest.importorskip("peft")
    torch.testing.assert_close(peft.PeftModel.from_pretrained(net(), tmp_path / "new")(ids), want, rtol=1e-5, atol=1e-5)
    model.set_adapter("a")
    model.delete_adapter("new")
    assert "new" not in model.peft_config
    assert not updates(model, "new")


def test_combination_leaves_what_is_active_and_what_trains(model):
    model.set_adapter("b")
    before = {n for n, p in model.named_parameters() if p.requires_grad}
    want = model(torch.arange(11)[None])
    model.add_weighted_adapter(["a", "b"], [1, 1], "new")
    assert model.active_adapters == ["b"]
    assert {n for n, p in model.named_parameters() if p.requires_grad} == before
    assert model(torch.arange(11)[None]).equal(want)
    model.set_adapter("new")
    assert all(p.requires_grad for n, p in model.named_parameters() if ".new." in n)


def test_targets_are_the_union_in_the_configs_own_words(model, tmp_path):
    model.add_weighted_adapter(["a", "c"], [1, 1], "new")
    assert sorted(model.peft_config["new"].target_modules) == sorted(LAYERS)
    model.save_pretrained(tmp_path, selected_adapters=["new"])
    values = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert values["r"] == values["lora_alpha"] == 4


def test_targets_that_are_not_the_plain_union_are_named_exactly():
    base = tiny.mlp()
    model = combined_from({"a": {"r": 2, "target_modules": ["up"], "layers_to_transform": [0]},
                           "b": {"r": 2, "target_modules": "layers.1.down"}}, base)  # fmt: skip
    model.add_weighted_adapter(["a", "b"], [1, 1], "new")
    assert sorted(updates(model, "new")) == ["layers.0.up", "layers.1.down"]


@pytest.mark.parametrize("kind", ["linear", "cat", "svd", "ties_svd"])
def test_stacked_experts_combine(kind):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 6, 4))

        def forward(self, x):
            return torch.einsum("eoi,bi->beo", self.weight, x).sum(1)

    torch.manual_seed(0)
    base = nn.Sequential(Experts())
    configs = {n: {"r": 2, "target_modules": [], "target_parameters": ["0.weight"]} for n in "ab"}
    model = combined_from(configs, base)
    model.add_weighted_adapter(["a", "b"], [1, 2], "new", combination_type=kind, density=1.0, svd_rank=4)
    a, b, new = (updates(model, n)["0"] for n in ("a", "b", "new"))
    assert new.norm() > 0.1
    if kind in ("cat", "svd"):
        torch.testing.assert_close(new, a + 2 * b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("options", "error"), [
    ({"adapters": ["a", "x"]}, NameTakenError),
    ({"adapter_name": "a"}, NameTakenError),
    ({"adapter_name": "../a"}, NameTakenError),
    ({"weights": [1]}, ConfigError),
    ({"weights": [1, float("nan")]}, ConfigError),
    ({"adapters": [], "weights": []}, ConfigError),
    ({"combination_type": "sum"}, ConfigError),
    ({"combination_type": "ties"}, ConfigError),
    ({"combination_type": "dare_linear", "density": 0.0}, ConfigError),
    ({"combination_type": "ties", "density": 0.5, "majority_sign_method": "most"}, ConfigError),
    ({"combination_type": "linear", "adapters": ["a", "c"]}, ConfigError),
    ({"svd_rank": 0}, ConfigError),
], ids=str)  # fmt: skip
def test_mistakes_change_nothing(model, options, error):
    before = tiny.bits(model)
    with pytest.raises(error) as caught:
        model.add_weighted_adapter(
            **{"adapters": ["a", "b"], "weights": [1, 1], "adapter_name": "new", **options})  # fmt: skip
    assert len(str(caught.value).splitlines()) <= 4
    assert tiny.same_bits(before, tiny.bits(model))
    assert list(model.peft_config) == ["a", "b", "c"]


def test_what_cannot_be_combined_is_refused():
    model = combined_from({"a": {"r": 2, "target_modules": ["up"], "modules_to_save": ["down"]},
                           "b": {"r": 2, "target_modules": ["up"], "bias": "lora_only"},
                           "c": {"r": 2, "target_modules": ["up"], "lora_bias": True},
                           "e": {"r": 2, "target_modules": ["up"], "modules_to_save": ["down"]}})  # fmt: skip
    model.add_adapter("d", afina.BottleneckConfig(target_modules=["table"]))
    refused = {("a", "e"): ConfigError, ("b",): ConfigError, ("c",): NotMergeable, ("d",): NotMergeable}
    for names, error in refused.items():
        with pytest.raises(error):
            model.add_weighted_adapter([*names], [1] * len(names), "new", svd_rank=2)
    model.set_adapter("c")
    model.merge_adapter()
    with pytest.raises(MergeError):
        model.add_weighted_adapter(["c"], [1], "new", svd_rank=2)


def test_dare_keeps_the_share_and_the_expectation():
    from afina.core.combine.task_vectors import combine

    torch.manual_seed(0)
    total = combine([torch.ones(300, 300)], [2.0], "dare_linear", 0.25)
    assert (total != 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert total.mean().item() == pytest.approx(2, abs=0.05)
    assert set(total.unique().tolist()) == {0.0, 8.0}


def test_a_combination_far_from_the_weighted_sum_is_told() -> None:
    model = afina.get_peft_model(tiny.mlp(), tiny.config(init_lora_weights=False), "a")
    model.add_adapter("b", tiny.config(init_lora_weights=False))
    with pytest.warns(AfinaWarning, match="is no weighted sum of a, b: relative error"):
        kept = model.add_weighted_adapter(["a", "b"], [1.0, -1.0], "far", combination_type="linear")
    assert kept.total.error >= 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = model.add_weighted_adapter(["a", "b"], [1.0, -1.0], "near", combination_type="cat")
    assert exact.total.error < 1e-3


@pytest.mark.parametrize("order", [["plain", "head"], ["head", "plain"]], ids=str)
def test_a_trained_copy_that_one_adapter_has_comes_along(order, tmp_path):
    options = {"r": 2, "target_modules": ["up"]}
    model = combined_from({"head": {**options, "modules_to_save": ["down"]}, "plain": options})
    model.add_weighted_adapter(order, [0.5, 2.0], "both", combination_type="cat")
    copies = model.get_base_model().down.modules_to_save
    assert torch.equal(copies.both.weight, copies.head.weight)
    assert not torch.equal(copies.head.weight, model.get_base_model().down.original_module.weight)
    model.set_adapter("both")
    wanted = model(torch.arange(4)[None])
    model.save_pretrained(tmp_path, selected_adapters=["both"])
    assert torch.equal(afina.PeftModel.from_pretrained(net(), tmp_path / "both")(torch.arange(4)[None]), wanted)
