"""Which fact may follow in which status, and where it leads: one table (SPEC §2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ttasks.errors import TransitionError
from ttasks.events.facts import (
    TaskBlocked,
    TaskCancelled,
    TaskFact,
    TaskFailed,
    TaskInterrupted,
    TaskStarted,
    TaskSucceeded,
)
from ttasks.events.status import TaskStatus

PENDING, RUNNING, SUCCEEDED = TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SUCCEEDED
FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED
BLOCKED, INTERRUPTED = TaskStatus.BLOCKED, TaskStatus.INTERRUPTED

TRANSITIONS: Final[Mapping[tuple[TaskStatus, type[TaskFact]], TaskStatus]] = {
    (PENDING, TaskStarted): RUNNING,
    (PENDING, TaskCancelled): CANCELLED,
    (PENDING, TaskBlocked): BLOCKED,
    (PENDING, TaskFailed): FAILED,
    (RUNNING, TaskSucceeded): SUCCEEDED,
    (RUNNING, TaskFailed): FAILED,
    (RUNNING, TaskCancelled): CANCELLED,
    (RUNNING, TaskInterrupted): INTERRUPTED,
    (FAILED, TaskStarted): RUNNING,  # a retry, or a later run
    (FAILED, TaskCancelled): CANCELLED,
    (BLOCKED, TaskStarted): RUNNING,  # its parents recovered
    (BLOCKED, TaskCancelled): CANCELLED,
    (INTERRUPTED, TaskStarted): RUNNING,
    (INTERRUPTED, TaskSucceeded): SUCCEEDED,  # a person says so (TaskResolved)
    (INTERRUPTED, TaskFailed): FAILED,
    (INTERRUPTED, TaskCancelled): CANCELLED,
}

FINAL: Final = frozenset(TaskStatus) - {status for status, _ in TRANSITIONS}
NEXT: Final[Mapping[TaskStatus, tuple[TaskStatus, ...]]] = {
    status: tuple(after for (before, _), after in TRANSITIONS.items() if before is status) for status in TaskStatus
}
FACT_FOR: Final[Mapping[TaskStatus, type[TaskFact]]] = {after: fact for (_, fact), after in TRANSITIONS.items()}
"""The type of fact that leads into each status."""


def next_status(before: TaskStatus, fact_type: type[TaskFact]) -> TaskStatus:
    """Return where a fact of this type leads from `before`.

    Raises:
        TransitionError: nowhere. It names both statuses, and what can follow instead.
    """
    after = TRANSITIONS.get((before, fact_type))
    if after is None:
        target = next((status for status, fact in FACT_FOR.items() if fact is fact_type), None)
        raise refused(before, target if target is not None else fact_type.__name__)
    return after


def refused(before: TaskStatus, target: TaskStatus | str) -> TransitionError:
    """Return the error for a move from `before` to `target` that the table does not have."""
    follow = ", ".join(NEXT[before]) or "nothing"
    return TransitionError(
        f"Cannot transition task from '{before}' to '{target}'. What can follow: {follow}. Nothing was changed"
    )
