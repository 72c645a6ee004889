"""`python -m benchmarks.gpu [ROW ...] [--seconds N] [--device cpu --tiny] [--results FOLDER]`

Every row's contenders one after the other in one process (Unsloth in one of its own, because it changes transformers),
each with its loss and gradient norm beside its time. Keeps results/gpu.json and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
_LONG = 120
"""Seconds that a contender in a process of its own may take."""
_PACKAGES = ("torch", "triton", "transformers", "peft", "liger-kernel", "bitsandbytes", "unsloth", "afina")


def main(words: list[str] | None = None) -> None:
    given = _arguments(words)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    warnings.simplefilter("ignore")
    if given.unsloth:
        print("RESULT " + json.dumps(_unsloth(given.rows[0], given.tiny)))
        return
    import torch

    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device here; for a trial of the measuring itself: --device cpu --tiny")
    from .rows import WAYS
    from .ways import ways

    title = torch.cuda.get_device_name() if given.device == "cuda" else "processor"
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "device": title, "tiny": given.tiny,
                             "versions": _versions(), "rows": {}, "ways": [], "skipped": [],
                             "profile": None}  # fmt: skip
    began = time.monotonic()
    for name in given.rows:
        if time.monotonic() - began > given.seconds:
            found["skipped"].append(name)
            continue
        if name == WAYS:
            found["ways"] = ways(given.device, given.tiny)
        else:
            found["rows"][name] = _row(name, given.device, given.tiny, given.only)
        _write(found, given)
    found["profile"] = _slowest(found["rows"], given.device, given.tiny)
    _keep(found, given)


def _arguments(words: list[str] | None) -> argparse.Namespace:
    from .rows import NAMES

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=", ".join(NAMES))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="miniature models: shows that all runs, measures nothing")
    parser.add_argument("--seconds", type=float, help="no row is begun after these; 280, in miniature no limit")
    parser.add_argument("--results", type=Path, help="folder of gpu.json; in miniature nothing is kept without it")
    parser.add_argument("--only", action="append", default=[], metavar="WHO", help="a contender by name")
    parser.add_argument("--unsloth", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(words)
    given.rows = given.rows or list(NAMES)
    if given.seconds is None:
        given.seconds = float("inf") if given.tiny else 280
    if unknown := set(given.rows) - set(NAMES):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return given


def _versions() -> dict[str, str]:
    out = {}
    for name in _PACKAGES:
        try:
            out[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return out


def _row(name: str, device: str, tiny: bool, only: list[str]) -> dict[str, Any]:
    from .contenders import missing
    from .measure import floor, measured
    from .page import why as told
    from .rows import ROWS

    row = ROWS[name].tiny() if tiny else ROWS[name]
    out: dict[str, Any] = {"aim": row.aim, "contenders": {}}
    try:
        out["floor"] = floor(row, device, tiny)
    except Exception as error:  # of this row nothing can be said then; the others are still to be measured
        return {**out, "floor": {"why": told(error)}}
    for who in [w for w in row.contenders if not only or w in only]:
        why = missing(who, row, device)
        print(f"{name}: {who}{f': {why}' if why else ' ...'}", flush=True)
        if why:
            out["contenders"][who] = {"why": why}
        elif who == "unsloth":
            out["contenders"][who] = _apart(name, tiny)
        else:
            try:
                out["contenders"][who] = measured(who, row, device, tiny)
            except Exception as error:  # a peer may fail in any way; the others are still to be measured
                out["contenders"][who] = {"why": told(error)}
        print(json.dumps(out["contenders"][who]), flush=True)
    return out


def _apart(name: str, tiny: bool) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.gpu", name, "--unsloth", *(["--tiny"] if tiny else [])]
    try:
        done = subprocess.run(words, capture_output=True, text=True, cwd=RESULTS.parents[1], check=False, timeout=_LONG)
    except subprocess.TimeoutExpired:
        return {"why": f"took longer than {_LONG} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if lines:
        return dict(json.loads(lines[-1].removeprefix("RESULT ")))
    return {"why": (done.stderr.strip().splitlines() or ["no result"])[-1][:200]}


def _unsloth(name: str, tiny: bool) -> dict[str, Any]:
    import tempfile

    os.environ.update(UNSLOTH_DISABLE_STATISTICS="1", UNSLOTH_RETURN_LOGITS="0")
    import unsloth  # noqa: F401  before transformers

    from .contenders import base
    from .contenders import unsloth as made
    from .measure import batch, timed
    from .rows import ROWS
    from .words import tokenizer

    row = ROWS[name].tiny() if tiny else ROWS[name]
    with tempfile.TemporaryDirectory() as folder:
        base(row, "cuda", tiny).save_pretrained(folder)
        tokenizer(row.shape(tiny)["vocab_size"]).save_pretrained(folder)
        model = made(row, folder, "unsloth" if row.checkpointing else False)
        return timed(model, batch("unsloth", row, "cuda", tiny), row, "cuda")


def _slowest(rows: dict[str, Any], device: str, tiny: bool) -> dict[str, Any] | None:
    """The row in which the best of afina takes the most floors, by operation."""
    from .measure import profile
    from .page import why as told
    from .rows import ROWS

    ours = {}
    for name, row in rows.items():
        times = {who: c["ms"] / row["floor"]["ms"] for who, c in row["contenders"].items()
                 if who.startswith("afina") and "ms" in c}  # fmt: skip
        if times:
            who = min(times, key=lambda w: times[w])
            ours[name] = times[who], who
    if not ours:
        return None
    name = max(ours, key=lambda n: ours[n][0])
    row = ROWS[name].tiny() if tiny else ROWS[name]
    found: dict[str, Any] = {"row": name, "who": ours[name][1]}
    try:
        return {**found, "operations": profile(found["who"], row, device, tiny)}
    except Exception as error:  # what was measured is still to be printed
        return {**found, "why": told(error)}


def _keep(found: dict[str, Any], given: argparse.Namespace) -> None:
    from .page import page

    _write(found, given)
    print(page(found))


def _write(found: dict[str, Any], given: argparse.Namespace) -> None:
    """After every row, so that what was measured is there if the rest is cut off."""
    folder = given.results or (None if given.tiny else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
