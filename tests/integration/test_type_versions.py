"""Events of an older version are lifted when they are read; those of a newer one are kept, shown, and not guessed at.

The first half is a worked example. Say that `TaskCancelRequested`, which holds ``by: "ann@laptop"``, is to hold
``user`` and ``host`` instead. That is more than one more field that may be None, so it is version 2 of the type, and
needs an upcaster.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from click.testing import CliRunner

from ledgers import contents, forge
from strategies import created, graph_created, started
from ttasks import SQLiteStore, Task, TaskExecutor
from ttasks.cli.app import command
from ttasks.errors import DamagedLedgerError, UnknownEventError
from ttasks.events import codec
from ttasks.events import facts as f
from ttasks.events.envelope import OpaqueEvent
from ttasks.log.event_log import EventLog
from ttasks.log.reading import Readers
from ttasks.log.transaction import Batch
from ttasks.log.verify import rebuild, verify
from ttasks.state import task as task_rules
from ttasks.state.task import TaskState

pytestmark = pytest.mark.usefixtures("outside_git")


# --- the example: version 2 of a type, as it would stand in the source ------------------------------------------------


@dataclass(frozen=True)
class TaskCancelRequested(f.TaskFact):
    """Somebody wants a running task cancelled. Its runner decides, and records the end."""

    TYPE_VERSION: ClassVar[int] = 2

    user: str
    host: str


def lift_cancel_request(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 had both in one text: ``user@host``."""
    user, _, host = data["by"].partition("@")
    return {"user": user, "host": host}


def cancel_requested(state: TaskState, fact: TaskCancelRequested) -> dict[str, Any]:
    """What the fold does with it: the state, and so the row, is what it was before."""
    return {"cancel_requested_by": f"{fact.user}@{fact.host}"} if state.is_owned else {}


def upgrade_ttasks(monkeypatch: pytest.MonkeyPatch, *, upcaster: Any = lift_cancel_request) -> None:
    """Make this ttasks one whose TaskCancelRequested is at version 2."""
    monkeypatch.setitem(codec._TYPES, "TaskCancelRequested", TaskCancelRequested)
    monkeypatch.setitem(codec._FORMS, TaskCancelRequested, codec._Form(TaskCancelRequested))
    monkeypatch.setitem(task_rules._APPLY, TaskCancelRequested, cancel_requested)
    if upcaster is not None:
        monkeypatch.setitem(codec.UPCASTERS, ("TaskCancelRequested", 1), upcaster)


# --- old events -----------------------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger with two tasks that run, one of which somebody wants cancelled: an event of version 1."""
    made = tmp_path / "ledger.db"
    with closing(EventLog.open(made)) as log:
        log.append(
            Batch("task-a", [created("a"), started(), f.TaskCancelRequested("ann@laptop")], 0),
            Batch("task-b", [created("b"), started()], 0),
        )
    return made


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    with monkeypatch.context() as patch:
        upgrade_ttasks(patch)
        yield patch


