"""`afina doctor`"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .guard import guarded
from .options import Device

if TYPE_CHECKING:
    from ..devices import found, packages
    from ..kernels.selftest import Check
    from ..plan.precision import Choice


@guarded
def doctor(
    device: Device = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for programs.")] = False,
) -> None:
    """Say what this machine has for fine-tuning, and try every kernel against its formula.

    Ends with 2 where one gives something else than its formula.
    """
    import json
    from dataclasses import asdict

    import torch

    from ..devices.found import found
    from ..devices.packages import packages
    from ..devices.place import attention, place
    from ..kernels.cpu.native import instructions
    from ..kernels.selftest import self_test
    from ..plan.precision import choose_dtype

    there = found()
    chosen = place(device, there=there)
    dtype = choose_dtype(chosen)
    checks, has = self_test(torch.device(chosen.name)), packages(there)
    theirs = attention(chosen, dtype.dtype)
    if as_json:
        value = {"versions": _versions(), "devices": [asdict(d) for d in there], "device": chosen.name,
                 "dtype": asdict(dtype), "attention": theirs, "instructions": instructions(),
                 "kernels": [asdict(c) for c in checks], "packages": [asdict(p) for p in has]}  # fmt: skip
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
    else:
        _print(there, chosen, dtype, theirs, checks, has)
    if any(check.state == "wrong" for check in checks):
        raise typer.Exit(2)


def _versions() -> dict[str, str]:
    import platform

    from ..train.report.results import versions

    return {**versions(), "system": f"{platform.system()} {platform.machine()}"}


def _print(
    there: tuple[found.Device, ...], chosen: found.Device, dtype: Choice, attention: str, checks: list[Check],
    has: list[packages.Package],
) -> None:  # fmt: skip
    from ..devices.found import out_of_reach
    from ..devices.place import told
    from ..kernels.cpu.native import instructions

    typer.echo(", ".join(f"{name} {version}" for name, version in _versions().items()))
    typer.echo("\ndevices")
    for device in there:
        typer.echo(f"  {told(device)}{_bfloat16(device)}{'; this one is used' if device is chosen else ''}")
    if missed := out_of_reach():
        typer.echo(f"  {missed}")
    typer.echo(f"dtype: {dtype.dtype} for the frozen base, because {dtype.reason}")
    typer.echo(f"attention: {attention}{', and ours in training' if chosen.kind == 'cpu' else ''}")
    compiled = f" (C++ in {instructions()})" if chosen.kind == "cpu" and instructions() else ""
    typer.echo(f"\nkernels on {chosen.name}{compiled}, and how far they are from their formulas")
    width = max(len(check.kernel) for check in checks)
    for check in checks:
        typer.echo(f"  {check.kernel:{width}}  {_outcome(check)}")
    typer.echo("\npackages")
    for package in has:
        typer.echo(f"  {package.name:12}  {_state(package)}  ({package.serves})")
    wrong = [check.kernel for check in checks if check.state == "wrong"]
    if wrong:
        typer.echo(f"\nnot right: {', '.join(wrong)}")


def _bfloat16(device: found.Device) -> str:
    words = {True: "computes in bfloat16", False: "emulates bfloat16", None: "does not say whether it has bfloat16"}
    return f"; {words[device.bfloat16]}"


def _outcome(check: Check) -> str:
    if check.state == "off":
        return f"off    {check.why}"
    measured = "" if check.error is None else f"{check.error:.1e} (at most {check.limit:.0e})"
    return f"{check.state:5}  {'; '.join(part for part in (measured, check.why) if part)}"


def _state(package: packages.Package) -> str:
    if package.version is not None:
        idle = "" if package.useful else f"; idle without {package.needs}"
        return package.version + idle
    return f"not installed: {package.install}" if package.useful else f"not installed; only for {package.needs}"
