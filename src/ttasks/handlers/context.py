"""`TaskContext`: what a handler is given, and how it reports back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Protocol

from ttasks.errors import TaskCancelled
from ttasks.events.agent_facts import AgentFact
from ttasks.events.status import TaskStatus, TaskType
from ttasks.handlers.kept import Kept, WholeText
from ttasks.model.callbacks import check_runs_when_called
from ttasks.model.task import Task
from ttasks.public import public

_FIXED: Final = frozenset({
    "title", "description", "payload", "timeout", "cwd", "grace", "wait_for_output", "env",
})  # fmt: skip
ProgressEmitter = Callable[[float | None, str | None], None]


class AttemptPort(Protocol):
    """What the runtime does for the handler of a running attempt."""

    @property
    def number(self) -> int:
        """Which attempt it is, from 1."""

    @property
    def is_cancelled(self) -> bool:
        """True once somebody asked for its cancel."""

    @property
    def is_stopped(self) -> bool:
        """True once its runner was told to stop at once; what becomes of the work is then unknown."""

    @property
    def is_hurried(self) -> bool:
        """True once what it runs has to end without a grace."""

    def on_cancel(self, end: Callable[[], None]) -> None:
        """Call `end`, once, from the thread that cancels or stops; at once where that was before."""

    def environment(self) -> dict[str, str]:
        """Return the variables that mark its child processes; none where nobody records."""

    def withhold(self, env: Mapping[str, str]) -> None:
        """Keep the secret ones of these variables out of all that is recorded and shown, as those of the task's own."""

    def spawned(self, pid: int) -> None:
        """Take note of a child process that leads a group of its own."""

    def reaped(self, pids: Sequence[int], signal: str) -> None:
        """Take note that processes were ended, by this signal, that had left the group of the child."""

    def printed(self, stream: str, text: str) -> None:
        """Take what it printed, as it was read."""

    def stop_printing(self) -> None:
        """Take no more of what it prints; all that was taken is in `kept` then."""

    @property
    def kept(self) -> Mapping[str, Kept]:
        """What is kept of what it printed, by stream."""

    def finished_printing(self) -> None:
        """Take note that nothing more will be printed."""

    def report(self, fact: AgentFact, *, at_once: bool = False) -> None:
        """Take a fact about what an agent does; it is recorded soon, or `at_once`, before this returns.

        Raises:
            LedgerUnwritableError: this one, or one that was reported before, could not be recorded.
            StreamConflictError: somebody else has recorded the end of this attempt.
            RuntimeError: the attempt has ended.
        """

    def check(self) -> None:
        """Raise what `report` would raise, though there is nothing to report."""

    def tell(self, message: str) -> None:
        """Tell subscribers how far it is, without recording it: what is told of is a fact already."""

    def interrupted_session(self) -> str | None:
        """Return the conversation of the latest attempt that had one, where all since then were interrupted."""


