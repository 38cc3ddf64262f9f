"""Where the bars of a timeline go: for each task how long it waited, its attempts, and the waits between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rich.text import Text

from ttasks.display import duration

WIDTH: Final = 1120
LABELS: Final = 200
RIGHT: Final = 24
ROW: Final = 22
TOP: Final = 26
NARROWEST: Final = 1.5
LABEL_CELLS: Final = 26
TICKS_MAX: Final = 8
_STEPS_S: Final = (
    *(step * 10**power for power in (-3, -2, -1) for step in (1, 2, 5)),
    *(1, 2, 5, 10, 15, 30),
    *(60 * minutes for minutes in (1, 2, 5, 10, 15, 30)),
    *(3600 * hours for hours in (1, 2, 3, 6, 12)),
    *(86400 * days for days in (1, 2, 7, 14, 28, 56, 112, 224, 448)),
)


@dataclass(frozen=True)
class Span:
    """A stretch of time of a task. `kind` is ``waiting``, ``retry`` (the wait before one) or a status."""

    kind: str
    begin: datetime
    end: datetime
    says: str


@dataclass(frozen=True)
class Line:
    """What is to be plotted of one task."""

    id: str
    label: str
    spans: Sequence[Span]
    is_critical: bool = False


@dataclass(frozen=True)
class Bar:
    """A span with coordinates in pixels."""

    kind: str
    x: float
    width: float
    says: str


@dataclass(frozen=True)
class Row:
    """A task with coordinates; `text` is as much of its label as has room."""

    line: Line
    y: float
    text: str
    bars: Sequence[Bar]


@dataclass(frozen=True)
class Timeline:
    """Rows in the order of their beginnings, and ticks: (x, what it says)."""

    width: float
    height: float
    rows: Sequence[Row]
    ticks: Sequence[tuple[float, str]]
    rows_left_out: int


def plot(lines: Sequence[Line], begin: datetime, end: datetime, rows_max: int) -> Timeline:
    """Return where to draw the first `rows_max` tasks that have spans, from `begin` to `end`."""
    seconds = max((end - begin).total_seconds(), 1e-3)
    scale = (WIDTH - LABELS - RIGHT) / seconds

    def x_of(at: datetime) -> float:
        return LABELS + min(max((at - begin).total_seconds(), 0), seconds) * scale

    shown = sorted((line for line in lines if line.spans), key=lambda line: line.spans[0].begin)
    rows = []
    for number, line in enumerate(shown[:rows_max]):
        text = Text(line.label)
        text.truncate(LABEL_CELLS, overflow="ellipsis")
        bars = [
            Bar(
                span.kind,
                round(x_of(span.begin), 1),
                round(max(x_of(span.end) - x_of(span.begin), NARROWEST), 1),
                span.says,
            )
            for span in line.spans
        ]
        rows.append(Row(line, TOP + number * ROW, text.plain, bars))
    step = next((step for step in _STEPS_S if seconds / step <= TICKS_MAX), seconds / TICKS_MAX)
    ticks = [(LABELS + number * step * scale, _tick(number * step)) for number in range(int(seconds / step) + 1)]
    return Timeline(WIDTH, TOP + len(rows) * ROW + 6, rows, ticks, len(shown) - len(rows))


def _tick(seconds: float) -> str:
    if not seconds:
        return "0"
    if seconds < 1:
        return f"{seconds * 1000:g} ms"
    if seconds < 60:
        return f"{seconds:g} s"
    if seconds < 86400:
        return duration(seconds).removesuffix(" 0 s").removesuffix(" 0 min")
    return f"{seconds / 86400:.3g} d"
