"""The environment that a target is installed in: this one, or another whose interpreter is named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MergeError

_PROGRAMS = Path(__file__).parent / "programs"
_LONGEST_S = 1800


@dataclass(frozen=True)
class Environment:
    """Where a target is run.

    Attributes:
        given: an interpreter of Python, or a folder with `node_modules`; None for this process's own interpreter.
    """

    given: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what is neither.

        Raises:
            ConfigError: it is neither.
        """
        if self.given is not None and not (self.given.is_file() or (self.given / "node_modules").is_dir()):
            raise ConfigError("neither an interpreter nor a folder with node_modules", where="--target",
                              got=self.given)  # fmt: skip

    def lacks(self, module: str, program: str) -> str | None:
        """Why a program cannot be run here; None if it can."""
        if program.endswith(".mjs"):
            there = self.given is not None and (self.given / "node_modules" / module).is_dir()
            if there and shutil.which("node") is None:
                return "node, which runs it, is not installed"
            return None if there else f"{module} is not installed (npm; --target FOLDER names where it is)"
        if self.given is not None and self.given.is_dir():
            return f"{module} is not installed in {self.given}"
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
        found = subprocess.run([self._python, "-c", code], capture_output=True, check=False, cwd=tempfile.gettempdir())
        return f"{module} is not installed (--target PYTHON names where it is)" if found.returncode else None

    @property
    def _python(self) -> str:
        return sys.executable if self.given is None else str(self.given.absolute())

    def run(self, program: str, task: dict[str, Any]) -> dict[str, Any]:
        """What a program says to a task.

        Raises:
            MergeError: it ended with an error, which is told.
        """
        with tempfile.TemporaryDirectory(prefix="afina-export-") as work:
            there, answer = Path(work) / "task.json", Path(work) / "answer.json"
            there.write_text(json.dumps(task, default=str), encoding="utf-8")
            file = _PROGRAMS / program
            words = [self._python, str(file)]
            if program.endswith(".mjs"):
                assert self.given is not None
                words = ["node", str(file), str(self.given.absolute())]
            try:
                done = subprocess.run([*words, str(there), str(answer)], capture_output=True, text=True, check=False,
                                      cwd=work, timeout=_LONGEST_S)  # fmt: skip
            except subprocess.TimeoutExpired as error:
                raise MergeError("the target did not answer", where=program, got=f"{_LONGEST_S} s",
                                 fix="nothing was kept") from error  # fmt: skip
            if done.returncode or not answer.is_file():
                said = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
                raise MergeError("the target cannot load what was written", where=program, fix="nothing was kept",
                                 got=next((x for x in reversed(said) if "Error" in x), (said or [""])[-1]))  # fmt: skip
            told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            return told
