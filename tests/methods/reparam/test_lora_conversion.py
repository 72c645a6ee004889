"""Any weight update becomes LoRA: exact at full rank, the best of its rank below, as in the reference."""

from __future__ import annotations

import pytest
import torch

import afina
from afina.core.combine.low_rank_form import update_of
from afina.core.hosts.host import hosts
from afina.errors import AfinaError, CheckpointError, ConfigError, NotMergeable

from ...battery import harness
from ...battery.table import CASES
from ...core import tiny

FULL = 64
"""More than any layer's smaller side."""


MERGING = [(row, kind) for row, kind in CASES if row.merges]
PLAIN = ("linear_without_bias", "embedding", "parameter")
"""Kinds without a bias that a method could change."""


def firsts():
    """Every mergeable method on one kind; a plain one where it has that."""
    by_row = {}
    for row, kind in sorted(MERGING, key=lambda case: case[1].name not in PLAIN):
        by_row.setdefault(row.name, (row, kind))
    return list(by_row.values())


def by_kind():
    """Every kind with one method, the one that adapts the most kinds where that can."""
    out = {}
    for row, kind in sorted(MERGING, key=lambda case: case[0].name != "loha"):
        out.setdefault(kind.name, (row, kind))
    return list(out.values())


def assert_converted(row, kind, folder):
    model = harness.adapted(row, kind)
    want = harness.run(model, kind)
    before = harness.bits(model)
    kept, refused = None, ""
    try:
        kept = afina.save_as_lora(folder, model, FULL)
    except NotMergeable as error:
        refused = error.what
    harness.assert_same_bits(harness.bits(model), before)
    if kept is None:
        assert "bias" in refused or "grouped" in refused
        return
    again = afina.PeftModel.from_pretrained(kind.build(), folder).eval()
    assert again.peft_config["default"].peft_type == "LORA"
    # An SVD in float32 of the update, against the update itself.
    assert harness.distance(harness.run(again, kind), want) < 1e-4
    assert kept.total.error < 1e-3


@pytest.mark.parametrize(("row", "kind"), firsts(), ids=str)
def test_every_method_is_exact_at_full_rank(row, kind, tmp_path):
    assert_converted(row, kind, tmp_path)


@pytest.mark.parametrize(("row", "kind"), by_kind(), ids=str)
def test_every_kind_of_layer_is_exact_at_full_rank(row, kind, tmp_path):
    assert_converted(row, kind, tmp_path)


@pytest.mark.whole("the two above: every method once, every kind once")
@pytest.mark.parametrize(("row", "kind"), MERGING, ids=str)
def test_every_method_on_every_kind_is_exact_at_full_rank(row, kind, tmp_path):
    assert_converted(row, kind, tmp_path)


def loha(**options):
    model = afina.get_peft_model(tiny.mlp(), afina.LoHaConfig(**{"r": 4, "target_modules": ["up", "down"], **options}))
    return tiny.nudge(model).eval()


def updates(model, name="default"):
    return {p: update_of(h, name, p) for p, h in hosts(model.get_base_model())}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loha")
    loha().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rank", [1, 3, 0.5, 0.9, 1.0])
def test_rank_and_share_choose_what_the_reference_chooses(saved, rank):
    peft = pytest.importorskip("peft")
    theirs = peft.PeftModel.from_pretrained(tiny.mlp(), saved)
    _, tensors = peft.convert_to_lora(theirs, rank)
    mine_config, mine = afina.convert_to_lora(tiny.load(saved), rank)
    assert mine.keys() == tensors.keys()
    ranks = {k.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): len(t) for k, t in tensors.items()
             if "lora_A" in k}  # fmt: skip
    if rank != 1.0:  # where rounding decides which singular value is the last
        assert {n: mine_config.rank_at(n) for n in ranks} == ranks
        assert {n: mine_config.scaling_at(n) for n in ranks} == dict.fromkeys(ranks, 1.0)
        assert {k: t.shape for k, t in mine.items()} == {k: t.shape for k, t in tensors.items()}
    for name in ranks:
        prefix = f"base_model.model.{name}.lora_"
        products = [t[f"{prefix}B.weight"] @ t[f"{prefix}A.weight"] for t in (mine, tensors)]
        torch.testing.assert_close(*products, rtol=1e-5, atol=1e-5)


