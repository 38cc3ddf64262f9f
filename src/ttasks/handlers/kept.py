"""What is kept in memory of what a script prints: all of it, its beginning and its end, or what is short."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from ttasks.log.stored import StoredText
from ttasks.model.result import KEPT_BYTES_MAX
from ttasks.state.rows import ERROR_BYTES_MAX


def check_output_bytes(value: object) -> None:
    """Raise TypeError or ValueError unless `value` may be given as `max_output_bytes`."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_output_bytes must be an int or None, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"max_output_bytes must be at least 1, got {value}")


class Kept(Protocol):
    """A text that comes in parts."""

    @property
    def is_cut(self) -> bool:
        """True once something of it is kept no more."""

    def add(self, part: str) -> None:
        """Take what follows."""

    def text(self) -> str:
        """Return what is kept, with a notice where something is left out; or all of it, from the ledger."""

    def shown(self) -> str | StoredText:
        """Return what `text` does, without reading it where the ledger has it."""


@dataclass(frozen=True)
class Limit:
    """How much is kept of a text: so many bytes of UTF-8 (None: all of it).

    `elsewhere` says where the rest is, `why` what the limit is.
    """

    bytes_max: int | None
    elsewhere: str = ""
    why: str = "max_output_bytes is"

    def keep(self, separator: str) -> Kept:
        """Return what keeps a text under this limit; `separator` sets the notice in it apart."""
        if self.bytes_max is None:
            return WholeText()
        return HeadAndTail(self.bytes_max, self.elsewhere, separator, self.why)

    def covers(self, text: str) -> bool:
        """True when nothing of the text would be left out, as far as that is seen without counting its bytes."""
        return self.bytes_max is None or len(text) * 4 <= self.bytes_max


UNLIMITED: Final = Limit(None)
LINE_BYTES_MAX: Final = 1024 * 1024
RECORDED_LINES: Final = Limit(LINE_BYTES_MAX, "the ledger has all of it", "a published line has at most")
"""How much is published of a line that is recorded whole: one without an end must not fill the memory."""


class WholeText:
    """All of a text."""

    is_cut = False

    def __init__(self) -> None:
        self._parts: list[str] = []

    def add(self, part: str) -> None:
        """Take what follows."""
        self._parts.append(part)

    def text(self) -> str:
        """Return all of it."""
        return "".join(self._parts)

    shown = text


class HeadAndTail:
    """The first and the last bytes of a text of any length. Two threads may use it.

    Args:
        bytes_max: how many bytes of UTF-8 are kept, a half of them from each end.
        elsewhere: where the rest is, for the notice.
        separator: what sets the notice apart.
        why: what the limit is, for the notice.

    `characters` counts the whole text. Memory stays below about three times `bytes_max`, however small the parts are.
    """

    def __init__(self, bytes_max: int, elsewhere: str, separator: str, why: str = "max_output_bytes is") -> None:
        self._bytes_max = bytes_max
        self._elsewhere = elsewhere
        self._separator = separator
        self._why = why
        self._head_max = (bytes_max + 1) // 2
        self._tail_max = bytes_max // 2
        # What is recorded of an error is the end of what was printed, whatever is shown of it.
        self._turn_at = max(self._tail_max, ERROR_BYTES_MAX)
        self._lock = threading.Lock()
        self._size = 0
        self._head = bytearray()
        self._older = bytearray()
        self._recent = bytearray()
        self.characters = 0

    @property
    def is_cut(self) -> bool:
        """True once something of it is left out."""
        return self._size > self._bytes_max

    def add(self, part: str) -> None:
        """Take what follows."""
        data = part.encode()
        with self._lock:
            self.characters += len(part)
            self._size += len(data)
            room = self._head_max - len(self._head)
            self._head += data[:room]
            self._recent += data[room:]
            if len(self._recent) >= self._turn_at:
                self._older, self._recent = self._recent, bytearray()

    def text(self) -> str:
        """Return what is kept, with a notice where something is left out; no character is cut in two."""
        with self._lock:
            rest = self._older + self._recent
            if not self.is_cut:
                return (self._head + rest).decode()
            head = self._head.decode(errors="ignore")
            tail = _last(rest, self._tail_max)
            left_out = self._size - len(head.encode()) - len(tail.encode())
        notice = f"[{left_out} bytes left out: {self._why} {self._bytes_max}; {self._elsewhere}]"
        return self._separator.join([head.removesuffix(self._separator), notice, tail])

    def shown(self) -> str | StoredText:
        """Return the same as `text`."""
        return self.text()

    def error_tail(self) -> str:
        """Return the last bytes of the whole text, as many as a row keeps of an error."""
        with self._lock:
            rest = self._older + self._recent
            # Without an older part nothing was dropped yet, and the head is what came right before.
            return _last(rest if self._older else self._head + rest, ERROR_BYTES_MAX)


class Recorded(HeadAndTail):
    """A text that is recorded as it comes: kept as long as it is short, and read from the ledger once it is long.

    Of a long one only the end stays, which a row has of an error: the exception of each task that failed holds this.

    Args:
        stored: makes what reads it, of how many parts and how many characters it has.
    """

    def __init__(self, stored: Callable[[int, int], StoredText]) -> None:
        super().__init__(KEPT_BYTES_MAX, "", "", "")
        self._stored = stored
        self._count = 0

    def add(self, part: str) -> None:
        if part:
            super().add(part)
            self._count += 1
            if self.is_cut:
                self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            end = self._head + self._older + self._recent
            self._head_max, self._head = 0, bytearray()
            self._older, self._recent = end[-ERROR_BYTES_MAX:], bytearray()

    def text(self) -> str:
        shown = self.shown()
        return shown if isinstance(shown, str) else shown.read()

    def shown(self) -> str | StoredText:
        return self._stored(self._count, self.characters) if self.is_cut else super().text()


def _last(data: bytearray, size: int) -> str:
    return data[max(len(data) - size, 0) :].decode(errors="ignore")
