"""Training steps of a causal model replayed as CUDA graphs: one for the loss, one for the backward pass.

A step is hundreds of launches, which take the host longer than the device where batches are small. A batch whose shapes
were met before is copied into the tensors of a recorded step, and its two graphs are launched instead. The optimizer,
clipping, accumulation and the scaling of losses stay outside and are what they always are: gradients arrive as from any
backward pass.

A recorded step is kept only if it has the loss and gradients of the step itself. It belongs to shapes of tensors, to
how many positions are supervised (up to a multiple), to the adapters with their numbers, and to where the parameters
lie; whatever changes one of them is computed anew, and recorded when it comes again. Where modules or parameters come,
go or are replaced, all recordings are forgotten. All graphs share one pool of memory and each its tensors: a second
step, also of another thread, while the backward pass of the first is due is computed without graphs.

Source of the two-graph form: CUDA graphs in PyTorch (Ng et al. 2021, PyTorch's documentation of `torch.cuda.graphs`).
"""

from __future__ import annotations

import contextlib
import operator
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...core.hosts.calls import current
from ...core.hosts.host import Host, hosts
from ...errors import AfinaError, AfinaWarning, ConfigError
from ..listening import is_heard
from .graphs import Aliases, Inputs, Machine, Replayed, Run, Step, Token
from .run_again import RunAgain

