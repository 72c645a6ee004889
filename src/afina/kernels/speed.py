"""`speed_up`: give a transformers model the fast paths that fit it, each tried against the model's own first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.caches import cache_in, given_cache
from ..core.layers.sharded import ready, runs_whole, units, whole_parts
from ..core.layers.weights import autocasts
from ..errors import AfinaError
from . import backends
from .compiled import compile_layers
from .cpu import attention, products
from .cpu.native import instructions, library, why_not
from .cuda.few_bits import share_buffer
from .cuda.graphs import Graphs
from .cuda.replay import Replays
from .cuda.wide_trial import way
from .gated import keep_less
from .joint import join
from .lora_linear import is_plain_linear
from .loss import has_triton, is_on_gpu, linear_cross_entropy, logits_and_loss, supervised_loss
from .norm import fuse_norms
from .rotary import fuse_rotary
from .swap import swap_forward


def speed_up(
    model: nn.Module, *, keep_logits: bool = True, steps: int = 0, tokens: int = 1024, replay: bool = False
) -> list[str]:
    """Make training steps of a causal language model cheaper, with the same results.

    Args:
        model: a `PeftModel` or a transformers model; changed in place.
        keep_logits: False lets a training forward with `labels` return the loss alone (`logits` is None): only
            supervised positions then reach the vocabulary projection, in chunks.
        steps: how many training steps will follow; decoder layers are compiled where that pays for its own time.
        tokens: how many tokens a step has, about.
        replay: on a GPU, without logits, record steps whose shapes come again as CUDA graphs (`cuda.replay`); each
            has one backward pass.

    Returns:
        A sentence for each fast path: that it is on, or why it is not.
    """
    get_base: Any = getattr(model, "get_base_model", None)
    base: Any = model if get_base is None else get_base()
    said = [_attention(base), _products(base)]
    ready(base)
    head: Any = getattr(base, "get_output_embeddings", lambda: None)()
    if hasattr(base, "get_decoder") and head is not None:
        said += _loss(base, keep_logits)
    else:
        said.append("loss: off, because this is no causal language model")
    dtype, device = _dtype(base), _device(base)
    if parts := sum(keep_less(part, dtype, device) for part in whole_parts(base)):
        said.append(f"feed-forward: {parts} parts keep half as much for the backward pass")
    if norms := sum(map(fuse_norms, whole_parts(base))):
        said.append(f"norms: {norms} layers in one pass over memory each way")
    if turned := fuse_rotary(base, dtype, device):
        said.append(f"rotary positions: {turned} layers in one pass over memory each way")
    if shared := share_buffer(base) if device.type == "cuda" else 0:
        said.append(f"dequantised weights: {shared} layers in 4 bits share one buffer")
    said += [*_native(base), _siblings(base)]
    native = device.type == "cpu" and library() is not None
    if steps and parts and norms and turned and native:
        return [*said, "compiled layers: off, because the native kernels leave them next to nothing to save"]
    said += [_replays(base, keep_logits)] if replay else []
    # What is compiled is not recorded, and the launches that it saves are saved already.
    return [*said, compile_layers(base, 0 if getattr(base, "replays", None) else steps, tokens)]


def _replays(base: Any, keep_logits: bool) -> str:
    device = _device(base)
    why = "" if device.type == "cuda" else "it takes CUDA graphs"
    why = why or ("the model lies in parts" if any(True for _ in units(base)) else "")
    why = why or ("the logits are wanted" if keep_logits else "")
    why = why or ("" if getattr(base, "loss_function", None) is not supervised_loss and is_head_plain(base) else
                  "the vocabulary projection is adapted, trained or cut over processes")  # fmt: skip
    if why:
        return f"replayed steps: off, because {why}"
    base.replays = Replays(base, Graphs(device))
    return "replayed steps: those whose shapes come again"


_NOT_ON = ("off", "left as it is", "torch's own", "one by one", "none are known")
"""How what is said of a fast path begins, where it is not on."""


def are_on(said: Sequence[str]) -> int:
    """How many of the fast paths that `speed_up` speaks of are on."""
    return sum(not sentence.partition(": ")[2].startswith(_NOT_ON) for sentence in said)


def _native(base: Any) -> list[str]:
    device, dtype = _device(base), _dtype(base)
    if device.type != "cpu":
        why = {name: backends.why_not(name, device, dtype) for name in backends.OPERATIONS}
        return [f"{name}: off, because {reason}" for name, reason in why.items() if reason]
    return [f"native kernels: on, in {instructions()}" if library() else f"native kernels: off, because {why_not()}"]


def _dtype(base: nn.Module) -> torch.dtype:
    """What the base computes in, by its first parameter, which is an embedding's."""
    first = next(iter(base.parameters()), None)
    return torch.float32 if first is None else first.dtype


