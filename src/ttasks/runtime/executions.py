"""Carrying out attempts: starting, retrying, settling and ending them, and telling who listens."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from ttasks import clock
from ttasks.errors import (
    AlreadyRunningError,
    LedgerUnwritableError,
    NoThreadError,
    StreamConflictError,
    TransitionError,
    TtasksError,
    words,
)
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import (
    AttemptEnd,
    TaskCancelled,
    TaskFact,
    TaskFailed,
    TaskRetryScheduled,
)
from ttasks.events.status import TaskStatus, TaskType, TerminationReason
from ttasks.log.liveness import let_go, take_in_hand
from ttasks.log.redaction import redacted
from ttasks.log.transaction import CancelUnheardError, Owned, StartRefusedError
from ttasks.model.callbacks import is_signal
from ttasks.model.event import TaskEvent, TaskEventType
from ttasks.model.graph import TaskGraph
from ttasks.model.result import is_read_when_asked, reading
from ttasks.model.retry import RetryPolicy
from ttasks.model.task import Task
from ttasks.model.task_view import Keeper, Resumption
from ttasks.reentrance import hand_over, is_inside, refuse
from ttasks.runtime.attempt import ONCE, Attempt, Handler, RunRef
from ttasks.runtime.bus import EventBus
from ttasks.runtime.journal import journal_of
from ttasks.state import decide
from ttasks.state.reconcile import Then
from ttasks.state.transitions import next_status
from ttasks.stores.recording import Entry
from ttasks.stores.recovery import Found, Recovery

_ENDED: Final = {
    TaskStatus.SUCCEEDED: TaskEventType.SUCCEEDED,
    TaskStatus.FAILED: TaskEventType.FAILED,
    TaskStatus.CANCELLED: TaskEventType.CANCELLED,
    TaskStatus.INTERRUPTED: TaskEventType.INTERRUPTED,
}
_End = tuple[Task, TaskStatus, AttemptEnd, RecordedEvent | None]
"""The end of an attempt, to be published: the task, its status before, the end and its event."""

REQUEST_WAIT_S: Final = 1.0
"""How long a cancel waits for its request to be recorded, before it ends what runs."""
_AFRESH: Final = Resumption()


class Executions:
    """What `TaskExecutor` does of a task once it is to run: each step is recorded first, and then told."""

    def __init__(self, store: Any, output_bytes_max: int | None) -> None:
        self._output_bytes_max = output_bytes_max
        self._journal = journal_of(store)
        self._handlers: dict[TaskType, Handler] = {}
        self._events = EventBus()
        self._lock = threading.RLock()
        self._live: dict[str, Attempt] = {}
        self._persistence_errors: list[tuple[str, BaseException]] = []
        self._graph_persistence_errors: list[tuple[str, BaseException]] = []

    def _attempt(
        self,
        task: Task,
        upstream: Mapping[str, Task],
        policy: RetryPolicy | None,
        run: RunRef | None = None,
    ) -> Attempt:
        """Return an attempt at `task` that has not started.

        A task without a handler becomes FAILED instead, and the ValueError for that is raised.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if policy is not None and not isinstance(policy, RetryPolicy):
            raise TypeError(f"retry_policy must be a RetryPolicy, got {policy!r}")
        refuse("running a task")
        self._check_may_start(task)
        handler = self._handlers.get(task.type, _no_handler)
        resumption = task._resumption or _AFRESH
        attempt = Attempt(
            task,
            upstream,
            handler,
            journal=self._journal,
            bus=self._events,
            policy=policy or ONCE,
            output_bytes_max=self._output_bytes_max,
            retry=resumption.retry,
            run=run,
            cwd=resumption.cwd,
        )
        if handler is _no_handler:
            self._fail_unhandled(attempt)
        if resumption.waits_s is not None:
            attempt.has_failed(resumption.waits_s)
        return attempt

    def _check_may_start(self, task: Task) -> None:
        """Refuse a task that may not start; what a runner that is gone left of it is ended and recorded first."""
        log = self._journal.log
        if (task._view.is_owned or task.is_running) and log is not None:
            task._check_whole()
            try:
                found = Recovery(log.readers).find(task)
            except AlreadyRunningError:
                decide.check_may_start(task._view)
                raise
            self._recover([found])
            if found.verdict.then is Then.WAIT:
                return
        decide.check_may_start(task._view)
        task._check_whole()

    def _recover(self, found: Sequence[Found], *more: Entry) -> list[list[RecordedEvent]]:
        """End and record what runners that are gone left of tasks, with `more`; return the events of `more`.

        Raises:
            SurvivorError: something of an attempt can't be ended. Nothing was recorded.
            StreamConflictError, TransitionError, LedgerUnwritableError: as `record`. Nothing was recorded.
        """
        ends, recorded = self._end_left(found, *more)
        self._publish_ends(ends)
        return recorded

    def _end_left(self, found: Sequence[Found], *more: Entry) -> tuple[list[_End], list[list[RecordedEvent]]]:
        """Do what `_recover` does, but return what is to be published instead of doing it, and the events of `more`."""
        log = self._journal.log
        facts = Recovery(log.readers).end(found) if log is not None and found else {}
        before = {one.task.id: one.task.status for one in found}
        recorded = self._journal.record([*(Entry(one.task, facts[one.task.id]) for one in found), *more])
        ends: list[_End] = []
        for one, events in zip(found, recorded, strict=False):
            status = before[one.task.id]
            for event in events:
                if isinstance(event.fact, AttemptEnd):
                    ends.append((one.task, status, event.fact, event))
                    status = next_status(status, type(event.fact))
        return ends, recorded[len(found) :]

    def _publish_ends(self, ends: Sequence[_End]) -> None:
        for task, before, fact, event in ends:
            self._publish(task, _ENDED[next_status(before, type(fact))], before, fact, event)

    def _fail_unhandled(self, attempt: Attempt) -> None:
        task, before = attempt.task, attempt.task.status
        error = ValueError(f"No handler registered for task type '{task.type}'")
        now = clock.now()
        failed = TaskFailed(
            attempt=attempt.number,
            started_at=attempt.started_at,
            finished_at=now,
            duration=0.0,
            error=str(error),
            exception="builtins.ValueError",
            reason=TerminationReason.HANDLER.value,
        )
        (events,) = self._journal.record([Entry(task, [attempt.start_fact(), failed])])
        self._publish(task, TaskEventType.FAILED, before, failed, last(events))
        raise error

    def _start(self, attempt: Attempt, cause: int | None = None) -> None:
        """Record that the attempt starts, and tell subscribers; only after that may its handler be entered."""
        owned = Owned(attempt.number - 1) if attempt.is_retry else None
        waits_s = attempt.waits_s
        fact: TaskFact = attempt.start_fact() if waits_s is None else _scheduled(attempt, waits_s)
        attempt.execution.latest = attempt
        keeper = self._take_in_hand(attempt)
        try:
            (events,) = self._journal.record([Entry(attempt.task, [fact], owned, cause, keeper=keeper)])
        except Exception as refusal:
            if not attempt.is_retry:
                self._out_of_hand(attempt)
            if isinstance(refusal, TransitionError):
                decide.check_may_start(attempt.task._view)  # another thread may have started this very handle just now
            raise
        self._started(attempt, last(events))

    def _take_in_hand(self, attempt: Attempt) -> Keeper | None:
        """Say that this process runs the task, from before its start is recorded.

        Return what keeps the handle from then on, where this is the execution's first start; else None.
        """
        execution = attempt.execution
        if execution.keeper is not None:
            return None
        log = self._journal.log
        execution.keeper = Keeper(log.ledger if log is not None else None)
        take_in_hand(execution.keeper.ledger, f"task-{attempt.task.id}")
        return execution.keeper

    def _out_of_hand(self, attempt: Attempt) -> None:
        keeper, attempt.execution.keeper = attempt.execution.keeper, None
        if keeper is not None:
            attempt.task._let_go(keeper)
            let_go(keeper.ledger, f"task-{attempt.task.id}")

    def _started(self, attempt: Attempt, event: RecordedEvent | None) -> None:
        task = attempt.task
        task._resumption = None
        self._live[task.id] = attempt
        if attempt.waits_s is None:
            attempt.started(event.position if event is not None else None)
        task._on_cancel = partial(self._ask_cancel, attempt)
        log = self._journal.log
        if log is not None:
            log.watch(f"task-{task.id}", attempt.ask_cancel)
        if task._view.cancel_requested_by is not None:
            attempt.ask_cancel()
        if attempt.waits_s is None:
            self._publish(task, TaskEventType.STARTED, attempt.status_before, None, event)

    def _finish(self, attempt: Attempt) -> Attempt:
        """Run the attempt and those that retry it; return the last one, whose end is not recorded yet."""
        if attempt.waits_s is None:
            attempt.perform()
        while (delay_s := self._retry_delay_s(attempt)) is not None:
            if not attempt.is_settled:
                self._settle(attempt, _scheduled(attempt, delay_s))
            if not isinstance(attempt.fact, TaskFailed):
                break
            if not attempt.wait_for_retry(delay_s):
                if attempt.is_cancelled:
                    attempt.end_waiting()
                else:  # stopped: a retry that nobody waits for any more stays FAILED
                    self._let_go(attempt)
                break
            following = attempt.next()
            try:
                self._start(following)
            except CancelUnheardError:
                attempt.end_waiting()
                break
            except BaseException as error:
                self._let_go(attempt)
                if isinstance(error, LedgerUnwritableError):
                    error.result = attempt.result
                raise
            attempt = following
            attempt.perform()
        return attempt

    def _retry_delay_s(self, attempt: Attempt) -> float | None:
        """Return how long to wait before the attempt is tried again; None: it isn't."""
        if attempt.waits_s is not None:
            return attempt.waits_s
        policy, error = attempt.policy, attempt.error
        if not isinstance(attempt.fact, TaskFailed) or attempt.retry + 1 >= policy.max_attempts:
            return None
        if not isinstance(error, Exception):
            return None
        try:
            if not policy.allows(error):
                return None
        except BaseException as broken:  # the attempt failed all the same; whoever executes hears of both
            if is_signal(broken):
                raise
            attempt.raise_instead(broken)
            return None
        return policy.delay_s(attempt.retry + 1, random.random())  # noqa: S311 - it only spreads retries

    def _end_interrupted(self, attempt: Attempt, interruption: BaseException) -> None:
        """Record how an execution ends that Ctrl-C cut short somewhere in this class, or in a subscriber."""
        while True:
            try:
                latest = attempt.execution.latest
                if latest is None:
                    return  # it had not begun
                events = self._journal.catch_up(latest.task)
                state = latest.task._view
                has_begun = latest.has_started or self._journal.is_recorded(latest.task, latest.started_at)
                if state.running_attempt == latest.number and has_begun:
                    latest.ending = latest.ending or latest.cancelled(interruption)
                elif latest.has_started and state.is_owned:
                    latest.end_waiting(interruption)
                else:
                    if latest.has_started and not latest.is_settled and latest.ending is not None:
                        self._ended(latest, TaskStatus.RUNNING, events, is_waiting=False)
                    return
                self._settle(latest)
            except Exception:
                raise
            except BaseException:  # noqa: BLE001, S112 - another Ctrl-C: what was begun is ended all the same
                continue
            return

    def _settle(self, attempt: Attempt, *more: TaskFact, follow: Attempt | None = None) -> bool:
        """Record how the attempt ended, and tell subscribers; return whether `follow` started in the same commit.

        Args:
            attempt: it has an ending; one that was settled before is left alone.
            more: facts that follow the end.
            follow: an attempt at another task, to be started with it. Where that one's start is refused, the end is
                recorded alone.

        Raises:
            LedgerUnwritableError: the ledger is lost. The handle shows the end, as pending; `result` has the result.
        """
        if attempt.is_settled:
            return False
        facts = attempt.unwritten()
        before = attempt.task.status
        keeper = self._take_in_hand(follow) if follow is not None else None
        events: list[list[RecordedEvent]] = []
        while not events:
            try:
                events = self._record_end(attempt, facts, more, follow, keeper)
            except LedgerUnwritableError as lost:
                if follow is not None:
                    self._out_of_hand(follow)
                if follow is None or not isinstance(lost, StartRefusedError):
                    self._lose(attempt, facts, before, lost)
                    raise
                follow = None
            except (StreamConflictError, TransitionError) as refusal:
                if isinstance(refusal, CancelUnheardError):  # it is known from now on
                    attempt.cancel_ending()
                    more = ()
                elif follow is None:  # somebody else has recorded how it ended
                    self._journal.catch_up(attempt.task)
                    self._let_go(attempt)
                    raise
                if follow is not None:
                    self._out_of_hand(follow)
                follow = None
            except Exception:  # a ledger that is damaged, say: the work is over, and nobody here runs it any more
                if follow is not None:
                    self._out_of_hand(follow)
                self._let_go(attempt)
                raise
        attempt.settled()
        self._ended(attempt, before, events[0], is_waiting=bool(more) and isinstance(attempt.fact, TaskFailed))
        if follow is None:
            return False
        self._started(follow, last(events[1]))
        return True

    def _record_end(
        self,
        attempt: Attempt,
        facts: Sequence[TaskFact],
        more: Sequence[TaskFact],
        follow: Attempt | None,
        keeper: Keeper | None,
    ) -> list[list[RecordedEvent]]:
        owned = Owned(attempt.number, knows_cancel=attempt.is_cancelled)
        end = Entry(attempt.task, [*facts, attempt.fact, *more], owned, attempt.position)
        entries = [end]
        if follow is None:
            return self._journal.record(entries)
        return self._journal.record([*entries, Entry(follow.task, [follow.start_fact()], cause=end, keeper=keeper)])

    def _ended(
        self, attempt: Attempt, before: TaskStatus, events: Sequence[RecordedEvent], *, is_waiting: bool
    ) -> None:
        if is_waiting:  # for its retry: whoever cancels it must still reach this attempt
            attempt.task._ended(attempt.result)
        else:
            self._release(attempt)
        record = next((event for event in events if isinstance(event.fact, AttemptEnd)), None)
        kind = _ENDED[attempt.result.status]
        try:
            self._publish(attempt.task, kind, before, attempt.fact, record)
        finally:
            if not is_waiting:  # only now: a subscriber that saves the task elsewhere rebinds nothing
                self._out_of_hand(attempt)

    def _lose(
        self, attempt: Attempt, facts: Sequence[TaskFact], before: TaskStatus, lost: LedgerUnwritableError
    ) -> None:
        """The work ended as it ended, but the ledger can't be told: the handle shows it, and keeps it as pending."""
        attempt.settled(is_lost=True)
        attempt.task._advance([*facts, attempt.fact])
        self._let_go(attempt)
        lost.result = attempt.result
        self._publish(attempt.task, TaskEventType.PERSISTENCE_FAILED, before, None, None, error=str(lost))

    def _let_go(self, attempt: Attempt) -> None:
        self._out_of_hand(attempt)
        self._release(attempt)

    def _release(self, attempt: Attempt) -> None:
        """Be done with an attempt that has ended, but for what its end is still to be told to."""
        task = attempt.task
        task._ended(attempt.result)
        if self._live.get(task.id) is not attempt:
            return
        task._on_cancel = None
        del self._live[task.id]
        log = self._journal.log
        if log is not None:
            log.unwatch(f"task-{task.id}")

    def _publish(
        self,
        task: Task,
        kind: TaskEventType,
        before: TaskStatus,
        fact: AttemptEnd | None,
        record: RecordedEvent | None,
        error: str | None = None,
    ) -> None:
        if self._events.has_subscribers:
            text = error if error is None else redacted(error, self._journal.redaction(task))
            result = task.result if isinstance(fact, TaskFailed | TaskCancelled) else None
            is_long = result is not None and is_read_when_asked(result, "error")
            if result is not None and not is_long:
                text = result.error
            at = record.recorded_at if record is not None else clock.now()
            event = TaskEvent(kind, task.id, task, at, before, task.status, error=text, record=record)
            if is_long:
                reading(event, {"error": partial(getattr, result, "error")})
            self._events.emit(event)
        if kind is not TaskEventType.PERSISTENCE_FAILED:
            self._keep(task)

    def _keep(self, task: Task) -> None:
        failure = self._journal.keep(task)
        if failure is not None:
            with self._lock:
                self._persistence_errors.append((task.id, failure))
            status = task.status
            self._publish(task, TaskEventType.PERSISTENCE_FAILED, status, None, None, error=words(failure))

    def _keep_graph(self, graph: TaskGraph) -> None:
        failure = self._journal.keep_graph(graph)
        if failure is not None:
            with self._lock:
                self._graph_persistence_errors.append((graph.id, failure))

    # --- cancelling and blocking -------------------------------------------------------------------------------------

    def _cancel_live(self, task: Task, *, is_recorded: bool) -> bool:
        """Cancel a task that runs here; return False where it doesn't. `is_recorded`: the cancel of its run is."""
        attempt = self._live.get(task.id)
        if attempt is None or not attempt.task._request_cancel():
            return False
        if is_recorded:
            attempt.ask_cancel()
        else:
            self._ask_cancel(attempt)
        return True

    def _ask_cancel(self, attempt: Attempt) -> None:
        """Cancel an attempt whose handle has the request, which is recorded before anything of it is ended.

        So a runner inside of it sees why it is ended. A ledger that can't be written right now delays the cancel by no
        more than `REQUEST_WAIT_S`: the request then goes with the end.
        """
        attempt.execution.is_cancelled = True
        log = self._journal.log
        if log is not None and attempt.task._has_news(log.ledger) and not is_inside():
            with contextlib.suppress(NoThreadError):
                hand_over(partial(self._record_request, attempt.task), REQUEST_WAIT_S)
        attempt.ask_cancel()

    def _record_request(self, task: Task) -> None:
        with contextlib.suppress(TtasksError):
            self._journal.record([Entry(task)])

    def _cancel_left(self, task: Task) -> list[_End] | None:
        """Cancel a task whose runner is gone; return what is to be published of that, None where somebody runs it."""
        log = self._journal.log
        if log is None:
            return None
        try:
            found = Recovery(log.readers).find(task)
        except AlreadyRunningError:
            return None
        return self._end_left([found])[0]

    def _record_cancel(self, task: Task) -> tuple[TaskCancelled, Sequence[RecordedEvent]]:
        """Record that a task is cancelled that nobody runs; return the fact, and the events."""
        now = clock.now()
        text = f"Task '{task.id}' was cancelled"
        reason = TerminationReason.CANCELLED.value
        # No attempt, so that the task's own error stays; but a result.
        fact = TaskCancelled(
            started_at=now, finished_at=now, duration=0.0, error=text, reason=reason, by=clock.whoami()
        )
        (events,) = self._journal.record([Entry(task, [fact])])
        return fact, events

    def _block(self, blocked: Sequence[tuple[Task, str]], cause: int | None = None) -> None:
        entries = [Entry(task, decide.block(task._view, parent), cause=cause) for task, parent in blocked]
        before = [task.status for task, _ in blocked]
        recorded = self._journal.record(entries) if entries else []
        for (task, _), status, events in zip(blocked, before, recorded, strict=True):
            self._publish(task, TaskEventType.BLOCKED, status, None, last(events))


def _scheduled(attempt: Attempt, delay_s: float) -> TaskRetryScheduled:
    return TaskRetryScheduled(attempt.number, attempt.retry + 1, delay_s, clock.later(delay_s))


def _no_handler(_: object) -> None:
    """Stand in the log for the handler that a task has not got."""


def last(events: Sequence[RecordedEvent]) -> RecordedEvent | None:
    return events[-1] if events else None
