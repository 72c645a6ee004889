"""Scores of a living model item by item, so that methods can be compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from ..errors import RecipeError
from ..train.data import collator
from ..train.generate import answers, longest_label
from ..train.labels import is_right, label_of, task_numbers

_BATCH = 8
"""Rows at once: a language model's logits of a larger batch can be larger than the model."""
_GENERAL_TOKENS = 512
TASKS = ("causal_lm", "sequence_classification", "token_classification", "seq2seq")
"""Tasks whose held-out items can be scored one by one."""
ACCURACY, LOSS = "accuracy", "loss"


def check_task(task: str) -> None:
    """Refuse a task whose items cannot be scored one by one.

    Raises:
        RecipeError: it is none of `TASKS`.
    """
    if task not in TASKS:
        raise RecipeError("methods are not compared on this task yet", where="task", got=task,
                          expected=", ".join(TASKS))  # fmt: skip


def quality(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The score of every held-out item: `metric`, `items`, and the mean `loss`.

    Classes and labelled answers are right (1) or not (0), a language model's if its greedy answer is exactly the
    label; items with free answers have their loss.
    """
    data, recipe = parts["data"], parts["recipe"]
    losses, right = item_losses(parts, data.held_out.items)
    out: dict[str, Any] = {"metric": LOSS, "items": losses, "loss": sum(losses) / len(losses)}
    if recipe.task == "sequence_classification":
        out |= {"metric": ACCURACY, "items": right}
    elif recipe.task == "causal_lm" and data.labels is not None:
        out |= {"metric": ACCURACY, "items": _right_answers(parts)}
    return out


def item_losses(parts: Mapping[str, Any], items: Sequence[dict[str, Any]]) -> tuple[list[float], list[int]]:
    """The loss of every item (of sequences the mean over their trained tokens), and whether its class is right."""
    import torch

    model, collate = parts["trainer"].model, collator(parts["recipe"], parts["prompter"].tokenizer)
    losses: list[float] = []
    right: list[int] = []
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for start in range(0, len(items), _BATCH):
            batch = {k: v.to(model.device) for k, v in collate(list(items[start : start + _BATCH])).items()}
            labels = batch["labels"] if parts["recipe"].task == "seq2seq" else batch.pop("labels")
            logits = model(**batch).logits.float()
            mean, hits = _losses(logits, labels, shifted=parts["recipe"].task == "causal_lm")
            losses += mean
            right += hits
    model.train(was_training)
    return losses, right


def _losses(logits: Any, labels: Any, *, shifted: bool) -> tuple[list[float], list[int]]:
    """Per item; `logits` are [B, classes] or [B, T, classes], `labels` [B] or [B, T] with -100 where untrained."""
    from torch.nn.functional import cross_entropy

    if labels.ndim == 1:
        hits = logits.argmax(-1) == labels
        return cross_entropy(logits, labels, reduction="none").tolist(), hits.int().tolist()
    logits = logits[:, -labels.shape[1] :]  # virtual tokens stand before the input's own
    if shifted:
        logits, labels = logits[:, :-1], labels[:, 1:]
    each = cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    trained = labels != -100
    return (each.sum(-1) / trained.sum(-1).clamp(min=1)).tolist(), []


def _right_answers(parts: Mapping[str, Any]) -> list[int]:
    data, recipe, prompter = parts["data"], parts["recipe"], parts["prompter"]
    rows = data.split.held_out
    kind = prompter.resolved_format(rows)
    got = answers(
        parts["trainer"].model,
        prompter,
        [prompter.prompt(rows, i, kind) for i in range(len(rows))],
        max_new_tokens=recipe.evaluation.max_new_tokens or longest_label(prompter, data.labels),
        batch_size=recipe.evaluation.batch_size,
        tasks=task_numbers(rows, recipe.data.task_column),
    )
    expected = [label_of(rows, i, recipe.data.label_column, data.labels) for i in range(len(rows))]
    return [int(is_right(g, e, data.labels)) for g, e in zip(got, expected, strict=True)]


def general_text() -> list[str]:
    """The paragraphs that forgetting is measured on; written for afina, part of no data set."""
    text = files("afina.compare").joinpath("general.txt").read_text(encoding="utf-8")
    return [paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip()]


def general_loss(parts: Mapping[str, Any]) -> float | None:
    """Mean loss per token on `general_text`; None for models that model no language, and for task numbers."""
    import torch
    from torch.nn.functional import cross_entropy

    recipe, tokenizer = parts["recipe"], parts["prompter"].tokenizer
    if recipe.task != "causal_lm" or recipe.data.task_column is not None:
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
