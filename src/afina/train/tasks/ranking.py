"""Transformers' Trainer with sentence-transformers' ranking loss; its own trainer would save and load the whole model
around the adapter in a form of its own."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import nn
from transformers import Trainer

from ..answers.judge import mean_pooled


class _Pooled(nn.Module):
    """A model as the loss calls it: features of one place -> `sentence_embedding`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        return {"sentence_embedding": mean_pooled(self.model, features)}


class RankingTrainer(Trainer):  # type: ignore[misc]
    """Takes batches of the texts of several places."""

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The ranking loss of a batch."""
        places = [key.removesuffix("_input_ids") for key in inputs if key.endswith("_input_ids")]
        features = [{key: inputs[f"{place}_{key}"] for key in ("input_ids", "attention_mask")} for place in places]
        loss = MultipleNegativesRankingLoss(_Pooled(model))(features, None)
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[Any, None, None]:
        """The loss alone."""
        with torch.no_grad():
            return self.compute_loss(model, self._prepare_inputs(inputs)).detach(), None, None
