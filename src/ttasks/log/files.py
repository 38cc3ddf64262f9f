"""Ledger files: making one, telling one from any other file, and opening one to write or to read."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Final
from urllib.parse import quote

from ttasks.errors import LedgerError, LedgerUnwritableError, NotALedgerError
from ttasks.log.migrate import APPLICATION_ID, SCHEMA_VERSION, migrate
from ttasks.log.older import complete
from ttasks.log.place import check_place
from ttasks.log.schema import refuse_to_read

MEMORY: Final = ":memory:"
WAL_BYTES_MAX: Final = 64 * 1024 * 1024
HEADER_BYTES: Final = 100
STEPS_MAX: Final = 100_000_000
"""How many steps of SQLite's virtual machine a question may take on a small file: a few seconds."""
STEPS_OF_BYTE: Final = 50
"""How many more for each byte: checking all of a ledger takes less than one."""
STEPS_BETWEEN_LOOKS: Final = 1_000_000

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


def runner_path(path: Path, runner_id: str) -> Path:
    """Return the side file that a runner of this ledger keeps locked as long as it lives."""
    real = Path(os.path.realpath(path))  # whoever reads may have come by a link
    return real.with_name(f"{real.name}-runner-{runner_id}")


def checked_path(path: Path) -> Path:
    """Return the side file that says what the last `ttasks verify` of this ledger found."""
    real = Path(os.path.realpath(path))
    return real.with_name(f"{real.name}-verified")


def schema_version(path: Path) -> int | None:
    """Return the schema version of the ledger at `path`; None where there is no file yet.

    An empty file counts as none. It is read from the file's header, and from the WAL where a later one is there. The
    file is only read, so one that isn't ours stays as it is.

    Raises:
        NotALedgerError: the file is something else, or a ledger of a newer ttasks.
        LedgerUnwritableError: it can't be read.
    """
    found = _identity(path)
    if found is None:
        return None
    application_id, version = found
    if application_id != APPLICATION_ID:
        raise NotALedgerError(
            f"{path} is a SQLite database, but not a ledger (it has no schema_version of one); it was left untouched"
        )
    version = max(version, _version_in_wal(Path(os.path.realpath(path))))  # what is beside a link is not its WAL
    if version > SCHEMA_VERSION:
        raise newer_version(path, version)
    return int(version)


def is_ledger(path: Path) -> bool:
    """True for a ledger of any version, also one that only a newer ttasks can read."""
    try:
        found = _identity(path)
    except LedgerError:
        return False
    return found is not None and found[0] == APPLICATION_ID


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the application id and the schema version in the header of a SQLite file; None where there is none yet.

    SQLite reads them, because the file must not be opened and closed around it: closing any descriptor of a file gives
    up the locks that this process has on it (fcntl(2)), also those by which SQLite keeps other processes from taking
    themselves for the last one, and the WAL away from whoever writes or reads here (sqlite.org/howtocorrupt.html §2.2).
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerUnwritableError(f"the ledger {path} can't be read: {error.strerror}") from error
    if stat.S_ISDIR(status.st_mode):
        raise NotALedgerError(f"{path} is a folder, not a ledger (no schema_version); it was left untouched")
    if not stat.S_ISREG(status.st_mode):  # opening it could wait for ever
        raise NotALedgerError(f"{path} is no regular file, so no ledger (no schema_version); it was left untouched")
    if status.st_size == 0:
        return None
    try:
        with contextlib.closing(_connect(_address(path) + "?mode=ro&immutable=1")) as connection:
            connection.execute("PRAGMA writable_schema = ON")  # else the header of a file that was cut can't be read
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            return int(application_id) & 0xFFFF_FFFF, read_version(connection)
    except SQLITE_ERRORS as error:
        if status.st_size >= HEADER_BYTES and not is_damage(error):
            why = error if os.access(path, os.R_OK) else os.strerror(errno.EACCES)
            raise LedgerUnwritableError(f"the ledger {path} can't be read: {why}") from error
        raise NotALedgerError(
            f"{path} is not a ledger (it has no schema_version of one), or its first bytes are damaged; "
            "it was left untouched"
        ) from error


def _version_in_wal(path: Path) -> int:
    """Return the schema version that a migration left in the WAL: it was killed, or has the ledger open."""
    try:
        now = Fingerprint.of(path)
        if now.wal is None or now.wal[1] == 0:
            return 0
        address, *first = _beside_wal(path, now)
        check_place(path, for_writing=False)
        opened = _connect(address, timeout=1) if now.has_shm else _connect_lockless(path, address, timeout=1)
        with contextlib.closing(opened) as connection:
            return read_version(connection, first)
    except (LedgerError, *SQLITE_ERRORS):  # whoever opens it to read or write meets that again, and says so
        return 0


def newer_version(path: Path, version: int) -> NotALedgerError:
    """Return the refusal of a ledger whose schema is newer than this ttasks."""
    return NotALedgerError(
        f"{path} has schema_version {version}, this ttasks knows {SCHEMA_VERSION}: a newer ttasks made it; "
        "it was left untouched. Upgrade ttasks to use it"
    )


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


