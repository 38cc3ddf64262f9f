"""What a run says of output while it goes on: to a pipe, and to a terminal."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from ttasks import Task, TaskEvent, TaskEventType
from ttasks.cli import reporter
from ttasks.cli.reporter import Reporter
from ttasks.cli.text import Painter
from ttasks.display import coloured, latest, plain
from ttasks.events.status import TaskStatus

AT = datetime(2026, 11, 24, 8, tzinfo=UTC)
TASK = Task.bash("x", title="x")


def event(kind: TaskEventType, text: str | None = None, stream: str = "stdout") -> TaskEvent:
    output: dict[str, Any] = {} if text is None else {"output_chunk": text, "output_stream": stream}
    return TaskEvent(kind, TASK.id, TASK, AT, None, TaskStatus.RUNNING, **output)


class Pipe:
    """A reporter that prints to a pipe, with a clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.now_s = 0.0
        self._capsys = capsys
        monkeypatch.setattr(reporter, "monotonic_s", lambda: self.now_s)
        self.reporter = Reporter({TASK.id: "x"}, lambda _: {})

    def __call__(self, *texts: str, at_s: float | None = None, stream: str = "stdout") -> list[str]:
        """Report that a task has printed these texts, and return what was said of it."""
        self.now_s = self.now_s if at_s is None else at_s
        for text in texts:
            self.reporter(event(TaskEventType.OUTPUT, text, stream))
        return self.said()

    def said(self) -> list[str]:
        return [line.partition(" x ")[2] for line in self._capsys.readouterr().out.splitlines()]


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Pipe:
    return Pipe(monkeypatch, capsys)


def test_a_pipe_gets_a_progress_bar_as_a_line_ever_less_often_and_its_last_state(pipe: Pipe) -> None:
    with pipe.reporter:
        seen = [second for second in range(200) if pipe(f"{second} s\r", at_s=second) == [f"| {second} s"]]
        assert seen == [1, 3, 7, 15, 31, 61, 91, 121, 151, 181]
        assert pipe("done\n") == ["| done"]
        assert pipe("again\r", "at an end\r") == []  # a bar of its own
        pipe.reporter(event(TaskEventType.SUCCEEDED))
        assert pipe.said() == ["| at an end", "succeeded"]


def test_a_bar_that_is_short_leaves_one_line_however_it_ends(pipe: Pipe) -> None:
    with pipe.reporter:
        assert pipe("\r", "10%\r", "100%\n") == ["| 100%"]
        assert pipe("10%\r", "100%\r", "\r\n") == ["| 100%"]  # an end that is doubled, as terminals' own drivers do
        assert pipe("10%\r", "   \r", "\x1b[K\n") == ["| "]  # it was wiped away
        assert pipe("10%\r", at_s=0.0) == [] and pipe("100%\r", at_s=5.0) == ["| 100%"] and pipe("\n") == []
        assert pipe("out\r") == pipe("err\r", stream="stderr") == []
    assert pipe.said() == ["| out", "| err"]  # of a task whose end nobody heard of


def test_a_pipe_gets_plain_text(pipe: Pipe) -> None:
    assert pipe("\x1b[1;32mok\x1b[0m \x1b[2J\ttab\r\n") == ["| ok \\x1b[2J    tab"]


# --- colours ----------------------------------------------------------------------------------------------------------


def painted(*lines: str, **console: Any) -> list[str]:
    painter = Painter(Console(force_terminal=True, color_system="standard", **console))
    return [painter.line("a", line, "") for line in lines]


def test_colours_reach_a_terminal_and_end_with_their_line_and_go_on_in_the_next_of_their_stream() -> None:
    painter = Painter(Console(force_terminal=True, color_system="standard"))
    assert painter.line("a", "\x1b[31mred", "") == "| \x1b[31mred\x1b[0m"
    assert painter.line("b", "plain", "") == "| plain"
    assert painter.line("a", "still\x1b[0;1mbold", "") == "| \x1b[31mstill\x1b[0;1mbold\x1b[0m"
    assert painter.line("a", "bold", "") == "| \x1b[0;1mbold\x1b[0m"
    assert painter.line("a", "no\x1b[m more", "") == "| \x1b[0;1mno\x1b[m more\x1b[0m"
    assert painter.line("a", "plain", "") == "| plain"
    assert painter.line("a", "\x1b[32m10%\r20%", "") == "| \x1b[32m20%\x1b[0m"


def test_where_no_colours_are_wanted_there_are_none() -> None:
    assert painted("\x1b[31mred", "plain", no_color=True) == ["| red", "| plain"]
    assert Painter(Console(file=None, force_terminal=False)).line("a", "\x1b[31mred", "red") == "| red"


def test_only_so_many_colours_last_beyond_their_line() -> None:
    (_, after) = painted("".join(f"\x1b[38;5;{number}m" for number in range(200)), "x")
    assert after.count("\x1b[38") == 20 and "\x1b[38;5;199mx" in after


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[2J",
        "\x1b[1A",
        "\x1b]0;title\x07",
        "\x9b31m",
        "\x1b[?25l",
        "\x1b[>4;2m",
        "\x1bc",
        "\x08",
        "\x1b[31",
        "\u202e",
    ],
)
def test_what_steers_a_terminal_is_spelled_out(hostile: str) -> None:
    for shown in (coloured(f"a{hostile}b"), plain(f"a{hostile}b")):
        assert shown.isprintable() and shown.startswith("a\\") and shown.endswith("b")


def test_of_a_link_its_text_is_left_and_what_erases_the_end_of_a_line_is_dropped() -> None:
    assert plain("\x1b]8;;http://x\x1b\\click\x1b]8;;\x07 here\x1b[K\x1b[2K") == "click here"
    assert coloured("\x1b[4:3;38:2::1:2:3mx\x1b[K") == "\x1b[4:3;38:2::1:2:3mx"
    assert not re.search(r"\x1b(?!\[[0-9;:]*m)", coloured("\x1b\x1b[31m\x1b]\x1b[K"))


def test_a_line_that_was_overwritten_says_what_it_said_last() -> None:
    assert [latest(line) for line in ("a", "a\rb", "a\rb\r", "\r", "")] == ["a", "b", "b", "", ""]
