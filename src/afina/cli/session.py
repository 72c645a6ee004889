"""A conversation: messages are answered, and lines that begin with `/` are obeyed."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..errors import AfinaError, DataError, RecipeError, did_you_mean
from .as_json import say_json

if TYPE_CHECKING:
    from ..train.answers.generate import Sampling
    from ..train.use.several import Several

BASE, ADAPTER = "base", "adapter"
_ALL_AT_MOST = 8
"""Adapters that all answer from the beginning; with more, the first does."""
HELP = """/use NAME          let one adapter answer
/base              let the base model answer
/all               let the base and every adapter answer
/set KEY=VALUE     temperature (0: always the likeliest), top_p, max_new_tokens; /set alone shows them
/system TEXT       another system message, from a new conversation on; /system alone shows it
/image FILE        show an image with the next message, where the model sees images
/new               begin a new conversation
/history           what was said
/save FILE         write what was said, as rows of messages that data.train takes
/help              these lines, and who can answer
/quit              end"""


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


class Session(ABC):
    """Who can answer, who does, how, and what was said."""

    def __init__(self, names: list[str], sampling: Sampling, *, as_json: bool = False) -> None:
        self.names, self.sampling, self.as_json = names, sampling, as_json
        self.speaker: str | None = None
        """Who answers; None: all."""
        self.transcripts: dict[str, list[list[dict[str, Any]]]] = {name: [[]] for name in names}
        """Of each name, its conversations."""
        self.images: list[str] = []
        """Files that are shown with the next message."""

    @abstractmethod
    def ask(self, names: list[str], text: str, on_text: Callable[[str, str], None] | None) -> dict[str, str]:
        """The answers of these to a message; `on_text` gets name and piece, where they come piece by piece."""

    @abstractmethod
    def instruct(self, text: str | None) -> str | None:
        """Set the system message where there is a `text`; the one that holds."""

    @abstractmethod
    def forget(self) -> None:
        """Begin a new conversation."""

    def show(self, path: str) -> str:
        """Show an image with the next message.

        Raises:
            RecipeError: who answers sees none.
            DataError: there is no such image.
        """
        raise RecipeError("only models trained on images see them", got=path, expected="task: image_text_to_text")

    def run(self, lines: Iterable[str]) -> None:
        """Answer each line, until /quit or the end."""
        for line in lines:
            if not line.startswith("/"):
                self.answer(line)
            elif line.split()[0] in ("/quit", "/exit"):
                return
            else:
                self.command(line)

    def answer(self, text: str) -> None:
        """Print what the speaker, or everyone, answers."""
        names = self.names if self.speaker is None else [self.speaker]
        told = self._streamed(names, text) if not self.as_json else self.ask(names, text, None)
        if self.as_json:
            say_json({"message": text, "answers": told}, on_one_line=True)
        shown = [{"type": "image", "path": path} for path in self.images]
        content: Any = [*shown, {"type": "text", "text": text}] if shown else text
        for name, answer in told.items():
            self.transcripts[name][-1] += [
                {"role": "user", "content": content}, {"role": "assistant", "content": answer}
            ]  # fmt: skip
        self.images.clear()

    def _streamed(self, names: list[str], text: str) -> dict[str, str]:
        begun: list[str] = []

        def show(name: str, piece: str) -> None:
            if begun[-1:] != [name]:
                typer.echo("\n" * bool(begun) + self.label(name), nl=False)
                begun.append(name)
            typer.echo(piece, nl=False)

        told = self.ask(names, text, show)
        for name in (name for name in told if name not in begun):
            show(name, told[name])
        typer.echo()
        return told

    def label(self, name: str) -> str:
        """What stands before an answer."""
        return f"[{name}] "

    def command(self, line: str) -> None:
        """Obey a line; a word that is not known changes nothing."""
        word, _, rest = line.strip().partition(" ")
        obey: Callable[[str], str] | None = {
            "/use": self._use, "/base": lambda _: self._use(BASE), "/all": self._all, "/set": self._set,
            "/system": self._system, "/new": self._new, "/history": self._history, "/save": self._save,
            "/image": self._image,
        }.get(word)  # fmt: skip
        try:
            if obey is not None:
                typer.echo(obey(rest.strip()), err=True)
                return
        except AfinaError as error:
            typer.echo(str(error), err=True)
            return
        unknown = "" if word == "/help" else f"unknown: {word}\n"
        adapters = [name for name in self.names if name != BASE]
        typer.echo(f"{unknown}{HELP}\nadapters: {', '.join(adapters)}", err=True)

    def _use(self, name: str) -> str:
        if name not in self.names:
            hint = did_you_mean(name, self.names)
            what = "there is no base beside it" if name == BASE else f"no adapter {name!r}"
            return what + (f"; {hint}" if hint else " (/help lists them)")
        self.speaker = name
        return self.told()

    def _all(self, _: str) -> str:
        self.speaker = None
        return self.told()

    def told(self) -> str:
        """Who answers."""
        return "all answer" if self.speaker is None else f"{self.speaker} answers"

    def _set(self, text: str) -> str:
        for pair in text.split():
            key, _, value = pair.partition("=")
            self.sampling = self.sampling.changed(key, value)
        return str(self.sampling)

    def _system(self, text: str) -> str:
        system = self.instruct(text or None)
        if text:
            self._new("")
        return "no system message" if system is None else f"system: {system}"

    def _new(self, _: str) -> str:
        self.forget()
        for conversations in self.transcripts.values():
            conversations.append([])
        return "a new conversation"

    def _image(self, path: str) -> str:
        if not path:
            raise DataError("a file is needed", expected="/image FILE")
        return self.show(path)

    def _history(self, _: str) -> str:
        said = [f"[{name if m['role'] == 'assistant' else m['role']}] {_in_words(m['content'])}"
                for name, conversations in self.transcripts.items() for m in conversations[-1]]  # fmt: skip
        return "\n".join(said) or "nothing was said"

    def _save(self, text: str) -> str:
        if not text:
            raise DataError("a file is needed", expected="/save FILE")
        return self.save(Path(text).expanduser())

    def save(self, path: Path) -> str:
        """Write what was said, a conversation a line.

        Raises:
            DataError: the file is there, or cannot be written.
        """
        rows = [{"speaker": name, "messages": conversation} for name, conversations in self.transcripts.items()
                for conversation in conversations if conversation]  # fmt: skip
        try:
            with path.open("x", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        except OSError as error:
            raise DataError("cannot write the transcript", where=path, got=error.strerror) from error
        return f"{len(rows)} conversations in {path}"


def _in_words(content: Any) -> str:
    """A message as people read it."""
    return content if isinstance(content, str) else " ".join(p.get("text") or f"[{p['path']}]" for p in content)


class Panel(Session):
    """Several adapters on one base."""

    def __init__(self, several: Several, sampling: Sampling, raw: bool, *, as_json: bool = False) -> None:
        super().__init__(list(several.prompters), sampling, as_json=as_json)
        self.several, self.raw = several, raw
        adapters = several.adapters
        self.speaker = None if len(adapters) <= _ALL_AT_MOST else adapters[0]
        typer.echo(f"{len(adapters)} adapters; {self.told()} (/help)", err=True)

    def ask(self, names: list[str], text: str, on_text: Callable[[str, str], None] | None) -> dict[str, str]:
        """All in one batch, or one as it speaks."""
        if self.speaker is None:
            return self.several.all(text, sampling=self.sampling, raw=self.raw)

        def piece(part: str) -> None:
            if on_text is not None:
                on_text(names[0], part)

        return {names[0]: self.several.one(names[0], text, sampling=self.sampling, raw=self.raw, on_text=piece)}

    def instruct(self, text: str | None) -> str | None:
        """The same for all."""
        prompters = self.several.prompters
        if text is not None:
            for name, prompter in prompters.items():
                prompters[name] = replace(prompter, data=told_so(prompter, text))
        return prompters[BASE].data.system

    def forget(self) -> None:
        """Of all."""
        self.several.histories.clear()


def told_so(prompter: Any, text: str) -> Any:
    """Its data section with this system message.

    Raises:
        RecipeError: prompts go into no chat template, where it would have its place.
    """
    if not prompter.chats:
        raise RecipeError("without a chat template a system message has no place")
    return prompter.data.model_copy(update={"system": text})
