"""Tasks whose trainer takes a loss over whole rows: what each row of a step had in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..data.encode import Encoded

if TYPE_CHECKING:
    from torch import Tensor


class TellsRows(ABC):
    """A task that can say what each row of a training step had in its loss."""

    @abstractmethod
    def row_losses(self, trainer: Any, batch: Mapping[str, Any], outputs: Sequence[Any]) -> Tensor:
        """The losses of the rows of a batch, (rows,), in float32, after the trainer took the batch's own.

        Args:
            outputs: what the models said when it did, one for each time that one was asked, in order.
        """

    def drawn(self, seed: int, train: Encoded) -> Sequence[int]:
        """The place among the items of each row of the trainer's own data set."""
        return range(len(train))
