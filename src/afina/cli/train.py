"""`afina train`"""

from __future__ import annotations

import shlex
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..devices.ranks import is_first, take_over_slurm
from ..errors import RecipeError
from .as_json import AsJson, say_json
from .guard import guarded

if TYPE_CHECKING:
    from ..train.loop.run import Result
    from ..train.recipe.sections import Recipe
    from ..train.report.events import Reporter

_FLAGS = ("dry-run", "overwrite", "resume", "print-recipe", "explain", "json", "live")


@guarded
def train(
    args: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE] [KEY=VALUE | --KEY VALUE]...", help="A YAML file, or an embedded recipe."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and what it will take; stop.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a former run, once this one is done.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest complete checkpoint.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of every fast path whether it is on, and why.")
    ] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Keep a page beside the output folder that follows the run.")
    ] = False,
    processes: Annotated[
        int,
        typer.Option(
            help="Processes that share the run, on a device each, or on the processor's cores; with "
            "--dry-run, what each would take."
        ),
    ] = 1,
    as_json: AsJson = False,
    print_recipe: Annotated[
        str | None, typer.Option("--print-recipe", metavar="METHOD", help="Print a recipe to start from; task=... too.")
    ] = None,
) -> None:
    """Train an adapter as a recipe says, and prove that it helps. Without a recipe, list the embedded ones."""
    from ..train.recipe.settings import embedded_recipes, load_recipe
    from ..train.recipe.yamlfile import dump

    take_over_slurm()
    source, overrides = split_arguments(args or [])
    for key, value in overrides:
        if value == "true" and (close := get_close_matches(key, _FLAGS, cutoff=0.8)):
            raise RecipeError(f"unknown option --{key}", fix=f"did you mean --{close[0]}?")
    if print_recipe is not None:
        from ..train.recipe.ready import ready_recipe

        if source is not None:
            raise RecipeError("--print-recipe makes a recipe and takes none", got=source)
        typer.echo(ready_recipe(print_recipe, overrides), nl=False)
        return
    if source is None:
        if overrides:
            raise RecipeError("no recipe", got=args, expected="afina train RECIPE key=value ...")
        if as_json:
            say_json(embedded_recipes())
            return
        typer.echo("usage: afina train RECIPE [KEY=VALUE]...\n\nembedded recipes:")
        for name, about in embedded_recipes().items():
            typer.echo(f"  {name:20} {about}")
        return
    recipe = load_recipe(source, overrides)
    if dry_run:
        if as_json:
            say_json({"recipe": recipe.model_dump(mode="json"), "plan": _plan(recipe, processes)})
            return
        # What it takes stands below as comments, so that both together are a recipe still.
        typer.echo(dump(recipe))
        for line in _plan(recipe, processes):
            typer.echo(f"# {line}")
        return
    if processes != 1:
        from .launch import launch

        flags = {"overwrite": overwrite, "resume": resume, "explain": explain, "live": live, "json": as_json}
        words = ["train", *(args or []), *(f"--{name}" for name, given in flags.items() if given)]
        raise typer.Exit(launch(words, processes, recipe.model.device))
    from ..train.report.events import Reporter
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    reporter = ConsoleReporter(explain) if is_first() else Reporter()
    quiet_libraries(reporter)
    result = _followed(recipe, reporter, live, overwrite=overwrite, resume=resume, source=source)
    if not is_first():
        return
    if as_json:
        say_json({"folder": result.folder, **result.report})
        return
    _conclude(result, recipe.output.dir)


def _followed(recipe: Recipe, reporter: Reporter, live: bool, **how: Any) -> Result:
    """The run, with a page that follows it to its end, however it ends."""
    from ..train.loop.run import run
    from ..train.report.live import Live, live_path

    if not live or not is_first():
        return run(recipe, reporter, **how)
    page = Live(reporter, live_path(recipe.output.dir))
    try:
        result = run(recipe, page, **how)
    except BaseException as error:
        page.finish(None, f"ended early: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        raise
    page.finish(result.folder, "done")
    return result


def _plan(recipe: Recipe, processes: int) -> list[str]:
    """What the run would be and take."""
    from ..train.loop.plans.planning import planned
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    return planned(recipe, reporter, processes)


def _conclude(result: Result, folder: str) -> None:
    for name, scores in (("before", result.before), ("after", result.after)):
        if scores is not None:
            typer.echo(f"{name + ':':8}{scores}")
    typer.echo(f"results in {result.folder}; next:")
    adapter, merged = shlex.quote(folder), shlex.quote(f"{folder}-merged")
    commands = [f"chat {adapter}", f"predict {adapter} FILE"]
    if (result.folder / "adapter_config.json").is_file():
        commands.append(f"merge {adapter} {merged}")
    for command in commands:
        typer.echo(f"  afina {command}")


def split_arguments(args: list[str]) -> tuple[str | None, list[tuple[str, str]]]:
    """The recipe's name and the overrides among the words of a command line.

    `key=value`, `--key=value` and `--key value` override; a `--key` without a value means true. The one other word is
    the recipe.

    Raises:
        RecipeError: two words could be the recipe.
    """
    source: str | None = None
    overrides: list[tuple[str, str]] = []
    words = iter(args)
    pending: str | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            if pending is not None:
                overrides.append((pending, "true"))
            key, equals, value = word[2:].partition("=")
            pending = None if equals else key
            if equals:
                overrides.append((_key(key), value))
            else:
                pending = _key(key)
        elif pending is not None:
            overrides.append((pending, word))
            pending = None
        elif "=" in word:
            key, _, value = word.partition("=")
            overrides.append((_key(key), value))
        elif source is None:
            source = word
        else:
            raise RecipeError("more than one recipe", got=f"{source} and {word}", fix="write settings as key=value")
    if pending is not None:
        overrides.append((pending, "true"))
    return source, overrides


def _key(word: str) -> str:
    return word.replace("-", "_")
