"""A training step that is recorded and repeated: CUDA graphs of its forward and its backward pass."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...errors import AfinaError

_FAR = {2: (2e-3, 3e-2), 4: (1e-4, 1e-3)}
"""By bytes of the model's numbers: how far a recorded step's loss and gradients may be from its own, relative."""

Inputs = dict[str, Any]
Run = Callable[[Inputs, int], Tensor]
"""The loss of inputs, taken on at most so many positions."""
Around = Callable[[Inputs], AbstractContextManager[None]]


class Machine(Protocol):
    """What records: CUDA, or a stand-in."""

    def warm(self, run: Callable[[], Any]) -> None:
        """Run once as recorded code would run."""

    def recorded(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run once, recording; returns what repeats it."""

    def draws(self) -> Tensor:
        """The state of random numbers."""

    def set_draws(self, state: Tensor) -> None:
        """Put it back."""


class Graphs:
    """CUDA graphs of one device, in one pool of memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gpu: Any = torch.cuda
        self.pool = self.gpu.graph_pool_handle()

    def warm(self, run: Callable[[], Any]) -> None:
        """On a stream of its own, where libraries make ready what they keep for each stream."""
        side = self.gpu.Stream(self.device)
        side.wait_stream(self.gpu.current_stream(self.device))
        with self.gpu.stream(side):
            run()
        self.gpu.current_stream(self.device).wait_stream(side)

    def recorded(self, run: Callable[[], None]) -> Callable[[], None]:
        """A graph of what runs."""
        try:
            return self._graph(run, self.pool)
        except BaseException:
            # A recording that failed leaves the generator in it; one that succeeds brings it back.
            with contextlib.suppress(RuntimeError):
                self._graph(lambda: torch.zeros(1, device=self.device), self.gpu.graph_pool_handle())
            raise

    def _graph(self, run: Callable[[], Any], pool: Any) -> Callable[[], None]:
        graph, collects = self.gpu.CUDAGraph(), gc.isenabled()
        gc.collect()
        gc.disable()  # a graph or a buffer that is freed meanwhile would end the recording
        try:
            with self.gpu.device(self.device), self.gpu.graph(graph, pool=pool, capture_error_mode="thread_local"):
                run()
        finally:
            if collects:
                gc.enable()
        replay: Callable[[], None] = graph.replay
        return replay

    def draws(self) -> Tensor:
        """The device's generator."""
        out: Tensor = self.gpu.get_rng_state(self.device)
        return out

    def set_draws(self, state: Tensor) -> None:
        """The device's generator."""
        self.gpu.set_rng_state(state, self.device)


class Token:
    """Lives as long as the backward pass of a replayed step may come."""


class Step:
    """One recorded step: its own tensors, and what repeats its passes."""

    def __init__(
        self, run: Run, around: Around, inputs: Inputs, whole: Inputs, room: int, parameters: Sequence[nn.Parameter],
        machine: Machine, few_bits: bool, draws: bool = True,
    ) -> None:  # fmt: skip
        """Record.

        Args:
            around: what either pass of `run` runs within.
            inputs: what is recorded. whole: what the model was given, whose step it has to be.
            parameters: those that `run` computes with inside of `around`.
            draws: whether it may draw random numbers.
        """
        self.inputs = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        self.run, self.around, self.room, self.parameters = run, around, room, list(parameters)
        self.loss = torch.empty(0)
        self.shapes: list[tuple[torch.dtype, torch.Size] | None] = []
        self.flat: dict[torch.dtype, Tensor] = {}
        before = machine.draws()
        expected = self._plain(whole)
        if not draws and not torch.equal(before, machine.draws()):
            raise AfinaError("layers that run again in the backward pass draw random numbers")
        machine.set_draws(before)
        machine.warm(lambda: self._plain(self.inputs))
        self.forward = machine.recorded(self._forward)
        self.slope = torch.ones_like(self.loss)
        self.backward = machine.recorded(self._backward)
        machine.set_draws(before)
        self.forward()
        self.backward()
        self._check(*expected, *_FAR[2 if few_bits else 4])
        machine.set_draws(before)

    def _plain(self, inputs: Inputs) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad(), self.around(inputs):
            loss = self.run(dict(inputs), self.room)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), [g for g in found if g is not None]

    def _forward(self) -> None:
        with torch.enable_grad(), self.around(self.inputs):
            self.loss = self.run(dict(self.inputs), self.room)

    def _backward(self) -> None:
        with self.around(self.inputs):  # for layers that run again
            found = torch.autograd.grad(self.loss, self.parameters, self.slope, allow_unused=True)
        self.loss = self.loss.detach()
        self.shapes = [None if g is None else (g.dtype, g.shape) for g in found]
        for dtype in {g.dtype for g in found if g is not None}:
            flat = torch.cat([g.reshape(-1) for g in found if g is not None and g.dtype == dtype])
            if dtype in self.flat:
                self.flat[dtype].copy_(flat)
            else:
                self.flat[dtype] = flat

    def _check(self, loss: Tensor, gradients: Sequence[Tensor], near: float, nearly: float) -> None:
        """Raises AfinaError where the recorded step is another one."""
        found = list(self.taken())
        squares = [float((a.double() - b.double()).square().sum()) for a, b in zip(found, gradients, strict=True)]
        norm = sum(float(g.double().square().sum()) for g in gradients) ** 0.5
        losses = abs(float(self.loss) - float(loss)) / max(abs(float(loss)), 1e-6)
        far = max(losses / near, sum(squares) ** 0.5 / max(norm, 1e-12) / nearly)
        if not far <= 1:  # NaN is far
            raise AfinaError(f"a recorded step differs by {far:.3g} times what rounding explains")

    def fill(self, inputs: Inputs) -> None:
        """Put a batch into its tensors."""
        for name, there in self.inputs.items():
            if isinstance(there, Tensor):
                there.copy_(inputs[name], non_blocking=True)

    def taken(self) -> Iterator[Tensor]:
        """The gradients of the last pass, out of the way of the next one; one for each parameter that has any."""
        parts = {}
        for dtype, flat in self.flat.items():
            sizes = [shape[1].numel() for shape in self.shapes if shape is not None and shape[0] == dtype]
            parts[dtype] = iter(torch.split(flat.clone(), sizes))
        for shape in self.shapes:
            if shape is not None:
                yield next(parts[shape[0]]).view(shape[1])


class Aliases:
    """Lets a model compute with other parameters in the same memory.

    What autograd does with a parameter's gradient hangs on the stream on which that was first asked for, as long as
    anybody holds an earlier loss; of these nobody does.

    Attributes:
        of: by the id of a trained parameter, the one in its place.
    """

    def __init__(self, base: nn.Module) -> None:
        self.places = [(m, name, p) for m in base.modules() for name, p in m._parameters.items()
                       if p is not None and p.requires_grad]  # fmt: skip
        self.of = {id(p): nn.Parameter(p.detach()) for _, _, p in self.places}

    def __enter__(self) -> None:
        for module, name, p in self.places:
            module._parameters[name] = self.of[id(p)]

    def __exit__(self, *_: Any) -> None:
        for module, name, p in self.places:
            module._parameters[name] = p


class Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Step, token: Token, *parameters: Tensor) -> Tensor:
        step.forward()
        ctx.step, ctx.token = step, token
        return step.loss.detach().clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        if ctx.token is None:
            raise AfinaError("a replayed step has one backward pass", fix="run the forward pass again, or leave out "
                             "`replay` of speed_up")  # fmt: skip
        ctx.step.slope.copy_(g)
        ctx.step.backward()
        ctx.token = None
        return None, None, *ctx.step.taken()
