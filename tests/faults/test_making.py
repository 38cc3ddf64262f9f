"""A ledger that is being made is there whole, with its first event, or not at all, whatever comes in between."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from ttasks import LedgerUnwritableError, SQLiteStore, Task
from ttasks.log import files, making, mounts, place
from ttasks.log.event_log import EventLog
from ttasks.log.migrate import SCHEMA_VERSION
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
TIMEOUT_S = 60
MAKING = {making.__file__, place.__file__, mounts.__file__}
"""The modules with the steps of making a ledger."""


def is_clean(path: Path) -> bool:
    with contextlib.closing(Readers.open(path)) as readers:
        return verify(readers).is_clean


def make(path: Path) -> None:
    EventLog.open(path).close()


def everything_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


def killed_at(line: int, work: Callable[[], object]) -> bool:
    """Do `work` in a forked child, which is killed before that many lines of making a ledger; return whether it was."""
    child = os.fork()
    if child == 0:
        left = line

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename not in MAKING:
                return None
            if event == "line":
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_a_process_that_is_killed_at_any_line_leaves_no_ledger_or_a_whole_one(tmp_path: Path) -> None:
    make(tmp_path / "first.db")  # what is imported when the first one is made
    line, left = 0, set()
    while True:
        folder = tmp_path / str(line) / ".ttasks"
        path = folder / "ledger.db"
        is_killed = killed_at(line, lambda path=path: make(path))
        if path.exists():
            assert is_clean(path), line
            left.add("a ledger")
        elif path.with_name("ledger.db-new").exists():
            left.add("an unfinished one")

        make(path)

        assert is_clean(path), line
        assert everything_in(folder) == {"ledger.db", "ledger.db-lock"}
        shutil.rmtree(folder.parent)
        if not is_killed:
            break
        line += 1 if CAMPAIGN else 7
    assert line > 50
    assert left == {"a ledger", "an unfinished one"}


def test_a_new_ledger_has_its_first_event_when_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.db"
    monkeypatch.setattr(files, "open_writer", _crash)

    with pytest.raises(KeyboardInterrupt):
        EventLog.open(path)

    assert everything_in(tmp_path) == {"ledger.db", "ledger.db-lock"}
    with contextlib.closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        assert connection.execute("SELECT position, type FROM events").fetchall() == [(1, "LedgerCreated")]
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    assert is_clean(path)


def _crash(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def no_room() -> Iterator[None]:
    """Let no file grow beyond 8 KiB, which is less than a ledger has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_no_ledger_is_made_and_nothing_is_left_of_it(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "ledger.db"
    request.getfixturevalue("no_room")

    with pytest.raises(LedgerUnwritableError, match="File too large; nothing was written"):
        EventLog.open(path)

    assert everything_in(tmp_path) == {"ledger.db-lock"}


def test_a_file_that_another_program_makes_at_the_last_moment_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_linux: bool
) -> None:
    path = tmp_path / "ledger.db"
    fsync = os.fsync

    def late(descriptor: int) -> None:
        fsync(descriptor)
        path.write_text("precious")

    monkeypatch.setattr(os, "fsync", late)
    if not is_linux:
        monkeypatch.setattr(mounts, "_rename_by_kernel", lambda *_: False)

    with pytest.raises(LedgerUnwritableError, match="File exists"):
        EventLog.open(path)

    assert path.read_text() == "precious"
    assert everything_in(tmp_path) == {"ledger.db", "ledger.db-lock"}


@pytest.fixture(params=[True, False], ids=["by the kernel", "without it"])
def is_linux(request: pytest.FixtureRequest) -> bool:
    return bool(request.param) and sys.platform == "linux"


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES, None])
def test_where_the_kernel_has_no_rename_that_keeps_files_another_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None
) -> None:
    import ctypes

    class Library:
        """A C library whose kernel refuses; it lacks the call where there is no code."""

        def __getattr__(self, name: str) -> Callable[..., int]:
            if code is None:
                raise AttributeError(name)
            return lambda *_: -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Library())
    monkeypatch.setattr(ctypes, "get_errno", lambda: code)

    if code == errno.EACCES:
        with pytest.raises(LedgerUnwritableError, match="Permission denied"):
            EventLog.open(tmp_path / "ledger.db")
    else:
        make(tmp_path / "ledger.db")
        assert is_clean(tmp_path / "ledger.db")


def test_of_two_processes_that_make_one_the_other_waits_and_uses_it(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    program = (
        "import sys; from ttasks import SQLiteStore, Task; sys.stdin.readline()\n"
        "with SQLiteStore(sys.argv[1]) as store: store.tasks.save(Task.bash('true'))"
    )
    both = [subprocess.Popen([sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE) for _ in range(2)]
    for each in both:
        assert each.stdin is not None
        each.stdin.write(b"\n")
        each.stdin.flush()
    for each in both:
        each.communicate(timeout=TIMEOUT_S)

    assert [each.returncode for each in both] == [0, 0]
    assert is_clean(path)
    with contextlib.closing(Readers.open(path)) as readers:
        assert readers.count("tasks") == 2


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_an_empty_file_gets_a_whole_ledger_in_its_place(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "ledger.db"
    path.touch()
    path.chmod(mode)
    make_of = killed_at(0, lambda: make(path))

    assert make_of
    assert path.stat().st_size == 0
    make(path)

    assert is_clean(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert everything_in(tmp_path) == {"ledger.db", "ledger.db-lock"}


def test_a_ledger_that_an_older_ttasks_left_without_its_first_event_gets_it_from_the_next_writer(
    tmp_path: Path,
) -> None:
    path = tmp_path / "ledger.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        files.upgrade(connection)

    assert not is_clean(path)
    with SQLiteStore(path) as store:
        store.tasks.save(Task.bash("true"))

    assert is_clean(path)


def test_a_ledger_of_that_name_is_not_taken_for_an_unfinished_one(tmp_path: Path) -> None:
    other = tmp_path / "ledger.db-new"
    make(other)
    before = other.read_bytes()

    with pytest.raises(LedgerUnwritableError, match="is a ledger of its own"):
        EventLog.open(tmp_path / "ledger.db")

    assert other.read_bytes() == before


@pytest.mark.parametrize("suffix", ["-wal", "-journal"])
def test_what_an_earlier_ledger_left_beside_it_is_not_read_into_a_new_one(tmp_path: Path, suffix: str) -> None:
    left = tmp_path / f"ledger.db{suffix}"
    left.write_bytes(b"what was last recorded")

    with pytest.raises(LedgerUnwritableError, match=f"move ledger.db{suffix} away to begin a new ledger"):
        EventLog.open(tmp_path / "ledger.db")

    assert not (tmp_path / "ledger.db").exists()
