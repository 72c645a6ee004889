"""Measurements: `python -m benchmarks.NAME`; nothing here is part of the library."""

from __future__ import annotations

import os

# They compare with the real `peft`, often in one process.
os.environ.setdefault("AFINA_STAND_IN", "0")
