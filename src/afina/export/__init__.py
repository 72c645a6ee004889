"""Ways out of afina: a trained adapter as a model that needs no afina."""

from __future__ import annotations
