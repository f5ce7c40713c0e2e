"""Sizes, shares and durations as text for people."""

from __future__ import annotations


def clock(seconds: float) -> str:
    """Write seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def size(count: float) -> str:
    """Write bytes in decimal units: `512 B`, `83 kB`, `1.24 MB`."""
    if count < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.0f} kB" if count < 1e6 else f"{count / 1e6:.2f} MB"


def percent(share: float | None) -> str:
    """Write a share of 1 as a percentage with one decimal; a dash for None."""
    return "-" if share is None else f"{100 * share:.1f} %"
