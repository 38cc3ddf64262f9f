"""What the events of a task's stream mean: `TaskState` and `AttemptState`, and the one fold of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import datetime
from typing import Any, Final

from ttasks.errors import DamagedLedgerError, TransitionError, UnknownEventError
from ttasks.events import facts as f
from ttasks.events.agent_facts import AgentFact, AgentSessionOpened, AgentTurnEnded
from ttasks.events.codec import from_iso, iso
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.status import OnInterrupted, TaskStatus, TaskType
from ttasks.state.agent import AGENT_FACTS, AGENT_REPORTS
from ttasks.state.record import evolve, made
from ttasks.state.transitions import PENDING, RUNNING, SUCCEEDED, next_status

GRACE_S: Final = 5.0
"""The seconds between SIGTERM and SIGKILL that a missing `grace` stands for in every ledger: it can never change."""


@dataclass(frozen=True)
class ResultState:
    """How a task's last attempt ended, without what it printed.

    `attempt` is None where it was cancelled before it ran. `error` is only the tail where `error_length`, the number
    of characters of the whole, is not None. `error_code` is the word by which programs know what went wrong.
    """

    status: TaskStatus
    attempt: int | None
    started_at: datetime
    finished_at: datetime
    duration: float
    error: str | None
    error_length: int | None
    returncode: int | None
    reason: str | None
    error_code: str | None = None


@dataclass(frozen=True)
class TaskState:
    """A task as its events tell it, and, field by field, its row in `tasks`.

    `attempts` counts the attempts started; `running_attempt` is the one that runs (None: none, or RUNNING by hand).
    `retry` is the number of the retry that runs or is scheduled; `interruptions` counts interrupted attempts in a
    row; `version` is the number of events folded. `error` is a tail where `error_length` is not None. `redacted` names
    the fields in which a secret was replaced, in alphabetical order; None: none. `grace` is seconds.
    """

    id: str
    name: str
    title: str
    type: TaskType
    status: TaskStatus
    payload: str
    description: str
    created_at: datetime
    timeout: float | None
    cwd: str | None
    env: Mapping[str, str] | None
    env_digests: Mapping[str, str] | None
    on_interrupted: OnInterrupted
    derived_from: str | None
    version: int
    error: str | None = None
    error_length: int | None = None
    blocked_by: str | None = None
    attempts: int = 0
    running_attempt: int | None = None
    retry: int = 0
    retry_due_at: datetime | None = None
    cancel_requested_by: str | None = None
    interruptions: int = 0
    resolution: str | None = None
    is_deleted: bool = False
    redacted: tuple[str, ...] | None = None
    grace: float = GRACE_S
    wait_for_output: bool = True
    result: ResultState | None = None

    @property
    def is_owned(self) -> bool:
        """True while an attempt runs, or a retry waits: only its runner may move the status then (SPEC §2)."""
        return self.running_attempt is not None or self.retry_due_at is not None


@dataclass(frozen=True)
class AttemptState:
    """One attempt, and its row in `attempts`. `position` is that of its TaskStarted, `runner` that of its runner.

    Of an agent's attempt `session` is the id of the conversation and `model` the one that was asked for; what follows
    is what the turn cost, by the agent's own account, which comes at its end.
    """

    task_id: str
    attempt: int
    position: int
    runner: int
    status: TaskStatus
    handler: str
    started_at: datetime
    retry: int
    graph: str | None = None
    run: int | None = None
    finished_at: datetime | None = None
    duration: float | None = None
    returncode: int | None = None
    reason: str | None = None
    exception: str | None = None
    error: str | None = None
    error_length: int | None = None
    pid: int | None = None
    process_start: str | None = None
    error_code: str | None = None
    session: str | None = None
    model: str | None = None
    premium_requests: float | None = None
    nano_aiu: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


Changes = dict[str, Any]
REVISABLE: Final = frozenset({"title", "payload", "description", "timeout", "error"})
"""The fields that a TaskRevised may change."""


def _created(task_id: str, fact: f.TaskCreated, version: int) -> TaskState:
    return made(
        TaskState,
        id=task_id,
        name=fact.name,
        title=fact.title,
        type=fact.type,
        status=PENDING,
        payload=fact.payload,
        description=fact.description,
        created_at=fact.created_at,
        timeout=fact.timeout,
        cwd=fact.cwd,
        env=fact.env,
        env_digests=fact.env_digests,
        on_interrupted=fact.on_interrupted,
        derived_from=fact.derived_from,
        version=version,
        error=fact.error,
        error_length=None,
        blocked_by=None,
        attempts=0,
        running_attempt=None,
        retry=0,
        retry_due_at=None,
        cancel_requested_by=None,
        interruptions=0,
        resolution=None,
        is_deleted=False,
        redacted=fact.redacted,
        grace=GRACE_S if fact.grace is None else fact.grace,
        wait_for_output=fact.wait_for_output is not False,
        result=None,
    )


def _revised(state: TaskState, fact: f.TaskRevised) -> Changes:
    if state.status is SUCCEEDED:
        raise TransitionError(f"SUCCEEDED tasks are immutable: task {state.id} can't be revised any more")
    changes = dict(fact.changes)
    if not REVISABLE.issuperset(changes):
        raise DamagedLedgerError(f"of task {state.id} no {', '.join(set(changes) - REVISABLE)} can be revised")
    if "error" in changes:
        changes["error_length"] = None
    if state.redacted is not None or fact.redacted is not None:
        left = (name for name in state.redacted or () if name not in fact.changes)
        changes["redacted"] = tuple(sorted({*left, *(fact.redacted or ())})) or None
    return changes


def _started(state: TaskState, fact: f.TaskStarted) -> Changes:
    if fact.attempt is not None and fact.attempt != state.attempts + 1:
        raise TransitionError(f"attempt {fact.attempt} of task {state.id} can't start: {state.attempts} were started")
    return {
        "status": next_status(state.status, f.TaskStarted),
        "attempts": fact.attempt if fact.attempt is not None else state.attempts,
        "running_attempt": fact.attempt,
        "retry": fact.retry or 0,
        "retry_due_at": None,
        "cancel_requested_by": None,
        "resolution": None,
        "error": None,
        "error_length": None,
        "blocked_by": None,
        "result": None,
    }


def _running(state: TaskState) -> str:
    return f"attempt {state.running_attempt}" if state.running_attempt is not None else "none"


def _speaks_of_its_result_only(state: TaskState, fact: f.AttemptEnd) -> bool:
    """True for the error of a cancel that somebody asked for: the task keeps the one it had (SPEC §2.2)."""
    was_asked = state.cancel_requested_by is not None
    was_not_running = fact.attempt is None and fact.finished_at is not None
    return isinstance(fact, f.TaskCancelled) and (was_asked or was_not_running)


def _ended(state: TaskState, fact: f.AttemptEnd) -> Changes:
    status = next_status(state.status, type(fact))
    if fact.attempt != state.running_attempt:
        what = f"attempt {fact.attempt}" if fact.attempt is not None else "no attempt"
        raise TransitionError(f"{what} of task {state.id} can end: {_running(state)} runs")
    changes: Changes = {
        "status": status,
        "running_attempt": None,
        "retry_due_at": None,
        "interruptions": state.interruptions + 1 if isinstance(fact, f.TaskInterrupted) else 0,
    }
    if not isinstance(fact, f.TaskInterrupted):
        changes["cancel_requested_by"] = None
    if status is SUCCEEDED:
        changes["error"] = changes["error_length"] = None
    elif fact.error is not None and not _speaks_of_its_result_only(state, fact):
        changes["error"], changes["error_length"] = fact.error, fact.error_length
    if fact.finished_at is not None:
        changes["result"] = made(
            ResultState,
            status=status,
            attempt=fact.attempt,
            started_at=fact.started_at or fact.finished_at,
            finished_at=fact.finished_at,
            duration=fact.duration or 0.0,
            error=fact.error,
            error_length=fact.error_length,
            returncode=fact.returncode,
            reason=fact.reason,
            error_code=fact.error_code,
        )
    return changes


def _blocked(state: TaskState, fact: f.TaskBlocked) -> Changes:
    changes: Changes = {"status": next_status(state.status, f.TaskBlocked), "blocked_by": fact.blocked_by}
    if fact.error is not None:
        changes["error"], changes["error_length"] = fact.error, None
    return changes


def _retry_scheduled(_: TaskState, fact: f.TaskRetryScheduled) -> Changes:
    return {"retry": fact.retry, "retry_due_at": fact.due_at}


def _cancel_requested(state: TaskState, fact: f.TaskCancelRequested) -> Changes:
    # A request conflicts with nothing: one that came after the end changes nothing.
    return {"cancel_requested_by": fact.by} if state.status is RUNNING or state.is_owned else {}


def _resolved(_: TaskState, fact: f.TaskResolved) -> Changes:
    # The status moves by the TaskSucceeded or TaskFailed that follows in the same commit.
    return {"resolution": fact.answer, "interruptions": 0}


def _nothing(_: TaskState, __: f.TaskFact) -> Changes:
    return {}


def _deleted(_: TaskState, __: f.TaskDeleted) -> Changes:
    return {"is_deleted": True}


_APPLY: Final[Mapping[type[f.TaskFact], Callable[[TaskState, Any], Changes]]] = {
    f.TaskRevised: _revised,
    f.TaskStarted: _started,
    f.ProcessSpawned: _nothing,
    f.TaskProgressed: _nothing,
    f.TaskOutput: _nothing,
    f.TaskRetryScheduled: _retry_scheduled,
    f.TaskCancelRequested: _cancel_requested,
    f.TaskSucceeded: _ended,
    f.TaskFailed: _ended,
    f.TaskCancelled: _ended,
    f.TaskInterrupted: _ended,
    f.TaskBlocked: _blocked,
    f.ProcessReaped: _nothing,
    f.TaskResolved: _resolved,
    f.TaskDeleted: _deleted,
    **dict.fromkeys(AGENT_FACTS, _nothing),
}

REPORTS: Final = (f.TaskProgressed, f.TaskOutput, *AGENT_REPORTS)
"""The facts that can be many and big, and that change nothing of a task and its attempts but the version.

