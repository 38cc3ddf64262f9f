"""The place of a ledger: one name for its file, regular files of its owner beside it, folders of its owner above it.

SQLite and ttasks keep what belongs to a ledger in files beside it, under its name. A second name for the same file has
files of its own, so that those who use it and those who use the first don't see each other: committed events vanish.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from pathlib import Path
from typing import Final

from ttasks.errors import LedgerUnwritableError
from ttasks.log.mounts import is_mount_point

OF_SQLITE: Final = ("-journal", "-wal", "-shm")
"""What SQLite has beside a database, and opens by itself: a pipe there would keep it waiting."""
LOCK: Final = "-lock"
FILE_MODE: Final = 0o600
FOLDER_MODE: Final = 0o700
_KINDS: Final = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
)


def check_place(path: Path, *, for_writing: bool) -> None:
    """Refuse a ledger that may be in use under another name, or with something else than its own files beside it.

    Args:
        path: the ledger, absolute and without symbolic links; there may be no file yet.
        for_writing: the lock of its writers is looked at too.

    Raises:
        LedgerUnwritableError: it is refused. Nothing was opened, made or written.
    """
    owners = {0, os.geteuid()}
    with contextlib.suppress(OSError):  # there is no file or no folder, or it can't be reached: opening it says which
        owners.add(path.parent.stat().st_uid)
        status = path.stat()
        owners.add(status.st_uid)
        _check_name(path, status.st_nlink)
    for suffix in (*OF_SQLITE, LOCK) if for_writing else OF_SQLITE:
        beside = path.with_name(path.name + suffix)
        try:
            found = beside.lstat()
        except OSError:
            continue
        _check_file(beside, found, is_only_name=True)
        if found.st_uid not in owners:
            raise _in_the_way(beside, f"belongs to another user (uid {found.st_uid}), who could stop or change it")


def _check_name(path: Path, names: int) -> None:
    if names > 1:
        raise other_names(path, names)
    if is_mount_point(path):
        raise LedgerUnwritableError(
            f"{path} is mounted by itself (a bind mount, as with `docker -v`), and the files beside it are not: what "
            "is recorded under its other name does not show here. Nothing was written. Mount its folder instead"
        )


def other_names(path: Path, names: int) -> LedgerUnwritableError:
    """Return the refusal of a ledger whose file has more than one name."""
    return LedgerUnwritableError(
        f"{path} has {names} names (hard links), and what is recorded under one does not show under another. Nothing "
        f"was started. Keep one name and remove the others, which `find / -xdev -samefile {shlex.quote(str(path))}` "
        "lists, or use a copy"
    )


def open_beside(path: Path, flags: int, *, is_only_name: bool = False) -> int:
    """Open a file beside a ledger, follow no link, wait for nothing, and return its descriptor.

    Args:
        path: the file. Where `flags` have it made, its mode is 0600 whatever the umask is.
        flags: as for `os.open`.
        is_only_name: a file that has a second name (hard link) is refused.

    Raises:
        LedgerUnwritableError: it is no regular file, or has a second name.
        OSError: it can't be opened or made.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, FILE_MODE)
    except OSError as error:
        _say_what_is_there(path, error)
        raise
    try:
        status = os.fstat(descriptor)
        _check_file(path, status, is_only_name=is_only_name)
        if flags & os.O_CREAT and stat.S_IMODE(status.st_mode) != FILE_MODE and status.st_uid == os.geteuid():
            os.fchmod(descriptor, FILE_MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _say_what_is_there(path: Path, error: OSError) -> None:
    """Raise what is wrong with what is at `path`, where that is why it could not be opened."""
    if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
        _check_file(path, path.lstat(), is_only_name=False)


def _check_file(path: Path, status: os.stat_result, *, is_only_name: bool) -> None:
    if not stat.S_ISREG(status.st_mode):
        what = next((name for is_kind, name in _KINDS if is_kind(status.st_mode)), "a device")
        raise _in_the_way(path, f"is {what}")
    if is_only_name and status.st_nlink > 1:
        raise _in_the_way(path, f"has {status.st_nlink} names (hard links)")


def _in_the_way(path: Path, what: str) -> LedgerUnwritableError:
    return LedgerUnwritableError(
        f"{path} {what}, where the ledger needs a file of its own; nothing was written. Move it away and try again"
    )


def make_folders(folder: Path) -> None:
    """Make a folder, and those above it that are missing: each with mode 0700 whatever the umask, to survive a crash.

    Folders that are there are left as they are.

    Raises:
        OSError: one can't be made.
    """
    missing = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        try:
            each.mkdir(FOLDER_MODE)
        except FileExistsError:  # another process made it just now, or it is a file, which making the next one says
            continue
        mode = each.stat().st_mode
        if stat.S_IMODE(mode) & 0o777 != FOLDER_MODE:
            each.chmod(stat.S_IMODE(mode) & ~0o777 | FOLDER_MODE)
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive power loss; one that may be used but not read can't be synced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
