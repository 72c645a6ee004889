"""Optimizers made for LoRA: LoRA+, LoRA-FA, and Riemannian preconditioning.

Each is a torch optimizer with LoRA's parameters grouped, or their gradients transformed around each step. Only
parameters that require gradients are taken. With G = dLoss/dW and s the adapter's scale, dLoss/dA = s Bᵀ G and
dLoss/dB = s G Aᵀ.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from .core.hosts.host import hosts
from .errors import ConfigError
from .layerwise import layerwise_parameter_groups
from .methods.reparam.lora import Lora

_O = TypeVar("_O", bound=Optimizer)
_F = TypeVar("_F", bound="Lora | _Pair")
# The reference has a file for each: `afina.optimizers.lorafa` is looked for below this one.
__path__: list[str] = []


def create_loraplus_optimizer(
    model: nn.Module,
    optimizer_cls: type[_O],
    *,
    lr: float,
    loraplus_lr_ratio: float,
    loraplus_lr_embedding: float = 1e-6,
    loraplus_weight_decay: float | None = None,
    **kwargs: Any,
) -> _O:
    """LoRA+: B learns faster than A.

    Hayou, Ghosh, Yu 2024, arXiv 2402.12354. Groups: B (lr · ratio), LoRA on embeddings (`loraplus_lr_embedding`), the
    rest (lr). Biases and norms are not decayed. Unlike in the reference, those of `modules_to_save` learn at lr, not at
    lr · ratio, and a plain `weight_decay` is not ignored.

    Args:
        model: a model with LoRA adapters.
        optimizer_cls: the class to build.
        lr: the learning rate of A.
        loraplus_lr_ratio: that of B divided by that of A, at least 1; the paper takes 2^4.
        loraplus_lr_embedding: learning rate of LoRA on embeddings.
        loraplus_weight_decay: weight decay; `weight_decay` if None.
        **kwargs: for `optimizer_cls`.

    Raises:
        ConfigError: a ratio below 1, or the model has no trainable LoRA factor.
    """
    if not 1 <= loraplus_lr_ratio < math.inf:
        raise ConfigError("out of range", where="loraplus_lr_ratio", got=loraplus_lr_ratio, expected=">= 1")
    decay = kwargs.pop("weight_decay", 0.0) if loraplus_weight_decay is None else loraplus_weight_decay
    kwargs.pop("weight_decay", None)
    rates: dict[int, float] = {}
    for adapter in _trainable_lora(model):
        rates[id(adapter.lora_A)] = loraplus_lr_embedding if adapter.embedding else lr
        rates[id(adapter.lora_B)] = loraplus_lr_embedding if adapter.embedding else lr * loraplus_lr_ratio
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in _trainable(model):
        key = rates.get(id(parameter), lr), decay if parameter.dim() > 1 else 0.0
        groups.setdefault(key, []).append(parameter)
    make: Callable[..., _O] = optimizer_cls
    return make([{"params": p, "lr": rate, "weight_decay": d} for (rate, d), p in groups.items()], lr=lr, **kwargs)


def create_lorafa_optimizer(
    model: nn.Module,
    r: int,
    lora_alpha: float,
    lr: float,
    weight_decay: float = 0.0,
    use_rslora: bool | None = None,
) -> Optimizer:
    """LoRA-FA: A is frozen, and B's gradient is corrected so that W moves as close to its own gradient as A allows.

        dB <- (1/s²) dB (A Aᵀ)⁻¹,   then AdamW

    Zhang, Zhang, Shi, Chu, Li 2023, arXiv 2308.03303. A of linear layers is frozen by this call. AdamW is torch's.

    Raises:
        ConfigError: r, lora_alpha or use_rslora differ from the config (each layer knows its own scale), or the model
            has no trainable LoRA factor.
    """
    given = {"r": r, "lora_alpha": lora_alpha} | ({} if use_rslora is None else {"use_rslora": use_rslora})
    adapters = [a for a in _trainable_lora(model) if _is_matrix(a)]
    if adapters:
        for key, value in given.items():
            config = getattr(model, "active_peft_config", None)
            if config is not None and getattr(config, key) != value:
                raise ConfigError(
                    "differs from the adapter's config", where=key, got=value, expected=getattr(config, key)
                )
    for adapter in adapters:
        adapter.lora_A.requires_grad_(False)
    pairs = [(p, f"{n}.{w}", a.scaling) for n, a in enumerate(adapters) for w, p in
             (("lora_A", a.lora_A), ("lora_B", a.lora_B))]  # fmt: skip
    paired = {id(p) for p, _, _ in pairs}
    every = [*pairs, *((p, "other", 1.0) for p in _trainable(model) if id(p) not in paired)]
    parameters, names, scaling_factors = (list(column) for column in zip(*every, strict=True))
    group = {"params": parameters, "names": names, "scaling_factors": scaling_factors}
    return LoraFAOptimizer([group], lr=lr, weight_decay=weight_decay)


class LoraFAOptimizer(AdamW):
    """The optimizer that `create_lorafa_optimizer` makes.

    Args:
        params: groups with `params`, and for each of them one of `names` and one of `scaling_factors`. Where two that
            follow one another have "lora" in their names, they are A, which stays, and B.
        lr: the learning rate.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: of AdamW.
        correct_bias: of AdamW, which always does.

    Raises:
        ConfigError: a group without names or scaling factors, or `correct_bias` false.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
    ) -> None:
        if not correct_bias:
            raise ConfigError("AdamW's bias is always corrected here", where="correct_bias", got=correct_bias)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        for group in self.param_groups:
            missing = [k for k in ("names", "scaling_factors") if len(group.get(k, ())) != len(group["params"])]
            if missing:
                raise ConfigError("a group needs one of these for each of its parameters", where="params",
                                  expected=", ".join(missing), fix="use create_lorafa_optimizer")  # fmt: skip
        _around_steps(self, self._pairs(), self._corrected)

    def _pairs(self) -> list[_Pair]:
        out = []
        for group in self.param_groups:
            rows = zip(group["params"], group["names"], group["scaling_factors"], strict=True)
            lora = [(p, s) for p, name, s in rows if "lora" in name]
            out += [_Pair(A, B, s) for (A, _), (B, s) in zip(lora[::2], lora[1::2], strict=True)]
        return out

    @staticmethod
    def _corrected(pair: _Pair) -> Iterator[_Change]:
        A_RI = pair.lora_A.detach().float()
        yield _Change(pair.lora_B, _solve(A_RI @ A_RI.mT, 1e-8, pair.lora_B.grad, left=False) / pair.scaling**2)


