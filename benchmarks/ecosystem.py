"""One row for each library that runs on afina in the place of `peft`: what ran, and whether the numbers are the same.

    python -m benchmarks.ecosystem [NAME ...]

Every scenario runs twice, each time in a process of its own: on `peft`, and on afina with `peft` not importable.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from .scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[1]
TOLERANCE = 1e-4


class Library:
    """What runs scenarios on `peft` or on afina."""

    def __init__(self, name: str) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.name = name
        self.process = subprocess.Popen([sys.executable, "-m", "benchmarks.scenarios", name], cwd=ROOT, text=True,
                                        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)  # fmt: skip

    def run(self, scenario: str) -> dict[str, float]:
        """The numbers of one scenario."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(scenario, file=self.process.stdin, flush=True)
        said = []
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
            if line == "FAILED\n":
                break
            said.append(line)
        raise RuntimeError(f"{scenario} on {self.name} failed:\n{''.join(said)[-2000:]}")

    def close(self) -> None:
        """End the process; there is nothing that it keeps."""
        self.process.kill()
        self.process.communicate()


def run(scenario: str, name: str) -> dict[str, float]:
    """The numbers of one scenario on one library, in a process of its own."""
    library = Library(name)
    try:
        return library.run(scenario)
    finally:
        library.close()


def largest_difference(ours: dict[str, float], theirs: dict[str, float]) -> float:
    """The largest difference, relative to the reference's value where that is above 1."""
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"other numbers were reported: {sorted(ours.keys() ^ theirs.keys())}")
    return max(abs(ours[k] - theirs[k]) / max(abs(theirs[k]), 1.0) for k in theirs)


def library_of(name: str) -> str:
    first = name.split(".")[0].split()[0]
    return f"{first} {version(first)}"


def main() -> int:
    wanted = sys.argv[1:] or list(SCENARIOS)
    print(f"peft {version('peft')}; same: every number within {TOLERANCE} (relative above 1)\n")
    print(f"| {'integration':<34} | {'library':<30} | numbers | largest difference | same |")
    print(f"|{'-' * 36}|{'-' * 32}|--------:|-------------------:|------|")
    failed, peft, afina = 0, Library("peft"), Library("afina")
    for name in wanted:
        theirs, ours = peft.run(name), afina.run(name)
        difference = largest_difference(ours, theirs)
        failed += difference > TOLERANCE
        answer = "yes" if difference <= TOLERANCE else "NO"
        print(
            f"| {name:<34} | {library_of(name):<30} | {len(theirs):>7} | {difference:>18.1e} | {answer:<4} |",
            flush=True,
        )
    peft.close()
    afina.close()
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
