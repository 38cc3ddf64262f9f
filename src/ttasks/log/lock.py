"""The lock between processes that write one ledger: fair, and gone with whoever held it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Final

from ttasks import clock
from ttasks.log import place

POLL_S: Final = 0.01


class WriterLock:
    """An advisory `flock` on a side file. One thread of a process holds it at a time (the caller sees to that).

    SQLite's own lock would keep the data safe, but it polls: of two busy writers one starves for seconds. flock wakes
    waiters in turn.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor: int | None = None

    def acquire(self, timeout_s: float) -> bool:
        """Wait for the lock; return False when `timeout_s` seconds went by without it.

        Raises:
            LedgerUnwritableError: the side file is no regular file, or has a second name.
            OSError: the side file can't be made or locked here.
        """
        if self.descriptor is None:
            self.descriptor = place.open_beside(self._path, os.O_RDWR | os.O_CREAT, is_only_name=True)
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return self._wait(timeout_s)
        return True

    def _wait(self, timeout_s: float) -> bool:
        # A blocking flock can't be given a time-out, so a thread blocks in it. Where the wait ends first, the thread
        # keeps the descriptor and closes it, with the lock that came too late, and the next wait opens another.
        descriptor = self.descriptor
        assert descriptor is not None
        state = threading.Lock()
        waiting = True
        granted = threading.Event()

        def block() -> None:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with state:
                if waiting:
                    granted.set()
                else:
                    os.close(descriptor)

        try:
            threading.Thread(target=block, name="ttasks-lock", daemon=True).start()
        except RuntimeError:  # the system has no more threads to give
            return self._poll(timeout_s)
        try:
            return granted.wait(timeout_s)
        finally:
            with state:
                waiting = False
                if not granted.is_set():
                    self.descriptor = None

    def _poll(self, timeout_s: float) -> bool:
        assert self.descriptor is not None
        deadline_s = clock.monotonic_s() + timeout_s
        while clock.monotonic_s() < deadline_s:
            time.sleep(POLL_S)
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
        return False

    def release(self) -> None:
        """Let the next one in."""
        assert self.descriptor is not None
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give up the side file, and with it the lock."""
        descriptor, self.descriptor = self.descriptor, None  # forgotten first: Ctrl-C may come right after the close
        if descriptor is not None:
            os.close(descriptor)
