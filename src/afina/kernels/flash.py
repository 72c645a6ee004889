"""Attention by the package flash-attn, in a model whose rows are padded on one side and kept apart by nothing else.

It reads lengths and no masks, so a model that is given masks of another form has to keep to torch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..devices import place
from ..devices.found import Device

_WHY = "flash-attn is not installed, or not for this device and dtype; torch's own is on"
_FURTHEST = 0.02
"""Relative difference of logits in 16 bits, where sums run in another order."""


def use_flash(model: nn.Module, device: Device) -> str:
    """Give a transformers model flash-attn's attention where it is there and a trial gives torch's logits; says so."""
    get_base: Any = getattr(model, "get_base_model", None)
    base: Any = model if get_base is None else get_base()
    now = getattr(getattr(base, "config", None), "_attn_implementation", None)
    wanted = place.attention(device, str(base.dtype).removeprefix("torch."))
    if wanted == place.TORCH or now != place.TORCH:
        return f"flash attention: off, because {_WHY if now == place.TORCH else f'attention is {now}'}"
    try:
        before = _logits(base)
        base.set_attn_implementation(wanted)
        after = _logits(base)
    except (ImportError, RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        fault = (str(error).strip().splitlines() or [type(error).__name__])[0][:100]
    else:
        difference = float((after - before).abs().max() / before.abs().max().clamp_min(1e-6))
        if difference <= _FURTHEST:
            return "flash attention: on"
        fault = f"logits would differ by {difference:.3g}"
    base.set_attn_implementation(now)
    return f"flash attention: off, because {fault}"


@torch.no_grad()
def _logits(base: Any) -> torch.Tensor:
    """Of two rows, one of them padded, where there are tokens."""
    weight, was = base.get_input_embeddings().weight, base.training
    ids = torch.arange(1, 17, device=weight.device).remainder(weight.shape[0]).view(2, 8)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    base.eval()
    try:
        logits: torch.Tensor = base(input_ids=ids, attention_mask=mask).logits.float()[mask.bool()]
        return logits
    finally:
        base.train(was)
