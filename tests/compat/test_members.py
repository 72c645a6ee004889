"""Members of adapted layers that scripts read, for every method, against the reference."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import pytest
import torch

from afina.errors import NameTakenError, NotMergeable

from ..battery.harness import adapted
from ..battery.kinds import KINDS, Kind
from ..battery.table import CASES, Row

peft = pytest.importorskip("peft")
BaseTunerLayer = pytest.importorskip("peft.tuners.tuners_utils").BaseTunerLayer

ROTATIONS = {"oft", "boft", "hra"}
"""The reference gives these rotations."""
OTHER = {"hira", "kasa", "miss", "bdlora"}
"""The reference gives something else than what merging adds, or cannot."""


def plain() -> list[Any]:
    """The first row of each method that the reference has, on the first kind of layer that it compares."""
    found: dict[str, tuple[Row, Kind]] = {}
    for row, kind in CASES:
        if row.gap("oracle", kind) is None and kind.name != "transposed_linear":
            found.setdefault(row.method, (row, kind))
    return [pytest.param(row, kind, id=f"{row}-{kind}") for row, kind in found.values()]


def both(row: Row, kind: Kind) -> list[tuple[Any, Any]]:
    """Our adapted layers and the reference's, which it loaded from our file."""
    ours = adapted(row, kind)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours.save_pretrained(folder)
        theirs = peft.PeftModel.from_pretrained(kind.build(), folder).eval()
    own = dict(ours.named_modules())
    found = [(own[n], m) for n, m in theirs.named_modules() if isinstance(m, BaseTunerLayer)]
    assert found
    return found


def tensors(held: Any) -> dict[str, torch.Tensor]:
    value = held["default"]
    return {"": value} if isinstance(value, torch.Tensor) else dict(getattr(value, "named_parameters", dict)())


@pytest.mark.parametrize(("row", "kind"), plain())
def test_layer_has_the_tensors_that_the_references_layer_names(row: Row, kind: Kind) -> None:
    for ours, theirs in both(row, kind):
        for name in ours.adapter_layer_names:
            assert set(getattr(ours, name)) == {"default"}, name
            there = getattr(theirs, name, None)
            if isinstance(there, torch.nn.ParameterDict) and isinstance(getattr(ours, name)["default"], torch.Tensor):
                torch.testing.assert_close(getattr(ours, name)["default"], there["default"])


@pytest.mark.parametrize(("row", "kind"), plain())
def test_delta_is_the_references_or_what_merging_adds(row: Row, kind: Kind) -> None:
    for ours, theirs in both(row, kind):
        with pytest.raises(NameTakenError, match="nobody"):
            ours.get_delta_weight("nobody")
        gives = hasattr(theirs, "get_delta_weight") and row.method not in ROTATIONS | {"poly", "lily"}
        if not gives:
            with pytest.raises(NotMergeable):
                ours.get_delta_weight("default")
            continue
        delta, before = ours.get_delta_weight("default"), ours.get_base_weight()
        assert delta.abs().sum() > 0
        if row.method not in OTHER:
            expected = theirs.get_delta_weight("default")
            torch.testing.assert_close(delta, expected.to_dense() if expected.is_sparse else expected)
        if row.method in ("dora", "alora"):  # which are more than that update
            continue
        ours.merge()
        torch.testing.assert_close(ours.get_base_weight(), before + delta)
        torch.testing.assert_close(ours.get_delta_weight("default"), delta)  # of the original weight, still
        ours.unmerge()
        torch.testing.assert_close(ours.get_base_weight(), before, rtol=0, atol=0)


def test_lora_layer_has_empty_dictionaries_for_what_it_could_hold() -> None:
    row = next(r for r, k in CASES if r.name == "lora")
    layer = both(row, KINDS["linear"])[0][0]
    assert layer.lora_embedding_A == layer.lora_magnitude_vector == {}
    assert layer.use_dora == layer.lora_bias == layer.use_rslora == {"default": False}
    with pytest.raises(AttributeError):
        _ = layer.road_theta
