"""What subscribers hear."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from ttasks.events.envelope import RecordedEvent
from ttasks.events.status import TaskStatus
from ttasks.model.result import ReadWhenAsked, none
from ttasks.model.task import Task
from ttasks.public import public


class TaskEventType(StrEnum):
    """What a TaskEvent is about."""

    STARTED = "started"
    PROGRESS = "progress"
    OUTPUT = "output"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"
    INTERRUPTED = "interrupted"
    PERSISTENCE_FAILED = "persistence_failed"


@dataclass(frozen=True)
class TaskEvent(ReadWhenAsked):
    """Something that happened to a task.

    With a `record` it is in the ledger for good. `record` is None without a ledger, and on OUTPUT and PROGRESS, which
    are durable a moment later. `output_chunk` is one line with its end (``\\n``, ``\\r\\n``, or the ``\\r``
    of a progress bar), `output_stream` ``stdout`` or ``stderr``.
    An `error` of more than 64 KiB that the ledger has is read each time it is asked for.
    """

    type: TaskEventType
    task_id: str
    task: Task = field(repr=False)
    timestamp: datetime
    previous_status: TaskStatus | None
    status: TaskStatus
    error: str | None = field(default_factory=none)
    progress_percent: float | None = None
    progress_message: str | None = None
    output_stream: str | None = None
    output_chunk: str | None = None
    record: RecordedEvent | None = field(default=None, repr=False, hash=False)


public(TaskEventType, TaskEvent)
