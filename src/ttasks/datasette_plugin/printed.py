"""What an attempt printed, a part at a time: however much that is, a page reads little of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from ttasks.datasette_plugin.terminal import LINE_CHARACTERS_MAX, Line, Terminal
from ttasks.errors import DamagedLedgerError
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskOutput
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers

LINES_MAX: Final = 1_000
CHARACTERS_MAX: Final = 200_000
"""How much a part shows, counting of each line only what is drawn of it."""
READ_MAX: Final = 2 * 1024 * 1024
"""How many characters are read for a part."""


@dataclass(frozen=True, order=True)
class Point:
    """A place in what was printed: after the first `characters` of what the event at `position` holds."""

    position: int
    characters: int = 0


@dataclass(frozen=True)
class Piece:
    """Some of what one event holds: `text` went to `stream`, and begins at `at`."""

    at: Point
    stream: str
    text: str

    @property
    def end(self) -> Point:
        return Point(self.at.position, self.at.characters + len(self.text))

    def cut(self, start: int, end: int | None = None) -> Piece:
        """Return a part of it."""
        return Piece(Point(self.at.position, self.at.characters + start), self.stream, self.text[start:end])


@dataclass(frozen=True)
class Part:
    """A part of what was printed: `lines` are in order of arrival, each with the stream it went to.

    `earlier` and `later` are where the parts before and after it end and begin, None: there is none. `first` is
    the number of the event that it begins in, counted from 1, `events` how many there are.
    """

    lines: list[tuple[str, Line]]
    earlier: Point | None
    later: Point | None
    first: int
    events: int

    @property
    def has_errors(self) -> bool:
        """True when some of it went to stderr."""
        return any(stream == "stderr" for stream, _ in self.lines)


class Output:
    """What one attempt of a task printed."""

    def __init__(self, readers: Readers, task_id: str, attempt: int) -> None:
        self._readers = readers
        self._stream = f"task-{task_id}"
        self._attempt = attempt
        restated_at = readers.restated_at(task_id, attempt)
        begins = {each.attempt: each.position for each in readers.attempts(task_id)}
        self._after = max(restated_at, begins.get(attempt, 0))
        following = begins.get(attempt + 1)
        self._before = following if following is not None and following > self._after else None

    def tail(self, before: Point | None = None) -> Part:
        """Return the last part; with `before`, the one that ends there."""
        pieces: deque[Piece] = deque()
        room = _Room()
        for piece in self._backwards(before):
            start = room.start_of(piece.text)
            if start < len(piece.text):
                pieces.appendleft(piece.cut(start))
            if start or room.is_full:
                break
        return self._part(list(pieces), is_end=before is None)

    def head(self, after: Point) -> Part:
        """Return the part that begins at a point."""
        pieces: list[Piece] = []
        room = _Room()
        for piece in self._forwards(after):
            end = room.end_of(piece.text)
            if end:
                pieces.append(piece.cut(0, end))
            if end < len(piece.text) or room.is_full:
                break
        return self._part(pieces, is_end=False)

    def texts(self, stream: str | None = None) -> Iterator[str]:
        """Yield all that was printed (to `stream`, where it is given), in order of arrival."""
        for piece in self._forwards(Point(0)):
            if stream is None or piece.stream == stream:
                yield piece.text

    def _part(self, pieces: list[Piece], *, is_end: bool) -> Part:
        events = self._count()
        if not pieces:
            return Part([], None, None, 0, events)
        begin, end = pieces[0].at, pieces[-1].end
        has_later = not is_end and next(self._forwards(end), None) is not None
        first = self._count(begin.position) + 1
        has_earlier = first > 1 or begin.characters > 0
        drawn = list(_drawn(pieces))
        return Part(drawn, begin if has_earlier else None, end if has_later else None, first, events)

    def _count(self, before: int | None = None) -> int:
        return self._readers.count_matching(self._wanted(before=before))

    def _wanted(
        self, *, after: int | None = None, before: int | None = None, newest_first: bool = False
    ) -> EventFilter:
        bounds = [bound for bound in (before, self._before) if bound is not None]
        return EventFilter(
            stream=self._stream,
            types=(TaskOutput.__name__,),
            after=max(self._after, after or 0),
            before=min(bounds) if bounds else None,
            newest_first=newest_first,
        )

    def _events(self, wanted: EventFilter) -> Iterator[tuple[RecordedEvent, TaskOutput]]:
        return ((event, fact) for event, fact in outputs(self._readers, wanted) if fact.attempt == self._attempt)

    def _backwards(self, before: Point | None) -> Iterator[Piece]:
        """Yield what comes before a point (None: the end), latest first."""
        bound = before.position + 1 if before is not None else None
        for event, fact in self._events(self._wanted(before=bound, newest_first=True)):
            for piece in reversed(pieces_of(event, fact)):
                if before is None or piece.end <= before:
                    yield piece
                elif piece.at < before:
                    yield piece.cut(0, before.characters - piece.at.characters)

    def _forwards(self, after: Point) -> Iterator[Piece]:
        """Yield what comes after a point."""
        for event, fact in self._events(self._wanted(after=after.position - 1)):
            for piece in pieces_of(event, fact):
                if piece.at >= after:
                    yield piece
                elif piece.end > after:
                    yield piece.cut(after.characters - piece.at.characters)


def outputs(readers: Readers, wanted: EventFilter) -> Iterator[tuple[RecordedEvent, TaskOutput]]:
    """Yield the events of output that are wanted."""
    for event in readers.matching(wanted):
        if isinstance(event.fact, TaskOutput):
            yield event, event.fact


class _Room:
    """How much more goes into a part. A line always fits into an empty one, if need be in part."""

    def __init__(self) -> None:
        self.lines = LINES_MAX
        self.characters = CHARACTERS_MAX
        self.read = READ_MAX

    @property
    def is_full(self) -> bool:
        return self.lines <= 0 or self.characters < LINE_CHARACTERS_MAX or self.read <= 0

    def _take(self, length: int, *, ends: bool) -> int:
        """Return how much of a line of this length is taken in."""
        if self.is_full:
            return 0
        taken = min(length, self.read)
        self.lines -= ends
        self.characters -= min(taken, LINE_CHARACTERS_MAX)
        self.read -= taken
        return taken

    def start_of(self, text: str) -> int:
        """Return from where on `text` goes in, from its end."""
        end = len(text)
        while end:
            begin = text.rfind("\n", 0, end - 1) + 1
            taken = self._take(end - begin, ends=text[end - 1] == "\n")
            end -= taken
            if end > begin:
                return end
        return 0

    def end_of(self, text: str) -> int:
        """Return up to where `text` goes in, from its beginning."""
        begin = 0
        while begin < len(text):
            end = text.find("\n", begin) + 1
            taken = self._take((end or len(text)) - begin, ends=bool(end))
            begin += taken
            if begin < (end or len(text)):
                return begin
        return len(text)


def pieces_of(event: RecordedEvent, fact: TaskOutput) -> list[Piece]:
    """Return what one event holds, in order of arrival.

    Raises:
        DamagedLedgerError: its chunks are not what ttasks would have written.
    """
    pieces, characters = list[Piece](), 0
    for chunk in fact.chunks:
        if len(chunk) != 3 or not all(isinstance(each, str) for each in chunk):
            raise DamagedLedgerError(f"event {event.position} (TaskOutput) can't be read: it has a chunk that is none")
        stream, _, text = chunk
        pieces.append(Piece(Point(event.position, characters), stream, text))
        characters += len(text)
    return pieces


def lines_of(event: RecordedEvent, fact: TaskOutput) -> tuple[list[tuple[str, Line]], int]:
    """Return the last lines of what one event holds, drawn, and how many characters of it come before them."""
    pieces: deque[Piece] = deque()
    room = _Room()
    left_out = 0
    for piece in reversed(pieces_of(event, fact)):
        start = room.start_of(piece.text)
        pieces.appendleft(
            Piece(Point(piece.at.position, piece.at.characters + start), piece.stream, piece.text[start:])
        )
        if start or room.is_full:
            left_out = pieces[0].at.characters
            break
    return list(_drawn(pieces)), left_out


def _drawn(pieces: Iterable[Piece]) -> Iterator[tuple[str, Line]]:
    """Yield the lines: each where it ends, for one may begin long before, and in another event."""
    terminals: dict[str, Terminal] = {}
    begun: dict[str, list[str]] = {}
    for piece in pieces:
        first, *more = piece.text.split("\n")
        line = begun.setdefault(piece.stream, [])
        line.append(first)
        for text in more:
            yield piece.stream, terminals.setdefault(piece.stream, Terminal()).line("".join(line))
            line[:] = [text]
    for stream, line in begun.items():
        if any(line):
            yield stream, terminals.setdefault(stream, Terminal()).line("".join(line))
