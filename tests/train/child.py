"""A process of its own for everything that touches transformers' Trainer: there afina stands in for `peft`, while the
tests' own process may hold the real one as an oracle. It starts once a session."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


class Child:
    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_alone)

    def __call__(self, work: Callable[..., Any], *args: Any) -> Any:
        """The result of `work(*args)`, a function of a test module; exceptions come back as they are."""
        return self.pool.submit(_with_cache, os.environ.get("AFINA_CACHE"), work, args).result()


def _alone() -> None:
    import torch

    torch.set_num_threads(1)


def _with_cache(cache: str | None, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if cache is None:
        os.environ.pop("AFINA_CACHE", None)  # of an earlier test
    else:
        os.environ["AFINA_CACHE"] = cache
    out = work(*args)
    global _frozen_at
    if len(sys.modules) > _frozen_at + 100:
        # The libraries stay: the collections that every run makes need not look at a million of their objects again.
        gc.collect()
        gc.freeze()
        _frozen_at = len(sys.modules)
    return out


_frozen_at = 0


def command(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `afina WORDS`."""
    from typer.testing import CliRunner

    from afina.cli.app import app

    done = CliRunner().invoke(app, [str(w) for w in words], input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr
