"""One run of a graph: threads that take what the planner says is ready, run it, and tell the planner."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Final

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
    GraphCancelRequested,
    GraphFact,
    GraphRunFinished,
    GraphRunInterrupted,
)
from ttasks.events.status import RunStatus
from ttasks.log.liveness import let_go, take_in_hand
from ttasks.log.redaction import redacted
from ttasks.log.transaction import OwnedRun
from ttasks.model.retry import qualified_name
from ttasks.model.task import Task
from ttasks.runtime.attempt import Attempt, RunRef
from ttasks.runtime.beginning import Beginning
from ttasks.runtime.executor import TaskExecutor
from ttasks.runtime.nesting import is_cancelled_outside
from ttasks.runtime.texts import stored_words
from ttasks.state.planner import Consequences, Planner
from ttasks.state.rows import tail
from ttasks.state.task import GRACE_S
from ttasks.stores.recording import Entry

STOP_WAIT_S: Final = 10.0
"""How long a second Ctrl-C waits for what runs, and as much longer as a task's `grace` is longer than the usual 5 s."""
HURRY_WAIT_S: Final = 3.0
"""How long the Ctrl-C that leaves at once waits for processes that were sent SIGKILL."""
STOP_PAUSE_S: Final = 0.1
INTERRUPTIONS_MAX: Final = 2
"""After so many Ctrl-C the next one leaves at once, whatever still runs."""


_EXECUTE: Final = TaskExecutor.execute
"""As it was made, whoever has replaced it since."""


