"""What a handle over a task shows: the fold of what is recorded and what is pending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from ttasks.events.status import TaskStatus, TaskType
from ttasks.model.frozen import ReadOnlyDict
from ttasks.model.given import Given
from ttasks.model.result import TaskResult, loaded_result
from ttasks.state.task import ResultState, TaskState

_ENV_IS_FIXED: Final = (
    "task.env can't be changed, it is fixed when the task is made: give env= there, env={**task.env, …} for a new task"
)


class History(Protocol):
    """Where a loaded handle reads what its row does not hold."""

    def printed_to(self, task_id: str, attempt: int, stream: str) -> str:
        """Return what an attempt printed to ``stdout`` or ``stderr``."""

    def returned(self, task_id: str, attempt: int) -> str | None:
        """Return the text that an attempt's handler returned."""

    def whole_task(self, task_id: str, version: int) -> TaskState | None:
        """Return the task as of a version of its stream, with its errors whole."""


@dataclass(frozen=True)
class Resumption:
    """How the next attempt goes on from what was interrupted.

    `retry` is its number within its retry policy; `waits_s` are the seconds to wait before it, where the attempt
    before failed (None: it was interrupted, or there was none); `cwd` is where a task runs that has no folder of its
    own (None: where its runner is).
    """

    retry: int = 0
    waits_s: float | None = None
    cwd: str | None = None


@dataclass(eq=False, slots=True)
class Keeper:
    """An execution or a run of a graph: while it lives, the handles that it runs belong to `ledger` (None: to none).

    `mirrors` undoes, by ledger, what listens for cancels in other ledgers that hold a snapshot of the running task.
    """

    ledger: str | None
    mirrors: dict[str, Callable[[], None]] = field(default_factory=dict)


class TaskView:
    """The read-only side of `Task`."""

    __slots__ = (
        "__weakref__", "_given", "_history", "_is_as_made", "_keepers", "_ledger", "_lock", "_mirrored", "_on_cancel",
        "_pending", "_recorded", "_recording", "_result", "_resumption", "_seen", "_view",
    )  # fmt: skip

    _lock: threading.RLock
    _view: TaskState
    _recorded: TaskState
    _given: Given
    _history: History | None
    _result: TaskResult | None
    _resumption: Resumption | None
    _keepers: tuple[Keeper, ...]
    _mirrored: dict[str, TaskState]

    # --- what it shows -----------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """A uuid, fixed at birth."""
        return self._view.id

    @property
    def name(self) -> str:
        """What it is called in its workflow."""
        return self._view.name

    @property
    def type(self) -> TaskType:
        """Which handler runs it."""
        return self._view.type

    @property
    def created_at(self) -> datetime:
        """When it was made: aware UTC."""
        return self._view.created_at

    @property
    def cwd(self) -> str | None:
        """The folder it runs in; None for that of whoever runs it."""
        return self._view.cwd

    @property
    def env(self) -> dict[str, str]:
        """Extra environment variables, read-only. A loaded handle has digests in place of secret values."""
        view = self._view
        shown = {**(view.env_digests or {}), **(view.env or {}), **(self._given.env or {})}
        return ReadOnlyDict(shown, _ENV_IS_FIXED)

    @property
    def on_interrupted(self) -> str:
        """What becomes of it when its runner dies: ``"rerun"``, ``"fail"`` or ``"ask"``."""
        return self._view.on_interrupted.value

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL when its processes are ended."""
        return self._view.grace

    @property
    def wait_for_output(self) -> bool:
        """True where a script that has exited lasts until its output is closed by all that it started."""
        return self._view.wait_for_output

    @property
    def derived_from(self) -> str | None:
        """The id of the task that this one repeats, in a graph that `TaskGraph.retry` made."""
        return self._view.derived_from

    @property
    def status(self) -> TaskStatus:
        """Where it stands."""
        return self._view.status

    @property
    def blocked_by(self) -> str | None:
        """The id of the direct dependency that blocked it."""
        return self._view.blocked_by

    @property
    def attempts(self) -> int:
        """How many attempts were started."""
        return self._view.attempts

    @property
    def result(self) -> TaskResult | None:
        """How its latest attempt ended; None before that, while it runs, and after a status set by hand."""
        with self._lock:
            ending = self._view.result
            if ending is None:
                return None
            if self._result is None:
                self._result = self._loaded_result()
            return self._result

    def _whole_error(self) -> str | None:
        history, version = self._history, self._recorded.version
        state = history.whole_task(self.id, version) if history is not None else None
        if state is None:
            return self._view.error
        if state.error_length is None or state.result is None or state.result.attempt is None or not self._history:
            return state.error
        return self._history.printed_to(self.id, state.result.attempt, "stderr")

    def _loaded_result(self) -> TaskResult:
        ending, history, version = self._view.result, self._history, self._recorded.version
        assert ending is not None
        attempt = ending.attempt
        readers: dict[str, Callable[[], str | None]] = {}
        fields: dict[str, Any] = {}
        if attempt is None or history is None:
            fields["output"] = ""
        else:
            printed_to = history.printed_to
            readers["output"] = lambda: history.returned(self.id, attempt) or printed_to(self.id, attempt, "stdout")
        if ending.error_length is None or history is None or attempt is None:
            fields["error"] = ending.error
        else:
            readers["error"] = lambda: self._whole_result_error(history, attempt, version)
        return loaded_result(
            readers,
            task_id=self.id,
            status=ending.status,
            started_at=ending.started_at,
            finished_at=ending.finished_at,
            duration=ending.duration,
            returncode=ending.returncode,
            termination_reason=ending.reason,
            error_code=ending.error_code,
            **fields,
        )

    def _whole_result_error(self, history: History, attempt: int, version: int) -> str | None:
        state = history.whole_task(self.id, version)
        if state is None or state.result is None or state.result.error_length is None:
            return state.result.error if state is not None and state.result is not None else None
        return history.printed_to(self.id, attempt, "stderr")

    # --- predicates --------------------------------------------------------------------------------------------------

    @property
    def is_pending(self) -> bool:
        """True while it was neither started nor blocked nor cancelled."""
        return self.status is TaskStatus.PENDING

    @property
    def is_running(self) -> bool:
        """True while an attempt runs."""
        return self.status is TaskStatus.RUNNING

    @property
    def is_succeeded(self) -> bool:
        """True once it succeeded."""
        return self.status is TaskStatus.SUCCEEDED

    @property
    def is_failed(self) -> bool:
        """True when its latest attempt failed."""
        return self.status is TaskStatus.FAILED

    @property
    def is_cancelled(self) -> bool:
        """True once it was cancelled."""
        return self.status is TaskStatus.CANCELLED

    @property
    def is_blocked(self) -> bool:
        """True when a dependency kept it from running."""
        return self.status is TaskStatus.BLOCKED

    @property
    def is_interrupted(self) -> bool:
        """True when its runner died: what became of the work is unknown."""
        return self.status is TaskStatus.INTERRUPTED

    @property
    def is_terminal(self) -> bool:
        """True unless it is PENDING or RUNNING."""
        return not self.status.is_active

    @property
    def is_done(self) -> bool:
        """True once it succeeded."""
        return self.is_succeeded


def is_same_ending(one: ResultState | TaskResult | None, other: ResultState | TaskResult | None) -> bool:
    if one is None or other is None:
        return one is other
    if isinstance(one, ResultState) and isinstance(other, ResultState) and one.attempt != other.attempt:
        return False
    return (one.status, one.finished_at) == (other.status, other.finished_at)
