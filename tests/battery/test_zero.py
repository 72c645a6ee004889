"""Every registered method in two processes with DeepSpeed's engine: what one process does, says and saves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from afina.train.recipe.zero_stages import is_installed

from ..train.loop.together import Together
from . import whole, zero

pytestmark = pytest.mark.skipif(not is_installed() or "AFINA_ZERO" not in os.environ,
                                reason="needs DeepSpeed and minutes: make test-zero has both")  # fmt: skip
SHAPES = ("decoder", "tied-seq2seq")
STARTS = {"dora": {"use_dora": True}, **{f"start-{start}": {"init_lora_weights": start}
                                         for start in ("pissa", "olora", "mica", "orthogonal")}}  # fmt: skip
"""Of LoRA: what reads the weights at its beginning, or always."""
CASES = [
    *(c for c in whole.cases() if c.shape.name in SHAPES and c.option == "plain"
      and (c.method, c.shape.name) not in whole.REFUSED),
    *(c for c in whole.cases() if c.method == "LORA" and c.shape.name in ("decoder", "tied") and c.option != "plain"),
    *(whole.Case("LORA", whole.SHAPES["decoder"], name, options) for name, options in STARTS.items()),
]  # fmt: skip


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    for shape in SHAPES:
        whole.experts(whole.SHAPES[shape], folder)
    return folder


@pytest.fixture(scope="module")
def engines() -> Iterator[Together]:
    """Two processes of their own: DeepSpeed holds on to the first group that it meets."""
    out = Together()
    yield out
    out.end()


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_the_same_with_an_engine(
    case: whole.Case, stage: int, engines: Together, tmp_path: Path, experts: Path
) -> None:
    key = (case.method, case.shape.name, case.option, dict(case.options), stage)
    for answer in engines(zero.found, *key, str(tmp_path), str(experts)):
        assert answer == []
