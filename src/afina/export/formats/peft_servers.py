"""Adapters for servers that read PEFT's layout: plain LoRA on linear layers, one rank and one scaling for all layers.

Whatever low-rank form an adapter was trained in (a start pair, ranks and scalings by pattern, rank-stabilised scaling),
what is written is that plain form: smaller ranks are filled up with zeros, other scalings are folded into B.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.config import CONFIG_NAME
from ...core.disk.checkpoint import WEIGHTS_NAME
from ...core.files.jsonfile import plain, publish
from ...core.files.tensorfile import to_bytes
from ..contract import LOW_RANK, Comparison, Format, Subject
from ..factors import Factor
from ..said import held, say

BESIDE = 4
"""Prompts that go through a second adapter in the same batch."""

SERVED = (
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "gate_proj", "up_proj", "down_proj", "gate_up_proj",
    "fc1", "fc2", "c_attn", "c_proj", "c_fc", "query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h", "out_proj",
)  # fmt: skip
"""The layers' names that decoders have whose adapters these servers read."""


def plain_lora(factors: dict[str, Factor]) -> tuple[int, float, dict[str, Tensor]]:
    """(rank, alpha, tensors under PEFT's names): the same updates with one rank and one scaling."""
    rank, scaling = max(f.rank for f in factors.values()), next(iter(factors.values())).scaling
    tensors = {}
    for path, factor in factors.items():
        missing, ratio = rank - factor.rank, factor.scaling / scaling
        tensors[f"base_model.model.{path}.lora_A.weight"] = F.pad(factor.A, (0, 0, 0, missing)).contiguous()
        B = factor.B if ratio == 1 else factor.B * ratio
        tensors[f"base_model.model.{path}.lora_B.weight"] = F.pad(B, (0, missing)).contiguous()
    return rank, scaling * rank, tensors


class _Server(Format):
    """A server that reads PEFT's layout."""

    holds: ClassVar[str] = LOW_RANK
    largest: ClassVar[int]
    _beside = ""
    """The largest rank that it takes."""

    def refusal(self, subject: Subject) -> str | None:
        found = super().refusal(subject)
        if found is not None:
            return found
        rank = max(f.rank for f in subject.factors.values())
        if rank > self.largest:
            return f"{self.target} takes ranks up to {self.largest}, not {rank}"
        odd = [p for p in subject.factors if ".experts." in p or p.rpartition(".")[2] not in SERVED]
        return f"{odd[0]}: {self.target} adapts no layer of this name" if odd else None

    def write(self, subject: Subject, folder: Path) -> None:
        _write(subject, subject.factors, folder)

    def check(self, subject: Subject, folder: Path) -> Comparison:
        """The adapter, and beside it in the same batch one that changes nothing, which has to answer as the base."""
        if missing := subject.environment.lacks(self.module, self.program):
            return Comparison(self.target, missing=missing)
        with tempfile.TemporaryDirectory(prefix="afina-beside-") as beside:
            nothing = {p: Factor(f.A, torch.zeros_like(f.B), f.scaling) for p, f in subject.factors.items()}
            _write(subject, nothing, Path(beside))
            self._beside = beside
            return super().check(subject, folder)

    def task(self, subject: Subject, folder: Path) -> dict[str, Any]:
        rank = max(f.rank for f in subject.factors.values())
        return {"base": subject.base.name_or_path, "dtype": str(subject.base.dtype).removeprefix("torch."),
                "rank": rank, "adapter": folder, "beside": self._beside, "beside_prompts": BESIDE}  # fmt: skip

    def compared(self, subject: Subject, told: Mapping[str, Any]) -> Comparison:
        found = super().compared(subject, told)
        count = min(BESIDE, subject.prompts)
        with subject.trained.model.disable_adapter():
            base = say(subject.trained, count, subject.new_tokens)
            other = held(subject.trained.model, base, told["beside"])
        assert found.difference is not None
        what = f"{found.what}; {count} of them through a second adapter in the same batch, against the base"
        return replace(found, what=what, difference=max(found.difference, other.regret))


def _write(subject: Subject, factors: dict[str, Factor], folder: Path) -> None:
    rank, alpha, tensors = plain_lora(factors)
    like = subject.trained.model.peft_config[subject.name]
    values: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "bias": "none", "inference_mode": True,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": 0.0,
        "base_model_name_or_path": like.base_model_name_or_path, "revision": like.revision,
        "target_modules": sorted({p.rpartition(".")[2] for p in factors}),
    }  # fmt: skip
    text = json.dumps(plain(values), indent=2, sort_keys=True) + "\n"
    publish(folder, {WEIGHTS_NAME: to_bytes(tensors, {}), CONFIG_NAME: text.encode()})


class Vllm(_Server):
    """For vLLM: `vllm serve BASE --enable-lora --max-lora-rank R --lora-modules NAME=FOLDER`."""

    name: ClassVar[str] = "vllm"
    target: ClassVar[str] = "vLLM"
    module: ClassVar[str] = "vllm"
    program: ClassVar[str] = "run_vllm.py"
    largest: ClassVar[int] = 512


class Sglang(_Server):
    """For SGLang: `python -m sglang.launch_server --model-path BASE --lora-paths NAME=FOLDER`.

    Of a config it reads `r`, `lora_alpha` and the layers' names alone (0.5.23), so that patterns would be lost there.
    """

    name: ClassVar[str] = "sglang"
    target: ClassVar[str] = "SGLang"
    module: ClassVar[str] = "sglang"
    program: ClassVar[str] = ""
    largest: ClassVar[int] = 512

    def check(self, subject: Subject, folder: Path) -> Comparison:
        return Comparison(self.target, missing="SGLang was never run here, so that there is no program for it")