class TaskContext:
    """What one attempt runs, and how its handler reports back.

    Args:
        task: the task.
        upstream: its direct dependencies by id.
        progress_emitter: where `emit_progress` goes; an executor gives its own.

    Raises:
        TypeError: `task must be a Task`, `upstream must be a mapping …`, `progress_emitter must be callable`.

    It holds what *this* attempt runs, read-only: editing the task meanwhile changes nothing here.
    """

    title: str
    description: str
    payload: str
    timeout: float | None
    cwd: str | None
    grace: float
    wait_for_output: bool
    env: Mapping[str, str]

    def __init__(
        self,
        task: Task,
        upstream: Mapping[str, Task] | None = None,
        *,
        progress_emitter: ProgressEmitter | None = None,
    ) -> None:
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if progress_emitter is not None:
            check_runs_when_called(progress_emitter, "progress_emitter")
        self._task = task
        self._upstream: Mapping[str, Task] = MappingProxyType(check_upstream(upstream))
        self._progress_emitter = progress_emitter
        self._port: AttemptPort | None = None
        vars(self).update(
            title=task.title,
            description=task.description,
            payload=task.payload,
            timeout=task.timeout,
            cwd=task.cwd,
            grace=task.grace,
            wait_for_output=task.wait_for_output,
            env=MappingProxyType(task.env),
        )

    def __setattr__(self, name: str, value: object) -> None:
        if name in _FIXED:
            raise AttributeError(f"context.{name} can't be set: it is what this attempt runs, as its start recorded it")
        object.__setattr__(self, name, value)

    def _run_in(self, cwd: str | None) -> None:
        """Run in `cwd` where the task has no folder of its own. Only before the start is recorded."""
        if self.cwd is None:
            vars(self)["cwd"] = cwd

    @property
    def id(self) -> str:
        """The task's id."""
        return self._task.id

    @property
    def type(self) -> TaskType:
        """The task's type."""
        return self._task.type

    @property
    def status(self) -> TaskStatus:
        """Where the task stands now."""
        return self._task.status

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1; for a context made by hand the number of those started."""
        return self._port.number if self._port is not None else self._task.attempts

    @property
    def cancelled(self) -> bool:
        """True once the task was cancelled, or asked to: a handler that sees it should end."""
        return self._task.is_cancelled or (self._port is not None and self._port.is_cancelled)

    @property
    def upstream(self) -> Mapping[str, Task]:
        """The direct dependencies by id, read-only."""
        return self._upstream

    def raise_if_cancelled(self) -> None:
        """Raise TaskCancelled once the task was cancelled."""
        if self.cancelled:
            raise TaskCancelled(f"Task '{self.id}' was cancelled")

    def emit_progress(self, percent: float | None = None, message: str | None = None) -> None:
        """Say how far the work is.

        Args:
            percent: from 0 to 100; it need not rise.
            message: in words. One of both is needed.

        Raises:
            TypeError, ValueError: a wrong argument.
            RuntimeError: the context was made by hand, without an executor.
            TaskCancelled: the task was cancelled.
        """
        if percent is None and message is None:
            raise ValueError("percent or message is required")
        if percent is not None and (isinstance(percent, bool) or not isinstance(percent, int | float)):
            raise TypeError(f"percent must be a number, got {type(percent).__name__}")
        if message is not None and not isinstance(message, str):
            raise TypeError(f"message must be a str, got {type(message).__name__}")
        if percent is not None and not 0 <= percent <= 100:
            raise ValueError(f"percent must be between 0 and 100, got {percent!r}")
        if self._progress_emitter is None:
            raise RuntimeError("progress can't be emitted without an executor")
        self.raise_if_cancelled()
        self._progress_emitter(percent, message)


def check_upstream(upstream: object) -> dict[str, Task]:
    """Return a copy of what a handler is given as the direct dependencies of its task; None: there are none.

    Raises:
        TypeError: it is no mapping of ids to tasks.
    """
    if upstream is None:
        return {}
    if not isinstance(upstream, Mapping):
        raise TypeError(f"upstream must be a mapping of task ids to Tasks, got {type(upstream).__name__}")
    for key, task in upstream.items():
        if not isinstance(key, str):
            raise TypeError(f"upstream must have task ids (str) as its keys, got {type(key).__name__}")
        if not isinstance(task, Task):
            raise TypeError(f"upstream must hold Tasks, got {type(task).__name__} for {key!r}")
    return dict(upstream)


class DetachedPort:
    """The port of a context that was made by hand: nobody records, and only its own flag cancels."""

    number = 1
    is_cancelled = False
    is_stopped = False
    is_hurried = False

    def __init__(self) -> None:
        self.kept: dict[str, Kept] = {"stdout": WholeText(), "stderr": WholeText()}

    def on_cancel(self, end: Callable[[], None]) -> None:
        """Nothing: nobody can cancel."""

    def environment(self) -> dict[str, str]:
        """Return nothing."""
        return {}

    def withhold(self, env: Mapping[str, str]) -> None:
        """Nothing: nobody records."""

    def spawned(self, pid: int) -> None:
        """Nothing: nobody records."""

    def reaped(self, pids: Sequence[int], signal: str) -> None:
        """Nothing: nobody records."""

    def printed(self, stream: str, text: str) -> None:
        """Keep it: nobody records."""
        self.kept[stream].add(text)

    def stop_printing(self) -> None:
        """Nothing: nothing is held back."""

    def finished_printing(self) -> None:
        """Nothing: nobody records."""

    def report(self, fact: AgentFact, *, at_once: bool = False) -> None:
        """Nothing: nobody records."""

    def check(self) -> None:
        """Nothing: nobody records."""

    def tell(self, message: str) -> None:
        """Nothing: nobody listens."""

    def interrupted_session(self) -> str | None:
        """Return None: nobody has recorded any."""
        return None


public(TaskContext)
