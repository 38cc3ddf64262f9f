"""What a handler is given, made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from ttasks import Task, TaskCancelled, TaskContext, TaskStatus, TaskType

Emitted = list[tuple[float | None, str | None]]


@pytest.fixture
def emitted() -> Emitted:
    return []


@pytest.fixture
def context(emitted: Emitted) -> TaskContext:
    return TaskContext(Task.bash("true"), progress_emitter=lambda *what: emitted.append(what))


def test_a_context_shows_its_task() -> None:
    task = Task.bash("make", title="t", description="d", timeout=3, cwd="/", env={"A": "b"})
    context = TaskContext(task)
    assert (context.id, context.title, context.description, context.payload) == (task.id, "t", "d", "make")
    assert (context.type, context.timeout, context.status) == (TaskType.BASH, 3, TaskStatus.PENDING)
    assert (context.cwd, dict(context.env), dict(context.upstream)) == ("/", {"A": "b"}, {})


@pytest.mark.parametrize("task", [None, "task", object()])
def test_a_context_is_made_for_a_task(task: Any) -> None:
    with pytest.raises(TypeError, match="task must be a Task"):
        TaskContext(task)


def test_an_edit_of_the_task_does_not_change_what_the_attempt_runs() -> None:
    task = Task.bash("make", title="t", description="d", timeout=3)
    context = TaskContext(task)
    task.title, task.payload, task.description, task.timeout = "T", "rm", "D", 9
    assert (context.title, context.payload, context.description, context.timeout) == ("t", "make", "d", 3)


@pytest.mark.parametrize("field", ["title", "payload", "description", "timeout", "cwd", "env"])
def test_what_an_attempt_runs_can_not_be_changed(field: str) -> None:
    context = TaskContext(Task.bash("make", title="t", description="d", timeout=3, cwd="/", env={"A": "b"}))
    before = getattr(context, field)
    with pytest.raises(AttributeError, match=f"context.{field} can't be set"):
        setattr(context, field, None)
    assert getattr(context, field) == before
    with pytest.raises(TypeError):
        context.env["A"] = "c"  # type: ignore[index]


def test_the_status_is_the_task_s_own() -> None:
    task = Task.bash("make")
    context = TaskContext(task)
    task.transition_to(TaskStatus.FAILED)
    assert context.status is TaskStatus.FAILED


def test_upstream_is_read_only_and_a_copy_of_what_was_given() -> None:
    parent = Task.bash("a")
    given = {parent.id: parent}
    context = TaskContext(Task.bash("b"), given)
    given.clear()
    assert context.upstream[parent.id] is parent
    with pytest.raises(TypeError):
        context.upstream["x"] = parent  # type: ignore[index]


def test_the_environment_is_read_only() -> None:
    with pytest.raises(TypeError):
        TaskContext(Task.bash("b", env={"A": "b"})).env["A"] = "c"  # type: ignore[index]


def test_a_context_is_cancelled_when_its_task_is() -> None:
    task = Task.bash("make")
    context = TaskContext(task)
    context.raise_if_cancelled()
    assert not context.cancelled
    task.cancel()
    assert context.cancelled
    with pytest.raises(TaskCancelled) as raised:
        context.raise_if_cancelled()
    assert str(raised.value) == f"Task '{task.id}' was cancelled"


@pytest.mark.parametrize("what", [(0, None), (100, None), (None, ""), (50.5, "half")])
def test_progress_goes_to_the_emitter(context: TaskContext, emitted: Emitted, what: tuple[Any, Any]) -> None:
    context.emit_progress(*what)
    assert emitted == [what]


def test_progress_need_not_rise(context: TaskContext, emitted: Emitted) -> None:
    for percent in (90, 10, 10):
        context.emit_progress(percent)
    assert [percent for percent, _ in emitted] == [90, 10, 10]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "percent or message is required"),
        ({"percent": None, "message": None}, ValueError, "percent or message is required"),
        ({"percent": "5"}, TypeError, "percent must be a number"),
        ({"percent": True}, TypeError, "percent must be a number"),
        ({"percent": 1j}, TypeError, "percent must be a number"),
        ({"message": 5}, TypeError, "message must be a str"),
        ({"message": b"x"}, TypeError, "message must be a str"),
        ({"percent": 5, "message": 5}, TypeError, "message must be a str"),
        ({"percent": -0.1}, ValueError, "percent must be between 0 and 100"),
        ({"percent": 100.1}, ValueError, "percent must be between 0 and 100"),
        ({"percent": float("nan")}, ValueError, "percent must be between 0 and 100"),
        ({"percent": float("inf")}, ValueError, "percent must be between 0 and 100"),
        ({"percent": 10**400}, ValueError, "percent must be between 0 and 100"),
    ],
)
def test_wrong_progress_is_refused_and_goes_nowhere(
    context: TaskContext, emitted: Emitted, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        context.emit_progress(**arguments)
    assert emitted == []


def test_wrong_types_are_told_before_wrong_values(context: TaskContext) -> None:
    with pytest.raises(TypeError, match="message must be a str"):
        context.emit_progress(percent=101, message=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(("arguments", "error"), [({}, ValueError), ({"percent": "5"}, TypeError)])
def test_wrong_arguments_are_told_before_the_missing_executor(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        TaskContext(Task.bash("true")).emit_progress(**arguments)


def test_progress_without_an_executor_is_refused() -> None:
    with pytest.raises(RuntimeError, match="without an executor"):
        TaskContext(Task.bash("true")).emit_progress(1)


def test_progress_without_an_executor_is_refused_before_a_cancel_is_noticed() -> None:
    task = Task.bash("true")
    task.cancel()
    with pytest.raises(RuntimeError, match="without an executor"):
        TaskContext(task).emit_progress(1)


def test_progress_of_a_cancelled_task_is_refused(context: TaskContext, emitted: Emitted) -> None:
    context._task.cancel()
    with pytest.raises(TaskCancelled, match="was cancelled"):
        context.emit_progress(1)
    assert emitted == []
