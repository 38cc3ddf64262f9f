"""Stdout and stderr that can't break a command: closed, full, without a reader, or made non-blocking by others."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Final, TextIO

EXIT_LOST: Final = 1
EXIT_NO_READER: Final = 141
"""As of a program that SIGPIPE ends, which is 128 and the signal's number in a shell."""


class _Unbreakable(io.FileIO):
    """Writes to a descriptor. Trouble is said once; then the command goes on or ends, as `is_needed` has it.

    Args:
        number: 1 for stdout, 2 for stderr.
        is_closed: whoever started this process closed it, and something else has the descriptor now.

    `is_needed` is true where a command only prints: it ends when it can't. Nothing is ever raised of stderr.
    """

    def __init__(self, number: int, *, is_closed: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self.is_needed = number == 1
        self._is_stdout = number == 1
        self._is_closed = is_closed
        self._is_said = False

    def write(self, data: object) -> int:
        """Write some of it, and return how much; what can't be written counts as written.

        Raises:
            SystemExit: it can't be written, and nothing is left to do.
        """
        view = memoryview(data)  # type: ignore[arg-type]
        while not self._is_closed:
            try:
                written = super().write(view)
            except OSError as error:
                self._trouble(error)
                return view.nbytes
            if written is not None:
                return written
            select.select([], [self], [])  # another program that has it too made it non-blocking
        self._trouble(OSError(errno.EBADF, "it is closed"))
        return view.nbytes

    def _trouble(self, error: OSError) -> None:
        is_end, self.is_needed = self.is_needed, False
        was_said, self._is_said = self._is_said, True
        has_no_reader = error.errno == errno.EPIPE
        if self._is_stdout and not was_said and not (is_end and has_no_reader):
            then = "" if is_end else ": the command goes on without printing"
            sys.stderr.write(f"ttasks: can't write to stdout ({error.strerror}){then}\n")
        if is_end:
            raise SystemExit(EXIT_NO_READER if has_no_reader else EXIT_LOST)


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """Let nothing that is printed inside of this break the command, and print all of it before it ends."""
    _fill()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _stream(1, sys.stdout, sys.__stdout__), _stream(2, sys.stderr, sys.__stderr__)
    try:
        yield
    except BaseException as end:
        if not isinstance(end, SystemExit) or end.code:  # how it ended is known, and its exit code stays
            needs_no_reader()
        raise
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            sys.stdout, sys.stderr = before


def needs_no_reader() -> None:
    """Go on from here on whatever becomes of stdout: the work counts, and the exit code says how it went."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Unbreakable):
        raw.is_needed = False


def _fill() -> None:
    """Open what is closed of stdin, stdout and stderr, or a file that is opened next would be taken for it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one


def _stream(number: int, before: TextIO | None, own: TextIO | None) -> TextIO:
    """Return a stream like `before`, which is None where its descriptor was closed when Python began."""
    if before is not None and before is not own:
        return before  # it belongs to a program that calls this one
    is_by_line = isinstance(before, io.TextIOWrapper) and (before.line_buffering or before.write_through)
    return io.TextIOWrapper(
        io.BufferedWriter(_Unbreakable(number, is_closed=before is None)),
        encoding=before.encoding if before is not None else "utf-8",
        errors="backslashreplace",
        line_buffering=number == 2 or is_by_line,
    )
