"""What became of the data that is worth a line: what nothing reads, and what was taken otherwise than it stands."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Counts while rows are encoded.

    Attributes:
        unread: what nothing reads -> how often it is there.
        told: anything else -> how often.
    """

    unread: Counter[str] = field(default_factory=Counter)
    told: Counter[str] = field(default_factory=Counter)

    @property
    def lines(self) -> list[str]:
        """What was taken otherwise, a sentence each."""
        return [f"{what}: {count:,}" for what, count in self.told.items()]

    @property
    def unread_line(self) -> str:
        """What nothing reads, in one line; empty where all is read."""
        return ", ".join(f"{what} ({count:,})" for what, count in self.unread.items())
