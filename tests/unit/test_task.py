"""A task's handle: what it is made of, what may be changed, and what may follow what."""

from __future__ import annotations

import copy
import json
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from freezegun import freeze_time

from ttasks import InMemoryStore, Task, TaskContext, TaskExecutor, TaskStatus, TaskType

PENDING, RUNNING, SUCCEEDED = TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SUCCEEDED
FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED
BLOCKED, INTERRUPTED = TaskStatus.BLOCKED, TaskStatus.INTERRUPTED

# SPEC §2.1, as it is written there.
FOLLOWS = {
    PENDING: {RUNNING, CANCELLED, BLOCKED, FAILED},
    RUNNING: {SUCCEEDED, FAILED, CANCELLED, INTERRUPTED},
    FAILED: {RUNNING, CANCELLED},
    BLOCKED: {RUNNING, CANCELLED},
    INTERRUPTED: {RUNNING, SUCCEEDED, FAILED, CANCELLED},
    SUCCEEDED: set(),
    CANCELLED: set(),
}
WAY_TO = {
    PENDING: [],
    RUNNING: [RUNNING],
    SUCCEEDED: [RUNNING, SUCCEEDED],
    FAILED: [FAILED],
    CANCELLED: [CANCELLED],
    BLOCKED: [BLOCKED],
    INTERRUPTED: [RUNNING, INTERRUPTED],
}
EVERY_MOVE = [(before, after) for before in TaskStatus for after in TaskStatus]
ALLOWED = [move for move in EVERY_MOVE if move[1] in FOLLOWS[move[0]]]
REFUSED = [move for move in EVERY_MOVE if move not in ALLOWED]
FACTORIES = {
    TaskType.BASH: Task.bash,
    TaskType.POWERSHELL: Task.powershell,
    TaskType.PROMPT: Task.prompt,
    TaskType.AGENT: Task.agent,
}


def a_task(status: TaskStatus = PENDING, **fields: Any) -> Task:
    """Return a task that was brought to `status` by hand."""
    task = Task.bash("true", title="x", **fields)
    for step in WAY_TO[status]:
        task.transition_to(step)
    return task


def shown(task: Task) -> dict[str, Any]:
    """Return everything that a handle shows."""
    names = "id title payload type description status error result timeout created_at cwd env blocked_by attempts"
    return {name: getattr(task, name) for name in names.split()}


# --- making one ------------------------------------------------------------------------------------------------------


def test_a_task_shows_what_it_was_made_of() -> None:
    born = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
    task = Task("t", "echo", TaskType.BASH, "d", "e", 1.5, born, cwd="/tmp", env={"A": "b"}, on_interrupted="ask")
    assert (task.title, task.payload, task.type, task.description) == ("t", "echo", TaskType.BASH, "d")
    assert (task.error, task.timeout, task.created_at) == ("e", 1.5, born)
    assert (task.cwd, task.env, task.on_interrupted) == ("/tmp", {"A": "b"}, "ask")


def test_a_new_task_is_pending_and_has_neither_run_nor_failed() -> None:
    task = Task("t", "p", TaskType.PROMPT)
    assert task.status is PENDING
    assert (task.description, task.error, task.timeout, task.result, task.blocked_by) == ("", None, None, None, None)
    assert (task.attempts, task.cwd, task.env, task.on_interrupted) == (0, None, {}, "rerun")


@pytest.mark.parametrize("task_type", TaskType)
def test_each_factory_makes_a_task_of_its_type(task_type: TaskType) -> None:
    task = FACTORIES[task_type]("do it", title="t", description="d", timeout=3)
    assert task.type is task_type
    assert (task.payload, task.title, task.description, task.timeout) == ("do it", "t", "d", 3)


@pytest.mark.parametrize("factory", FACTORIES.values())
def test_each_factory_takes_the_added_fields(factory: Callable[..., Task]) -> None:
    task = factory("do it", cwd="/", env={"A": "b"}, on_interrupted="fail", grace=0, wait_for_output=False)
    assert (task.cwd, task.env, task.on_interrupted) == ("/", {"A": "b"}, "fail")
    assert (task.grace, task.wait_for_output) == (0.0, False)