class _Pair(NamedTuple):
    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float


def create_riemannian_optimizer(
    model: nn.Module, optimizer_cls: type[_O], *, lr: float, reg: float = 1e-2, **kwargs: Any
) -> _O:
    """Riemannian preconditioned LoRA: the step does not depend on how B A is split into B and A.

        dA <- (BᵀB + reg I)⁻¹ dA,   dB <- dB (A Aᵀ + reg I)⁻¹,   then `optimizer_cls`

    Zhang, Pilanci 2024, arXiv 2402.02347. Linear layers only; other parameters are updated as usual.

    Args:
        reg: damping, added to the diagonals.
        **kwargs: for `optimizer_cls`.

    Raises:
        ConfigError: reg <= 0, the model has no trainable LoRA factor, or `optimizer_cls` is no optimizer or one that
            computes gradients inside its steps (LBFGS).
    """
    if not 0 < reg < math.inf:
        raise ConfigError("out of range", where="reg", got=reg, expected="> 0")
    if not (isinstance(optimizer_cls, type) and issubclass(optimizer_cls, torch.optim.Optimizer)):
        raise ConfigError("not an optimizer of torch", where="optimizer_cls", got=optimizer_cls,
                          expected="a subclass of torch.optim.Optimizer")  # fmt: skip
    closure = inspect.signature(optimizer_cls.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ConfigError("the gradients would be computed inside the step", where="optimizer_cls",
                          got=optimizer_cls.__name__, fix="choose one whose step() needs no closure")  # fmt: skip
    adapters = [a for a in _trainable_lora(model) if _is_matrix(a)]
    make: Callable[..., _O] = optimizer_cls
    optimizer = make(_trainable(model), lr=lr, **kwargs)

    def preconditioned(adapter: Lora) -> Iterator[_Change]:
        A_RI, B_OR = adapter.lora_A.detach().float(), adapter.lora_B.detach().float()
        if adapter.lora_A.grad is not None:
            yield _Change(adapter.lora_A, _solve(B_OR.mT @ B_OR, reg, adapter.lora_A.grad, left=True))
        if adapter.lora_B.grad is not None:
            yield _Change(adapter.lora_B, _solve(A_RI @ A_RI.mT, reg, adapter.lora_B.grad, left=False))

    return _around_steps(optimizer, adapters, preconditioned)


class _Change(NamedTuple):
    parameter: nn.Parameter
    gradient: Tensor


def _around_steps(optimizer: _O, adapters: Sequence[_F], change: Callable[[_F], Iterator[_Change]]) -> _O:
    """Let the optimizer see changed gradients during its steps; afterwards `.grad` is what backward left."""
    kept: list[_Change] = []

    def before(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (args and args[-1] is not None and callable(args[-1])) or kwargs.get("closure") is not None:
            raise ConfigError("the gradients would be computed inside the step", where="closure",
                              fix="call backward first, then step() without a closure")  # fmt: skip
        for adapter in adapters:
            for parameter, gradient in change(adapter) if adapter.lora_B.grad is not None else ():
                assert parameter.grad is not None
                kept.append(_Change(parameter, parameter.grad))
                parameter.grad = gradient.to(parameter.dtype)

    def after(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for parameter, gradient in kept:
            parameter.grad = gradient
        kept.clear()

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer


def _solve(gram_RR: Tensor, damping: float, gradient: Tensor | None, *, left: bool) -> Tensor:
    """(gram + damping I)⁻¹ gradient, or gradient (gram + damping I)⁻¹, in float32."""
    assert gradient is not None
    damped = gram_RR + damping * torch.eye(len(gram_RR), device=gram_RR.device)
    solved: Tensor = torch.linalg.solve(damped, gradient.float(), left=left)
    return solved


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _trainable_lora(model: nn.Module) -> list[Lora]:
    """The LoRA adapters that train.

    Raises:
        ConfigError: there are none.
    """
    adapters = [host.adapter(name) for _, host in hosts(model) for name in host.names()]
    found = [a for a in adapters if isinstance(a, Lora) and a.lora_B.requires_grad]
    if not found:
        raise ConfigError("the model has no trainable LoRA adapter", where=type(model).__name__,
                          fix="call get_peft_model with a LoraConfig, or set_adapter, first")  # fmt: skip
    return found


def _is_matrix(adapter: Lora) -> bool:
    """Whether the factors are those of one plain matrix."""
    return (
        not adapter.embedding
        and adapter.lora_A.dim() == 2
        and adapter.lora_A.shape[0] == adapter.lora_B.shape[1] == adapter.r
    )


__all__ = [
    "LoraFAOptimizer", "create_lorafa_optimizer", "create_loraplus_optimizer", "create_riemannian_optimizer",
    "layerwise_parameter_groups",
]  # fmt: skip
