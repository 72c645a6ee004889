"""`afina chat`"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import RecipeError
from .as_json import AsJson
from .foreseen import check_alone, check_drawing, check_seen, check_several, check_transcript
from .guard import guarded
from .options import Device
from .session import ADAPTER, BASE, Panel, Session, named_paths, told_so

if TYPE_CHECKING:
    from ..train.answers.generate import Sampling
    from ..train.report.events import Reporter
    from ..train.tasks.base import Trained
    from ..train.use.several import Several


@guarded
def chat(
    model: Annotated[str, typer.Argument(help="Folder of a trained adapter; with --adapter(s), the base model.")],
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="One message; without it a conversation.")
    ] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="An image to show with the first message; may be repeated.")
    ] = None,
    adapter: Annotated[
        list[str] | None, typer.Option("--adapter", metavar="NAME=PATH", help="An adapter on MODEL; may be repeated.")
    ] = None,
    adapters: Annotated[
        Path | None, typer.Option("--adapters", help="A folder of adapters on MODEL, named as their folders.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Let the base model answer too.")] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Of an answer; 256 without it.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0, as without it, takes always the likeliest token.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that have this share together.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of what is drawn.")] = None,
    system: Annotated[str | None, typer.Option(help="System message, in place of the recipe's.")] = None,
    transcript: Annotated[Path | None, typer.Option(help="JSONL to write at the end: what was said.")] = None,
    task: Annotated[int | None, typer.Option(help="Number of the task, for methods that know several.")] = None,
    quantize: Annotated[
        str | None, typer.Option(help="Storage of the base (none, nf4, ...); without it the one trained on.")
    ] = None,
    device: Device = "auto",
    raw: Annotated[bool, typer.Option("--raw", help="Do not put messages into the recipe's prompt.")] = False,
    as_json: AsJson = False,
) -> None:
    """Talk to a trained model. Messages come from --prompt, the terminal, or the lines of standard input.

    With several adapters, all answer side by side. Lines that begin with / are commands: /help lists them.
    """
    from ..train.answers.generate import Sampling
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    given = {"--max-new-tokens": max_new_tokens, "--temperature": temperature, "--top-p": top_p, "--seed": seed,
             "--system": system, "--raw": raw, "--base": base, "--image": image, "--task": task,
             "--prompt": prompt}  # fmt: skip
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
    sampling = Sampling(**{key: value for key, value in how.items() if value is not None})
    check_transcript(transcript)
    check_drawing(given, alone=prompt is not None)
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    session: Session
    if adapter or adapters:
        check_several(given)
        session = Panel(
            _several(model, adapter or [], adapters, quantize, device, reporter), sampling, raw, as_json=as_json
        )
    else:
        from ..train.use.trained import check_task, for_task, known, load_trained

        there = known(Path(model))
        check_alone(there, given)
        check_task(there, task, "--task")
        trained = load_trained(Path(model), reporter, quantize, device=device, before=partial(check_seen, there, given))
        trained = for_task(trained, task)
        session = Talk(trained, sampling, raw, base=base, as_json=as_json)
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
    if system is not None:
        session.instruct(system)
    for path in image or ():
        typer.echo(session.show(str(path)), err=True)
    if prompt is not None:
        session.answer(prompt)
    else:
        session.run(_messages())
    if transcript is not None:
        typer.echo(session.save(transcript), err=True)


def _several(
    model: str, adapter: list[str], folder: Path | None, quantize: str | None, device: str, reporter: Reporter
) -> Several:
    named = named_paths(adapter)
    if folder is not None:
        from ..core.combine.folder import adapter_folders

        found = adapter_folders(folder)
        twice = next((n for n in found if n in named), None)
        if twice is not None:
            raise RecipeError("two adapters of one name", where="--adapters", got=twice)
        named |= found
    from ..train.use.several import load_several

    return load_several(model, named, reporter, quantize, device=device)


def _messages() -> Iterator[str]:
    """Lines of standard input; at a terminal with a prompt, until an empty line or the end of input."""
    if not sys.stdin.isatty():
        yield from (line.rstrip("\n") for line in sys.stdin if line.strip())
        return
    typer.echo("an empty line or /quit ends the conversation, /help lists the commands", err=True)
    while True:
        try:
            text = input("> ")
        except EOFError:
            return
        if not text.strip():
            return
        yield text


class Talk(Session):
    """One adapter and its base; models trained on one-message prompts get each message by itself."""

    def __init__(
        self, trained: Trained, sampling: Sampling, raw: bool, *, base: bool = False, as_json: bool = False
    ) -> None:
        beside = trained.task.streams and trained.is_adapter
        super().__init__([BASE, ADAPTER] if beside else [ADAPTER], sampling, as_json=as_json)
        self.trained, self.raw = trained, raw
        self.single = trained.recipe.data.prompt is not None or not trained.prompter.chats
        self.histories: dict[str, list[dict[str, Any]]] = {name: [] for name in self.names}
        self.speaker = None if base else ADAPTER
        self.alone = not base
        """Whether nobody but the adapter has ever been asked, so that answers need no name before them."""

    def label(self, name: str) -> str:
        """None until somebody else answers."""
        self.alone = self.alone and self.speaker == ADAPTER
        return "" if self.alone else super().label(name)

    def ask(self, names: list[str], text: str, on_text: Callable[[str, str], None] | None) -> dict[str, str]:
        """One after another."""
        if not self.trained.task.streams:
            return {ADAPTER: self.trained.task.told(self.trained, text, self.sampling.max_new_tokens)}
        return {name: self._spoken(name, text, on_text) for name in names}

    def _spoken(self, name: str, text: str, on_text: Callable[[str, str], None] | None) -> str:
        from contextlib import nullcontext

        from ..train.answers.generate import stream
        from ..train.conversations.image_files import with_images
        from ..train.conversations.turns import Conversation

        prompter, model = self.trained.prompter, self.trained.model
        history = [] if self.single else self.histories[name]
        asked = text if self.raw else prompter.asked(text)
        history.append(with_images([{"role": "user", "content": asked}], list(self.images), Path(), "/image")[0])

        def piece(part: str) -> None:
            if on_text is not None:
                on_text(name, part)

        with model.disable_adapter() if name == BASE else nullcontext():
            prompt = prompter.conversation(list(history))
            answer = stream(
                model, prompter, prompt, sampling=self.sampling, on_text=piece,
                task=None if name == BASE else self.trained.task_number,
                seen=prompter.seen(prompt, Conversation(history, "/image")),
            )  # fmt: skip
        history.append({"role": "assistant", "content": prompter.remembered(answer)})
        return answer

    def show(self, path: str) -> str:
        """Found now, so that a wrong name is told at once."""
        from ..train.conversations.image_files import found_at, opened

        if self.trained.task.medium != "texts":  # there is nothing else to say
            return self.trained.task.told(self.trained, path, self.sampling.max_new_tokens)
        if self.trained.prompter.images is None:
            return super().show(path)
        found = found_at(path, Path.cwd(), "/image")
        width, height = opened(found, "/image").size
        self.images.append(found)
        return f"{path}, {width} x {height}, goes with the next message"

    def instruct(self, text: str | None) -> str | None:
        """In place of the recipe's."""
        if text is not None:
            self.trained.recipe.data = told_so(self.trained.prompter, text)
        return self.trained.recipe.data.system

    def forget(self) -> None:
        """Of both."""
        for history in self.histories.values():
            history.clear()
