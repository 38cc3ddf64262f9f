"""How the command prints much: output line by line, and long tables."""

from __future__ import annotations

import io
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.text import Text

from ttasks.cli import printed, text
from ttasks.cli.printed import whole_lines
from ttasks.cli.text import print_table
from ttasks.display import latest, plain

TAB = "\t"

CHUNKS = st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(st.sampled_from("ab\n\r\tü\x1b\udcff"))))


@given(CHUNKS, st.integers(1, 4))
def test_each_line_is_printed_where_it_ends_as_what_it_says_last(chunks: list[tuple[str, str]], held_max: int) -> None:
    lines, begun = list[str](), {"stdout": "", "stderr": ""}
    for stream, part in chunks:
        *whole, begun[stream] = (begun[stream] + part).split("\n")
        lines += whole
    lines += [line for line in begun.values() if line]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(printed, "HELD_MAX", held_max)
        assert "".join(whole_lines(chunks)) == "".join(f"{plain(latest(line), TAB)}\n" for line in lines)


def test_a_line_of_any_length_takes_little_memory() -> None:
    def chunks() -> object:
        for _ in range(500):
            yield "stdout", "x" * 64 * 1024
            yield "stderr", "warning\n"

    tracemalloc.start()
    try:
        length = sum(map(len, whole_lines(chunks())))  # type: ignore[arg-type]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert length == 500 * (64 * 1024 + len("warning\n")) + 1
    assert peak < 4 * 1024 * 1024


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_long_table_looks_like_a_short_one(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    rows = [(str(n), "ü" * (n % 7), Text("failed", "bold red"), "日本" if n % 2 else "") for n in range(12)]

    def drawn(rows_max: int) -> list[str]:
        out = io.StringIO()
        monkeypatch.setattr(out, "isatty", lambda: is_terminal)
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setattr(text, "ROWS_DRAWN_MAX", rows_max)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "100")
        print_table(("number", "name", "status", "more"), rows)
        assert ("\x1b[1;31mfailed" in out.getvalue()) is is_terminal
        return [line.rstrip() for line in re.sub("\x1b\\[[0-9;]*m", "", out.getvalue()).splitlines()]

    assert drawn(11) == drawn(12)
    assert len(drawn(11)) == 13
