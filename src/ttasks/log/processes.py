"""What the operating system tells of other processes: read from /proc on Linux, asked of psutil elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ttasks.log.runner import is_over_by, is_process, process_start

PROC = "/proc"


@dataclass(frozen=True, slots=True)
class Process:
    """A process at the moment of a look. `start` is as `process_start`; a zombie `is_over`."""

    pid: int
    start: str
    parent: int
    group: int
    session: int
    is_over: bool = False

    def is_alive(self) -> bool:
        """True while it has not ended; another process that got its pid since is not it."""
        return is_process(self.pid, self.start)


def every_process(but: Collection[int] = ()) -> list[Process]:
    """Return all processes that can be seen from here, `but` some. One that starts or ends meanwhile may be missing."""
    try:
        names = os.listdir(PROC)  # noqa: PTH208 - names are all that is wanted, of hundreds of processes
    except OSError:
        return list(_ask_psutil(but))
    pids = (int(name) for name in names if name.isdigit())
    return [process for pid in pids if pid not in but and (process := _read_stat(pid)) is not None]


def _read_stat(pid: int) -> Process | None:
    stat = _read(pid, "stat")
    if not stat:
        return None
    # The name in parentheses may hold anything; field 3, the state, is the first after it (proc(5)).
    fields = stat[stat.rindex(b")") + 2 :].split(b" ", 20)
    start = f"ticks:{fields[19].decode('ascii')}"
    is_over = is_over_by(fields[0], fields[17])
    return Process(pid, start, int(fields[1]), int(fields[2]), int(fields[3]), is_over)


def _read(pid: int, name: str) -> bytes | None:
    """Return a file of a process; None where it may not be read, or has ended."""
    try:
        descriptor = os.open(f"{PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _ask_psutil(but: Collection[int]) -> Iterator[Process]:
    import psutil

    for process in psutil.process_iter(["ppid", "status"]):
        if process.pid in but:
            continue
        start = process_start(process.pid)
        try:
            group, session = os.getpgid(process.pid), os.getsid(process.pid)
        except OSError:
            continue
        if start is not None:
            is_over = process.info["status"] == psutil.STATUS_ZOMBIE
            yield Process(process.pid, start, process.info["ppid"] or 0, group, session, is_over)


def variables(pid: int, name: str, other: str) -> tuple[str | None, str | None]:
    """Return two variables of the environment that a process was started with; None for each that can't be known."""
    if os.path.isdir(PROC):  # noqa: PTH112 - asked of every process in a look
        environment = b"\0" + (_read(pid, "environ") or b"")
        return _variable(environment, name), _variable(environment, other)
    found = _environment_by_psutil(pid)
    return found.get(name), found.get(other)


def _variable(environment: bytes, name: str) -> str | None:
    key = b"\0" + name.encode("ascii") + b"="
    begin = environment.find(key)
    if begin < 0:
        return None
    return os.fsdecode(environment[begin + len(key) :].partition(b"\0")[0])


def _environment_by_psutil(pid: int) -> Mapping[str, str]:
    import psutil

    try:
        return psutil.Process(pid).environ()
    except (psutil.Error, OSError):
        return {}


def holders(descriptors: Collection[int]) -> list[int] | None:
    """Return the other processes that have one of this process's pipes open, by pid; None where that can't be seen."""
    try:
        pipes = set(_opened(os.getpid(), map(str, descriptors)))
        pids = sorted(int(name) for name in os.listdir(PROC) if name.isdigit())  # noqa: PTH208
    except OSError:
        return None
    return [pid for pid in pids if pid != os.getpid() and not pipes.isdisjoint(_opened(pid))]


def _opened(pid: int, descriptors: Iterable[str] | None = None) -> Iterator[str]:
    """Yield what a process has open, by the names that /proc gives it; nothing where that may not be seen."""
    folder = f"{PROC}/{pid}/fd"
    with contextlib.suppress(OSError):  # it is gone, or another user's
        for descriptor in os.listdir(folder) if descriptors is None else descriptors:  # noqa: PTH208
            with contextlib.suppress(OSError):  # closed meanwhile
                yield os.readlink(f"{folder}/{descriptor}")  # noqa: PTH115


def name_of(pid: int) -> str | None:
    """Return the name of a process's program; None where it has ended."""
    try:
        return Path(f"{PROC}/{pid}/comm").read_text("utf-8", "replace").rstrip("\n")
    except OSError:
        pass
    import psutil

    try:
        return psutil.Process(pid).name()
    except (psutil.Error, OSError):
        return None
