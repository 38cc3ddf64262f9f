"""Ledger files: making one, telling one from any other file, and opening one to write or to read."""

from __future__ import annotations

import os
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Final
from urllib.parse import quote

from ttasks.errors import LedgerUnwritableError, NotALedgerError
from ttasks.log.migrate import APPLICATION_ID, SCHEMA_VERSION, migrate

MEMORY: Final = ":memory:"
WAL_BYTES_MAX: Final = 64 * 1024 * 1024

_MAY_PASS: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
    }
)


SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
"""What may come of reading a file: where SQLite's own message quotes garbage, Python fails to make an error of it."""


def is_damage(error: BaseException) -> bool:
    """True where it is the file's content that SQLite (or Python) can't read, and not the disk or the moment."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _MAY_PASS


def lock_path(path: Path) -> Path:
    """Return the side file that writers of this ledger lock."""
    return path.with_name(path.name + "-lock")


def schema_version(path: Path) -> int | None:
    """Return the schema version of the ledger at `path`; None where there is no file yet.

    An empty file counts as none. It is read from the file's header, and from the WAL where a later one is there. The
    file is only read, so one that isn't ours stays as it is.

    Raises:
        NotALedgerError: the file is something else, or a ledger of a newer ttasks.
        LedgerUnwritableError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise NotALedgerError(f"{path} is a folder, not a ledger (no schema_version); it was left untouched") from None
    except OSError as error:
        raise LedgerUnwritableError(f"the ledger {path} can't be read: {error.strerror}") from error
    if not header:
        return None
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        raise NotALedgerError(f"{path} is not a ledger (it has no schema_version of one); it was left untouched")
    (version,) = struct.unpack(">I", header[60:64])
    (application_id,) = struct.unpack(">I", header[68:72])
    if application_id != APPLICATION_ID:
        raise NotALedgerError(
            f"{path} is a SQLite database, but not a ledger (it has no schema_version of one); it was left untouched"
        )
    version = max(version, _version_in_wal(path))
    if version > SCHEMA_VERSION:
        raise NotALedgerError(
            f"{path} has schema_version {version}, this ttasks knows {SCHEMA_VERSION}: a newer ttasks made it; "
            "it was left untouched. Upgrade ttasks to use it"
        )
    return int(version)


def _version_in_wal(path: Path) -> int:
    """Return the schema version that a migration left in the WAL: it was killed, or has the ledger open."""
    wal = path.with_name(path.name + "-wal")
    if not wal.exists() or wal.stat().st_size == 0:
        return 0
    try:
        # Read-only, because closing another connection could move the WAL into the file.
        with closing(sqlite3.connect(_address(path) + "?mode=ro", uri=True, timeout=1)) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except SQLITE_ERRORS:  # whoever opens it to read or write meets that error again, and says so
        return 0
    return int(version)


def create(path: Path) -> None:
    """Make an empty ledger, with mode 0600, and put it in place whole: a crash leaves none or all of it.

    The caller holds the writer lock and has seen that there is no file, or an empty one.
    """
    unfinished = path.with_name(path.name + "-new")
    for name in (unfinished, unfinished.with_name(unfinished.name + "-journal")):
        name.unlink(missing_ok=True)
    os.close(os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(unfinished, isolation_level=None)
    try:
        upgrade(connection)
        connection.execute("PRAGMA journal_mode = WAL")
    finally:
        connection.close()
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring the schema up to date in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        migrate(connection)
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def open_writer(path: Path | None, *, durability: str) -> sqlite3.Connection:
    """Return a connection that may write; None as path means a ledger in memory, made here."""
    connection = sqlite3.connect(
        path if path is not None else MEMORY, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    if path is None:
        upgrade(connection)
        return connection
    try:
        # NORMAL is faster, but in WAL mode a commit may roll back after power loss
        # (sqlite.org/pragma.html#pragma_synchronous). A ledger that forgets is not one, unless its user asked for it.
        connection.execute(f"PRAGMA synchronous = {'NORMAL' if durability == 'normal' else 'FULL'}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
    except BaseException:
        connection.close()
        raise
    return connection


def open_reader(path: Path) -> sqlite3.Connection:
    """Return a connection that only reads, beside a live writer as on a copy in a folder that can't be written."""
    address = _address(path)
    try:
        connection = _connect_reader(address + "?mode=ro")
    except sqlite3.OperationalError:
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size > 0:
            raise
        # A cold WAL file needs a -shm beside it, which can't be made here. Nobody writes it either, so it is immutable.
        connection = _connect_reader(address + "?immutable=1")
    connection.execute("PRAGMA query_only = 1")
    return connection


def _address(path: Path) -> str:
    return "file:" + quote(os.fsencode(path.absolute()))


def _connect_reader(address: str) -> sqlite3.Connection:
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema LIMIT 1").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection
