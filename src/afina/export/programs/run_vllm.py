"""vLLM: greedy text of an adapter, and of another one in the same batch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def main(task: dict[str, Any]) -> dict[str, Any]:
    """The answer to a task."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    import vllm  # type: ignore[import-not-found,unused-ignore]
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found,unused-ignore]
    from vllm.platforms import current_platform  # type: ignore[import-not-found,unused-ignore]

    ranks = (8, 16, 32, 64, 128, 256, 320, 512)
    longest = max(len(ids) for ids in task["prompt_ids"]) + task["new_tokens"] + 8
    model = vllm.LLM(
        task["base"], tokenizer=task.get("tokenizer") or task["base"], dtype=task["dtype"], enable_lora=True,
        max_loras=2, max_lora_rank=next(r for r in ranks if r >= task["rank"]),
        max_model_len=max(longest, 64), max_num_seqs=8, enforce_eager=True, disable_log_stats=True,
        **({"gpu_memory_utilization": 0.3} if current_platform.is_cpu() else {}),
    )  # fmt: skip
    loras = [LoRARequest(name, i + 1, task[name]) for i, name in enumerate(("adapter", "beside"))]
    sampling = vllm.SamplingParams(temperature=0, max_tokens=task["new_tokens"], ignore_eos=True, logprobs=1)
    asked = [(ids, loras[0]) for ids in task["prompt_ids"]]
    asked += [(ids, loras[1]) for ids in task["prompt_ids"][: task["beside_prompts"]]]
    prompts, requests = [{"prompt_token_ids": ids} for ids, _ in asked], [lora for _, lora in asked]
    made = [out.outputs[0] for out in model.generate(prompts, sampling, lora_request=requests, use_tqdm=False)]
    ids = [list(one.token_ids) for one in made]
    logprobs = [[step[token].logprob for token, step in zip(one.token_ids, one.logprobs, strict=True)] for one in made]
    count = len(task["prompt_ids"])
    return {"version": vllm.__version__, "ids": ids[:count], "logprobs": logprobs[:count], "beside": ids[count:]}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