@pytest.mark.parametrize("factory", FACTORIES.values())
def test_a_factory_takes_nothing_but_the_payload_by_position(factory: Callable[..., Task]) -> None:
    with pytest.raises(TypeError):
        factory("do it", "title")


@pytest.mark.parametrize("unknown", ["error", "created_at", "type", "status", "id", "tiemout"])
def test_a_factory_refuses_what_it_does_not_know(unknown: str) -> None:
    with pytest.raises(TypeError, match=unknown):
        Task.bash("do it", **{unknown: None})


def test_the_added_fields_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        Task("t", "p", TaskType.BASH, "", None, None, None, "/tmp")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"title": 1}, "title must be a str"),
        ({"title": None}, "title must be a str"),
        ({"payload": b"true"}, "payload must be a str"),
        ({"type": "bash"}, "type must be a TaskType"),
        ({"type": None}, "type must be a TaskType"),
        ({"type": PENDING}, "type must be a TaskType"),
        ({"description": None}, "description must be a str"),
        ({"error": 1}, "error must be a str"),
        ({"timeout": "1"}, "timeout must be a number"),
        ({"grace": None}, "grace must be a number, got NoneType"),
        ({"grace": True}, "grace must be a number, got bool"),
        ({"wait_for_output": 1}, "wait_for_output must be a bool, got int"),
        ({"timeout": True}, "timeout must be a number"),
        ({"created_at": "2024-01-01"}, "created_at must be a datetime"),
        ({"cwd": 1}, "cwd must be a str"),
        ({"env": [("A", "b")]}, "env must be a mapping"),
        ({"env": {1: "b"}}, "env"),
        ({"env": {"A": 1}}, "env"),
    ],
)
def test_an_argument_of_the_wrong_type_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Task(**{"title": "t", "payload": "p", "type": TaskType.BASH, **wrong})


@pytest.mark.parametrize("grace", [-1, -0.001, float("inf"), float("nan"), 10**400])
def test_a_grace_that_is_not_a_finite_number_from_zero_is_refused(grace: float) -> None:
    with pytest.raises(ValueError, match="grace must be a finite non-negative number"):
        Task.bash("true", grace=grace)


@pytest.mark.parametrize(
    "timeout",
    [
        0,
        0.0,
        -1,
        -0.001,
        float("nan"),
        float("inf"),
        float("-inf"),
        10**400,
    ],
)
def test_a_timeout_that_is_not_a_finite_number_above_zero_is_refused(timeout: float) -> None:
    with pytest.raises(ValueError, match="timeout must be greater than 0"):
        Task.bash("true", timeout=timeout)


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "x\0"}])
def test_variables_that_no_process_can_have_are_refused(env: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="env"):
        Task.bash("true", env=env)


def test_an_unknown_answer_to_an_interruption_is_refused() -> None:
    with pytest.raises(ValueError, match="maybe"):
        Task.bash("true", on_interrupted="maybe")


def test_an_id_is_a_uuid_string_of_its_own() -> None:
    ids = [Task.bash("true").id for _ in range(1000)]
    assert [str(uuid.UUID(task_id)) for task_id in ids] == ids
    assert len(set(ids)) == 1000


def test_a_task_knows_nothing_of_later_changes_to_the_mapping_it_was_given() -> None:
    given = {"A": "b"}
    task = Task.bash("true", env=given)
    given["A"] = "c"
    assert task.env == {"A": "b"}