A fold of these may leave them unread.
"""


def apply(state: TaskState | None, fact: f.Fact | OpaqueEvent, *, task_id: str, version: int) -> TaskState:
    """Return the state after one more fact, which is number `version` of the task's stream.

    Raises:
        TransitionError: the fact can't follow in this state.
        UnknownEventError: it is of a type from the future that must not be passed over.
        DamagedLedgerError: it has no place in a task's stream, or not there.
    """
    if isinstance(fact, OpaqueEvent):
        if state is None or not fact.is_ignorable:
            raise UnknownEventError(fact.type, fact.type_version, f"task-{task_id}", version=version)
        return evolve(state, version=version)
    if isinstance(fact, f.TaskImported):
        return from_snapshot(task_id, fact.state, version)
    if isinstance(fact, f.TaskCreated):
        if state is not None:
            raise TransitionError(f"task {task_id} exists already")
        return _created(task_id, fact, version)
    change = _APPLY.get(type(fact))  # type: ignore[arg-type]
    if state is None or change is None:
        raise DamagedLedgerError(f"{type(fact).__name__} can't be event {version} of task {task_id}")
    return evolve(state, version=version, **change(state, fact))


def apply_attempt(
    attempt: AttemptState | None, fact: f.Fact | OpaqueEvent, *, task_id: str, position: int, runner: int
) -> AttemptState | None:
    """Return the task's latest attempt after one more fact of its stream (None: none was started yet)."""
    if isinstance(fact, f.TaskStarted) and fact.attempt is not None:
        if fact.handler is None or fact.started_at is None:
            raise DamagedLedgerError(f"the TaskStarted of task {task_id} at {position} has no handler or no time")
        return made(
            AttemptState,
            task_id=task_id,
            attempt=fact.attempt,
            position=position,
            runner=runner,
            status=RUNNING,
            handler=fact.handler,
            started_at=fact.started_at,
            retry=fact.retry or 0,
            graph=fact.graph,
            run=fact.run,
            finished_at=None,
            duration=None,
            returncode=None,
            reason=None,
            exception=None,
            error=None,
            error_length=None,
            pid=None,
            process_start=None,
            error_code=None,
            session=None,
            model=None,
            premium_requests=None,
            nano_aiu=None,
            input_tokens=None,
            output_tokens=None,
        )
    if attempt is None:
        return None
    if isinstance(fact, f.ProcessSpawned) and fact.attempt == attempt.attempt:
        return evolve(attempt, pid=fact.pid, process_start=fact.process_start)
    if isinstance(fact, f.AttemptEnd) and fact.attempt == attempt.attempt:
        return evolve(
            attempt,
            status=next_status(RUNNING, type(fact)),
            finished_at=fact.finished_at,
            duration=fact.duration,
            returncode=fact.returncode,
            reason=fact.reason,
            exception=fact.exception,
            error=fact.error,
            error_length=fact.error_length,
            error_code=fact.error_code,
        )
    if isinstance(fact, AgentFact) and fact.attempt == attempt.attempt and attempt.status is RUNNING:
        changes = _of_conversation(fact)
        return evolve(attempt, **changes) if changes else attempt
    return attempt


