"""How things look in a terminal: where they are printed, and states in their colours."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.table import Table
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
ROWS_DRAWN_MAX: Final = 500
"""How many rows rich draws, which folds what is too wide; it takes most of a millisecond for each."""
COLOR_SYSTEMS: Final = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}


def console(*, stderr: bool = False) -> Console:
    """Return where to print: texts are taken as they are, never as markup, and long lines are left whole."""
    stream = sys.stderr if stderr else sys.stdout
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)


class Styler:
    """Puts texts into styles for a console, a hundred times as fast as printing them there."""

    def __init__(self, out: Console) -> None:
        self._colors = COLOR_SYSTEMS.get(out.color_system or "")

    def __call__(self, text: str, style: str | Style) -> str:
        """Return a line, or some of one, in a style."""
        parsed = style if isinstance(style, Style) else Style.parse(style)
        return parsed.render(text, color_system=self._colors)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print rows below the names of their columns. Of a long table the lines are left whole, however wide they are."""
    out, drawn = console(), list(rows)
    if len(drawn) <= ROWS_DRAWN_MAX:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in drawn:
            table.add_row(*row)
        out.print(table)
        return
    styled = Styler(out)
    widths = [max(map(cell_len, map(str, cells))) for cells in zip(columns, *drawn, strict=True)]
    lines = [[Text(column, "dim") for column in columns], *drawn]
    for cells in lines:
        parts = [
            (styled(cell.plain, cell.style) if isinstance(cell, Text) else cell) + " " * (width - cell_len(str(cell)))
            for cell, width in zip(cells, widths, strict=True)
        ]
        out.file.write("  ".join(parts) + "\n")
    out.file.flush()


def state(status: TaskStatus | RunStatus | str) -> Text:
    """Return a status, or what an agent's call or request came to, in its colour."""
    return Text(str(status), style=STYLES.get(looks_like(str(status)), ""))
