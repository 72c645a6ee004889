"""A process of its own for everything that touches transformers' Trainer: there afina stands in for `peft`, while the
tests' own process may hold the real one as an oracle. It starts once a session."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


class Child:
    def __init__(self) -> None:
        self.pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_alone)

    def __call__(self, work: Callable[..., Any], *args: Any) -> Any:
        """The result of `work(*args)`, a function of a test module; exceptions come back as they are."""
        return self.pool.submit(_with_cache, os.environ["AFINA_CACHE"], work, args).result()


def _alone() -> None:
    import torch

    torch.set_num_threads(1)


def _with_cache(cache: str, work: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.environ["AFINA_CACHE"] = cache
    return work(*args)


def command(*words: str, stdin: str | None = None) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `afina WORDS`."""
    from typer.testing import CliRunner

    from afina.cli.app import app

    done = CliRunner().invoke(app, [str(w) for w in words], input=stdin)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr
