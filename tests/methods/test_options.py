"""No option of any method has no effect without a word: another value changes what trains, starts or is computed, or is
refused, or is warned of. What is exempt says why."""

from __future__ import annotations

import dataclasses
import tempfile
import typing
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

from afina.core.config import LayerConfig, methods
from afina.errors import AfinaError, AfinaWarning
from tests.battery import whole

METHODS = [name for name in methods() if name != "FULL"]
COMMON = {f.name for f in dataclasses.fields(LayerConfig)}
"""Fields of every method, which have tests of their own."""

OTHER: Mapping[str, Any] = MappingProxyType({
    "rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 3}, "lambda_pattern": {"q_proj": 3.0},
})  # fmt: skip
"""Values that cannot be made from the type."""


def other(hint: Any, default: Any, name: str) -> list[Any]:
    """Values of a field that are not its default."""
    if name in OTHER:
        return [OTHER[name]]
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [default + 1, default * 2, max(default // 2, 1)]
    if isinstance(default, float):
        return [default / 2, default + 0.25, default + 1.0]
    options = typing.get_args(hint)
    literals = [a for o in (hint, *options) for a in typing.get_args(o) if typing.get_origin(o) is typing.Literal]
    found = [v for v in literals if v != default]
    if int in options and default is None:
        found += [2, 3]
    if float in options and default is None:
        found += [0.5]
    return found


def seen(method: str, changed: Mapping[str, Any]) -> Any:
    """What a method is with these fields: its tensors, which train, logits and gradients; or that it is told of."""
    case = whole.Case(method, whole.SHAPES["decoder"], "plain", changed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            torch.manual_seed(0)
            model = case.adapted(EXPERTS)
            torch.manual_seed(1)
            rows = {"input_ids": whole.IDS, "attention_mask": whole.MASK, "labels": whole.IDS}
            rows |= {"task_ids": torch.tensor([0, 1, 2])} if method in whole.WITH_TASKS else {}
            logits = case.logits(model)
            out = model.train()(**rows)
            out.loss.backward()
        except AfinaError as error:
            return str(error)
    if any(issubclass(w.category, AfinaWarning) for w in caught):
        return "; ".join(str(w.message) for w in caught)
    tensors = {n: (p.requires_grad, p.detach(), p.grad) for n, p in model.named_parameters()}
    buffers = {n: (False, b, None) for n, b in model.named_buffers()}
    return {"": (False, logits, out.loss.detach()), **tensors, **buffers}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, str) or isinstance(b, str):
        return False
    return a.keys() == b.keys() and all(_same(x, y) for n in a for x, y in zip(a[n], b[n], strict=True))


def _same(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x is y


_STEPS, _FILE, _RECORDED = "acts around optimizer steps", "changes the file alone", "recorded for the reference's files"
_CHANCE, _SHAPE = "acts at random, or not, in one pass", "matters for other shapes of layers"
EXEMPT: Mapping[tuple[str, str], str] = MappingProxyType({
    **{("", f): _FILE for f in ("save_projection", "save_indices", "save_only_topk_weights",
                                "save_precomputed_indices")},
    **{("", f): _RECORDED for f in ("fan_in_fan_out", "num_layers", "num_attention_heads", "progressbar",
                                    "runtime_offload_base_weight")},
    **{("", f): _CHANCE for f in ("module_dropout", "rank_dropout")},
    **{("", f): _SHAPE for f in ("use_effective_conv2d", "decompose_both", "block_share")},
    **{("ADALORA", f): _STEPS for f in ("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "total_step")},
    ("ADALORA", "r"): "init_r is what counts, as in the reference",
    ("OSF", "init_weights"): _RECORDED,
    ("CPT", "opt_projection_epsilon"): _STEPS, ("CPT", "opt_projection_format_epsilon"): _STEPS,
    ("CPT", "num_virtual_tokens"): "it is the number of cpt_token_ids",
    ("LORA", "ensure_weight_tying"): "tests/battery/whole.py: on tied models",
    ("TINYLORA", "init_v_bound"): "bound of one of the starts",
    ("OFT", "r"): "0 is what it is already", ("BOFT", "boft_block_num"): "0 is what it is already",
    ("BOTTLENECK", "is_stream"): "set for files of AdapterHub",
})  # fmt: skip
"""(method, or "" for all; field) -> why another value may change nothing here."""


def fields(method: str) -> list[tuple[str, list[Any]]]:
    """Every field with the other values to try."""
    kind, given = methods()[method].config, whole.OPTIONS.get(method, {})
    hints = typing.get_type_hints(kind)
    out = []
    for f in dataclasses.fields(kind):
        exempt = f.name in COMMON or ("", f.name) in EXEMPT or (method, f.name) in EXEMPT
        default = given.get(f.name, None if f.default is dataclasses.MISSING else f.default)
        values = [] if exempt else other(hints[f.name], default, f.name)
        if values and f.name not in ("places", "streams", "adapters"):
            out.append((f.name, values))
    return out


@pytest.mark.parametrize("method", METHODS)
def test_every_option_has_an_effect_or_is_told_of(method: str) -> None:
    plain = seen(method, {})
    idle = [name for name, values in fields(method)
            if all(same(plain, seen(method, {name: value})) for value in values)]  # fmt: skip
    assert not idle


def _given(method: str, field: str) -> Any:
    kind = methods()[method].config
    hints, default = typing.get_type_hints(kind), {f.name: f.default for f in dataclasses.fields(kind)}[field]
    if dataclasses.is_dataclass(next(iter(typing.get_args(hints[field])), None)):
        return {}
    if field in ("loftq_config", "prompt_tuning_init_text"):
        return {"loftq_bits": 4} if field == "loftq_config" else "words"
    return next(v for v in other(hints[field], default, field) if v != default and not (v == 1.25 or v == 1.1))


@pytest.mark.parametrize(
    ("method", "field"), [(m, f) for m in METHODS for f in methods()[m].config.needs], ids=lambda v: str(v)
)
def test_option_without_the_one_that_it_needs_is_told(method: str, field: str, tmp_path: Path) -> None:
    kind = methods()[method].config
    needed, value = kind.needs[field]
    options = {field: _given(method, field)}
    if getattr(kind, needed, None) == value:
        options[needed] = not value
    case = whole.Case(method, whole.SHAPES["decoder"], "plain", options)
    with pytest.warns(AfinaWarning, match=rf"without effect.*{field} \(it needs"):
        case.adapted(tmp_path)


EXPERTS = Path(tempfile.mkdtemp())
