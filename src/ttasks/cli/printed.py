"""What an attempt printed, line by line, on its way to a terminal: however much it is, little is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, Final

from ttasks.display import printable

HELD_MAX: Final = 256 * 1024
"""How much of a line is held in memory until it ends; of a longer one, the rest waits in a temporary file."""


class _Begun:
    """A line of one stream that has not ended yet."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.is_empty = True

    def add(self, text: str) -> None:
        if text:
            self.is_empty = False
            self._file.write(printable(text))

    def take(self) -> Iterator[str]:
        """Yield it, part by part, and begin anew."""
        self._file.seek(0)
        while part := self._file.read(HELD_MAX):
            yield part
        self._file.seek(0)
        self._file.truncate()
        self.is_empty = True


def whole_lines(chunks: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield what is to be written: each line where it ends, whole, whichever stream it went to.

    What could steer a terminal is spelled out. A last line without an end gets one.
    """
    with _waiting_room() as stdout, _waiting_room() as stderr:
        begun = {"stdout": _Begun(stdout), "stderr": _Begun(stderr)}
        for stream, text in chunks:
            line = begun[stream]
            first, *more = text.split("\n")
            line.add(first)
            if not more:
                continue
            yield from line.take()
            *whole, rest = more
            yield "\n".join(["", *map(printable, whole), ""])
            line.add(rest)
        for line in begun.values():
            if not line.is_empty:
                yield from line.take()
                yield "\n"


def _waiting_room() -> SpooledTemporaryFile[str]:
    return SpooledTemporaryFile(HELD_MAX, "w+", encoding="utf-8", newline="")
