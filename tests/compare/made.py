"""A comparison as `compare` returns it, without running anything."""

from __future__ import annotations

from typing import Any

NAMES = ("full", "lora", "dora", "ia3", "bottleneck", "prompt_tuning", "prefix_tuning", "last_layers")


def done(number: int, name: str, *, metric: str = "accuracy", best: str = "full") -> dict[str, Any]:
    mean = 0.93 - 0.01 * number if metric == "accuracy" else 0.5 + 0.05 * number
    difference = {"mean": -0.01 * number, "low": -0.01 * number - 0.02, "high": -0.01 * number + 0.015}
    return {
        "name": name, "method": name, "family": "reparam", "settings": {"r": 8, "target_modules": ["q", "v"]},
        "learning_rate": 2e-4, "learning_rate_from": "default", "search": None, "status": "done", "errors": {},
        "seeds": [0, 1, 2], "complete": True, "quality": {"mean": mean, "low": mean - 0.02, "high": mean + 0.02},
        "to_best": None if name == best else difference, "to_full": None if name == "full" else difference,
        "worse": number > 1, "trained": True, "rate_to_try": None,
        "by_seed": {"0": mean, "1": mean, "2": mean}, "loss": 0.2,
        "trainable": 10 ** (7 - number // 2),
        "share": 10.0**-number, "memory_mb": 300.0 + 40 * number, "cpu_s": 20.0, "wall_s": 30.0 + number,
        "size_bytes": 10 ** (8 - number // 2), "tokens": 1000, "forgetting": {"before": 3.0, "after": 3.1},
        "curves": {str(seed): [[step, 2.0 / step] for step in range(1, 41)] for seed in range(3)}, "device": "cpu",
    }  # fmt: skip


def failed(name: str, status: str, error: str) -> dict[str, Any]:
    return {"name": name, "method": name, "family": "selective", "settings": {}, "learning_rate": 1e-3,
            "learning_rate_from": "default", "search": None, "status": status, "errors": {"0": error}, "seeds": [],
            "complete": False}  # fmt: skip


def comparison(**changes: Any) -> dict[str, Any]:
    """Eight methods that were trained, one that was refused, one that crashed; names that HTML must not believe."""
    metric = changes.get("metric", "accuracy")
    rows = [done(i, name, metric=metric) for i, name in enumerate(NAMES)]
    rows += [failed("bitfit", "refused", "no layer has a bias <b>"), failed("loha", "crashed", "killed by SIGKILL")]
    return {
        "recipe": "tweets <script>", "overrides": [], "task": "causal_lm", "base_model": "some/model",
        "metric": metric, "higher_is_better": metric == "accuracy", "majority": 0.7, "seeds": [0, 1, 2], "steps": 40,
        "at_once": 1,
        "rows_per_step": 8, "train_rows": 320, "held_out_rows": 400, "tune": None, "best": "full",
        "recommended": "lora", "recommendation": "Take lora: cheap & good.", "rows": rows, "model": {"m": "0"},
        "versions": {"afina": "0.1.0", "torch": "2"},
        "machine": {"processor": "CPU", "cores": 2, "threads": 1, "gpu": None, "system": "Linux x86_64"}, **changes,
    }  # fmt: skip