CHANGES: dict[str, Callable[[dict[str, str]], object]] = {
    "set": lambda env: env.__setitem__("A", "c"),
    "del": lambda env: env.__delitem__("A"),
    "update": lambda env: env.update(A="c"),
    "|=": lambda env: env.__ior__({"A": "c"}),
    "setdefault": lambda env: env.setdefault("B", "c"),
    "pop": lambda env: env.pop("A"),
    "popitem": lambda env: env.popitem(),
    "clear": lambda env: env.clear(),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_change_of_a_task_s_env_is_refused_and_not_lost(how: str) -> None:
    task = Task.bash("true", env={"A": "b"})
    with pytest.raises(TypeError, match=r"^task.env can't be changed, .* give env= there"):
        CHANGES[how](task.env)
    assert task.env == {"A": "b"}


def test_a_task_s_env_is_a_dict_in_all_else() -> None:
    env = Task.bash("true", env={"A": "b"}).env
    assert json.loads(json.dumps(env)) == pickle.loads(pickle.dumps(env)) == copy.deepcopy(env) == {"A": "b"}
    mine = env | {"B": "c"}
    mine["A"] = "d"
    assert Task.bash("true", env=mine).env == {"A": "d", "B": "c"}


# --- times -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


def test_a_naive_created_at_is_local_time(tokyo: None) -> None:
    task = Task("t", "p", TaskType.BASH, created_at=datetime(2024, 1, 2, 3, 4, 5))
    assert task.created_at == datetime(2024, 1, 1, 18, 4, 5, tzinfo=UTC)


def test_a_created_at_of_another_zone_is_shown_in_utc() -> None:
    there = timezone(timedelta(hours=-7, minutes=-30))
    task = Task("t", "p", TaskType.BASH, created_at=datetime(2024, 1, 2, 20, 0, tzinfo=there))
    assert task.created_at.isoformat() == "2024-01-03T03:30:00+00:00"


@freeze_time("2024-02-29 12:34:56.789012")
def test_a_task_is_created_now_to_the_microsecond() -> None:
    assert Task.bash("true").created_at == datetime(2024, 2, 29, 12, 34, 56, 789012, tzinfo=UTC)


# --- identity --------------------------------------------------------------------------------------------------------


def test_two_handles_of_one_task_are_equal_and_hash_alike() -> None:
    with InMemoryStore() as store:
        task = Task.bash("true")
        store.tasks.save(task)
        other = Task._load(store._readers.task(task.id), store._ledger, store._readers)
    other.title = "changed"
    assert other is not task
    assert other == task
    assert hash(other) == hash(task)


def test_tasks_made_alike_are_not_equal() -> None:
    assert Task.bash("true", title="t") != Task.bash("true", title="t")


def test_a_task_is_not_equal_to_its_id() -> None:
    task = Task.bash("true")
    assert task != task.id


def test_the_repr_shows_id_title_and_status() -> None:
    task = Task.bash("true", title="build")
    assert repr(task) == f"Task(id='{task.id}', title='build', status=pending)"


# --- what may be written ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["id", "status", "result", "blocked_by", "attempts", "type", "created_at"])
def test_what_only_events_change_is_read_only(name: str) -> None:
    task = Task.bash("true")
    before = shown(task)
    with pytest.raises(AttributeError):
        setattr(task, name, before[name])
    assert shown(task) == before


EDITS = [
    ("title", "new"),
    ("payload", "new"),
    ("description", "new"),
    ("timeout", 7.5),
    ("timeout", None),
    ("error", "e"),
]


@pytest.mark.parametrize("status", [status for status in TaskStatus if status is not SUCCEEDED])
@pytest.mark.parametrize(("name", "value"), EDITS)
def test_until_it_succeeded_a_task_may_be_edited(status: TaskStatus, name: str, value: object) -> None:
    task = a_task(status, timeout=1)
    setattr(task, name, value)
    assert getattr(task, name) == value
    assert task.status is status


@pytest.mark.parametrize(("name", "value"), [*EDITS, ("title", "x"), ("error", None)])
def test_after_success_every_write_is_refused(name: str, value: object) -> None:
    task = a_task(SUCCEEDED)
    before = shown(task)
    with pytest.raises(AttributeError, match="SUCCEEDED tasks are immutable"):
        setattr(task, name, value)
    assert shown(task) == before


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("title", 1, TypeError, "title must be a str"),
        ("payload", None, TypeError, "payload must be a str"),
        ("description", b"", TypeError, "description must be a str"),
        ("error", 1, TypeError, "error must be a str"),
        ("timeout", "1", TypeError, "timeout must be a number"),
        ("timeout", 0, ValueError, "timeout must be greater than 0"),
    ],
)
def test_an_edit_is_checked_like_an_argument(name: str, value: Any, error: type[Exception], message: str) -> None:
    task = Task.bash("true", title="x", timeout=5)
    before = shown(task)
    with pytest.raises(error, match=message):
        setattr(task, name, value)
    assert shown(task) == before


