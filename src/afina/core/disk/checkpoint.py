"""The only door in and the only door out: an adapter's two files on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import AfinaWarning, CheckpointError, ConfigError
from ..config import CONFIG_NAME, FORMAT_VERSION, LayerConfig, PeftConfig, method
from ..files.hub import locate
from ..files.jsonfile import parse_json, publish, read_json_object
from ..files.tensorfile import Header, check_finite, read_header, read_tensors, to_bytes
from ..layers.sharded import ready
from . import embeddings, fingerprint
from .adapter_file import NO_MATHS, AdapterFile, foreign_file
from .held_file import open_pickle
from .load_plan import LoadPlan, LoadResult
from .names import config_in_use, disk_prefix, layout, own_key, piece_state, pieces, prompt_piece, shared_piece
from .shares import refuse_parts

WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"


# -- out --------------------------------------------------------------------------------------------------------------


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: bool | str = "auto",
) -> dict[str, Tensor]:
    """An adapter's tensors under their names on disk.

    Args:
        model: a `PeftModel`, or any module with injected adapters (whose keys then have no `base_model.model.` prefix).
        state_dict: gathered state of the whole `model` (FSDP, DeepSpeed) to take the values from.
        adapter_name: the adapter's name.
        unwrap_compiled: look inside a compiled model.
        save_embedding_layers: also store the input and output embeddings; "auto": if the vocabulary was resized.

    Raises:
        CheckpointError: no adapter of this name.
    """
    if unwrap_compiled:
        model = getattr(model, "_orig_mod", model)
    root, container, inside = layout(model)
    disk = disk_prefix(model, adapter_name)
    relative: dict[str, Tensor] | None = None
    if state_dict is not None:
        relative = {own_key(k).removeprefix(inside): t for k, t in state_dict.items()}
    out: dict[str, Tensor] = {}
    for piece in pieces(root, adapter_name):
        out |= {f"{disk}{k}": t for k, t in piece_state(piece, relative).items()}
    shared = shared_piece(container, adapter_name)
    if shared is not None:
        state = (
            None if state_dict is None else {own_key(k).removeprefix("base_model."): t for k, t in state_dict.items()}
        )
        out |= {f"base_model.{k}" if inside else k: t for k, t in piece_state(shared, state).items()}
    prompt = prompt_piece(container, adapter_name)
    if prompt is not None:
        ready(model)
        out |= piece_state(prompt, None)
    if not out:
        raise CheckpointError("the model has no adapter of this name", where=adapter_name)
    if embeddings.wanted(root, save_embedding_layers):
        out |= {f"{disk}{k}": t for k, t in embeddings.state(root, adapter_name).items() if f"{disk}{k}" not in out}
    return out


def save_adapter(
    model: nn.Module,
    folder: Path,
    name: str,
    config: PeftConfig,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
    save_embedding_layers: bool | str = "auto",
    write: bool = True,
) -> None:
    """Write both files; a crash at any moment leaves the old pair or the new, or one that `open_adapter` can mend.
    Who does not `write` only takes part in gathering what is sharded.

    Raises:
        CheckpointError: parts of tensors, or the folder is a file.
        NumericError: a tensor is not finite; nothing was written.
    """
    root, _, _ = layout(model)
    tensors = get_peft_model_state_dict(model, state_dict, name, save_embedding_layers=save_embedding_layers)
    if not write:
        return
    refuse_parts(tensors)
    notes: dict[str, Any] = {"base": fingerprint.fingerprint(root)}
    if embeddings.wanted(root, save_embedding_layers):
        notes["vocabulary"] = True
    write_pair(folder, config_in_use(root, name, config), tensors, notes)


def write_pair(folder: Path, config: PeftConfig, tensors: Mapping[str, Tensor], notes: dict[str, Any]) -> None:
    """Write tensors with their config, and notes of what they belong to.

    Raises:
        CheckpointError: a tensor is empty, or the folder is a file.
    """
    implementation = method(config).implementation
    own = config.to_dict()
    rewritten = implementation.disk_config(config) if isinstance(config, LayerConfig) else {}
    disk = {**own, **rewritten, "inference_mode": True, "peft_version": FORMAT_VERSION}
    notes = {**notes, "config_sha256": config_digest(disk)}
    if config_digest(own) != config_digest(disk):
        notes["config"] = own
    text = json.dumps(disk, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    publish(folder, {WEIGHTS_NAME: to_bytes(tensors, notes), CONFIG_NAME: text.encode()})


def config_digest(values: Mapping[str, Any]) -> str:
    """sha256 of the values that decide what the tensors mean."""
    kept = {k: v for k, v in values.items() if k not in NO_MATHS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


# -- in ---------------------------------------------------------------------------------------------------------------


def open_adapter(
    source: str | Path,
    subfolder: str | None = None,
    *,
    config: PeftConfig | None = None,
    allow_pickle: bool = False,
    **hub: Any,
) -> AdapterFile:
    """Find an adapter's files and check what needs no model.

    Args:
        allow_pickle: read other libraries' pickles, with `weights_only`.

    Raises:
        CheckpointError: missing, damaged or pickled weights, or weights and config that do not belong together.
        ConfigError: the config is damaged or holds wrong values.
    """
    config_path = locate(source, CONFIG_NAME, subfolder=subfolder, **hub)
    foreign = foreign_file(config_path, lambda name: locate(source, name, subfolder=subfolder, **hub), allow_pickle)
    if foreign is not None:
        return foreign
    try:
        path = locate(source, WEIGHTS_NAME, subfolder=subfolder, **hub)
    except CheckpointError:
        pickle = config_path.parent / PICKLE_NAME
        if not pickle.exists() and not allow_pickle:
            raise
        return open_pickle(locate(source, PICKLE_NAME, subfolder=subfolder, **hub), config, allow_pickle)
    header = read_header(path)
    notes = _notes(header, path)
    values = _matching_config(config_path, notes)
    if config is None:
        own = notes.get("config")
        # What does not change the meaning of the tensors may be edited in the file.
        edited = {k: values[k] for k in NO_MATHS if k in values}
        config = PeftConfig.from_dict({**own, **edited} if isinstance(own, dict) else values, where=config_path)
    return AdapterFile(path, config, header, notes)


def _notes(header: Header, path: Path) -> dict[str, Any]:
    raw = header.metadata.get("afina")
    notes = parse_json(raw, f"{path} (metadata)") if raw is not None else {}
    return notes if isinstance(notes, dict) else {}


def _matching_config(path: Path, notes: Mapping[str, Any]) -> dict[str, Any]:
    """The config that belongs to the weights; finishes a save that was cut off between its two renames."""
    values = read_json_object(path)
    wanted = notes.get("config_sha256")
    if wanted is None or config_digest(values) == wanted:
        return values
    for left in sorted(path.parent.glob(f".{CONFIG_NAME}.*")):
        with contextlib.suppress(ConfigError, CheckpointError):
            if config_digest(read_json_object(left)) == wanted:
                os.replace(left, path)
                warnings.warn(f"{path}: finished a save that was interrupted", AfinaWarning, stacklevel=4)
                return read_json_object(path)
    raise CheckpointError(
        "weights and config do not belong together (edited by hand, or a save was interrupted)", where=path,
        fix="restore the config that was saved with these weights, or save again",
    )  # fmt: skip


def load_adapter(
    model: nn.Module, name: str, file: AdapterFile, *, allow_other_base: bool = False, vocabulary: bool = False
) -> None:
    """Fill an injected adapter from its file; everything is checked before anything is changed.

    Args:
        vocabulary: the model is this adapter's alone, so that it may bring the embeddings of a resized vocabulary.

    Raises:
        CheckpointError: missing, unexpected or misshapen tensors, tensors of the frozen base, or another base.
        NumericError: a tensor is not finite.
    """
    root, _, _ = layout(model)
    file = file.fitted(root)
    plan = LoadPlan(model, name, file.shapes(), file.whole_numbers())
    plan.refuse_problems(file.path, any_shape=file.any_shape)
    if "base" in file.notes and not allow_other_base:
        fingerprint.compare(file.notes["base"], root, file.path)
    tensors = file.tensors()
    of_vocabulary = {k: tensors[k] for k in plan.of_vocabulary if k not in plan.misshapen}
    if of_vocabulary:
        shapes = [tuple(t.shape) for t in of_vocabulary.values()]
        declared = bool(file.notes.get("vocabulary")) if file.notes else embeddings.is_resized(root, shapes)
        if vocabulary and declared:
            embeddings.take_over(root, of_vocabulary)
        else:
            embeddings.refuse_others(root, of_vocabulary, file.path)
    plan.apply(tensors)


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> LoadResult:
    """Fill an adapter from tensors under their names on disk, as the reference does: lenient towards missing and
    unexpected keys, which are warned of. Tensors of the frozen base are never written.

    Args:
        model: a `PeftModel`, or any module with injected adapters.
        peft_model_state_dict: name on disk -> tensor.
        adapter_name: the adapter's name.
        ignore_mismatched_sizes: skip tensors of another shape.
        low_cpu_mem_usage: accepted for the reference's sake, without effect.

    Returns:
        The missing and the unexpected keys.

    Raises:
        CheckpointError: a shape differs (unless `ignore_mismatched_sizes`).
        NumericError: a tensor is not finite.
    """
    root, container, _ = layout(model)
    prompts = prompt_piece(container, adapter_name) is not None
    tensors = {own_key(k, prompts): t for k, t in peft_model_state_dict.items()}
    check_finite(tensors, "state dict")
    plan = LoadPlan(model, adapter_name, {k: tuple(t.shape) for k, t in tensors.items()})
    if plan.misshapen and not ignore_mismatched_sizes:
        plan.missing, plan.unexpected = [], []
        plan.refuse_problems("state dict")
    if plan.missing or plan.unexpected:
        warnings.warn(f"adapter {adapter_name!r}: missing {plan.missing[:5]}, unexpected {plan.unexpected[:5]} "
                      f"({len(plan.missing)} and {len(plan.unexpected)} keys)", AfinaWarning, stacklevel=2)  # fmt: skip
    of_vocabulary = {k: tensors[k] for k in plan.of_vocabulary if k not in plan.misshapen}
    if of_vocabulary and embeddings.is_resized(root, [tuple(t.shape) for t in of_vocabulary.values()]):
        embeddings.take_over(root, of_vocabulary)
    elif of_vocabulary:
        embeddings.refuse_others(root, of_vocabulary, "state dict")
    plan.apply(tensors)
    return LoadResult(plan.missing, plan.unexpected)


def layer_config(config: PeftConfig) -> LayerConfig:
    """The config as one that adapts layers.

    Raises:
        ConfigError: it is for virtual tokens.
    """
    if not isinstance(config, LayerConfig):
        raise ConfigError("this method cannot be injected into layers", where="peft_type", got=config.peft_type)
    return config


def load_peft_weights(model_id: str | Path, device: str | None = None, **hub: Any) -> dict[str, Tensor]:
    """The tensors of an adapter's file under their names on disk.

    Args:
        model_id: folder or hub id.
        device: where to put them; the processor's memory if None.
        **hub: of the hub: `revision`, `cache_dir`, `token`, `force_download`, `local_files_only`.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = locate(model_id, WEIGHTS_NAME, **hub)
    header = read_header(path)
    tensors = read_tensors(path, _notes(header, path).get("tensors_sha256"))
    return {n: t.to(device) for n, t in tensors.items()} if device else tensors
