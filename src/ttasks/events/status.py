"""The words in which events speak of tasks, attempts and runs."""

from __future__ import annotations

from enum import StrEnum

from ttasks.public import public


class TaskStatus(StrEnum):
    """Where a task stands. SPEC §2.1 has the table of transitions; `ttasks.state.transitions` is that table."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    BLOCKED = "blocked"
    INTERRUPTED = "interrupted"

    @property
    def is_sink(self) -> bool:
        """True for SUCCEEDED and CANCELLED: there is no way out."""
        return self in (TaskStatus.SUCCEEDED, TaskStatus.CANCELLED)

    @property
    def is_active(self) -> bool:
        """True for PENDING and RUNNING."""
        return self in (TaskStatus.PENDING, TaskStatus.RUNNING)

    @property
    def is_bad(self) -> bool:
        """True for FAILED, CANCELLED, BLOCKED and INTERRUPTED: a parent in it blocks its children."""
        return not self.is_active and self is not TaskStatus.SUCCEEDED


class TaskType(StrEnum):
    """What a task's payload is, and so which handler runs it."""

    BASH = "bash"
    POWERSHELL = "powershell"
    PROMPT = "prompt"
    AGENT = "agent"


class OnInterrupted(StrEnum):
    """What becomes of a task whose runner died: run it again, call it failed, or wait for a person (SPEC §6)."""

    RERUN = "rerun"
    FAIL = "fail"
    ASK = "ask"


class RunStatus(StrEnum):
    """Where a run of a graph stands."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"


class TerminationReason(StrEnum):
    """Why an attempt did not succeed."""

    EXIT_CODE = "exit_code"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    HANDLER = "handler"
    INTERRUPTED = "interrupted"


public(TaskStatus, TaskType, RunStatus)
