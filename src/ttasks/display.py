"""How things are told to people, in a terminal as on a page: hostile text made harmless, times, durations, counts."""

from __future__ import annotations

from datetime import datetime
from typing import Final

_JOINERS: Final = "\u200d\ufe0f"
ID_LENGTH: Final = 8


def printable(text: str) -> str:
    """Return `text` with what could steer a terminal (escape codes, direction marks, lone surrogates) spelled out."""
    if text.isprintable():
        return text
    return "".join(
        ch
        if ch.isprintable() or ch in _JOINERS
        else "    "
        if ch == "\t"
        else ch.encode("unicode_escape").decode("ascii")
        for ch in text
    )


def short(id_: str) -> str:
    """Return the end of an id: ids made at about the same time begin alike."""
    return id_[-ID_LENGTH:]


def duration(seconds: float | None) -> str:
    """Return a duration as people say it: ``42 ms``, ``1.27 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(at: datetime | None) -> str:
    """Return a time in the reader's zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at is not None else ""


def count(number: int, noun: str) -> str:
    """Return ``1 task``, ``2 tasks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
