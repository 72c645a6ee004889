"""Scores of a living model item by item, so that methods can be compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ..train.report.events import Reporter
from ..train.tasks import named
from ..train.tasks.base import AFTER, Job

_GENERAL_TOKENS = 512
ACCURACY, LOSS = "accuracy", "loss"


def held_out_losses(parts: Mapping[str, Any]) -> list[float]:
    """Of every held-out item."""
    return named(parts["recipe"].task).item_losses(_job(parts), parts["data"].held_out.items)


def held_out_items(parts: Mapping[str, Any]) -> tuple[list[float], list[float] | None]:
    """Of every held-out item the loss, and how right it is (None where items have a loss only)."""
    return named(parts["recipe"].task).items(_job(parts))


def held_out_loss(parts: Mapping[str, Any]) -> float:
    """The mean over the held-out items."""
    losses = held_out_losses(parts)
    return sum(losses) / len(losses)


def quality(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The score of every held-out item: `metric`, `items`, and the mean `loss`.

    Items are right to a share (classes, labelled answers, pairs, tags of words); those with free answers have their
    loss.
    """
    losses, right = held_out_items(parts)
    metric, items = (LOSS, losses) if right is None else (ACCURACY, right)
    return {"metric": metric, "items": items, "loss": sum(losses) / len(losses)}


def _job(parts: Mapping[str, Any]) -> Job:
    return Job(parts["recipe"], parts["trainer"], parts["data"], parts["prompter"], Reporter(), AFTER)


def general_text() -> list[str]:
    """The paragraphs that forgetting is measured on; written for afina, part of no data set."""
    text = files("afina.evidence").joinpath("general.txt").read_text(encoding="utf-8")
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def general_loss(parts: Mapping[str, Any]) -> float | None:
    """Mean loss per token on `general_text`; None for models that model no language, and for task numbers."""
    import torch
    from torch.nn.functional import cross_entropy

    recipe, tokenizer = parts["recipe"], parts["prompter"].tokenizer
    if named(recipe.task).task_type != "CAUSAL_LM" or recipe.data.task_column is not None:
        return None
    model = parts["trainer"].model
    was_training, total, tokens = model.training, 0.0, 0
    model.eval()
    with torch.no_grad():
        for paragraph in general_text():
            ids = tokenizer(paragraph, return_tensors="pt", truncation=True, max_length=_GENERAL_TOKENS)["input_ids"]
            ids = ids.to(model.device)
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()[0, -ids.shape[1] : -1]
            total += float(cross_entropy(logits, ids[0, 1:], reduction="sum"))
            tokens += ids.shape[1] - 1
    model.train(was_training)
    return total / tokens
