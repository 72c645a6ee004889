"""Training steps of a causal model replayed as CUDA graphs: one for the forward pass with its loss, one for the backward.

A step is hundreds of launches, which take the host longer than the device where batches are small. A batch whose shapes
were met before is copied into the tensors of a recorded step, and its two graphs are launched instead. The optimizer,
clipping, accumulation and the scaling of losses stay outside and are what they always are: gradients arrive as from any
backward pass.

A recorded step is kept only if it has the loss and gradients of the step itself. It belongs to shapes of tensors, to
how many positions are supervised (up to a multiple), to the adapters with their numbers, and to where the parameters
lie; whatever changes one of them is computed anew, and recorded when it comes again. All graphs share one pool of
memory: a second step that is recorded while the backward pass of the first is due is computed without graphs.

Source of the two-graph form: CUDA graphs in PyTorch (Ng et al. 2021, PyTorch's documentation of `torch.cuda.graphs`).
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ...core.hosts.calls import current
from ...core.hosts.host import Host, hosts
from ...errors import AfinaError, AfinaWarning
from ..listening import is_heard

SEEN, MOST = 2, 32
"""A shape is recorded when it comes for the time `SEEN`, if no more are there; others are computed."""
_PARTS = 8
"""Supervised positions are counted in so many parts of all positions."""
_FAR = {2: (2e-3, 3e-2), 4: (1e-4, 1e-3)}
"""By bytes of the model's numbers: how far a recorded step's loss and gradients may be from the step's own, relative."""

Inputs = dict[str, Any]
Run = Callable[[Inputs, int], Tensor]
"""The loss of inputs, taken on at most so many positions."""


class Machine(Protocol):
    """What records: CUDA, or a stand-in."""

    def warm(self, run: Callable[[], Any]) -> None:
        """Run once as recorded code would run."""

    def recorded(self, run: Callable[[], None]) -> Callable[[], None]:
        """Run once, recording; returns what repeats it."""

    def draws(self) -> Any:
        """The state of random numbers."""

    def set_draws(self, state: Any) -> None:
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
        graph = self.gpu.CUDAGraph()
        with self.gpu.device(self.device), self.gpu.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
        replay: Callable[[], None] = graph.replay
        return replay

    def draws(self) -> Tensor:
        """The device's generator."""
        out: Tensor = self.gpu.get_rng_state(self.device)
        return out

    def set_draws(self, state: Tensor) -> None:
        """The device's generator."""
        self.gpu.set_rng_state(state, self.device)


class _Token:
    """Lives as long as the backward pass of a replayed step may come."""


class _Step:
    """One recorded step: its own tensors, and what repeats its passes."""

    def __init__(
        self, run: Run, inputs: Inputs, room: int, parameters: Sequence[nn.Parameter], machine: Machine, few_bits: bool
    ) -> None:
        """Record; `parameters` are those that `run` computes with."""
        self.inputs = {k: v.clone() if isinstance(v, Tensor) else v for k, v in inputs.items()}
        self.run, self.room, self.parameters = run, room, list(parameters)
        self.loss = torch.empty(0)
        self.shapes: list[tuple[torch.dtype, torch.Size] | None] = []
        self.flat: dict[torch.dtype, Tensor] = {}
        before = machine.draws()
        expected = self._plain()
        machine.set_draws(before)
        machine.warm(self._plain)
        self.forward = machine.recorded(self._forward)
        self.slope = torch.ones_like(self.loss)
        self.backward = machine.recorded(self._backward)
        machine.set_draws(before)
        self.forward()
        self.backward()
        self._check(*expected, *_FAR[2 if few_bits else 4])
        machine.set_draws(before)

    def _plain(self) -> tuple[Tensor, list[Tensor]]:
        with torch.enable_grad():
            loss = self.run(dict(self.inputs), self.room)
            found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), [g for g in found if g is not None]

    def _forward(self) -> None:
        with torch.enable_grad():
            self.loss = self.run(dict(self.inputs), self.room)

    def _backward(self) -> None:
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
        found = [g for g in self.taken() if g is not None]
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

    def taken(self) -> Iterator[Tensor | None]:
        """The gradients of the last pass, out of the way of the next one; one for each parameter."""
        copies, at = {dtype: flat.clone() for dtype, flat in self.flat.items()}, dict.fromkeys(self.flat, 0)
        for shape in self.shapes:
            if shape is None:
                yield None
                continue
            dtype, size = shape
            begin = at[dtype]
            at[dtype] += size.numel()
            yield copies[dtype][begin : at[dtype]].view(size)


class _Aliases:
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


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: _Step, token: _Token, *parameters: Tensor) -> Tensor:
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


def records(model: nn.Module) -> bool:
    """Whether a model's steps are recorded."""
    get_base: Any = getattr(model, "get_base_model", None)
    return getattr(model if get_base is None else get_base(), "replays", None) is not None


