"""The contract that a method implements, and its ready kinds.

A host shows each adapter the layer as the earlier ones left it (`View`). A method writes `merged`, `forward` or both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ...errors import ConfigError, NotMergeable, TargetError
from ..layers.sharded import shared_like
from ..layers.weights import BaseWeight

if TYPE_CHECKING:
    from .view import View

_A = TypeVar("_A", bound="type[Adapter]")


@dataclass
class Site:
    """Where an adapter is put, and how its parameters are made.

    Attributes:
        base: the layer as an operator.
        name: the module's path in the plain model.
        dtype: dtype of the adapter's parameters.
        device: their device; `meta` when they will be loaded at once.
        shared: the method's parameters that all layers of one adapter share, if it has any.
        statistics: what a data-driven start gathered for this layer, if anything.
        inside_target: whether the layer is the output projection of an attention that is adapted itself.
        parameter: the module's parameter that is adapted alone, if one is.
    """

    base: BaseWeight
    name: str
    dtype: torch.dtype
    device: torch.device
    shared: nn.Module | None = None
    statistics: Any = None
    inside_target: bool = False
    parameter: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What patterns may match: the module's path, and that of its parameter if one is adapted alone."""
        return (self.name,) if self.parameter is None else (self.name, f"{self.name}.{self.parameter}")

    def empty(self, *shape: int) -> nn.Parameter:
        """An uninitialised trainable parameter."""
        return nn.Parameter(torch.empty(shape, dtype=self.dtype, device=self.device))

    def zeros(self, *shape: int) -> nn.Parameter:
        """A trainable parameter of zeros."""
        return nn.Parameter(torch.zeros(shape, dtype=self.dtype, device=self.device))

    def full(self, value: float, *shape: int) -> nn.Parameter:
        """A trainable parameter with every element `value`."""
        return nn.Parameter(torch.full(shape, value, dtype=self.dtype, device=self.device))

    def normal(self, std: float, *shape: int) -> nn.Parameter:
        """A trainable parameter from N(0, std^2)."""
        return nn.Parameter(torch.randn(shape, dtype=self.dtype, device=self.device) * std)

    def constant(self, value: Tensor) -> nn.Parameter:
        """A frozen parameter."""
        return nn.Parameter(value.to(device=self.device, dtype=self.dtype), requires_grad=False)


