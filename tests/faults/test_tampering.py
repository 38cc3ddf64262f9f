"""Whatever somebody with the file does to a ledger, `verify` finds it, says where and what, and never breaks."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ledgers import GUARDS, contents, forge, lawless, make_ledger, rehash, tampering
from strategies import created
from ttasks.cli.app import command
from ttasks.errors import DamagedLedgerError, LedgerUnwritableError, NotALedgerError
from ttasks.events.facts import RunnerStarted
from ttasks.log.event_log import EventLog
from ttasks.log.projection import TABLES, key_columns
from ttasks.log.query import ENVELOPE
from ttasks.log.reading import Readers
from ttasks.log.transaction import Batch
from ttasks.log.verify import PROBLEMS_MAX, rebuild
from ttasks.log.verify import verify as check

COLUMNS = ENVELOPE.split(", ")
CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
TTASKS = [sys.executable, "-c", "from ttasks.cli import main; main()"]


@dataclass(frozen=True)
class Verdict:
    """What the command said, and how it ended."""

    exit_code: int
    output: str

    @property
    def problems(self) -> list[tuple[str, int | None]]:
        """Every problem: the promise, and the event that it is at."""
        found = re.findall(r"^(\w+): (?:event (-?\d+)|the ledger): ", self.output, flags=re.MULTILINE)
        return [(promise, int(position) if position else None) for promise, position in found]

    @property
    def first(self) -> tuple[str, int | None]:
        """The first problem, by the last line."""
        match = re.search(r"the first is at (?:event (-?\d+)|no single event) \((\w+)\)\n\Z", self.output)
        assert match is not None, self.output
        return match[2], int(match[1]) if match[1] else None


def ttasks(name: str, path: Path, *arguments: str) -> Verdict:
    """Run a command in this process; AssertionError: it ended with a traceback."""
    done = CliRunner().invoke(command, [name, "--ledger", str(path), *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise AssertionError(f"ttasks {name} ended with a traceback") from done.exception
    return Verdict(done.exit_code, done.output)


def verify(path: Path, *arguments: str) -> Verdict:
    verdict = ttasks("verify", path, *arguments)
    assert (verdict.exit_code == 0) == verdict.output.startswith("clean: "), verdict.output
    assert verdict.exit_code in (0, 1), verdict.output
    return verdict


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "ledger.db"
    make_ledger(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture
def ledger(original: Path, tmp_path: Path) -> Path:
    """A copy of its own of one ledger with some of everything."""
    return Path(shutil.copy(original, tmp_path / "ledger.db"))


@pytest.fixture(scope="module")
def last(original: Path) -> int:
    return len(contents(original)["events"])


def position_of(place: str, last: int) -> int:
    return {"first": 1, "second": 2, "middle": last // 2, "last": last}[place]


everywhere = pytest.mark.parametrize("place", ["first", "second", "middle", "last"])


def the_only(promise: str, verdict: Verdict) -> int | None:
    """Return where the only problem of this promise is."""
    (position,) = [position for broken, position in verdict.problems if broken == promise]
    return position


def test_a_ledger_that_nobody_touched_is_clean(ledger: Path, last: int) -> None:
    assert re.fullmatch(rf"clean: {last} events, head [0-9a-f]{{64}}\n", verify(ledger).output)


def test_to_drop_the_guards_and_put_them_back_changes_nothing(ledger: Path) -> None:
    with tampering(ledger):
        pass
    with lawless(ledger):
        pass

    assert verify(ledger).exit_code == 0


# --- an event is changed --------------------------------------------------------------------------------------------

CHANGES = {
    "stream": "stream || 'x'",
    "version": "version + 1000",
    "type": "'Z' || type",
    "type_version": "type_version + 1",
    "recorded_at": "replace(recorded_at, '20', '19')",
    "runner": "coalesce(runner, 0) + 1",
    "cause": "coalesce(cause, 0) + 1",
    "data": "replace(data, '}', ' }')",  # the same JSON
    "hash": "CAST(substr(hash, 2) || x'00' AS BLOB)",
}


@everywhere
@pytest.mark.parametrize("column", CHANGES)
def test_a_change_of_any_column_shows_at_its_event(ledger: Path, last: int, column: str, place: str) -> None:
    position = position_of(place, last)
    with tampering(ledger) as connection:
        connection.execute(f"UPDATE events SET {column} = {CHANGES[column]} WHERE position = ?", (position,))

    verdict = verify(ledger)

    assert verdict.first == ("integrity", position)
    assert the_only("integrity", verdict) == position


@everywhere
def test_an_event_that_was_moved_to_another_position_is_missed_at_its_own(ledger: Path, last: int, place: str) -> None:
    position = position_of(place, last)
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET position = position + 1000 WHERE position = ?", (position,))

    assert verify(ledger).first == ("completeness", position)


def test_a_bit_that_flipped_anywhere_in_the_data_shows(ledger: Path, last: int) -> None:
    position = position_of("middle", last)
    with tampering(ledger) as connection:
        (data,) = connection.execute("SELECT data FROM events WHERE position = ?", (position,)).fetchone()
        for place, letter in enumerate(data):
            flipped = data[:place] + chr(ord(letter) ^ 1) + data[place + 1 :]
            with contextlib.suppress(sqlite3.IntegrityError):  # SQLite itself knows that it is no JSON
                connection.execute("UPDATE events SET data = ? WHERE position = ?", (flipped, position))
                assert verify(ledger).problems[0] == ("integrity", position)


GARBAGE: dict[str, object] = {
    "nothing": None,
    "a blob": b"\xff\x00\xfe",
    "a real": 1.5,
    "an infinity": float("inf"),
    "an empty text": "",
    "a text with NUL": '{"a":1}\0',
    "no JSON": "{",
    "NaN": '{"attempt":NaN,"duration":NaN}',
    "an array": "[]",
    "a number as text": "7",
    "the highest integer": 2**63 - 1,
    "the lowest integer": -(2**63),
    "a number of 5000 digits": '{"attempt":' + "9" * 5000 + "}",
    "arrays in arrays": "[" * 5000,
    "arrays in arrays that end": '{"attempt":' + "[" * 1900 + "]" * 1900 + "}",
    "a long text": "x" * 1_000_000,
    "control characters": "\x1b[2J\u202e\n",
}


@pytest.mark.parametrize("garbage", GARBAGE)
@pytest.mark.parametrize("column", COLUMNS[1:])
def test_garbage_in_any_column_shows_at_its_event(ledger: Path, last: int, column: str, garbage: str) -> None:
    position = position_of("middle", last)
    with lawless(ledger) as connection:
        changed = connection.execute(
            f"UPDATE events SET {column} = :garbage WHERE position = :position AND {column} IS NOT :garbage",
            {"garbage": GARBAGE[garbage], "position": position},
        )

    verdict = verify(ledger)

    assert verdict.exit_code == (1 if changed.rowcount else 0)
    if changed.rowcount:
        assert verdict.first[1] == position
        assert "\x1b" not in verdict.output


@pytest.mark.parametrize("column", ["stream", "type", "recorded_at", "data"])
def test_text_that_is_not_utf_8_shows_at_its_event(ledger: Path, last: int, column: str) -> None:
    position = position_of("middle", last)
    with tampering(ledger) as connection:
        text = "CAST(x'7b2261223a22ff227d' AS TEXT)"
        connection.execute(f"UPDATE events SET {column} = {text} WHERE position = ?", (position,))

    verdict = verify(ledger)

    assert verdict.first == ("form", position)
    assert f"its {column} is not UTF-8" in verdict.output
    assert ("integrity", position) in verdict.problems


def test_a_change_whose_own_hash_was_made_to_fit_shows_at_the_next_event(ledger: Path, last: int) -> None:
    position = position_of("middle", last)
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET data = data || ' ' WHERE position = ?", (position,))
        rehash(connection, position - 1, only=position)

    assert verify(ledger).first == ("integrity", position + 1)


# --- events are put in, taken out, moved ----------------------------------------------------------------------------


@everywhere
def test_an_event_that_was_deleted_is_missed(ledger: Path, last: int, place: str) -> None:
    position = position_of(place, last)
    head = verify(ledger).output.split()[-1]
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events WHERE position = ?", (position,))

    verdict = verify(ledger, "--head", head)

    assert verdict.exit_code == 1
    if place == "last":
        assert verdict.first == ("completeness", None)
        assert f"no event has the hash {head}" in verdict.output
    else:
        assert verdict.first == ("completeness", position)
        assert f"completeness: event {position}: it is missing\n" in verdict.output
        assert "integrity" not in verdict.output


def test_of_many_events_that_were_deleted_the_first_and_the_last_are_named(ledger: Path) -> None:
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events WHERE position BETWEEN 10 AND 20")

    assert "completeness: event 10: it is missing and so is what follows up to 20\n" in verify(ledger).output


def test_a_deletion_that_was_closed_up_by_renumbering_shows_where_it_was(ledger: Path, last: int) -> None:
    position = position_of("middle", last)
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events WHERE position = ?", (position,))
        connection.execute("UPDATE events SET position = position - 1 WHERE position > ?", (position,))

    assert verify(ledger).first == ("integrity", position)


def test_an_event_that_was_put_in_between_shows_where_it_is(ledger: Path, last: int) -> None:
    position = position_of("middle", last)
    with tampering(ledger) as connection:
        for later in range(last, position - 1, -1):
            connection.execute("UPDATE events SET position = position + 1 WHERE position = ?", (later,))
        connection.execute(
            f"INSERT INTO events ({ENVELOPE}) SELECT position - 1, stream, version + 1000, type, type_version,"
            " recorded_at, runner, cause, data, hash FROM events WHERE position = ?",
            (position + 1,),
        )

    assert verify(ledger).first == ("integrity", position)


def test_an_event_that_was_put_at_the_end_shows_where_it_is(ledger: Path, last: int) -> None:
    with tampering(ledger) as connection:
        forge(connection, "graph-x", "GraphDeleted", '{"by":"eve"}')
        connection.execute("UPDATE events SET hash = zeroblob(32) WHERE position > ?", (last,))

    assert verify(ledger).first == ("integrity", last + 1)


def test_an_event_below_the_first_position_is_out_of_place(ledger: Path) -> None:
    with tampering(ledger) as connection:
        connection.execute(
            f"INSERT INTO events ({ENVELOPE}) SELECT -5, stream, version + 1000, type, type_version, recorded_at,"
            " runner, cause, data, hash FROM events WHERE position = 9"
        )

    verdict = verify(ledger)

    assert verdict.first == ("completeness", -5)
    assert ("completeness", 1) not in verdict.problems


@everywhere
def test_an_event_that_was_replaced_shows_where_it_is(ledger: Path, last: int, place: str) -> None:
    position = position_of(place, last)
    with tampering(ledger) as connection:
        connection.execute(
            f"INSERT OR REPLACE INTO events ({ENVELOPE}) SELECT position, stream, version, type, type_version,"
            ' recorded_at, runner, cause, \'{"by":"eve"}\', hash FROM events WHERE position = ?',
            (position,),
        )

    assert verify(ledger).first == ("integrity", position)


def test_two_events_that_changed_places_show_at_both(ledger: Path, last: int) -> None:
    one, other = position_of("second", last), position_of("middle", last)
    with tampering(ledger) as connection:
        for before, after in ((one, -1), (other, one), (-1, other)):
            connection.execute("UPDATE events SET position = ? WHERE position = ?", (after, before))

    verdict = verify(ledger)

    assert verdict.first == ("integrity", one)
    assert ("integrity", other) in verdict.problems


def test_a_log_that_begins_later_lacks_its_first_event(ledger: Path, last: int) -> None:
    with tampering(ledger) as connection:
        for position in range(last, 0, -1):
            connection.execute("UPDATE events SET position = position + 1 WHERE position = ?", (position,))

    assert verify(ledger).first == ("completeness", 1)


def test_where_much_is_wrong_not_all_of_it_is_said(ledger: Path) -> None:
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET hash = randomblob(32)")

    verdict = verify(ledger)

    assert len(verdict.problems) == PROBLEMS_MAX
    assert f"NOT clean: {PROBLEMS_MAX} problems or more; the first is at event 1 (integrity)" in verdict.output


# --- the chain is made to fit ---------------------------------------------------------------------------------------


def test_events_of_a_stream_that_changed_places_are_out_of_order_whatever_their_hashes(ledger: Path) -> None:
    with tampering(ledger) as connection:
        one, other = [
            connection.execute("SELECT position FROM events WHERE stream = (SELECT stream FROM events WHERE type ="
                               " 'TaskProgressed') AND version = ?", (version,)).fetchone()[0]
            for version in (2, 3)
        ]  # fmt: skip
        for before, after in ((one, -1), (other, one), (-1, other)):
            connection.execute("UPDATE events SET position = ? WHERE position = ?", (after, before))
        rehash(connection)

    verdict = verify(ledger)

    assert verdict.first == ("order", one)
    assert "it is version 3 of task-" in verdict.output


FORGERIES: dict[str, tuple[str, str, str]] = {
    "an end of what does not run": ("task-{task}", "TaskSucceeded", '{"attempt":1}'),
    "the start of a later attempt": (
        "task-{task}",
        "TaskStarted",
        '{"attempt":9,"handler":"h","payload":"","started_at":"2026-11-24T08:00:00.000000Z","retry":0}',
    ),
    "a second creation": (
        "task-{task}",
        "TaskCreated",
        '{"name":"n","title":"t","type":"bash","payload":"","description":"",'
        '"created_at":"2026-11-24T08:00:00.000000Z","on_interrupted":"rerun"}',
    ),
    "a task that begins with its end": ("task-new", "TaskDeleted", '{"by":"eve"}'),
    "a graph's fact of a task": ("task-{task}", "GraphDeleted", '{"by":"eve"}'),
    "a stream of no kind": ("tusk-1", "TaskDeleted", '{"by":"eve"}'),
    "a second beginning": (
        "ledger",
        "LedgerCreated",
        '{"ledger":"l","created_at":"2026-11-24T08:00:00.000000Z","digest_key":"00","ttasks_version":"0"}',
    ),
    "the end of a run that is over": ("graph-{graph}", "GraphRunFinished", '{"run":2,"outcome":"failed","errors":{}}'),
    "a runner that is described before it began": ("runner-new", "RunnerDescribed", '{"git_root":"/"}'),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_event_that_can_not_follow_is_out_of_order(ledger: Path, last: int, forgery: str) -> None:
    stream, type_, data = FORGERIES[forgery]
    with tampering(ledger) as connection:
        (task,) = connection.execute("SELECT id FROM tasks WHERE title = 'prints'").fetchone()
        (graph,) = connection.execute("SELECT id FROM graphs").fetchone()
        forge(connection, stream.format(task=task, graph=graph), type_, data)

    assert verify(ledger).first == ("order", last + 1)


def test_a_forged_event_that_can_follow_is_not_what_the_rows_say(ledger: Path) -> None:
    with tampering(ledger) as connection:
        (task,) = connection.execute("SELECT id FROM tasks WHERE title = 'fails'").fetchone()
        forge(connection, f"task-{task}", "TaskCancelled", "{}")

    verdict = verify(ledger)

    assert verdict.first == ("rows", None)
    assert 'status is "failed", its events say "cancelled"' in verdict.output


def test_a_forged_snapshot_that_is_no_task_shows_whatever_its_hash(ledger: Path, last: int) -> None:
    with tampering(ledger) as connection:
        forge(connection, "task-new", "TaskImported", '{"state":{"status":"exploded"}}')

    verdict = verify(ledger)

    assert verdict.first == ("form", last + 1)
    assert (
        "its data is not that of a TaskImported: ValueError(\"'exploded' is not a valid TaskStatus\")" in verdict.output
    )


@pytest.mark.parametrize(
    ("change", "position", "text"),
    [
        ("runner = 999 WHERE position = 9", 9, "its runner is 999: no RunnerStarted before it is there"),
        ("runner = NULL WHERE position = 9", 9, "its runner is None"),
        ("runner = 2 WHERE position = 1", 1, "its runner is 2"),
        ("cause = 9 WHERE position = 9", 9, "its cause is 9, which is no event before it"),
        ("cause = -1 WHERE position = 9", 9, "its cause is -1, which is no event before it"),
        ("stream = 'runner-x', version = 99 WHERE position = 1", 1, "it is version 99 of runner-x, after 0"),
    ],
)
def test_an_event_that_names_what_was_not_before_it_is_out_of_order(
    ledger: Path, change: str, position: int, text: str
) -> None:
    with tampering(ledger) as connection:
        connection.execute(f"UPDATE events SET {change}")
        rehash(connection)

    verdict = verify(ledger)

    assert verdict.first == ("order", position)
    assert text in verdict.output


def test_a_runner_that_nobody_knows_is_named_once(ledger: Path) -> None:
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET runner = 999 WHERE runner IS NOT NULL AND position > 9")
        rehash(connection)

    assert the_only("order", verify(ledger)) == 10


def test_a_log_whose_beginning_was_cut_off_does_not_begin_as_a_ledger(ledger: Path, last: int) -> None:
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events WHERE position = 1")
        for position in range(2, last + 1):
            connection.execute("UPDATE events SET position = position - 1 WHERE position = ?", (position,))
        rehash(connection)

    verdict = verify(ledger)

    assert verdict.first == ("order", 1)
    assert f"it is a {RunnerStarted.__name__}: a ledger begins with its LedgerCreated" in verdict.output


DATA = {
    "a field is missing": '{"by":1}',
    "it is empty": "{}",
    "it is an array": "[]",
    "it is null": "null",
    "a text is a number": '{"changes":{"title":5}}',
    "a number is a text": '{"changes":{"timeout":"5"}}',
    "a number is infinite": '{"changes":{"timeout":1e999}}',
    "a number has too many digits": '{"changes":{"timeout":100000000000000000000}}',
    "a field that can't be revised": '{"changes":{"status":"succeeded"}}',
    "a field that does not exist": '{"changes":{"tittle":"x"}}',
    "it is deeper than Python goes": '{"changes":{"title":' + "[" * 1500 + "]" * 1500 + "}}",
}


@pytest.mark.parametrize("data", DATA)
def test_data_that_is_not_its_types_shows_whatever_its_hash(ledger: Path, data: str) -> None:
    with tampering(ledger) as connection:
        (position,) = connection.execute("SELECT min(position) FROM events WHERE type = 'TaskRevised'").fetchone()
        connection.execute("UPDATE events SET data = ? WHERE position = ?", (DATA[data], position))
        rehash(connection)

    verdict = verify(ledger)

    assert verdict.first[1] == position
    assert verdict.first[0] in ("form", "order")
    assert "integrity" not in verdict.output
    assert "what follows in task-" in verdict.output


@pytest.mark.parametrize("time", ["2026-11-24", "2026-11-24T08:00:00", "2026-11-24T08:00:00.000000+01:00", "today"])
@pytest.mark.parametrize("column", ["recorded_at", "data"])
def test_a_time_in_another_form_shows_whatever_its_hash(ledger: Path, column: str, time: str) -> None:
    with tampering(ledger) as connection:
        (position,) = connection.execute("SELECT min(position) FROM events WHERE type = 'TaskStarted'").fetchone()
        value = "?" if column == "recorded_at" else "json_set(data, '$.started_at', ?)"
        connection.execute(f"UPDATE events SET {column} = {value} WHERE position = ?", (time, position))
        rehash(connection)

    assert verify(ledger).first == ("form", position)


VALUES = [None, True, -1, 2**63, 10**400, 1e308, "1e999", "NaN", "", "x", "\0", "\ud800", [], ["x"], {}, {"x": "y"}]


@pytest.mark.campaign
def test_no_value_of_any_field_breaks_verify_or_rebuild(original: Path, tmp_path: Path) -> None:
    cases = []
    for position, *_, text, _ in contents(original)["events"]:
        cases += [(position, field, value) for field in json.loads(text) for value in VALUES]
    some = random.Random(1).sample(cases, 500 if CAMPAIGN else 150)
    for position, field, value in some:
        path = Path(shutil.copy(original, tmp_path / "ledger.db"))
        with tampering(path) as connection:
            (text,) = connection.execute("SELECT data FROM events WHERE position = ?", (position,)).fetchone()
            data = json.dumps({**json.loads(text), field: value})
            if value in ("1e999", "NaN"):
                data = data.replace(f'"{value}"', str(value))
            with contextlib.suppress(sqlite3.IntegrityError):
                connection.execute("UPDATE events SET data = ? WHERE position = ?", (data, position))
            rehash(connection)

        found = verify(path).problems

        if ttasks("rebuild", path).exit_code == 0:
            left = verify(path).problems
            assert [problem for problem in found if problem[0] != "rows"] == left, (position, field, value)
        else:
            assert found, (position, field, value)


# --- the tail, and the whole chain ----------------------------------------------------------------------------------


def test_a_tail_that_was_cut_with_its_rows_is_found_by_the_head_alone(ledger: Path, last: int) -> None:
    head = verify(ledger).output.split()[-1]
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events WHERE position > ?", (last - 5,))
    assert ("rows", None) in verify(ledger).problems
    ttasks("rebuild", ledger)

    assert verify(ledger).exit_code == 0
    cut = verify(ledger, "--head", head)
    assert cut.problems == [("completeness", None)]
    assert f"no event has the hash {head}: the events up to it were cut off, or written anew" in cut.output


def test_a_chain_that_was_written_anew_with_its_rows_is_found_by_the_head_alone(ledger: Path) -> None:
    head = verify(ledger).output.split()[-1]
    with tampering(ledger) as connection:
        connection.execute("UPDATE events SET data = replace(data, 'echo cleaned', 'echo CLEANED')")
        rehash(connection)
    ttasks("rebuild", ledger)

    assert verify(ledger).exit_code == 0
    assert verify(ledger, "--head", head).problems == [("completeness", None)]


def test_any_event_may_be_the_head_that_is_known(ledger: Path, last: int) -> None:
    for _, *_, hash_ in contents(ledger)["events"][:: last // 3]:
        assert verify(ledger, "--head", hash_.hex().upper()).exit_code == 0


@pytest.mark.parametrize("head", ["", "0" * 63, "g" * 64])
def test_what_is_no_hash_is_refused_as_one(ledger: Path, head: str) -> None:
    verdict = ttasks("verify", ledger, "--head", head)

    assert verdict.exit_code == 2
    assert "is no hash: verify prints one as 64 hexadecimal digits" in verdict.output


def test_what_was_committed_last_is_missed_where_the_wal_was_left_behind(original: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(original, tmp_path / "ledger.db"))
    with contextlib.closing(EventLog.open(path)) as log:
        log.append(Batch("task-t", [created()], 0))
        head = log.readers.head()[1].hex()
        copied = Path(shutil.copy(path, tmp_path / "copied.db"))

    assert verify(copied).exit_code == 0
    assert verify(copied, "--head", head).problems == [("completeness", None)]


# --- a log without events -------------------------------------------------------------------------------------------


def test_a_ledger_without_any_events_is_not_complete(ledger: Path) -> None:
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events")

    verdict = verify(ledger)

    assert verdict.problems[0] == ("completeness", None)
    assert "it has no events at all, not even its first" in verdict.output
    assert ("rows", None) in verdict.problems


def test_who_asks_for_the_last_event_of_a_log_without_any_is_told_so(ledger: Path) -> None:
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events")

    with (
        contextlib.closing(Readers.open(ledger)) as readers,
        pytest.raises(DamagedLedgerError, match="has no events at all, not even its first"),
    ):
        readers.head_position()


def test_a_ledger_that_was_emptied_is_not_begun_anew(ledger: Path) -> None:
    with tampering(ledger) as connection:
        connection.execute("DELETE FROM events")
    before = contents(ledger)

    with pytest.raises(DamagedLedgerError, match="the log is empty, but tasks has rows"):
        EventLog.open(ledger)

    assert contents(ledger) == before
    assert ttasks("rebuild", ledger).exit_code == 1


# --- rows -----------------------------------------------------------------------------------------------------------

OTHER = {"TEXT": "coalesce({0}, '') || 'x'", "INTEGER": "coalesce({0}, 0) + 1000", "REAL": "coalesce({0}, 0) + 0.5"}


def columns_with_types(path: Path) -> Iterator[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for table in TABLES:
            for _, column, type_, *_ in connection.execute(f"PRAGMA table_info({table})"):
                yield table, column, type_


def check_rebuilt(path: Path, original: Path) -> None:
    """Rebuild, and find everything as it was."""
    assert ttasks("rebuild", path).exit_code == 0
    assert contents(path) == contents(original)
    assert verify(path).exit_code == 0


@pytest.mark.parametrize("table", TABLES)
def test_a_change_in_any_column_of_a_table_is_named_and_rebuilt(original: Path, tmp_path: Path, table: str) -> None:
    for owner, column, type_ in columns_with_types(original):
        if owner != table:
            continue
        path = Path(shutil.copy(original, tmp_path / "ledger.db"))
        keys = ", ".join(key_columns(table))
        with tampering(path) as connection:
            connection.execute(
                f"UPDATE {table} SET {column} = {OTHER[type_].format(column)}"
                f" WHERE ({keys}) = (SELECT {keys} FROM {table} ORDER BY 1 DESC LIMIT 1)"
            )

        verdict = verify(path)

        assert verdict.exit_code == 1, column
        assert {promise for promise, _ in verdict.problems} == {"rows"}, column
        if column in key_columns(table):
            assert f"{table} lacks the row" in verdict.output
        else:
            assert f" of {table}: {column} is " in verdict.output
        check_rebuilt(path, original)


@pytest.mark.parametrize("garbage", [None, b"\xff\x00", 1.5, float("-inf"), "", 2**63 - 1, "\x1b[2J"], ids=repr)
@pytest.mark.parametrize("table", TABLES)
def test_garbage_in_a_row_is_named_and_rebuilt(original: Path, ledger: Path, table: str, garbage: object) -> None:
    with lawless(ledger) as connection:
        for column in TABLES[table]:
            if column not in key_columns(table):
                connection.execute(f"UPDATE {table} SET {column} = ?", (garbage,))

    verdict = verify(ledger)

    assert ("rows", None) in verdict.problems
    assert "\x1b" not in verdict.output
    for look in ("ls", "show"):
        assert ttasks(look, ledger).exit_code in (0, 1, 2)
    check_rebuilt(ledger, original)


def test_text_in_a_row_that_is_not_utf_8_is_named_and_rebuilt(original: Path, ledger: Path) -> None:
    with tampering(ledger) as connection:
        connection.execute("UPDATE tasks SET title = CAST(x'ff' AS TEXT) WHERE title = 'fails'")

    assert 'title is "\\udcff", its events say "fails"' in verify(ledger).output
    for look in (("ls",), ("ls", "--tasks")):
        assert ttasks(look[0], ledger, *look[1:]).exit_code in (0, 1)
    check_rebuilt(ledger, original)


@pytest.mark.parametrize("table", TABLES)
def test_a_row_that_was_deleted_is_named_and_rebuilt(original: Path, ledger: Path, table: str) -> None:
    keys = ", ".join(key_columns(table))
    with tampering(ledger) as connection:
        connection.execute(f"DELETE FROM {table} WHERE ({keys}) = (SELECT {keys} FROM {table} LIMIT 1)")

    verdict = verify(ledger)

    assert verdict.problems == [("rows", None)]
    assert f"{table} lacks the row" in verdict.output
    check_rebuilt(ledger, original)


@pytest.mark.parametrize("table", TABLES)
def test_a_row_that_was_added_is_named_and_rebuilt(original: Path, ledger: Path, table: str) -> None:
    last_key = key_columns(table)[-1]
    columns = ", ".join(TABLES[table])
    added = columns.replace(last_key, "'added'" if last_key == "id" else f"{last_key} + 1000", 1)
    if table == "runners":
        added = added.replace(", id", ", 'added'")
    with tampering(ledger) as connection:
        connection.execute(f"INSERT INTO {table} ({columns}) SELECT {added} FROM {table} LIMIT 1")

    verdict = verify(ledger)

    assert verdict.problems == [("rows", None)]
    assert f"{table} has a row" in verdict.output and "that no event speaks of" in verdict.output
    check_rebuilt(ledger, original)


def test_rows_of_a_stream_that_can_not_be_followed_are_not_said_to_be_wrong(ledger: Path) -> None:
    with tampering(ledger) as connection:
        (task,) = connection.execute("SELECT id FROM tasks WHERE title = 'prints'").fetchone()
        connection.execute("UPDATE events SET data = '{}' WHERE task_id = ? AND version = 1", (task,))
        connection.execute("UPDATE tasks SET title = 'x' WHERE title = 'fails'")

    verdict = verify(ledger)

    assert the_only("rows", verdict) is None
    assert 'title is "x", its events say "fails"' in verdict.output


def test_rebuild_says_where_the_log_can_not_be_added_up_and_changes_nothing(ledger: Path) -> None:
    with tampering(ledger) as connection:
        (position,) = connection.execute("SELECT max(position) FROM events WHERE type = 'TaskCreated'").fetchone()
        connection.execute("UPDATE events SET data = '{}' WHERE position = ?", (position,))
        connection.execute("UPDATE tasks SET title = 'x'")
    before = contents(ledger)

    verdict = ttasks("rebuild", ledger)

    assert verdict.exit_code == 1
    assert f"the log can't be added up at event {position}: event {position} (TaskCreated)" in verdict.output
    assert "No row was changed; `ttasks verify` says more" in verdict.output
    assert contents(ledger) == before


# --- the schema -----------------------------------------------------------------------------------------------------

SCHEMA_CHANGES: dict[str, tuple[str, str]] = {
    **{name: (f"DROP TRIGGER {name}", f"the trigger {name} is missing: the database no longer") for name in GUARDS},
    "a guard that guards nothing": (
        f"DROP TRIGGER {GUARDS[0]}; CREATE TRIGGER {GUARDS[0]} BEFORE UPDATE ON events BEGIN SELECT 1; END",
        f"the trigger {GUARDS[0]} is not as ttasks made it",
    ),
    "a guard of another table": (
        f"DROP TRIGGER {GUARDS[0]}; CREATE TRIGGER {GUARDS[0]} BEFORE UPDATE ON tasks "
        "BEGIN SELECT RAISE(ABORT, 'events are never changed'); END",
        f"the trigger {GUARDS[0]} is not as ttasks made it",
    ),
    "a further trigger": (
        "CREATE TRIGGER sly AFTER INSERT ON events BEGIN UPDATE tasks SET title = 'x'; END",
        "the trigger sly on events is none that ttasks made",
    ),
    "a trigger of a table of rows": (
        "CREATE TRIGGER sly AFTER UPDATE ON tasks BEGIN SELECT 1; END",
        "the trigger sly on tasks is none that ttasks made",
    ),
    "a further index": (
        "CREATE INDEX quick ON events (type)",
        "the index quick on events is none that ttasks made",
    ),
    "a further column": ("ALTER TABLE events ADD COLUMN note TEXT", "the table events is not as ttasks made it"),
    "a column less": ("ALTER TABLE tasks DROP COLUMN resolution", "the table tasks is not as ttasks made it"),
    "a column with another name": ("ALTER TABLE events RENAME COLUMN data TO facts", "the table events is not as"),
    "a view less": ("DROP VIEW task_output", "the view task_output is missing"),
    "another view": (
        "DROP VIEW task_output; CREATE VIEW task_output AS SELECT 1",
        "the view task_output is not as ttasks made it",
    ),
    **{f"no {table}": (f"DROP TABLE {table}", f"the table {table} is missing") for table in (*TABLES, "events")},
}


@pytest.mark.parametrize("change", SCHEMA_CHANGES)
def test_a_schema_that_is_another_is_named(ledger: Path, change: str) -> None:
    statements, text = SCHEMA_CHANGES[change]
    with tampering(ledger, keep_guards=True) as connection:
        connection.execute("PRAGMA legacy_alter_table = ON")
        connection.executescript(statements)

    verdict = verify(ledger)

    assert verdict.exit_code == 1
    assert f"schema: the ledger: {text}" in verdict.output


def test_a_rule_of_a_table_that_was_taken_away_is_named(ledger: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_schema SET sql = replace(sql, ' STRICT', '') WHERE name = 'events'")

    assert "schema: the ledger: the table events is not as ttasks made it" in verify(ledger).output


def test_events_in_a_table_without_a_key_are_still_checked(ledger: Path) -> None:
    with tampering(ledger, keep_guards=True) as connection:
        connection.executescript(
            "PRAGMA legacy_alter_table = ON;"
            "CREATE TABLE copy AS SELECT * FROM events; DROP TABLE events; ALTER TABLE copy RENAME TO events;"
            "UPDATE events SET position = 'nine' WHERE position = 9;"
            "UPDATE events SET position = 11 WHERE position = 12"
        )

    verdict = verify(ledger)

    assert 'form: the ledger: an event has the position "nine"' in verdict.output
    assert ("completeness", 9) in verdict.problems
    assert ("completeness", 11) in verdict.problems


def test_tables_and_views_of_others_are_no_problem(ledger: Path) -> None:
    with tampering(ledger, keep_guards=True) as connection:
        connection.executescript(
            "CREATE TABLE notes (task_id TEXT, note TEXT); CREATE INDEX notes_by_task ON notes (task_id);"
            "CREATE VIEW failures AS SELECT * FROM tasks WHERE status = 'failed'; ANALYZE"
        )

    assert verify(ledger).exit_code == 0


# --- the file -------------------------------------------------------------------------------------------------------


def logical(path: Path) -> object:
    """Return what a ledger says, or None where it can't be read."""
    with contextlib.suppress(sqlite3.DatabaseError):
        return contents(path)
    return None


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.75, 0.99])
def test_a_file_that_was_cut_is_said_to_be_damaged(ledger: Path, share: float) -> None:
    os.truncate(ledger, int(ledger.stat().st_size * share))

    verdict = verify(ledger)

    assert verdict.exit_code == 1
    assert "malformed" in verdict.output or "SQLite finds it damaged" in verdict.output
    for other in ("ls", "show", "events", "rebuild"):
        assert ttasks(other, ledger).exit_code in (0, 1, 2)