SEEN, MOST = 2, 32
"""A shape is recorded when it comes for the time `SEEN`, if no more are there; others are computed."""
_MASKS = threading.RLock()
"""Held while transformers' masks are other ones for a thread."""
_PARTS = 8
"""Supervised positions are counted in so many parts of all positions."""


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
        self.due: weakref.ref[Token] | None = None
        self.lock = threading.Lock()
        self._look()

    def _look(self) -> None:
        """See what the model is made of, and begin anew."""
        modules = list(self.base.modules())
        self.hosts: list[Host] = [host for _, host in hosts(self.base)]
        self.scopes = {host.scope for host in self.hosts}
        self.settings: dict[nn.Module, _Settings] = {}
        self.again = RunAgain(modules)
        self.places = [m._modules for m in modules if m._modules], [m._parameters for m in modules if m._parameters]
        self.made_of = self._made_of()
        self.parameters = list(self.base.parameters())
        self.few_bits = any(p.itemsize < 4 for p in self.parameters)
        self.seen: Counter[int] = Counter()
        self.steps: dict[Any, Step] = {}

    def _made_of(self) -> list[int]:
        """By number, all modules and parameters: what is new anywhere stands in a module that was there."""
        return [id(one) for places in self.places for place in places for one in place.values()]

    def __reduce__(self) -> Any:
        """Copies of the model compute anew."""
        return _none, ()

    def loss(self, run: Run, inputs: Inputs) -> Tensor | None:
        """The loss of a batch by a recorded step; None where there is none.

        Args:
            inputs: what the model takes, `labels` or `shift_labels` among it.
        """
        if self.off or is_heard() or not torch.is_grad_enabled() or not self.lock.acquire(blocking=False):
            return None
        try:
            return self._loss(run, inputs)
        finally:
            self.lock.release()

    def _loss(self, run: Run, inputs: Inputs) -> Tensor | None:
        if self.due is not None and self.due() is not None:
            return None
        if self._made_of() != self.made_of:
            self._look()
        # First what the host does alone: the question about the labels waits for the step before.
        state = self._state()
        asked = None if state is None else _asked(inputs)
        if asked is None:
            return None
        given, room = asked
        key = (room, state, *((k, (v.shape, v.dtype) if isinstance(v, Tensor) else v) for k, v in given.items()))
        step = self.steps.get(key) or self._recorded(key, run, given, inputs, room)
        if step is None:
            return None
        step.fill(given)
        token = Token()
        self.due = weakref.ref(token)
        replayed: Any = Replayed.apply
        # Those without a gradient are none of its inputs, so that who looks (DDP) knows them for unused.
        trained = (p for p in self.parameters if p.requires_grad)
        out: Tensor = replayed(step, token, *(p for p, has in zip(trained, step.shapes, strict=True) if has))
        return out

    def _recorded(self, key: Any, run: Run, inputs: Inputs, given: Inputs, room: int) -> Step | None:
        self.seen[hash(key)] += 1
        if self.seen[hash(key)] < SEEN or len(self.steps) >= MOST:
            return None
        aliases = Aliases(self.base)

        @contextlib.contextmanager
        def around(inputs: Inputs) -> Iterator[None]:
            masks = plain_masks() if _is_unmasked(inputs) else contextlib.nullcontext()
            with aliases, self.again.without_draws(), masks:
                yield

        trained = [aliases.of[id(p)] for p in self.parameters if p.requires_grad]
        try:
            with contextlib.ExitStack() as alone:
                for scope in self.scopes:  # no other thread runs the model with the aliases
                    alone.enter_context(scope.users.changing())
                draws = not self.again.state()
                step = Step(run, around, inputs, given, room, trained, self.machine, self.few_bits, draws)
        except ConfigError:  # another thread waits to change adapters: next time
            return None
        except (AfinaError, RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            self.off = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
            self.steps.clear()
            warnings.warn(f"steps are not replayed as CUDA graphs: {self.off}", AfinaWarning, stacklevel=6)
            return None
        self.steps[key] = step
        return step

    def _state(self) -> Any:
        """What a recorded step holds for good; None where an adapter may be another one at each step."""
        for scope in self.scopes:
            call = current(scope)
            if call is not None and not call.is_plain:
                return None
        found: list[Any] = []
        for host in self.hosts:
            stack = host.stack
            found.append((host.enabled, host.merged, stack))
            for adapter in stack:
                settings = self.settings.get(adapter)
                if settings is None:
                    settings = self.settings[adapter] = _Settings(adapter)
                if not settings.steady:
                    return None
                found.append(settings.now())
        ours = self.parameters
        kind = ours[0].device.type if ours else "cpu"
        places = [(p.data_ptr(), p.requires_grad) for p in ours]
        return torch.is_autocast_enabled(kind), self.again.state(), *found, *places


def _none() -> None:
    return None


class _Settings:
    """What an adapter holds that is no tensor and may be set anew, to be looked at in every step.

    Attributes:
        steady: whether the adapter's class says that nothing else of it changes.
    """

    def __init__(self, adapter: nn.Module) -> None:
        self.steady = bool(vars(type(adapter)).get("steady"))
        self.held = vars(adapter)
        names = [name for name, v in self.held.items() if v is None or isinstance(v, bool | int | float | str)]
        self.get = operator.itemgetter("training", *names)

    def now(self) -> Any:
        """The settings, and how many things there are."""
        return len(self.held), self.get(self.held)


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


def _is_unmasked(inputs: Inputs) -> bool:
    """Whether rows are whole. Positions alone may tell of several in one, kept apart by a mask that is made of them."""
    apart = "position_ids" in inputs and "cu_seq_lens_q" not in inputs
    return inputs.get("attention_mask") is None and not apart


@contextlib.contextmanager
def plain_masks() -> Iterator[None]:
    """Let transformers take rows without a mask for rows that are whole: while it is recorded it cannot look at them,
    and would make masks of all tokens against all."""
    from transformers import masking_utils

    me, answers = threading.get_ident(), {"is_tracing": False, "find_packed_sequence_indices": None}

    def here(own: Callable[..., Any], answer: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: answer if threading.get_ident() == me else own(*args, **kwargs)

    with _MASKS:
        before = {name: getattr(masking_utils, name) for name in answers}
        vars(masking_utils).update({name: here(own, answers[name]) for name, own in before.items()})
        try:
            yield
        finally:
            vars(masking_utils).update(before)
