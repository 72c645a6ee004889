"""A conversation with several adapters: who answers is switched between the messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from ..train.use.several import Several

_ALL_AT_MOST = 8
"""Adapters that all answer from the beginning; with more, the first does."""
HELP = """/use NAME  let one adapter answer
/all       let the base and every adapter answer, side by side
/base      let the base model answer
/help      these lines, and the adapters"""


def named_paths(pairs: list[str]) -> dict[str, Path]:
    """`NAME=PATH` words as a table.

    Raises:
        RecipeError: a word of another form, or a name given twice.
    """
    out: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise RecipeError("an adapter needs a name", where="--adapter", got=pair, expected="NAME=PATH")
        if name in out:
            raise RecipeError("two adapters of one name", where="--adapter", got=name)
        out[name] = Path(path).expanduser()
    return out


class Session:
    """Answers messages and obeys the lines that begin with `/`."""

    def __init__(self, several: Several, max_new_tokens: int, raw: bool) -> None:
        self.several, self.max_new_tokens, self.raw = several, max_new_tokens, raw
        names = several.adapters
        self.speaker: str | None = None if len(names) <= _ALL_AT_MOST else names[0]
        """Who answers; None: all."""

    def run(self, lines: Iterable[str]) -> None:
        """Answer each line."""
        typer.echo(f"{len(self.several.adapters)} adapters; {self._told()} (/help)", err=True)
        for line in lines:
            if line.startswith("/"):
                self.command(line)
            else:
                self.answer(line)

    def command(self, line: str) -> None:
        """Switch, or say what is possible; a word that is not known changes nothing."""
        from ..train.use.several import BASE

        word, _, name = line.strip().partition(" ")
        name = name.strip()
        if word == "/all":
            self.speaker = None
        elif word == "/base":
            self.speaker = BASE
        elif word == "/use" and name in self.several.prompters:
            self.speaker = name
        elif word == "/use":
            hint = did_you_mean(name, self.several.adapters)
            typer.echo(f"no adapter {name!r}" + (f"; {hint}" if hint else " (/help lists them)"), err=True)
            return
        else:
            unknown = "" if word == "/help" else f"unknown: {word}\n"
            typer.echo(f"{unknown}{HELP}\nadapters: {', '.join(self.several.adapters)}", err=True)
            return
        typer.echo(self._told(), err=True)

    def answer(self, text: str) -> None:
        """Print what the speaker, or everyone, answers."""
        limit = self.max_new_tokens
        if self.speaker is None:
            for name, answer in self.several.all(text, max_new_tokens=limit, raw=self.raw).items():
                typer.echo(f"[{name}] {answer}")
            return
        typer.echo(f"[{self.speaker}] ", nl=False)
        self.several.one(self.speaker, text, max_new_tokens=limit, raw=self.raw,
                         on_text=lambda piece: typer.echo(piece, nl=False))  # fmt: skip
        typer.echo()

    def _told(self) -> str:
        return "all answer" if self.speaker is None else f"{self.speaker} answers"
