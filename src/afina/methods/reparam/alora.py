"""aLoRA: LoRA that acts only from its invocation tokens onwards, so that the cache of what precedes stays the base's.

    y_t = W x_t + [t >= t0] · s · B A x_t,   t0: where the last occurrence of the invocation tokens begins

Greenewald et al. 2025, arXiv 2504.12397. The model's forward and `generate` take `alora_offsets` (for each row, the
number of tokens from t0 to the end, or None where the row has no invocation), or find them in `input_ids`. In
generation all new tokens follow the invocation, with or without a cache. Where neither is given, it is an error: the
reference runs the base model. Trainable: as LoRA. Not mergeable. Layers: Linear, Conv1D (inputs: batch,
tokens, in).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...core.hosts.view import View
from ...errors import ConfigError, NotMergeable
from .lora import Lora
from .lora_config import LoraConfig


def offsets_in(ids_BT: Tensor, invocation: list[int]) -> Tensor:
    """The tokens of each row from its last invocation to the end, 0 where there is none: (batch,)."""
    length, count = ids_BT.shape[1], len(invocation)
    if length < count:
        return torch.zeros(ids_BT.shape[0], dtype=torch.long, device=ids_BT.device)
    found_BP = (ids_BT.unfold(1, count, 1) == torch.tensor(invocation, device=ids_BT.device)).all(-1)
    distance_P = length - torch.arange(found_BP.shape[1], device=ids_BT.device)
    # The last occurrence is the nearest to the end.
    nearest = torch.where(found_BP, distance_P, length + 1).min(dim=1).values
    return torch.where(found_BP.any(1), nearest, 0)


@Lora.variant(lambda config: config.alora_invocation_tokens is not None)
class ALora(Lora):
    """`alora_offsets`: for each row, as above; `alora_length`: the length of the rows that they were counted in."""

    kinds = frozenset({"linear"})
    inputs = frozenset({"alora_offsets", "alora_length"})

    @classmethod
    def find_inputs(cls, config: LoraConfig, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        named = [kwargs.get(key) for key in ("input_ids", "inputs")]
        ids = next((a for a in (*named, *args[:1]) if isinstance(a, Tensor) and a.dim() == 2), None)
        if ids is None or ids.is_floating_point():
            return {}
        assert config.alora_invocation_tokens is not None
        return {"alora_offsets": offsets_in(ids, config.alora_invocation_tokens), "alora_length": ids.shape[1]}

    @staticmethod
    def _active(inputs: Mapping[str, Any], x: Tensor) -> Tensor:
        """Where the adapter acts: (batch, tokens, 1)."""
        given = inputs.get("alora_offsets")
        if given is None:
            raise ConfigError("aLoRA has to know where its invocation tokens are", where="forward", got="no input_ids",
                              expected="input_ids, or alora_offsets with one number for each row")  # fmt: skip
        if not isinstance(given, Tensor):
            given = torch.tensor([n or 0 for n in given])
        if x.dim() != 3 or x.shape[0] % given.numel():
            raise ConfigError("aLoRA needs inputs of (batch, tokens, features)", where="forward", got=tuple(x.shape),
                              expected=f"a multiple of {given.numel()} rows")  # fmt: skip
        # Beam search repeats each row in place.
        offsets = given.to(x.device).repeat_interleave(x.shape[0] // given.numel())
        tokens = x.shape[1]
        # Without a cache, the tokens generated since the offsets were counted all follow the invocation.
        later = max(0, tokens - (inputs.get("alora_length") or tokens))
        start = tokens - torch.where(offsets > 0, offsets + later, 0)
        return (torch.arange(tokens, device=x.device) >= start[:, None])[..., None]

    def forward(self, inner: View, x: Any) -> Any:
        update = self.scaling * inner.base.low_rank(self.dropped(x), *self.factors())
        if self.lora_bias is not None:
            update = update + self.scaling * self.lora_bias
        return inner(x) + update * self._active(inner.given(self), x)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        raise NotMergeable("aLoRA leaves the tokens before its invocation to the base", where=type(self).__name__)
