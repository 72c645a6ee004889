"""What is published, built twice and compared byte for byte: `python scripts/release.py OUT`, or `make release`.

Both builds are of the last commit as git has it, in folders of their own, at different times, with different umasks and
hash seeds; the time in their archives is the commit's. So anybody who has the commit can make the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUMS = "SHA256SUMS"
_DIFFERENT = (("0022", "0"), ("0077", "1"))
"""umask and hash seed of each build."""


def main(out: Path, *options: str) -> dict[str, str]:
    """Build into `out`; the files' SHA-256 by name, which stand in `SHA256SUMS` too.

    Args:
        options: for `python -m build`, such as `--no-isolation`.
    """
    with tempfile.TemporaryDirectory(prefix="afina-release-") as work:
        first, second = (built(Path(work) / str(n), *how, options) for n, how in enumerate(_DIFFERENT))
        different = [name for name in first.keys() | second.keys() if first.get(name) != second.get(name)]
        if different:
            sys.exit(f"two builds of one commit differ: {', '.join(sorted(different))}")
    out.mkdir(parents=True, exist_ok=True)
    sums = {}
    for name, data in sorted(first.items()):
        (out / name).write_bytes(data)
        sums[name] = hashlib.sha256(data).hexdigest()
    (out / SUMS).write_text("".join(f"{value}  {name}\n" for name, value in sums.items()), encoding="utf-8")
    return sums


def built(folder: Path, umask: str, seed: str, options: tuple[str, ...]) -> dict[str, bytes]:
    """The wheel and the source archive of the last commit, by their names."""
    source = folder / "source"
    source.mkdir(parents=True)
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(source, filter="data")
    command = [sys.executable, "-m", "build", "--outdir", str(folder / "dist"), *options, str(source)]
    own = {"SOURCE_DATE_EPOCH": committed(), "PYTHONHASHSEED": seed}
    subprocess.run(["sh", "-c", f'umask {umask}; exec "$@"', "sh", *command], check=True, cwd=folder,
                   stdout=subprocess.DEVNULL, env={**os.environ, **own})  # fmt: skip
    return {path.name: path.read_bytes() for path in (folder / "dist").iterdir()}


def committed() -> str:
    """Seconds since 1970 at which the last commit was made."""
    command = ["git", "log", "-1", "--format=%ct"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    for file, value in main(Path(sys.argv[1]), *sys.argv[2:]).items():
        print(f"{value}  {file}")
