"""`afina convert`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import CheckpointError, ConfigError, NotMergeable
from .as_json import AsJson, say_json
from .guard import guarded
from .options import Base, Device

if TYPE_CHECKING:
    from ..core.combine.low_rank_form import Kept, Retained


@guarded
def convert(
    adapter: Annotated[Path, typer.Argument(help="Folder of a trained adapter of any method that changes weights.")],
    out: Annotated[Path, typer.Argument(help="Folder for the converted adapter.")],
    to: Annotated[str, typer.Option("--to", help="What to convert to; lora is what there is.")] = "lora",
    rank: Annotated[
        str, typer.Option("--rank", "-r", help="Rank, or the share of the update to keep (a number below 1, or 1.0).")
    ] = "16",
    base: Base = None,
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a former adapter in OUT.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write an adapter as LoRA, which more programs can serve, and say how much of it that loses."""
    if to != "lora":
        raise ConfigError("no such form", where="--to", got=to, expected="lora")
    wanted = rank_or_share(rank)
    from .. import save_as_lora
    from ..core.files.overwriting import refuse_occupied, refuse_overwriting
    from ..export.factors import class_fault
    from ..train.use.trained import known, load_trained
    from .console import ConsoleReporter
    from .quiet import quiet_libraries

    refuse_overwriting(out, {"the adapter": adapter}, "OUT")
    refuse_occupied(out, "an adapter", (out / "adapter_config.json").is_file(), overwrite)
    there = known(adapter, base)
    if not there.is_adapter:
        raise CheckpointError("the whole model was trained, there is no adapter to convert", where=adapter)
    below = there.recipe.model
    if below.adapter is not None and below.adapter_as == "base":  # alone, it would be served without that one
        raise CheckpointError("this adapter stands on another one, which LoRA alone would leave out", where=adapter,
                              got=below.adapter, fix="afina merge makes one model of both")  # fmt: skip
    refuse_overwriting(out, {"the base model": Path(below.path).expanduser()}, "OUT")
    if (fault := class_fault(adapter)) is not None:
        raise NotMergeable(f"it cannot be written as LoRA: {fault}", where=adapter, got=there.recipe.method.type,
                           fix="afina predict and chat use it as it is")  # fmt: skip
    reporter = ConsoleReporter()
    quiet_libraries(reporter)
    trained = load_trained(adapter, reporter, "none", base, device=device)
    name = trained.model.active_adapter
    if base is not None:
        trained.model.peft_config[name].base_model_name_or_path = base
    retained = save_as_lora(out, trained.model, wanted, adapter_name=name)
    if (adapter / "tokenizer_config.json").is_file():  # it may have a template or tokens that the base's has not
        trained.prompter.keep(out)
    if as_json:
        layers = {path: _plain(kept) for path, kept in retained.layers.items()}
        say_json({"folder": out, "all": _plain(retained.total), "layers": layers})
        return
    _tell(retained)
    typer.echo(f"LoRA in {out}")


def rank_or_share(text: str) -> float:
    """An int as it stands; anything with a point is a share.

    Raises:
        ConfigError: it is neither.
    """
    try:
        number = int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        number = 0
    if number < 1 if isinstance(number, int) else not 0 < number <= 1:
        raise ConfigError("neither a rank nor a share", where="--rank", got=text,
                          expected="an int of at least 1, or a number such as 0.95")  # fmt: skip
    return number


def _plain(kept: Kept) -> dict[str, float]:
    return {"rank": kept.rank, "share": kept.share, "error": kept.error}


def _tell(retained: Retained) -> None:
    """A line for each layer, and one for all."""
    width = max(len("layer"), len("all"), *(len(path) for path in retained.layers))
    typer.echo(f"{'layer':{width}}  {'rank':>5}  {'kept':>8}  error")
    for path, kept in [*retained.layers.items(), ("all", retained.total)]:
        typer.echo(f"{path:{width}}  {kept.rank:5d}  {kept.share:8.2%}  {kept.error:.2e}")