def ttasks(name: str, path: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, [name, "--ledger", str(path), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return done.exit_code, done.output


def requests(path: Path) -> list[object]:
    with closing(Readers.open(path)) as readers:
        return [event.fact for event in readers.events(type="TaskCancelRequested")]


def stored(path: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT type_version, data FROM events WHERE type = 'TaskCancelRequested' ORDER BY position"
        ).fetchall()


def test_an_old_event_is_lifted_when_it_is_read(path: Path, newer: pytest.MonkeyPatch) -> None:
    assert requests(path) == [TaskCancelRequested("ann", "laptop")]


def test_an_old_event_is_never_rewritten(path: Path, newer: pytest.MonkeyPatch) -> None:
    before = contents(path)

    with closing(EventLog.open(path)) as log:
        rebuild(log)
        log.append(Batch("task-b", [TaskCancelRequested("bob", "desk")], None))  # type: ignore[list-item]

    assert contents(path)["events"][: len(before["events"])] == before["events"]
    assert stored(path) == [(1, '{"by":"ann@laptop"}'), (2, '{"user":"bob","host":"desk"}')]


def test_old_and_new_events_are_in_one_chain_that_verifies(path: Path, newer: pytest.MonkeyPatch) -> None:
    assert verify(Readers.open(path)).problems == []

    with closing(EventLog.open(path)) as log:
        log.append(Batch("task-b", [TaskCancelRequested("bob", "desk")], None))  # type: ignore[list-item]

    assert requests(path) == [TaskCancelRequested("ann", "laptop"), TaskCancelRequested("bob", "desk")]
    assert verify(Readers.open(path)).problems == []


def test_an_old_event_folds_to_the_state_that_it_had(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(Readers.open(path)) as readers:
        before = readers.whole_task("a", 3)
    rows = contents(path)
    assert before is not None and before.cancel_requested_by == "ann@laptop"

    with monkeypatch.context() as patch:
        upgrade_ttasks(patch)
        with closing(EventLog.open(path)) as log:
            rebuild(log)
            assert log.readers.whole_task("a", 3) == before

    assert contents(path) == rows


def test_the_command_shows_an_old_event_as_it_is_understood(path: Path, newer: pytest.MonkeyPatch) -> None:
    _, said = ttasks("events", path, "--json", "--type", "TaskCancelRequested")

    assert json.loads(said)["data"] == {"user": "ann", "host": "laptop"}


@pytest.mark.parametrize(
    ("upcaster", "text"),
    [
        (None, "KeyError(('TaskCancelRequested', 1))"),
        (lambda data: {"user": data["by"]}, "missing 1 required positional argument: 'host'"),
        (lambda data: {"user": data["by"], "host": 7}, "host: Input should be a valid string"),
        (lambda data: data["wrong"], "KeyError('wrong')"),
    ],
    ids=["there is none", "it lacks a field", "it has a wrong type", "it fails"],
)
def test_an_event_that_can_not_be_lifted_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch, upcaster: Any, text: str
) -> None:
    upgrade_ttasks(monkeypatch, upcaster=upcaster)

    (problem,) = [each for each in verify(Readers.open(path)).problems if each.position is not None]

    assert (problem.promise, problem.position) == ("form", 5)
    assert text in problem.text


# --- events from the future -----------------------------------------------------------------------------------------


def test_a_newer_version_of_a_type_is_kept_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        upgrade_ttasks(patch)
        with closing(EventLog.open(path)) as log:
            log.append(Batch("task-b", [TaskCancelRequested("bob", "desk")], None))  # type: ignore[list-item]

    opaque = OpaqueEvent("TaskCancelRequested", 2, '{"user":"bob","host":"desk"}')
    assert requests(path) == [f.TaskCancelRequested("ann@laptop"), opaque]


STREAMS = ["task-a", "graph-g", "runner-{runner}", "ledger", "host-h"]


@pytest.fixture(params=STREAMS)
def stream(request: pytest.FixtureRequest, path: Path) -> str:
    """A stream of each kind, and of one that this ttasks does not know."""
    with closing(EventLog.open(path)) as log:
        log.append(Batch("graph-g", [graph_created()], 0))
        runner = log.readers.runner(2)
        assert runner is not None
    return str(request.param).format(runner=runner.id)


def from_the_future(path: Path, stream: str, data: str) -> int:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        return forge(connection, stream, "TaskTeleported", data, 3)


def test_an_event_from_the_future_stops_the_fold_and_is_named(path: Path, stream: str) -> None:
    position = from_the_future(path, stream, '{"to":"mars"}')
    version = len([row for row in contents(path)["events"] if row[1] == stream])
    before = contents(path)

    with closing(EventLog.open(path)) as log, pytest.raises(UnknownEventError) as refusal:
        rebuild(log)

    assert str(refusal.value) == (
        f"event {position}, {stream}@{version}, is a TaskTeleported (version 3), which this ttasks does not know: "
        "a newer one wrote it. Nothing was written; use the ledger with that"
    )
    error = refusal.value
    assert (error.type, error.type_version, error.stream) == ("TaskTeleported", 3, stream)
    assert (error.version, error.position) == (version, position)
    assert contents(path) == before


def test_an_event_from_the_future_is_a_problem_at_its_position(path: Path, stream: str) -> None:
    position = from_the_future(path, stream, '{"to":"mars"}')

    code, said = ttasks("verify", path)

    assert code == 1
    assert f"form: event {position}: event {position}, {stream}@" in said
    assert said.endswith(f"NOT clean: 1 problem; the first is at event {position} (form)\n")


def test_an_event_from_the_future_that_may_be_ignored_is_passed_over(path: Path, stream: str) -> None:
    position = from_the_future(path, stream, '{"to":"mars","ignorable":true}')
    with closing(EventLog.open(path)) as log:
        assert rebuild(log) == position  # a newer ttasks would have counted it in the row

    assert verify(Readers.open(path)).problems == []


@pytest.mark.parametrize("data", ['{"to":"mars"}', '{ "ignorable": true, "é": [1.0] }'])
def test_an_event_from_the_future_is_shown_as_it_is(path: Path, stream: str, data: str) -> None:
    position = from_the_future(path, stream, data)

    code, said = ttasks("events", path, "--after", str(position - 1))
    assert code == 0
    assert f" {stream}@" in said and f" TaskTeleported {data}\n" in said
    _, said = ttasks("events", path, "--after", str(position - 1), "--json")
    assert json.loads(said)["data"] == json.loads(data)


@pytest.mark.parametrize("stream", ["task-new", "graph-new", "runner-new"])
def test_no_stream_begins_with_an_event_from_the_future(path: Path, stream: str) -> None:
    from_the_future(path, stream, '{"ignorable":true}')

    with (
        closing(EventLog.open(path)) as log,
        pytest.raises(UnknownEventError, match=f"{stream}@1, is a TaskTeleported"),
    ):
        rebuild(log)


@pytest.mark.parametrize("data", ["[]", "7", "null", '"ignorable"'])
def test_data_from_the_future_is_an_object_all_the_same(path: Path, data: str) -> None:
    position = from_the_future(path, "host-h", data)

    assert verify(Readers.open(path)).problems[0].position == position
    with pytest.raises(DamagedLedgerError, match=rf"event {position} \(TaskTeleported\) can't be read"):
        list(Readers.open(path).events())


def test_a_task_goes_on_after_an_event_that_may_be_ignored(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store:
        task = Task.bash("echo on", title="goes on")
        store.tasks.save(task)
    from_the_future(path, f"task-{task.id}", '{"ignorable":true}')
    with closing(EventLog.open(path)) as log:
        rebuild(log)

    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        assert executor.execute(store.tasks[task.id]).output == "on\n"

    assert verify(Readers.open(path)).problems == []
