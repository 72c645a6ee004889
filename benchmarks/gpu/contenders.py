"""Models with adapters as each of those compared makes them, from the same weights and the same start."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from .rows import ADDED, ALONE, CARRIED, FAST, GRAPHS, KERNEL, LENGTHS, LINEARS, RANK, Row

_NEEDS = MappingProxyType({"liger": "liger_kernel", "unsloth": "unsloth", "peft": "peft"})


def missing(name: str, row: Row, device: str) -> str:
    """Why someone cannot take part here; empty where they can."""
    for word, package in _NEEDS.items():
        if word in name and importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    if ("liger" in name or "unsloth" in name) and device != "cuda":
        return "it runs on GPUs only"
    return "bitsandbytes is not installed" if row.stored and importlib.util.find_spec("bitsandbytes") is None else ""


@contextmanager
def surroundings(name: str) -> Iterator[None]:
    """What holds while a contender is made and runs: liger's operations in transformers' Llama, put back afterwards."""
    if "liger" not in name:
        yield
        return
    from liger_kernel.transformers import apply_liger_kernel_to_llama
    from transformers.models.llama import modeling_llama as llama

    before, forward = dict(vars(llama)), llama.LlamaForCausalLM.forward
    apply_liger_kernel_to_llama(fused_linear_cross_entropy=True, cross_entropy=False)
    try:
        yield
    finally:
        vars(llama).update(before)
        llama.LlamaForCausalLM.forward = forward


def base(row: Row, device: str, tiny: bool) -> Any:
    """A Llama of the row's shape with random bfloat16 weights, made on its device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(LlamaConfig(**row.shape(tiny)))
    finally:
        torch.set_default_dtype(before)
    return _in_few_bits(model, row.stored, device) if row.stored else model


def _in_few_bits(model: Any, stored: str, device: str) -> Any:
    import bitsandbytes as bnb

    def layer_of(layer: nn.Linear) -> Any:
        sizes = layer.in_features, layer.out_features
        if stored == "int8":
            few = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=6.0, device="meta")
            few.weight = bnb.nn.Int8Params(layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
            return few
        few = bnb.nn.Linear4bit(*sizes, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16, device="meta")
        few.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
        return few

    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and name != "lm_head":
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer_of(layer).to(device))
            layer.weight = None
    model.is_quantized = True
    setattr(model, "is_loaded_in_8bit" if stored == "int8" else "is_loaded_in_4bit", True)
    return model


def adapted(name: str, row: Row, device: str, tiny: bool) -> tuple[Any, list[str]]:
    """A contender's model, ready to train, and what `speed_up` said of it."""
    model, said = base(row, device, tiny), []
    if row.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    if row.method != "full":
        library = importlib.import_module("peft" if name.startswith("peft") else "afina")
        model = _with_adapters(library, model, row)
    if name.startswith((FAST, ALONE)) or row.lengths:
        said = _sped_up(name, model, device)
    if row.method != "full":
        _same_start(model)
    if "compile" in name:
        model.forward = torch.compile(model.forward, mode="reduce-overhead" if name == GRAPHS else None)
    model.train(not row.adapters)
    for layer in model.modules():  # which on processors have no gradient in evaluation; else it is nothing to them
        if type(layer).__name__ == "Linear4bit":
            layer.train()
    return model, said


def _with_adapters(library: Any, model: Any, row: Row) -> Any:
    config = library.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS, task_type="CAUSAL_LM",
                                use_dora=row.method == "dora")  # fmt: skip
    out = library.get_peft_model(model, config)
    for number in range(1, row.batch if row.adapters else 1):
        out.add_adapter(str(number), config)
    for name, parameter in out.named_parameters():  # those of all adapters count, not of the active one alone
        parameter.requires_grad_("lora_" in name)
    return out


def _sped_up(name: str, model: Any, device: str) -> list[str]:
    from afina.devices.place import place
    from afina.kernels import speed
    from afina.kernels.cuda.flash import use_flash

    first = [use_flash(model, place(device), packed=True)] if name.startswith(LENGTHS) else []
    own, forced = speed.way, _way(name)
    try:
        speed.way = own if forced is None else lambda *_, **__: forced
        return first + speed.speed_up(model, keep_logits=name == FAST, replay=", replayed" in name)
    finally:
        speed.way = own


def _way(name: str) -> Any:
    """How a contender's updates reach the layers' outputs, where no trial is to choose."""
    from afina.kernels.updates.wide import ADD, CARRY, Way
    from afina.kernels.updates.wide_trial import candidates

    how = {ADDED: ADD, CARRIED: CARRY, KERNEL: list(candidates())[-1]}.get(name)
    return None if how is None else Way(how, how)


def _same_start(model: Any) -> None:
    """Small random numbers in all matrices that train, in an order of their names that is the same for all."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters(), key=lambda named: _by_parts(named[0])):
            if parameter.requires_grad and parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.02)


def _by_parts(name: str) -> list[str]:
    """A parameter's name as a key that is the same wherever a library puts its adapters' names."""
    return sorted(set(name.split(".")) - {"base_model", "model", "adapters", "weight"})


def unsloth(row: Row, folder: str, checkpointing: Any) -> Any:
    """Unsloth's model of weights in a folder. It has to be imported before transformers."""
    from unsloth import FastLanguageModel

    model, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=row.tokens, dtype=torch.bfloat16,
                                                 load_in_4bit=row.stored == "nf4")  # fmt: skip
    model = FastLanguageModel.get_peft_model(
        model, r=RANK, lora_alpha=RANK, lora_dropout=0, bias="none", target_modules=LINEARS,
        use_gradient_checkpointing=checkpointing,
    )  # fmt: skip
    _same_start(model)
    return model.train()
