"""A run's first steps on tensors without data: its own model, adapter, kernels, trainer, loss and optimizer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ....devices.ranks import size
from ....errors import AfinaError, RecipeError
from ....plan.trace import Event, Trace
from ....plan.work import Work
from ...base.new_tokens import trains_new_tokens
from ...report.events import Reporter
from ...tasks import named
from ..adapt import adapted, counts
from ..begin import begin_config
from ..fast_paths import speed_up_run
from .pretence import chunks, fakes, unwatched
from .quantised_shapes import FewBits, quantised, stored_bytes
from .setting import Setting

STEPS = 3
"""The first one makes the optimizer's state; a heap has found its size by the third."""


class Untold(AfinaError):
    """What a run takes cannot be told before it runs."""


@dataclass(frozen=True)
class Rehearsed:
    """What was written down.

    Attributes:
        events: allocations, in order; of a step from the adapter on.
        parts: what each is for.
        weights: bytes of the model's tensors, by their keys.
        unread: bytes of them that nothing was computed of and that stay in their files; not told of a step.
        work: that it is in every step; None where it is not of a step.
    """

    events: list[Event]
    parts: Mapping[int, str]
    weights: Mapping[int, int]
    unread: int = field(default=0, kw_only=True)
    work: Work | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Rehearsal(Rehearsed):
    """The same of a run's steps.

    Attributes:
        usual: the work of a step with rows of all lengths; `work` is that with the batch that takes most.
        trainable, total: numbers of parameters.
        trained: bytes of the trained ones.
        sizes: rows and tokens of the batch.
        base: the model with its adapter inside, without data.
        batch: what the trainer was given.
        drawing: the same, after which images or answers are drawn, with what that adds to a step; None if none are.
    """

    usual: Work
    trainable: int
    total: int
    trained: int
    sizes: tuple[int, ...]
    base: nn.Module
    batch: Mapping[str, Any]
    drawing: Rehearsed | None = None


def rehearse(setting: Setting, *, gpu: bool = False, steps: int = STEPS) -> Rehearsal:
    """Rehearse the first steps of a run, with its batch that takes most.

    Args:
        gpu: the optimizer is the one of GPUs. Kernels are those of this machine's processor, which keep what those
            of GPUs keep.
        steps: with that batch; one more of rows as they are drawn follows where rows differ in length.

    Raises:
        Untold: with the reason.
    """
    from ....compat import stand_in
    from ....kernels.cpu.native import library

    stand_in()
    library()  # compiled outside
    trace = Trace()
    trace.keeps_kernels = not gpu
    with telling(setting), unwatched(), chunks(gpu), tempfile.TemporaryDirectory() as folder, fakes(), trace:
        return _steps(setting.on_processor(), trace, Path(folder), gpu, steps)


@contextmanager
def telling(setting: Setting) -> Iterator[None]:
    """Say of a setting what cannot be rehearsed.

    Raises:
        Untold: something in the context could not.
    """
    try:
        yield
    except RecipeError:  # what would stop the run
        raise
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError, AssertionError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise Untold(f"memory and time cannot be told for {setting.recipe.method.type}", got=got) from error


def _steps(setting: Setting, trace: Trace, folder: Path, gpu: bool, steps: int) -> Rehearsal:
    recipe, task = setting.recipe, named(setting.recipe.task)
    base = _base(setting)
    weights = trace.sizes()
    for module in base.modules():
        if isinstance(module, FewBits):
            key = trace.live[module.weight.untyped_storage()._cdata]
            weights[key] = stored_bytes(recipe.model, module.weight, gpu)
    began = len(trace.events)
    with trace.of("adapters"):
        config = trains_new_tokens(begin_config(recipe, setting.steps), base, setting.tokenizer, recipe.model)
        model = adapted(recipe, base, config, setting.data.tasks, begin=False)
    trace.mark((p for p in base.parameters() if p.requires_grad and not _is_base(trace, p, weights)), "adapters")
    trace.number = 0.0  # so that kernels are found to agree
    with trace.of("temporary"):
        speed_up_run(recipe, model, setting.tokenizer, setting.data, setting.steps, Reporter())
    trace.number = 1.0
    trainer = task.trainer(recipe, model, setting.tokenizer, setting.data, task.arguments(recipe, folder, 1e-3))
    if size() > 1 and type(trainer).__module__.partition(".")[0] != "transformers":
        raise Untold("memory and time cannot be told of this task in one of several processes", where="task",
                     got=recipe.task, fix="its trainer would wait for the others")  # fmt: skip
    around = task.around(recipe, setting.location, setting.data)
    rows, collate = trainer.train_dataset, trainer.data_collator
    if around is not None and around.batch is not None:
        rows, collate = setting.data.train.items, around.batch
    made = _batch(setting, rows, collate, longest=True)
    run = _Stepping(trace, trainer, gpu)
    for _ in range(steps):
        run.step(made)
    events, work = trace.events[began:], trace.works[steps]
    if _is_uneven(setting) and not setting.tokens:
        run.step(_batch(setting, rows, collate, longest=False))
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    shape = next((tuple(v.shape) for v in made.values() if isinstance(v, Tensor)), ())
    usual, drawing = trace.works[trace.step], None
    if around is not None and around.drawing is not None:
        added = around.drawing(trace, inner)
        drawing = Rehearsed(trace.events[began:], trace.parts, {**_weights(trace), **weights}, work=added)
    return Rehearsal(
        events, trace.parts, weights, usual, *counts(model), trained, shape, inner, made, drawing, work=work
    )


