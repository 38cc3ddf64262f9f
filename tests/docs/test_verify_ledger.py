"""docs/verify_ledger.py checks a ledger with the standard library alone, and agrees with `ttasks verify`."""

from __future__ import annotations

import contextlib
import os
import runpy
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledgers import contents, forge, make_ledger, rehash, tampering
from strategies import created
from ttasks.log.event_log import EventLog
from ttasks.log.migrate import APPLICATION_ID, SCHEMA_VERSION, current_schema
from ttasks.log.reading import Readers
from ttasks.log.transaction import Batch
from ttasks.log.verify import verify

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "verify_ledger.py"


def check(path: Path, *head: str) -> subprocess.CompletedProcess[str]:
    """Run the script where neither site packages nor this repository can be imported."""
    done = subprocess.run(
        [sys.executable, "-S", "-I", str(SCRIPT), str(path), *head],
        cwd=path.parent, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "ledger.db"
    make_ledger(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def ledger(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "ledger.db"))


def test_a_clean_ledger_has_the_same_events_and_head_as_ttasks_finds(ledger: Path) -> None:
    report = verify(Readers.open(ledger))

    done = check(ledger, report.head)

    assert done.stdout == f"clean: {report.events} events, head {report.head}\n"
    assert done.returncode == 0


def test_a_ledger_in_use_is_read_with_what_was_committed_last(ledger: Path) -> None:
    with contextlib.closing(EventLog.open(ledger)) as log:
        log.append(Batch("task-t", [created()], 0))

        assert check(ledger, log.readers.head()[1].hex()).returncode == 0


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write everywhere, nobody may not; who is not root anyway stays who they are."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_ledger_in_a_folder_that_can_not_be_written_is_read_and_left_alone(
    original: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    report = verify(Readers.open(original))
    # Nobody may be kept from the source tree, unlike from an installed ttasks: what is read there is read now.
    schema = current_schema()
    monkeypatch.setattr("ttasks.log.verify.current_schema", lambda _: schema)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(shutil.copy(original, folder))
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        with as_nobody():
            with pytest.raises(PermissionError):
                path.with_name("probe").touch()

            assert verify(Readers.open(path)) == report
            assert main(str(path)) == 0
        Path(folder).chmod(0o755)
        assert os.listdir(folder) == [path.name]
    assert capsys.readouterr().out == f"clean: {report.events} events, head {report.head}\n"


TAMPERED: dict[str, tuple[str, str, int | None]] = {
    "the first event is changed": ("UPDATE events SET data = data || ' ' WHERE position = 1", "integrity", 1),
    "an event is changed": ("UPDATE events SET data = data || ' ' WHERE position = 9", "integrity", 9),
    "a hash is changed": ("UPDATE events SET hash = zeroblob(32) WHERE position = 9", "integrity", 9),
    "text is not UTF-8": (
        "UPDATE events SET data = CAST(x'7b22ff223a317d' AS TEXT) WHERE position = 9",
        "integrity",
        9,
    ),
    "an event is deleted": ("DELETE FROM events WHERE position = 9", "completeness", 9),
    "the first event is deleted": ("DELETE FROM events WHERE position = 1", "completeness", 1),
    "an event is moved": ("UPDATE events SET position = -3 WHERE position = 9", "completeness", -3),
    "all events are deleted": ("DELETE FROM events", "completeness", None),
}


@pytest.mark.parametrize("tampered", TAMPERED)
def test_what_was_changed_is_named(ledger: Path, tampered: str) -> None:
    statement, promise, position = TAMPERED[tampered]
    with tampering(ledger) as connection:
        connection.execute(statement)

    done = check(ledger)

    place = f"event {position}" if position is not None else "the ledger"
    assert done.stdout.startswith(f"{promise}: {place}: ")
    assert done.stdout.endswith("\nNOT clean\n")
    assert done.returncode == 1


REHASHED: dict[str, tuple[str, int]] = {
    "a version is skipped": ("UPDATE events SET version = version + 100 WHERE position = 9", 9),
    "its runner is unknown": ("UPDATE events SET runner = 900 WHERE position = 9", 9),
    "it has no runner": ("UPDATE events SET runner = NULL WHERE position = 9", 9),
    "its cause comes later": ("UPDATE events SET cause = 10 WHERE position = 9", 9),
    "the first is no beginning": ("UPDATE events SET type = 'TaskDeleted' WHERE position = 1", 1),
}


@pytest.mark.parametrize("tampered", REHASHED)
def test_what_can_not_follow_is_named_whatever_its_hash(ledger: Path, tampered: str) -> None:
    statement, position = REHASHED[tampered]
    with tampering(ledger) as connection:
        connection.execute(statement)
        rehash(connection)

    done = check(ledger)

    assert done.stdout.startswith(f"order: event {position}: ")
    assert done.returncode == 1


def test_a_tail_that_was_cut_is_found_by_the_head_alone(ledger: Path) -> None:
    head = verify(Readers.open(ledger)).head
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events WHERE position = (SELECT max(position) FROM events)")

    assert check(ledger).returncode == 0
    cut = check(ledger, head.upper())
    assert cut.stdout.startswith(f"completeness: the ledger: no event has the hash {head.upper()}")
    assert cut.returncode == 1


def test_events_of_types_from_the_future_are_checked_like_others(ledger: Path) -> None:
    with tampering(ledger) as connection:
        forge(connection, "host-x", "HostPraised", '{"by":"\U0001f600 ö"}', 7)

    assert check(ledger).stdout.startswith(f"clean: {len(contents(ledger)['events'])} events")


def test_a_table_that_holds_anything_ends_in_a_sentence(ledger: Path) -> None:
    with tampering(ledger, keep_guards=True) as connection:
        connection.executescript(
            "PRAGMA legacy_alter_table = ON;"
            "CREATE TABLE copy AS SELECT * FROM events; DROP TABLE events; ALTER TABLE copy RENAME TO events;"
            "UPDATE events SET version = NULL WHERE position = 9"
        )

    assert "form: event 9: a column does not have its type" in check(ledger).stdout


@pytest.mark.parametrize(
    ("damage", "code", "said"),
    [
        (lambda path: os.truncate(path, 20_000), 1, "file: the ledger: it can't be read: "),
        (lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 40_000), 1, "file: the ledger: "),
        (lambda path: path.unlink(), 1, "file: the ledger: it can't be read: unable to open"),
        (lambda path: path.write_bytes(b"title: a workflow\n" * 100), 1, "file: the ledger: it can't be read: "),
        (lambda path: path.write_bytes(b""), 2, "is no ledger of a format that this script knows"),
    ],
    ids=["cut", "overwritten", "gone", "a text", "empty"],
)
def test_what_can_not_be_read_ends_in_a_sentence(
    ledger: Path, damage: Callable[[Path], object], code: int, said: str
) -> None:
    damage(ledger)

    done = check(ledger)

    assert done.returncode == code
    assert said in done.stdout + done.stderr


def test_a_ledger_of_a_format_that_it_does_not_know_is_refused(ledger: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")

    done = check(ledger)

    assert done.returncode == 2
    assert "is no ledger of a format that this script knows" in done.stderr


def test_the_script_knows_every_format_that_ttasks_knows() -> None:
    known = runpy.run_path(str(SCRIPT))["FORMATS"]

    assert list(known) == [[APPLICATION_ID, version] for version in range(1, SCHEMA_VERSION + 1)]


def test_the_script_is_short_enough_to_be_read() -> None:
    assert len(SCRIPT.read_text("utf-8").splitlines()) <= 90
