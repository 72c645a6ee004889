"""The adapter as mlx-lm has it: factors transposed, one rank and one scale, the layers by name."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from ...core.files.jsonfile import publish
from ...core.files.tensorfile import to_bytes
from ..contract import LOW_RANK, Format, Subject
from .gguf_names import rope
from .peft_servers import plain_lora

WEIGHTS = "adapters.safetensors"


class Mlx(Format):
    """For `mlx_lm.generate --model BASE --adapter-path FOLDER`; merged models are what `safetensors` writes."""

    name: ClassVar[str] = "mlx"
    target: ClassVar[str] = "mlx-lm"
    holds: ClassVar[str] = LOW_RANK
    module: ClassVar[str] = "mlx_lm"
    program: ClassVar[str] = "run_mlx.py"

    def write(self, subject: Subject, folder: Path) -> None:
        rank, alpha, tensors = plain_lora(subject.factors)
        written = {}
        for key, tensor in tensors.items():
            path, factor, _ = key.removeprefix("base_model.model.").rsplit(".", 2)
            written[f"{path}.{factor.lower()}"] = tensor.T.contiguous()
        # Whole paths: names within a layer would adapt layers that the adapter leaves alone.
        settings = {
            "fine_tune_type": "lora", "num_layers": 0,
            "lora_parameters": {"rank": rank, "scale": alpha / rank, "dropout": 0.0, "keys": sorted(subject.factors)},
        }  # fmt: skip
        text = json.dumps(settings, indent=2) + "\n"
        publish(folder, {WEIGHTS: to_bytes(written, {}), "adapter_config.json": text.encode()})

    def refusal(self, subject: Subject) -> str | None:
        found = super().refusal(subject)
        odd = [] if found else [p for p in subject.factors if not re.fullmatch(r"model\.layers\.\d+\..+|lm_head", p)]
        return f"{odd[0]}: mlx-lm has no layer of this name" if odd else found or self.shared_head(subject)

    def task(self, subject: Subject, folder: Path) -> dict[str, Any]:
        # mlx-lm takes the default where a config has this under the name that transformers 5 writes.
        theta = rope(subject.base.config).get("rope_theta")
        return {"base": subject.base.name_or_path, "adapter": folder,
                "settings": {} if theta is None else {"rope_theta": theta}}  # fmt: skip
