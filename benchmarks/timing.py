"""Side by side in one process: every round runs each contender once, in turn; CPU and wall time, minima and medians."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def interleaved(
    contenders: dict[str, Callable[[], object]], rounds: int, warm: bool = False
) -> dict[str, dict[str, float]]:
    """Seconds of CPU and wall time for each contender: minimum and median over the rounds, after one that warms up.

    Args:
        warm: they ran before.
    """
    cpu = {n: [] for n in contenders}
    wall = {n: [] for n in contenders}
    for number in range(int(warm), rounds + 1):
        for name, run in contenders.items():
            at_cpu, at_wall = time.process_time(), time.perf_counter()
            run()
            if number:
                cpu[name].append(time.process_time() - at_cpu)
                wall[name].append(time.perf_counter() - at_wall)
    return {
        n: {"cpu_min": min(cpu[n]), "cpu_median": statistics.median(cpu[n]), "wall_min": min(wall[n]),
            "wall_median": statistics.median(wall[n])}
        for n in contenders
    }  # fmt: skip


def machine() -> dict[str, object]:
    """Where and with what the numbers were taken."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), model)
    except OSError:
        pass
    names = ("torch", "transformers", "peft", "trl", "bitsandbytes", "afina")
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(),
            "versions": {n: version(n) for n in names}}  # fmt: skip


def child(module: str, *words: str) -> dict[str, object]:
    """Run `python -m benchmarks.MODULE WORDS` and read the JSON object on its last line."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{module}", *words], capture_output=True, text=True,
                          env=environment, cwd=Path(__file__).parents[1], check=False)  # fmt: skip
    lines = [x for x in done.stdout.splitlines() if x.startswith("RESULT ")]
    if not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no result"])[-1][:300]}
    return json.loads(lines[-1].removeprefix("RESULT "))


def peak_rss() -> int:
    """The largest resident set of this process so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def rss() -> int:
    """The resident set of this process now, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