# --- predicates ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", TaskStatus)
def test_exactly_one_predicate_names_the_status(status: TaskStatus) -> None:
    task = a_task(status)
    assert [other for other in TaskStatus if getattr(task, f"is_{other}")] == [status]


@pytest.mark.parametrize("status", TaskStatus)
def test_a_task_is_terminal_unless_it_is_pending_or_running(status: TaskStatus) -> None:
    assert a_task(status).is_terminal is (status not in (PENDING, RUNNING))


@pytest.mark.parametrize("status", TaskStatus)
def test_a_task_is_done_once_it_succeeded(status: TaskStatus) -> None:
    assert a_task(status).is_done is (status is SUCCEEDED)


# --- transitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), EVERY_MOVE)
def test_what_can_follow_is_what_the_contract_lists(before: TaskStatus, after: TaskStatus) -> None:
    assert a_task(before).can_transition_to(after) is (after in FOLLOWS[before])


@pytest.mark.parametrize(("before", "after"), ALLOWED)
def test_an_allowed_move_is_made(before: TaskStatus, after: TaskStatus) -> None:
    task = a_task(before)
    task.transition_to(after)
    assert task.status is after


@pytest.mark.parametrize(("before", "after"), REFUSED)
def test_a_refused_move_names_both_ends_and_changes_nothing(before: TaskStatus, after: TaskStatus) -> None:
    task = a_task(before)
    if before is not SUCCEEDED:
        task.error = "kept"
    seen = shown(task)
    with pytest.raises(ValueError, match=f"Cannot transition task from '{before}' to '{after}'"):
        task.transition_to(after, error="not this")
    assert shown(task) == seen


@pytest.mark.parametrize("status", ["running", None, TaskType.BASH, 1])
def test_only_a_status_can_be_asked_for(status: Any) -> None:
    task = Task.bash("true")
    with pytest.raises(TypeError, match="status must be a TaskStatus"):
        task.can_transition_to(status)
    with pytest.raises(TypeError, match="status must be a TaskStatus"):
        task.transition_to(status)
    assert task.status is PENDING


def test_a_move_with_an_error_that_is_no_text_changes_nothing() -> None:
    task = Task.bash("true")
    with pytest.raises(TypeError, match="error must be a str"):
        task.transition_to(FAILED, error=ValueError("x"))  # type: ignore[arg-type]
    assert (task.status, task.error) == (PENDING, None)


@pytest.mark.parametrize(("before", "after"), [move for move in ALLOWED if move[1] not in (RUNNING, SUCCEEDED)])
def test_a_move_keeps_the_error_it_is_given(before: TaskStatus, after: TaskStatus) -> None:
    task = a_task(before)
    task.transition_to(after, error="because")
    assert task.error == "because"


@pytest.mark.parametrize(("before", "after"), [move for move in ALLOWED if move[1] in (RUNNING, SUCCEEDED)])
def test_entering_running_or_succeeded_clears_the_error(before: TaskStatus, after: TaskStatus) -> None:
    task = a_task(before)
    task.error = "old"
    task.transition_to(after)
    assert task.error is None


def test_entering_running_clears_the_result() -> None:
    task = Task.bash("exit 3")
    with pytest.raises(RuntimeError):
        TaskExecutor().execute(task)
    assert task.result is not None
    task.transition_to(RUNNING)
    assert task.result is None


def test_entering_running_clears_who_blocked_it() -> None:
    task, parent = Task.bash("true"), Task.bash("false")
    TaskExecutor().mark_blocked(task, parent.id)
    assert task.blocked_by == parent.id
    task.transition_to(RUNNING)
    assert task.blocked_by is None


