"""A layer as a linear operator, whatever its kind and storage: read, write, apply.

The canonical weight of every kind is `(out, in, *kernel)`: a Linear's own layout, the transpose of transformers' Conv1D
and of an embedding (whose input is a one-hot row), `(experts, out, in)` for stacked experts.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ...errors import MergeError, NotAWeight
from .partitioned import shape_of
from .sharded import is_sharded, is_spread, whole


class BaseWeight:
    """The base layer that a host wraps, seen as `y = apply(x, weight, bias)`.

    Attributes:
        additive: `apply(x, W + D, b) == apply(x, W, b) + apply(x, D, None)`; false where the operator sits inside a
            larger computation (attention, experts).
        casts_input: the host may cast the input to the adapters' dtype.
        crosses: products with its weight meet those of other processes, so they are made by its own methods alone.
    """

    weight_name: ClassVar[str] = "weight"
    bias_name: ClassVar[str] = "bias"
    additive: ClassVar[bool] = True
    casts_input: ClassVar[bool] = True
    crosses: ClassVar[bool] = False
    kind: ClassVar[str] = "linear"
    has_bias: ClassVar[bool] = True

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @property
    def weight(self) -> nn.Parameter:
        """The stored weight, in the layer's own layout."""
        found = self.module._parameters.get(self.weight_name)
        return self.module.get_parameter(self.weight_name) if found is None else found

    @property
    def bias(self) -> nn.Parameter | None:
        """The stored bias, if any."""
        return self.module._parameters.get(self.bias_name)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the layer computes in."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weight lies."""
        return self.weight.device

    @property
    def shape(self) -> tuple[int, ...]:
        """The canonical weight's shape, known without reading it."""
        return tuple(self.canonical(torch.empty(shape_of(self.weight), device="meta")).shape)

    @property
    def out_features(self) -> int:
        """Output channels."""
        return self.shape[-2 if self.kind == "experts" else 0]

    @property
    def in_features(self) -> int:
        """Input channels (per group, for a grouped convolution)."""
        return self.shape[-1 if self.kind == "experts" else 1]

    @property
    def groups(self) -> int:
        """Groups of a convolution; 1 for all else."""
        return int(getattr(self.module, "groups", 1)) if self.kind == "conv" else 1

    @property
    def quantised(self) -> bool:
        """Whether the weight is stored in few bits: it is read dequantised, and not written to unless asked for."""
        return False

    def canonical(self, stored: Tensor) -> Tensor:
        """Stored layout to `(out, in, *kernel)`; a view."""
        return stored

    def stored(self, canonical: Tensor) -> Tensor:
        """The inverse of `canonical`."""
        return self.canonical(canonical)

    def read(self) -> tuple[Tensor, Tensor | None]:
        """`(weight, bias)` in canonical layout, dequantised, and whole where this process has a part of them.

        Raises:
            NotAWeight: the weight is stored in a form that is not known here.
        """
        if not self.weight.is_floating_point():
            raise NotAWeight("this kind of quantised weight cannot be read", where=type(self.module).__name__,
                             got=self.weight.dtype, expected="a floating-point weight")  # fmt: skip
        return self.canonical(whole(self.weight)), None if self.bias is None else whole(self.bias)

    def parameters(self) -> dict[str, nn.Parameter | None]:
        """The parameters that `replace` changes, to be kept for `restore`."""
        return {self.weight_name: self.weight, **({self.bias_name: self.bias} if self.has_bias else {})}

    def replace(self, weight: Tensor, bias: Tensor | None) -> None:
        """Put new frozen parameters in the place of the old, which stay as they are for whoever else holds them."""
        stored = self.stored(weight.detach()).to(self.weight.dtype).contiguous()
        new: dict[str, nn.Parameter | None] = {self.weight_name: nn.Parameter(stored, requires_grad=False)}
        if bias is not None and (self.bias is None or bias is not self.bias):
            new[self.bias_name] = nn.Parameter(bias.detach().to(self.weight.dtype).clone(), requires_grad=False)
        self.restore(new)

    def restore(self, parameters: dict[str, nn.Parameter | None]) -> None:
        """Put the given parameter objects in place."""
        for name, parameter in parameters.items():
            owner, _, leaf = name.rpartition(".")
            self.module.get_submodule(owner).register_parameter(leaf, parameter)

    def check_merge(self, requantise: bool) -> None:
        """Refuse to be written to, where that loses what is written.

        Raises:
            MergeError: the weight is quantised and `requantise` is false, or this process has a part of it.
        """
        if is_spread(self.module) or is_sharded(self.weight):
            raise MergeError("the weight is spread over processes", where=type(self.module).__name__,
                             fix="save the adapter, and merge it in one process")  # fmt: skip

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward."""
        return self.module(*args, **kwargs)

    @property
    def takes_keywords_only(self) -> bool:
        """Whether the layer's forward has no parameter that could be given by its place."""
        code = getattr(type(self.module).forward, "__code__", None)
        return code is not None and code.co_argcount == 1 and not code.co_flags & inspect.CO_VARARGS

    @property
    def swaps(self) -> bool:
        """Whether `apply` puts other parameters in the places of the module's own while it runs, so that nobody else
        may run it then."""
        return False

    def run_with(self, parameters: Mapping[str, nn.Parameter | None], *args: Any, **kwargs: Any) -> Any:
        """The layer's own forward with other parameters, as `parameters()` gives them."""
        own: dict[str, Any] = {n: p for n, p in parameters.items() if p is not None}
        # A parameter cannot be missing for one call only: nothing is added where there was none.
        own |= {n: torch.zeros_like(p) for n, p in self.parameters().items() if p is not None and n not in own}
        return self._run_with(own, args, kwargs)

    def _run_with(self, parameters: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.module._modules or torch.compiler.is_compiling():
            return functional_call(self.module, parameters, args, kwargs)
        # A module of its own, because other threads may be running this one.
        other = copy.copy(self.module)
        other._parameters = {**self.module._parameters, **parameters}
        return other(*args, **kwargs)

    def apply(self, x: Any, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """The layer's own operation with other (canonical) parameters."""
        return self.substitute(x, weight, bias, *args, **kwargs)

    def substitute(self, x: Any, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        """Run the module's own forward with its parameters replaced for this call."""
        parameters = {self.weight_name: self.stored(weight)}
        bias = torch.zeros_like(self.bias) if bias is None and self.bias is not None else bias
        if bias is not None:
            parameters[self.bias_name] = bias
        return self._run_with(parameters, (x, *args), kwargs)

    def norm_of_rows(self, rows: Tensor) -> Tensor:
        """The norms of a matrix's rows, (out, in) -> (out,)."""
        return torch.linalg.vector_norm(rows, dim=1)  # type: ignore[no-any-return]

    def low_rank(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """`apply(x, b @ a, None)` without forming the product; `a` is (r, in, *kernel), `b` is (out, r, *ones)."""
        raise NotAWeight("no factored form for this layer", where=type(self.module).__name__)


class LinearWeight(BaseWeight):
    """nn.Linear and what derives from it."""

    def run_with(self, parameters: Mapping[str, nn.Parameter | None], *args: Any, **kwargs: Any) -> Any:
        weight = parameters.get(self.weight_name)
        if type(self.module).forward is not nn.Linear.forward or weight is None:
            return super().run_with(parameters, *args, **kwargs)
        (x,) = (*args, *kwargs.values())
        return F.linear(x, weight, parameters.get(self.bias_name))

    def apply(self, x: Any, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        return F.linear(x, weight, bias)

    def low_rank(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return F.linear(F.linear(x, a), b)


class TransposedLinearWeight(LinearWeight):
    """transformers' Conv1D: a Linear whose weight is stored as (in, out)."""

    def canonical(self, stored: Tensor) -> Tensor:
        return stored.T


class ConvWeight(BaseWeight):
    """nn.Conv1d, Conv2d, Conv3d."""

    kind = "conv"

    @property
    def _is_plain(self) -> bool:
        return type(self.module).forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)

    def apply(self, x: Any, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        if not self._is_plain:
            return self.substitute(x, weight, bias, *args, **kwargs)
        return self.module._conv_forward(x, weight, bias)  # type: ignore[operator]

    def low_rank(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        # With groups, `a` sees every input channel and only `b` is grouped, as in the reference's files.
        if not self._is_plain:
            if self.groups > 1:
                raise NotAWeight("a grouped convolution with a forward of its own has no factored form",
                                 where=type(self.module).__name__)  # fmt: skip
            return self.substitute(x, (b.flatten(1) @ a.flatten(1)).view(b.shape[0], *a.shape[1:]), None)  # type: ignore[no-any-return]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[a.dim() - 3]
        conv: Any = self.module
        padding = conv.padding
        if conv.padding_mode != "zeros":
            x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
        return convolve(convolve(x, a, None, conv.stride, padding, conv.dilation), b, None, groups=conv.groups)


class EmbeddingWeight(BaseWeight):
    """nn.Embedding: canonical weight (dim, vocabulary), applied to one-hot rows given as indices."""

    kind = "embedding"
    has_bias = False
    casts_input = False

    def canonical(self, stored: Tensor) -> Tensor:
        return stored.T

    def _look_up(self, x: Tensor, rows: Tensor) -> Tensor:
        if type(self.module).forward is nn.Embedding.forward:
            return F.embedding(x, rows, padding_idx=self.module.padding_idx)  # type: ignore[arg-type]
        return self._run_with({self.weight_name: rows}, (x,), {})  # type: ignore[no-any-return]

    def apply(self, x: Any, weight: Tensor, bias: Tensor | None, *args: Any, **kwargs: Any) -> Any:
        out = self._look_up(x, weight.T)
        return out if bias is None else out + bias

    def low_rank(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        if not self.is_plain:
            return self._look_up(x, (b @ a).T)
        return self.scaled(F.linear(F.embedding(x, a.T), b))

    @property
    def is_plain(self) -> bool:
        """Whether the layer looks rows up and at most multiplies them with its `embed_scale`."""
        return type(self.module).forward is nn.Embedding.forward or hasattr(self.module, "embed_scale")

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows as the layer gives them out."""
        scale = getattr(self.module, "embed_scale", None)
        if scale is None or type(self.module).forward is nn.Embedding.forward:
            return rows
        return rows * (scale.to(rows.dtype) if isinstance(scale, Tensor) else scale)


def autocasts(x: Tensor) -> bool:
    """Whether autocast chooses dtypes where the tensor is; it knows no tensors without data ("meta")."""
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def in_own_dtype(module: Callable[..., Any], dtype: torch.dtype, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a module whose parameters have another dtype than the model around it.

    Floating tensors, also in tuples, go in in `dtype` and come out in that of `x`; all else stays as it is.
    """
    outside = x.dtype if isinstance(x, Tensor) and x.is_floating_point() else dtype
    if outside == dtype or autocasts(x):
        return module(x, *args, **kwargs)

    def to(value: Any, wanted: torch.dtype) -> Any:
        if isinstance(value, Tensor):
            return value.to(wanted) if value.is_floating_point() else value
        return tuple(to(v, wanted) for v in value) if type(value) is tuple else value

    moved = {name: to(value, dtype) for name, value in kwargs.items()}
    return to(module(to(x, dtype), *(to(a, dtype) for a in args), **moved), outside)
