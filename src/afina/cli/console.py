"""A run's words on the terminal: notes, rendered examples, a progress bar with the time left."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..plan.usage import told_bytes, told_seconds
from ..train.report import events

_PLAIN_LINES = {"training": 10, "tuning": 10}
"""How often a stage is told without a terminal; others twice."""


class ConsoleReporter(events.Reporter):
    """Prints to stderr, so that stdout holds results only; without a terminal, plain lines instead of bars."""

    def __init__(self, explain: bool = False) -> None:
        """With `explain`, facts for who wants to know exactly are told too."""
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.stage = ""
        self.told = -1
        self.begun = (0.0, 0)
        """When the stage began, and what was done by then."""
        self.explain = explain

    def note(self, text: str) -> None:
        """Print a line."""
        self._close()
        self.console.print(Text(text))

    def detail(self, text: str) -> None:
        """Print a line if it was asked for."""
        if self.explain:
            self.note(text)

    def warn(self, text: str) -> None:
        """Print a line that stands out."""
        self._close()
        self.console.print(Text(f"warning: {text}", style="yellow"))

    def examples(self, examples: list[list[events.Span]]) -> None:
        """Print examples; what the loss is taken on stands in [[ ]]."""
        print_examples(self.console, examples)

    def progress(self, state: events.Progress) -> None:
        """Move the bar, or print every tenth part of the way."""
        if state.stage != self.stage:
            self._close()
            self.stage, self.told = state.stage, -1
            self.begun = (time.monotonic(), state.done)
        if self.console.is_terminal:
            self._draw(state)
        elif (part := state.done * _PLAIN_LINES.get(state.stage, 2) // max(state.total, 1)) != self.told:
            self.told = part
            self.console.print(Text(f"{state.stage} {state.done}/{state.total}{_facts(state)}{self._left(state)}"))
        if state.done >= state.total:
            self._close()

    def _left(self, state: events.Progress) -> str:
        """The time left, as the stage went so far."""
        when, done = self.begun
        if not done < state.done < state.total:
            return ""
        return f", {told_seconds((time.monotonic() - when) / (state.done - done) * (state.total - state.done))} left"

    def _draw(self, state: events.Progress) -> None:
        if self.bar is None:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}"), console=self.console,
            )  # fmt: skip
            self.bar.add_task(state.stage, total=state.total, facts="")
            self.bar.start()
        self.bar.update(self.bar.task_ids[0], completed=state.done, facts=_facts(state))

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar, self.stage = None, ""


def results_console() -> Console:
    """What a command was asked for goes to stdout."""
    return Console(highlight=False, soft_wrap=True)


def print_examples(console: Console, examples: list[list[events.Span]]) -> None:
    """Print examples; what the loss is taken on stands in [[ ]]."""
    for number, spans in enumerate(examples, 1):
        console.print(Text(f"--- example {number}: trained on [[ ]] only, the rest is masked"))
        line = Text()
        for span in spans:
            line.append(f"[[{span.text}]]" if span.trained else span.text, "bold green" if span.trained else "dim")
        console.print(line)
    console.print(Text("---"))


def _facts(state: events.Progress) -> str:
    rate = f" {state.tokens_per_s:,.0f} tokens/s" if state.tokens_per_s else ""
    memory = f" {told_bytes(state.memory)}" if state.memory is not None else ""
    return rate + memory + (f" loss {state.loss:.3f}" if state.loss is not None else "")
