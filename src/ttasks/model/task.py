"""`Task`: a handle over what is recorded of a task, plus what is pending."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from subprocess import CompletedProcess
from typing import Any, Literal, NoReturn, Self, TypedDict, Unpack

from ttasks import clock
from ttasks.errors import ReentranceError, TransitionError, WithheldError
from ttasks.events.codec import iso
from ttasks.events.facts import Chunk, TaskCreated, TaskFact, TaskImported, TaskOutput
from ttasks.events.status import TaskStatus, TaskType
from ttasks.model.checks import (
    check_bool,
    check_env,
    check_error,
    check_number,
    check_on_interrupted,
    check_path,
    check_str,
    check_timeout,
)
from ttasks.model.given import Given
from ttasks.model.result import TaskResult, is_loaded, is_long, is_read_when_asked
from ttasks.model.task_view import History, Keeper, TaskView, is_same_ending
from ttasks.public import public
from ttasks.reentrance import hand_over, is_mine
from ttasks.state import decide
from ttasks.state.naming import named
from ttasks.state.record import evolve, made
from ttasks.state.task import GRACE_S, TaskState, apply, snapshot
from ttasks.state.transitions import TRANSITIONS

PathText = str | os.PathLike[str]
OnInterruptedName = Literal["rerun", "fail", "ask"]


@dataclass(slots=True)
class Proposal:
    """What a handle wants recorded: facts for its stream, of which it has seen `expected` events.

    Where the handle belongs to another ledger, `view` is what the facts are a snapshot of, and `mirrored_attempt` is
    the attempt that this ledger holds as running by the snapshot before.
    """

    facts: tuple[TaskFact, ...]
    expected: int
    pending: tuple[TaskFact, ...] = ()
    view: TaskState | None = None
    mirrored_attempt: int | None = None


class TaskFields(TypedDict, total=False):
    """The fields of a `Task` that its factories take too."""

    description: str
    timeout: float | None
    cwd: PathText | None
    env: Mapping[str, str] | None
    on_interrupted: OnInterruptedName
    name: str | None
    grace: float
    wait_for_output: bool


class Task(TaskView):
    """A unit of work.

    Args:
        title: what people call it.
        payload: what to do: a script, a prompt, or what your handler makes of it.
        type: which handler runs it.
        description: more about it.
        error: what went wrong with it so far.
        timeout: seconds, greater than 0; None for no limit.
        created_at: default: now. A naive datetime is local time.
        cwd: the folder it runs in, as text or as a path, and recorded as text; None for that of whoever runs it.
        env: extra environment variables. Values of names that look secret are never recorded, nor what is
            printed of them (SPEC §8).
        on_interrupted: ``"rerun"``, ``"fail"`` or ``"ask"``: what becomes of it when its runner dies.
        name: what it is called in its workflow; default: the title.
        grace: seconds between SIGTERM and SIGKILL when its processes are ended, 0 or more.
        wait_for_output: False lets a script succeed as soon as it has exited with 0, though processes that it started
            hold its output open: they live on, and what they print after that is dropped.

    Raises:
        TypeError: a value of the wrong type.
        ValueError: a value out of range.

    It is safe to use from several threads. Once SUCCEEDED it is immutable: writing raises AttributeError.
    """

    __slots__ = ()

    def __init__(
        self,
        title: str,
        payload: str,
        type: TaskType,
        description: str = "",
        error: str | None = None,
        timeout: float | None = None,
        created_at: datetime | None = None,
        *,
        cwd: PathText | None = None,
        env: Mapping[str, str] | None = None,
        on_interrupted: OnInterruptedName = "rerun",
        name: str | None = None,
        grace: float = GRACE_S,
        wait_for_output: bool = True,
    ) -> None:
        check_str(title, "title")
        check_str(payload, "payload")
        if not isinstance(type, TaskType):
            raise TypeError(f"type must be a TaskType, got {type!r}")
        check_str(description, "description")
        check_error(error)
        check_timeout(timeout)
        if created_at is not None and not isinstance(created_at, datetime):
            raise TypeError(f"created_at must be a datetime, got {created_at!r}")
        folder = check_path(cwd, "cwd")
        if name is not None:
            check_str(name, "name")
        answer = check_on_interrupted(on_interrupted)
        check_number(grace, "grace")
        check_bool(wait_for_output, "wait_for_output")
        extra = check_env(env)
        self._begin(
            TaskState(
                id=clock.new_id(),
                name=name if name is not None else title,
                title=title,
                type=type,
                status=TaskStatus.PENDING,
                payload=payload,
                description=description,
                created_at=clock.now() if created_at is None else clock.aware(created_at),
                timeout=timeout,
                cwd=folder,
                env=extra,
                env_digests=None,
                on_interrupted=answer,
                derived_from=None,
                version=0,
                error=error,
                grace=float(grace),
                wait_for_output=wait_for_output,
            ),
            extra,
        )

    def _again(self) -> Task:
        """Return a fresh task that does the same, and is derived from this one."""
        with self._lock:
            view = self._view
            fresh: Task = object.__new__(type(self))
            fresh._begin(
                TaskState(
                    id=clock.new_id(),
                    name=view.name,
                    title=view.title,
                    type=view.type,
                    status=TaskStatus.PENDING,
                    payload=view.payload,
                    description=view.description,
                    created_at=clock.now(),
                    timeout=view.timeout,
                    cwd=view.cwd,
                    env=view.env,
                    env_digests=view.env_digests,
                    on_interrupted=view.on_interrupted,
                    derived_from=view.id,
                    version=0,
                    redacted=view.redacted,
                    grace=view.grace,
                    wait_for_output=view.wait_for_output,
                )
            )
            fresh._given = self._given.copy()
            return fresh

    def _begin(self, state: TaskState, env: Mapping[str, str] | None = None, missing_env: tuple[str, ...] = ()) -> None:
        self._lock = threading.RLock()
        # Held while something of it is recorded: who waits here decides by what the handle then shows.
        self._recording = threading.RLock()
        self._recorded = self._view = state
        self._pending: list[TaskFact] = []
        self._ledger: str | None = None
        self._seen: dict[str, int] = {}
        self._is_as_made = True
        self._given = Given(env, missing_env)
        self._result: TaskResult | None = None
        self._history: History | None = None
        self._on_cancel: Callable[[], None] | None = None
        self._resumption = None
        self._keepers = ()
        self._mirrored = {}  # by ledger: what its latest snapshot showed, where the handle belongs to another

    @classmethod
    def bash(cls, payload: str, *, title: str = "", **fields: Unpack[TaskFields]) -> Self:
        """Return a task that runs a Bash script; the fields are as in `Task`."""
        return cls._of(TaskType.BASH, payload, title, fields)

    @classmethod
    def powershell(cls, payload: str, *, title: str = "", **fields: Unpack[TaskFields]) -> Self:
        """Return a task that runs a PowerShell script; the fields are as in `Task`."""
        return cls._of(TaskType.POWERSHELL, payload, title, fields)

    @classmethod
    def prompt(cls, payload: str, *, title: str = "", **fields: Unpack[TaskFields]) -> Self:
        """Return a task that asks GitHub Copilot, in one turn without tools; the fields are as in `Task`."""
        return cls._of(TaskType.PROMPT, payload, title, fields)

    @classmethod
    def agent(cls, payload: str, *, title: str = "", **fields: Unpack[TaskFields]) -> Self:
        """Return a task that instructs a GitHub Copilot agent; the fields are as in `Task`."""
        return cls._of(TaskType.AGENT, payload, title, fields)

    @classmethod
    def _of(cls, type: TaskType, payload: str, title: str, fields: TaskFields) -> Self:
        if unknown := fields.keys() - TaskFields.__annotations__:
            raise TypeError(f"a {type} task is made without {', '.join(sorted(unknown))}: see Task for its fields")
        return cls(title, payload, type, **fields)

    @classmethod
    def _load(cls, state: TaskState, ledger: str, history: History) -> Task:
        """Return a handle over what a ledger holds of a task."""
        task = object.__new__(cls)
        task._begin(state, missing_env=tuple(state.env_digests or ()))
        task._ledger = ledger
        task._seen[ledger] = state.version
        task._is_as_made = False
        task._history = history
        return task

    @property
    def title(self) -> str:
        """What people call it."""
        return self._view.title

    @title.setter
    def title(self, value: str) -> None:
        check_str(value, "title")
        self._revise("title", value)

    @property
    def payload(self) -> str:
        """What to do. A loaded handle has ``***`` in place of secrets in it: see `give_again`."""
        return self._view.payload

    @payload.setter
    def payload(self, value: str) -> None:
        check_str(value, "payload")
        self._revise("payload", value)

    @property
    def description(self) -> str:
        """More about it."""
        return self._view.description

    @description.setter
    def description(self, value: str) -> None:
        check_str(value, "description")
        self._revise("description", value)

    @property
    def timeout(self) -> float | None:
        """Seconds that an attempt may take; None for no limit."""
        return self._view.timeout

    @timeout.setter
    def timeout(self, value: float | None) -> None:
        check_timeout(value)
        self._revise("timeout", value)

    @property
    def error(self) -> str | None:
        """What went wrong; None after success."""
        with self._lock:
            if self._view.error_length is None:
                return self._view.error
            ending, result = self._view.result, self._result
            if result is not None and ending is not None and ending.error == self._view.error:
                return result.error
            whole = self._whole_error()
            if whole is None or not is_long(whole):
                self._view = evolve(self._view, error=whole, error_length=None)
            return whole

    @error.setter
    def error(self, value: str | None) -> None:
        check_error(value)
        self._revise("error", value)

    # --- what changes it ---------------------------------------------------------------------------------------------

    def can_transition_to(self, status: TaskStatus) -> bool:
        """True when the table of transitions has a way from here to `status`.

        Raises:
            TypeError: `status must be a TaskStatus`.
        """
        if not isinstance(status, TaskStatus):
            raise TypeError(f"status must be a TaskStatus, got {status!r}")
        return any(before is self.status and after is status for (before, _), after in TRANSITIONS.items())

    def transition_to(self, status: TaskStatus, error: str | None = None) -> None:
        """Set the status by hand, and `error` where one is given; RUNNING and SUCCEEDED clear it.

        Raises:
            TypeError: `status` is no TaskStatus.
            AlreadyRunningError: an attempt runs. Cancelling that is a request to its runner.
            TransitionError: the table has no such move. Nothing was changed.
        """
        if not isinstance(status, TaskStatus):
            raise TypeError(f"status must be a TaskStatus, got {status!r}")
        check_error(error)
        self._refuse_reentrance()
        with self._lock:
            self._propose(decide.transition(self._view, status, error, clock.whoami()))
        self._tell_owner()

    def cancel(self) -> None:
        """Cancel it, or ask whoever runs it to; nothing after SUCCEEDED. Repeating it is harmless."""
        if is_mine(self._lock):
            hand_over(self.cancel)
            return
        with self._lock:
            self._propose(decide.cancel(self._view, clock.whoami()))
        self._tell_owner()

    def _request_cancel(self) -> bool:
        """Ask whoever runs it to cancel it; return False, and do nothing, where nobody runs it."""
        with self._lock:
            if not self._view.is_owned:
                return False
            self._propose(decide.cancel(self._view, clock.whoami()))
            return True

    def _tell_owner(self) -> None:
        on_cancel = self._on_cancel
        if on_cancel is not None and self._view.cancel_requested_by is not None:
            on_cancel()

    def give_again(
        self, *, payload: str | None = None, cwd: PathText | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        """Give a loaded task what the ledger withholds of it, so that it can run; nothing is recorded of that.

        Args:
            payload: what stood there before secrets in it were replaced by ``***``. To run something else, set it.
            cwd: the same of the folder.
            env: values of variables of which the ledger has a digest. An attempt's start records the digest of what
                it was given, so whether it is the same value as before can be seen.

        Raises:
            TypeError: a value of the wrong type. Nothing was changed.
            ValueError: something that is not withheld from this handle. Nothing was changed.
            SealedTaskError: the task has SUCCEEDED.
        """
        if payload is not None:
            check_str(payload, "payload")
        folder = check_path(cwd, "cwd")
        texts = {field: value for field, value in (("payload", payload), ("cwd", folder)) if value is not None}
        given = check_env(env) or {}
        self._refuse_reentrance()
        with self._lock:
            decide.check_may_change(self._view, "what is withheld")
            missing = self._given.missing(self._view)
            for name in (*texts, *(f"env[{name!r}]" for name in given)):
                if name not in missing:
                    raise ValueError(f"{name} of task '{self.title or self.id}' is not withheld from this handle")
            self._view = self._given.take(self._view, texts, given)

    def _check_whole(self) -> None:
        """Refuse to run without what the ledger withholds.

        Raises:
            WithheldError: something of it has to be given again.
        """
        if self._view.redacted is None and not self._given.missing_env:
            return
        missing = self._given.missing(self._view)
        if missing:
            raise WithheldError(
                f"{named('task', self.title, self.id)} can't run as it was loaded: the ledger withholds its "
                f"{' and '.join(missing)}. Give that again: task.give_again(…). Nothing was run or written",
                missing,
            )

    def _refuse_reentrance(self) -> None:
        """Refuse to change what this very thread is just changing: a signal handler came in between."""
        if is_mine(self._lock):
            raise ReentranceError(f"a change of task '{self._view.title}'")

    def _revise(self, field: str, value: Any) -> None:
        self._refuse_reentrance()
        with self._lock:
            self._propose(decide.revise(self._view, field, value))

    def _with(self, facts: Sequence[TaskFact]) -> TaskState:
        """Return what it would show after these facts. TransitionError: they can't follow."""
        view = self._view
        for fact in facts:
            view = apply(view, fact, task_id=view.id, version=view.version)
        return view

    def _propose(self, facts: Sequence[TaskFact]) -> None:
        """Take facts that nobody has recorded yet. The lock is held."""
        if not facts:
            return
        before, self._view = self._view.result, self._with(facts)
        if self._view.result is not before:
            self._result = None
        self._is_as_made = False
        if self._ledger is None:
            self._recorded = self._view
        else:
            self._pending.extend(facts)

    # --- for whoever records it --------------------------------------------------------------------------------------

    def _has_news(self, ledger: str) -> bool:
        """True when there is something of this handle that a ledger does not have."""
        return self._ledger != ledger or bool(self._pending)

    def _proposal(self, ledger: str) -> Proposal:
        """Return what is to be recorded of this handle in a ledger; no facts: nothing."""
        with self._lock:
            if self._ledger == ledger:
                pending = tuple(self._pending)
                return Proposal(pending, self._recorded.version, pending)
            seen = self._seen.get(ledger, 0)
            mirrored = self._mirrored.get(ledger)
            if mirrored is self._view:
                return Proposal((), seen)
            state = self._given.with_env(self._view)
            if self._is_as_made and not seen:
                return Proposal((_created(state),), 0, view=self._view)
            attempt = mirrored.running_attempt if mirrored is not None else None
            return Proposal(self._import(state), seen, tuple(self._pending), self._view, attempt)

    def _reimport(self, expected: int) -> Proposal:
        """Return what brings back a task that was deleted, whatever this handle has seen."""
        with self._lock:
            facts = self._import(self._given.with_env(self._view))
            return Proposal(facts, expected, tuple(self._pending), self._view)

    def _revive(self, ledger: str, deleted: TaskState, history: History) -> Proposal:
        """Return what brings back a task that was deleted while it ran: as its runner knows it, whatever this shows."""
        with self._lock:
            facts: list[TaskFact] = [TaskImported(snapshot(deleted, is_at_home=True), ledger=ledger)]
            if deleted.result is not None and deleted.result.attempt is not None:
                attempt = deleted.result.attempt
                printed = (history.printed_to(self.id, attempt, stream) for stream in ("stdout", "stderr"))
                facts += _as_output(attempt, *printed)
            pending = tuple(self._pending)
            return Proposal((*facts, *pending), deleted.version, pending)

    def _is_kept_from(self, ledger: str) -> bool:
        """True while what runs it belongs to another ledger than this one, or to none."""
        return bool(self._keepers) and self._keepers[-1].ledger != ledger

    def _keep_for(self, keeper: Keeper) -> None:
        """Belong to the ledger of `keeper`, an execution, until it lets go."""
        with self._lock:
            self._keepers = (*self._keepers, keeper)

    def _keep_for_run(self, keeper: Keeper) -> None:
        """Belong to the ledger of `keeper`, a run, until it lets go, but for what an execution keeps meanwhile."""
        with self._lock:
            self._keepers = (keeper, *self._keepers)

    def _let_go(self, keeper: Keeper) -> None:
        """Take note that `keeper` is done with it; nothing where it was not its keeper."""
        with self._lock:
            self._keepers = tuple(other for other in self._keepers if other is not keeper)
        for unwatch in keeper.mirrors.values():
            unwatch()

    def _import(self, state: TaskState) -> tuple[TaskFact, ...]:
        imported = TaskImported(snapshot(state), ledger=self._ledger)
        result = self.result
        if result is None or state.result is None or state.result.attempt is None:
            return (imported,)
        attempt = state.result.attempt
        return (imported, *_as_output(attempt, result.output, self._printed_errors(result, attempt)))

    def _printed_errors(self, result: TaskResult, attempt: int) -> str:
        if isinstance(result.raw, CompletedProcess) and isinstance(result.raw.stderr, str):
            return result.raw.stderr
        if self._history is None or not is_loaded(result):  # what ran here printed nothing that it does not hold
            return ""
        return self._history.printed_to(self.id, attempt, "stderr")

    def _committed(
        self,
        ledger: str,
        state: TaskState,
        pending: Collection[TaskFact],
        history: History | None,
        redact: Callable[[str], str] | None = None,
        mirrored: TaskState | None = None,
    ) -> None:
        """Take note that a ledger now has the task at `state`, these of the handle's facts included, as redacted.

        While the task belongs to an execution that records elsewhere, the ledger has a snapshot of `mirrored`, and
        nothing more.
        """
        with self._lock:
            if self._is_kept_from(ledger):
                self._seen[ledger] = state.version
                if mirrored is not None:
                    self._mirrored[ledger] = mirrored
                return
            self._mirrored.pop(ledger, None)
            before = self._view.result
            self._recorded = state
            self._ledger = ledger
            self._seen[ledger] = state.version
            self._history = history if history is not None else self._history
            self._is_as_made = False
            if self._pending:
                taken = set(map(id, pending))
                self._pending = [fact for fact in self._pending if id(fact) not in taken]
            self._view = state if state.redacted is None else self._given.with_texts(state, self._view, redact)
            for fact in list(self._pending):
                try:
                    self._view = apply(self._view, fact, task_id=state.id, version=state.version)
                except TransitionError:  # it came while the end was being recorded, and can't follow that any more
                    self._pending.remove(fact)
            if not is_same_ending(before, self._view.result):
                self._result = None

    def _ended(self, result: TaskResult) -> None:
        """Take the very result that `execute` returns: unlike what is recorded, it has just what was raised."""
        with self._lock:
            ending = self._view.result
            if not is_same_ending(ending, result):
                return  # somebody cancelled it meanwhile
            self._result = result
            if is_read_when_asked(result, "error"):
                return  # it is long: the handle has its end, and asks the result for all of it
            if ending is not None and self._view.error is not None and self._view.error == ending.error:
                self._view = evolve(self._view, error=result.error, error_length=None)

    def _leave_ledger(self) -> None:
        """Belong to no ledger: what follows is recorded in none. The lock is held."""
        if self._ledger is not None:
            self._ledger = None
            self._pending = []
            self._recorded = self._view
            self._is_as_made = False

    def _advance(self, facts: Sequence[TaskFact]) -> None:
        """Take facts of an attempt that no ledger has: there is none, or it can't be written (they stay pending)."""
        with self._lock:
            self._propose(facts)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Task can't be copied or pickled: save it, and load it where it is needed by its id")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Task) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"Task(id={self.id!r}, title={self.title!r}, status={self.status})"


def _as_output(attempt: int, stdout: str, stderr: str) -> list[TaskFact]:
    at = iso(clock.now())
    printed: tuple[Chunk, ...] = (("stdout", at, stdout), ("stderr", at, stderr))
    chunks = tuple(chunk for chunk in printed if chunk[2])
    return [TaskOutput(attempt, chunks)] if chunks else []


def _created(state: TaskState) -> TaskCreated:
    return made(
        TaskCreated,
        name=state.name,
        title=state.title,
        type=state.type,
        payload=state.payload,
        description=state.description,
        created_at=state.created_at,
        on_interrupted=state.on_interrupted,
        timeout=state.timeout,
        cwd=state.cwd,
        env=state.env,
        env_digests=state.env_digests,
        error=state.error,
        derived_from=state.derived_from,
        redacted=state.redacted,
        grace=None if state.grace == GRACE_S else state.grace,
        wait_for_output=None if state.wait_for_output else False,
    )


public(Task)
