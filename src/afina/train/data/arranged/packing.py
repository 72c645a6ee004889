"""Several rows in one sequence, without one seeing another (`training.packing`).

Positions begin anew with every row. From that transformers makes a mask that lets no row see another, provided that
there is no attention mask and that the model's attention takes it; so that is measured on the model before training.
Where attention goes by lengths (`kernels.cuda.varlen`), all rows of a batch lie end to end and there is neither a mask
nor padding. Then rows share batches as they come, too: the same rows a step, without the padding (`end_to_end`).
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ....devices.place import TORCH, packed_attention, place
from ....errors import RecipeError
from ....kernels.cuda.varlen import RowLengths
from ...recipe.sections import Recipe
from ...report.events import Reporter
from ..encode import IGNORED, Encoded
from .grouping import padding_share

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_PROBED = 48
"""Tokens of each row in the probe."""
_LEAST_PADDING = 0.05
"""Share of padding in random batches from which on rows are laid end to end, where attention goes by lengths."""
_LEAK, _SHIFT = 1e-5, {2: 0.03, 4: 1e-3}
"""What may differ, as a share of the largest logit: by a neighbour; from the row alone, by bytes a number has."""


class Packed(Encoded):
    """Sequences of several encoded rows; `parts` are the indices of each one's rows in the file's rows."""

    def __init__(self, encoded: Encoded, bins: Sequence[Sequence[int]]) -> None:
        self.parts = [[encoded.source[i] for i in members] for members in bins]
        items = [joined([encoded.items[i] for i in members]) for members in bins]
        super().__init__(items, [p[0] for p in self.parts], encoded.truncated, encoded.masked, encoded.rows)

    def made_of(self, index: int) -> list[int]:
        """The file's rows in an item."""
        return self.parts[index]

    def where(self, index: int) -> str:
        """`file:line` of each row of an item."""
        if self.rows is None:
            return f"sequence {index + 1}"
        return " + ".join(self.rows.where(row) for row in self.parts[index])


