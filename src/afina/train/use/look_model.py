"""A model seen without its weights: which modules can be adapted, and what each method would train in it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.config import PeftConfig, methods
from ...core.layers.recognise import base_weight
from ...core.layers.whole_model import count_parameters
from ...errors import AfinaError, CheckpointError, TargetError
from ...methods.about import about_methods
from ...methods.reparam.lora_config import LoraConfig

_LAYERS = ("linear", "conv", "embedding", "attention")
"""Kinds of layer that have a weight and stand in every model; all else is normalised, or experts."""
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_STEPS = 1000
"""Length of run for methods whose config asks for one."""


@dataclass(frozen=True)
class Group:
    """Modules of one name but for the number of their layer: `model.layers.*.mlp.up_proj`, Linear, (1536, 576), 30."""

    name: str
    kind: str
    shape: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Count:
    """What a method trains at its defaults; `why` says what it needs where that cannot be told, or where else it is."""

    method: str
    family: str
    trainable: int | None
    why: str = ""


@dataclass(frozen=True)
class ModelLook:
    """A model.

    Attributes:
        kind: its class.
        groups: the modules that have a weight.
        layers: kind of layer that methods can adapt -> how many there are, e.g. {"linear": 72, "conv": 1}.
        targets: what LoRA adapts where the user names nothing; empty where no defaults are known.
        adapted: how many modules those are.
    """

    kind: str
    parameters: int
    groups: tuple[Group, ...]
    layers: dict[str, int]
    targets: tuple[str, ...]
    adapted: int


@dataclass(frozen=True)
class StepLook:
    """What one training step of one example takes.

    Attributes:
        inputs: the example: name -> shape.
        working: bytes beyond the weights, in float32.
        targets: what LoRA adapts in it.
    """

    inputs: dict[str, tuple[int, ...]]
    working: int
    targets: str


def on_meta(location: str, kind: str | None = None, **settings: Any) -> Any:
    """The model of a folder or hub id without memory for its weights.

    Args:
        kind: name of a class of transformers (an auto class too) instead of the one that the config names.
        settings: of the config, e.g. `num_labels`.

    Raises:
        CheckpointError: its config cannot be read, or names a class that transformers does not have.
    """
    import torch
    import transformers

    if (part := _of_diffusers(location)) is not None:
        return part
    try:
        config = transformers.AutoConfig.from_pretrained(location, **settings)
    except (OSError, ValueError) as error:
        got = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError("cannot read the model's config", where=location, got=got) from error
    name = kind or (config.architectures or ["AutoModel"])[0]
    cls = getattr(transformers, name, None)
    if cls is None:
        raise CheckpointError("transformers does not have this model's class", where=location, got=name)
    with torch.device("meta"):
        return cls.from_config(config) if name.startswith("Auto") else cls(config)


def _of_diffusers(location: str) -> Any:
    """The part of a diffusion pipeline whose folder this is, without memory for its weights; None where it is none.

    Raises:
        CheckpointError: diffusers does not have its class.
    """
    file = Path(location) / "config.json"
    own = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    name = own.get("_class_name")
    if name is None:
        return None
    import diffusers
    import torch

    cls = getattr(diffusers, name, None)
    if cls is None:
        raise CheckpointError("diffusers does not have this model's class", where=location, got=name)
    with torch.device("meta"):
        return cls.from_config(own)


def pipeline_parts(folder: Path) -> dict[str, str]:
    """The models of a pipeline of diffusers: name -> folder; empty where `folder` is none."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: str(folder / name) for name in index if (folder / name / "config.json").is_file()}


def look(model: Any) -> ModelLook:
    """The model's modules that have a weight, those of like layers together, in the model's order; which kinds of
    layer they are, and what is adapted by default."""
    found: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    kinds: Counter[str] = Counter()
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None:
            found[_NUMBER.sub("*", name), type(module).__name__, tuple(weight.shape)] += 1
            kinds[base_weight(module).kind] += 1
    groups = tuple(Group(*key, count) for key, count in found.items())
    layers = {kind: kinds[kind] for kind in _LAYERS if kinds[kind]}
    targets, adapted = _defaults(model)
    return ModelLook(type(model).__name__, count_parameters(model)[1], groups, layers, targets, adapted)


