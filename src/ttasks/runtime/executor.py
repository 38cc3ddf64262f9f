"""`TaskExecutor`: runs tasks, and records and publishes what becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from ttasks import clock, errors
from ttasks.errors import NoThreadError, ReentranceError, StreamConflictError
from ttasks.events.status import TaskType
from ttasks.handlers.context import check_upstream
from ttasks.handlers.copilot.default import copilot_agent_handler, copilot_prompt_handler
from ttasks.handlers.kept import check_output_bytes
from ttasks.handlers.shell import bash_handler, powershell_handler
from ttasks.model.callbacks import check_runs_when_called
from ttasks.model.graph import TaskGraph
from ttasks.model.result import TaskResult
from ttasks.model.retry import RetryPolicy, qualified_name
from ttasks.model.task import Task
from ttasks.public import public
from ttasks.reentrance import hand_over, is_inside, is_mine, refuse, section
from ttasks.runtime.attempt import Handler, publishing_for
from ttasks.runtime.bus import EventBus
from ttasks.runtime.executions import Executions, last
from ttasks.stores.protocol import Store
from ttasks.stores.recording import Entry


class TaskExecutor(Executions):
    """Runs tasks, with the four built-in handlers.

    Args:
        store: where everything is recorded. One of the library's own stores is a ledger: nothing runs that it can't
            record. Any other object with `tasks` and `graphs` gets `save` calls, as well as that goes. None: nowhere.
        max_output_bytes: how much of each of a script's two streams is kept in memory, and so in its result, its
            errors, and each line that is published: the beginning and the end, with a notice in between. A ledger has
            all of it all the same. None: everything; with a ledger what is longer than 64 KiB is read from there.

    Raises:
        TypeError: `store must be a store`, which a path, a connection or a class is not; `max_output_bytes must be an
            int`.
        ValueError: `max_output_bytes must be at least 1`.

    Leaving a ``with`` waits for what was submitted.
    """

    def __init__(self, store: Store | None = None, *, max_output_bytes: int | None = None) -> None:
        check_output_bytes(max_output_bytes)
        super().__init__(store, max_output_bytes)
        self._store = store
        self._pool: ThreadPoolExecutor | None = None
        self._submitted: set[Future[TaskResult]] = set()
        self._workers: set[int] = set()
        self._waiting_workers: set[int] = set()
        self._drained = threading.Event()
        self._is_shutdown = False
        self.register(TaskType.BASH, bash_handler)
        self.register(TaskType.POWERSHELL, powershell_handler)
        self.register(TaskType.PROMPT, copilot_prompt_handler)
        self.register(TaskType.AGENT, copilot_agent_handler)

    @classmethod
    def empty(cls, store: Store | None = None, *, max_output_bytes: int | None = None) -> Self:
        """Return an executor, of a subclass one of that, without handlers."""
        executor = cls(store) if max_output_bytes is None else cls(store, max_output_bytes=max_output_bytes)
        executor._handlers.clear()
        return executor

    # --- what it has -------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store | None:
        """The store it was given, or None."""
        return self._store

    @property
    def events(self) -> EventBus:
        """Where to hear what happens."""
        return self._events

    @property
    def persistence_errors(self) -> list[tuple[str, BaseException]]:
        """What a user's own store raised when it was given a task, with the task's id: a new list each time."""
        with self._lock:
            return list(self._persistence_errors)

    @property
    def graph_persistence_errors(self) -> list[tuple[str, BaseException]]:
        """What a user's own store raised when it was given a graph, with the graph's id: a new list each time."""
        with self._lock:
            return list(self._graph_persistence_errors)

    @property
    def is_shutdown(self) -> bool:
        """True once `shutdown` was called."""
        return self._is_shutdown

    def register(self, task_type: TaskType, handler: Handler) -> None:
        """Let `handler` run tasks of this type, in place of the one before.

        Raises:
            TypeError: `task_type must be a TaskType`, or `handler must be callable`; or a call of the handler would
                run nothing, because it is async or has a yield. The handler before stays.
        """
        _check_type(task_type)
        check_runs_when_called(handler, "handler")
        self._handlers[task_type] = handler

    def is_registered(self, task_type: TaskType) -> bool:
        """True when tasks of this type have a handler. TypeError: `task_type must be a TaskType`."""
        _check_type(task_type)
        return task_type in self._handlers

    def _handler_names(self, types: Iterable[TaskType]) -> dict[str, str]:
        """Return the qualified names of what runs tasks of these types, where there is something, by type."""
        return {kind.value: qualified_name(self._handlers[kind]) for kind in sorted(types) if kind in self._handlers}

    def is_running(self, task_id: str) -> bool:
        """True while the task has a live subprocess here."""
        attempt = self._live.get(task_id)
        return attempt is not None and attempt.has_process

    # --- one task ----------------------------------------------------------------------------------------------------

    def execute(
        self,
        task: Task,
        upstream: Mapping[str, Task] | None = None,
        *,
        retry_policy: RetryPolicy | None = None,
    ) -> TaskResult:
        """Run `task`, again as `retry_policy` says, and return how it ended.

        Args:
            task: PENDING, FAILED, BLOCKED or INTERRUPTED.
            upstream: its direct dependencies by id, for the handler.
            retry_policy: how often it is tried; None: once.

        Raises:
            TypeError, ValueError: a wrong argument, a task that may not run, a type without a handler.
            WithheldError: it was loaded, and the ledger withholds what it needs (a ValueError too). Nothing ran.
            StreamConflictError: somebody recorded something of the task that this handle has not seen. Nothing ran.
            LedgerUnwritableError: the start could not be recorded, and nothing ran; or, where it has a `result`, the
                end could not, and the handle keeps it as pending.
            TaskCancelled: the task was cancelled. Whatever else the handler raised: the task failed.
        """
        attempt = self._attempt(task, check_upstream(upstream), retry_policy)
        try:
            self._start(attempt)
            attempt = self._finish(attempt)
            self._settle(attempt)
        except Exception:
            raise
        except BaseException as interruption:
            self._end_interrupted(attempt, interruption)
            self._out_of_hand(attempt)
            raise
        ending = attempt.ending
        assert ending is not None
        if ending.error is not None:
            raise ending.error
        return ending.result

    # --- cancelling and blocking -------------------------------------------------------------------------------------

    def cancel(self, task: Task) -> None:
        """Cancel `task`; nothing after SUCCEEDED, and repeating it is harmless.

        One that runs here has its process group ended, and its own `execute` publishes CANCELLED. One that has not
        started gets a CANCELLED result and one CANCELLED event. It may be called by a signal handler: where its thread
        is recording just then, another one does it as soon as that is done.

        Raises:
            TypeError: `task must be a Task`.
            LedgerUnwritableError: it could not be recorded; the task is as it was.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        self._cancel(task)

    def _cancel(self, task: Task, *, unless_ended_since: int | None = None) -> None:
        """Cancel a task; with `unless_ended_since`, as its run is, not one whose attempt after so many has ended."""
        if is_inside() or is_mine(task._lock):
            hand_over(lambda: self._cancel(task, unless_ended_since=unless_ended_since))
            return
        if self._cancel_live(task, is_recorded=unless_ended_since is not None):
            return
        with section(), task._recording:  # nobody starts or ends it meanwhile
            before = task.status
            has_ended = unless_ended_since is not None and task.attempts > unless_ended_since
            if before.is_sink or (has_ended and not task.is_running and not task._view.is_owned):
                return
            if task._request_cancel():  # it runs, by this handle or another, here or in another process
                ends = self._cancel_left(task)
                if ends is None:
                    self._journal.record([Entry(task)])
                    live = self._live.get(task.id)
                    if live is not None and live.task is task:
                        live.ask_cancel()
                    return
            else:
                fact, events = self._record_cancel(task)
                ends = [(task, before, fact, last(events))]
        self._publish_ends(ends)  # subscribers may record, which is refused inside

    def mark_blocked(self, task: Task, parent_id: str) -> None:
        """Record that `task` can't run because `parent_id`, a direct dependency, is bad, and publish BLOCKED.

        Raises:
            TransitionError: the task is not PENDING. Nothing was written.
            LedgerUnwritableError: it could not be recorded; the task is as it was.
            TypeError: `task must be a Task`, `parent_id must be a str`.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if not isinstance(parent_id, str):
            raise TypeError(f"parent_id must be a str, got {type(parent_id).__name__}")
        self._block([(task, parent_id)])

    # --- many tasks --------------------------------------------------------------------------------------------------

    def submit(
        self,
        task: Task,
        upstream: Mapping[str, Task] | None = None,
        *,
        retry_policy: RetryPolicy | None = None,
    ) -> Future[TaskResult]:
        """Queue `task` for a pool of threads and return its future; see `execute`.

        Cancelling the future of queued work cancels the task.

        Raises:
            TypeError: a wrong argument.
            RuntimeError: `executor is shut down`.
            ReentranceError: a signal handler calls this while its own thread submits or records. Nothing was queued.
            NoThreadError: the interpreter is ending, or the system has no more threads. Nothing was queued.
        """
        if not isinstance(task, Task):
            raise TypeError(f"task must be a Task, got {type(task).__name__}")
        if retry_policy is not None and not isinstance(retry_policy, RetryPolicy):
            raise TypeError(f"retry_policy must be a RetryPolicy, got {retry_policy!r}")
        refuse("submitting a task")
        given = check_upstream(upstream)
        self._check_may_start(task)
        if is_mine(self._lock):
            raise ReentranceError("submitting a task")
        with self._lock:
            if self._is_shutdown:
                raise RuntimeError("executor is shut down")
            if self._pool is None:
                self._pool = ThreadPoolExecutor(thread_name_prefix="ttasks")
            ticket = threading.Event()
            try:
                future = self._pool.submit(self._execute_queued, task, given, retry_policy, ticket)
            except RuntimeError as error:
                ticket.set()  # it may be in the queue, though no thread was started for it
                raise NoThreadError("submitting a task", str(error)) from error
            self._submitted.add(future)
        future.add_done_callback(lambda done: self._done(done, task))
        return future

    def _done(self, future: Future[TaskResult], task: Task) -> None:
        try:
            if future.cancelled():
                self.cancel(task)
        finally:
            with self._lock:
                self._submitted.discard(future)
                self._look_whether_drained()

    def _look_whether_drained(self) -> None:
        """Let those go that wait in `shutdown` once only workers are left that wait there too. The lock is held."""
        if self._is_shutdown and self._pool is not None:
            waiting = len(self._waiting_workers)
            if len(self._submitted) <= waiting or waiting >= self._pool._max_workers:
                self._drained.set()

    def _execute_queued(
        self, task: Task, upstream: Mapping[str, Task], retry_policy: RetryPolicy | None, is_taken_back: threading.Event
    ) -> TaskResult:
        if is_taken_back.is_set():
            raise CancelledError
        worker = threading.get_ident()
        self._workers.add(worker)
        try:
            if task.is_cancelled:
                raise errors.TaskCancelled(f"Task '{task.id}' was cancelled")
            if retry_policy is None:
                return self.execute(task, upstream)
            return self.execute(task, upstream, retry_policy=retry_policy)
        except StreamConflictError as conflict:
            if not self._journal.is_cancelled(task):
                raise
            self._journal.catch_up(task)
            raise errors.TaskCancelled(f"Task '{task.id}' was cancelled") from conflict
        finally:
            self._workers.discard(worker)

    def run_graph(self, graph: TaskGraph, max_workers: int = 4) -> TaskGraph:
        """Run a graph; see `TaskGraph.run`."""
        refuse("running a graph")
        from ttasks.runtime.beginning import Beginning
        from ttasks.runtime.graph_run import GraphRun

        GraphRun(Beginning(self, graph, max_workers)).run()
        return graph

    def resume(
        self, what: TaskGraph | Task | str | None = None, *, finally_only: bool = False, force_handlers: bool = False
    ) -> list[TaskGraph | Task]:
        """Go on with what was interrupted, and return it: what had ended stays, what was interrupted is done again.

        Args:
            what: a graph or a task, or the id of one; None: everything that ``store.interrupted()`` lists.
            finally_only: of graphs, run only the finally tasks that are owed, and close the run as cancelled.
            force_handlers: go on though a handler is another than the recorded one, or a `retry_on` can't be restored.

        Returns:
            The handles of what was resumed, with how it ended; an empty list where there was nothing to resume.

        Raises:
            AlreadyRunningError: its runner lives, or somebody else resumed it first.
            NotResumableError: something can't be restored. Nothing was started or written.
            SurvivorError: what is left of an interrupted attempt can't be ended. Nothing was started.
            KeyError: there is no graph and no task with that id.
            ValueError: this executor has no ledger.
            LedgerUnwritableError, KeyboardInterrupt: as `TaskGraph.run`.

        Of several, all are looked at before the first is started; one that is refused afterwards keeps no other from
        going on, and the first such refusal is raised at the end. A failed task is no exception: look at its status.
        """
        refuse("resuming")
        from ttasks.runtime.resume import resume

        return resume(self, what, finally_only=finally_only, force_handlers=force_handlers)

    def shutdown(self) -> None:
        """Refuse what is submitted from now on, and wait for what was; repeating it is harmless."""
        worker = publishing_for() or threading.get_ident()
        if is_inside() or is_mine(self._lock):
            raise ReentranceError("shutting down an executor")
        with self._lock:
            self._is_shutdown = True
            pool = self._pool
            if pool is None:
                return
            if worker in self._workers:  # its own work can't be waited for
                self._waiting_workers.add(worker)
            self._look_whether_drained()
        pool.shutdown(wait=False)
        clock.wait(self._drained)
        if worker not in self._workers and threading.current_thread() not in pool._threads:
            pool.shutdown(wait=True)  # the threads of a drained pool end at once

    def close(self) -> None:
        """The same as `shutdown`."""
        self.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()


def _check_type(task_type: object) -> None:
    if not isinstance(task_type, TaskType):
        raise TypeError(f"task_type must be a TaskType, got {task_type!r}")


public(TaskExecutor)