def _of_conversation(fact: AgentFact) -> Changes:
    # What an agent says is not ours: where it says more than once what there is one of, the last counts.
    if isinstance(fact, AgentSessionOpened):
        return {"session": fact.session, "model": fact.model}
    if isinstance(fact, AgentTurnEnded):
        counted = ("premium_requests", "nano_aiu", "input_tokens", "output_tokens")
        return {name: getattr(fact, name) for name in counted}
    return {}


_SNAPSHOT_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "type": TaskType,
    "status": TaskStatus,
    "on_interrupted": OnInterrupted,
    "created_at": from_iso,
    "retry_due_at": from_iso,
    "started_at": from_iso,
    "finished_at": from_iso,
    "redacted": tuple,
    "result": lambda data: ResultState(**_read_snapshot(data, ResultState)),
}


def _write_snapshot(record: TaskState | ResultState) -> dict[str, Any]:
    values = vars(record).items()
    return {name: iso(value) if isinstance(value, datetime) else value for name, value in values if value is not None}


def _read_snapshot(content: Mapping[str, Any], record: type[TaskState | ResultState]) -> dict[str, Any]:
    """Return the fields of `record` that the content has; those that it lacks are None or their default."""
    known: dict[str, Any] = {}
    for field in fields(record):
        if field.name in content:
            read = _SNAPSHOT_READERS.get(field.name)
            known[field.name] = read(content[field.name]) if read is not None else content[field.name]
        elif field.default is MISSING:
            known[field.name] = None
    return known


def snapshot(state: TaskState, *, is_at_home: bool = False) -> dict[str, Any]:
    """Return `state` as JSON values, for a TaskImported.

    What is None is left out, and so is what only its old ledger could mean. A task that runs stays running: its end is
    recorded where it runs, so the ledger that gets the snapshot must ask a person before it is started again.

    Args:
        state: the task.
        is_at_home: the snapshot is for the ledger that records what the task's runner does.
    """
    settled = evolve(state, is_deleted=False)
    if not is_at_home:
        settled = evolve(settled, retry_due_at=None, cancel_requested_by=None)
        if state.running_attempt is not None:
            settled = evolve(settled, on_interrupted=OnInterrupted.ASK)
    content = _write_snapshot(settled)
    del content["version"]
    if settled.result is not None:
        content["result"] = _write_snapshot(settled.result)
    return content


def from_snapshot(task_id: str, content: Mapping[str, Any], version: int) -> TaskState:
    """Return the state that `snapshot` wrote down."""
    return TaskState(**{**_read_snapshot(content, TaskState), "id": task_id, "version": version})
