"""What a command makes of a state: new facts, or a refusal. No clock, no disk, no threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from ttasks.errors import AlreadyRunningError, SealedTaskError, TransitionError
from ttasks.events.facts import (
    TaskBlocked,
    TaskCancelled,
    TaskCancelRequested,
    TaskFact,
    TaskFailed,
    TaskInterrupted,
    TaskResolved,
    TaskRevised,
    TaskStarted,
    TaskSucceeded,
)
from ttasks.events.status import TaskStatus
from ttasks.state.naming import named
from ttasks.state.task import TaskState
from ttasks.state.transitions import (
    BLOCKED,
    CANCELLED,
    FAILED,
    INTERRUPTED,
    PENDING,
    RUNNING,
    SUCCEEDED,
    next_status,
    refused,
)

_BY_HAND: Final[Mapping[TaskStatus, type[TaskFact]]] = {
    RUNNING: TaskStarted,
    SUCCEEDED: TaskSucceeded,
    FAILED: TaskFailed,
    CANCELLED: TaskCancelled,
    BLOCKED: TaskBlocked,
    INTERRUPTED: TaskInterrupted,
}


def revise(state: TaskState, field: str, value: Any) -> list[TaskFact]:
    """Change one of the fields that may be changed; setting it to what it is changes nothing.

    Raises:
        SealedTaskError: the task has SUCCEEDED.
    """
    check_may_change(state, field)
    if getattr(state, field) == value and (field != "error" or state.error_length is None):
        return []
    return [TaskRevised({field: value})]


def check_may_change(state: TaskState, what: str) -> None:
    """Refuse to change a task that has SUCCEEDED.

    Raises:
        SealedTaskError: it has.
    """
    if state.status is SUCCEEDED:
        raise SealedTaskError(
            f"SUCCEEDED tasks are immutable: {what} of task '{state.title or state.id}' was left as it is"
        )


def transition(state: TaskState, status: TaskStatus, error: str | None, by: str) -> list[TaskFact]:
    """Set the status by hand. A CANCELLED for a running attempt is a request to its runner.

    Raises:
        AlreadyRunningError: an attempt runs, or its retry waits; only its runner moves the status.
        TransitionError: the table has no such move.
    """
    if state.is_owned:
        if status is CANCELLED:
            return cancel(state, by)
        raise AlreadyRunningError(
            f"task '{state.title or state.id}' is RUNNING: only its runner may record how it ends; cancel it instead"
        )
    fact_type = _BY_HAND.get(status)
    if fact_type is None:
        raise refused(state.status, status)
    next_status(state.status, fact_type)
    if status in (RUNNING, SUCCEEDED):  # both clear the error (SPEC §2.2)
        return [fact_type()]
    if status is CANCELLED:
        return [TaskCancelled(error=error, by=by)]
    return [fact_type(error=error)]  # type: ignore[call-arg]


def cancel(state: TaskState, by: str) -> list[TaskFact]:
    """Cancel the task, or ask its runner to; nothing for one that is over, or asked to already."""
    if state.status.is_sink or (state.is_owned and state.cancel_requested_by is not None):
        return []
    if state.is_owned:
        return [TaskCancelRequested(by)]
    return [TaskCancelled(by=by)]


def check_may_start(state: TaskState) -> None:
    """Refuse to start a task that is running or over.

    Raises:
        AlreadyRunningError: an attempt of it runs, or its retry waits.
        TransitionError: its status has no way to RUNNING.
    """
    if state.status is RUNNING or state.is_owned:
        raise AlreadyRunningError(
            f"Cannot execute task with status '{RUNNING}': {named('task', state.title, state.id)} is running already. "
            "Nothing was written"
        )
    if state.status not in (PENDING, FAILED, BLOCKED, INTERRUPTED):
        raise TransitionError(
            f"Cannot execute task with status '{state.status}': {named('task', state.title, state.id)} is over. "
            "Nothing was written"
        )


Resolution = Literal["succeeded", "failed", "rerun"]
"""What a person may decide about an interrupted task."""


def resolve(state: TaskState, answer: Resolution, by: str, note: str | None) -> list[TaskFact]:
    """Decide what an interrupted task counts as. One that is RUNNING has to be recorded as interrupted first.

    Raises:
        TransitionError: it is neither.
    """
    if state.status not in (RUNNING, INTERRUPTED):
        raise TransitionError(
            f"{named('task', state.title, state.id)} is {state.status}, not interrupted: there is nothing to resolve. "
            "Nothing was written"
        )
    resolved = TaskResolved(answer, by, note)
    if answer == "rerun":
        return [resolved]
    if answer == "succeeded":
        return [resolved, TaskSucceeded()]
    return [resolved, TaskFailed(error=f"{by} decided that it failed{f': {note}' if note else ''}")]


def block(state: TaskState, parent: str) -> list[TaskFact]:
    """Record that the task can't run because `parent`, a direct dependency, is bad.

    Raises:
        TransitionError: the task is not PENDING.
    """
    next_status(state.status, TaskBlocked)
    return [TaskBlocked(blocked_by=parent)]
