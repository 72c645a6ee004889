"""One run of several on a base: where its training step waits for the others, and whether it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...core.config import method
from ...core.hosts.adapter import Adapter
from ...core.hosts.calls import innermost
from ...core.hosts.routing import routers
from ...core.model.peft_model import PeftModel
from ..loop.steps.random_states import drew, random_states, set_random_states
from ..report.events import Reporter, Stage
from .in_turn import Turn
from .shared_pass import BY_TOKEN

_PLAIN = (type(None), bool, int, float, str)
_COUNTS = ("num_items_in_batch",)
"""What losses want of the arguments, and no body does."""
_NOISE = 0.1
_SAME = {2: 2e-2, 4: 1e-4}
"""How far the pass that is shared may be from a run's own, as a share of the largest value, by bytes a number has."""


@dataclass
class Forward:
    """A run waits for its rows to go through the body."""

    member: Member
    given: dict[str, Any]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Rows share a pass with those of the same kind."""
        plain = sorted((k, str(v)) for k, v in self.given.items() if isinstance(v, _PLAIN))
        return *plain, self.given["inputs_embeds"].dtype


@dataclass
class Backward:
    """A run waits for its gradient to go back through the pass that it shared."""

    member: Member
    out: Any
    given: Any


@dataclass
class Trial:
    """A run that has never shared a pass wants to know what its rows would be among others."""

    member: Member
    given: dict[str, Any]


@dataclass
class Meeting:
    """A run waits until all others have come to this place too, or to an end."""

    member: Member
    place: int


@dataclass(frozen=True)
class Refused:
    """A run cannot share passes, and why."""

    why: str


class Member(Reporter):
    """Hears of a run, and lets its training steps wait for the others'.

    Attributes:
        name: among the runs, for people.
        key: of its adapters in shared passes.
        alone: why it has passes of its own; empty where it shares them.
        passes: how many it shared, and how many it had to itself.
        tried: whether it was seen if it can share them.
        stopping: the signal that asked for its end.
    """

    def __init__(
        self, name: str, key: str, inner: Reporter, join: Callable[[Member, nn.Module], str], alone: str = ""
    ) -> None:  # fmt: skip
        self.name, self.key, self.inner, self.join = name, key, inner, join
        self.turn: Turn | None = None
        self.alone, self.passes = alone, [0, 0]
        self.tried = False
        self.stopping: int | None = None
        self.open: tuple[Any, Any] | None = None
        self.trainer: Any = None

    def reached(self, stage: Stage, parts: Mapping[str, Any]) -> None:
        """From before its first step on it shares passes, unless it is known to have its own."""
        if stage == "ready":
            self.trainer = parts["trainer"]
            if self.stopping is not None:  # the signal came while it was loaded
                self.stop(self.stopping)
            self._count()
            if not self.alone:
                self._enlist(parts["model"])
        self.inner.reached(stage, {**parts, "meet": self.meet})

    def stop(self, number: int) -> None:
        """Let it end after its step, as a signal lets a run."""
        from ..loop.steps.stopping import GracefulStop

        self.stopping = number
        for callback in [] if self.trainer is None else self.trainer.callback_handler.callbacks:
            if isinstance(callback, GracefulStop):
                callback.received = number

    def meet(self, place: int) -> None:
        """Wait until every run has come to this place of its training, or has ended; lower places come first."""
        if self.turn is not None:
            self._wait(Meeting(self, place))

    def _count(self) -> None:
        """Let every pass be counted on its way back, behind which a shared one is gone back through with the others."""
        accelerator = self.trainer.accelerator
        backward = accelerator.backward

        def back(loss: Tensor, *args: Any, **kwargs: Any) -> None:
            backward(loss, *args, **kwargs)
            self.passes[self.open is None] += 1
            if self.open is not None:
                (out, given), self.open = self.open, None
                self._wait(Backward(self, out, given))

        accelerator.backward = back

    def _enlist(self, model: Any) -> None:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        body: Any = getattr(base, getattr(base, "base_model_prefix", "") or "?", None)
        self.alone = _unfit(model, body) or self.join(self, body)
        if self.alone:
            self.note(f"passes of its own: {self.alone}")
            return
        own = body.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not torch.is_grad_enabled() or not body.training:
                return own(*args, **kwargs)
            cut = None if self.alone or args else self._forward(body, own, kwargs)
            return own(*args, **kwargs) if cut is None else cut

        body.forward = forward

    def _forward(self, body: Any, own: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """What comes of its rows among others'; None where it has to run them itself."""
        if not _fits(kwargs):
            return None
        if not self.tried:
            self.tried = True
            with _as_if_not_run(self.trainer.model):
                self._try(body, own, kwargs)
        out = None if self.alone else self._wait(Forward(self, _given(body, kwargs)))
        if out is None:
            return None
        cut = type(out)(**{k: v.detach().requires_grad_(v.requires_grad) for k, v in out.items()})
        self.open = out, cut
        return cut

    def _try(self, body: Any, own: Callable[..., Any], kwargs: dict[str, Any]) -> None:
        """Whether its rows come out among others as they do alone, with adapters that do something."""
        before = random_states()
        expected = own(**kwargs).last_hidden_state.detach()  # what it keeps for a backward pass goes at once
        if drew(before):
            return self._goes_alone("its forward pass draws random numbers, which would be others among others' rows")
        out = self._wait(Trial(self, _given(body, kwargs)))
        if isinstance(out, Refused):
            return self._goes_alone(out.why)
        off = float((out.last_hidden_state - expected).abs().max() / expected.abs().max())
        if not off <= _SAME.get(expected.element_size(), _SAME[4]):
            self._goes_alone(f"its rows differ by {off:.1g} of the largest value among others'")
        return None

    def _goes_alone(self, why: str) -> None:
        self.alone = why
        self.note(f"passes of its own: {why}")

    def _wait(self, request: Any) -> Any:
        assert self.turn is not None
        return self.turn.wait_for(request)

    def note(self, text: str) -> None:
        """With the run's name."""
        self.inner.note(f"{self.name}: {text}")

    def warn(self, text: str) -> None:
        """With the run's name."""
        self.inner.warn(f"{self.name}: {text}")