@dataclass(frozen=True)
class Fingerprint:
    """What tells whether anybody wrote to a ledger: inode, size and time of the file and of its WAL, and whether there
    is a ``-shm``, which whoever has it open in WAL mode has beside it."""

    file: tuple[int, int, int] | None
    wal: tuple[int, int, int] | None
    has_shm: bool

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """Return the fingerprint of the ledger at `path` as it is now.

        Raises:
            NotALedgerError: the file, or its WAL, is no regular file: opening it could wait for ever.
            LedgerUnwritableError: it can't be looked at.
        """
        # In this order: whoever opens it makes the -shm before writing anything.
        file, wal = _stamp(path), _stamp(path.with_name(path.name + "-wal"))
        return cls(file, wal, path.with_name(path.name + "-shm").exists())


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LedgerUnwritableError(f"{path} can't be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise NotALedgerError(f"{path} is no regular file; it was left untouched")
    return status.st_ino, status.st_size, status.st_mtime_ns


def open_reader(path: Path) -> tuple[Reader, Fingerprint | None]:
    """Return a connection that only reads, beside a live writer as on a copy in a folder that can't be written.

    An older ledger looks through it like one of this version (see `older`).

    Where there is no ``-shm``, nobody has the ledger open. To read it as usual, SQLite would make one and leave it
    there, so it is read without one, and without locks. What is read so counts only if the fingerprint, which comes
    with the connection, is the same afterwards. It is None where SQLite's own locks see to that.
    """
    before = Fingerprint.of(path)
    if before.has_shm:
        with contextlib.suppress(sqlite3.OperationalError):  # the -shm can't be opened here
            return _connect_reader(path, _address(path) + "?mode=ro"), None
    if before.wal is None or before.wal[1] == 0:
        return _connect_reader(path, _address(path) + "?mode=ro&immutable=1"), before
    # Where there is a -shm that can't be opened here, nobody in this process can have the ledger open as usual.
    beside = _beside_wal(path, replace(before, has_shm=False))
    return _connect_reader(path, *beside, is_lockless=not before.has_shm), before


def _address(path: Path) -> str:
    return "file:" + quote(os.fsencode(path.absolute()))


def _beside_wal(path: Path, now: Fingerprint) -> tuple[str, ...]:
    """Return the address of a ledger that has a WAL, and what to execute first, so that nothing is made beside it."""
    if now.has_shm:
        return (_address(path) + "?mode=ro",)
    # Its last writer was killed, or a reader kept it from tidying up: the WAL belongs to the data. In exclusive mode
    # SQLite keeps the index of the WAL in this process's memory (sqlite.org/wal.html#noshm).
    return _address(path) + "?mode=ro&vfs=unix-none", "PRAGMA locking_mode = EXCLUSIVE"


class Steps:
    """Counts what SQLite does for one question, and has it stop where the file can't be worth that.

    Reading each byte of it takes far less: what goes on is a file that leads in circles, and would go on for ever.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken = 0

    def begin(self) -> None:
        """Count from zero, for the next question."""
        self._taken = 0

    @property
    def are_spent(self) -> bool:
        """True where the question has taken more steps than the file is worth."""
        if self._taken <= STEPS_MAX:
            return False
        beside = (self._path, self._path.with_name(self._path.name + "-wal"))
        sizes = [stamp[1] for stamp in map(_stamp, beside) if stamp is not None]
        return self._taken > STEPS_MAX + STEPS_OF_BYTE * sum(sizes)

    def __call__(self) -> bool:
        self._taken += STEPS_BETWEEN_LOOKS
        return self.are_spent


class Reader(sqlite3.Connection):
    """A connection that only reads, and gives up on a question that would go on for ever.

    `version` is the schema version that the ledger had when it was opened.
    """

    steps: Steps
    version: int

    def bound(self) -> None:
        """Count its steps, also where something else was asked meanwhile whether to go on."""
        self.set_progress_handler(self.steps, STEPS_BETWEEN_LOOKS)


class _Lockless(Reader):
    """A connection to a file that nobody had open: it knows of no locks, also not of those that its closing gives up.

    See `_identity`. It is kept open as long as somebody, maybe in this process, has the ledger open as usual by now.
    """

    shm: Path
    kept: ClassVar[list[_Lockless]] = []

    def close(self) -> None:
        _Lockless.kept.append(self)
        for each in [each for each in _Lockless.kept if not each.shm.exists()]:
            with contextlib.suppress(ValueError):  # another thread is just closing it
                _Lockless.kept.remove(each)
                sqlite3.Connection.close(each)


def _connect(address: str, *, timeout: float = 30, kind: type[Reader] = Reader) -> Reader:
    return sqlite3.connect(
        address, uri=True, isolation_level=None, check_same_thread=False, timeout=timeout, factory=kind
    )


def _connect_lockless(path: Path, address: str, *, timeout: float = 30) -> _Lockless:
    connection = _connect(address, timeout=timeout, kind=_Lockless)
    assert isinstance(connection, _Lockless)
    connection.shm = path.with_name(path.name + "-shm")
    return connection


def read_version(connection: sqlite3.Connection, first: Iterable[str] = ()) -> int:
    """Execute what is to come first, and return the schema version that a ledger has now."""
    for statement in first:
        connection.execute(statement).fetchall()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _connect_reader(path: Path, address: str, *first: str, is_lockless: bool = False) -> Reader:
    connection: Reader = _connect_lockless(path, address) if is_lockless else _connect(address)
    connection.steps = Steps(path)
    connection.bound()
    try:
        connection.version = read_version(connection, first)
        refuse_to_read(connection)
        if connection.version > SCHEMA_VERSION:
            raise newer_version(path, connection.version)
        if connection.version < SCHEMA_VERSION:
            complete(connection)
        connection.execute("PRAGMA query_only = 1")
    except BaseException:
        connection.close()
        raise
    return connection
