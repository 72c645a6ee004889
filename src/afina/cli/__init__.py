"""The command line: one file per command; the only place that prints.

Exit codes: 0 done; 2 the user's mistake, told in at most four lines; 1 a bug of ours, with its traceback; 130 stopped
with Ctrl-C, 143 with SIGTERM, 129 with SIGHUP. No module here imports torch before a command runs, so that
`afina --help` is quick.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line of this process."""
    from .bugs import report_bug

    sys.excepthook = report_bug  # before typer is imported, which keeps the hook that it finds
    # Threads that spin while they wait make torch up to four times slower wherever another process wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from .app import app

    app()