def _device(base: nn.Module) -> torch.device:
    """Where the base is. On several devices none has it, and paths that are for one kind of device are left out."""
    there = {p.device for p in base.parameters()}
    return there.pop() if len(there) == 1 else torch.device("meta")


def _siblings(base: Any) -> str:
    if _dtype(base).itemsize != 2:
        return "layers that read the same input: one by one, because the base is not in 16 bits"
    # Asked only of GPUs: on processors nothing was gained by it (docs/speed-gpu.md).
    choose = way if _device(base).type == "cuda" and not any(True for _ in units(base)) else None
    try:
        count = join(base, lambda: _small_run(base), choose)
    except _NO_TOKENS:
        return "layers that read the same input: one by one, because the model takes more than tokens"
    if not count:
        return "layers that read the same input: none are known"
    asked = "" if choose is None else "; the first step asks whether the layers' own products carry the updates"
    return f"layers that read the same input: {count} sets share the updates' products{asked}"


def _products(base: nn.Module) -> str:
    linear = (m for part in whole_parts(base) for m in part.modules() if type(m) is nn.Linear)
    layers = [m for m in linear if runs_whole(m.weight) and m.weight.dtype == torch.float32
              and m.weight.device.type == "cpu"]  # fmt: skip
    if not layers or not products.ONEDNN:
        return "products: torch's own"
    for layer in layers:
        swap_forward(layer, _linear)
    return f"products: {len(layers)} float32 layers by oneDNN, which is the faster library on this processor"


def _linear(kind: type[nn.Module], self: Any, x: Tensor) -> Tensor:
    if x.dim() < 2 or not products.chooses_onednn(x.flatten(0, -2), self.weight) or autocasts(x):
        out: Tensor = kind.forward(self, x)
        return out
    return products.differentiable_linear(x, self.weight, self.bias)


def _attention(base: Any) -> str:
    now = getattr(getattr(base, "config", None), "_attn_implementation", None)
    if _device(base).type != "cpu":
        return f"attention: left as it is ({now}), because ours is for processors"
    if now != "sdpa" or not callable(getattr(base, "set_attn_implementation", None)):
        return f"attention: left as it is ({now})"
    attention.register()
    base.set_attn_implementation(attention.NAME)
    return "attention: by batched products of blocks"


def _loss(base: Any, keep_logits: bool) -> list[str]:
    own = getattr(base, "loss_function", None)
    if own is not supervised_loss and getattr(own, "__name__", "") != "ForCausalLMLoss":
        return [f"loss: left as it is ({getattr(own, '__name__', own)})"]
    if hasattr(type(base), "plain_class"):
        return ["loss: on already"]
    said = ["loss: on supervised positions only"]
    if is_on_gpu(base.get_output_embeddings().weight) and not has_triton():
        said.append("loss kernel: off, because Triton is not installed")
    why = _why_not_fused(base, keep_logits)
    if why:
        base.loss_function = supervised_loss
        return [*said, f"loss past the logits: off, because {why}"]
    swap_forward(base, _forward_with_logits if keep_logits else _forward_alone)
    if keep_logits:
        return [*said, "loss past the logits: no gradient of their size is held"]
    return [*said, "loss without logits: supervised positions only, in chunks"]


def _why_not_fused(base: Any, keep_logits: bool) -> str:
    if not is_head_plain(base):
        return "the vocabulary projection is adapted, trained or cut over processes"
    if keep_logits and _softcap(base):
        return "the logits are wanted and soft-capped"
    difference = _try(base, keep_logits)
    if difference is None:
        return "the model takes more than tokens"
    return f"loss or logits would differ by {difference:.3g}" if difference > 0.02 else ""


def _softcap(base: Any) -> float | None:
    return getattr(base.config, "final_logit_softcapping", None)


def is_head_plain(base: Any) -> bool:
    """Whether the vocabulary projection is a plain frozen product."""
    head = base.get_output_embeddings()
    return isinstance(head, nn.Linear) and is_plain_linear(head)


def _forward_with_logits(kind: type[nn.Module], self: Any, *args: Any, **kwargs: Any) -> Any:
    return _causal_forward(kind, self, True, args, **kwargs)