@pytest.mark.campaign
def test_no_byte_can_flip_so_that_a_clean_ledger_says_something_else(original: Path, tmp_path: Path) -> None:
    said = contents(original)
    content = original.read_bytes()
    chance = random.Random(2)
    found = 0
    for _ in range(1000 if CAMPAIGN else 200):
        place, mask = chance.randrange(100, len(content)), 1 << chance.randrange(8)
        path = tmp_path / "ledger.db"
        path.write_bytes(content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :])

        verdict = verify(path)

        found += verdict.exit_code
        assert verdict.exit_code == 1 or logical(path) == said, (place, mask)
    assert found > 20


@pytest.mark.parametrize("garbage", [b"\0", b"\xff", b"x"], ids=repr)
def test_pages_of_garbage_are_said_to_be_damage(original: Path, tmp_path: Path, garbage: bytes) -> None:
    said = contents(original)
    content = original.read_bytes()
    path = tmp_path / "ledger.db"
    found = 0
    for page in range(1, len(content) // 4096):
        path.write_bytes(content[: page * 4096] + garbage * 4096 + content[(page + 1) * 4096 :])

        verdict = verify(path)

        found += verdict.exit_code
        assert verdict.exit_code == 1 or logical(path) == said, page
        for other in ("ls", "show", "events", "rebuild"):
            assert ttasks(other, path).exit_code in (0, 1, 2), page
    assert found > 10


def test_an_index_that_says_something_else_than_the_log_is_found(ledger: Path) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        (root,) = connection.execute(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_events_1'"
        ).fetchone()
    content = bytearray(ledger.read_bytes())
    place = content.index(b"task-", (root - 1) * 4096)
    assert place < root * 4096
    content[place] ^= 1
    ledger.write_bytes(content)

    verdict = verify(ledger)

    assert {promise for promise, _ in verdict.problems} == {"file"}
    assert "sqlite_autoindex_events_1" in verdict.output


def test_a_file_that_is_damaged_while_it_is_open_is_reported_so(ledger: Path) -> None:
    content = ledger.read_bytes()
    with contextlib.closing(Readers.open(ledger)) as readers:
        assert check(readers).is_clean
        ledger.write_bytes(content[:100] + b"\xff" * (len(content) - 100))

        report = check(readers)

    assert [(problem.promise, problem.position) for problem in report.problems] == [("file", None)]
    assert "nothing was compared" in report.problems[0].text


def test_a_damaged_header_with_a_wal_beside_it_is_refused_and_left_as_it_is(ledger: Path) -> None:
    content = bytearray(ledger.read_bytes())
    content[16:18] = b"\0\3"  # no size that pages can have
    ledger.write_bytes(content)
    wal = ledger.with_name("ledger.db-wal")
    wal.write_bytes(b"x" * 5000)

    for opens in (Readers.open, EventLog.open):
        with pytest.raises(NotALedgerError, match="or its first bytes are damaged"):
            opens(ledger)

    assert ledger.read_bytes() == content


# --- what is no damage ----------------------------------------------------------------------------------------------


def interrupt_at(connection: sqlite3.Connection, part: str) -> None:
    """Let SQLite be interrupted once, as soon as it works on a statement that has `part` in it."""
    began: list[str] = []
    connection.set_trace_callback(lambda statement: began.append(statement) if part in statement else None)
    connection.set_progress_handler(lambda: bool(began and began.pop()), 1)


ALL_EVENTS = "FROM events ORDER BY position"
PARTS = [ALL_EVENTS, *(f"FROM {table}" for table in TABLES), "FROM sqlite_schema", "integrity_check"]


@pytest.mark.parametrize("part", PARTS)
def test_what_can_not_be_read_for_a_passing_reason_is_no_problem_of_the_ledger(ledger: Path, part: str) -> None:
    with contextlib.closing(Readers.open(ledger)) as readers:
        readers.ask(lambda connection: interrupt_at(connection, part))

        with pytest.raises(LedgerUnwritableError, match="can't be read: interrupted"):
            check(readers)

        assert check(readers).is_clean


def test_rows_are_not_said_to_be_damaged_where_the_log_can_not_be_read_for_a_passing_reason(ledger: Path) -> None:
    before = contents(ledger)
    with contextlib.closing(EventLog.open(ledger)) as log:
        assert log._connection is not None
        interrupt_at(log._connection, ALL_EVENTS)

        with pytest.raises(LedgerUnwritableError, match="can't be written: interrupted; nothing was written"):
            rebuild(log)

    assert contents(ledger) == before


def test_a_header_that_is_none_is_refused_by_name(ledger: Path) -> None:
    content = ledger.read_bytes()
    ledger.write_bytes(b"x" + content[1:])

    verdict = ttasks("verify", ledger)

    assert verdict.exit_code == 2
    assert "is not a ledger" in verdict.output


# --- as a process ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tamper",
    [
        lambda path: None,
        lambda path: os.truncate(path, 20_000),
        lambda path: path.write_bytes(path.read_bytes()[:4096] + os.urandom(40_000)),
    ],
    ids=["untouched", "cut", "overwritten"],
)
def test_the_command_ends_without_a_traceback(ledger: Path, tamper: Callable[[Path], Any]) -> None:
    tamper(ledger)

    done = subprocess.run(
        [*TTASKS, "verify", "--ledger", str(ledger)], capture_output=True, text=True, timeout=60, check=False
    )

    assert "Traceback" not in done.stderr
    assert done.returncode == int(not done.stdout.startswith("clean: "))


def test_a_damaged_file_is_named_to_who_reads_it(ledger: Path) -> None:
    content = ledger.read_bytes()
    ledger.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))

    with pytest.raises(DamagedLedgerError, match=r"malformed\. It is damaged: `ttasks verify` says more"):
        list(Readers.open(ledger).events())
