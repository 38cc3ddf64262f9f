"""Saying what happens as it happens: a line for each event, and below them what is printed of lines that go on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Final, Self

from rich.text import Text

from ttasks import clock
from ttasks.cli.text import STYLES, Painter, Styler, console
from ttasks.clock import monotonic_s
from ttasks.display import duration, latest, plain, printable, why_of_result
from ttasks.model.event import TaskEvent, TaskEventType
from ttasks.model.result import is_read_when_asked

REDRAW_S: Final = 0.1
ROWS_MAX: Final = 8
"""How many lines that go on are shown at a time."""
ROW_CHARACTERS_MAX: Final = 1_000
"""How much of such a line is looked at: more than any window shows of it."""
BAR_FIRST_S: Final = 1.0
BAR_LAST_S: Final = 30.0
"""How long after the one before a pipe gets the next state of a line that is overwritten: at first, and in the end."""
ERASE: Final = "\x1b[J"
"""ECMA-48, 8.3.39: erases from the cursor, which waits where the first row begins, to the end of the screen."""

Key = tuple[str, str]
"""A task's id and one of its streams."""


@dataclass
class _Bar:
    """What a line says that goes on, and was overwritten: its latest state, and when a pipe gets the next one."""

    at: datetime
    said: str
    shown: str
    due_s: float
    wait_s: float = BAR_FIRST_S
    is_printed: bool = False


