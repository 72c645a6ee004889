"""MLX: an adapter put on its base by mlx-lm, greedy text and the logits behind the prompts."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx  # type: ignore[import-not-found,unused-ignore]
import mlx_lm  # type: ignore[import-not-found,unused-ignore]
from mlx_lm.models.cache import make_prompt_cache  # type: ignore[import-not-found,unused-ignore]
from mlx_lm.utils import load_adapters, load_model  # type: ignore[import-not-found,unused-ignore]


def main(task: dict[str, Any]) -> dict[str, Any]:
    """The answer to a task."""
    mx.set_default_device(mx.cpu)
    model, _ = load_model(Path(task["base"]), model_config=task["settings"])
    model = load_adapters(model, task["adapter"])
    model.eval()
    ids, last = [], []
    for prompt in task["prompt_ids"]:
        cache = make_prompt_cache(model)
        if prompt[:-1]:  # without the head, which takes longer than all else
            model.model(mx.array([prompt[:-1]]), cache=cache)
            mx.eval([layer.state for layer in cache])
        new: list[int] = []
        for _ in range(task["new_tokens"]):
            logits_V = model(mx.array([[*prompt[-1:], *new][-1:]]), cache=cache)[0, -1].astype(mx.float32)
            if not new:
                last.append(logits_V.tolist())
            new.append(int(mx.argmax(logits_V)))
        ids.append(new)
    return {"version": f"{mlx_lm.__version__} (mlx {mx.__version__})", "ids": ids, "last": last}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
