"""Every registered method in two processes with a part of the base each: what one process does, says and saves."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

from ..train.loop.together import Together
from . import mixtures, spread, tensor_parallel, whole

PLAIN = [c for c in whole.cases() if c.shape.name == "decoder" and c.option == "plain"]
ALWAYS = ("LORA", "OFT", "VERA", "PROMPT_TUNING", "LAST_LAYERS")
"""One of each kind: products, whole weights, shared tensors, tokens before the input, whole blocks."""
OTHERS = [
    c for c in whole.cases() if c.shape.name in ("decoder", "tied", "tied-seq2seq") and c not in PLAIN
    and (c.method, c.shape.name) not in whole.REFUSED
]  # fmt: skip
WHOLE = pytest.mark.whole("methods of the same kinds")
LONG = pytest.mark.skipif("AFINA_SPREAD" not in os.environ, reason="as long as all else: make test-spread runs them")
HAS_FOUR_BITS = importlib.util.find_spec("bitsandbytes") is not None
BY_HAND = {"SHADOW": "its network spans blocks, and torch frees what it saw of them"}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for shape in ("decoder", "tied", "tied-seq2seq"):
        whole.experts(whole.SHAPES[shape], folder)
    if HAS_FOUR_BITS:
        whole.experts(spread.NF4, folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the decoder, as a base that transformers can load in parts."""
    folder = tmp_path_factory.mktemp("tensor-parallel")
    whole.SHAPES["decoder"].build(0, whole.WIDTH).save_pretrained(folder / "base")
    return folder


def asked(together: Together, case: whole.Case, orders: tuple[str, ...], folder: Path, experts: Path) -> None:
    for (
        order
    ) in orders:  # each in a meeting of its own: a second one on the same port may find the first one's leavings
        key = (case.method, case.shape.name, case.option, order)
        for answer in together(spread.found, [key], str(folder), str(experts)):
            assert answer == {}


@pytest.mark.parametrize("case", [c if c.method in ALWAYS else pytest.param(c, marks=WHOLE) for c in PLAIN], ids=str)
def test_it_is_the_same_beside_a_base_that_is_spread_before_or_after(
    case: whole.Case, together: Together, tmp_path: Path, experts: Path
) -> None:
    asked(together, case, ("before", "after"), tmp_path, experts)


@pytest.mark.skipif(not HAS_FOUR_BITS, reason="needs bitsandbytes")
@pytest.mark.parametrize(
    "method", [c.method if c.method == "LORA" else pytest.param(c.method, marks=[WHOLE, LONG]) for c in PLAIN]
)
def test_it_is_the_same_on_a_base_in_four_bits(method: str, together: Together, tmp_path: Path, experts: Path) -> None:
    asked(together, whole.Case(method, spread.NF4, "plain", {}), ("before", "after"), tmp_path, experts)


@LONG
@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_it_is_the_same_on_models_of_other_shapes(
    case: whole.Case, together: Together, tmp_path: Path, experts: Path
) -> None:
    asked(together, case, ("before", "after"), tmp_path, experts)


@pytest.mark.parametrize(
    "case",
    [c if c.method == "LORA" else pytest.param(c, marks=WHOLE) for c in PLAIN if c.method not in BY_HAND],
    ids=str,
)
def test_adapters_that_are_sharded_themselves_train_are_saved_and_loaded(
    case: whole.Case, together: Together, tmp_path: Path, experts: Path
) -> None:
    asked(together, case, ("by hand",), tmp_path, experts)


IN_PARTS: list[tuple[str, dict[str, Any]]] = [
    ("LORA", {"target_modules": "all-linear"}), ("PREFIX_TUNING", {}), ("OFT", {}),
]  # fmt: skip
"""Cut along with the base (by columns and by rows), of some heads, and shown whole layers."""
MORE_IN_PARTS: list[tuple[str, dict[str, Any]]] = [
    ("LORA", {"use_dora": True, "target_modules": "all-linear"}),
    *((c.method, {}) for c in PLAIN if c.method not in {method for method, _ in IN_PARTS}),
    ("LORA", {"lora_bias": True}), ("LORA", {"bias": "all"}), ("LORA", {"target_modules": ["lm_head", "embed_tokens"]}),
    ("LORA", {"init_lora_weights": "pissa"}), ("LORA", {"modules_to_save": ["lm_head", "embed_tokens"]}),
    ("LORA", {"trainable_token_indices": whole.TOKENS}),
    ("IA3", {"target_modules": ["o_proj", "up_proj"], "feedforward_modules": ["up_proj"]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options"), [*IN_PARTS, *(pytest.param(*more, marks=[WHOLE, LONG]) for more in MORE_IN_PARTS)], ids=str
)
def test_it_is_the_same_on_a_tensor_parallel_base(
    method: str, options: dict[str, Any], together: Together, tmp_path: Path, experts: Path, base: Path
) -> None:
    for answer in together(tensor_parallel.found, method, options, str(base), str(experts)):
        assert answer == []


EXPERTS = {"target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"]}


@pytest.mark.parametrize(
    ("options", "order"),
    [(EXPERTS, "before"), pytest.param({**EXPERTS, "use_dora": True}, "after", marks=WHOLE),
     pytest.param({"modules_to_save": ["gate"]}, "before", marks=WHOLE)],
)  # fmt: skip
def test_adapters_on_experts_are_the_same_where_those_are_spread(
    options: dict[str, Any], order: str, together: Together, tmp_path: Path
) -> None:
    options = {"target_modules": ["q_proj"], **options}
    assert together(mixtures.spread_out, "LORA", options, order, str(tmp_path)) == [[], []]


CUT = "adapters cannot follow how this module is cut over processes"


@WHOLE
@pytest.mark.parametrize(
    ("method", "options", "said"),
    [("LORA", {"target_modules": "all-linear"}, []), ("LAST_LAYERS", {}, []),
     ("LORA", {"target_modules": ["q_proj"], "modules_to_save": ["gate"]}, []),
     ("LORA", {"target_modules": [], **EXPERTS}, [f"model.layers.0.mlp.experts: {CUT}"]),
     ("LN_TUNING", {}, [f"model.layers.0.self_attn.q_norm: {CUT}"])],
)  # fmt: skip
def test_adapters_beside_cut_experts_are_the_same_and_on_them_are_refused(
    method: str, options: dict[str, Any], said: list[str], together: Together, tmp_path: Path
) -> None:
    assert together(mixtures.cut, method, options, str(tmp_path)) == [said, said]
