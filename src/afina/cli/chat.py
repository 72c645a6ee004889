"""`afina chat`"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RecipeError
from .guard import guarded
from .options import Device

if TYPE_CHECKING:
    from ..train.report.events import Reporter
    from ..train.tasks.base import Trained
    from .session import Session


@guarded
def chat(
    model: Annotated[str, typer.Argument(help="Folder of a trained adapter; with --adapter(s), the base model.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="One message; without it a conversation.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="NAME=PATH", help="An adapter on MODEL; may be repeated.")
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option("--adapters", help="A folder of adapters on MODEL, named as their folders.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Let the base model answer too.")] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    quantize: Annotated[
        str | None, typer.Option(help="Storage of the base (none, nf4, ...); without it the one trained on.")
    ] = None,
    device: Device = "auto",
    raw: Annotated[bool, typer.Option("--raw", help="Do not put messages into the recipe's prompt.")] = False,
) -> None:
    """Talk to a trained model. Messages come from --prompt, the terminal, or the lines of standard input.

    With several adapters, all answer side by side; /use NAME, /base and /all switch.
    """
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    lines = [prompt] if prompt is not None else _messages()
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    if adapter or adapters:
        return _several(model, adapter or [], adapters, quantize, device, reporter, max_new_tokens, raw).run(lines)
    from ..train.use.trained import load_trained

    trained = load_trained(Path(model), reporter, quantize, device=device)
    if base and not trained.task.streams:
        raise RecipeError("only language models answer beside their base", got=f"--base, {trained.recipe.task}")
    if base and not trained.is_adapter:
        raise RecipeError("the whole model was trained, there is no base beside it", got="--base")
    talk = _Talk(trained, base, max_new_tokens, raw)
    for text in lines:
        talk.answer(text)


def _several(
    model: str, adapter: list[str], folder: Path | None, quantize: str | None, device: str, reporter: Reporter,
    max_new_tokens: int, raw: bool,
) -> Session:  # fmt: skip
    from .session import Session, named_paths

    named = named_paths(adapter)
    if folder is not None:
        from ..core.combine.folder import adapter_folders

        found = adapter_folders(folder)
        twice = next((n for n in found if n in named), None)
        if twice is not None:
            raise RecipeError("two adapters of one name", where="--adapters", got=twice)
        named |= found
    from ..train.use.several import load_several

    return Session(load_several(model, named, reporter, quantize, device=device), max_new_tokens, raw)


def _messages() -> Iterator[str]:
    """Lines of standard input; at a terminal with a prompt, until an empty line or the end of input."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    typer.echo("an empty line ends the conversation", err=True)
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        if not text.strip():
            return
        yield text


class _Talk:
    """A conversation; models trained on one-message prompts get each message by itself."""

    def __init__(self, trained: Trained, base: bool, max_new_tokens: int, raw: bool) -> None:
        self.trained, self.base, self.max_new_tokens, self.raw = trained, base, max_new_tokens, raw
        self.single = trained.recipe.data.prompt is not None or not trained.prompter.chats
        self.histories: dict[str, list[dict[str, str]]] = {"base": [], "adapter": []}

    def answer(self, text: str) -> None:
        """Print the answer, or both answers."""
        if not self.trained.task.streams:
            typer.echo(self.trained.task.told(self.trained, text, self.max_new_tokens))
        elif self.base:
            for name in ("base", "adapter"):
                typer.echo(f"[{name}] ", nl=False)
                self._speak(text, name)
        else:
            self._speak(text, "adapter")

    def _speak(self, text: str, name: str) -> None:
        from contextlib import nullcontext

        from ..train.answers.generate import stream

        prompter, model = self.trained.prompter, self.trained.model
        history = [] if self.single else self.histories[name]
        history.append({"role": "user", "content": text if self.raw else prompter.asked(text)})
        with model.disable_adapter() if name == "base" else nullcontext():
            answer = stream(
                model,
                prompter,
                prompter.conversation(list(history)),
                max_new_tokens=self.max_new_tokens,
                on_text=lambda piece: typer.echo(piece, nl=False),
            )
        typer.echo()
        history.append({"role": "assistant", "content": answer})
