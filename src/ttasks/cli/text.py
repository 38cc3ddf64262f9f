"""How things look in a terminal: where they are printed, and states in their colours."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import Final

from rich.cells import cell_len
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from ttasks.display import COLOUR, TAB, coloured, latest, looks_like, plain, printable
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
RESET: Final = "\x1b[0m"
SETTINGS_MAX: Final = 20
"""How many settings of colours that follow each other without a reset last beyond their line, the latest."""


def console(*, stderr: bool = False) -> Console:
    """Return where to print: texts are taken as they are, never as markup, and long lines are left whole."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True, width=width)


class Styler:
    """Puts texts into styles for a console, a hundred times as fast as printing them there."""

    def __init__(self, out: Console) -> None:
        self._colors = None if out.no_color else COLOR_SYSTEMS.get(out.color_system or "")

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


class Painter:
    """Makes lines that tasks printed fit for a console: with their colours where it shows any, and else as plain text.

    Each stream has its own colours: those that a line leaves set are ended with it, and set again on the next one.
    """

    def __init__(self, out: Console, tab: str = TAB) -> None:
        self._tab = tab
        self.paints = out.color_system is not None and not out.no_color
        self._styled = Styler(out)
        self._set: dict[Hashable, list[str]] = {}

    def line(self, source: Hashable, line: str, style: str, before: str = "| ") -> str:
        """Return the next line of a stream: what it says last, after `before`, in `style` where it has no colours.

        Args:
            source: which stream it is of.
            line: without its line end.
        """
        text = latest(line)
        if not self.paints:
            return before + plain(text, self._tab)
        if "\x1b" not in line and source not in self._set:
            return self._styled(before + printable(text, self._tab), style)
        self._follow(source, line[: len(line.rstrip("\r")) - len(text)])
        begun = "".join(self._set.get(source, ()))
        shown = coloured(text, self._tab)
        if not begun and not COLOUR.search(shown):
            return self._styled(before + shown, style)
        self._follow(source, shown)
        return self._styled(before, style) + begun + shown + RESET

    def whole(self, stream: str, line: str) -> str:
        """Return the next line of an attempt's stream, with nothing before it."""
        return self.line(stream, line, "red" if stream == "stderr" else "", "")

    def _follow(self, source: Hashable, text: str) -> None:
        """Take in which colours a text leaves set."""
        now = self._set.pop(source, [])
        for setting in COLOUR.findall(text):
            if setting in (RESET, "\x1b[m"):
                now = []
            else:
                now = [*([] if setting.startswith("\x1b[0;") else now[1 - SETTINGS_MAX :]), setting]
        if now:
            self._set[source] = now


def print_lines(out: Console, lines: Iterable[tuple[str, str]], before: str, tab: str = TAB) -> None:
    """Print lines of a task's output, each given with its stream, after `before`."""
    painter = Painter(out, tab)
    for stream, line in lines:
        out.file.write(painter.line(stream, line, "red" if stream == "stderr" else "", before) + "\n")


def state(status: TaskStatus | RunStatus | str) -> Text:
    """Return a status, or what an agent's call or request came to, in its colour."""
    return Text(str(status), style=STYLES.get(looks_like(str(status)), ""))