@contextmanager
def _as_if_not_run(model: nn.Module) -> Iterator[None]:
    """What is run within leaves nothing behind, and finds adapters that are not at their beginning, where many do
    nothing: noise of `_NOISE` is on their numbers meanwhile."""
    call, states = innermost(), random_states()
    notes = {} if call is None else {k: dict(v) if isinstance(v, dict) else v for k, v in call.notes.items()}
    trained = {p: p.data for p in model.parameters() if p.requires_grad}
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        try:
            for p, own in trained.items():  # other tensors in their places: what was computed before still holds
                p.data = own + _NOISE * torch.randn(own.shape, generator=draw).to(own)
            yield
        finally:
            for p, own in trained.items():
                p.data = own
            set_random_states(states)
            if call is not None:
                call.notes.clear()
                call.notes.update(notes)


def _unfit(model: Any, body: Any) -> str:
    """Why a model cannot share passes; empty where it can."""
    if not isinstance(model, PeftModel):
        return "the whole model is trained"
    if not isinstance(body, nn.Module):
        return "its base has no body of its own"
    if routers(model):
        return "its method routes over the whole model"
    kinds = [method(config).implementation for config in model.peft_config.values()]
    if any(issubclass(kind, Adapter) and kind.inputs for kind in kinds):
        return "its method takes arguments of the model"
    return ""


def _fits(kwargs: Mapping[str, Any]) -> bool:
    """Whether a body's arguments have a place in a shared pass."""
    given = {k: v for k, v in kwargs.items() if k not in _COUNTS and v is not None}
    known = {"input_ids", "inputs_embeds", *BY_TOKEN}
    whole = all(isinstance(v, Tensor) if k in known else isinstance(v, _PLAIN) for k, v in given.items())
    whole = whole and given.get("return_dict") is not False
    mask = given.get("attention_mask")
    return whole and bool({"input_ids", "inputs_embeds"} & set(given)) and (mask is None or mask.dim() == 2)


def _given(body: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A body's arguments as those of a shared pass."""
    given = {k: v for k, v in kwargs.items() if k not in (*_COUNTS, "use_cache", "return_dict") and v is not None}
    ids = given.pop("input_ids", None)
    return given if ids is None else {**given, "inputs_embeds": body.get_input_embeddings()(ids)}
