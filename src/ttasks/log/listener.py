"""Hearing of cancels that other processes ask for, while something runs here."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from typing import Final

from ttasks.errors import LedgerError
from ttasks.log.reading import Readers

LISTEN_S: Final = 0.1
"""How long a request of another process may wait to be heard."""


class Listener:
    """One thread that looks, as long as there is somebody to tell, whether what is watched was asked to cancel.

    `watchers` maps streams to whom to tell, and is the caller's: it changes while this looks. Until somebody has
    committed, a look is one step into the log's index.
    """

    def __init__(self, readers: Readers, watchers: Mapping[str, Callable[[], None]]) -> None:
        self._readers = readers
        self._watchers = watchers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="ttasks-listen", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._over.set()
        self._thread.join()

    def _listen(self) -> None:
        seen = 0
        while not self._over.wait(LISTEN_S):
            if not self._watchers:
                continue
            # A ledger that can't be read just now can't be written either, and whoever runs will hear of that.
            with contextlib.suppress(LedgerError, OSError):
                head = self._readers.head_position()
                if head != seen:
                    self._look()
                    seen = head

    def _look(self) -> None:
        for stream, tell in list(self._watchers.items()):
            if self._readers.is_asked_to_cancel(stream):
                tell()