def joined(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ids = [token for item in items for token in item["input_ids"]]
    # The first token of a row is predicted by nothing: here its neighbour would.
    labels = [label for item in items for label in (IGNORED, *item["labels"][1:])]
    return {"input_ids": ids, "labels": labels, "position_ids": [p for i in items for p in range(len(i["input_ids"]))]}


def bins_of(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices of rows that share a sequence of `room` tokens: best fit, longest first (Johnson 1973); at most 11/9 of
    the least possible number of sequences, and 4."""
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect_left(free, (lengths[index], -1))
        if at == len(free):
            bins.append([index])
            left, number = room - lengths[index], len(bins) - 1
        else:
            left, number = free.pop(at)
            bins[number].append(index)
            left -= lengths[index]
        insort(free, (left, number))
    return bins


def packed(recipe: Recipe, encoded: Encoded, reporter: Reporter) -> Encoded:
    """The rows, packed; how many sequences they make is said, because that is what an epoch's steps are counted in.

    Raises:
        RecipeError: rows have task numbers.
    """
    if recipe.data.task_column is not None:
        raise RecipeError("rows of different tasks cannot share a sequence", where="training.packing",
                          got=f"data.task_column={recipe.data.task_column}", fix="leave one of them out")  # fmt: skip
    lengths, room = [encoded.length(i) for i in range(len(encoded))], recipe.data.max_length
    out = Packed(encoded, bins_of(lengths, room))
    full = sum(lengths) / (len(out) * room)
    reporter.note(
        f"packing: {len(encoded)} rows in {len(out)} sequences of up to {room} tokens, {full:.0%} of them filled"
    )
    return out


class EndToEnd(Encoded):
    """Rows in their order, each a sequence of its own until a batch is made."""

    def __init__(self, encoded: Encoded) -> None:
        items = [joined([item]) for item in encoded.items]
        super().__init__(items, encoded.source, encoded.truncated, encoded.masked, encoded.rows)


def end_to_end(recipe: Recipe, encoded: Encoded, reporter: Reporter) -> Encoded | None:
    """The rows, to be laid end to end in their batches; None where the recipe, the device or the rows speak against it.

    The rows of a step, their losses and gradients stay the same, unlike with `packed`.
    """
    t, model = recipe.training, recipe.model
    unasked = t.packing is None and t.group_by_length is None and recipe.data.task_column is None
    if not (unasked and t.fast and not t.cache_frozen and len(encoded)):
        return None
    if packed_attention(place(model.device), model.dtype) == TORCH:
        return None
    order = list(range(len(encoded)))
    random.Random(t.seed).shuffle(order)
    padding = padding_share([encoded.length(i) for i in order], order, t.batch_size)
    if padding < _LEAST_PADDING:
        return None
    reporter.note(f"batches of rows end to end, without the {padding:.0%} that padding would be (training.packing)")
    return EndToEnd(encoded)


@dataclass(frozen=True)
class PackedCollator:
    """Pads rows, or packed sequences: the padding of those is one more row, which nothing sees or is trained on.

    Attributes:
        by_lengths: whether the model's attention goes by lengths; packed sequences then lie end to end in one.
        recurring: whether batches are padded to few shapes, for steps that are recorded.
    """

    tokenizer: PreTrainedTokenizerBase
    by_lengths: bool = False
    recurring: bool = False

    def __call__(self, features: list[dict[str, Any]]) -> Any:
        """A batch of tensors; packed ones come without an attention mask."""
        import torch

        if "position_ids" not in features[0]:
            return self._padded(features)
        if self.by_lengths:
            return _laid_out(features, self.tokenizer.pad_token_id if self.recurring else None)
        if all(item["position_ids"].count(0) == 1 for item in features):
            return self._padded([{key: item[key] for key in ("input_ids", "labels")} for item in features])
        longest = self._length(features)
        out: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "position_ids": []}
        for item in features:
            more = longest - len(item["input_ids"])
            out["input_ids"].append(item["input_ids"] + [self.tokenizer.pad_token_id] * more)
            out["labels"].append(item["labels"] + [IGNORED] * more)
            out["position_ids"].append(item["position_ids"] + list(range(more)))
        return {key: torch.tensor(rows) for key, rows in out.items()}

    def _padded(self, features: list[dict[str, Any]]) -> Any:
        from transformers import DataCollatorForSeq2Seq

        fixed = {"padding": "max_length", "max_length": self._length(features)} if self.recurring else {"padding": True}
        return DataCollatorForSeq2Seq(self.tokenizer, **fixed)(features)

    def _length(self, features: Sequence[dict[str, Any]]) -> int:
        longest = max(len(item["input_ids"]) for item in features)
        return recurring_length(longest) if self.recurring else longest


def recurring_length(tokens: int) -> int:
    """A length for so many tokens that comes again: the next of eight in each octave, which adds 3 % on the average."""
    step = max(16, (1 << (tokens - 1).bit_length()) // 16)
    return -(-tokens // step) * step


def _laid_out(features: Sequence[dict[str, Any]], filler: int | None = None) -> dict[str, Any]:
    """All rows of a batch in one sequence, with their lengths.

    Args:
        filler: the token of one more row and of empty ones, with which batches have few shapes; None without them.
    """
    import torch

    positions = [p for item in features for p in item["position_ids"]]
    begin = [i for i, p in enumerate(positions) if p == 0]
    lengths = [end - start for start, end in zip(begin, [*begin[1:], len(positions)], strict=True)]
    joint = {key: [t for item in features for t in item[key]] for key in ("input_ids", "labels")}
    rows = 0
    if filler is not None:
        more = recurring_length(len(positions)) - len(positions)
        joint = {"input_ids": joint["input_ids"] + [filler] * more, "labels": joint["labels"] + [IGNORED] * more}
        rows, lengths = -(-(len(lengths) + 1) // 8) * 8, [*lengths, more] if more else lengths
    return {**{key: torch.tensor([ids]) for key, ids in joint.items()}, **RowLengths.of(lengths, rows).inputs()}


def check_apart(model: Any, tokenizer: PreTrainedTokenizerBase, *, by_lengths: bool = False) -> None:
    """Measure on a model, as it will train, that packed rows do not see each other.

    Args:
        by_lengths: whether attention is told the rows' lengths.

    Raises:
        RecipeError: a row's logits change with its neighbour, or differ from those that it has alone.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    config = getattr(model, "active_peft_config", None)
    if config is not None and config.get("alora_invocation_tokens") is not None:
        raise _refused(model, "the adapter looks for its one invocation in every sequence")
    ids = [i for i in range(len(tokenizer)) if i not in (tokenizer.all_special_ids or [])]
    draw = torch.Generator().manual_seed(0)
    rows = torch.tensor(ids)[torch.randint(len(ids), (3, _PROBED), generator=draw)].tolist()
    was_training = model.training
    model.eval()
    try:
        # With gradients, because attention may take another path for them.
        alone, one, other = (_logits(model, before, rows[0], by_lengths) for before in (rows[0][:0], rows[1], rows[2]))
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise _refused(model, f"it does not take packed rows: {said}") from error
    finally:
        model.train(was_training)
    if isinstance(alone, FakeTensor):  # a rehearsal without numbers has nothing to measure
        return
    largest = float(alone.abs().max())
    leak, shift = float((one - other).abs().max()) / largest, float((one - alone).abs().max()) / largest
    if leak > _LEAK:
        raise _refused(model, f"a row's logits change by {leak:.2g} of the largest with its neighbour's tokens")
    if shift > _SHIFT.get(alone.element_size(), _SHIFT[4]):
        raise _refused(model, f"a row's logits differ by {shift:.2g} of the largest from those it has alone")


def _logits(model: Any, before: list[int], row: list[int], by_lengths: bool) -> torch.Tensor:
    """The logits of the last row of a packed sequence."""
    import torch

    rows = [part for part in (before, row) if part]
    ids = torch.tensor([[token for part in rows for token in part]], device=model.device)
    told = RowLengths.of([len(part) for part in rows])
    inputs = told.inputs() if by_lengths else {"position_ids": told.positions}
    inputs = {key: v.to(ids.device) if isinstance(v, torch.Tensor) else v for key, v in inputs.items()}
    with torch.enable_grad():
        logits: torch.Tensor = model(input_ids=ids, **inputs).logits[0, -len(row) :].detach()
    return logits


def _refused(model: Any, got: str) -> RecipeError:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    attention = getattr(base.config, "_attn_implementation", "unknown")
    return RecipeError(f"packed rows are not kept apart by {type(base).__name__} ({attention} attention)",
                       where="training.packing", got=got, fix="set training.packing=false")  # fmt: skip
