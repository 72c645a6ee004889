"""`speed_up`: give a transformers model the fast paths that fit it, each tried against the model's own first."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import AfinaError
from . import attention
from .loss import linear_cross_entropy, sparse_rows_linear, supervised_loss
from .low_rank import is_plain_linear


def speed_up(model: nn.Module, *, keep_logits: bool = True) -> list[str]:
    """Make training steps of a causal language model cheaper, with the same results.

    Args:
        model: a `PeftModel` or a transformers model; changed in place.
        keep_logits: False lets a training forward with `labels` return the loss alone (`logits` is None): only
            supervised positions then reach the vocabulary projection, in chunks.

    Returns:
        A sentence for each fast path: that it is on, or why it is not.
    """
    get_base: Any = getattr(model, "get_base_model", None)
    base: Any = model if get_base is None else get_base()
    said = [_attention(base)]
    head: Any = getattr(base, "get_output_embeddings", lambda: None)()
    if hasattr(base, "get_decoder") and head is not None:
        said.append(_plain_loss(base))
        said.append(_sparse_head(base))
        said.append("loss without logits: off, because logits are wanted" if keep_logits else _loss_alone(base))
    else:
        said.append("loss: off, because this is no causal language model")
    return said


def _attention(base: Any) -> str:
    first = next(iter(base.parameters()), None)
    now = getattr(getattr(base, "config", None), "_attn_implementation", None)
    if first is None or first.device.type != "cpu" or first.dtype not in (torch.bfloat16, torch.float16):
        return "attention: torch's own, which is the fastest for this dtype and device"
    if now != "sdpa" or not callable(getattr(base, "set_attn_implementation", None)):
        return f"attention: left as it is ({now})"
    attention.register()
    base.set_attn_implementation(attention.NAME)
    return f"attention: by batched products up to {attention.LONGEST} tokens"


def _swap_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give one module another forward by a subclass of its own class, which copies and saves like the class."""
    kind: Any = type(module)
    module.__class__ = _subclass(kind, forward)


@functools.lru_cache(maxsize=64)
def _subclass(kind: Any, forward: Callable[..., Any]) -> Any:
    wrapped = functools.wraps(kind.forward)(functools.partial(_call, kind, forward))

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return wrapped(self, *args, **kwargs)

    method.__signature__ = inspect.signature(kind.forward)  # type: ignore[attr-defined]
    names = {"forward": method, "__module__": kind.__module__, "__doc__": kind.__doc__, "plain_class": kind}
    return type(kind.__name__, (kind,), names)


def _call(kind: type[nn.Module], forward: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    return forward(kind, self, *args, **kwargs)


def _plain_loss(base: Any) -> str:
    own = getattr(base, "loss_function", None)
    if getattr(own, "__name__", "") != "ForCausalLMLoss":
        return f"loss: left as it is ({getattr(own, '__name__', own)})"
    base.loss_function = supervised_loss
    return "loss: on supervised positions only"


def _head_forward(kind: type[nn.Module], self: Any, x: Tensor) -> Tensor:
    if not x.requires_grad or not is_plain_linear_of(kind, self) or self.bias is not None:
        out: Tensor = kind.forward(self, x)
        return out
    return sparse_rows_linear(x, self.weight)


def is_plain_linear_of(kind: type[nn.Module], module: nn.Module) -> bool:
    """`is_plain_linear` for a module whose own class was swapped."""
    return kind.forward is nn.Linear.forward and is_plain_linear(module, forward=type(module).forward)


def _sparse_head(base: Any) -> str:
    head = base.get_output_embeddings()
    if hasattr(type(head), "plain_class"):
        return "vocabulary projection: on already"
    if type(head) is not nn.Linear:
        return f"vocabulary projection: left as it is ({type(head).__name__})"
    _swap_forward(head, _head_forward)
    return "vocabulary projection: no backward pass where no gradient comes"


def _loss_alone(base: Any) -> str:
    if hasattr(type(base), "plain_class"):
        return "loss without logits: on already"
    if not is_head_plain(base):
        return "loss without logits: off, because the vocabulary projection is adapted or trained"
    difference = _try(base)
    if difference is None:
        return "loss without logits: off, because the model takes more than tokens"
    if difference > 0.02:
        return f"loss without logits: off, because the loss would differ by {difference:.3g}"
    _swap_forward(base, _causal_forward)
    return "loss without logits: supervised positions only, in chunks"


def is_head_plain(base: Any) -> bool:
    """Whether the vocabulary projection is a plain frozen product."""
    head = base.get_output_embeddings()
    kind = getattr(type(head), "plain_class", type(head))
    return kind is nn.Linear and is_plain_linear(head, forward=type(head).forward)


def _causal_forward(kind: type[nn.Module], self: Any, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
    wanted = kwargs.get("logits_to_keep")
    if labels is None or not self.training or wanted not in (None, 0) or not is_head_plain(self):
        return kind.forward(self, *args, labels=labels, **kwargs)
    return loss_alone(self, args, labels, kwargs)


def loss_alone(base: Any, args: tuple[Any, ...], labels: Tensor, kwargs: dict[str, Any]) -> Any:
    """The forward pass with a loss and no logits."""
    from transformers.modeling_outputs import CausalLMOutputWithPast

    count, shifted = kwargs.pop("num_items_in_batch", None), kwargs.pop("shift_labels", None)
    kwargs.pop("logits_to_keep", None)
    out = base.get_decoder()(*args, **{**kwargs, "return_dict": True})
    if shifted is None:
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
    hidden = out.last_hidden_state
    head = base.get_output_embeddings()
    loss = linear_cross_entropy(
        hidden.reshape(-1, hidden.shape[-1]), head.weight, shifted.reshape(-1).to(hidden.device), bias=head.bias,
        softcap=getattr(base.config, "final_logit_softcapping", None), count=count,
    )  # fmt: skip
    return CausalLMOutputWithPast(loss=loss, past_key_values=out.past_key_values, hidden_states=out.hidden_states,
                                  attentions=out.attentions)  # fmt: skip


@torch.no_grad()
def _try(base: Any) -> float | None:
    """The relative difference of both losses on a few tokens; None where the fast one does not run."""
    weight = base.get_output_embeddings().weight
    ids = torch.arange(1, 9, device=weight.device).remainder(weight.shape[0])[None]
    was = base.training
    base.eval()
    try:
        plain = base(input_ids=ids, labels=ids).loss
        fast = loss_alone(base, (), ids, {"input_ids": ids}).loss
    except (AfinaError, TypeError, ValueError, AttributeError, RuntimeError):
        return None
    finally:
        base.train(was)
    return float((fast.float() - plain.float()).abs() / plain.float().abs().clamp_min(1e-6))