def _forward_alone(kind: type[nn.Module], self: Any, *args: Any, **kwargs: Any) -> Any:
    return _causal_forward(kind, self, False, args, **kwargs)


def _causal_forward(
    kind: type[nn.Module], self: Any, keep: bool, args: tuple[Any, ...], labels: Tensor | None = None, **kwargs: Any
) -> Any:
    wanted = kwargs.get("logits_to_keep")
    from transformers.modeling_outputs import CausalLMOutputWithPast

    if labels is None or not self.training or wanted not in (None, 0) or not is_head_plain(self):
        return kind.forward(self, *args, labels=labels, **kwargs)
    replays = None if keep else getattr(self, "replays", None)
    if replays is not None and len(args) < 2 and kwargs.get("return_dict") is None:
        inputs = {**({"input_ids": args[0]} if args else {}), **kwargs, "labels": labels}

        def run(given: dict[str, Any], room: int) -> Tensor:
            out: Tensor = fused_loss(self, (), given.pop("labels"), given, keep_logits=False, room=room).loss
            return out

        loss = replays.loss(run, inputs)
        if loss is not None:
            return CausalLMOutputWithPast(loss=loss)
    return fused_loss(self, args, labels, kwargs, keep)


def fused_loss(
    base: Any, args: tuple[Any, ...], labels: Tensor, kwargs: dict[str, Any], keep_logits: bool, room: int | None = None
) -> Any:
    """The forward pass with a loss and, if `keep_logits`, the logits. It fills no cache that nobody asked for.

    Args:
        room: as in `linear_cross_entropy`.
    """
    from transformers.modeling_outputs import CausalLMOutputWithPast

    count, shifted = kwargs.pop("num_items_in_batch", None), kwargs.pop("shift_labels", None)
    kwargs.pop("logits_to_keep", None)
    as_tuple = kwargs.pop("return_dict", None) is False
    if len(args) < 4 and given_cache(kwargs) is None:
        kwargs.setdefault("use_cache", False)
    out = base.get_decoder()(*args, **{**kwargs, "return_dict": True})
    if shifted is None:
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
    hidden, head, logits = out.last_hidden_state, base.get_output_embeddings(), None
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), shifted.reshape(-1).to(hidden.device)
    if keep_logits:
        loss, logits = logits_and_loss(flat, head.weight, targets, bias=head.bias, count=count)
        logits = logits.view(*hidden.shape[:-1], -1)
    else:
        loss = linear_cross_entropy(flat, head.weight, targets, bias=head.bias, softcap=_softcap(base), count=count,
                                    room=room)  # fmt: skip
    result = CausalLMOutputWithPast(loss=loss, logits=logits, hidden_states=out.hidden_states,
                                    attentions=out.attentions, **cache_in(out))  # fmt: skip
    return result.to_tuple() if as_tuple else result


_NO_TOKENS = (AfinaError, TypeError, ValueError, AttributeError, RuntimeError, NotImplementedError)
"""What a model raises that does not run on tokens alone."""


def _try(base: Any, keep_logits: bool) -> float | None:
    """The relative difference of both losses, or of the logits, on a few tokens; None where the fast one does not run.

    Logits too, because a scale of theirs hardly shows in the loss of a model that knows nothing yet.
    """

    def differences(ids: Tensor) -> list[Tensor]:
        plain = base(input_ids=ids, labels=ids)
        fast: Tensor = fused_loss(base, (), ids, {"input_ids": ids}, keep_logits).loss
        head, cap = base.get_output_embeddings(), _softcap(base)
        logits = head(base.get_decoder()(input_ids=ids).last_hidden_state)
        logits = logits if cap is None else cap * torch.tanh(logits / cap)
        return [_difference(fast, plain.loss), _difference(logits, plain.logits)]

    try:
        return max(float(x) for x in _small_run(base, differences))
    except _NO_TOKENS:
        return None


def _difference(found: Tensor, expected: Tensor) -> Tensor:
    return (found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-6)


@torch.no_grad()
def _small_run(base: Any, run: Callable[[Tensor], Any] | None = None) -> Any:
    """Run the model, or what is given, on eight tokens in evaluation mode."""
    weight, was = base.get_input_embeddings().weight, base.training
    ids = torch.arange(1, 9, device=weight.device).remainder(weight.shape[0])[None]
    base.eval()
    try:
        return base(input_ids=ids) if run is None else run(ids)
    finally:
        base.train(was)
