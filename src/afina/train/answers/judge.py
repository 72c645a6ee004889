"""What a model says of texts, in batches: tags of words, scores, how likely answers are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from ...errors import NumericError
from ..data.encode import IGNORED
from ..data.prompts import Prompter
from .batches import in_batches
from .generate import right_padded


@contextmanager
def judging(model: Any) -> Iterator[None]:
    """No dropout, no gradients; the model's mode is restored."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def token_classes(
    model: Any, prompter: Prompter, rows: Sequence[list[int]], *, batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:  # fmt: skip
    """The likeliest class of every token of rows of token ids."""

    def judge(part: list[list[int]]) -> list[list[int]]:
        inputs = right_padded(part, prompter.tokenizer.pad_token_id, model.device)
        longest = inputs["input_ids"].shape[1]
        found = model(**inputs).logits[:, -longest:].argmax(2)  # virtual tokens may stand before
        return [classes[: len(row)].tolist() for row, classes in zip(part, found, strict=True)]

    with judging(model):
        return list(chain.from_iterable(in_batches(rows, batch_size, judge, progress)))


def class_logits(
    model: Any, collate: Callable[[list[dict[str, Any]]], Any], items: Sequence[dict[str, Any]], *, batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Any:  # fmt: skip
    """What a classifier says to every item before the softmax, [items, classes], in float32 on the processor."""
    import torch

    def judge(part: list[dict[str, Any]]) -> Any:
        batch = collate(part)
        batch.pop("labels", None)
        return model(**moved(batch, model)).logits.float().cpu()

    with judging(model):
        return torch.cat(in_batches(items, batch_size, judge, progress))


def moved(batch: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """A batch where the model is, its numbers in the model's dtype."""
    return {k: v.to(model.device, model.dtype) if v.is_floating_point() else v.to(model.device)
            for k, v in batch.items()}  # fmt: skip


def of_positions(logits: Any, labels: Any, shifted: bool) -> tuple[Any, Any, int]:
    """Of a batch's logits, as a model gives them: the supervised positions, one sequence after the other; the loss at
    each; and how many positions there are in all."""
    from torch.nn.functional import cross_entropy

    if labels.ndim > 1:
        logits = logits[:, -labels.shape[1] :]  # virtual tokens stand before the input's own
        if shifted:
            logits, labels = logits[:, :-1], labels[:, 1:]
    logits, targets = logits.flatten(0, -2), labels.flatten()
    at = (targets != IGNORED).nonzero().squeeze(1)
    return at, cross_entropy(logits[at].float(), targets[at], reduction="none"), len(targets)


def token_loss(
    model: Any, collate: Callable[[list[dict[str, Any]]], Any], items: Sequence[dict[str, Any]], *, batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> float:  # fmt: skip
    """The mean loss over all trained tokens of items, as the model itself gives it for a batch.

    Raises:
        NumericError: it is not finite.
    """
    found = in_batches(items, batch_size, lambda part: summed_loss(model, collate, part), progress)
    total, count = sum(loss for loss, _ in found), sum(tokens for _, tokens in found)
    check_loss(total)
    return total / max(1, count)


def check_loss(total: float) -> None:
    """Refuse a loss that is not finite.

    Raises:
        NumericError: it is not.
    """
    if not math.isfinite(total):
        raise NumericError("the loss of held-out rows is not finite", got=total, fix="lower training.learning_rate")


def summed_loss(
    model: Any, collate: Callable[[list[dict[str, Any]]], Any], items: Sequence[dict[str, Any]]
) -> tuple[float, int]:
    """The loss of one batch, summed over its trained tokens, and how many these are."""
    batch = {k: v.to(model.device) for k, v in collate(list(items)).items()}
    tokens = int((batch["labels"] != IGNORED).sum())
    with judging(model):
        return float(model(**batch).loss) * tokens, tokens


def text_scores(model: Any, prompter: Prompter, rows: Sequence[list[int]], *, batch_size: int) -> list[float]:
    """The one output of a reward model for every row of token ids."""
    found = in_batches(rows, batch_size, lambda part: scores_of_batch(model, prompter, part))
    return list(chain.from_iterable(found))


def scores_of_batch(model: Any, prompter: Prompter, rows: Sequence[list[int]]) -> list[float]:
    """The same for one batch."""
    inputs = right_padded(list(rows), prompter.tokenizer.pad_token_id, model.device)
    with judging(model):
        return list(model(**inputs).logits.float().squeeze(1).tolist())


def answer_log_probs(model: Any, prompter: Prompter, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """The log-probability of the second half of each pair of token ids after the first, for one batch."""
    import torch

    begins = torch.tensor([len(prompt) for prompt, _ in pairs], device=model.device)
    inputs = right_padded([prompt + answer for prompt, answer in pairs], prompter.tokenizer.pad_token_id, model.device)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    with judging(model):
        logits = model(**inputs).logits[:, -ids.shape[1] :].float()
    of_token = logits[:, :-1].log_softmax(2).gather(2, ids[:, 1:, None]).squeeze(2)
    position = torch.arange(1, ids.shape[1], device=ids.device)
    answer = mask[:, 1:].bool() & (position >= begins[:, None])
    return list((of_token * answer).sum(1).tolist())


def span_scores(
    model: Any, tokenizer: Any, items: Sequence[dict[str, Any]], *, batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[tuple[list[float], list[float]]]:  # fmt: skip
    """How likely an answer starts and ends at every token of encoded items (logits)."""

    def judge(part: list[dict[str, Any]]) -> list[tuple[list[float], list[float]]]:
        batch = tokenizer.pad(part, padding_side="right", return_tensors="pt").to(model.device)
        found, longest = model(**batch), batch["input_ids"].shape[1]
        logits = [each[:, -longest:].float().tolist() for each in (found.start_logits, found.end_logits)]
        sizes = [len(item["input_ids"]) for item in part]
        return [(s[:n], e[:n]) for s, e, n in zip(*logits, sizes, strict=True)]

    with judging(model):
        return list(chain.from_iterable(in_batches(items, batch_size, judge, progress)))


def item_span_losses(
    model: Any, collate: Callable[[list[dict[str, Any]]], Any], items: Sequence[dict[str, Any]], *, batch_size: int
) -> list[float]:
    """The mean loss of the start and the end of every item's answer."""

    def judge(part: list[dict[str, Any]]) -> list[float]:
        batch = {k: v.to(model.device) for k, v in collate(part).items()}
        targets, longest = [batch.pop(f"{end}_positions") for end in ("start", "end")], batch["input_ids"].shape[1]
        return list(span_losses(model(**batch), targets, longest).tolist())

    with judging(model):
        return list(chain.from_iterable(in_batches(items, batch_size, judge)))


def span_losses(found: Any, targets: Sequence[Any], longest: int) -> Any:
    """The mean loss of the start and the end of every answer, (rows,), by a model's output for windows of `longest`
    tokens."""
    from torch.nn.functional import cross_entropy

    sides = zip((found.start_logits, found.end_logits), targets, strict=True)
    first, last = (cross_entropy(x[:, -longest:].float(), target, reduction="none") for x, target in sides)
    return (first + last) / 2


def mean_pooled(model: Any, inputs: Mapping[str, Any]) -> Any:
    """The mean of the last hidden states over a text's tokens, [texts, width]."""
    return pooled(model(**inputs).last_hidden_state, inputs["attention_mask"])


def pooled(hidden: Any, mask: Any) -> Any:
    """The mean of hidden states over a text's tokens, [texts, width]."""
    mask = mask.unsqueeze(2).to(hidden.dtype)
    hidden = hidden[:, -mask.shape[1] :]  # virtual tokens stand before the input's own
    return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)


def text_embeddings(
    model: Any, prompter: Prompter, rows: Sequence[list[int]], *, batch_size: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Any:  # fmt: skip
    """Embeddings of length 1 of rows of token ids, [rows, width]."""
    import torch

    def judge(part: list[list[int]]) -> Any:
        inputs = right_padded(part, prompter.tokenizer.pad_token_id, model.device)
        return torch.nn.functional.normalize(mean_pooled(model, inputs).float(), dim=1).cpu()

    with judging(model):
        return torch.cat(in_batches(rows, batch_size, judge, progress))
