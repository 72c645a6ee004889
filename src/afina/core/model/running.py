"""Calling a model with adapters: forward, generate, and what goes on around them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..config import TaskType, method
from ..hosts import tuner
from ..hosts.adapter import Adapter
from ..hosts.batch_rows import Rows
from ..hosts.calls import current, entered, node_number
from ..hosts.host import Host, hosts
from ..layers.sharded import gathers_newly
from ..layers.spreading import refuse_apart
from . import passes
from .rows_of_call import take_rows
from .saving import Files
from .signature import LikeTheBase


class Running(Files):
    """`forward` and `generate`."""

    if TYPE_CHECKING:
        task_type: TaskType | None
        _never_called_checked: bool

        @property
        def active_adapters(self) -> list[str]: ...

    @LikeTheBase
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's forward with the active adapters, or with each row's own.

        Args:
            *args: of the base model.
            **kwargs: of the base model; what methods consume (`task_ids`, `alora_offsets`); `adapter_names`: a name or
                "__base__" for every row of the batch, in as many passes as docs/serving.md says.

        Raises:
            ConfigError: in the first training step: an adapted layer was not called, so that it would learn nothing; or
                each process would train an adapter of its own beside a sharded base.
        """
        if torch.compiler.is_compiling():  # which knows no locks
            return self._passes(args, kwargs)
        self._settled.settle(self, self.get_base_model())
        with self.base_model.scope.users.calling():
            return self._passes(args, kwargs)

    def _passes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        rows = take_rows(self, args, kwargs)
        several = [] if rows is None else passes.plan(self, rows, kwargs)
        if rows is not None and len(several) > 1:
            return passes.forward(self, self._forward, rows, several, args, kwargs)
        return self._forward(rows, args, kwargs)

    def _forward(self, rows: Rows | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs, compiling = self._inputs(args, kwargs, rows), torch.compiler.is_compiling()
        start = 0 if compiling else node_number()
        first = self.training and not self._never_called_checked and not compiling
        before = _frames_compiled() if first else 0
        if first:
            refuse_apart(self)
        places = kwargs.get("logits_to_keep")
        some = not compiling and (places != 0 if isinstance(places, int) else places is not None)
        laid = together(self.get_base_model()) if some else nullcontext()  # a hook on the head keeps the fast loss off
        with entered(self.base_model.scope, rows, inputs) as call, laid:
            out = self.base_model(*args, **kwargs)
            if self.training:
                out = self._with_penalty(out, rows, kwargs)
        if torch.is_grad_enabled() and not compiling:
            call.keep_for_backward(out, start)
        if first:
            # Layers that were compiled on the way do not say that they were called.
            self._never_called_checked = True
            if _frames_compiled() == before:
                self._check_called()
        return out

    @property
    def is_enabled(self) -> bool:
        """Whether adapters apply here and now."""
        call = current(self.base_model.scope)
        return self.base_model.enabled and (call is None or call.enabled)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base model's `generate` with the active adapters, or with each row's own.

        Args:
            *args: of the base model.
            **kwargs: of the base model, and as for `forward`.
        """
        self._settled.settle(self, self.get_base_model())
        if gathers_newly(self, "generate"):
            return self.generate(*args, **kwargs)
        with self.base_model.scope.users.calling():
            rows = take_rows(self, args, kwargs)
            several = [] if rows is None else passes.plan(self, rows, kwargs, generating=True)
            if rows is not None and len(several) > 1:
                return passes.generate(self, self._generate, rows, several, args, kwargs)
            return self._generate(rows, args, kwargs)

    def _generate(self, rows: Rows | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs = self._inputs(args, kwargs, rows)
        with entered(self.base_model.scope, rows, inputs), together(self.get_base_model()):
            placement = self.base_model.placement()
            if placement is not None:
                return placement.generate(args, kwargs)
            kwargs |= tuner.generation_options(self.base_model, kwargs)
            return self.get_base_model().generate(*args, **kwargs)  # type: ignore[operator]

    def _implementations(self, names: Iterable[str] | None = None) -> list[Any]:
        configs = [self.peft_config[n] for n in (self.base_model.active if names is None else names)]
        found = [(method(c).implementation, c) for c in configs]
        return [i.for_config(c) if issubclass(i, Adapter) else i for i, c in found]

    def _running(self, rows: Rows | None) -> tuple[str, ...]:
        """The adapters that a call goes through."""
        return self.base_model.active if rows is None else tuple(n for n in rows.groups if n in self.peft_config)

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any], rows: Rows | None) -> dict[str, dict[str, Any]]:
        """Takes the arguments that methods consume out of the call: adapter -> its inputs."""
        names = self._running(rows)
        classes = zip(names, self._implementations(names), strict=True)
        consuming = {n: (i, self.peft_config[n]) for n, i in classes if issubclass(i, Adapter) and i.inputs}
        inputs = tuner.taken_inputs(consuming, args, kwargs, rows)
        if not self.is_enabled:
            for key in {k for i in self._implementations() for k in i.inputs}:
                kwargs.pop(key, None)
        return inputs

    def _with_penalty(self, out: Any, rows: Rows | None, kwargs: Mapping[str, Any]) -> Any:
        """Add what methods ask for to the loss."""
        names = self._running(rows)
        if not any(i.has_penalty for i in self._implementations(names)) or getattr(out, "loss", None) is None:
            return out
        found = [h.stack if rows is None else filter(None, map(h.adapter, names)) for _, h in hosts(self)]
        terms = [a.penalty() for stack in found for a in stack if a.has_penalty]
        out.loss = out.loss + sum(t for t in terms if t is not None) * self._share_of_step(kwargs)
        return out

    def _share_of_step(self, kwargs: Mapping[str, Any]) -> Tensor | float:
        """How much of a step a batch is. Where transformers' Trainer tells how many tokens the whole step has, it sums
        the losses of a step's batches and processes; else it takes their mean."""
        items, labels = kwargs.get("num_items_in_batch"), kwargs.get("shift_labels", kwargs.get("labels"))
        if items is None or labels is None:
            return 1.0
        base: Any = self.get_base_model()
        shifts = getattr(base, "loss_type", None) == "ForCausalLM" and not base.config.is_encoder_decoder
        predicted: Tensor = labels[..., 1:] if shifts and "shift_labels" not in kwargs else labels
        share: Tensor = (predicted != -100).sum() / items
        return share

    def _check_called(self) -> None:
        """After the first training forward: an adapter on a layer that is never called would learn nothing."""
        every = [(n, h) for n, h in hosts(self.get_base_model()) if h.stack and "experts" not in n.split(".")]
        learning = {id(a) for _, h in every if h.called for a in _with_sources(h)}
        idle = [n for n, h in every if not h.called and learning.isdisjoint(map(id, _with_sources(h)))]
        if idle:
            raise ConfigError(
                f"{len(idle)} adapted layers were not called in forward, so nothing would be learnt there",
                where=", ".join(idle[:3]), fix="leave them out with exclude_modules, or adapt their parent",
            )  # fmt: skip


def _with_sources(host: Host) -> Iterator[Adapter]:
    """A layer's active adapters, and those of which they are copies on modules that share its weight."""
    return (a for adapter in host.stack for a in (adapter, *getattr(adapter, "sources", ())))


def _frames_compiled() -> int:
    """How many pieces of code the compiler has taken in this process."""
    compiler: Any = sys.modules.get("torch._dynamo")
    return 0 if compiler is None else sum(compiler.utils.counters["frames"].values())


@contextmanager
def together(base: Any) -> Iterator[None]:
    """While it lasts, a vocabulary's projection, where a model has one, gets copies of what was cut out of more.

    Models cut the hidden states of a few places out of those of all before it (`logits_to_keep`, which `generate` and
    trainers of preferences set). torch multiplies those row of the batch by row of the batch and reads the weight anew
    for each: 600 times as slow in bfloat16 on a processor (32 rows, 49152 tokens), 7 times in float32.
    """
    head = _head(base)
    if head is None:
        yield
        return
    handle = head.register_forward_pre_hook(_copied)
    try:
        yield
    finally:
        handle.remove()


def _head(base: Any) -> nn.Module | None:
    try:
        found = base.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def _copied(head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if given and isinstance(given[0], Tensor) and given[0].dim() > 2 and not given[0].is_contiguous():
        return (given[0].contiguous(), *given[1:])
    return None
