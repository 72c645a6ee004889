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

OTHER: Mapping[tuple[str, str], list[Any]] = MappingProxyType({
    ("", "rank_pattern"): [{"q_proj": 3}], ("", "alpha_pattern"): [{"q_proj": 3}],
    ("", "lambda_pattern"): [{"q_proj": 3.0}], ("", "n_frequency_pattern"): [{"q_proj": 7}],
    ("LAST_LAYERS", "layer_range"): [[0, 1]], ("REFT", "layers"): [[0]],
    ("TRAINABLE_TOKENS", "token_indices"): [[3]],
    ("BOTTLENECK", "leave_out"): [[0]], ("IA3", "feedforward_modules"): [["v_proj"]],
    ("CPT", "cpt_token_ids"): [[5, 6, 8]], ("CPT", "cpt_mask"): [[1, 1, 0]],
    ("CPT", "cpt_tokens_type_mask"): [[1, 2, 4]],
    ("P_TUNING", "encoder_reparameterization_type"): ["LSTM"], ("ADAMSS", "init_weights"): [None],
    ("C3A", "block_size_pattern"): [{"q_proj": 8}], ("C3A", "init_weights"): ["gaussian", "kaiming_uniform", True],
    ("GLORA", "config_A_B"): ["vector", "constant", "none"], ("GLORA", "config_C"): ["vector", "none"],
    ("GLORA", "config_D_E"): ["vector", "none"], ("OSF", "target_svd_config"): [{"model.layers.0.self_attn.q_proj": 3}],
    ("PSOFT", "ab_svd_init"): ["pissa_init"], ("PSOFT", "psoft_svd"): ["lowrank"],
    ("ROAD", "variant"): ["road_2", "road_4"], ("WAVEFT", "wavelet_family"): ["db2"],
    ("LORA", "target_parameters"): [["q_proj.weight"]], ("LORA", "alora_invocation_tokens"): [[3]],
    ("LORA", "trainable_token_indices"): [[3]], ("LORA", "layer_replication"): [[[0, 2], [1, 2]]],
    ("LORA", "init_lora_weights"): [False, "pissa", "olora", "orthogonal", "mica"],
    ("LORA", "use_bdlora"): [{"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": [], "nblocks": 2}],
    **{("LORA", name): [{}] for name in ("kasa_config", "monteclora_config", "velora_config")},
})  # fmt: skip
"""(method, or "" for all; field) -> values that cannot be made from the type."""


def other(method: str, hint: Any, default: Any, name: str) -> list[Any]:
    """Values of a field that are not its default."""
    for key in ((method, name), ("", name)):
        if key in OTHER:
            return OTHER[key]
    if name == "bias":
        return ["all", f"{method.lower()}_only"]
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
    if bool in options and default is None:
        found += [True, False]
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
_CHANCE = "acts at random, or not, in one pass"
EXEMPT: Mapping[tuple[str, str], str] = MappingProxyType({
    **{("", f): _FILE for f in ("save_projection", "save_indices", "save_only_topk_weights",
                                "save_precomputed_indices")},
    **{("", f): _RECORDED for f in ("fan_in_fan_out", "num_layers", "num_attention_heads", "progressbar")},
    **{("", f): _CHANCE for f in ("module_dropout", "rank_dropout")},
    **{("ADALORA", f): _STEPS for f in ("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "total_step")},
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
        values = [] if exempt else other(method, hints[f.name], default, f.name)
        if values and f.name not in ("places", "streams", "adapters"):
            out.append((f.name, values))
    return out


@pytest.mark.parametrize("method", METHODS)
def test_every_option_has_an_effect_or_is_told_of(method: str) -> None:
    plain = seen(method, {})
    idle = [name for name, values in fields(method)
            if all(same(plain, seen(method, {name: value})) for value in values)]  # fmt: skip
    assert not idle


NESTED = ("kasa_config", "monteclora_config", "velora_config", "use_bdlora")
INSIDE = {"use_bdlora": OTHER["LORA", "use_bdlora"][0]}
IDLE_INSIDE = {
    **{("use_bdlora", f): "lists, whose entries are told" for f in ("target_modules_bd_a", "target_modules_bd_b")},
    ("velora_config", "num_groups"): "the layers here are narrow: as many groups as it takes",
}
"""(option, setting) -> why another value may change nothing here."""


@pytest.mark.parametrize("option", NESTED)
def test_every_setting_inside_an_option_has_an_effect_or_is_told_of(option: str) -> None:
    hints = typing.get_type_hints(methods()["LORA"].config)
    kind: Any = next(k for k in typing.get_args(hints[option]) if dataclasses.is_dataclass(k))
    given = INSIDE.get(option, {})
    plain, idle = seen("LORA", {option: given}), []
    for f in dataclasses.fields(kind):
        default = given.get(f.name, None if f.default is dataclasses.MISSING else f.default)
        values = other("", typing.get_type_hints(kind)[f.name], default, f.name)
        if (option, f.name) not in IDLE_INSIDE and all(
            same(plain, seen("LORA", {option: {**given, f.name: value}})) for value in values
        ):
            idle.append(f.name)
    assert not idle


@pytest.mark.parametrize(("method", "options", "told"), [
    ("LORA", {"use_bdlora": {"target_modules_bd_a": ["q_proj", "nothing"], "match_strict": False}}, "'nothing'"),
    ("ADALORA", {"rank_pattern": {"nowhere.lora_E": [True] * 12}}, "'nowhere.lora_E'"),
    ("BOTTLENECK", {"leave_out": [9]}, "leave_out: 9"),
    ("BOTTLENECK", {"reduction_factor": {"default": 4, "9": 2}}, "'9'"),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_what_names_nothing_inside_an_option_is_told(method: str, options: Any, told: str, tmp_path: Path) -> None:
    with pytest.warns(AfinaWarning, match=f"without effect.*{told}"):
        whole.Case(method, whole.SHAPES["decoder"], "plain", options).adapted(tmp_path)


def _given(method: str, field: str) -> Any:
    kind = methods()[method].config
    hints, default = typing.get_type_hints(kind), {f.name: f.default for f in dataclasses.fields(kind)}[field]
    if dataclasses.is_dataclass(next(iter(typing.get_args(hints[field])), None)):
        return {}
    if field in ("loftq_config", "prompt_tuning_init_text"):
        return {"loftq_bits": 4} if field == "loftq_config" else "words"
    return next(v for v in other(method, hints[field], default, field) if v != default and not (v == 1.25 or v == 1.1))


@pytest.mark.parametrize(
    ("method", "field"), [(m, f) for m in METHODS for f in methods()[m].config.needs], ids=lambda v: str(v)
)
def test_option_without_the_one_that_it_needs_is_told(method: str, field: str, tmp_path: Path) -> None:
    kind = methods()[method].config
    needed, value = kind.needs[field]
    options = {field: _given(method, field)}
    if needed is not None and getattr(kind, needed, None) == value:
        options[needed] = not value
    case = whole.Case(method, whole.SHAPES["decoder"], "plain", options)
    with pytest.warns(AfinaWarning, match=rf"without effect.*{field} \({'it needs' if needed else value}"):
        case.adapted(tmp_path)


EXPERTS = Path(tempfile.mkdtemp())