class Replays:
    """The recorded steps of one model.

    Args:
        base: the transformers model, whose parameters stay the ones that it has now.

    Attributes:
        off: why nothing is recorded any more; empty while steps are.
    """

    def __init__(self, base: nn.Module, machine: Machine) -> None:
        self.base, self.machine, self.off = base, machine, ""
        self.hosts: list[Host] = [host for _, host in hosts(base)]
        self.parameters = list(base.parameters())
        self.few_bits = any(p.itemsize < 4 for p in self.parameters)
        self.seen: Counter[Any] = Counter()
        self.steps: dict[Any, _Step] = {}
        self.due: weakref.ref[_Token] | None = None

    def __reduce__(self) -> Any:
        """Copies of the model compute anew."""
        return _none, ()

    def loss(self, run: Run, inputs: Inputs) -> Tensor | None:
        """The loss of a batch by a recorded step; None where there is none.

        Args:
            inputs: what the model takes, `labels` or `shift_labels` among it.
        """
        if self.off or is_heard() or not torch.is_grad_enabled() or (self.due is not None and self.due() is not None):
            return None
        if getattr(self.base, "is_gradient_checkpointing", False):
            return None
        asked = _asked(inputs)
        state = None if asked is None else self._state()
        if asked is None or state is None:
            return None
        given, room = asked
        key = (room, state, *((k, (v.shape, v.dtype) if isinstance(v, Tensor) else v) for k, v in given.items()))
        step = self.steps.get(key) or self._recorded(key, run, given, room)
        if step is None:
            return None
        step.fill(given)
        token = _Token()
        self.due = weakref.ref(token)
        replayed: Any = _Replayed.apply
        out: Tensor = replayed(step, token, *(p for p in self.parameters if p.requires_grad))
        return out

    def _recorded(self, key: Any, run: Run, inputs: Inputs, room: int) -> _Step | None:
        self.seen[key] += 1
        if self.seen[key] < SEEN or len(self.steps) >= MOST:
            return None
        # Positions alone may tell of several rows in one, which are kept apart by a mask that is made of them.
        whole = "attention_mask" not in inputs and ("position_ids" not in inputs or "cu_seq_lens_q" in inputs)
        context = plain_masks() if whole else contextlib.nullcontext()
        aliases = _Aliases(self.base)

        def aliased(inputs: Inputs, room: int) -> Tensor:
            with aliases:
                return run(inputs, room)

        trained = [aliases.of[id(p)] for p in self.parameters if p.requires_grad]
        try:
            with context:
                step = _Step(aliased, inputs, room, trained, self.machine, self.few_bits)
        except (AfinaError, RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            self.off = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            self.steps.clear()
            warnings.warn(f"steps are not replayed as CUDA graphs: {self.off}", AfinaWarning, stacklevel=6)
            return None
        self.steps[key] = step
        return step

    def _state(self) -> Any:
        """What a recorded step holds for good; None where an adapter may be another one at each step."""
        found: list[Any] = [torch.is_autocast_enabled(p.device.type) for p in self.parameters[:1]]
        for host in self.hosts:
            call = current(host.scope)
            if call is not None and not call.is_plain:
                return None
            if not all(adapter.steady for adapter in host.stack):
                return None
            found += [host.enabled, host.merged, *(adapter.numbers() for adapter in host.stack)]
        return (*found, *((p.data_ptr(), p.requires_grad) for p in self.parameters))


def _none() -> None:
    return None


def _asked(inputs: Inputs) -> tuple[Inputs, int] | None:
    """What a recorded step takes, and for how many supervised positions it has room; None for what cannot be recorded.

    Padding at the end of rows needs no mask: no token before it sees it, and no loss is taken on it.
    """
    given = {k: v for k, v in inputs.items() if v is not None}
    labels = given.get("shift_labels", given.get("labels"))
    plain = all(isinstance(v, Tensor | bool | int | float | str) for v in given.values())
    if not plain or not isinstance(labels, Tensor) or not isinstance(given.get("input_ids"), Tensor):
        return None
    count = given.get("num_items_in_batch")
    if isinstance(count, int | float):
        given["num_items_in_batch"] = torch.tensor(float(count), device=labels.device)
    mask = given.get("attention_mask")
    supervised = (labels != -100).sum()
    if isinstance(mask, Tensor) and mask.dim() == 2 and "position_ids" not in given:
        wrong = (mask[:, 1:] > mask[:, :-1]).any() | ((labels != -100) & (mask == 0)).any()
        found, spread = torch.stack([supervised, wrong.long()]).tolist()
        if not spread:
            del given["attention_mask"]
    else:
        found = int(supervised)
    part = -(-labels.numel() // _PARTS)
    return (given, min(labels.numel(), -(-found // part) * part)) if found else None


@contextlib.contextmanager
def plain_masks() -> Iterator[None]:
    """Let transformers take rows without a mask for rows that are whole: while it is recorded it cannot look at them,
    and would make masks of all tokens against all."""
    from transformers import masking_utils

    names = {"is_tracing": lambda *_: False, "find_packed_sequence_indices": lambda *_, **__: None}
    before = {name: getattr(masking_utils, name) for name in names}
    vars(masking_utils).update(names)
    try:
        yield
    finally:
        vars(masking_utils).update(before)
