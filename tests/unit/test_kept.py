"""What is kept of a long text: its beginning, its end, and a true word about the rest."""

from __future__ import annotations

import io
import re
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ttasks import InMemoryStore
from ttasks.handlers.kept import HeadAndTail, Limit, Recorded
from ttasks.log.stored import StoredAttempt, StoredText
from ttasks.runtime.output import LineCutter
from ttasks.state.rows import tail

NOTICE = re.compile(r"\[(\d+) bytes left out: max_output_bytes is (\d+); the ledger has it\]")
# What a decoder with replacement gives: anything but surrogates. All widths of UTF-8, and line ends.
PARTS = st.lists(st.text(st.sampled_from("ab\n\rü✓😀\ufffd\0"), max_size=60), max_size=12)
LIMITS = st.integers(1, 200)


@pytest.fixture
def attempt() -> Iterator[StoredAttempt]:
    with InMemoryStore() as store:
        yield StoredAttempt(store._readers, "", "", 1, 1)


def kept(parts: list[str], bytes_max: int, separator: str = "\n") -> HeadAndTail:
    made = HeadAndTail(bytes_max, "the ledger has it", separator)
    for part in parts:
        made.add(part)
    return made


@given(PARTS, st.none() | LIMITS)
def test_a_text_within_its_limit_is_kept_whole(parts: list[str], bytes_max: int | None) -> None:
    whole = "".join(parts)
    if bytes_max is not None:
        bytes_max += len(whole.encode())
    made = Limit(bytes_max, "the ledger has it").keep("\n")
    for part in parts:
        made.add(part)
    assert (made.text(), made.is_cut) == (whole, False)


@given(PARTS, LIMITS)
@example(["ab"], 1)
@example(["✓✓"], 4)
@example(["\n\n\n"], 2)
def test_of_a_longer_text_the_beginning_and_the_end_are_kept_and_the_rest_is_counted(
    parts: list[str], bytes_max: int
) -> None:
    whole = "".join(parts).encode()
    made = kept(parts, bytes_max)
    assert made.is_cut == (len(whole) > bytes_max)
    if not made.is_cut:
        return
    head, notice, end = re.fullmatch(rf"(.*?)\n?({NOTICE.pattern})\n(.*)", made.text(), re.DOTALL).group(1, 2, 5)
    counted = NOTICE.fullmatch(notice)
    assert counted is not None and int(counted[2]) == bytes_max
    assert whole.decode().startswith(head) and whole.decode().endswith(end)
    # A line end right before the notice is the head's own, or the separator: it shows as one either way.
    kept_bytes = len(head.encode()) + len(end.encode())
    assert int(counted[1]) in (len(whole) - kept_bytes, len(whole) - kept_bytes - 1)
    assert kept_bytes <= bytes_max
    # At most a character is missing at each side, and each end has its half.
    assert len(head.encode()) >= (bytes_max + 1) // 2 - 4
    assert len(end.encode()) >= bytes_max // 2 - 3


@given(st.lists(st.text(st.sampled_from("ab\nü✓😀"), max_size=4000), max_size=6), LIMITS)
def test_the_end_of_an_error_is_what_a_row_would_keep_of_the_whole(parts: list[str], bytes_max: int) -> None:
    whole = "".join(parts)
    made = kept(parts, bytes_max)
    assert made.error_tail() == tail(whole)
    assert made.characters == len(whole)


def test_the_notice_of_a_line_stays_in_it() -> None:
    assert kept(["0123456789"], 4, " ").text() == ("01 [6 bytes left out: max_output_bytes is 4; the ledger has it] 89")


@pytest.mark.parametrize("part", ["x", "x" * 65_536])
def test_what_is_kept_takes_no_more_memory_than_a_small_multiple_of_its_limit(part: str) -> None:
    tracemalloc.start()
    try:
        made = HeadAndTail(20_000, "the ledger has it", "\n")
        for _ in range(200_000 // len(part)):
            made.add(part)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.is_cut
    assert peak <= 4 * (20_000 + len(part))


@pytest.mark.parametrize("part", ["x", "ü" * 7, "x" * 65_536, "y" * 70_000 + "z"])
def test_of_a_long_text_that_is_recorded_only_the_end_stays_in_memory(attempt: StoredAttempt, part: str) -> None:
    text = part * (200_000 // len(part))
    tracemalloc.start()
    try:
        made = Recorded(lambda _, characters: StoredText(attempt, characters))
        for _ in range(len(text) // len(part)):
            made.add(part)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 3 * 4096 + 2000
    assert (made.is_cut, made.characters, made.error_tail()) == (True, len(text), tail(text))
    shown = made.shown()
    assert isinstance(shown, StoredText) and shown.characters == len(text)


# --- lines -----------------------------------------------------------------------------------------------------------


def lines_of(parts: list[str], bytes_max: int | None) -> list[str]:
    cutter = LineCutter(Limit(bytes_max, "the ledger has it"))
    return [line for part in parts for line in cutter.cut(part)] + cutter.finish()


@given(PARTS)
def test_lines_are_the_same_however_the_text_was_read(parts: list[str]) -> None:
    lines = lines_of(parts, None)
    assert lines == io.StringIO("".join(parts), newline="").readlines()  # Python's own text files, with all their ends
    assert lines_of(["".join(parts)], None) == lines


def test_a_progress_bar_is_a_line_for_each_of_its_states_whether_the_return_comes_before_or_after_it() -> None:
    cutter = LineCutter(Limit(None))
    assert cutter.cut("\r10%") == ["\r"] and cutter.unfinished() == "10%"
    assert cutter.cut("\r20%") == ["10%\r"] and cutter.unfinished() == "20%"
    assert cutter.cut("\r") == [] and cutter.unfinished() == "20%\r"  # a line feed may follow
    assert cutter.cut("30%") == ["20%\r"]
    assert cutter.cut("\r") + cutter.cut("\nnext") == ["30%\r\n"]
    assert cutter.finish() == ["next"] and cutter.finish() == []


@given(PARTS, LIMITS)
def test_only_a_line_longer_than_the_limit_is_shortened(parts: list[str], bytes_max: int) -> None:
    whole, shown = lines_of(parts, None), lines_of(parts, bytes_max)
    assert len(shown) == len(whole)
    for line, seen in zip(whole, shown, strict=True):
        text = line.rstrip("\r\n")
        if len(text.encode()) <= bytes_max:
            assert seen == line
        else:
            assert seen == kept([text], bytes_max, " ").text() + line[len(text) :]
