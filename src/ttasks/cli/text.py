"""How things look in a terminal: hostile text made harmless, times, durations, states."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Final

from rich.console import Console
from rich.text import Text

from ttasks.events.status import RunStatus, TaskStatus

STYLES: Final = {
    "pending": "dim",
    "running": "cyan",
    "succeeded": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "blocked": "magenta",
    "interrupted": "bold yellow",
}
_JOINERS: Final = "\u200d\ufe0f"
ID_LENGTH: Final = 8
PIPE_WIDTH: Final = 160


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


def console(*, stderr: bool = False) -> Console:
    """Return where to print: texts are taken as they are, never as markup, and long lines are left whole."""
    stream = sys.stderr if stderr else sys.stdout
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)


def short(id_: str) -> str:
    """Return the end of an id: ids made at about the same time begin alike."""
    return id_[-ID_LENGTH:]


def state(status: TaskStatus | RunStatus | str) -> Text:
    """Return a status in its colour."""
    return Text(str(status), style=STYLES.get(str(status), ""))


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