def _defaults(model: Any) -> tuple[tuple[str, ...], int]:
    """What LoRA adapts in a model by default, and how many modules that is."""
    from ...core.inject.targets import select, settle

    config = LoraConfig()
    try:
        names, adapted = settle(model, config), len(select(model, config))
    except TargetError:
        return (), 0
    return (names,) if isinstance(names, str) else tuple(names or ()), adapted


def step_of_one(build: Callable[[], Any]) -> StepLook | None:
    """What a step of LoRA at its defaults takes for one example, by shapes alone; None where it is not known what the
    model takes, or its layers ask for numbers."""
    from ...core.model.mapping import get_peft_model
    from ...plan.example_inputs import example_inputs, mean_of_output
    from ...plan.memory import step_memory

    plain = build()
    inputs, targets = example_inputs(plain), _defaults(plain)[0]

    def adapted() -> Any:
        config = LoraConfig() if targets else LoraConfig(target_modules="all-linear")
        return get_peft_model(build(), config, low_cpu_mem_usage=True).train()

    if inputs is None:
        return None
    try:
        found = step_memory(adapted, inputs, mean_of_output)
    except (RuntimeError, NotImplementedError, ValueError, TypeError, StopIteration):
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    return StepLook(shapes, found.working, ", ".join(targets) or "all-linear")


def counts(
    build: Callable[[], Any], wanted: Sequence[str] = (), told: Callable[[int, int], None] = lambda done, total: None
) -> list[Count]:
    """What each method would train in the model that `build` makes, at the method's own defaults.

    Args:
        wanted: names of methods; all where empty.
        told: called with how many methods are done, of how many.
    """
    chosen = [about for about in about_methods() if not wanted or about.name.lower() in wanted]
    out = []
    for number, about in enumerate(chosen, 1):
        out.append(_count(about.name, about.family, build))
        told(number, len(chosen))
    return out


def _count(name: str, family: str, build: Callable[[], Any], targets: str | None = None) -> Count:
    from ...core.model.mapping import get_peft_model
    from ...core.prompts.encoder import PromptEncoder

    method, model = methods()[name], build()
    if family == "baseline":
        return Count(name, family, sum(p.numel() for p in model.parameters()))
    own: dict[str, Any] = {"total_step": _STEPS} if "total_step" in method.config.__dataclass_fields__ else {}
    if targets is not None:
        own["target_modules"] = targets
    try:
        config: PeftConfig = method.config(**own)
        if issubclass(method.implementation, PromptEncoder):
            config.task_type = _task(model)
        adapted = get_peft_model(model, config, low_cpu_mem_usage=True)
        return Count(name, family, adapted.get_nb_trainable_parameters()[0], f"on {targets}" if targets else "")
    except AfinaError as error:
        if error.where == "target_modules" and not targets:  # the method has no targets of its own in such a model
            return _count(name, family, build, "all-linear")
        what = f"{error.where}: {error.what}" if error.where is not None else error.what
        return Count(name, family, None, what)
    except NotImplementedError:  # torch's word for numbers that a meta tensor does not have
        return Count(name, family, None, "depends on the weights' values")


def _task(model: Any) -> Any:
    """The task that a model's class is for, as prompts need to know it."""
    from ...core.config import TaskType

    name = type(model).__name__
    ends = {"ForCausalLM": TaskType.CAUSAL_LM, "LMHeadModel": TaskType.CAUSAL_LM,
            "ForConditionalGeneration": TaskType.SEQ_2_SEQ_LM,
            "ForSequenceClassification": TaskType.SEQ_CLS}  # fmt: skip
    return next((task for end, task in ends.items() if name.endswith(end)), TaskType.FEATURE_EXTRACTION)


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (path / "adapter_config.json").is_file()