class Adapter(nn.Module):
    """Trained tensors on one layer, and how they change it.

    Attributes:
        kinds: the kinds of layer (`BaseWeight.kind`) that the method can adapt.
        disk_names: parameter -> its name in the file; those not listed have their own name.
        prefix: what the method's parameters' names begin with in the reference.
        reference_attributes: attributes that scripts read from the reference's layers as `layer.NAME[adapter]`.
    """

    kinds: ClassVar[frozenset[str]] = frozenset({"linear"})
    disk_names: ClassVar[Mapping[str, str]] = {}
    prefix: ClassVar[str] = ""
    reference_attributes: ClassVar[frozenset[str]] = frozenset()
    reference_slots: ClassVar[frozenset[str]] = frozenset()  # those that its layers have even where they hold nothing
    inputs: ClassVar[frozenset[str]] = frozenset()
    """Arguments of the model's forward that the method consumes; they are set as attributes of that name."""
    has_penalty: ClassVar[bool] = False
    shares_batch: ClassVar[bool] = True
    """Whether rows of a batch can go through it beside others; false where it looks beyond its rows or layer."""
    loaded_whole = False  # while its file is loaded as a whole, so that names of tensors need not be known
    steady: ClassVar[bool] = False
    """Whether what this very class does follows from tensors and settings alone, so that recorded steps stay right."""
    with_attention_output: ClassVar[bool] = True
    attention_note: ClassVar[str] = ""
    """What is said once when both projections of nn.MultiheadAttention are adapted (`with_attention_output`)."""
    rank_dims: Mapping[str, int] = MappingProxyType({})
    """Parameter -> its dimension that counts ranks, where more ranks of zeros change nothing (padding)."""
    variants: ClassVar[list[tuple[Callable[[Any], bool], type[Adapter]]]] = []

    def __init__(self, site: Site, config: Any) -> None:
        super().__init__()
        self.check_kind(site.name, site.base)

    @classmethod
    def check_kind(cls, name: str, base: BaseWeight) -> None:
        """Refuse a kind of layer that the method cannot adapt.

        Raises:
            TargetError: with the kinds that it can.
        """
        if base.kind not in cls.kinds:
            raise TargetError("this method cannot adapt this kind of layer", where=name,
                              got=type(base.module).__name__, expected=", ".join(sorted(cls.kinds)),
                              fix="leave it out with exclude_modules")  # fmt: skip

    def forward(self, inner: View, x: Any) -> Any:
        """The adapted layer's output for input `x`; `inner` is the layer as the earlier adapters left it."""
        return inner.apply(x, *self.merged(*inner.params()))

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The adapted layer's canonical weight and bias.

        Raises:
            NotMergeable: the method is no change of the weights.
        """
        raise NotMergeable("this method has no merged form", where=type(self).__name__)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the adapter computes in."""
        return next(self.parameters()).dtype

    def reads_as_is(self, base: BaseWeight, x: Any) -> bool:
        """Whether the method wants the layer's input as it comes, not in the adapter's dtype."""
        return False

    def share(self, module: nn.Module | None) -> None:
        """Keep hold of the parameters shared by all layers, which belong to the model."""
        object.__setattr__(self, "shared", module)

    def in_reference(self, name: str) -> Any:
        """What the reference's layers have under one of the `reference_attributes`."""
        return getattr(self, name)

    def cut_dims(self) -> Mapping[str, tuple[int | None, int | None]] | None:
        """On a layer cut over processes (tensor parallel): each own parameter -> its dimensions that count the layer's
        outputs and inputs. Who says so computes with parts of the layer and of these what it would with all, by the
        view's own operations. None: it is shown the whole layer, which costs gathering inputs, outputs or weight."""
        return None

    def hides(self, earlier: Adapter) -> bool:
        """Whether nothing is left of what `earlier`, another active adapter, does at this place."""
        return False

    def penalty(self) -> Tensor | None:
        """What the method adds to the training loss for this layer, if anything."""
        return None

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name."""
        frozen = self.frozen()
        return {n: p for n, p in self.named_parameters() if n not in frozen}

    def frozen(self) -> frozenset[str]:
        """Names of parameters that never train."""
        return frozenset()

    def disk_state(self, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is saved: name on disk -> tensor, from the adapter's own state (as `state_dict()` gives it)."""
        return {self.disk_names.get(n, n): t for n, t in own.items()}

    def disk_shapes(self, found: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """What a file must hold: name on disk -> shape; `found` is what it does hold, for methods with two forms."""
        return {n: tuple(t.shape) for n, t in self.disk_state(self.state_dict(keep_vars=True)).items()}

    def load_disk_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a file, whose names and shapes were checked."""
        disk = {own: self.disk_names.get(own, own) for own in self.state_dict()}
        self.assign({own: tensors[name] for own, name in disk.items()})

    def assign(self, own: Mapping[str, Tensor]) -> None:
        """Copy values into the adapter's own parameters and buffers; those on `meta` are replaced."""
        for name, value in own.items():
            owner, _, leaf = name.rpartition(".")
            module = self.get_submodule(owner)
            old = getattr(module, leaf)
            if not old.is_meta:
                with torch.no_grad():
                    old.copy_(shared_like(old, value))
            elif leaf in module._parameters:
                value = shared_like(old, value.to(old.dtype)).clone()
                module.register_parameter(leaf, nn.Parameter(value, old.requires_grad))
            else:
                module.register_buffer(leaf, value.to(old.dtype).clone())

    @classmethod
    def disk_config(cls, config: Any) -> dict[str, Any]:
        """The config as it is written, where the file's form differs from the one that trains."""
        return dict(config.to_dict())

    @classmethod
    def build_shared(cls, config: Any, layers: Mapping[str, BaseWeight], dtype: torch.dtype) -> nn.Module | None:
        """The parameters that all layers of one adapter share; their names on disk follow `disk_names` too."""
        return None

    @classmethod
    def idle(cls, config: Any, adapters: Sequence[Any]) -> Iterable[str]:
        """Options that changed none of these adapters, which were made by it."""
        return ()

    @classmethod
    def find_inputs(cls, config: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """`inputs` that the caller did not give, from the model's other arguments."""
        return {}

    def tied(self, site: Site) -> Adapter | None:
        """What adapts a module that shares this input embedding's weight; None: it keeps the base's weight."""
        return None

    @classmethod
    def variant(cls, applies: Callable[[Any], bool]) -> Callable[[_A], _A]:
        """Class decorator: the decorated class implements the configs for which `applies` is true."""

        def wrap(special: _A) -> _A:
            cls.variants.append((applies, special))
            return special

        return wrap

    @classmethod
    def for_config(cls, config: Any) -> type[Adapter]:
        """The class that implements a config: this one, or the variant whose condition holds."""
        found = [special for applies, special in cls.variants if applies(config)]
        if len(found) > 1:
            names = ", ".join(f.__name__ for f in found)
            raise ConfigError("options that exclude each other", where="config", got=names)
        return found[0] if found else cls

    @classmethod
    def check_model(cls, model: nn.Module, config: Any) -> None:
        """Refuse a model or config that the method cannot serve, before anything is changed."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "variants" not in cls.__dict__:
            cls.variants = []


class DeltaWeight(Adapter):
    """A method that adds ΔW: give `delta`; give `delta_forward` too where the factored product is cheaper."""

    kinds = frozenset({"linear", "conv", "embedding", "attention", "experts", "parameter"})

    dropout: nn.Module | None
    """Drops inputs of ΔW, not of the layer, if set; layers whose input is no vector are served without."""

    def __init__(self, site: Site, config: Any) -> None:
        super().__init__(site, config)
        self.__dict__["dropout"] = None  # a value in the class would hide the module that is set here

    def drop(self, rate: float) -> None:
        """Drop inputs of ΔW at this rate."""
        if rate:
            self.dropout = nn.Dropout(rate)

    def dropped(self, x: Any) -> Any:
        """The input of ΔW; indices of an embedding cannot be dropped."""
        return x if self.dropout is None or not x.is_floating_point() else self.dropout(x)

    def delta(self, weight: Tensor) -> Tensor:
        """ΔW in the canonical layout of `weight`, the layer's weight as the earlier adapters left it."""
        raise NotImplementedError

    def forward(self, inner: View, x: Any) -> Any:
        at_once = self.dropout is None and not inner.base.quantised  # quantised layers run by their own forward
        if at_once or not inner.base.additive or inner.base.kind == "embedding":
            return super().forward(inner, x)
        return inner(x) + inner.apply(self.dropped(x), self.delta(inner.params()[0]), None)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """`weight + ΔW`."""
        return weight + self.delta(weight), bias


class WeightTransform(Adapter):
    """A method that computes new weights from the old (rotations, decompositions): give `merged`."""

    kinds = frozenset({"linear", "conv", "embedding", "attention", "experts", "parameter"})


class Activation(Adapter):
    """A method that changes what goes into or comes out of a module: give `forward`."""

    kinds = frozenset({"linear", "conv", "embedding", "module"})