def test_reference_reads_what_save_as_lora_writes(saved, tmp_path):
    peft = pytest.importorskip("peft")
    model = tiny.load(saved)
    afina.save_as_lora(tmp_path, model, 0.8)
    ours, theirs = (m.from_pretrained(tiny.mlp(), tmp_path)(tiny.inputs()) for m in (afina.PeftModel, peft.PeftModel))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_reported_error_is_the_error(saved):
    model = tiny.load(saved)
    _, tensors = converted = afina.convert_to_lora(model, 2)
    want = updates(model)
    whole = lost = 0
    for path, kept in converted.retained.layers.items():
        prefix = f"base_model.model.{path}.lora_"
        left = want[path] - tensors[f"{prefix}B.weight"] @ tensors[f"{prefix}A.weight"]
        assert kept.error == pytest.approx(float(left.norm() / want[path].norm()), rel=1e-4)
        assert 0.01 < kept.error < 1
        whole, lost = whole + float(want[path].norm() ** 2), lost + float(left.norm() ** 2)
    assert converted.retained.total.error == pytest.approx((lost / whole) ** 0.5, rel=1e-4)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_share_is_reached_by_the_smallest_rank(saved, share):
    model = tiny.load(saved)
    kept = afina.convert_to_lora(model, share).retained.layers
    for path, layer in kept.items():
        assert layer.share >= share
        energy = torch.linalg.svdvals(updates(model)[path]).square()
        assert layer.rank == 1 or energy[: layer.rank - 1].sum() / energy.sum() < share


def test_lora_is_cut_to_its_best_approximation_without_forming_it(saved):
    model = tiny.trained(r=4)
    config, tensors = afina.convert_to_lora(model, 2)
    assert config.r == 2
    for path, delta in updates(model).items():
        U, S, V = torch.linalg.svd(delta)
        prefix = f"base_model.model.{path}.lora_"
        made = tensors[f"{prefix}B.weight"] @ tensors[f"{prefix}A.weight"]
        torch.testing.assert_close(made, U[:, :2] * S[:2] @ V[:2], rtol=1e-4, atol=1e-5)


def test_trained_head_goes_along(tmp_path):
    model = loha(modules_to_save=["head"])
    afina.save_as_lora(tmp_path, model, FULL)
    again = tiny.load(tmp_path)
    torch.testing.assert_close(again(tiny.inputs()), model(tiny.inputs()), rtol=1e-4, atol=1e-4)
    assert again.peft_config["default"].modules_to_save == ["head"]


def test_one_of_several_adapters_is_converted_whichever_is_active(tmp_path):
    model = loha()
    model.add_adapter("b", afina.LoKrConfig(r=4, target_modules=["down"]))
    model.set_adapter("b")
    tiny.nudge(model, 5)
    want = model(tiny.inputs())
    model.set_adapter("default")
    afina.save_as_lora(tmp_path, model, FULL, adapter_name="b")
    torch.testing.assert_close(tiny.load(tmp_path)(tiny.inputs()), want, rtol=1e-4, atol=1e-4)
    assert model.active_adapters == ["default"]


def test_injected_model_without_a_wrapper_is_converted(saved):
    model = tiny.mlp()
    afina.inject_adapter_in_model(afina.LoHaConfig(r=4, target_modules=["up"]), model)
    tiny.nudge(model)
    _, tensors = afina.convert_to_lora(model, 3)
    assert "layers.0.up.lora_A.weight" in tensors


@pytest.mark.parametrize("rank", [0, -1, 0.0, 1.5, True, float("nan")])
def test_what_is_no_rank_is_refused(saved, rank):
    with pytest.raises(ConfigError):
        afina.convert_to_lora(tiny.load(saved), rank)


def test_what_is_no_change_of_weights_is_refused(tmp_path):
    bottleneck = afina.get_peft_model(tiny.mlp(), afina.BottleneckConfig(target_modules=["down"]))
    llama = afina.get_peft_model(tiny.llama(), afina.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    biased = afina.get_peft_model(tiny.mlp(), afina.IA3Config(target_modules=["up"], feedforward_modules=[]))
    for model in (bottleneck, llama, tiny.nudge(biased)):
        before = tiny.bits(model)
        with pytest.raises(NotMergeable) as caught:
            afina.save_as_lora(tmp_path / "out", model, 4)
        assert len(str(caught.value).splitlines()) <= 4
        assert tiny.same_bits(before, tiny.bits(model))
    assert not (tmp_path / "out").exists()
    with pytest.raises(AfinaError):
        afina.convert_to_lora(llama, 4, adapter_name="none")


def test_failed_save_leaves_the_model(saved, tmp_path):
    model = tiny.load(saved)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError):
        afina.save_as_lora(tmp_path / "file", model, 4)
    assert list(model.peft_config) == ["default"]
    assert all(h.names() == ["default"] for _, h in hosts(model))
