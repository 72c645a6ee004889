"""Configurations, the registry peft_type -> method, and `adapter_config.json`.

A config is data: reading one imports, fetches and opens nothing that it names.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from ..errors import AfinaWarning, ConfigError, did_you_mean
from .files.jsonfile import read_json_object, write_json
from .registry import Method, PeftType, first_use, methods, register
from .validate import validate_fields

if TYPE_CHECKING:
    from typing_extensions import Self

    from .hosts.routing import Place

CONFIG_NAME = "adapter_config.json"
FORMAT_VERSION = "0.21.2"
"""The release of the reference whose file format is written; stored as `peft_version`."""


class TaskType(str, Enum):
    """What the adapted model is used for."""

    SEQ_CLS = "SEQ_CLS"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    CAUSAL_LM = "CAUSAL_LM"
    TOKEN_CLS = "TOKEN_CLS"
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"


def bounded(
    default: Any,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A dataclass field whose number must lie in the given range."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    return field(default=default, metadata={"bounds": {k: v for k, v in bounds.items() if v is not None}})


def extension(default: Any = None) -> Any:
    """A field that the reference's format lacks: written only when it is set."""
    return field(default=default, metadata={"extension": True})


@dataclass(kw_only=True)
class PeftConfig:
    """What every method's configuration has.

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
    default_learning_rate: ClassVar[float] = 2e-4
    """Where to start with AdamW; methods differ by two orders of magnitude."""
    is_prompt_learning: ClassVar[bool] = False
    foreign: ClassVar[Mapping[str, bool]] = {}
    """Keys of the reference's format that are not available here: whether setting one changes the mathematics."""

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
        """Write `adapter_config.json` into a folder, creating it."""
        target = Path(save_directory)
        target.mkdir(parents=True, exist_ok=True)
        write_json(target / CONFIG_NAME, {**self.to_dict(), "peft_version": FORMAT_VERSION, **overrides})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: object = None) -> Self:
        """Build the config of the right class from a file's values.

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
        """The values of a JSON file, unchecked, as the reference returns them."""
        return read_json_object(Path(path))

    @classmethod
    def from_peft_type(cls, **kwargs: Any) -> PeftConfig:
        """Build the config that the keyword `peft_type` names."""
        return PeftConfig.from_dict(kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None, **kwargs: Any
    ) -> Self:
        """Read the config of a folder or hub repository; keyword arguments of the class override the file's values."""
        from .files.hub import locate

        path = locate(pretrained_model_name_or_path, CONFIG_NAME, subfolder=subfolder, **kwargs)
        values = read_json_object(path)
        # Fields given by the caller win over the file's: they are the caller's word.
        kind = config_class(str(values.get("peft_type", cls.method_type)), where=path)
        names = {f.name for f in dataclasses.fields(kind)}
        given = {k: v for k, v in kwargs.items() if k in names and k not in ("revision",)}
        return cls.from_dict({**values, **given}, where=path)

    def copy(self) -> Self:
        """An independent copy."""
        return copy.deepcopy(self)


@dataclass(kw_only=True)
class LayerConfig(PeftConfig):
    """A method that adapts chosen layers."""

    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = extension()
    layers_to_transform: list[int] | int | None = extension()
    layers_pattern: list[str] | str | None = extension()
    modules_to_save: list[str] | None = None

    default_targets: ClassVar[Mapping[str, list[str] | str]] = {}
    """model_type -> targets, where it differs from the common table of `core.architectures`."""

    def own_targets(self, model: Any) -> list[str] | str | None:
        """The targets of a method that finds them in any model by itself, when the user names none."""
        return None

    def companions(self) -> list[LayerConfig]:
        """Configs of other methods that are injected along, under the same adapter name."""
        return []

    def experts(self) -> Mapping[str, Place]:
        """Adapters that have to be on the model before this one: name -> where they are loaded from."""
        return {}

    def find_experts(self, places: Callable[[str], Place]) -> None:
        """Take the places of `experts` from the caller, because the config was read from a file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError(
                "it has no effect without layers_to_transform", where="layers_pattern", got=self.layers_pattern
            )
        if isinstance(self.target_modules, str) and self.target_modules != "all-linear":
            for key in ("layers_to_transform", "layers_pattern"):
                if getattr(self, key) is not None:
                    raise ConfigError(
                        "it cannot be combined with a pattern in target_modules", where=key, got=getattr(self, key),
                        fix="put the layer numbers into the pattern, or give target_modules as a list",
                    )  # fmt: skip


def method(config: PeftConfig) -> Method:
    """The method that a config belongs to."""
    return methods()[str(config.peft_type)]


def config_class(name: str, where: object = None) -> type[PeftConfig]:
    """The config class of a method, by its name in any case and with `-` or `_`.

    Raises:
        ConfigError: no such method; names the nearest.
    """
    key = name.upper().replace("-", "_")
    if key not in methods():
        hint = did_you_mean(key, methods())
        raise ConfigError(
            "unknown method", where=where or "peft_type", got=name, expected=", ".join(methods()), fix=hint
        )
    return methods()[key].config


def _build(cls: type[_C], values: Mapping[str, Any], where: object) -> _C:
    names = {f.name: f for f in dataclasses.fields(cls) if f.init}
    extra = {k: v for k, v in values.items() if k not in names}
    for key in extra:
        typo = next((n for n in names if _edit_distance(key, n) <= 2 and len(n) > 4 and n not in values), None)
        if typo:
            raise ConfigError("unknown key, probably a typing error", where=f"{where or cls.__name__}: {key}",
                              fix=f"did you mean {typo!r}?")  # fmt: skip
        if extra[key] and cls.foreign.get(key):
            raise ConfigError("this option of the reference is not available", where=f"{where or cls.__name__}: {key}",
                              got=str(extra[key])[:80])  # fmt: skip
    try:
        config = cls(**{k: v for k, v in values.items() if k in names})
    except ConfigError as error:
        if where is not None:
            error.where = f"{where}: {error.where}"
        raise
    config.extra = extra
    unknown = sorted(k for k, v in extra.items() if v and k not in cls.foreign)
    if unknown:
        warnings.warn(
            f"{where or cls.__name__}: keys not known to this version are kept but have no effect: "
            f"{', '.join(unknown)} (written by peft {values.get('peft_version', 'unknown')})",
            AfinaWarning, stacklevel=4,
        )  # fmt: skip
    return config


_C = TypeVar("_C", bound=PeftConfig)


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, str):
        return str.__str__(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(plain(v) for v in value)
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


def _edit_distance(a: str, b: str) -> int:
    """Levenshtein distance; 3 and more are not told apart."""
    if abs(len(a) - len(b)) > 2:
        return 3
    row = list(range(len(b) + 1))
    for i, ca in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, cb in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (ca != cb))
    return row[-1]


__all__ = [
    "CONFIG_NAME", "FORMAT_VERSION", "LayerConfig", "Method", "PeftConfig", "PeftType", "TaskType", "bounded",
    "config_class", "extension", "method", "methods", "plain", "register",
]  # fmt: skip
