"""The base model, its config and its tokenizer, from a folder, a GGUF file, a package or the hub."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from ...core.files.package_folder import in_parts
from ...devices.found import found
from ...devices.place import is_sharded, place, told
from ...devices.ranks import cut, size, spread
from ...errors import AfinaWarning, CheckpointError, RecipeError
from ..recipe.sections import ModelSection
from ..report.events import Reporter
from . import ctranslate2_weights, quantize, torchvision_weights
from .assets import is_reference, locate, looked
from .gguf import converted
from .in_parts import read_in_parts, spread_read, why_read_whole
from .new_tokens import added
from .pipelines.part_files import weights_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ORIGINS: WeakKeyDictionary[Any, tuple[str, str]] = WeakKeyDictionary()
"""Where tokenizers were loaded from, with the revision."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def check_location(section: ModelSection) -> None:
    """Refuse what is no model on this machine, before anything is fetched or read.

    Raises:
        RecipeError: there is no such file or folder, and it is no id of the hub.
        CheckpointError: the folder holds no model.
    """
    reference = section.path
    path = Path(reference).expanduser()
    if len(in_parts(reference)) > 1 or reference.startswith("sdist:") or is_reference(reference):
        return
    if not path.exists():
        if _HUB_ID.fullmatch(reference) and not reference.endswith(".gguf"):
            return
        raise RecipeError("no such model", where="model.path", got=f"{reference} ({looked(path)})",
                          expected="a folder, GGUF file or hub id")  # fmt: skip
    if path.is_dir():
        _check_folder(path)


def _check_folder(path: Path) -> None:
    """Refuse a folder that is no model's.

    Raises:
        CheckpointError: names its parts, where it is that of a pipeline.
    """
    if not (path / "config.json").is_file():
        piped = (path / "model_index.json").is_file()
        models = sorted(p.parent.name for p in path.glob("*/config.json")) if piped else []
        raise CheckpointError("not a model folder (no config.json)", where=path,
                              fix=f"name a part of the pipeline: {', '.join(models)}" if models else None)  # fmt: skip


def base_location(section: ModelSection, reporter: Reporter) -> str:
    """A folder or hub id that transformers loads; references are fetched and GGUF files converted first.

    Raises:
        RecipeError: the reference names nothing.
        CheckpointError: a GGUF file is damaged.
    """
    reference = section.path
    parts = in_parts(reference)
    path = Path(reference).expanduser()
    if len(parts) > 1:
        return str(ctranslate2_weights.converted([locate(part, reporter) for part in parts], reporter))
    if reference.startswith("sdist:"):  # pip may run code of a source archive, and adapters name their base
        raise RecipeError("models come from wheels", got=reference, expected="package:NAME/path")
    if is_reference(reference):
        path = locate(reference, reporter)
    check_location(section)
    if not is_reference(reference) and not path.exists():
        return reference
    if path.is_file():
        if ctranslate2_weights.is_model(path):
            return str(ctranslate2_weights.converted([path], reporter))
        return str((torchvision_weights.converted if path.suffix == ".pth" else converted)(path, reporter))
    _check_folder(path)
    return str(path)


def load_tokenizer(location: str, section: ModelSection, reporter: Reporter) -> PreTrainedTokenizerBase:
    """The tokenizer, with a padding token.

    Raises:
        CheckpointError: it cannot be loaded.
        RecipeError: the recipe's chat template or new tokens cannot be used.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(location, revision=section.revision or "main")
    except (OSError, ValueError) as error:
        raise _unloadable("tokenizer", location, error) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise CheckpointError("the tokenizer has neither a padding nor an end token", where=location)
        reporter.note(f"the tokenizer has no padding token: {tokenizer.eos_token!r} pads, hidden by the attention mask")
        tokenizer.pad_token = tokenizer.eos_token
    if section.chat_template is not None:
        tokenizer.chat_template = _chat_template(Path(section.chat_template).expanduser(), tokenizer)
    out = added(tokenizer, section, reporter)
    _ORIGINS[out] = location, section.revision or "main"
    return out


def origin_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The folder or hub id that a tokenizer was loaded from, and the revision."""
    return _ORIGINS.get(tokenizer, (tokenizer.name_or_path, "main"))


