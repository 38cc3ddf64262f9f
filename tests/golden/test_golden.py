"""Ledgers of each format are read as they were on the day they were written, for ever.

Each folder holds one, and what it comes to; `write_golden.py` wrote them. They are never opened here, only copies.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import write_golden

from ledgers import contents
from ttasks import SQLiteStore
from ttasks.events import codec
from ttasks.log.event_log import EventLog
from ttasks.log.migrate import SCHEMA_VERSION
from ttasks.log.projection import TABLES
from ttasks.log.query import ENVELOPE
from ttasks.log.reading import Readers
from ttasks.log.verify import rebuild, verify

HERE = Path(__file__).parent
GOLDEN = sorted(HERE.glob("schema-*"))
BYTES_MAX = 200_000


@pytest.fixture(params=GOLDEN, ids=lambda folder: folder.name)
def golden(request: pytest.FixtureRequest) -> Path:
    """The folder of a golden ledger."""
    folder: Path = request.param
    return folder


@pytest.fixture
def said(golden: Path) -> Any:
    """What was expected of it when it was written."""
    return json.loads((golden / "expected.json").read_text("ascii"))


@pytest.fixture
def copy(golden: Path, tmp_path: Path) -> Path:
    """A copy, as today's ttasks has it once it was opened for writing: migrated, where it was older."""
    path = Path(shutil.copyfile(golden / "ledger.db", tmp_path / "ledger.db"))
    EventLog.open(path).close()
    return path


def stored(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {ENVELOPE} FROM events ORDER BY position").fetchall()


def of_then(now: Any, then: Any) -> Any:
    """Return `now` without what is new in it since `then`: further fields of objects, which are rows and states."""
    if isinstance(then, dict) and isinstance(now, dict):
        return {name: of_then(now[name], value) for name, value in then.items() if name in now}
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return [of_then(is_, was) for is_, was in zip(now, then, strict=True)]
    return now


def test_there_is_one_of_the_current_schema() -> None:
    assert [folder.name for folder in GOLDEN] == [f"schema-{version}" for version in range(1, SCHEMA_VERSION + 1)]


def test_the_name_of_each_says_its_schema(golden: Path) -> None:
    (version,) = struct.unpack(">I", (golden / "ledger.db").read_bytes()[60:64])

    assert golden.name == f"schema-{version}"
    assert (golden / "ledger.db").stat().st_size < BYTES_MAX


def test_every_type_of_event_is_in_one_of_them() -> None:
    types = {row[3] for folder in GOLDEN for row in json_events(folder)}

    assert {fact_type.__name__ for fact_type in codec.FACT_TYPES} <= types


def json_events(folder: Path) -> list[list[str]]:
    events = json.loads((folder / "expected.json").read_text("ascii"))["events"]
    return [[*event.replace("@", " ").split()] for event in events]


def test_it_is_clean(copy: Path, said: Any) -> None:
    report = verify(Readers.open(copy), head=said["head"])

    assert report.problems == []
    assert report.head == said["head"]


def test_opening_it_changes_no_event(golden: Path, copy: Path) -> None:
    assert stored(copy) == stored(golden_copy(golden, copy))


def golden_copy(golden: Path, beside: Path) -> Path:
    """Return another copy, as it was written."""
    return Path(shutil.copyfile(golden / "ledger.db", beside.with_name("untouched.db")))


def test_every_event_is_known_and_is_stored_as_it_would_be_now(copy: Path) -> None:
    for position, _, _, type_, type_version, _, _, _, data, _ in stored(copy):
        fact = codec.decode(type_, type_version, data)

        assert type(fact).__name__ == type_, position
        if type_version == type(fact).TYPE_VERSION:  # one that has to be lifted would be written as it is lifted to
            assert codec.encode(fact) == data, position


def test_it_comes_to_what_it_came_to_then(copy: Path, said: Any) -> None:
    assert of_then(write_golden.expected(copy), said) == said


def test_rebuilding_it_changes_nothing(copy: Path, said: Any) -> None:
    before = contents(copy)

    with closing(EventLog.open(copy)) as log:
        assert rebuild(log) == len(said["events"])

    assert contents(copy) == before


def test_its_tasks_and_graphs_can_be_loaded_and_say_what_its_rows_say(copy: Path, said: Any) -> None:
    with SQLiteStore(copy) as store:
        there = {row["id"]: row for row in said["rows"]["tasks"] if not row["is_deleted"]}
        assert set(store.tasks) == set(there)
        for task in store.tasks.values():
            assert (task.status.value, task.attempts) == (there[task.id]["status"], there[task.id]["attempts"])
            folded = said["tasks"][task.id]
            if folded["error_length"] is None:
                assert task.error == folded["error"]
            else:  # it was printed, and is not said twice
                assert task.error == said["output"][f"{task.id}/{task.attempts}"]["stderr"]
        graphs = {row["id"] for row in said["rows"]["graphs"] if not row["is_deleted"]}
        assert set(store.graphs) == graphs
        for graph_id in graphs:
            members = [row["task_id"] for row in said["rows"]["graph_tasks"] if row["graph_id"] == graph_id]
            assert [task.id for task in store.graphs[graph_id]] == members


def test_a_golden_ledger_is_written_by_one_command(tmp_path: Path) -> None:
    """So that it can be done once more before a release; what is checked in stays as it is."""
    before = {folder: (folder / "ledger.db").read_bytes() for folder in GOLDEN}
    program = "import sys; from pathlib import Path; import write_golden; write_golden.write(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "new")], cwd=HERE, check=True, timeout=60)

    said = json.loads((tmp_path / "new" / "expected.json").read_text("ascii"))
    assert write_golden.expected(Path(shutil.copy(tmp_path / "new" / "ledger.db", tmp_path / "copy.db"))) == said
    assert (tmp_path / "new" / "ledger.db").stat().st_size < BYTES_MAX
    newest = json.loads((GOLDEN[-1] / "expected.json").read_text("ascii"))
    assert {table: sorted(rows[0]) for table, rows in said["rows"].items()} == {
        table: sorted(rows[0]) for table, rows in newest["rows"].items()
    }, "the tables of this format are others by now; if it is not released, write its golden ledger again"
    assert set(TABLES) == set(said["rows"])
    assert {folder: (folder / "ledger.db").read_bytes() for folder in GOLDEN} == before
