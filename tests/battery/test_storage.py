"""Every method that adapts a linear layer, on every way in which its weight may be stored.

Unless a test says otherwise, base layers run as in training: in eval mode bitsandbytes' kernels round further (inputs
to 8 bits, products to bfloat16), which `test_eval_kernels_stay_close` covers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import afina
from afina.core.hosts.host import hosts
from afina.core.layers.storages import quantised_weight
from afina.errors import AfinaWarning, MergeError, NotMergeable

from .harness import REFERENCE, Test, adapted, call, cast, distance, nudge, product, quietly, run
from .kinds import Kind
from .storages import COMPARED, FEW, LINEAR_ROWS, STORAGES, Storage
from .table import Row


def stored(*checks: str, rows: tuple[str, ...] | None = None, every: bool = False) -> Callable[[Test], Test]:
    """Parametrise over storages and rows: those named, or all; of storages that are a twin of another a few, if not
    `every`."""

    def parameter(storage: Storage, row: Row) -> Any:
        gap = next((g for g in (storage.gap(check, row) for check in checks) if g), None)
        gap = gap or next((g for g in (row.gap(check, storage.kind(row)) for check in checks) if g), None)
        gap = gap or (None if storage.is_here else f"{storage.package} is not installed")
        return pytest.param(storage, row, id=f"{storage}-{row}", marks=[pytest.mark.skip(reason=gap)] if gap else [])

    def wanted(storage: Storage, row: Row) -> bool:
        return row.name in rows if rows is not None else every or not storage.twin or row.name in FEW

    chosen = [parameter(s, r) for s in STORAGES for r in LINEAR_ROWS if wanted(s, r)]
    return product("storages", ("storage", "row"), chosen)


def exact(model: Any) -> Any:
    """Let the base layers run as in training."""
    for module in model.modules():
        if quantised_weight(module) is not None:
            module.train()
    return model


@stored("start")
def test_start_equals_the_quantised_base(storage: Storage, row: Row) -> None:
    kind = storage.kind(row)
    started, base = run(exact(adapted(row, kind, nudged=False)), kind), run(exact(kind.build()), kind)
    if row.starts_at_base:
        assert distance(started, base) < 2e-6  # a few roundings of products
    else:
        assert distance(started, base) > 1e-4


@stored("gradients")
def test_gradients_reach_the_input_and_exactly_the_adapter(storage: Storage, row: Row) -> None:
    kind = storage.kind(row)
    model = adapted(row, kind)
    run(model, kind)  # an inference first, as an evaluation before training is
    x = kind.inputs()[0].requires_grad_(True)
    call(model, kind, (x,)).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name
        else:
            assert parameter.grad is None, name


@stored("forward", every=True)
def test_forward_equals_the_adapter_on_the_dequantised_base(storage: Storage, row: Row) -> None:
    kind, dense = storage.kind(row), storage.dense_kind(row)
    model, twin = exact(adapted(row, kind)), adapted(row, dense)
    # Float32 products in another order; methods that decompose W decompose the same numbers in both.
    assert distance(run(model, kind), run(twin, dense)) < 1e-5
    assert model.get_nb_trainable_parameters() == twin.get_nb_trainable_parameters()


@stored("disable")
def test_disabled_is_the_quantised_bases_bits(storage: Storage, row: Row) -> None:
    kind = storage.kind(row)
    base, model = run(kind.build(), kind), adapted(row, kind)
    with model.disable_adapter():
        assert torch.equal(run(model, kind), base)
    assert not torch.equal(run(model, kind), base)


@stored("save")
def test_loaded_adapter_gives_the_saved_output(storage: Storage, row: Row, tmp_path: Path) -> None:
    kind = storage.kind(row)
    model = exact(adapted(row, kind))
    exactly, out = run(model, kind), run(model.eval(), kind)
    model.save_pretrained(tmp_path)
    assert torch.equal(run(afina.PeftModel.from_pretrained(kind.build(), tmp_path).eval(), kind), out)
    on_dense = afina.PeftModel.from_pretrained(storage.dense_kind(row).build(), tmp_path).eval()
    assert distance(run(on_dense, kind), exactly) < 1e-5


@stored("merge", rows=FEW)
def test_merging_is_refused_unless_asked_for(storage: Storage, row: Row) -> None:
    kind = storage.kind(row)
    model = adapted(row, kind)
    out = run(model, kind)
    before = {n: h.base.read()[0].clone() for n, h in hosts(model)}
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(MergeError if row.merges else (MergeError, NotMergeable)) as caught:
            merge()
    assert not row.merges or "requantise=True" in str(caught.value)
    assert torch.equal(run(model, kind), out)
    assert all(torch.equal(h.base.read()[0], before[n]) for n, h in hosts(model))


@stored("merge", "merged", "requantise", "merge_carries", rows=FEW)
@pytest.mark.parametrize("after_inference", [False, True])
def test_requantising_says_what_it_lost_and_unmerges_to_the_bits(
    storage: Storage, row: Row, after_inference: bool
) -> None:
    kind = storage.kind(row)
    model = adapted(row, kind)
    if after_inference:
        run(model, kind)
    before = {n: h.base.read()[0].clone() for n, h in hosts(model)}
    wanted = run(exact(model), kind)
    with model.disable_adapter():
        plain = run(model, kind)
    model.eval() if after_inference else None
    with pytest.warns(AfinaWarning, match="were requantised"):
        model.merge_adapter(requantise=True)
    assert all(0 <= h.base.lost < 100 for _, h in hosts(model) if h.merged)  # small updates are lost whole and more
    assert distance(run(exact(model), kind), wanted) < 0.8  # 4 bits; garbage of a wrong layout is far above 1
    assert any(not torch.equal(h.base.read()[0], before[n]) for n, h in hosts(model))
    with model.disable_adapter():
        assert torch.equal(run(model, kind), plain)
    model.unmerge_adapter()
    assert all(torch.equal(h.base.read()[0], before[n]) for n, h in hosts(model))
    assert torch.equal(run(model, kind), wanted)


@stored("bfloat16")
def test_bfloat16_base_keeps_its_dtype(storage: Storage, row: Row) -> None:
    kind = storage.kind(row, torch.bfloat16)
    model = adapted(row, kind).train()
    inputs = cast(kind.inputs(), torch.bfloat16)
    out = call(model, kind, inputs)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained.values())


@stored("eval", rows=("lora", "dora", "hra", "ia3", "lokr"))
def test_eval_kernels_stay_close(storage: Storage, row: Row) -> None:
    kind = storage.kind(row)
    model = adapted(row, kind)
    exactly = run(exact(model), kind)
    assert distance(run(model.eval(), kind), exactly) < 0.03  # inputs of 8 bits (int8), products in bfloat16 (4 bits)


@stored("oracle", rows=tuple({name for names in COMPARED.values() for name in names}))
def test_reference_gives_the_same_output_on_this_storage(storage: Storage, row: Row, tmp_path: Path) -> None:
    kind = storage.kind(row)
    model = exact(adapted(row, kind))
    model.save_pretrained(tmp_path)
    with quietly():
        theirs = REFERENCE.PeftModel.from_pretrained(kind.build(), tmp_path).eval()
        for module in theirs.modules():
            if hasattr(module, "base_layer"):
                module.base_layer.train()
        assert distance(run(theirs, kind), run(model, kind)) < 1e-5


def two(storage: Storage, first: Row, second: Row) -> tuple[Any, Kind]:
    kind = storage.kind(first)
    model = adapted(first, kind)
    model.add_adapter("other", getattr(afina, second.config)(**second.arguments(kind)))
    model.set_adapter(["default", "other"])
    nudge(model)
    return model.eval(), kind


@stored("stack", rows=("lora", "oft", "lokr"))
def test_stacked_adapters_apply_each_on_the_result_of_the_former(storage: Storage, row: Row) -> None:
    dora = next(r for r in LINEAR_ROWS if r.name == "dora")
    (model, kind) = two(storage, row, dora)
    twin = afina.get_peft_model(storage.dense_kind(row).build(), getattr(afina, row.config)(**row.arguments(kind)))
    twin.add_adapter("other", getattr(afina, dora.config)(**dora.arguments(kind)))
    twin.set_adapter(["default", "other"])
    for name in ("default", "other"):
        afina.set_peft_model_state_dict(twin, afina.get_peft_model_state_dict(model, adapter_name=name), name)
    assert distance(run(exact(model), kind), run(twin.eval(), kind)) < 2e-5


@pytest.mark.parametrize("storage", [pytest.param(s, id=s.name) for s in STORAGES])
def test_status_names_the_storage(storage: Storage) -> None:
    if not storage.is_here:
        pytest.skip(f"{storage.package} is not installed")
    row = next(r for r in LINEAR_ROWS if r.name == "lora")
    with warnings.catch_warnings():
        warnings.simplefilter("error", AfinaWarning)
        model = adapted(row, storage.kind(row))
    assert {s.quantization_backend for s in afina.get_layer_status(model)} == {storage.reports}
