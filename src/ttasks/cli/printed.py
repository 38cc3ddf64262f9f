"""What an attempt printed, line by line, on its way to a terminal: however much it is, little is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from tempfile import SpooledTemporaryFile
from typing import IO, Final

from ttasks.display import latest, plain

HELD_MAX: Final = 256 * 1024
"""How much of a line is held in memory until it ends; of a longer one, the rest waits in a temporary file."""

Show = Callable[[str, str], str]
"""Makes a line of a stream, given without its line end, fit to be shown."""


def show_plain(_: str, line: str) -> str:
    """Show what a line says last, without colours; tabs stay."""
    return plain(latest(line), "\t")


class _Begun:
    """A line of one stream that has not ended yet: what it says last, of what it has overwritten itself."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.is_empty = True
        self._is_overwritten = False

    def add(self, text: str) -> None:
        if not text:
            return
        said = text.rstrip("\r")
        start = said.rfind("\r") + 1
        if start or (said and self._is_overwritten):
            self._clear()
        self._is_overwritten = text.endswith("\r")
        self.is_empty = False
        self._file.write(text[start:])

    def take(self, stream: str, show: Show) -> Iterator[str]:
        """Yield it, part by part, and begin anew. A part of a longer line is shown without colours."""
        self._file.seek(0)
        part = self._file.read(HELD_MAX)
        rest = self._file.read(HELD_MAX)
        if not rest:
            yield show(stream, part)
        while rest:
            yield plain(part, "\t")
            part, rest = rest, self._file.read(HELD_MAX)
            if not rest:
                yield plain(part.rstrip("\r"), "\t")
        self._clear()

    def _clear(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self.is_empty = True
        self._is_overwritten = False


def whole_lines(chunks: Iterable[tuple[str, str]], show: Show = show_plain) -> Iterator[str]:
    """Yield what is to be written: each line where it ends, whole, whichever stream it went to.

    A last line without an end gets one.
    """
    with _waiting_room() as stdout, _waiting_room() as stderr:
        begun = {"stdout": _Begun(stdout), "stderr": _Begun(stderr)}
        for stream, text in chunks:
            line = begun[stream]
            first, *more = text.split("\n")
            line.add(first)
            if not more:
                continue
            yield from line.take(stream, show)
            *whole, rest = more
            yield "\n".join(["", *(show(stream, each) for each in whole), ""])
            line.add(rest)
        for stream, line in begun.items():
            if not line.is_empty:
                yield from line.take(stream, show)
                yield "\n"


def _waiting_room() -> SpooledTemporaryFile[str]:
    return SpooledTemporaryFile(HELD_MAX, "w+", encoding="utf-8", errors="surrogatepass", newline="")
