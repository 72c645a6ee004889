"""ONNX Runtime: greedy text without a cache, the logits behind the prompts, or the outputs for whole inputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-not-found,import-untyped,unused-ignore]


def main(task: dict[str, Any]) -> dict[str, Any]:
    """The answer to a task."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(Path(task["folder"]) / task["file"], settings,
                                           providers=["CPUExecutionProvider"])  # fmt: skip
    known = {given.name: given.type for given in session.get_inputs()}

    def run(values: dict[str, Any]) -> Any:
        arrays = {n: np.array(v, np.float32 if "float" in known[n] else np.int64) for n, v in values.items()}
        return session.run(None, {n: a for n, a in arrays.items() if n in known})[0]

    out: dict[str, Any] = {"version": onnxruntime.__version__}
    if "probes" in task:
        return {**out, "outputs": [run(probe).tolist() for probe in task["probes"]]}
    ids, last = [], []
    for prompt in task["prompt_ids"]:
        new: list[int] = []
        for _ in range(task["new_tokens"]):
            row = [*prompt, *new]
            logits_V = run({"input_ids": [row], "attention_mask": [[1] * len(row)]})[0, -1]
            if not new:
                last.append(logits_V.tolist())
            new.append(int(logits_V.argmax()))
        ids.append(new)
    return {**out, "ids": ids, "last": last}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
