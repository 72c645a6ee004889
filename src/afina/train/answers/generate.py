"""Answers of a language model and classes of a classifier, in batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ...core.model.running import together
from ...devices.ranks import gathered, rank, size, spread
from ...errors import RecipeError, did_you_mean
from ..conversations.channels import shown
from ..conversations.chat_template import ids_of
from ..conversations.processor import Seen
from ..data.encode import cut_prompt, encoder_ids, token_ids
from ..data.prompts import Prompter
from .batches import in_batches


def answers(
    model: Any,
    prompter: Prompter,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    encoder: bool = False,
    tasks: Sequence[int] | None = None,
    seen: Sequence[Seen] | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Greedy answers to rendered prompts, in their order, without special tokens and outer blanks.

    Prompts are cut at their beginning to `data.max_length` tokens; batches are padded on the left and hold prompts of
    like length. Where an `encoder` reads them they are cut at their end and padded on the right. `tasks` are the
    prompts' task numbers, for methods that need them. Prompts that are `seen` with images are not cut.
    Processes that share a run share the prompts out, unless
    the model is spread over them.
    """
    import torch

    encoded = [one.ids for one in seen] if seen is not None else prompt_ids(prompter, prompts, encoder)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]))
    out = [""] * len(encoded)
    was_training = model.training
    model.eval()
    with torch.no_grad(), together(model):
        own = order if spread() else order[rank() :: size()]
        for start in range(0, len(own), batch_size):
            batch = own[start : start + batch_size]
            pad = right_padded if encoder else left_padded
            inputs = pad([encoded[i] for i in batch], prompter.tokenizer.pad_token_id, model.device)
            if tasks is not None:
                inputs["task_ids"] = torch.tensor([tasks[i] for i in batch], device=model.device)
            if seen is not None:
                inputs.update(prompter.looked([seen[i] for i in batch], inputs))
            tokens = model.generate(**inputs, **greedy(model, prompter, max_new_tokens))
            new = tokens if encoder else tokens[:, inputs["input_ids"].shape[1] :]
            for i, row in zip(batch, new, strict=True):
                out[i] = prompter.said(prompter.decoded(row))
            progress(min(len(order), (start + len(batch)) * (len(order) // max(1, len(own)))))
    for said in gathered({i: out[i] for i in own}):
        for i, text in said.items():
            out[i] = text
    model.train(was_training)
    return out


def prompt_ids(prompter: Prompter, prompts: Sequence[str], encoder: bool) -> list[list[int]]:
    """Rendered prompts as tokens, cut to `data.max_length`: an encoder's at their end, others at their beginning."""
    limit = prompter.data.max_length
    if encoder:
        return [cut_prompt(encoder_ids(prompter, text), limit) for text in prompts]
    return [token_ids(prompter, text, first=True)[-limit:] for text in prompts]


def greedy(model: Any, prompter: Prompter, max_new_tokens: int) -> dict[str, Any]:
    """Settings of `generate` for reproducible answers."""
    return {
        "max_new_tokens": max_new_tokens,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "top_k": None,
        "pad_token_id": prompter.tokenizer.pad_token_id,
        "eos_token_id": end_tokens(model, prompter) or None,
    }


def end_tokens(model: Any, prompter: Prompter) -> list[int]:
    """All tokens that end an answer: the tokenizer's, those of the model's own settings, and the chat template's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    out = [prompter.tokenizer.eos_token_id, *(own if isinstance(own, (list, tuple)) else [own])]
    if prompter.tokenizer.chat_template:
        out += ids_of(prompter.tokenizer, prompter.template.ending.tokens)
    return list(dict.fromkeys(int(token) for token in out if token is not None))


def keep_ends(model: Any, prompter: Prompter) -> None:
    """Write the tokens that end an answer into the model's own settings, for whoever loads it from its files."""
    settings = getattr(model, "generation_config", None)
    ends = end_tokens(model, prompter)
    if settings is not None and ends:
        settings.eos_token_id = ends if len(ends) > 1 else ends[0]


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_new_tokens: of an answer.
        temperature: 0 takes always the likeliest token.
        top_p: only the likeliest tokens that have this share together are drawn from.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            RecipeError: names the value and its range.
        """
        ranges = (("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
                  ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
                  ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"))  # fmt: skip
        for key, fine, expected in ranges:
            if not fine:
                raise RecipeError("out of range", where=key, got=getattr(self, key), expected=expected)

    def changed(self, key: str, text: str) -> Sampling:
        """With one value replaced.

        Raises:
            RecipeError: there is no such, or it is no number or out of range.
        """
        kinds = {"max_new_tokens": int, "temperature": float, "top_p": float}
        if key not in kinds:
            raise RecipeError(f"no setting {key!r}", expected=", ".join(kinds), fix=did_you_mean(key, kinds))
        try:
            value: float = kinds[key](text)
        except ValueError as error:
            raise RecipeError("not a number", where=key, got=text, expected=kinds[key].__name__) from error
        return replace(self, **{key: value})  # type: ignore[arg-type]

    def __str__(self) -> str:
        """As `key=value` words."""
        return " ".join(f"{field.name}={getattr(self, field.name):g}" for field in fields(self))

    def options(self, model: Any, prompter: Prompter) -> dict[str, Any]:
        """Settings of `generate`."""
        plain = greedy(model, prompter, self.max_new_tokens)
        if not self.temperature:
            return plain
        return {**plain, "do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}


def left_padded(rows: list[list[int]], pad: int, device: Any) -> dict[str, Any]:
    """`input_ids` and `attention_mask`, both [rows, longest], padded on the left."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def right_padded(rows: list[list[int]], pad: int, device: Any) -> dict[str, Any]:
    """`input_ids` and `attention_mask`, both [rows, longest], padded on the right."""
    import torch

    longest = max(len(row) for row in rows)
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": mask}


def class_probabilities(
    model: Any, prompter: Prompter, texts: Sequence[str], *, batch_size: int, tasks: Sequence[int] | None = None
) -> Any:
    """Probabilities of a classifier's labels, [texts, labels]."""
    import torch

    def judge(part: list[int]) -> Any:
        inputs = prompter.tokenizer(
            [texts[i] for i in part],
            padding=True,
            truncation=True,
            max_length=prompter.data.max_length,
            return_tensors="pt",
        ).to(model.device)
        if tasks is not None:
            inputs["task_ids"] = torch.tensor([tasks[i] for i in part], device=model.device)
        return model(**inputs).logits.float().softmax(1).cpu()

    model.eval()
    with torch.no_grad():
        return torch.cat(in_batches(range(len(texts)), batch_size, judge))


def longest_label(prompter: Prompter, labels: Sequence[str]) -> int:
    """Tokens that suffice to tell every label from anything longer: those of the longest, with room for a capital,
    a full stop and the end."""
    return max(len(token_ids(prompter, label, first=False)) for label in labels) + 3


def stream(
    model: Any, prompter: Prompter, prompt: str, *, sampling: Sampling, on_text: Callable[[str], None],
    task: int | None = None, seen: Seen | None = None,
) -> str:  # fmt: skip
    """The answer to one rendered prompt; `on_text` gets its pieces as they come.

    Args:
        seen: the prompt with its images, where the task has some.
        task: its number, for methods that know several.

    Returns:
        The whole answer.
    """
    import torch
    from transformers import TextStreamer

    pieces: list[str] = []
    raw: list[str] = []
    special = list(map(str, prompter.tokenizer.all_special_tokens))

    class Pieces(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if prompter.channelled:
                raw.append(text)
                so_far = shown("".join(raw), special, ended=False)
                text = so_far[sum(map(len, pieces)) :]
            pieces.append(text)
            on_text(text)

    ids = token_ids(prompter, prompt, first=True) if seen is None else seen.ids
    inputs = left_padded([ids], prompter.tokenizer.pad_token_id, model.device)
    if seen is not None:
        inputs.update(prompter.looked([seen], inputs))
    if task is not None:
        inputs["task_ids"] = torch.tensor([task], device=model.device)
    streamer = Pieces(prompter.tokenizer, skip_prompt=True, skip_special_tokens=not prompter.channelled)
    with torch.no_grad(), together(model):
        model.generate(**inputs, **sampling.options(model, prompter), streamer=streamer)
    return shown("".join(raw), special) if prompter.channelled else "".join(pieces)


def continuation(model: Any, prompter: Prompter, ids: list[int], *, max_new_tokens: int) -> str:
    """How token ids go on, greedily."""
    import torch

    model.eval()
    inputs = left_padded([ids[-prompter.data.max_length :]], prompter.tokenizer.pad_token_id, model.device)
    with torch.no_grad(), together(model):
        tokens = model.generate(**inputs, **greedy(model, prompter, max_new_tokens))
    return str(prompter.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
