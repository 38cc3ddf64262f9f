"""What Linux alone can tell and do about files: what is mounted where, and a rename that overwrites nothing."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_AT_FDCWD: Final = -100
_RENAME_NOREPLACE: Final = 1
_CANNOT: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.EPERM})
"""What a kernel, a file system or a sandbox says that has no rename with flags."""


def is_mount_point(path: Path) -> bool:
    """True where something is mounted at exactly `path`, which is absolute and without symbolic links.

    False where the operating system can't be asked: only Linux lists its mounts in a file.
    """
    try:
        mounts = _MOUNTINFO.read_bytes()
    except OSError:
        return False
    wanted = os.fsencode(path)
    return any(_unescaped(line.split(b" ", 5)[4]) == wanted for line in mounts.splitlines())


def _unescaped(field: bytes) -> bytes:
    """Return a path of mountinfo: space, tab, newline and backslash are in it as three octal digits (proc(5))."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)


def rename_new(source: Path, target: Path) -> None:
    """Rename `source` to `target`, and overwrite no file there, as far as the operating system can do that.

    Raises:
        FileExistsError: there is a file at `target`. Nothing was renamed.
        OSError: it can't be renamed.
    """
    if not _rename_by_kernel(source, target):
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)


def _rename_by_kernel(source: Path, target: Path) -> bool:
    """Return False where this system has no rename that refuses to overwrite."""
    import ctypes  # only where a ledger is made

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(target))
