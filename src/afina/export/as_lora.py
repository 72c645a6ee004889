"""A trained adapter of any method with a weight update as LoRA, for formats that hold nothing else."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from ..core.combine.low_rank_form import Retained
from ..core.model.peft_model import PeftModel
from ..errors import NotMergeable
from ..methods.reparam.lora_conversion import save_as_lora
from ..train.tasks.base import Trained


def as_lora(trained: Trained, rank: float) -> tuple[Trained, Retained]:
    """The same with the LoRA that comes nearest to it, and how much of the update that keeps.

    Args:
        trained: whose model is not to be used any more.
        rank: of the LoRA, or the share of ||ΔW||² to keep.

    Raises:
        NotMergeable: the method is no change of weights alone.
        ConfigError: neither a rank nor a share.
    """
    if not trained.is_adapter:
        raise NotMergeable("the whole model was trained, there is no adapter to convert", where=trained.folder)
    with tempfile.TemporaryDirectory(prefix="afina-lora-") as folder:
        retained = save_as_lora(folder, trained.model, rank, adapter_name=trained.model.active_adapter)
        model = PeftModel.from_pretrained(trained.model.unload(), Path(folder))
    return replace(trained, model=model.eval()), retained
