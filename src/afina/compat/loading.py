"""transformers' own `load_adapter`: it loads files by renaming their tensors, one by one.

Where that cannot be done, because a file holds computed tensors or such as all layers share, afina's own
loader takes the place of transformers' for that one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.config import PeftConfig
from ..core.disk.checkpoint import load_adapter, open_adapter
from ..core.disk.load_plan import LoadPlan
from ..core.disk.names import own_key, pieces, shared_piece
from ..core.files.tensorfile import check_finite
from ..core.hosts.adapter import Adapter
from ..core.hosts.replacement import Replacement
from ..core.hosts.tuner import set_requires_grad
from ..core.model import mapping

_TRANSFORMERS_LOADER = "_load_pretrained_model"
_LOADING = "loading_into"
"""On a config: the next injection with it is one that transformers loads a file into."""


def build_peft_weight_mapping(weight_conversions: Any, adapter_name: str, peft_config: Any = None) -> list[Any]:
    """How transformers' loader renames an adapter file's keys; each host adds the names of its own tensors."""
    from transformers.core_model_loading import WeightRenaming

    if peft_config is not None:
        vars(peft_config)[_LOADING] = adapter_name
    prefixes = (("base_model.model.model.", "model."), ("base_model.model.", ""))
    renamings = [c for c in weight_conversions or [] if isinstance(c, WeightRenaming)]
    return [*(WeightRenaming(source, target) for source, target in prefixes), *renamings]


def inject_adapter_in_model(
    peft_config: PeftConfig,
    model: nn.Module,
    adapter_name: str = "default",
    low_cpu_mem_usage: bool = False,
    state_dict: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """As `afina.inject_adapter_in_model`; if transformers is about to load a file that it cannot load by renaming
    tensors, this model's next load is done by afina."""
    loading = vars(peft_config).pop(_LOADING, None)
    out = mapping.inject_adapter_in_model(peft_config, model, adapter_name, low_cpu_mem_usage, state_dict)
    if peft_config.inference_mode:
        # Trained copies too, which transformers does not freeze, since they are no layers with adapters.
        set_requires_grad(model, [adapter_name], False)
    if loading == adapter_name and not _renamable(model, adapter_name):
        for piece in pieces(model, adapter_name):
            if isinstance(piece.owner, Adapter):
                piece.owner.loaded_whole = True
        vars(model)[_TRANSFORMERS_LOADER] = _Loader(adapter_name)
    return out


def _renamable(model: nn.Module, name: str) -> bool:
    if shared_piece(model, name) is not None:
        return False
    for adapter in (p.owner for p in pieces(model, name) if isinstance(p.owner, Adapter)):
        if isinstance(adapter, Replacement):
            return False  # transformers' loader would let it train
        own = adapter.state_dict(keep_vars=True)
        known = {id(tensor) for tensor in own.values()}
        if any(id(tensor) not in known for tensor in adapter.disk_state(own).values()):
            return False
    return True


class _Loader:
    """Stands for a model's `_load_pretrained_model` until it is called."""

    def __init__(self, adapter_name: str) -> None:
        self.adapter_name = adapter_name

    def __call__(self, model: Any, state_dict: Any, checkpoint_files: Sequence[str], *_: Any, **__: Any) -> Any:
        from transformers.utils.loading_report import LoadStateDictInfo

        del vars(model)[_TRANSFORMERS_LOADER]
        if state_dict is None:
            # The folder that transformers found: the config in it must be that of these weights.
            config = model.peft_config[self.adapter_name]
            load_adapter(model, self.adapter_name, open_adapter(Path(checkpoint_files[0]).parent, config=config))
        else:
            tensors = {own_key(k): t for k, t in state_dict.items()}
            check_finite(tensors, "state dict")
            whole = {k for k, t in tensors.items() if not t.is_floating_point()}
            plan = LoadPlan(model, self.adapter_name, {k: tuple(t.shape) for k, t in tensors.items()}, whole)
            plan.refuse_problems("state dict")
            plan.apply(tensors)
        return LoadStateDictInfo(set(), set(), set(), [], {}, set()), {}