class GraphRun:
    """One run. All its state is guarded by `_changed`; recording and running happen outside of it."""

    def __init__(self, beginning: Beginning) -> None:
        executor = self._executor = beginning.executor
        self._beginning = beginning
        self._graph = beginning.graph
        self._max_workers = beginning.max_workers
        self._tasks, self._members = beginning.tasks, beginning.members
        self._planner: Planner
        # Where `execute` is overridden, every task goes through it; only else may an end and a start share a commit.
        self._is_direct = getattr(executor.execute, "__func__", None) is _EXECUTE
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._orders: SimpleQueue[Callable[[], None] | None] = SimpleQueue()  # None: it is over
        self._is_led = False
        self._is_closed = False
        self._workers: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._ready: deque[str] = deque()
        self._running: set[str] = set()
        self._attempts_before: dict[str, int] = {}  # by task that was taken: how many attempts it had had
        self._is_cancelled = self._has_heard = beginning.is_cancelled
        self._is_stopped = False
        self._is_hurried = False
        self._lost: LedgerUnwritableError | None = None
        self._broken: BaseException | None = None
        self._run: RunRef | None = None
        self._position: int | None = None
        self._began_s = clock.monotonic_s()

    # --- who waits, who leads --------------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until nothing can change any more; see `TaskGraph.run`."""
        # Ctrl-C reaches the main thread, at any line of it. So the thread that calls only waits: whatever is recorded
        # is recorded by others, whom no signal interrupts.
        interruptions: list[BaseException] = []
        while True:
            try:
                if self._over.is_set():
                    break
                if not self._is_led:
                    threading.Thread(target=self._lead, name="ttasks-run", daemon=True).start()
                if interruptions:
                    self._pass_on(interruptions)
                clock.wait(self._over)
            except BaseException as interruption:
                if isinstance(interruption, RuntimeError) and not self._is_led:
                    raise NoThreadError("running a graph", str(interruption)) from interruption
                if len(interruptions) == INTERRUPTIONS_MAX:
                    self._hurry()
                    self._over.wait(HURRY_WAIT_S)
                    raise
                interruptions.append(interruption)
        if self._failure is not None:
            raise self._failure
        if interruptions:
            raise interruptions[-1]

    def _pass_on(self, interruptions: Sequence[BaseException]) -> None:
        """Have the run cancelled by one Ctrl-C, stopped at once by a second one or anything else."""
        last = interruptions[-1]
        if not isinstance(last, KeyboardInterrupt):
            if len(interruptions) > 1:
                self._hurry()
            self._orders.put(lambda: self._end_by(last, is_first=len(interruptions) == 1))
        elif len(interruptions) > 1:
            self._orders.put(lambda: self._stop("a second Ctrl-C"))
        else:
            self._orders.put(lambda: self._cancel("Ctrl-C"))

    def _end_by(self, interruption: BaseException, *, is_first: bool) -> None:
        """Stop the run; but where it is part of an attempt that was cancelled, a SIGTERM cancels it as well."""
        said = _in_words(interruption)
        if is_first and said == signal.SIGTERM.name and is_cancelled_outside():
            self._cancel("the task that runs it was cancelled")
        else:
            self._stop(f"its runner was ended by {said}")

    def _hurry(self) -> None:
        """Let what runs end without a grace, also where a stop waits for it already."""
        self._is_hurried = True
        for attempt in self._live_attempts():
            attempt.hurry()

    def _lead(self) -> None:
        with self._changed:
            if self._is_led:  # Ctrl-C came while the thread that leads was started, and it was started again
                return
            self._is_led = True
        try:
            log = self._executor._journal.log
            self._graph._enter_run(log.ledger if log is not None else None)
        except AlreadyRunningError as refusal:
            self._failure = refusal
            self._over.set()
            return
        if (log := self._executor._journal.log) is not None:
            take_in_hand(log.ledger, f"graph-{self._graph.id}")
        try:
            self._begin()
            self._hire()
            while (order := self._orders.get()) is not None:
                order()
            if not self._is_stopped:
                self._let_workers_end()
                self._finish()
        except BaseException as error:  # noqa: BLE001 - it is raised by `run`
            self._failure = error
            self._give_up(error)
        finally:
            if (log := self._executor._journal.log) is not None:
                if self._run is not None:  # else it is refused, and another run of the graph may be watching
                    log.unwatch(f"graph-{self._graph.id}")
                let_go(log.ledger, f"graph-{self._graph.id}")
            self._graph._leave_run()
            self._over.set()

    def _give_up(self, error: BaseException) -> None:
        """Close a run that can't go on: what runs is waited for, nothing more is started."""
        with self._changed:
            self._broken = self._broken or error
            self._wake()
        self._let_workers_end()
        if not self._is_closed:
            with contextlib.suppress(TtasksError):  # a ledger that is lost: the end stays pending
                self._close(lambda run: self._interrupted(run, f"it broke: {error!r}"))

    def _let_workers_end(self) -> None:
        for worker in self._workers:
            worker.join()

    def _begin(self) -> None:
        graph, log, beginning = self._graph, self._executor._journal.log, self._beginning
        number, opening = beginning.opening()
        self._executor._keep_graph(graph)
        entries = [*map(Entry, beginning.others()), Entry(graph, opening)]
        try:
            events = self._executor._recover(list(beginning.found.values()), *entries)
        except (StreamConflictError, TransitionError) as refusal:
            raise beginning.refused(refusal) from refusal
        if events[-1]:
            self._run = RunRef(graph.id, number)
            self._position = events[-1][-1].position
        beginning.note_environment()
        if log is not None:
            log.watch(f"graph-{graph.id}", self._hear_cancel)
        graph._errors = beginning.errors()
        statuses = {task_id: task.status for task_id, task in self._tasks.items()}
        self._planner = Planner(self._members, statuses, beginning.held())
        consequences = self._planner.begin(is_withdrawn=self._is_cancelled)
        self._ready.extend(consequences.ready)
        self._block(consequences)

    def _record_of_graph(self, fact: GraphFact) -> None:
        # Alone: what was changed about the graph meanwhile is recorded with the tasks that it names, later.
        owned = OwnedRun(self._run.run) if self._run is not None else None
        self._record(Entry(self._graph, [fact], owned, self._position, is_alone=True))

    def _record(self, *entries: Entry) -> list[list[RecordedEvent]]:
        return self._executor._journal.record(entries)

    def _hire(self) -> None:
        for index in range(min(self._max_workers, len(self._members))):
            worker = threading.Thread(target=self._work, name=f"ttasks-run-{index}", daemon=True)
            try:
                worker.start()
            except RuntimeError as error:  # the system has no more threads to give
                if not self._workers:
                    raise NoThreadError("a task of the graph", str(error)) from error
                break
            self._workers.append(worker)
        with self._changed:
            self._wake()  # there may be nothing to do at all

    def _wake(self) -> None:
        """Wake as many workers as there is work for; all of them, and who leads, at the end. The lock is held."""
        is_ending = self._lost is not None or self._broken is not None or self._is_stopped
        if is_ending or (self._planner.is_finished and not self._running):
            self._changed.notify_all()
            if not self._running:
                self._orders.put(None)
        elif self._ready:
            self._changed.notify(len(self._ready))

    def _finish(self) -> None:
        if self._broken is not None:
            raise self._broken
        if self._lost is not None:
            self._keep_as_interrupted(self._lost)
            raise self._lost
        statuses = {task_id: task.status for task_id, task in self._tasks.items()}
        outcome = self._planner.outcome(statuses, self._graph._errors.keys())
        self._close(lambda run: GraphRunFinished(run, outcome, self._recorded_errors(), self._worked_s()))
        if outcome is RunStatus.SUCCEEDED:
            self._beginning.forget_environment()
        self._executor._keep_graph(self._graph)

    def _keep_as_interrupted(self, lost: LedgerUnwritableError) -> None:
        """Keep the end of the run as pending: whoever saves the graph next records it."""
        self._is_closed = True
        if self._run is not None:
            why = f"the ledger was lost: {lost}"
            self._graph._advance(self._interrupted(self._run.run, why))

    def _interrupted(self, run: int, why: str) -> GraphRunInterrupted:
        return GraphRunInterrupted(run, why, self._recorded_errors(), self._worked_s())

    def _worked_s(self) -> float:
        return clock.monotonic_s() - self._began_s

    def _close(self, fact: Callable[[int], GraphFact]) -> None:
        self._is_closed = True
        if self._run is None:
            return
        try:
            self._record_of_graph(fact(self._run.run))
        except LedgerUnwritableError as lost:
            self._keep_as_interrupted(lost)
            raise

    def _recorded_errors(self) -> dict[str, dict[str, str]]:
        journal = self._executor._journal
        return {
            task_id: {
                "type": qualified_name(type(error)),
                # Only the tail, as in rows: what a script printed on stderr is in the log already.
                "text": tail(redacted(self._end_of(error, task_id), journal.redaction(self._tasks[task_id]))),
            }
            for task_id, error in self._graph._errors.items()
        }

    def _end_of(self, error: BaseException, task_id: str) -> str:
        """Return what an error says; the end of it, which the task has, where all of it would have to be read."""
        return words(error) if stored_words(error) is None else self._tasks[task_id]._view.error or ""

    # --- cancelling --------------------------------------------------------------------------------------------------

    def _hear_cancel(self) -> None:
        """Take note that somebody else has recorded a request to cancel the run."""
        with self._changed:
            is_news, self._has_heard = not self._has_heard, True
        if is_news:
            self._orders.put(self._withdraw)

    def _cancel(self, why: str) -> None:
        """Record that the run is to be cancelled, and do it."""
        with self._changed:
            self._has_heard = True
        try:
            if self._run is not None:
                self._record_of_graph(GraphCancelRequested(clock.whoami(), why))
        except LedgerUnwritableError as lost:
            self._lose(lost)
        self._withdraw()

    def _withdraw(self) -> None:
        """Cancel the run: what runs is cancelled but for finally tasks, nothing else starts but those."""
        with self._changed:
            if self._is_cancelled or self._is_stopped:
                return
            self._is_cancelled = True
            consequences = self._planner.withdraw({task for task in self._running if self._has_ended(task)})
            self._ready = deque(task for task in self._ready if self._members[task].is_finally)
            self._ready.extend(consequences.ready)
            running = [task for task in self._running if not self._members[task].is_finally]
            self._wake()
        for task_id in running:
            try:
                self._executor._cancel(self._tasks[task_id], unless_ended_since=self._attempts_before[task_id])
            except LedgerUnwritableError as lost:
                self._lose(lost)
            except StreamConflictError:  # by another handle, or process: its own attempt here will find out
                continue

    def _has_ended(self, task_id: str) -> bool:
        """True for a task that was taken and whose end is recorded, though it is not settled yet."""
        task = self._tasks[task_id]
        return task.attempts > self._attempts_before[task_id] and not task.is_running and not task._view.is_owned

    def _stop(self, why: str) -> None:
        """Stop at once: what runs is recorded as INTERRUPTED, finally tasks stay owed (SPEC §2.7)."""
        with self._changed:
            if self._is_stopped:  # by the order before, which has closed the run
                return
            self._is_stopped = True
            self._wake()
        began_s, wait_s = clock.monotonic_s(), STOP_WAIT_S
        while self._running and clock.monotonic_s() < began_s + wait_s:
            for attempt in self._live_attempts():  # again and again: one may have been about to start
                attempt.stop()
                if self._is_hurried:
                    attempt.hurry()
                if attempt.has_process:
                    wait_s = max(wait_s, STOP_WAIT_S + attempt.context.grace - GRACE_S)
            with self._changed:
                self._changed.wait_for(lambda: not self._running, STOP_PAUSE_S)
        for attempt in self._live_attempts():  # its handler does not end; what it does later changes nothing any more
            if attempt.is_settled:
                continue
            attempt.abandon()
            try:
                self._executor._settle(attempt)
            except LedgerUnwritableError as lost:
                self._lose(lost)
            except StreamConflictError:  # it did end, just now: its worker has recorded how
                continue
        if self._is_over():  # the signal came too late to interrupt anything
            self._finish()
        else:
            self._close(lambda run: self._interrupted(run, why))
            self._executor._keep_graph(self._graph)
        self._orders.put(None)

    def _is_over(self) -> bool:
        """True when each task has come to an end in this run, and all of that is recorded."""
        ended = (
            task.is_terminal and not task.is_interrupted and not task._view.is_owned for task in self._tasks.values()
        )
        return self._planner.is_finished and all(ended)

    def _live_attempts(self) -> list[Attempt]:
        with self._changed:
            live = [self._executor._live.get(task_id) for task_id in self._running]
        return [attempt for attempt in live if attempt is not None]

    # --- the workers -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            attempt: Attempt | None = None
            while True:
                if attempt is None:
                    task_id = self._next()
                    if task_id is None:
                        return
                    if not self._is_direct:
                        self._execute(task_id)
                        continue
                    attempt = self._start(task_id)
                else:
                    attempt = self._perform(attempt)
        except BaseException as error:  # noqa: BLE001 - a bug of ours must end the run, not leave it waiting
            with self._changed:
                self._broken = error
                self._running.clear()
                self._wake()

    def _next(self) -> str | None:
        """Wait for a task to start and return it; None when there will be none."""
        with self._changed:
            while True:
                if self._lost is not None or self._broken is not None or self._is_stopped:
                    self._wake()
                    return None
                if self._ready:
                    return self._take(self._ready.popleft())
                if self._planner.is_finished and not self._running:
                    self._wake()
                    return None
                self._changed.wait()

    def _take(self, task_id: str) -> str:
        self._planner.start(task_id)
        self._running.add(task_id)
        self._attempts_before[task_id] = self._tasks[task_id].attempts
        return task_id

    def _upstream(self, task_id: str) -> dict[str, Task]:
        return {parent: self._tasks[parent] for parent in self._members[task_id].after}

    def _attempt(self, task_id: str) -> Attempt:
        policy = self._graph._policies.get(task_id)
        return self._executor._attempt(self._tasks[task_id], self._upstream(task_id), policy, self._run)

    def _start(self, task_id: str) -> Attempt | None:
        """Start a task that was taken; None where it could not be, which is settled here."""
        try:
            attempt = self._attempt(task_id)
            self._executor._start(attempt, self._position)
        except LedgerUnwritableError as lost:
            self._lose(lost, task_id)
            return None
        except Exception as error:  # noqa: BLE001 - it is in the graph's errors
            self._settle(task_id, None if self._tasks[task_id].is_cancelled else error)
            return None
        return attempt

    def _perform(self, attempt: Attempt) -> Attempt | None:
        """Run a started attempt to its end; return the one that was started in the same commit, if any."""
        task_id = attempt.task.id
        follow: Attempt | None = None
        has_followed = False
        try:
            attempt = self._executor._finish(attempt)
            follow = self._follow(task_id, succeeds=attempt.error is None)
            has_followed = self._executor._settle(attempt, follow=follow)
        except LedgerUnwritableError as lost:
            self._lose(lost, task_id, *([follow.task.id] if follow is not None else []))
            return None
        except Exception as error:  # noqa: BLE001 - somebody else recorded its end; it is in the graph's errors
            self._give_back(follow)
            self._settle(task_id, error)
            return None
        if not has_followed:
            self._give_back(follow)
        self._settle(task_id, attempt.error)
        return follow if has_followed else None

    def _follow(self, task_id: str, *, succeeds: bool) -> Attempt | None:
        """Take a task whose start can share the commit of this one's end, and return an attempt at it."""
        with self._changed:
            if self._lost is not None or self._broken is not None or self._is_stopped or self._is_cancelled:
                return None
            if self._ready:
                follow_id: str | None = self._ready[0]
            else:
                follow_id = self._planner.next_after(task_id) if succeeds else None
            if follow_id is None or not self._may_follow(self._tasks[follow_id]):
                return None
            if self._ready:
                self._ready.popleft()
            else:
                self._planner.promise(follow_id)
            self._take(follow_id)
        try:
            return self._attempt(follow_id)
        except ValueError:  # it may not start; the thread that takes it next finds out why
            self._return(follow_id)
            return None

    def _may_follow(self, task: Task) -> bool:
        """True where its start can be recorded with another's end: it has a handler, and no wait comes first."""
        has_to_wait = task._resumption is not None and task._resumption.waits_s is not None
        return self._executor.is_registered(task.type) and not has_to_wait

    def _give_back(self, follow: Attempt | None) -> None:
        if follow is not None:
            self._return(follow.task.id)

    def _return(self, task_id: str) -> None:
        with self._changed:
            self._running.discard(task_id)
            self._ready.extendleft(self._planner.take_back(task_id).ready)
            self._wake()

    def _execute(self, task_id: str) -> None:
        """Run a taken task through the executor's own `execute`."""
        task, policy = self._tasks[task_id], self._graph._policies.get(task_id)
        error: BaseException | None = None
        try:
            if policy is None:
                self._executor.execute(task, self._upstream(task_id))
            else:
                self._executor.execute(task, self._upstream(task_id), retry_policy=policy)
        except LedgerUnwritableError as lost:
            self._lose(lost, task_id)
            return
        except BaseException as raised:  # noqa: BLE001 - it is in the graph's errors
            error = raised
        self._settle(task_id, error)

    def _settle(self, task_id: str, error: BaseException | None) -> None:
        """A task is through in this run: let start what now can, and block what can't run any more.

        What a start relies on is recorded by then: the finally tasks that wait for these blocks start after them.
        """
        with self._changed:
            if error is not None:
                self._graph._errors[task_id] = error
            consequences = self._planner.settle(task_id, succeeded=self._tasks[task_id].is_succeeded)
            if self._is_stopped:  # whoever resumes the run decides what follows from this
                consequences = Consequences()
            self._ready.extend(consequences.ready)
            if consequences.blocked:  # they are recorded first, which takes a while
                self._wake()
        self._block(consequences)
        with self._changed:
            self._running.discard(task_id)
            self._wake()

    def _block(self, consequences: Consequences) -> None:
        """Record what is blocked; only then may the finally tasks start that waited for it."""
        if not consequences.blocked:
            return
        blocked = [(self._tasks[child], parent) for child, parent in consequences.blocked]
        try:
            self._executor._block(blocked, self._position)
        except LedgerUnwritableError as lost:
            self._lose(lost)
        except TtasksError:
            for task, parent in blocked:  # one of them has changed: the others are blocked all the same
                self._block_one(task, parent)
        with self._changed:
            self._ready.extend(self._planner.recorded(consequences.blocked))

    def _block_one(self, task: Task, parent: str) -> None:
        try:
            self._executor._block([(task, parent)], self._position)
        except LedgerUnwritableError as lost:
            self._lose(lost)
        except TtasksError as refusal:
            if not task.is_cancelled:
                with self._changed:
                    self._graph._errors[task.id] = refusal

    def _lose(self, lost: LedgerUnwritableError, *task_ids: str) -> None:
        """The ledger is lost: nothing more is started."""
        with self._changed:
            self._lost = self._lost or lost
            for task_id in task_ids:
                self._running.discard(task_id)
            self._wake()


def _in_words(interruption: BaseException) -> str:
    """Return the signal that a program left for, where it left with what shells have for one; else what it raised."""
    code = interruption.code if isinstance(interruption, SystemExit) else None
    if isinstance(code, int) and code - 128 in signal.valid_signals():
        return signal.Signals(code - 128).name
    return repr(interruption)