def _chat_template(file: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template in a file, tried on one message.

    Raises:
        RecipeError: it cannot be read, or is no template.
    """
    from jinja2 import TemplateError

    try:
        text = file.read_text(encoding="utf-8-sig")
        tokenizer.apply_chat_template([{"role": "user", "content": "."}], chat_template=text, tokenize=False)
    except (OSError, UnicodeDecodeError, TemplateError) as error:
        got = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise RecipeError("not a chat template", where=f"model.chat_template: {file.absolute()}", got=got) from error
    return text


def vocab_size(location: str, section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of the model's input embedding, from its config, and for new tokens; 0 where it takes none, and what reads
    its rows is no tokenizer.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    if not hasattr(tokenizer, "get_vocab"):
        return 0
    own = int(config_of(location, section).get_text_config().vocab_size)
    return max(own, len(tokenizer)) if section.new_tokens else own


def config_of(location: str, section: ModelSection) -> Any:
    """The model's config.

    Raises:
        CheckpointError: it cannot be loaded.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(location, revision=section.revision or "main")
    except (OSError, ValueError) as error:
        raise _unloadable("config", location, error) from error


def sketch(
    location: str, section: ModelSection, loader: str, options: Mapping[str, Any], vocabulary: int, layers: int | None
) -> Any:
    """A base model by its config alone, its weights unread; `loader` and `options` as for `load_base`.

    Args:
        vocabulary, layers: rows of its embedding, and how many it is to have; as its config has them if 0 or None.
    """
    import torch
    import transformers

    config = config_of(location, section)
    text = config.get_text_config()
    for key, value in options.items():
        setattr(config, key, value)
    if vocabulary:
        text.vocab_size = vocabulary
    if layers:
        text.num_hidden_layers = layers
        text.layer_types = (getattr(config, "layer_types", None) or [])[:layers] or None
    dtype = getattr(torch, "bfloat16" if section.dtype == "auto" else section.dtype)
    return getattr(transformers, loader).from_config(config, dtype=dtype)


def load_base(
    section: ModelSection, location: str, loader: str, options: Mapping[str, Any], fresh: Iterable[str] = ()
) -> PreTrainedModel:
    """The base model in its storage, read straight to its device. Weights that its files lack are told in a warning:
    they are random then.

    Args:
        loader: transformers' auto class.
        options: what it is loaded with beside what the section says.
        fresh: names of heads that are trained from nothing, whose weights are missing by right.

    Raises:
        CheckpointError: it cannot be loaded.
        RecipeError: the storage needs a package that is not installed, or a layer does not fit it; or the device is
            not there.
    """
    import transformers

    quantize.check(section)
    auto: Any = getattr(transformers, loader)
    stored = quantize.loading_options(section, _dtype(location, section))
    read = partial(auto.from_pretrained, location, dtype=section.dtype, revision=section.revision or "main",
                   output_loading_info=True, **stored, **_placed(section), **options)  # fmt: skip
    sliced = _in_parts(section)
    try:
        model, found = read_in_parts(read, section, [*fresh]) if sliced else read()
    except (OSError, ValueError) as error:
        raise _unloadable("model", location, error) from error
    _tell_missing(found["missing_keys"], fresh, location)
    _refuse_other_shapes(found["mismatched_keys"], fresh, location)
    if cut():
        # The trainer would refuse checkpoints, and leave the rows to accelerate, which knows this of GPUs only.
        model._tp_size, model._is_distributed_loading_by_transformers = None, False
    if not stored and hasattr(model, "hf_device_map"):
        del model.hf_device_map  # which transformers takes for several devices
    model = quantize.after_loading(section, model)
    return spread_read(model, section) if sliced else model


def _in_parts(section: ModelSection) -> bool:
    """Whether every process reads its slices of the weights; with tensor parallel and ZeRO-3 transformers does that."""
    from transformers.integrations import is_deepspeed_zero3_enabled

    return spread() and not cut() and not is_deepspeed_zero3_enabled() and why_read_whole(section) is None


def _placed(section: ModelSection) -> dict[str, Any]:
    """What puts the weights on the section's device as they are read, or this process's part of each; a processor is
    where they are put anyway."""
    name = place(section.device).name
    if cut():
        from transformers.distributed import DistributedConfig

        return {"distributed_config": DistributedConfig(tp_size=size(), tp_plan="auto")}
    return {} if name == "cpu" or is_sharded() else {"device_map": {"": name}}


def settled(device: str, location: str, reporter: Reporter, copies: int = 1, about: str = "") -> str:
    """The name of the device that `device` comes to for a model in that folder; it is told, and so is a GPU that the
    weights do not fit into.

    Args:
        copies: how many times the weights have to fit.
        about: what else is told on the same line, before it.

    Raises:
        RecipeError: the device is not there.
    """
    bytes_ = copies * sum(path.stat().st_size for path in weights_of(Path(location)))
    there = found()
    chosen, first = place(device, needs=bytes_, there=there), place(device, there=there)
    small = f", because the weights take {bytes_ / 2**30:.1f} GiB and {told(first)} is too small"
    reporter.note(f"{about}device: {told(chosen)}{'' if chosen is first else small}")
    return chosen.name


def _tell_missing(keys: Iterable[str], fresh: Iterable[str], location: str) -> None:
    """Warn of weights that are not in the model's files, but for those of heads that are trained from nothing."""
    missing = sorted(key for key in keys if not {*key.split(".")} & {*fresh})
    if missing:
        told = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        warnings.warn(f"{location} lacks weights of the model, which are random now: {told}", AfinaWarning, 3)


def _refuse_other_shapes(keys: Iterable[Any], fresh: Iterable[str], location: str) -> None:
    """Refuse weights of other shapes than the model's, but for those of heads that are trained from nothing.

    Raises:
        CheckpointError: there are some.
    """
    wrong = next((key for key in sorted(keys) if not {*key[0].split(".")} & {*fresh}), None)
    if wrong is not None:
        raise CheckpointError("weights have other shapes than the model's config says", where=f"{location}: {wrong[0]}",
                              got=tuple(wrong[1]), expected=tuple(wrong[2]))  # fmt: skip


def _dtype(location: str, section: ModelSection) -> torch.dtype:
    """The dtype that the model computes in."""
    import torch

    dtype = section.dtype if section.dtype != "auto" else config_of(location, section).dtype
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32


def _unloadable(part: str, location: str, error: Exception) -> CheckpointError:
    got = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return CheckpointError(f"cannot load the {part}", where=location, got=got)
