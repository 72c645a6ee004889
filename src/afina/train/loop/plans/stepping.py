"""The steps of a trainer on tensors without data, each part of them told to the trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ....plan.trace import Trace
from .pretence import fakes


class Stepping:
    """A trainer's steps, each part of them told to the trace."""

    def __init__(self, trace: Trace, trainer: Any, gpu: bool) -> None:
        self.trace, self.trainer, self.gpu = trace, trainer, gpu
        self.model = trainer.model.train()
        self.optimizer = trainer.create_optimizer()
        for group in self.optimizer.param_groups if gpu else ():
            if "foreach" in group:
                group["foreach"] = True
        trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
        trainer._prepare_inputs = lambda inputs: inputs  # they lie where the model does
        own = trainer.accelerator.backward

        def backward(loss: Tensor, **how: Any) -> None:
            with trace.of("temporary"):
                own(loss, **how)

        trainer.accelerator.backward = backward
        self._tell_loss()

    def _tell_loss(self) -> None:
        """What comes after the decoder or encoder is of the loss."""
        base: Any = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        inner = getattr(base, getattr(base, "base_model_prefix", "") or "-", None)
        if isinstance(inner, nn.Module):
            inner.register_forward_pre_hook(lambda *_: self._now("activations"))
            inner.register_forward_hook(lambda *_: self._now("loss"))

    def _now(self, part: str) -> None:
        if self.trace.part in ("activations", "loss"):
            self.trace.part = part

    def step(self, batch: Mapping[str, Any]) -> None:
        """One step of the optimizer, of one batch."""
        self.trace.step += 1
        inputs = {k: fakes().from_tensor(v) if isinstance(v, Tensor) else v for k, v in batch.items()}
        with _disable_current_modes():
            numbers = {k: v.clone() for k, v in batch.items() if isinstance(v, Tensor)}  # the step may change its own
        for key, found in numbers.items():
            self.trace.known.tell(inputs[key], found)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        with self.trace.of("activations"):
            self.trainer.training_step(self.model, inputs, num_items_in_batch=None)
        self.trace.mark((p.grad for p in parameters if p.grad is not None), "gradients")
        with self.trace.of("temporary"):
            if self.trainer.args.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(parameters, self.trainer.args.max_grad_norm, foreach=self.gpu or None)
            self.optimizer.step()
            state = [t for kept in self.optimizer.state.values() for t in kept.values() if isinstance(t, Tensor)]
            self.trace.mark(state, "optimizer")
            self.optimizer.zero_grad()
