"""What the last check found, beside the ledger: written whole, and read though anybody may have written it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ttasks.log import checked
from ttasks.log.checked import Checked
from ttasks.log.files import checked_path
from ttasks.log.verify import Problem, Report

CLEAN = Checked(
    at=datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC),
    by="ada@engine",
    position=7,
    head="ab" * 32,
    problems=0,
    promise=None,
    broken_at=None,
    version="1.2",
)
NOT_CLEAN = replace(CLEAN, problems=2, promise="integrity", broken_at=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def said(path: Path, **changes: Any) -> None:
    """Write a side file by hand: that of a check that was not clean, with changes."""
    assert checked.write(path, NOT_CLEAN)
    beside = checked_path(path)
    beside.write_text(json.dumps({**json.loads(beside.read_text()), **changes}))


@pytest.mark.parametrize("check", [CLEAN, NOT_CLEAN, replace(NOT_CLEAN, promise="schema", broken_at=None)])
def test_what_was_written_is_read_again(path: Path, check: Checked) -> None:
    assert checked.write(path, check)
    assert checked.read(path) == check
    assert check.is_clean is (check.problems == 0)


def test_the_file_is_json_that_says_who_found_what_and_when(path: Path) -> None:
    checked.write(path, NOT_CLEAN)
    assert json.loads(checked_path(path).read_text()) == {
        "when": "2026-01-02T03:04:05.000678Z",
        "who": "ada@engine",
        "is_clean": False,
        "problems": 2,
        "first": {"promise": "integrity", "position": 5},
        "position": 7,
        "head": "ab" * 32,
        "ttasks": "1.2",
    }


def test_a_report_is_kept_with_its_first_problem_and_who_made_it() -> None:
    report = Report(3, "cd" * 32, [Problem("rows", None, "a row"), Problem("order", 2, "an event")])
    now = checked.checked_now(report)
    assert (now.position, now.head, now.problems, now.promise, now.broken_at) == (3, "cd" * 32, 2, "order", 2)
    assert "@" in now.by and now.at.tzinfo is UTC
    clean = checked.checked_now(Report(3, "cd" * 32))
    assert clean.is_clean and clean.promise is None and clean.broken_at is None


def test_only_the_owner_may_read_it_and_nothing_else_is_left(path: Path) -> None:
    checked.write(path, CLEAN)
    checked.write(path, NOT_CLEAN)
    assert [each.name for each in path.parent.iterdir()] == ["ledger.db-verified"]
    assert stat.S_IMODE(checked_path(path).stat().st_mode) == 0o600


def test_what_a_killed_check_left_is_cleared_away(path: Path) -> None:
    path.with_name(f"{path.name}-verified-new").write_text("half of")

    assert checked.write(path, CLEAN)

    assert not path.with_name(f"{path.name}-verified-new").exists()
    assert checked.read(path) == CLEAN


def test_a_link_to_a_ledger_leads_to_the_check_beside_the_ledger(path: Path, tmp_path: Path) -> None:
    path.touch()
    link = tmp_path / "link.db"
    link.symlink_to(path)
    checked.write(link, CLEAN)
    assert checked_path(path).exists() and checked.read(link) == CLEAN


def test_where_nothing_can_be_made_nothing_is_kept(tmp_path: Path) -> None:
    assert not checked.write(tmp_path / "no folder" / "ledger.db", CLEAN)


def test_where_it_can_not_be_put_in_place_what_was_there_stays_and_no_part_is_left(path: Path) -> None:
    checked_path(path).mkdir()
    (checked_path(path) / "something").touch()
    assert not checked.write(path, CLEAN)
    assert [each.name for each in path.parent.iterdir()] == ["ledger.db-verified"]


def test_a_full_disk_leaves_the_check_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked.write(path, CLEAN)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    assert not checked.write(path, NOT_CLEAN)
    assert checked.read(path) == CLEAN
    assert [each.name for each in path.parent.iterdir()] == ["ledger.db-verified"]


def test_where_there_is_none_none_is_read(path: Path) -> None:
    assert checked.read(path) is None


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"7", b'"text"', b"{}", b"\xff\xfe\x00", b"[" * 4000, b" " * 5000,
        b'{"when": ' + b"9" * 4000 + b"}",
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_ours_is_none(path: Path, content: bytes) -> None:
    checked_path(path).write_bytes(content)
    assert checked.read(path) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"when": "yesterday"}, {"when": 7}, {"when": None}, {"when": "2026-01-02T03:04:05"},
        {"when": "0001-01-01T00:00:00+00:00"}, {"when": "9999-12-31T23:59:59-23:59"},
        {"who": None}, {"who": ["ada"]}, {"who": "a" * 257},
        {"is_clean": True}, {"is_clean": 0}, {"is_clean": "no"},
        {"problems": -1}, {"problems": 0}, {"problems": True}, {"problems": 2.0}, {"problems": "2"},
        {"first": None}, {"first": []}, {"first": "integrity"}, {"first": {"promise": "rows"}},
        {"first": {"promise": 3, "position": 1}}, {"first": {"promise": "rows", "position": "1"}},
        {"position": 2**63}, {"position": -1}, {"position": None}, {"position": False}, {"position": 1e300},
        {"head": ""}, {"head": "ab" * 31}, {"head": "zz" * 32}, {"head": 5}, {"head": "ab" * 200},
        {"ttasks": None}, {"ttasks": {}},
    ],
)  # fmt: skip
def test_a_file_that_says_what_ttasks_would_not_is_none(path: Path, changes: dict[str, Any]) -> None:
    said(path)
    assert checked.read(path) == NOT_CLEAN
    said(path, **changes)
    assert checked.read(path) is None


def test_what_a_newer_ttasks_adds_is_passed_over(path: Path) -> None:
    said(path, mood="good")
    assert checked.read(path) == NOT_CLEAN


def test_a_pipe_or_a_folder_or_a_link_in_its_place_keeps_nobody_waiting(path: Path, tmp_path: Path) -> None:
    beside = checked_path(path)
    os.mkfifo(beside)
    assert checked.read(path) is None
    beside.unlink()
    beside.mkdir()
    assert checked.read(path) is None
    beside.rmdir()
    checked.write(tmp_path / "other.db", CLEAN)
    beside.symlink_to(checked_path(tmp_path / "other.db"))
    assert checked.read(path) is None
    shutil.copy(checked_path(tmp_path / "other.db"), tmp_path / "copy")
    (tmp_path / "copy").replace(beside)
    assert checked.read(path) == CLEAN
