"""`Run` and `Runner`: what the ledger knows of one run of a graph, and of who ran it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime

from ttasks.events.status import RunStatus
from ttasks.model.frozen import ReadOnlyDict
from ttasks.model.graph import RecordedError
from ttasks.public import public
from ttasks.state.graph import RunState
from ttasks.state.runner import RunnerState


@dataclass(frozen=True)
class Runner:
    """A process that records.

    `position` is that of its RunnerStarted, by which events name their `runner`; `started_at` is when it recorded its
    first event. What is known of the git checkout that it was in comes a moment later, and is None until then, as
    where there is none.
    """

    position: int
    user: str
    host: str
    pid: int
    cwd: str
    command: tuple[str, ...]
    started_at: datetime
    ttasks_version: str
    python_version: str
    platform: str
    git_root: str | None = None
    git_commit: str | None = None
    git_branch: str | None = None
    git_dirty: bool | None = None

    @classmethod
    def _of(cls, state: RunnerState) -> Runner:
        return cls(**{field.name: getattr(state, field.name) for field in fields(cls)})

    def __str__(self) -> str:
        return f"{self.user}@{self.host} (process {self.pid})"


@dataclass(frozen=True)
class Run:
    """One run of a graph, as it is recorded.

    `run` counts the runs of its graph, from 1. `status` is what the log says: a run whose runner was killed is RUNNING
    until somebody records that it was interrupted. `runner` is the process that runs it, or the last one that did;
    `cancel_requested_by` is who wanted it cancelled, `why` how they said so, or what is known of an interruption.
    `errors` maps the id of each task that raised something to what it was. `position` is that of its GraphRunStarted.
    `duration` is how many seconds its runners worked at it, by a clock that can't be set; the time between a crash and
    a resume is not counted. While the run goes on it has only the
    stretches before; it is None for runs that ended in a ledger of format 2.
    """

    graph_id: str
    run: int
    status: RunStatus
    started_at: datetime
    finished_at: datetime | None
    max_workers: int
    runner: Runner
    position: int
    cancel_requested_by: str | None = None
    why: str | None = None
    errors: Mapping[str, RecordedError] = field(default_factory=dict, compare=False)
    duration: float | None = None

    @classmethod
    def _of(cls, state: RunState, runner: Runner) -> Run:
        errors = {task_id: RecordedError(error["type"], error["text"]) for task_id, error in state.errors.items()}
        return cls(
            graph_id=state.graph_id,
            run=state.run,
            status=state.status,
            started_at=state.started_at,
            finished_at=state.finished_at,
            max_workers=state.max_workers,
            runner=runner,
            position=state.position,
            cancel_requested_by=state.cancel_requested_by,
            why=state.why,
            errors=ReadOnlyDict(errors, "run.errors can't be changed: it says what was recorded of the run"),
            duration=state.duration,
        )


public(Run, Runner)
