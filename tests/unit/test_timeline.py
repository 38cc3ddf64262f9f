"""Where the bars of a timeline go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttasks.datasette_plugin.timeline import LABELS, RIGHT, TICKS_MAX, WIDTH, Line, Span, plot

BEGIN = datetime(2026, 11, 24, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def test_bars_are_to_scale() -> None:
    line = Line("a", "a", [Span("waiting", at(0), at(5), "waited"), Span("succeeded", at(5), at(10), "attempt 1")])
    (row,) = plot([line], BEGIN, at(20), 100).rows
    waiting, attempt = row.bars
    room = WIDTH - LABELS - RIGHT
    assert (waiting.x, waiting.width) == (LABELS, pytest.approx(room / 4, abs=0.1))
    assert (attempt.x, attempt.width) == (pytest.approx(LABELS + room / 4, abs=0.1), pytest.approx(room / 4, abs=0.1))


def test_rows_are_in_the_order_of_their_beginnings_and_tasks_that_never_ran_have_none() -> None:
    lines = [Line("b", "b", [Span("failed", at(2), at(3), "")]), Line("never", "never", [])]
    lines.append(Line("a", "a", [Span("succeeded", at(1), at(3), "")]))
    timeline = plot(lines, BEGIN, at(4), 100)
    assert [row.line.id for row in timeline.rows] == ["a", "b"]
    assert timeline.rows[0].y < timeline.rows[1].y < timeline.height


@given(st.floats(1e-6, 1e9), st.floats(-1e3, 1e9), st.floats(0, 1e9))
def test_bars_and_ticks_stay_inside_whatever_the_clock_did(length: float, begins: float, lasts: float) -> None:
    line = Line("a", "a", [Span("succeeded", at(begins), at(begins + lasts), "")])
    timeline = plot([line], BEGIN, at(length), 100)
    (bar,) = timeline.rows[0].bars
    assert bar.x >= LABELS
    assert bar.x + bar.width <= WIDTH
    assert bar.width > 0
    assert 1 <= len(timeline.ticks) <= TICKS_MAX + 1
    assert all(LABELS <= x <= WIDTH for x, _ in timeline.ticks)


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0.05, "10 ms"), (3, "500 ms"), (30, "5 s"), (300, "1 min"), (7200, "15 min"), (8e4, "3 h"), (1.7e6, "7 d")],
)  # fmt: skip
def test_ticks_are_round_times(seconds: float, says: str) -> None:
    assert plot([], BEGIN, at(seconds), 100).ticks[1][1] == says


def test_a_run_that_took_no_time_can_be_plotted() -> None:
    assert plot([Line("a", "a", [Span("succeeded", BEGIN, BEGIN, "")])], BEGIN, BEGIN, 100).rows[0].bars[0].width > 0


def test_the_first_rows_are_shown_and_the_others_counted() -> None:
    lines = [Line(str(n), str(n), [Span("succeeded", at(n), at(n + 1), "")]) for n in range(10)]
    timeline = plot(lines[::-1], BEGIN, at(11), 3)
    assert [row.line.id for row in timeline.rows] == ["0", "1", "2"]
    assert timeline.rows_left_out == 7
