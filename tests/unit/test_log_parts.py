"""Parts of the log in the moments that whole appends only reach by chance: whom a settled commit wakes, and locks."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from processes import PATIENCE_S, in_thread, until
from ttasks import LedgerUnwritableError
from ttasks.log import event_log, files
from ttasks.log.event_log import EventLog, _Request
from ttasks.log.lock import WriterLock


def test_one_that_is_woken_waits_no_more_and_again_waits_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "TURN_WAIT_S", PATIENCE_S)
    request = _Request([])
    request.wake()
    request.wait()
    waiting = in_thread(request.wait)
    assert not waiting.done()
    request.wake()
    assert waiting.result(PATIENCE_S) is None


def test_who_is_woken_twice_before_it_waits_waits_once_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "TURN_WAIT_S", 0.0)
    request = _Request([])
    request.wake()
    request.wake()
    request.wait()
    assert request._turn.locked(), "the next wait is one"


def settled() -> _Request:
    request = _Request([])
    request.go_with([[[]]], 0)
    return request


def taken_back() -> _Request:
    request = _Request([])
    request.is_taken_back = True
    return request


def test_those_that_are_over_are_woken_and_the_first_that_is_not_to_lead() -> None:
    log = EventLog.open(None)
    over, leads, waits = [settled(), taken_back()], _Request([]), _Request([])
    log._queue = deque([over[0], leads, over[1], waits])
    log._tidy()
    assert list(log._queue) == [leads, waits]
    assert [request._turn.locked() for request in (*over, leads, waits)] == [False, False, False, True]
    log._queue.clear()
    log.close()


@pytest.mark.parametrize("only", [settled, taken_back])
def test_where_one_that_is_over_was_alone_nobody_is_woken(only: Callable[[], _Request]) -> None:
    log = EventLog.open(None)
    log._queue = deque([only()])
    log._tidy()
    assert not log._queue
    log.close()


# --- the lock of writers ---------------------------------------------------------------------------------------------


def waiters() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ttasks-lock"]


@pytest.fixture
def held(tmp_path: Path) -> WriterLock:
    lock = WriterLock(tmp_path / "lock")
    assert lock.acquire(0)
    return lock


def test_who_waits_has_the_lock_when_it_is_let_go(held: WriterLock, tmp_path: Path) -> None:
    before, mine = waiters(), WriterLock(tmp_path / "lock")
    waiting = in_thread(lambda: mine.acquire(PATIENCE_S))
    until(lambda: set(waiters()) - set(before))
    assert not waiting.done()
    held.release()
    assert waiting.result(PATIENCE_S)
    assert not held.acquire(0)
    mine.close()
    assert held.acquire(PATIENCE_S)
    held.close()


def test_a_lock_that_came_too_late_is_given_up(held: WriterLock, tmp_path: Path) -> None:
    before, mine = waiters(), WriterLock(tmp_path / "lock")
    assert not mine.acquire(0)
    (late,) = set(waiters()) - set(before)
    held.close()
    late.join(PATIENCE_S)
    assert not late.is_alive()
    assert mine.acquire(0), "nobody has it"
    mine.close()


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_wal_that_cannot_be_read_leaves_the_version_in_the_header(tmp_path: Path) -> None:
    made, path = tmp_path / "made.db", tmp_path / "ledger.db"
    log = EventLog.open(made)
    shutil.copy(made, path)
    path.with_name("ledger.db-wal").mkdir()
    assert files.schema_version(path) == files.SCHEMA_VERSION
    log.close()


def test_a_file_that_cannot_be_opened_to_write_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"no database" * 100)
    with pytest.raises(sqlite3.DatabaseError, match="not a database"):
        files.open_writer(path, durability="full")
    assert [each.name for each in tmp_path.iterdir()] == ["ledger.db"]
    assert path.read_bytes() == b"no database" * 100


def test_a_folder_is_no_ledger_and_a_file_in_a_file_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(files.NotALedgerError, match="is a folder"):
        files.schema_version(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(LedgerUnwritableError, match="can't be read: Not a directory"):
        files.schema_version(tmp_path / "file" / "ledger.db")


def test_only_a_ledger_is_one(tmp_path: Path) -> None:
    ledger, text, other = tmp_path / "ledger.db", tmp_path / "notes.txt", tmp_path / "shop.db"
    EventLog.open(ledger).close()
    text.write_text("no database\n" * 20)
    sqlite3.connect(other).execute("CREATE TABLE things (id INTEGER)").connection.close()
    answers = {path: files.is_ledger(path) for path in (ledger, text, other, tmp_path, tmp_path / "nothing")}
    assert answers == {ledger: True, text: False, other: False, tmp_path: False, tmp_path / "nothing": False}
