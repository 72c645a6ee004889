"""Configurations, the registry peft_type -> method, and `adapter_config.json`.

A config is data: reading one imports, fetches and opens nothing that it names.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import AfinaWarning, ConfigError
from .files.jsonfile import plain, read_json_object, write_json
from .registry import Method, PeftType, config_class, first_use, method, methods, register
from .validate import bounded, edit_distance, extension, validate_fields

if TYPE_CHECKING:
    from typing import Self

    from .hosts.routing import Place

CONFIG_NAME = "adapter_config.json"
FORMAT_VERSION = "0.21.2"
"""The release of the reference whose file format is written; stored as `peft_version`."""


class TaskType(str, Enum):
    """What the adapted model is used for.

    Attributes:
        SEQ_CLS: one label for a text.
        SEQ_2_SEQ_LM: an encoder-decoder writes text.
        CAUSAL_LM: a decoder writes text.
        TOKEN_CLS: a label for each token.
        QUESTION_ANS: a span of a text answers a question.
        FEATURE_EXTRACTION: hidden states, for whatever is done with them.
    """

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


@dataclass(kw_only=True)
class PeftConfig:
    """What every method's configuration has; `PeftConfig` itself reads the file of any method.

    Attributes:
        task_type: what the model is for: decides on the class of the `PeftModel`, and whether a head trains along.
        peft_type: the method's name; set by the class.
        auto_mapping: class and library of the base; recorded where there is no `task_type`, so that `AutoPeftModel`
            finds it.
        peft_version: release of the reference whose format the file has; written when saving.
        base_model_name_or_path: folder or hub id of the base; recorded, and taken by `AutoPeftModel`.
        revision: of the base on the hub.
        inference_mode: nothing trains; set when an adapter is loaded to be used.

    Raises:
        ConfigError: a field has a wrong type or lies outside its range.
    """

    task_type: str | TaskType | None = None
    peft_type: str | PeftType | None = None
    auto_mapping: dict[str, Any] | None = None
    peft_version: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    inference_mode: bool = False

    method_type: ClassVar[str] = ""
    """The registered name; set by `register`."""
    default_learning_rate: ClassVar[float] = 2e-4  # where to start with AdamW on a base of width 2048
    rate_exponent: ClassVar[float] = 0.0  # how it falls with the base's width, rate ~ width ** -exponent
    is_prompt_learning: ClassVar[bool] = False
    needs: ClassVar[Mapping[str, tuple[str | None, Any]]] = {}
    """Field -> another one, and the value that this must have for the field to have an effect (`...`: any given); or
    None, and why it never has one."""
    foreign: ClassVar[Mapping[str, bool]] = {}
    """Keys of the reference's format that are not available here: whether one changes the mathematics."""

    def __post_init__(self) -> None:
        first_use()
        if self.method_type:
            if self.peft_type is not None and str(self.peft_type) != self.method_type:
                raise ConfigError(
                    "this class is for another method", where="peft_type", got=self.peft_type, expected=self.method_type
                )
            self.peft_type = PeftType(self.method_type)
        if self.task_type is not None:
            known = [t.value for t in TaskType]
            if str(getattr(self.task_type, "value", self.task_type)) not in known:
                raise ConfigError("unknown task", where="task_type", got=self.task_type, expected=", ".join(known))
            self.task_type = TaskType(self.task_type)
        self.extra: dict[str, Any] = {}
        """Keys of the file that this version does not know; kept and written back."""
        validate_fields(self)

    @property
    def is_adaption_prompt(self) -> bool:
        """Whether the method is the reference's special case of that name (kept for its callers)."""
        return False

    def get(self, key: str, default: Any = None) -> Any:
        """The field `key`, or `default`."""
        return getattr(self, key, default)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values, keys sorted, sets in sorted order."""
        out: dict[str, Any] = dict(self.extra)
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if not (f.metadata.get("extension") and value == f.default) and not f.metadata.get("runtime"):
                out[f.name] = plain(value)
        return dict(sorted(out.items()))

    def save_pretrained(self, save_directory: str | Path, **overrides: Any) -> None:
        """Write `adapter_config.json` into the folder `save_directory`, creating it; `overrides` win over fields."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / CONFIG_NAME, {**self.to_dict(), "peft_version": FORMAT_VERSION, **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: object = None) -> Self:
        """Build the config of the right class from a file's `values`; `where` they stand is told in errors.

        Raises:
            ConfigError: unknown `peft_type`, wrong type or range, or a key that is a likely typing error.
        """
        kind = values.get("peft_type", cls.method_type or None)
        if kind is None:
            if cls.method_type:
                kind = cls.method_type
            elif cls is PeftConfig:
                return _build(cls, values, where)
        target = config_class(str(kind), where=where)
        if not issubclass(target, cls):
            raise ConfigError("the file is for another method", where=where, got=kind, expected=cls.method_type)
        return _build(target, {**values, "peft_type": target.method_type}, where)

    @classmethod
    def from_json_file(cls, path: str | Path, **kwargs: Any) -> dict[str, Any]:
        """The values of the JSON file `path`, unchecked, as the reference returns them; `kwargs` have no effect."""
        return read_json_object(Path(path))

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """Build the config that `peft_type` among the `kwargs` names, from the others."""
        return PeftConfig.from_dict(kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """Read the config of a folder or hub repository.

        Args:
            pretrained_model_name_or_path: the folder, or the hub's `owner/name`.
            subfolder: a folder inside it.
            **kwargs: fields of the class, which win over the file's; and of the hub: `revision`, `cache_dir`, `token`,
                `force_download`, `local_files_only`.

        Raises:
            CheckpointError: there is none, or it cannot be read.
            ConfigError: it is damaged, or for another method than the class's.
        """
        from .files.hub import locate

        path = locate(pretrained_model_name_or_path, CONFIG_NAME, subfolder=subfolder, **kwargs)
        values = read_json_object(path)
        # Fields given by the caller win over the file's: they are the caller's word.
        kind = config_class(str(values.get("peft_type", cls.method_type)), where=path)
        names = {f.name for f in dataclasses.fields(kind)} - {"revision"}
        given = {k: v for k, v in kwargs.items() if k in names}
        return cls.from_dict({**values, **given}, where=path)

    def copy(self) -> Self:
        """An independent copy."""
        return copy.deepcopy(self)


@dataclass(kw_only=True)
class LayerConfig(PeftConfig):
    """A method that adapts chosen layers.

    `r` and what follows it are fields of many methods, not of this class; where a method says nothing of one, it means
    what is said here.

    Attributes:
        target_modules: which modules: a list of names or ends of dotted paths, a pattern that matches whole paths, or
            "all-linear" (every linear layer but the output head). By default what the method or the architecture's
            table says.
        exclude_modules: which of them not: names, ends of paths, or a pattern.
        layers_to_transform: numbers of the layers to adapt; all by default.
        layers_pattern: the name before the number in a path ("layers", "h"), where `layers_to_transform` should not
            mean the first number in it.
        modules_to_save: modules that train whole, as copies, and are saved with the adapter, such as a fresh head.
        r: rank of the update.
        bias: biases of the model that train along: "none", "all", or those of the adapted layers ("lora_only" or any
            such word).
        fan_in_fan_out: kept for the reference's files, without effect: a layer's class says how it stores its weight.
        init_weights: start without changing the outputs; False starts at random, which is of use in tests.
        rank_pattern: names or patterns of modules -> their own rank; the first counts that matches the end of a path.
        alpha_pattern: the same for alpha.
        projection_prng_key: seed of the frozen random matrices.
        save_projection: store the frozen random matrices too; otherwise a file depends on torch's generator staying as
            it is.
    """

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = extension()
    layers_to_transform: list[int] | int | None = extension()
    layers_pattern: list[str] | str | None = extension()
    modules_to_save: list[str] | None = None

    default_targets: ClassVar[Mapping[str, list[str] | str]] = {}
    """model_type -> targets, where it differs from the common table of `core.architectures`."""
    keyed_by_module: ClassVar[tuple[str, ...]] = (
        "rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern", "block_size_pattern",
        "target_svd_config",
    )  # fmt: skip
    lists_of_modules: ClassVar[tuple[str, ...]] = ()
    """Fields that are lists or patterns of adapted modules; `keyed_by_module`: that are dicts of them."""

    def own_targets(self, model: Any) -> list[str] | str | None:
        """The targets of a method that finds them in any `model` by itself, when the user names none.

        Raises:
            TargetError, ConfigError: the model has no place for the method.
        """
        return None

    def idle(self, model: Any, paths: Sequence[str]) -> Iterable[str]:
        """What of the method's own options has no effect on a `model` whose modules at `paths` are adapted."""
        return ()

    def companions(self) -> list[LayerConfig]:
        """Configs of other methods that are injected along, under the same adapter name."""
        return []

    def experts(self) -> Mapping[str, Place]:
        """Adapters that have to be on the model before this one: name -> where they are loaded from."""
        return {}

    def find_experts(self, places: Callable[[str], Place]) -> None:
        """Take the `places` of `experts` (name -> place) from the caller, because the config was read from a file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("it has no effect without layers_to_transform", where="layers_pattern",
                              got=self.layers_pattern)  # fmt: skip
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for key in ("layers_to_transform", "layers_pattern"):
                if getattr(self, key) is not None:
                    raise ConfigError("it cannot be combined with a pattern in target_modules", where=key,
                                      got=getattr(self, key), fix="put the numbers into the pattern")  # fmt: skip


_C = TypeVar("_C", bound=PeftConfig)


def _build(cls: type[_C], values: Mapping[str, Any], where: object) -> _C:
    names = {f.name: f for f in dataclasses.fields(cls) if f.init}
    extra = {k: v for k, v in values.items() if k not in names}
    if len(extra) > 100:  # each is compared with every field
        raise ConfigError("too many keys that are not known", where=where or cls.__name__, got=len(extra))
    for key in extra:
        typo = next((n for n in names if edit_distance(key, n) <= 2 and len(n) > 4 and n not in values), None)
        if typo:
            raise ConfigError("unknown key, probably a typing error", where=f"{where or cls.__name__}: {key}",
                              fix=f"did you mean {typo!r}?")  # fmt: skip
        if extra[key] and cls.foreign.get(key):
            raise ConfigError("this option of the reference is not available", where=f"{where or cls.__name__}: {key}",
                              got=extra[key])  # fmt: skip
    try:
        config = cls(**{k: v for k, v in values.items() if k in names})
    except ConfigError as error:
        if where is not None:
            error.where = f"{where}: {error.where}"
        raise
    config.extra = extra
    if unknown := sorted(k for k, v in extra.items() if v and k not in cls.foreign):
        warnings.warn(f"{where or cls.__name__}: keys not known to this version are kept but have no effect: "
                      f"{', '.join(unknown)} (written by peft {values.get('peft_version', 'unknown')})",
                      AfinaWarning, stacklevel=4)  # fmt: skip
    return config


__all__ = [
    "CONFIG_NAME", "FORMAT_VERSION", "LayerConfig", "Method", "PeftConfig", "PeftType", "TaskType", "bounded",
    "config_class", "extension", "method", "methods", "plain", "register",
]  # fmt: skip
