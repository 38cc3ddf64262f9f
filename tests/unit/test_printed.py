"""What was printed is shown in parts that together are all of it, and that read no more than they must."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import unescape
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttasks.datasette_plugin import download, printed
from ttasks.datasette_plugin.download import Download
from ttasks.datasette_plugin.printed import Output, Part, Point, lines_of
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskOutput
from ttasks.log.query import EventFilter

AT = datetime(2026, 11, 24, tzinfo=UTC)
Printed = list[tuple[Any, str]]


class Recorded:
    """Answers what `Output` asks of a ledger that holds one attempt's output, and counts what is read of it."""

    def __init__(self, *events: Printed, restated_at: int = 0, attempt: int = 1) -> None:
        self.read = 0
        self._restated_at = restated_at
        self._events = [event(2 * n + 5, chunks, attempt) for n, chunks in enumerate(events)]

    def restated_at(self, task_id: str, attempt: int) -> int:
        return self._restated_at

    def attempts(self, task_id: str) -> list[Any]:
        return []

    def matching(self, wanted: EventFilter) -> Iterator[RecordedEvent]:
        after, before = wanted.after or 0, wanted.before or 2**63
        found = [each for each in self._events if after < each.position < before]
        for each in (found[::-1] if wanted.newest_first else found)[: wanted.limit]:
            self.read += 1
            yield each

    def count_matching(self, wanted: EventFilter) -> int:
        after, before = wanted.after or 0, wanted.before or 2**63
        return sum(after < each.position < before for each in self._events)

    def output(self) -> Output:
        return Output(self, "x", 1)  # type: ignore[arg-type]


def event(position: int, chunks: Printed, attempt: int = 1) -> RecordedEvent:
    fact = TaskOutput(attempt, tuple((stream, "", text) for stream, text in chunks))
    return RecordedEvent(position, "task-x", position, AT, 2, None, fact, b"")


def shown(part: Part) -> list[tuple[str, str]]:
    return [(stream, unescape(re.sub("<[^>]*>", "", str(line.html)))) for stream, line in part.lines]


def forwards(output: Output) -> Iterator[Part]:
    part = output.head(Point(0))
    yield part
    while part.later is not None:
        part = output.head(part.later)
        yield part


def backwards(output: Output) -> Iterator[Part]:
    part = output.tail()
    yield part
    while part.earlier is not None:
        part = output.tail(part.earlier)
        yield part


LINES = st.text(st.sampled_from("ab "), max_size=6).map(lambda text: f"{text}\n")
CHUNKS = st.tuples(st.sampled_from(["stdout", "stderr"]), st.lists(LINES, max_size=5).map("".join))
EVENTS = st.lists(st.lists(CHUNKS, max_size=4), max_size=6)