class Reporter:
    """Prints each event on a line of its own, whichever thread it comes from; to be entered while tasks run.

    On a terminal the lines that tasks have begun to print, and the latest states of their progress bars, stand below
    all others and are drawn anew as they change. Anything else gets a bar as a line now and then, and its last state.

    Args:
        names: those of tasks, by id.
        unfinished: returns what a task has printed of lines that have no end yet, by stream.
    """

    def __init__(self, names: Mapping[str, str], unfinished: Callable[[str], Mapping[str, str]]) -> None:
        self._out = console()
        self._styled = Styler(self._out)
        self._painter = Painter(self._out)
        self._unfinished = unfinished
        self._lock = threading.Lock()
        width = min(max(map(len, names.values()), default=0), 30)
        self._plain_names = {task_id: name.ljust(width) for task_id, name in names.items()}
        self._names = {task_id: self._styled(name, "bold") for task_id, name in self._plain_names.items()}
        self._bars: dict[Key, _Bar] = {}
        self._is_live = self._out.file.isatty() and not self._out.is_dumb_terminal
        self._running: dict[str, None] = {}
        self._rows: dict[Key, tuple[str, str]] = {}
        self._drawn, self._drawn_of = "", self._rows
        self._over = threading.Event()
        self._redrawing = threading.Thread(target=self._redraw_until_over, name="ttasks-redraw", daemon=True)

    def __enter__(self) -> Self:
        if self._is_live:
            self._redrawing.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._is_live:
            self._redrawing.join()
        with self._lock:
            self._running.clear()
            for task_id in {task_id: None for task_id, _ in self._bars}:
                self._finish_bars(task_id)
            self._write("")

    def __call__(self, event: TaskEvent) -> None:
        """Print one event."""
        with self._lock:
            if event.type is TaskEventType.OUTPUT:
                self._output(event)
                return
            if event.type is TaskEventType.PROGRESS:
                percent = f"{event.progress_percent:g} % " if event.progress_percent is not None else ""
                text, style = "… " + percent + printable(event.progress_message or ""), "cyan"
            elif event.type is TaskEventType.STARTED:
                self._running[event.task_id] = None
                again = f" (attempt {event.task.attempts})" if event.task.attempts > 1 else ""
                text, style = f"started{again}", "bold"
            else:
                self._running.pop(event.task_id, None)
                self._finish_bars(event.task_id)
                text, style = self._end(event), STYLES.get(str(event.type), "bold red")
            self._line(event.task_id, event.timestamp, self._styled(text, style))

    def _end(self, event: TaskEvent) -> str:
        text, result = str(event.type).replace("_", " "), event.task.result
        if result is not None and event.type is not TaskEventType.BLOCKED:
            heard = "; last heard of" if event.type is TaskEventType.INTERRUPTED else ""
            text += f"{heard} after {duration(result.duration)}"
        if event.type in (TaskEventType.FAILED, TaskEventType.PERSISTENCE_FAILED):
            # Of a long error the handle has the end; all of it would have to be read.
            error = event.task._view.error if is_read_when_asked(event, "error") else event.error
            text += f": {why_of_result(error, result if event.type is TaskEventType.FAILED else None)}"
            due = event.task._view.retry_due_at
            if event.type is TaskEventType.FAILED and due is not None:
                text += f"; trying again in {duration(max((due - event.timestamp).total_seconds(), 0))}"
        return text

    # --- lines, and what goes on below them; all of it with the lock held ---------------------------------------------

    def _output(self, event: TaskEvent) -> None:
        chunk, stream = event.output_chunk or "", event.output_stream or ""
        key, line = (event.task_id, stream), chunk.rstrip("\r\n")
        if chunk.endswith("\r"):
            if line:
                self._overwrite(key, event.timestamp, line)
            return
        bar = self._bars.pop(key, None)
        if key in self._rows:
            self._rows = {other: row for other, row in self._rows.items() if other != key}
        if line or bar is None:
            self._line(event.task_id, event.timestamp, self._shown(key, line))
        elif not bar.is_printed:
            self._line(event.task_id, event.timestamp, bar.shown)

    def _shown(self, key: Key, line: str) -> str:
        return self._painter.line(key, line, "dim red" if key[1] == "stderr" else "dim")

    def _overwrite(self, key: Key, at: datetime, line: str) -> None:
        now_s, shown = monotonic_s(), self._shown(key, line)
        bar = self._bars.setdefault(key, _Bar(at, line, shown, now_s + BAR_FIRST_S))
        bar.at, bar.said, bar.shown, bar.is_printed = at, line, shown, False
        if not self._is_live and now_s >= bar.due_s:
            self._line(key[0], at, shown)
            bar.is_printed, bar.wait_s = True, min(2 * bar.wait_s, BAR_LAST_S)
            bar.due_s = now_s + bar.wait_s

    def _finish_bars(self, task_id: str) -> None:
        for key in [key for key in self._bars if key[0] == task_id]:
            bar = self._bars.pop(key)
            if not bar.is_printed:
                self._line(task_id, bar.at, bar.shown)
        self._rows = {key: row for key, row in self._rows.items() if key[0] != task_id}

    def _line(self, task_id: str, at: datetime, text: str) -> None:
        self._write(f"{self._styled(_time(at), 'dim')} {self._names[task_id]} {text}\n")

    def _write(self, lines: str) -> None:
        erased = ERASE if self._drawn else ""
        if self._rows is not self._drawn_of:  # drawing them takes longer than a line, of which there may be millions
            self._drawn, self._drawn_of = self._draw(), self._rows
        self._out.file.write(erased + lines + self._drawn)
        self._out.file.flush()

    # --- what goes on, on a terminal ----------------------------------------------------------------------------------

    def _redraw_until_over(self) -> None:
        while not self._over.wait(REDRAW_S):
            with self._lock:
                self._rows = self._rows_now()
                if self._draw() != self._drawn:  # it may also be that the window has another size now
                    self._write("")
                else:
                    self._drawn_of = self._rows

    def _rows_now(self) -> dict[Key, tuple[str, str]]:
        """Return what the lines say that go on, by task and stream, each with the time at which it said so first."""
        rows: dict[Key, tuple[str, str]] = {}
        for task_id in self._running:
            begun = self._unfinished(task_id)
            for stream in ("stdout", "stderr"):
                key = (task_id, stream)
                said = plain(latest(begun.get(stream, ""))[:ROW_CHARACTERS_MAX])
                bar = self._bars.get(key)
                if said.strip():
                    is_same = key in self._rows and self._rows[key][1] == said
                    rows[key] = (self._rows[key][0] if is_same else _time(clock.now()), said)
                elif bar is not None:
                    rows[key] = (_time(bar.at), plain(bar.said))
        return rows

    def _draw(self) -> str:
        """Return the rows, as many as fit, and what moves the cursor back to where they begin."""
        if not self._rows:
            return ""
        columns, height = self._size()
        room = max(1, min(ROWS_MAX, height - 2))
        rows = [f"{at} {self._plain_names[key[0]]} | {said}" for key, (at, said) in self._rows.items()]
        if len(rows) > room:
            rows[room - 1 :] = [f"… and {len(rows) - room + 1} more"]
        lines, encoding = [], self._out.encoding
        for row in rows:
            # As it is written: what stdout's encoding lacks is spelled out, and takes more room.
            text = Text(row.encode(encoding, "backslashreplace").decode(encoding))
            text.truncate(max(1, columns - 1), overflow="crop")
            lines.append(self._styled(text.plain, "dim"))
        up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
        return "\n".join(lines) + "\r" + up

    def _size(self) -> tuple[int, int]:
        """Return the columns and lines of the window as it is now, whatever COLUMNS and LINES say of another one."""
        try:
            size = os.get_terminal_size(self._out.file.fileno())
        except OSError:  # it is gone
            return 80, 24
        return size.columns or 80, size.lines or 24


def _time(at: datetime) -> str:
    return at.astimezone().strftime("%H:%M:%S")
