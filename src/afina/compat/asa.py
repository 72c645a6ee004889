"""What the reference hands to transformers' Trainer; imported when it is asked for, because it needs transformers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback


class AdamssAsaCallback(TrainerCallback):  # type: ignore[misc]
    """Calls the model's `update_and_allocate` after every step of the optimizer."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let AdaMSS choose which subspaces go on training."""
        update = getattr(kwargs.get("model"), "update_and_allocate", None)
        if update is not None:
            update(state.global_step)
