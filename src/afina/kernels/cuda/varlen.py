"""Attention over rows that lie end to end in one sequence, by their lengths: no mask, no padding.

`RowLengths` is all that a model is told of a batch: positions that begin anew with every row, and where the rows begin.
transformers hands both to attention under the names that flash-attn's own attention there reads too. The attention here
gives them to torch's (`torch.nn.attention.varlen`), which needs an Ampere GPU and 16 bits; batches without lengths,
such as held-out rows with their padding, keep to torch's fused attention.

Shapes: T tokens of all rows, N rows, H query heads, K key heads, D head size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from ...core.layers.weights import autocasts
from ...devices.place import VARLEN

Attend = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, int | None], Tensor]
_NOT_MADE = ("position_bias", "softcap", "s_aux", "cache")
"""What transformers may hand over that changes the result."""
_CHANGES = ("attention_dropout", "attention_chunk_size", "attn_pdrop", "attn_logit_softcapping")
"""Settings of models that do, or keep tokens apart by a rule that lengths do not tell."""


@dataclass(frozen=True)
class RowLengths:
    """Where the rows of a batch lie in its one sequence.

    Attributes:
        positions: (1, T), from 0 in every row.
        starts: (N + 1,), int32; the first is 0 and the last T.
        longest: tokens of the longest row, rounded up to a power of two, so that compiled layers meet few numbers.
    """

    positions: Tensor
    starts: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], rows: int = 0) -> RowLengths:
        """For rows of these lengths, in their order, and empty ones after them until there are so many.

        Raises:
            ValueError: one of the lengths is 0.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"rows of {list(lengths)[:8]} tokens; each needs one or more")
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        ends = [*accumulate(lengths)]
        starts = torch.tensor([0, *ends, *ends[-1:] * (rows - len(ends))], dtype=torch.int32)
        return cls(positions, starts, 1 << (max(lengths) - 1).bit_length())

    def inputs(self) -> dict[str, Any]:
        """As transformers' models and their attention take it."""
        return {"position_ids": self.positions, "cu_seq_lens_q": self.starts, "cu_seq_lens_k": self.starts,
                "max_length_q": self.longest, "max_length_k": self.longest}  # fmt: skip


def why_not(base: Any) -> str:
    """Why a model's attention cannot go by lengths; empty where it may."""
    config = getattr(base, "config", None)
    return next((f"the model has {name}" for name in _CHANGES if getattr(config, name, None)), "")


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    scaling: float | None = None, dropout: float = 0.0, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls. query: (1, H, T, D); key, value: (1, K, T, D). Returns (1, T, H, D).

    Raises:
        ValueError: the rows' lengths did not come, or something that lengths do not tell is asked for.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    starts: Tensor | None = kwargs.get("cu_seq_lens_q")
    if starts is None:
        if attention_mask is not None and _is_mark(attention_mask):
            raise ValueError("packed rows came to attention without their lengths")
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling,
                                        sliding_window=sliding_window, **kwargs)  # fmt: skip
        return out, None
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    asked = [name for name in _NOT_MADE if kwargs.get(name) is not None]
    if dropout or asked or not causal or query.shape[0] != 1 or key.shape[2] != query.shape[2]:
        raise ValueError(f"attention by lengths has no {', '.join(asked) or 'dropout, cache or later tokens'}")
    if autocasts(query):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (t[0].transpose(0, 1) for t in (query, key, value))
    return attend(q, k, v, starts, kwargs["max_length_q"], scale, sliding_window)[None], None


def attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float, window: int | None) -> Tensor:
    """Causal attention within each row, by torch's kernel. q: (T, H, D). k, v: (T, K, D). Returns (T, H, D).

    Args:
        starts: (N + 1,), int32.
        window: how many tokens a query sees, itself among them; None for all before it.
    """
    from torch.nn.attention import varlen

    sees, groups = (-1 if window is None else window - 1, 0), q.shape[1] // k.shape[1]
    run: Any = varlen.varlen_attn
    how = {"enable_gqa": groups > 1} if _takes_groups() else {}
    if not how:  # torch before 2.12
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    out: Tensor = run(q, k, v, starts, starts, longest, longest, scale=scale, window_size=sees, **how)
    return out


@functools.lru_cache(maxsize=1)
def _takes_groups() -> bool:
    """Whether torch's kernel takes fewer keys than queries."""
    from torch.nn.attention import varlen

    return "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """What transformers calls for the mask. Packed rows get a mark instead of one, for what did not bring lengths."""
    from transformers.masking_utils import sdpa_mask

    packed = kwargs.get("attention_mask") is None and kwargs.get("allow_is_causal_skip") is False
    if packed and not args and not kwargs.get("use_vmap") and kwargs.get("batch_size") == 1:
        return torch.empty(1, 1, 1, 0, dtype=torch.uint8, device=kwargs.get("device"))
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    return mask


def _is_mark(mask: Tensor) -> bool:
    return mask.dtype == torch.uint8 and mask.shape[-1] == 0


def register() -> None:
    """Make the implementation known to transformers as `place.VARLEN`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(VARLEN, attention_forward)
    AttentionMaskInterface.register(VARLEN, _mask)
