"""The command line: one file per command; the only place that prints.

Exit codes: 0 done; 2 the user's mistake, told in at most four lines; 1 a bug of ours, with its traceback; 130 stopped
with Ctrl-C. No module here imports torch before a command runs, so that `afina --help` is quick.
"""

from __future__ import annotations


def main() -> None:
    """Run the command line of this process."""
    from .app import run

    run()
