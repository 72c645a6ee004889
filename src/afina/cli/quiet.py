"""Remarks of other libraries on what nobody here could do otherwise: each one by itself, with the reason.

All else that they say is for the user and stays.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from logging import LogRecord, getLogger
from typing import Any, TextIO

from ..errors import AfinaWarning
from ..train.report import events

_LOGGED = (
    # transformers imports torchao wherever it is installed; these kernels are for other GPUs and torch versions.
    ("torchao", "Failed to load "),
    ("torchao", "Skipping import of cpp extensions"),
    # torchao on its own classes.
    ("torch.utils._pytree", "is now natively supported by torch.compile"),
    # An optional package that none of our extras brings.
    ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward"),
    # At every layer and step of a base that is not in float16; its inputs are cut to 8 bits in any case.
    ("bitsandbytes.autograd._functions", "MatMul8bitLt: inputs will be cast"),
    # The weights that are missing are told by `load_base`, all but those of a head that is meant to be fresh.
    ("transformers.modeling_utils", "LOAD REPORT"),
    # The tokenizer is the recipe's, and is saved with the adapter.
    ("transformers.trainer_utils", "The tokenizer has new PAD/BOS/EOS tokens"),
    # Checkpoints that are less than a second apart are put into order by their numbers.
    ("transformers.trainer_utils", "mtime may not be reliable"),
    # Of Whisper on its own way of writing: its settings have a longest answer already, and sounds need no mask.
    ("transformers.generation.utils", "Passing `generation_config` together with"),
    ("transformers.generation.utils", "Both `max_new_tokens`"),
    ("transformers.generation.utils", "The attention mask is not set"),
)
"""Logger, and a part of what it says."""
_WARNED: tuple[tuple[str, type[Warning]], ...] = (
    # TRL asks for it by its former name at every step.
    ("`is_gradient_checkpointing` is deprecated", FutureWarning),
    # diffusers on a name that its older releases know alone.
    ("`torch_dtype` is deprecated", FutureWarning),
    # torch on itself, when bitsandbytes compiles something.
    ("`torch.jit.script_method` is deprecated", DeprecationWarning),
)
"""How a warning begins, and its category."""


@dataclass(frozen=True)
class _Without:
    """Lets every record through but one."""

    remark: str

    def filter(self, record: LogRecord) -> bool:
        return self.remark not in record.getMessage()


def quiet_libraries(reporter: events.Reporter) -> None:
    """Keep the libraries' own bars and these remarks off the terminal; afina's warnings go to the reporter."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    for name, remark in _LOGGED:
        getLogger(name).addFilter(_Without(remark))
    for start, category in _WARNED:
        warnings.filterwarnings("ignore", message=start, category=category)
    default = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int,
        file: TextIO | None = None, line: str | None = None,
    ) -> Any:  # fmt: skip
        if issubclass(category, AfinaWarning):
            reporter.warn(str(message))
        else:
            default(message, category, filename, lineno, file, line)

    warnings.showwarning = show
