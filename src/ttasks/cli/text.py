"""How things look in a terminal: where they are printed, and states in their colours."""

from __future__ import annotations

import sys
from typing import Final

from rich.console import Console
from rich.text import Text

from ttasks.display import looks_like
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
PIPE_WIDTH: Final = 160


def console(*, stderr: bool = False) -> Console:
    """Return where to print: texts are taken as they are, never as markup, and long lines are left whole."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)


def state(status: TaskStatus | RunStatus | str) -> Text:
    """Return a status, or what an agent's call or request came to, in its colour."""
    return Text(str(status), style=STYLES.get(looks_like(str(status)), ""))