def _is_base(trace: Trace, parameter: Tensor, weights: Mapping[int, int]) -> bool:
    return trace.live.get(parameter.untyped_storage()._cdata) in weights


def rehearse_reading(setting: Setting, reading: Callable[[Trace], None], *, mapped: bool) -> Rehearsed:
    """Let rows be read by models of their own, on tensors without data.

    Raises:
        Untold: with the reason.
    """
    trace = Trace()
    with telling(setting), unwatched(), fakes(), trace:
        reading(trace)
        weights = _weights(trace)
        unread = sum(size for key, size in weights.items() if key not in trace.read) if mapped else 0
        return Rehearsed(trace.events, trace.parts, weights, unread=unread)


def _weights(trace: Trace) -> dict[int, int]:
    return {key: size for key, size in trace.sizes().items() if trace.parts[key] == "weights"}


class _Stepping:
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


def _base(setting: Setting) -> Any:
    """The base as it is loaded, by its config alone."""
    recipe = setting.recipe
    base = named(recipe.task).sketched(recipe.model, setting.location, setting.data.labels, setting.tokenizer,
                                       setting.layers)  # fmt: skip
    base = quantised(recipe.model, base)
    if recipe.training.gradient_checkpointing:
        if hasattr(base, "enable_input_require_grads"):  # of transformers
            base.enable_input_require_grads()
        base.activation_checkpointing_enable({"use_reentrant": False})
    return base


def _batch(setting: Setting, rows: Any, collate: Any, *, longest: bool) -> dict[str, Any]:
    """A batch as the trainer makes it, with its numbers."""
    with _disable_current_modes():
        made = collate([rows[i] for i in _chosen(setting, longest)])
        if setting.pixels:
            return {**made, **_resized(made, setting.tokenizer.latent_shape[-1])}
        return _of_tokens(made, setting.tokens) if setting.tokens else made


def _resized(batch: Mapping[str, Any], side: int) -> dict[str, Tensor]:
    """The latents of a batch with other sides."""
    return {
        k: v.new_zeros(*v.shape[:2], side, side) for k, v in batch.items() if isinstance(v, Tensor) and v.dim() == 4
    }


def _is_uneven(setting: Setting) -> bool:
    """Whether rows differ in length, so that the longest ones do not tell the time of the others."""
    return len({_length(item) for item in setting.data.train.items}) > 1


def _chosen(setting: Setting, longest: bool) -> list[int]:
    """Rows of a batch: the longest, or those of the batch whose longest row is nearest to the mean of all batches'."""
    data, rows = setting.data.train, setting.recipe.training.batch_size
    lengths = [_length(item) for item in data.items]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if longest:
        return order[:rows]
    drawn = order if hasattr(data, "set_epoch") else [*range(len(lengths))]  # grouped by length, or as they come
    batches = [drawn[i : i + rows] for i in range(0, len(drawn), rows)]
    most = [max(lengths[i] for i in batch) for batch in batches]
    mean = sum(most) / len(most)
    return min(zip(most, batches, strict=True), key=lambda found: abs(found[0] - mean))[1]


def _of_tokens(batch: Mapping[str, Any], tokens: int) -> dict[str, Any]:
    """A batch whose rows are cut or repeated to a length."""
    longest = max((v.shape[1] for v in batch.values() if isinstance(v, Tensor) and v.dim() == 2), default=0)
    places = torch.arange(tokens) % max(1, longest)
    of_tokens = {k: v for k, v in batch.items() if isinstance(v, Tensor) and v.dim() == 2 and v.shape[1] == longest}
    return {**batch, **{k: v[:, places] for k, v in of_tokens.items()}}


def _length(item: Mapping[str, Any]) -> int:
    return sum(len(value) for value in item.values() if isinstance(value, (list, tuple)))
