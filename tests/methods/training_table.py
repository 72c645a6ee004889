"""How far every method must lower the loss on the small task of `test_training.py`.

A method without a row trains with its own defaults, `SCALE` times its default learning rate, and must reach `MARGIN`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCALE = 10.0
"""Times the default learning rate, which is made for millions of parameters and thousands of steps, not for 60."""
MARGIN = 1.2
"""How far below the frozen model's loss (1.4, that of a guess among four answers), in nats."""


@dataclass(frozen=True)
class Trains:
    """One method on the small task.

    Attributes:
        options: keyword arguments of its config, where its defaults are made for larger models.
        scale: times its default learning rate.
        margin: how far below the frozen model's loss it must come.
        inputs: further arguments of the model's forward: name -> value for every row.
        experts: the tasks for which LoRAs are trained beforehand, to be routed among.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    scale: float = SCALE
    margin: float = MARGIN
    inputs: Mapping[str, int] = field(default_factory=dict)
    experts: tuple[int, ...] = ()


ROWS: Mapping[str, Trains] = {
    "ADALORA": Trains({"init_r": 6, "target_r": 3, "total_step": 60, "tfinal": 10}),
    "ADAMSS": Trains({"r": 32, "subspace_rank": 4}),
    "ADAPTION_PROMPT": Trains({"adapter_len": 4, "adapter_layers": 2}),
    "C3A": Trains({"block_size": 16}),
    "CPT": Trains({"cpt_token_ids": [1, 2, 3], "opt_projection_epsilon": 5.0, "opt_projection_format_epsilon": 5.0}),
    "FOURIERFT": Trains({"n_frequency": 200}),
    "MULTITASK_PROMPT_TUNING": Trains({"num_tasks": 2}, inputs={"task_ids": 1}),
    "OSF": Trains(scale=100.0),
    "POLY": Trains({"n_tasks": 2}, inputs={"task_ids": 1}),
    # 0.5 % of a layer of 64 · 64 are 20 weights.
    "SPARSE": Trains({"density": 0.05}),
    # It trains the largest weights only, which this task does not ask for.
    "SUPERTUNING": Trains(scale=30.0, margin=0.6),
    "TINYLORA": Trains({"r": 16}),
    "TRAINABLE_TOKENS": Trains({"token_indices": [36]}),
    "VBLORA": Trains({"num_vectors": 16, "vector_length": 16}),
    "WAVEFT": Trains({"n_frequency": 500}, scale=2.0, margin=1.0),
    # Half of each expert, before any training, comes to a loss of .25: not enough.
    "XLORA": Trains(experts=(0, 2)),
}

VARIANTS: Mapping[str, Trains] = {
    "alora": Trains({"alora_invocation_tokens": [36]}),
    "bdlora": Trains(
        {"use_bdlora": {"target_modules_bd_a": ["q_proj"], "target_modules_bd_b": ["v_proj"], "nblocks": 2}}
    ),
    "dora": Trains({"use_dora": True}),
    "kasa": Trains({"kasa_config": {}}),
    "lora-bias": Trains({"lora_bias": True}),
    "lora-with-all-biases": Trains({"bias": "all"}),
    "mica": Trains({"init_lora_weights": "mica"}),
    "monteclora": Trains({"monteclora_config": {}}),
    "olora": Trains({"init_lora_weights": "olora"}),
    "orthogonal": Trains({"init_lora_weights": "orthogonal"}),
    "pissa": Trains({"init_lora_weights": "pissa"}),
    "qalora": Trains({"use_qalora": True, "qalora_group_size": 4}),
    "rslora": Trains({"use_rslora": True}),
    "velora": Trains({"velora_config": {}}),
}
"""LoRA's own: rows of options, each held to the same."""
