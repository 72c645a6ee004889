"""`afina inspect`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import RecipeError
from .as_json import AsJson, say_json
from .guard import guarded

if TYPE_CHECKING:
    from ..train.use.look_model import Count, ModelLook, StepLook
    from .console import ConsoleReporter


@guarded
def inspect(
    source: Annotated[str, typer.Argument(metavar="MODEL_OR_ADAPTER", help="A folder, GGUF file or hub id.")],
    base: Annotated[str | None, typer.Option(help="Of an adapter: the model that it should fit.")] = None,
    methods: Annotated[str | None, typer.Option(help="Of a model: count these only, e.g. lora,ia3.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's modules and what each method would train in it, or what an adapter holds and whether it fits."""
    from ..train.use.look_model import is_adapter
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    if is_adapter(Path(source)):
        if methods is not None:
            raise RecipeError("--methods is about models, this is an adapter", got=source)
        _adapter(Path(source), base, reporter, as_json)
        return
    if base is not None:
        raise RecipeError("--base is about adapters, this is a model", got=source)
    _model(source, methods, reporter, as_json)


def _adapter(folder: Path, base: str | None, reporter: ConsoleReporter, as_json: bool) -> None:
    from dataclasses import asdict

    from ..compare.table import size
    from ..train.base.base_model import base_location
    from ..train.recipe.sections import ModelSection
    from ..train.use.look_adapter import check_fit, look

    found = look(folder)
    placed = check_fit(folder, base_location(ModelSection(path=base), reporter)) if base is not None else None
    if as_json:
        say_json({"adapter": folder, **asdict(found), "fits": placed is not None or None})
        return
    typer.echo(f"adapter   {folder}")
    typer.echo(f"method    {found.method.lower()}, task {found.task}")
    typer.echo(f"base      {found.base or 'not named'}")
    dtypes = ", ".join(f"{count} {dtype}" for dtype, count in found.dtypes.items())
    typer.echo(f"holds     {found.tensors} tensors ({dtypes}), {found.parameters:,} numbers, {size(found.size_bytes)}")
    for key, value in sorted(found.settings.items()):
        typer.echo(f"setting   {key}: {_short(value)}")
    for line in found.origin:
        typer.echo(f"origin    {line}")
    if base is None:
        typer.echo("fit       not checked (--base MODEL)")
        return
    typer.echo(f"fit       yes: all {placed} tensors have their place in {base} (values of its weights not compared)")


def _short(value: object) -> str:
    words = [str(word) for word in value] if isinstance(value, list) else [str(value)]
    words = sorted(words)
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")


def _model(source: str, methods: str | None, reporter: ConsoleReporter, as_json: bool) -> None:
    from dataclasses import asdict

    from ..train.base.base_model import base_location
    from ..train.recipe.sections import ModelSection
    from ..train.report.events import Progress
    from ..train.use.look_model import counts, look, on_meta, pipeline_parts, step_of_one

    wanted = _known(methods)
    if parts := pipeline_parts(Path(source).expanduser()):
        _pipeline(source, parts, as_json)
        return
    location = base_location(ModelSection(path=source), reporter)
    found, step = look(on_meta(location)), step_of_one(lambda: on_meta(location))
    if as_json:
        each = [asdict(c) for c in counts(lambda: on_meta(location), wanted)]
        say_json({"model": source, **asdict(found), "step": asdict(step) if step else None, "methods": each})
        return
    typer.echo(f"{found.kind}, {found.parameters:,} parameters\n\nmodules:")
    width = max(len(group.name) for group in found.groups)
    for group in found.groups:
        shape = " x ".join(map(str, group.shape))
        typer.echo(f"  {group.name:{width}}  {group.kind:16} {shape:>14}  {group.count:>3} times")
    for line in _layers(found, step):
        typer.echo(line)
    told = counts(lambda: on_meta(location), wanted, lambda n, of: reporter.progress(Progress("counting", n, of)))
    _methods(told, found.parameters)


def _layers(found: ModelLook, step: StepLook | None) -> list[str]:
    from ..plan.usage import told_bytes

    layers = ", ".join(f"{count} {kind}" for kind, count in found.layers.items())
    chosen = f"{', '.join(found.targets)} ({found.adapted} modules)" if found.targets else "not known for this model"
    four, two = told_bytes(4 * found.parameters), told_bytes(2 * found.parameters)
    memory = f"memory: weights {four} in float32, {two} in 16 bits; "
    if step is None:
        memory += "a step is not estimated for this model"
    else:
        shapes = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in step.inputs.items())
        memory += f"a step of LoRA on {step.targets} for one example ({shapes}) {told_bytes(step.working)} more"
    return ["", f"layers that can be adapted: {layers}", f"default targets: {chosen}", memory]


def _pipeline(source: str, parts: dict[str, str], as_json: bool) -> None:
    """The models of a pipeline of diffusers, a line each."""
    from dataclasses import asdict

    from ..train.use.look_model import look, on_meta

    found = {name: look(on_meta(location)) for name, location in parts.items()}
    if as_json:
        say_json({"model": source, "parts": {name: asdict(part) for name, part in found.items()}})
        return
    typer.echo(f"a pipeline of {len(found)} models; `afina inspect {source}/PART` shows one\n")
    width = max(map(len, found))
    for name, part in found.items():
        layers = ", ".join(f"{count} {kind}" for kind, count in part.layers.items())
        typer.echo(f"  {name:{width}}  {part.kind:24} {part.parameters:>14,} parameters  {layers}")


def _methods(told: list[Count], parameters: int) -> None:
    typer.echo("\ntrained parameters at each method's defaults:")
    family = ""
    for count in told:
        if count.family != family:
            family = count.family
            typer.echo(f"{family}:")
        if count.trainable is None:
            typer.echo(f"  {count.method.lower():24} {'-':>14}  {count.why}")
        else:
            share = f"{count.trainable / parameters:.3%}"
            typer.echo(f"  {count.method.lower():24} {count.trainable:>14,}  {share}  {count.why}".rstrip())


def _known(methods: str | None) -> list[str]:
    """The names in a list such as `lora,ia3`.

    Raises:
        RecipeError: there is no such method.
    """
    from ..errors import did_you_mean
    from ..methods.about import about_methods

    wanted = [word.strip().lower().replace("-", "_") for word in (methods or "").split(",") if word.strip()]
    known = [about.name.lower() for about in about_methods()]
    for name in wanted:
        if name not in known:
            raise RecipeError("no such method", where="--methods", got=name, fix=did_you_mean(name, known))
    return wanted
