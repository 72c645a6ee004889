"""Sizes in words."""

from __future__ import annotations


def told_bytes(count: float) -> str:
    """Bytes in words: 41 KiB, 312 MiB, 1.9 GiB."""
    mib = count / 2**20
    if mib < 1:
        return f"{count / 1024:.0f} KiB"
    return f"{mib / 1024:.1f} GiB" if mib >= 1000 else f"{mib:.0f} MiB"


def told_seconds(seconds: float) -> str:
    """A time in words: 9 s, 4 min, 1 h 05 min."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
