"""One frozen type per fact, for every stream of the ledger.

What is here is permanent: facts are hashed into the chain and read for ever. Two rules keep old ledgers readable:

* A field that is None is left out of the stored JSON, and a missing field reads as None. A field with another default
  is always written, so that a later change of the default can't rewrite history.
* Adding a field that may be None is not a new version of a type; every other change is, with an upcaster.

Times are here only where they differ from the envelope's `recorded_at`. Durations are in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field
from datetime import datetime
from typing import Any, ClassVar, Literal

from ttasks.events.status import OnInterrupted, RunStatus, TaskType

Chunk = tuple[Literal["stdout", "stderr"], str, str]
"""What one read of a pipe gave: which stream, when (ISO 8601, UTC), the text."""


class Record:
    """Frozen fields, by which it is compared and shown.

    How is said once, here: what `dataclass` writes for each of fifty types is a tenth of the time in which a process
    that runs a task starts.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__dataclass_fields__))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, eq=False, repr=False)
class Fact(Record):
    """Something that happened. Subclasses are the types of events."""

    TYPE_VERSION: ClassVar[int] = 1


@dataclass(frozen=True, eq=False, repr=False)
class RetrySpec(Record):
    """A retry policy as it is recorded. `retry_on` holds qualified names: functions can't be restored from a log."""

    max_attempts: int
    backoff: float
    factor: float = 1.0
    max_backoff: float | None = None
    jitter: float = 0.0
    retry_on: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Member(Record):
    """A task's place in a graph. `after` names the tasks it depends on, in declaration order."""

    task: str
    after: tuple[str, ...] = ()
    is_finally: bool = False
    is_required: bool = True
    retry_policy: RetrySpec | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Source(Record):
    """The workflow file that a graph was made from: absolute path and SHA-256 (hex) of its bytes."""

    path: str
    sha256: str


# --- task streams: "task-<uuid>" ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class TaskFact(Fact):
    """A fact in a task's stream."""


@dataclass(frozen=True, eq=False, repr=False)
class TaskCreated(TaskFact):
    """`name` is its name in its workflow: the same task in later runs of one file has the same name.

    `env` holds the extra variables whose values may be recorded, `env_digests` a keyed digest of each secret one.
    `derived_from` is the task that this one repeats, in a graph made by `TaskGraph.retry`. `redacted` names the fields
    in which a secret was replaced: they can't be restored. `grace` is the time in seconds between SIGTERM and SIGKILL;
    None means 5, for ever, and `wait_for_output` None means true: that was the rule before tasks could say otherwise.
    """

    name: str
    title: str
    type: TaskType
    payload: str
    description: str
    created_at: datetime
    on_interrupted: OnInterrupted
    timeout: float | None = None
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    env_digests: Mapping[str, str] | None = None
    error: str | None = None
    derived_from: str | None = None
    redacted: tuple[str, ...] | None = None
    grace: float | None = None
    wait_for_output: bool | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskRevised(TaskFact):
    """`changes` maps each revised field (title, payload, description, timeout, error) to its new value.

    `redacted` names those in which a secret was replaced.
    """

    changes: Mapping[str, Any]
    redacted: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskStarted(TaskFact):
    """An attempt began. It holds what this attempt runs, so that a later edit of the task changes nothing about it.

    `attempt` counts from 1 over the task's life, `retry` from 0 within one use of its retry policy. `handler` is the
    qualified name of what runs it. None in `attempt` (and with it in all the rest): RUNNING was set by hand.
    `redacted` names the fields in which a secret was replaced. `grace` and `wait_for_output` are as in TaskCreated.
    """

    attempt: int | None = None
    handler: str | None = None
    payload: str | None = None
    started_at: datetime | None = None
    retry: int | None = None
    timeout: float | None = None
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    env_digests: Mapping[str, str] | None = None
    retry_policy: RetrySpec | None = None
    graph: str | None = None
    run: int | None = None
    redacted: tuple[str, ...] | None = None
    grace: float | None = None
    wait_for_output: bool | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ProcessSpawned(TaskFact):
    """The attempt's child process, which leads a session and process group of its own.

    `process_start` is what the operating system calls its start; it is compared only for equality.
    """

    attempt: int
    pid: int
    process_start: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskProgressed(TaskFact):
    """A handler said how far it is: `percent` from 0 to 100, or a message, or both."""

    attempt: int
    at: datetime
    percent: float | None = None
    message: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskOutput(TaskFact):
    """What an attempt printed since the last such event: chunks as they were read, in order of arrival."""

    attempt: int
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, eq=False, repr=False)
class TaskRetryScheduled(TaskFact):
    """Attempt `attempt` failed and the next, retry number `retry`, is due after `delay` seconds."""

    attempt: int
    retry: int
    delay: float
    due_at: datetime


@dataclass(frozen=True, eq=False, repr=False)
class TaskCancelRequested(TaskFact):
    """Somebody wants a running task cancelled. Its runner decides, and records the end."""

    by: str


@dataclass(frozen=True, eq=False, repr=False)
class AttemptEnd(TaskFact):
    """How an attempt ended.

    `attempt` is None where the status was set by hand; then `finished_at` is None as well, unless the end has a
    result all the same (a task cancelled before it ran). `error` is the result's error text. Where all of it was
    printed to stderr and is long, it is only the tail, and `error_length` counts the characters of the whole, which
    is the attempt's stderr in its TaskOutput events. `exception` is the qualified name of what was raised, and
    `error_code` the word by which programs know what went wrong, where its handler has one.
    """

    attempt: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    duration: float | None = None
    error: str | None = None
    error_length: int | None = None
    exception: str | None = None
    returncode: int | None = None
    reason: str | None = None
    error_code: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskSucceeded(AttemptEnd):
    """`output` is what a handler returned, if that is a text; what was printed is in TaskOutput."""

    output: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskFailed(AttemptEnd):
    """The attempt failed, or FAILED was set by hand."""


