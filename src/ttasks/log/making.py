"""Making a ledger: it has its first event before it has its name."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from ttasks import clock
from ttasks.errors import LedgerUnwritableError
from ttasks.events.facts import LedgerCreated
from ttasks.log import files, mounts, place
from ttasks.log.transaction import Transaction, first_event
from ttasks.version import __version__

_WAL_VERSION: Final = 2
"""What a database in WAL mode has at 18 and 19 (sqlite.org/fileformat.html#file_format_version_numbers)."""


def begin(transaction: Transaction) -> None:
    """Record the first event of a ledger that has none.

    Raises:
        DamagedLedgerError: no event is there, but rows are. Nothing was written.
    """
    if transaction.is_empty():
        created = LedgerCreated(clock.new_id(), clock.now(), os.urandom(32).hex(), __version__)
        transaction.commit([[first_event(created)]], clock.now, [])


def create(path: Path) -> None:
    """Make a ledger with its first event and mode 0600, and put it in place whole: a crash leaves none or all of it.

    The caller holds the writer lock and has seen that there is no file, or an empty one.

    Raises:
        LedgerUnwritableError: what an earlier ledger had not yet written into its file is still beside it.
        FileExistsError: another program has made a file there just now, which is left as it is.
        OSError: it can't be written. There is still no ledger.
    """
    _refuse_leftovers(path)
    unfinished = path.with_name(path.name + "-new")
    _clear(unfinished)  # of a process that was killed here
    content = _content()
    descriptor = place.open_beside(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _put_in_place(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    place.sync_folder(path.parent)
    place.sync_folder(path.parent.parent)  # a process that was killed may have made the folder, and not come that far


def _refuse_leftovers(path: Path) -> None:
    for suffix in ("-wal", "-journal"):
        left = path.with_name(path.name + suffix)
        if left.exists() and left.stat().st_size > 0:
            # SQLite would read it into the new file: what comes of that is neither the old ledger nor a new one.
            raise LedgerUnwritableError(
                f"there is no ledger at {path}, but {left.name}, with what was last recorded in one, is still there; "
                f"nothing was written. Put the file back, or move {left.name} away to begin a new ledger"
            )


def _clear(unfinished: Path) -> None:
    """Remove what a killed process left of a ledger that it was making; never a ledger that is used under that name."""
    if unfinished.with_name(unfinished.name + place.LOCK).exists():
        raise LedgerUnwritableError(
            f"{unfinished} is a ledger of its own, and in the way of making one beside it; nothing was written. "
            "Move it away, or choose another name for the new one"
        )
    for suffix in ("", *place.OF_SQLITE):
        unfinished.with_name(unfinished.name + suffix).unlink(missing_ok=True)


def _content() -> bytes:
    """Return the bytes of a new ledger's file, in WAL mode."""
    with closing(sqlite3.connect(files.MEMORY, isolation_level=None)) as connection:
        files.upgrade(connection)
        begin(Transaction(connection))
        content = bytearray(connection.serialize())
    content[18:20] = bytes([_WAL_VERSION, _WAL_VERSION])
    return bytes(content)


def _put_in_place(unfinished: Path, path: Path) -> None:
    try:
        is_empty = path.stat().st_size == 0
    except FileNotFoundError:
        is_empty = False
    if is_empty:
        unfinished.replace(path)
    else:
        mounts.rename_new(unfinished, path)
