"""Attention of a GPU that reads lengths and no masks, in a model where a trial gives torch's logits.

For rows padded on one side that is the package flash-attn; for rows that lie end to end also torch's own by lengths
(`varlen`). A model that is given masks of another form has to keep to torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...devices import place
from ...devices.found import Device
from .varlen import RowLengths, register, why_not

_WHY = "flash-attn is not installed, or not for this device and dtype; torch's own is on"
_WHY_PACKED = "this device, dtype or torch has none; torch's own is on, with a mask"
_FURTHEST = 0.02
"""Relative difference of logits in 16 bits, where sums run in another order."""
_ROWS = (8, 5)
"""Tokens of the trial's rows."""


def use_flash(model: nn.Module, device: Device, *, packed: bool = False) -> str:
    """Give a transformers model an attention without masks where it is there and a trial gives torch's logits; says so.

    Args:
        packed: whether rows lie end to end, told by `RowLengths`; else they are padded.
    """
    get_base: Any = getattr(model, "get_base_model", None)
    base: Any = model if get_base is None else get_base()
    now = getattr(getattr(base, "config", None), "_attn_implementation", None)
    choose, name = (place.packed_attention, "attention by lengths") if packed else (place.attention, "flash attention")
    wanted = choose(device, str(base.dtype).removeprefix("torch."))
    if wanted == place.TORCH or now != place.TORCH:
        why = (_WHY_PACKED if packed else _WHY) if now == place.TORCH else f"attention is {now}"
        return f"{name}: off, because {why}"
    if packed and (why := why_not(base)):
        return f"{name}: off, because {why}"
    register()
    try:
        before = _logits(base)
        base.set_attn_implementation(wanted)
        after = _of_packed(base) if packed else _logits(base)
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        fault = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
    else:
        difference = float((after - before).abs().max() / before.abs().max().clamp_min(1e-6))
        if difference <= _FURTHEST:
            return f"{name}: on"
        fault = f"logits would differ by {difference:.3g}"
    base.set_attn_implementation(now)
    return f"{name}: off, because {fault}"


def reads_lengths(model: Any) -> bool:
    """Whether a model's attention is one that goes by `RowLengths`."""
    return getattr(model.config, "_attn_implementation", None) in (place.FLASH, place.VARLEN)


def _tokens(base: Any) -> Tensor:
    weight = base.get_input_embeddings().weight
    return torch.arange(1, 17, device=weight.device).remainder(weight.shape[0]).view(2, 8)


def _logits(base: Any) -> Tensor:
    """Of two rows, one of them padded, where there are tokens."""
    ids = _tokens(base)
    mask = torch.ones_like(ids)
    mask[1, _ROWS[1] :] = 0
    return _evaluated(base, input_ids=ids, attention_mask=mask)[mask.bool()]


def _of_packed(base: Any) -> Tensor:
    """Of the same two rows end to end."""
    first, second = _tokens(base)
    ids = torch.cat([first, second[: _ROWS[1]]])[None]
    told = {k: v.to(ids.device) if isinstance(v, Tensor) else v for k, v in RowLengths.of(_ROWS).inputs().items()}
    return _evaluated(base, input_ids=ids, use_cache=False, **told)[0]


@torch.no_grad()
def _evaluated(base: Any, **inputs: Any) -> Tensor:
    was = base.training
    base.eval()
    try:
        logits: Tensor = base(**inputs).logits.float()
        return logits
    finally:
        base.train(was)
