"""The loss of each text of a batch, of a model that writes and of one that spells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...answers.judge import of_positions
from ...data.encode import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


def spoken_losses(model: Any, batch: Mapping[str, Any], logits: Tensor, spells: bool) -> Tensor:
    """By the mean over a text's tokens; of a model that spells as its config has it: mean or sum."""
    import torch
    from torch.nn.functional import ctc_loss, log_softmax

    labels = batch["labels"]
    tokens = (labels != IGNORED).sum(1)
    if not spells:
        at, losses, _ = of_positions(logits, labels, shifted=False)
        sums = losses.new_zeros(len(labels)).index_add_(0, at // labels.shape[1], losses)
        means: Tensor = sums / tokens.clamp(min=1)
        return means
    given, config = batch["input_values"], model.config
    heard = batch.get("attention_mask", torch.ones_like(given, dtype=torch.long)).sum(1)
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    moments = model._get_feat_extract_output_lengths(heard).long()
    found = ctc_loss(
        log_softmax(logits.float(), 2).transpose(0, 1), labels[labels != IGNORED], moments, tokens,
        blank=config.pad_token_id, reduction="none", zero_infinity=config.ctc_zero_infinity,
    )  # fmt: skip
    return found / tokens.clamp(min=1) if config.ctc_loss_reduction == "mean" else found
