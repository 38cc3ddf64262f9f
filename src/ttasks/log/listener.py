"""Hearing of cancels that other processes ask for, while something runs here."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ttasks.errors import LedgerError
from ttasks.log import files

LISTEN_S: Final = 0.1
"""How long a request of another process may wait to be heard."""
_ASKED: Final = {
    "task": "SELECT cancel_requested_by FROM tasks WHERE id = ?",
    "graph": "SELECT cancel_requested_by FROM graphs WHERE id = ?",
}


class Listener:
    """One thread that looks, as long as there is somebody to tell, whether what is watched was asked to cancel.

    `watchers` maps streams to whom to tell, and is the caller's: it changes while this looks. Nothing is read but a
    counter of SQLite's, until somebody has committed.
    """

    def __init__(self, path: Path, watchers: Mapping[str, Callable[[], None]]) -> None:
        self._path = path
        self._watchers = watchers
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="ttasks-listen", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._over.set()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _listen(self) -> None:
        seen: int | None = None
        connection: sqlite3.Connection | None = None
        try:
            while not self._over.wait(LISTEN_S):
                if not self._watchers:
                    continue
                # A ledger that can't be read just now can't be written either, and whoever runs will hear of that.
                with contextlib.suppress(sqlite3.Error, OSError, LedgerError):
                    if connection is None:
                        connection = self._open()
                    if connection is None:
                        continue
                    (now,) = connection.execute("PRAGMA data_version").fetchone()
                    if now != seen:
                        self._look(connection)
                        seen = now
        finally:
            if connection is not None:
                connection.close()

    def _open(self) -> sqlite3.Connection | None:
        connection, without_locks = files.open_reader(self._path)
        if without_locks is None:
            return connection
        connection.close()  # nobody has the ledger open to write; and what is read so can't be kept
        return None

    def _look(self, connection: sqlite3.Connection) -> None:
        for stream, tell in list(self._watchers.items()):
            kind, _, name = stream.partition("-")
            row = connection.execute(_ASKED[kind], (name,)).fetchone()
            if row is not None and row[0] is not None:
                tell()
