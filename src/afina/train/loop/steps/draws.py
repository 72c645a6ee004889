"""What a training step draws (dropout, noise): other numbers in each process, because each has other rows.

Between passes through the model all processes have the same random state: what is drawn there (an order of rows, a
method's new start) is equal in all, and checkpoints hold all that a resumed run needs.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from ....devices.ranks import rank

_SEEDS = 2**62


class OwnDraws:
    """Gives every pass of training through `model` random numbers of this process's own.

    Their seed is drawn from the state that all have, which is as it was after the pass. Layers that gradient
    checkpointing runs again bring the state of their first time along.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        # The processor's state is kept beside that of the devices.
        self.devices, self.kind = ([device], device.type) if device.type in ("cuda", "xpu") else ([], "cuda")
        self.within: list[ExitStack] = []
        model.register_forward_pre_hook(self._begins)
        model.register_forward_hook(self._ends, always_call=True)

    def _begins(self, model: nn.Module, args: Any) -> None:
        own = ExitStack()
        self.within.append(own)
        if not model.training:
            return
        seed = int(torch.randint(_SEEDS, ()))
        own.enter_context(torch.random.fork_rng(self.devices, device_type=self.kind))
        torch.manual_seed(seed + rank())

    def _ends(self, model: nn.Module, args: Any, output: Any) -> None:
        self.within.pop().close()