@dataclass(frozen=True, eq=False, repr=False)
class TaskCancelled(AttemptEnd):
    """The task was cancelled. `by` says by whom, where nothing ran that had to be asked."""

    by: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskInterrupted(AttemptEnd):
    """The attempt's runner died or was stopped: what became of the work is unknown."""


@dataclass(frozen=True, eq=False, repr=False)
class TaskBlocked(TaskFact):
    """`blocked_by` is the direct dependency that is bad (None: set by hand)."""

    blocked_by: str | None = None
    error: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ProcessReaped(TaskFact):
    """Processes that were left of an attempt, or had left its group, were ended: `pids`, by `signal`, for `why`."""

    attempt: int
    pids: tuple[int, ...]
    signal: str
    why: str


@dataclass(frozen=True, eq=False, repr=False)
class TaskResolved(TaskFact):
    """A person decided what an interrupted task counts as: ``succeeded``, ``failed`` or ``rerun``."""

    answer: Literal["succeeded", "failed", "rerun"]
    by: str
    note: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskImported(TaskFact):
    """A whole snapshot of a task that came from no ledger or another one, or back after it was deleted.

    `state` maps the fields of `TaskState` to JSON values; `ledger` is the id of the ledger it came from, if any. What
    its last attempt printed follows as TaskOutput.
    """

    state: Mapping[str, Any]
    ledger: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class TaskDeleted(TaskFact):
    """The task left the collection. Its history stays."""

    by: str


# --- graph streams: "graph-<uuid>" ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class GraphFact(Fact):
    """A fact in a graph's stream."""


@dataclass(frozen=True, eq=False, repr=False)
class GraphCreated(GraphFact):
    """`members` are in insertion order. `derived_from` is the graph that this one retries."""

    title: str
    created_at: datetime
    members: tuple[Member, ...]
    source: Source | None = None
    max_workers: int | None = None
    derived_from: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class GraphRevised(GraphFact):
    """`members` were added, or replaced in their old place; `title` is None where it stayed."""

    members: tuple[Member, ...] = ()
    title: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class GraphRunStarted(GraphFact):
    """A run, counted from 1. `edges` are pairs of indices into `tasks`: child, dependency.

    `finally_tasks` and `optional_tasks` are indices into `tasks` too. `handlers` maps the types of its tasks to the
    qualified names of what runs them: a payload that was meant for another handler must not reach this one. `cwd` is
    the folder that the run was started in, None where it is its runner's.
    """

    run: int
    max_workers: int
    tasks: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    finally_tasks: tuple[int, ...] = ()
    optional_tasks: tuple[int, ...] = ()
    handlers: Mapping[str, str] | None = None
    cwd: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class GraphCancelRequested(GraphFact):
    """Somebody wants the run cancelled; `why` says how they said it (``Ctrl-C``, ``ttasks cancel``)."""

    by: str
    why: str


@dataclass(frozen=True, eq=False, repr=False)
class GraphRunFinished(GraphFact):
    """`errors` maps the id of each task that has one to ``{"type": qualified name, "text": str}``.

    `duration` is how long this runner worked at the run, in seconds, by a monotonic clock. A run that was resumed has
    several such stretches, one in each GraphRunInterrupted and one here; None: ledgers of format 2 did not record it.
    """

    run: int
    outcome: RunStatus
    errors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    duration: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class GraphRunInterrupted(GraphFact):
    """The run's runner died or was stopped; `why` says what is known of it.

    `duration` is how long that runner worked at the run, in seconds: by a monotonic clock where the runner recorded
    this itself, else from the start of its work to the last event that it recorded.
    """

    run: int
    why: str
    errors: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    duration: float | None = None


@dataclass(frozen=True, eq=False, repr=False)
class GraphRunResumed(GraphFact):
    """This runner claimed an interrupted run and goes on with it (`finally_only`: with its owed finally tasks)."""

    run: int
    by: str
    finally_only: bool = False
    forced_handlers: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class GraphDeleted(GraphFact):
    """The graph left the collection. Its history and its tasks stay."""

    by: str


# --- runner streams: "runner-<uuid>", and "ledger" -----------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class RunnerStarted(Fact):
    """A process that appends: who, where, with what. `boot_id`, `pid` and `process_start` together name it for ever."""

    host: str
    boot_id: str
    pid: int
    process_start: str
    user: str
    cwd: str
    command: tuple[str, ...]
    ttasks_version: str
    python_version: str
    platform: str


@dataclass(frozen=True, eq=False, repr=False)
class RunnerDescribed(Fact):
    """What took longer to find out about a runner: the git checkout that its cwd is in."""

    git_root: str
    git_commit: str | None = None
    git_branch: str | None = None
    git_dirty: bool | None = None


@dataclass(frozen=True, eq=False, repr=False)
class LedgerCreated(Fact):
    """Event 1. `digest_key` (hex) keys the digests of this ledger's secret values."""

    ledger: str
    created_at: datetime
    digest_key: str
    ttasks_version: str
