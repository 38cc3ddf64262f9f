"""Going on with what was interrupted: the same graph, the same run, a new attempt; finished work is not run again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ttasks import clock
from ttasks.errors import (
    AlreadyRunningError,
    LedgerUnwritableError,
    NotResumableError,
    StreamConflictError,
    SurvivorError,
    TransitionError,
)
from ttasks.events.facts import GraphCancelRequested, GraphFact, GraphRunResumed, GraphRunStarted, TaskStarted
from ttasks.events.status import RunStatus, TaskStatus
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers
from ttasks.log.runner import working_directory
from ttasks.model.graph import RecordedError, TaskGraph
from ttasks.model.retry import RetryPolicy, qualified_name
from ttasks.model.task import Task
from ttasks.model.task_view import Resumption
from ttasks.runtime.beginning import Beginning, running_already
from ttasks.runtime.executor import TaskExecutor
from ttasks.runtime.graph_run import GraphRun
from ttasks.state.graph import RunState
from ttasks.state.naming import named
from ttasks.state.reconcile import Claim, Then, claim
from ttasks.state.task import AttemptState
from ttasks.stores.ledger import LedgerStore
from ttasks.stores.recovery import Found, Recovery

FINALLY_ONLY: Final = "resume --finally-only"
"""Why a run is cancelled of which only the owed finally tasks are wanted."""


def resume(
    executor: TaskExecutor, what: TaskGraph | Task | str | None, *, finally_only: bool, force_handlers: bool
) -> list[TaskGraph | Task]:
    """Go on with what was interrupted; see `TaskExecutor.resume`."""
    store = executor.store
    if not isinstance(store, LedgerStore):
        raise ValueError("this executor has no ledger: what was interrupted is known only there")
    handles: list[TaskGraph | Task] = []
    if what is None:
        left = [work for work in store.interrupted() if work.can_go_on]
        handles += [store.graphs[work.id] for work in left if work.kind == "graph"]
        if not finally_only:
            handles += [store.tasks[work.id] for work in left if work.kind == "task"]
    elif isinstance(what, str):
        handles.append(store.graphs[what] if what in store.graphs else store.tasks[what])
    elif isinstance(what, TaskGraph | Task):
        handles.append(what)
    else:
        raise TypeError(f"what must be a TaskGraph, a Task or an id, got {type(what).__name__}")
    ready = [prepare(executor, store, handle, finally_only, force_handlers) for handle in handles]
    resumed, refusals = list[TaskGraph | Task](), list[Exception]()
    for handle, run in zip(handles, ready, strict=True):
        if run is None:
            continue
        try:
            run.run()
            resumed.append(handle)
        except (AlreadyRunningError, SurvivorError) as refusal:
            refusals.append(refusal)
    if refusals:
        raise refusals[0]
    return resumed


def prepare(
    executor: TaskExecutor, store: LedgerStore, handle: TaskGraph | Task, finally_only: bool, force_handlers: bool
) -> ResumedRun | ResumedTask | None:
    """Return what goes on with a graph or task; None: there is nothing to go on with."""
    if isinstance(handle, TaskGraph):
        runs = store._readers.runs(handle.id)
        if not runs or runs[-1].status not in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
            return None
        return ResumedRun(executor, handle, runs[-1], finally_only=finally_only, force_handlers=force_handlers)
    if claim(handle._view) is Claim.SETTLED:
        return None
    return ResumedTask(executor, store, handle, force_handlers=force_handlers)


class ResumedRun(Beginning):
    """A run that another runner began. What it needs and what can't be restored is looked for when it is made.

    Raises:
        AlreadyRunningError: its runner lives. Nothing was written.
        NotResumableError: something can't be restored. Nothing was started or written.
    """

    def __init__(
        self, executor: TaskExecutor, graph: TaskGraph, run: RunState, *, finally_only: bool, force_handlers: bool
    ) -> None:
        self._resumed = run
        self._finally_only = finally_only
        self._is_forced = force_handlers
        log = executor._journal.log
        assert log is not None
        self._readers, self._ledger = log.readers, log.ledger
        self._attempts = {state.task_id: state for state in self._readers.unsuccessful_attempts(graph.id, run.run)}
        self._begun = next(self._readers.events(stream=f"graph-{graph.id}", after=run.position - 1, limit=1))
        super().__init__(executor, graph, run.max_workers)
        self.is_cancelled = run.cancel_requested_by is not None or finally_only
        self._settled = {task.id for task in self.tasks.values() if self._is_settled(task)}
        self._resumptions = self._resume_tasks()

    # --- what there is to do -----------------------------------------------------------------------------------------

    def _check(self) -> None:
        assert self._recovery is not None
        if self._resumed.status is RunStatus.RUNNING and self._recovery.liveness.is_graph_run(self.graph.id):
            raise running_already(self.graph)

    def _is_given_up(self, task: Task) -> bool:
        is_cancelled = self._resumed.cancel_requested_by is not None or self._finally_only
        return is_cancelled and not self.members[task.id].is_finally

    def _is_settled(self, task: Task) -> bool:
        """True for a task that FAILED or was BLOCKED in this run, and so stays that."""
        if task.status is TaskStatus.FAILED:
            attempt = self._attempts.get(task.id)
            return attempt is not None and attempt.attempt == task.attempts and not task._view.is_owned
        if task.status is TaskStatus.BLOCKED:
            blocked = EventFilter(f"task-{task.id}", types=("TaskBlocked",), after=self._resumed.position, limit=1)
            return self._readers.count_matching(blocked) > 0
        return False

    def held(self) -> set[str]:
        failed = {task_id for task_id, found in self.found.items() if self.tasks[task_id].is_failed and _ends(found)}
        return super().held() | self._settled | failed

    def _is_to_run(self, task: Task) -> bool:
        found = self.found.get(task.id)
        if task.status.is_sink or task.id in self._settled or self._is_given_up(task):
            return False
        return found is None or found.verdict.then in (Then.AGAIN, Then.WAIT)

    def _resume_tasks(self) -> dict[str, Resumption]:
        """Return how each task that is to run goes on.

        Raises:
            NotResumableError: something that one of them needs can't be restored.
        """
        to_run = [task for task in self.tasks.values() if self._is_to_run(task)]
        folder = run_folder(self._readers, self.graph.id)
        problems = [] if self._is_forced else [*self._other_handlers(to_run), *self._lost_filters(to_run)]
        for task in to_run:
            problems += withheld(task)
        problems += missing_folder(folder, to_run)
        if problems:
            raise NotResumableError(named("graph", self.graph.title, self.graph.id), problems)
        return {task.id: self._resumption(task, folder) for task in to_run}

    def _resumption(self, task: Task, folder: str | None) -> Resumption:
        found = self.found.get(task.id)
        cwd = folder if task.cwd is None else None
        if found is None or task.id not in self._attempts:
            return Resumption(cwd=cwd)
        retry = task._view.retry
        policy = self.graph._policies.get(task.id)
        waits_s = None
        if found.verdict.then is Then.WAIT:
            waits_s = policy.delay_s(retry, random.random()) if policy is not None else 0.0  # noqa: S311
        return Resumption(retry, waits_s, cwd)

    def others(self) -> list[Task]:
        return [task for task in super().others() if task._has_news(self._ledger)]

    def note_environment(self) -> None:
        """Nothing: the note stays that of the environment in which the run was begun."""

    # --- what can't be restored --------------------------------------------------------------------------------------

    def _other_handlers(self, tasks: Sequence[Task]) -> list[str]:
        begun = self._begun.fact
        of_type = (begun.handlers if isinstance(begun, GraphRunStarted) else None) or {}
        problems: dict[tuple[str, str | None], str] = {}
        for task in tasks:
            attempt = self._attempts.get(task.id)
            recorded = attempt.handler if attempt is not None else of_type.get(task.type.value)
            problem = other_handler(self.executor, task, recorded)
            if problem is not None:
                problems.setdefault((task.type, recorded), problem)
        return list(problems.values())

    def _lost_filters(self, tasks: Sequence[Task]) -> list[str]:
        problems = []
        for task in tasks:
            spec, policy = self.members[task.id].retry_policy, self.graph._policies.get(task.id)
            names = spec.retry_on if spec is not None else None
            if names is not None and (policy is None or policy.retry_on is None):
                problems.append(
                    f"task '{task.title or task.id}' is retried only on {', '.join(names)}, and what that is can't be "
                    "restored: give the policy again with graph.add(…, retry_policy=…), or insist (force_handlers)"
                )
        return problems

    # --- taking it over ----------------------------------------------------------------------------------------------

    def opening(self) -> tuple[int, list[GraphFact]]:
        assert self._recovery is not None
        run, who = self._resumed, clock.whoami()
        facts: list[GraphFact] = []
        if run.status is RunStatus.RUNNING:
            facts.append(self._recovery.interrupted_run(run))
        if self._finally_only and run.cancel_requested_by is None:
            facts.append(GraphCancelRequested(who, FINALLY_ONLY))
        facts.append(GraphRunResumed(run.run, who, self._finally_only, self._is_forced))
        return run.run, facts

    def refused(self, refusal: Exception) -> Exception:
        return _resumed_by_another(self.graph, refusal)

    def errors(self) -> dict[str, BaseException]:
        return {
            task_id: RecordedError(attempt.exception, self.tasks[task_id].error or "")
            for task_id, attempt in self._attempts.items()
            if task_id in self._settled and attempt.exception is not None
        }

    def run(self) -> None:
        """Go on until nothing can change any more; see `TaskGraph.run`."""
        for task_id, resumption in self._resumptions.items():
            self.tasks[task_id]._resumption = resumption
        try:
            GraphRun(self).run()
        finally:
            for task in self.tasks.values():
                task._resumption = None


def _ends(found: Found) -> bool:
    return found.verdict.then is Then.NOTHING


class ResumedTask:
    """A task that ran by itself, and whose runner is gone.

    Raises:
        AlreadyRunningError: its runner lives. Nothing was written.
        NotResumableError: something can't be restored. Nothing was started or written.
    """

    def __init__(self, executor: TaskExecutor, store: LedgerStore, task: Task, *, force_handlers: bool) -> None:
        log = executor._journal.log
        assert log is not None
        self.task = task
        self._executor = executor
        recovery = Recovery(log.readers)
        self._found = recovery.find(task)
        self._upstream = self._upstream_of(store, self._found.attempt)
        self._policy: RetryPolicy | None = None
        self._resumption = Resumption()
        if self._found.attempt is not None and self._found.verdict.then in (Then.AGAIN, Then.WAIT):
            self._restore(log.readers, recovery, self._found.attempt, force_handlers)

    def _upstream_of(self, store: LedgerStore, attempt: AttemptState | None) -> dict[str, Task]:
        """Return the direct dependencies that an attempt in a graph had.

        Raises:
            TransitionError: its run can be resumed, and that is the way to go on.
        """
        if attempt is None or attempt.graph is None or attempt.graph not in store.graphs:
            return {}
        graph = store.graphs[attempt.graph]
        if graph.run_status in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
            raise TransitionError(
                f"{named('task', self.task.title, self.task.id)} is of a run of graph {graph.id}, which is interrupted "
                "too: resume that. Nothing was written"
            )
        return {parent.id: parent for parent in graph.dependencies(self.task)}

    def _restore(self, readers: Readers, recovery: Recovery, attempt: AttemptState, is_forced: bool) -> None:
        begun = next(readers.events(stream=f"task-{self.task.id}", after=attempt.position - 1, limit=1))
        assert isinstance(begun.fact, TaskStarted)
        spec = begun.fact.retry_policy
        problems = withheld(self.task)
        other = other_handler(self._executor, self.task, attempt.handler)
        if other is not None and not is_forced:
            problems.append(other)
        if spec is not None and spec.retry_on is not None and not is_forced:
            problems.append(
                f"it is retried only on {', '.join(spec.retry_on)}, and what that is can't be restored: "
                "execute it with its policy, or insist (force_handlers)"
            )
        runner = recovery.liveness.runner(attempt.runner)
        folder = begun.fact.cwd or (runner.cwd if runner is not None else None)
        if folder is not None and self.task.cwd is None and not Path(folder).is_dir():
            problems.append(
                f"the folder {folder}, in which it ran, is not there: make it again, or execute it from here"
            )
        if problems:
            raise NotResumableError(named("task", self.task.title, self.task.id), problems)
        self._policy = RetryPolicy.of(spec) if spec is not None else None
        retry, waits_s = self.task._view.retry, None
        if self._found.verdict.then is Then.WAIT:
            waits_s = self._policy.delay_s(retry, random.random()) if self._policy is not None else 0.0  # noqa: S311
        self._resumption = Resumption(retry, waits_s, folder if folder != working_directory() else None)

    def run(self) -> None:
        """End what is left of it, record that it was interrupted, and run it again where that is its answer."""
        task, executor = self.task, self._executor
        try:
            executor._recover([self._found])
        except StreamConflictError as conflict:
            raise _resumed_by_another(task, conflict) from conflict
        if self._found.verdict.then not in (Then.AGAIN, Then.WAIT):
            return
        task._resumption = self._resumption
        before = task.attempts
        try:
            executor.execute(task, self._upstream, retry_policy=self._policy)
        except LedgerUnwritableError:
            raise
        except StreamConflictError as conflict:
            raise _resumed_by_another(task, conflict) from conflict
        except Exception:
            if task.attempts == before and not task.is_cancelled:  # it did not even start
                raise
        finally:
            task._resumption = None


def _resumed_by_another(handle: Task | TaskGraph, conflict: Exception) -> AlreadyRunningError:
    kind = "task" if isinstance(handle, Task) else "graph"
    return AlreadyRunningError(
        f"somebody else has resumed or changed {named(kind, handle.title, handle.id)} meanwhile: {conflict}"
    )


def other_handler(executor: TaskExecutor, task: Task, recorded: str | None) -> str | None:
    """Say that what is registered now is not what was to run the task; None: it is, or nothing was recorded."""
    handler = executor._handlers.get(task.type)
    current = qualified_name(handler) if handler is not None else None
    if recorded is None or current == recorded:
        return None
    is_now = f"it is {current} that is registered now" if current is not None else "none is registered now"
    return (
        f"{task.type} tasks such as '{task.title or task.id}' were run by {recorded}, and {is_now}: register that one, "
        "or insist (force_handlers, --force-handlers)"
    )


def run_folder(readers: Readers, graph_id: str) -> str | None:
    """Return the folder that the latest run of a graph was started in; None: this process is in it, or it never ran."""
    latest = EventFilter(f"graph-{graph_id}", types=(GraphRunStarted.__name__,), newest_first=True, limit=1)
    for event in readers.matching(latest):
        runner = readers.runner(event.runner) if event.runner is not None else None
        folder = event.fact.cwd if isinstance(event.fact, GraphRunStarted) else None
        folder = folder or (runner.cwd if runner is not None else None)
        return folder if folder != working_directory() else None
    return None


def missing_folder(folder: str | None, to_run: Sequence[Task]) -> list[str]:
    """Say where the folder of a run is gone in which one of its tasks is to run."""
    inside = next((task for task in to_run if task.cwd is None), None)
    if inside is None or folder is None or Path(folder).is_dir():
        return []
    return [
        f"the folder {folder}, in which the run was started, is not there, and task "
        f"'{inside.title or inside.id}' runs in it: make it again"
    ]


def withheld(task: Task) -> list[str]:
    """Say what the ledger withholds of a task that is to run, and how to give it again."""
    missing = task._given.missing(task._view)
    is_env_only = all(name.startswith("env[") for name in missing)  # the command can give variables, but no texts
    return [
        f"task '{task.title or task.id}' needs its {name}, which the ledger withholds: give it again "
        f"({_how(name, by_command=is_env_only)})"
        for name in missing
    ]


def _how(name: str, *, by_command: bool) -> str:
    if name.startswith("env["):
        variable = name.removeprefix("env['").removesuffix("']")
        in_python = f"task.give_again(env={{'{variable}': …}})"
        return f"--env {variable}, from the environment; or {in_python}" if by_command else in_python
    return f"task.give_again({name}=…)"
