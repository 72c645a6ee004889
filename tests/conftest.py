"""How much of the suite runs, and what several rooms of it share.

Tests compare with the real `peft` in their own process; those of the stand-in run scripts in others.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .selection import CHOSEN, PARTS, SIZES, part_of, select
from .train import tiny
from .train.child import Child
from .train.loop.together import Together

os.environ["AFINA_STAND_IN"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"  # no network: a name that is no folder is refused at once
gc.disable()  # until all is collected, which makes nothing but what stays


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--size", choices=SIZES, default="pairs", help="how much of the suite: see tests/selection.py")
    parts = [str(part) for part in range(PARTS)]
    parser.addoption("--part", choices=parts, help="of what --size pairs leaves out, this part")


def no_gpu() -> str:
    """Why tests marked `gpu` cannot run here; empty where they can."""
    import torch

    if torch.cuda.is_available():
        return ""
    return "torch is built without CUDA" if torch.version.cuda is None else "no CUDA device here"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if why := no_gpu():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=why))
    # A test that is named runs.
    named = any("::" in str(argument) for argument in config.args)
    left, config.stash[CHOSEN] = select(items, "all" if named else config.getoption("size"))
    if (part := config.getoption("part")) is not None:
        rest = part_of(left, int(part))
        left = {item.nodeid for item in items if item.nodeid not in rest}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left])
    items[:] = [item for item in items if item.nodeid not in left]


def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A GPU that a test has brought to a halt answers no test after it: the run ends and names that one."""
    if item.get_closest_marker("gpu") and not no_gpu():
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            pytest.exit(f"no GPU any more since {item.nodeid}: {str(error).splitlines()[0]}", returncode=1)


def pytest_collection_finish() -> None:
    # Tens of thousands of tests are not looked at again by every collection of garbage.
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model's folder."""
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def child() -> Iterator[Child]:
    """The process that trains."""
    out = Child()
    yield out
    out.pool.shutdown()


@pytest.fixture(scope="session")
def together() -> Iterator[Together]:
    """Two processes that share runs."""
    out = Together()
    yield out
    out.end()


@pytest.fixture(autouse=True)
def _own_compiled_code() -> Iterator[None]:
    # How often one function may be compiled is counted by the process: a test that compiles leaves nothing to the next.
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.eval_frame.cached_backends:
        dynamo.reset()
