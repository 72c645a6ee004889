"""A model that several processes have written in parts (checkpoints of full fine-tuning under fsdp2), put together.

No process group is needed, and no weight is in memory as a whole: torch copies the parts from file to file.
"""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from typing import Any

from ..core.files import leftovers
from ..core.files.overwriting import refuse_occupied, refuse_overwriting
from ..core.files.unwritable import told_if_unwritable
from ..errors import CheckpointError
from ..train.report.checkpoints import fault_of
from .merged import publish

_PART = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_BESIDE = ("config.json", "generation_config.json", "chat_template.jinja", "*token*", "vocab*", "merges*", "*.model")
"""What a model's folder has beside weights."""


def parts(folder: Path) -> list[Path]:
    """The files that hold parts of a model; none in another folder."""
    return sorted(path for path in folder.glob("*.safetensors") if _PART.fullmatch(path.name))


def put_together(folder: Path, out: Path, *, overwrite: bool = False) -> int:
    """Write the model whose parts lie in a folder; how many tensors it has.

    Raises:
        CheckpointError: a part is missing or damaged, or `out` holds something or cannot be written.
        ConfigError: `out` holds the parts.
    """
    from safetensors import SafetensorError

    refuse_overwriting(out, {"the checkpoint": folder}, "OUT")
    is_model = (out / "config.json").is_file() and any(out.glob("*.safetensors"))
    refuse_occupied(out, "a model", is_model, overwrite)
    if (fault := fault_of(folder)) is not None:  # torch takes the parts that it finds for all
        raise CheckpointError("the checkpoint is not whole", where=folder, got=fault, fix="take another checkpoint")
    found = parts(folder)
    work = leftovers.room_beside(out, "the model")
    try:
        with told_if_unwritable(work, lambda: sum(path.stat().st_size for path in found)):
            count = _written(folder, work)
        for pattern in _BESIDE:
            for path in folder.glob(pattern):
                if path.suffix != ".safetensors":
                    shutil.copy2(path, work)
        publish(work, out)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError("the parts do not make a model", where=folder, got=str(error).splitlines()[0],
                              fix="take another checkpoint") from error  # fmt: skip
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return count


def _written(folder: Path, work: Path) -> int:
    """Put the parts together in `work`, and count what is there then.

    Raises:
        ValueError: parts of a tensor overlap, or leave something out.
    """
    from safetensors import safe_open
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from transformers.distributed import consolidate_distributed_checkpoint

    known: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    consolidate_distributed_checkpoint(str(folder), str(work))
    sizes: dict[str, int] = {}
    for path in work.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            sizes |= {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    parted = {name: sum(math.prod(chunk.sizes) for chunk in tensor.chunks) for name, tensor in known.items()}
    if odd := sorted(name for name in parted.keys() | sizes.keys() if sizes.get(name) != parted.get(name)):
        raise ValueError(f"{odd[0]} and {len(odd) - 1} more have {sizes.get(odd[0])} numbers, and their parts "
                         f"{parted.get(odd[0])}")  # fmt: skip
    return len(sizes)
