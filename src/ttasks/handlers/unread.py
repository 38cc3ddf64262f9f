"""What nobody reads any more of processes that live on: taken from their pipes, and dropped, until this process ends.

Without a reader their next word would end them (SIGPIPE), or once the pipe is full make them wait for ever.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from typing import Final

READ_BYTES: Final = 64 * 1024


class _Dropper:
    """One thread for all pipes; it starts with the first and ends with the last of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._new: list[int] = []
        self._held: set[int] = set()
        self._waker: tuple[int, int] | None = None

    def take(self, pipe: int) -> None:
        """Read and drop what comes from `pipe`, a descriptor that is closed with its last writer."""
        with self._lock:
            self._new.append(pipe)
            self._held.add(pipe)
            if self._waker is None:
                self._waker = os.pipe()
                threading.Thread(target=self._run, args=self._waker, name="ttasks-unread", daemon=True).start()
            else:
                os.write(self._waker[1], b"\0")

    def _run(self, woken: int, waker: int) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(woken, selectors.EVENT_READ)
            while self._goes_on(selector, waker):
                for key, _ in selector.select():
                    if not os.read(key.fd, READ_BYTES):
                        selector.unregister(key.fd)
                        self._close(key.fd)
        os.close(woken)

    def _goes_on(self, selector: selectors.BaseSelector, waker: int) -> bool:
        """Take what is new; return False where no pipe is left."""
        with self._lock:
            for pipe in self._new:
                selector.register(pipe, selectors.EVENT_READ)
            self._new.clear()
            if self._held:
                return True
            self._waker = None
            os.close(waker)
            return False

    def _close(self, pipe: int) -> None:
        with self._lock:
            self._held.discard(pipe)
            os.close(pipe)

    def forget(self) -> None:
        """Close everything: in a forked child, where no thread reads."""
        for descriptor in (*self._held, *(self._waker or ())):
            with contextlib.suppress(OSError):  # the parent was about to close it
                os.close(descriptor)


_DROPPER = _Dropper()


def drop(pipe: int) -> None:
    """Read and drop what comes from `pipe` from now on. Its descriptor now belongs to this."""
    _DROPPER.take(pipe)


def _after_fork_in_child() -> None:
    global _DROPPER
    _DROPPER.forget()
    _DROPPER = _Dropper()


os.register_at_fork(after_in_child=_after_fork_in_child)