def test_moves_by_hand_count_no_attempt_and_leave_no_result() -> None:
    task = a_task(SUCCEEDED)
    assert (task.attempts, task.result) == (0, None)


@pytest.mark.parametrize("status", [SUCCEEDED, FAILED, INTERRUPTED, RUNNING])
def test_while_an_attempt_runs_only_its_runner_moves_the_status(status: TaskStatus) -> None:
    executor = TaskExecutor.empty()
    refusals: list[str] = []

    def meddle(context: TaskContext) -> None:
        try:
            task.transition_to(status)
        except ValueError as refusal:
            refusals.append(str(refusal))

    executor.register(TaskType.BASH, meddle)
    task = Task.bash("", title="x")
    executor.execute(task)
    assert len(refusals) == 1
    assert "task 'x' is RUNNING" in refusals[0]
    assert task.status is SUCCEEDED


# --- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [PENDING, RUNNING, FAILED, BLOCKED, INTERRUPTED])
def test_a_task_that_is_not_over_can_be_cancelled(status: TaskStatus) -> None:
    task = a_task(status)
    task.cancel()
    assert task.status is CANCELLED


def test_cancelling_twice_is_cancelling_once() -> None:
    task = a_task()
    task.cancel()
    before = shown(task)
    task.cancel()
    assert shown(task) == before


def test_cancelling_after_success_does_nothing() -> None:
    task = a_task(SUCCEEDED)
    task.cancel()
    assert task.status is SUCCEEDED


@pytest.mark.parametrize("status", [PENDING, RUNNING, FAILED, BLOCKED, INTERRUPTED])
def test_cancelling_keeps_the_error(status: TaskStatus) -> None:
    task = a_task(status)
    task.error = "it was like this before"
    task.cancel()
    assert task.error == "it was like this before"


def test_while_an_attempt_runs_a_cancel_is_a_request_that_its_context_sees_at_once() -> None:
    executor = TaskExecutor.empty()
    seen: list[tuple[bool, TaskStatus]] = []

    def handler(context: TaskContext) -> None:
        task.cancel()
        seen.append((context.cancelled, task.status))

    executor.register(TaskType.BASH, handler)
    task = Task.bash("")
    with pytest.raises(Exception, match="was cancelled"):
        executor.execute(task)
    assert seen == [(True, RUNNING)]
    assert task.status is CANCELLED


# --- threads ---------------------------------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[int], object]) -> list[Exception]:
    """Run `work` in so many threads that start at once; return what they raised."""
    start = threading.Barrier(count)
    raised: list[Exception] = []

    def run(index: int) -> None:
        start.wait()
        try:
            work(index)
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_of_many_threads_that_start_a_task_by_hand_one_wins() -> None:
    task = Task.bash("true")
    raised = in_threads(8, lambda _: task.transition_to(RUNNING))
    assert task.status is RUNNING
    assert [type(error).__mro__[2] for error in raised] == [ValueError] * 7


def test_of_many_threads_that_cancel_a_saved_task_one_is_recorded() -> None:
    with InMemoryStore() as store:
        task = Task.bash("true")
        store.tasks.save(task)
        assert in_threads(8, lambda _: task.cancel()) == []
        store.tasks.save(task)
        kinds = [event.type for event in store._readers.events(stream=f"task-{task.id}")]
    assert kinds == ["TaskCreated", "TaskCancelled"]


def test_edits_from_many_threads_are_all_recorded() -> None:
    with InMemoryStore() as store:
        task = Task.bash("true")
        store.tasks.save(task)

        def edit(index: int) -> None:
            for number in range(50):
                task.title = f"{index} {number}"

        assert in_threads(8, edit) == []
        store.tasks.save(task)
        titles = [event.fact.changes["title"] for event in store._readers.events(type="TaskRevised")]
    assert sorted(titles) == sorted(f"{index} {number}" for index in range(8) for number in range(50))
    assert titles[-1] == task.title
