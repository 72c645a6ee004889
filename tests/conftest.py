"""Tests compare with the real `peft` in their own process; those of the stand-in run scripts in others."""

from __future__ import annotations

import os

os.environ["AFINA_STAND_IN"] = "0"