@settings(max_examples=60)
@given(EVENTS, st.integers(1, 7))
def test_the_parts_are_all_of_it_both_ways(events: list[Printed], lines_max: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(printed, "LINES_MAX", lines_max)
        output = Recorded(*events).output()
        whole = [(stream, line) for stream, text in itertools.chain(*events) for line in text.split("\n")[:-1]]
        ahead, back = [*forwards(output)], [*backwards(output)][::-1]
        for parts in (ahead, back):
            assert list(itertools.chain.from_iterable(map(shown, parts))) == whole
            assert all(len(part.lines) <= lines_max for part in parts)


@settings(max_examples=60)
@given(EVENTS, st.integers(1, 40))
def test_the_parts_are_all_of_it_however_little_of_a_line_is_read(events: list[Printed], read_max: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(printed, "READ_MAX", read_max)
        output = Recorded(*events).output()
        whole = "".join(text for _, text in itertools.chain(*events)).replace("\n", "")
        if len({stream for stream, _ in itertools.chain(*events)}) <= 1:  # or a line is shown where it ends
            for parts in ([*forwards(output)], [*backwards(output)][::-1]):
                assert "".join(text for part in parts for _, text in shown(part)) == whole


def test_a_line_may_span_chunks_and_events_of_its_stream() -> None:
    output = Recorded(
        [("stdout", "be"), ("stderr", "warn"), ("stdout", "gin ")], [("stderr", "ing\n"), ("stdout", "end\n")]
    ).output()
    assert shown(output.tail()) == [("stderr", "warning"), ("stdout", "begin end")]


def test_a_line_without_an_end_is_shown_last() -> None:
    part = Recorded([("stdout", "whole\nhalf")], [("stderr", "no\n")]).output().tail()
    assert shown(part) == [("stdout", "whole"), ("stderr", "no"), ("stdout", "half")]
    assert part.has_errors


def test_nothing_printed_is_an_empty_part() -> None:
    assert Recorded().output().tail() == Part([], None, None, 0, 0)


def test_of_much_the_end_is_shown_and_little_is_read() -> None:
    recorded = Recorded(*[[("stdout", "x" * 63 + "\n")] * 1024 for _ in range(200)])
    part = recorded.output().tail()
    assert len(part.lines) == printed.LINES_MAX
    assert (part.first, part.events, part.later) == (200, 200, None)
    assert recorded.read <= 2


def test_a_huge_event_is_shown_in_parts_too() -> None:
    output = Recorded([("stdout", "".join(f"{n}\n" for n in range(5000)))]).output()
    parts = [*backwards(output)]
    assert [part.lines[-1][1].html for part in parts] == ["4999", "3999", "2999", "1999", "999"]


def test_a_line_that_is_longer_than_what_is_read_is_shown_in_parts() -> None:
    output = Recorded([("stdout", "a" * (printed.READ_MAX + 10) + "\n")]).output()
    first, second = [*forwards(output)]
    assert (first.later, second.earlier) == (Point(5, printed.READ_MAX), Point(5, printed.READ_MAX))
    assert shown(second) == [("stdout", "a" * 10)]


def test_what_was_restated_by_an_import_is_shown_from_there_on() -> None:
    output = Recorded([("stdout", "once\n")], [("stdout", "again\n")], restated_at=6).output()
    assert shown(output.tail()) == [("stdout", "again")]
    assert list(output.texts()) == ["again\n"]


def test_what_another_attempt_printed_is_left_out() -> None:
    assert Recorded([("stdout", "two\n")], attempt=2).output().tail().lines == []


def test_of_one_event_the_last_lines_are_drawn() -> None:
    lines, left_out = lines_of(*_event_of("".join(f"{n}\n" for n in range(2000))))
    assert (lines[0][1].html, lines[-1][1].html, left_out) == (
        "1000",
        "1999",
        len("".join(map(str, range(1000)))) + 1000,
    )


def _event_of(text: str) -> tuple[RecordedEvent, TaskOutput]:
    recorded = event(5, [("stdout", text)])
    assert isinstance(recorded.fact, TaskOutput)
    return recorded, recorded.fact


def test_a_download_is_sent_as_it_is_read_and_lone_surrogates_are_spelled_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "BLOCK_CHARACTERS", 4)
    sent = _sent(Download("x.txt", iter(["one\n", "", "\udcff\n"])), lambda _: False)
    assert [each["body"] for each in sent[1:]] == [b"one\n", b"\\udcff\n", b""]
    headers = dict(sent[0]["headers"])
    assert headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert headers[b"Content-Disposition"] == b'attachment; filename="x.txt"'


def test_many_small_texts_of_a_download_are_sent_together() -> None:
    sent = _sent(Download("x.txt", iter(["line\n"] * 100_000)), lambda _: False)
    assert b"".join(each["body"] for each in sent[1:]) == b"line\n" * 100_000
    assert len(sent) < 10


def test_a_download_ends_when_the_client_goes_away() -> None:
    texts = (f"{n}\n" for n in range(1_000_000))
    sent = _sent(Download("x.txt", texts), lambda sent: len(sent) > 3)
    assert len(sent) < 100
    assert next(texts) != "0\n"


def _sent(file: Download, is_gone: Any) -> list[Any]:
    """Return what a server is told to send, to a client that goes away once `is_gone` of that is true."""
    sent: list[Any] = []

    async def serve() -> None:
        changed = asyncio.Condition()

        async def send(message: Any) -> None:
            async with changed:
                sent.append(message)
                changed.notify_all()

        async def receive() -> Any:
            async with changed:
                await changed.wait_for(lambda: is_gone(sent))
            return {"type": "http.disconnect"}

        await download.response(file, receive, {}).asgi_send(send)

    asyncio.run(serve())
    return sent
