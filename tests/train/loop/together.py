"""Two processes that share runs: they start once and take one run after the other."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


def _serve(number: int, of: int, pipe: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(of), "MASTER_ADDR": "127.0.0.1"}
    for port, cache, work, args in iter(pipe.recv, None):
        os.environ |= {"MASTER_PORT": str(port), **({} if cache is None else {"AFINA_CACHE": cache})}
        try:
            pipe.send(work(*args))
        except Exception as error:
            pipe.send(error)


class Together:
    """A few processes with numbers."""

    patience = 120
    """Seconds that each may take for what it is given."""

    def __init__(self, of: int = 2) -> None:
        context = get_context("spawn")
        self.pipes, self.processes = [], []
        for number in range(of):
            ours, theirs = context.Pipe()
            self.pipes.append(ours)
            self.processes.append(context.Process(target=_serve, args=(number, of, theirs), daemon=True))
            self.processes[-1].start()

    def __call__(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """What `work(*args)` gives in each; exceptions are given, not raised."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for pipe in self.pipes:
            pipe.send((port, os.environ.get("AFINA_CACHE"), work, args))
        return [pipe.recv() if pipe.poll(self.patience) else TimeoutError("it hangs") for pipe in self.pipes]

    def end(self) -> None:
        """Stop them."""
        for process in self.processes:
            process.kill()
