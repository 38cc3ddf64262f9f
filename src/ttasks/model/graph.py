"""`TaskGraph`: tasks, what each depends on, and how far they are."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NoReturn, Self

import ttasks
from ttasks import clock
from ttasks.errors import AlreadyRunningError
from ttasks.events.facts import GraphCreated, GraphFact, GraphRevised, Member, Source
from ttasks.events.status import RunStatus, TaskStatus
from ttasks.model.checks import check_bool
from ttasks.model.retry import RetryPolicy
from ttasks.model.task import Task
from ttasks.model.task_view import Keeper
from ttasks.public import public
from ttasks.state.graph import GraphState
from ttasks.state.naming import named
from ttasks.state.planner import check
from ttasks.state.reconcile import Then, reconcile


@dataclass(frozen=True)
class GraphProposal:
    """What a graph wants recorded: facts for its stream, of which it has seen `expected` events."""

    facts: Sequence[GraphFact]
    expected: int
    pending: tuple[Member, ...] = ()
    title: str | None = None
    kept: tuple[GraphFact, ...] = ()


class RecordedError(Exception):
    """An error of an earlier run, as it was recorded: `type` is the qualified name of what was raised."""

    def __init__(self, type: str, text: str) -> None:
        super().__init__(text)
        self.type = type
        self.text = text

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return RecordedError, (self.type, self.text)


class TaskGraph:
    """Tasks in dependency order, with finally tasks that run whatever happened before.

    Args:
        title: what people call it.

    ``graph[task] = [dependency, …]`` is ``graph.add(task, after=[dependency, …])``, and ``graph[task]`` gives the
    direct dependencies. Iterating gives the tasks in insertion order. It is safe to use from several threads.
    """

    def __init__(self, *, title: str = "") -> None:
        if not isinstance(title, str):
            raise TypeError(f"title must be a str, got {type(title).__name__}")
        self._id = clock.new_id()
        self._title = title
        self._created_at = clock.now()
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()
        self._keeper: Keeper | None = None
        self._recording = threading.RLock()
        self._tasks: dict[str, Task] = {}
        self._not_added: dict[str, Task] = {}
        self._members: dict[str, Member] = {}
        self._policies: dict[str, RetryPolicy] = {}
        self._changed: dict[str, Member] = {}
        self._revised_title: str | None = None
        self._kept: list[GraphFact] = []
        self._ledger: str | None = None
        self._seen: dict[str, int] = {}
        self._state: GraphState | None = None
        self._source: Source | None = None
        self._max_workers: int | None = None
        self._derived_from: str | None = None
        self._errors: dict[str, BaseException] = {}

    @classmethod
    def _load(cls, state: GraphState, tasks: dict[str, Task], ledger: str) -> TaskGraph:
        """Return a handle over what a ledger holds of a graph; `tasks` holds every member."""
        graph = object.__new__(cls)
        graph._id, graph._title, graph._created_at = state.id, state.title, state.created_at
        graph._begin()
        graph._members = dict(state.members)
        graph._source, graph._max_workers = state.source, state.max_workers
        graph._derived_from = state.derived_from
        graph._tasks = {task_id: tasks[task_id] for task_id in state.members}
        graph._policies = {
            task_id: RetryPolicy.of(member.retry_policy)
            for task_id, member in state.members.items()
            if member.retry_policy is not None
        }
        graph._errors = {
            task_id: RecordedError(error["type"], error["text"]) for task_id, error in state.errors.items()
        }
        graph._committed(ledger, state, GraphProposal((), 0))
        return graph

    # --- building ----------------------------------------------------------------------------------------------------

    def add(
        self,
        task: Task,
        *,
        after: Iterable[Task] = (),
        finally_: bool = False,
        required: bool = True,
        retry_policy: RetryPolicy | None = None,
    ) -> Task:
        """Put `task` into the graph, or replace what it depends on and its flags; return it.

        Args:
            task: the task.
            after: its direct dependencies; they may be added to the graph later. Repeated ones count once.
            finally_: it runs when no dependency can change any more, whatever became of them.
            required: whether the graph is ok only if it succeeds; False is only for finally tasks.
            retry_policy: how often it is tried.

        Raises:
            TypeError: a value of the wrong type. Nothing was changed.
            ValueError: `required=False is only valid with finally_=True`. Nothing was changed.
        """
        if not isinstance(task, Task):
            raise TypeError(f"Expected Task, got {type(task).__name__}")
        if isinstance(after, Task | str):
            raise TypeError(f"after must be an iterable of Task, got {type(after).__name__}")
        dependencies = list(after)
        for dependency in dependencies:
            if not isinstance(dependency, Task):
                raise TypeError(f"Expected Task dependency, got {type(dependency).__name__}")
        check_bool(finally_, "finally_")
        check_bool(required, "required")
        if retry_policy is not None and not isinstance(retry_policy, RetryPolicy):
            raise TypeError(f"retry_policy must be a RetryPolicy, got {retry_policy!r}")
        if not required and not finally_:
            raise ValueError("required=False is only valid with finally_=True")
        ids = tuple(dict.fromkeys(dependency.id for dependency in dependencies))
        member = Member(task.id, ids, finally_, required, retry_policy.spec() if retry_policy is not None else None)
        with self._lock:
            self._tasks[task.id] = task
            self._not_added.pop(task.id, None)
            self._not_added.update(
                (dependency.id, dependency) for dependency in dependencies if dependency.id not in self._tasks
            )
            self._members[task.id] = member
            self._changed[task.id] = member
            self._policies.pop(task.id, None)
            if retry_policy is not None:
                self._policies[task.id] = retry_policy
        return task

    def __setitem__(self, task: Task, after: Iterable[Task]) -> None:
        self.add(task, after=after)

    @property
    def id(self) -> str:
        """A uuid, fixed at birth."""
        return self._id

    @property
    def created_at(self) -> datetime:
        """When it was made: aware UTC."""
        return self._created_at

    @property
    def derived_from(self) -> str | None:
        """The id of the graph that this one carries on; see `retry`."""
        return self._derived_from

    @property
    def title(self) -> str:
        """What people call it."""
        return self._title

    @title.setter
    def title(self, value: str) -> None:
        if not isinstance(value, str):
            raise TypeError(f"title must be a str, got {type(value).__name__}")
        with self._lock:
            self._title = self._revised_title = value

    # --- looking -----------------------------------------------------------------------------------------------------

    def dependencies(self, task: Task) -> list[Task]:
        """Return the direct dependencies of `task` in declaration order, also those that are not added yet.

        Raises:
            KeyError: the task is not in the graph.
        """
        return [self._known(task_id) for task_id in self._member(task).after]

    def _known(self, task_id: str) -> Task:
        task = self._tasks.get(task_id)
        return task if task is not None else self._not_added[task_id]

    def __getitem__(self, task: Task) -> list[Task]:
        return self.dependencies(task)

    def _member(self, task: Task) -> Member:
        if not isinstance(task, Task):
            raise TypeError(f"Expected Task, got {type(task).__name__}")
        return self._members[task.id]

    def __contains__(self, task: object) -> bool:
        return isinstance(task, Task) and task.id in self._members

    def __iter__(self) -> Iterator[Task]:
        return iter([task for task, _ in self._placed()])

    def __len__(self) -> int:
        return len(self._members)

    def items(self) -> list[tuple[Task, list[Task]]]:
        """Return each task with its direct dependencies, in insertion order."""
        return [(task, self.dependencies(task)) for task in self]

    def is_finally(self, task: Task) -> bool:
        """True when `task` runs whatever happened before. KeyError: it is not in the graph."""
        return self._member(task).is_finally

    def is_optional(self, task: Task) -> bool:
        """True when the graph can be ok without `task` succeeding. KeyError: it is not in the graph."""
        return not self._member(task).is_required

    def _placed(self) -> list[tuple[Task, Member]]:
        """Return each task with its place, as of one moment."""
        with self._lock:
            return [(self._tasks[task_id], member) for task_id, member in self._members.items()]

    def _where(self, *statuses: TaskStatus, required: bool | None = None) -> list[Task]:
        return [
            task
            for task, member in self._placed()
            if (not statuses or task.status in statuses) and (required is None or member.is_required is required)
        ]

    @property
    def succeeded(self) -> list[Task]:
        """The tasks that succeeded."""
        return self._where(TaskStatus.SUCCEEDED)

    @property
    def failed(self) -> list[Task]:
        """The tasks whose latest attempt failed."""
        return self._where(TaskStatus.FAILED)

    @property
    def cancelled(self) -> list[Task]:
        """The tasks that were cancelled."""
        return self._where(TaskStatus.CANCELLED)

    @property
    def blocked(self) -> list[Task]:
        """The tasks that a dependency kept from running."""
        return self._where(TaskStatus.BLOCKED)

    @property
    def interrupted(self) -> list[Task]:
        """The tasks whose runner died."""
        return self._where(TaskStatus.INTERRUPTED)

    @property
    def finally_tasks(self) -> list[Task]:
        """The tasks that run whatever happened before."""
        return [task for task, member in self._placed() if member.is_finally]

    @property
    def optional_tasks(self) -> list[Task]:
        """The tasks that need not succeed."""
        return self._where(required=False)

    @property
    def required_tasks(self) -> list[Task]:
        """The tasks that have to succeed."""
        return self._where(required=True)

    @property
    def optional_failed(self) -> list[Task]:
        """The tasks that failed and need not have succeeded."""
        return self._where(TaskStatus.FAILED, required=False)

    @property
    def required_failed(self) -> list[Task]:
        """The tasks that failed and had to succeed."""
        return self._where(TaskStatus.FAILED, required=True)

    @property
    def required_blocked(self) -> list[Task]:
        """The tasks that were blocked and had to succeed."""
        return self._where(TaskStatus.BLOCKED, required=True)

    def roots(self) -> list[Task]:
        """Return the tasks that depend on nothing."""
        return [task for task, member in self._placed() if not member.after]

    def leaves(self) -> list[Task]:
        """Return the tasks that nothing depends on."""
        placed = self._placed()
        depended_on = {dependency for _, member in placed for dependency in member.after}
        return [task for task, _ in placed if task.id not in depended_on]

    @property
    def errors(self) -> dict[str, BaseException]:
        """What each task's latest run raised, by task id; a loaded graph has `RecordedError` in their place."""
        return dict(self._errors)

    @property
    def ok(self) -> bool:
        """True when every required task SUCCEEDED and has no error."""
        return all(task.is_succeeded and task.id not in self._errors for task in self.required_tasks)

    @property
    def run_status(self) -> RunStatus | None:
        """Where its latest recorded run stands; None where there is none."""
        return self._state.run_status if self._state is not None else None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a TaskGraph can't be copied or pickled: save it, and load it where it is needed by its id")

    def __repr__(self) -> str:
        def title(task_id: str) -> str:
            return self._known(task_id).title or task_id

        placed = self._placed()
        edges = [f"{title(dependency)}->{title(task.id)}" for task, member in placed for dependency in member.after]
        return f"TaskGraph({len(placed)} tasks, edges=[{', '.join(edges)}])"

    # --- running -----------------------------------------------------------------------------------------------------

    def run(self, executor: ttasks.TaskExecutor, max_workers: int = 4) -> Self:
        """Run the tasks that are not done, each when its dependencies have succeeded, and return the graph.

        Args:
            executor: what runs them.
            max_workers: how many run at the same time, at least 1.

        Raises:
            TypeError: `executor must be a TaskExecutor`, or `max_workers`. Nothing was run or written.
            ValueError: `max_workers`, a cycle, a dependency that is not in the graph, a task that runs already.
                Nothing was run or written.
            LedgerUnwritableError: the ledger was lost. What ran has ended, nothing more was started.
            KeyboardInterrupt: Ctrl-C. Running tasks were cancelled, finally tasks were run.

        A failed task is no exception: look at `ok`, `failed` and `errors`.
        """
        if isinstance(executor, type) or not callable(getattr(executor, "run_graph", None)):
            got = repr(executor) if isinstance(executor, type) else type(executor).__name__
            raise TypeError(f"executor must be a TaskExecutor, got {got}: graph.run(TaskExecutor(store))")
        executor.run_graph(self, max_workers)
        return self

    def retry(self, tasks: Iterable[Task] | None = None) -> TaskGraph:
        """Return a new graph that carries on where this one ended; nothing is recorded or run by that.

        Args:
            tasks: tasks of this graph that are to be done again, with all that depends on them, though they may have
                SUCCEEDED. None: only what has not.

        What SUCCEEDED is shared with the new graph, and counts as done there. Everything else, and every finally task,
        is a fresh PENDING task in its place, with the same name. `derived_from` tells where each comes from.

        Raises:
            TypeError: `tasks` holds something else than tasks.
            ValueError: a task is RUNNING, or not in this graph; or was interrupted, waits for a person's answer, and is
                not named in `tasks`: doing it again may be doing it twice.
        """
        again = [] if tasks is None else list(tasks)
        for task in again:
            if not isinstance(task, Task):
                raise TypeError(f"Expected Task, got {type(task).__name__}")
        with self._lock:
            placed, policies = self._placed(), dict(self._policies)
            about = (self._title, self._source, self._max_workers)
        for task in again:
            if task.id not in {member.task for _, member in placed}:
                raise ValueError(f"{named('task', task.title, task.id)} is not in the graph; nothing was changed")
        for task, _ in placed:
            if task.is_running or task._view.is_owned:
                raise ValueError(
                    f"task '{task.title or task.id}' is RUNNING ({task.id}): wait for it, or cancel it, before a retry"
                )
            if task not in again and reconcile(task._view, is_alive=False).then is Then.PERSON:
                raise ValueError(
                    f"{named('task', task.title, task.id)} was interrupted and waits for a person, so that it is not "
                    "done twice: say what it counts as (store.tasks.resolve), or name it to do it again. "
                    "Nothing was changed"
                )
        repeated = _with_dependents({task.id for task in again}, placed)
        fresh = {
            task.id: task._again() if member.is_finally or not task.is_succeeded or task.id in repeated else task
            for task, member in placed
        }
        graph = type(self)(title=about[0])
        graph._source, graph._max_workers, graph._derived_from = about[1], about[2], self._id
        for task, member in placed:
            graph.add(
                fresh[task.id],
                after=[fresh[parent] if parent in fresh else self._known(parent) for parent in member.after],
                finally_=member.is_finally,
                required=member.is_required,
                retry_policy=policies.get(task.id),
            )
        return graph

    def _enter_run(self, ledger: str | None) -> None:
        """Take note that it runs: it, and its tasks, belong to `ledger` (None: to none) until `_leave_run`.

        Raises:
            AlreadyRunningError: it runs already, here.
        """
        with self._lock:
            if self._keeper is not None:
                raise AlreadyRunningError(
                    f"{named('graph', self._title, self._id)} is running already. Nothing was written"
                )
            keeper = self._keeper = Keeper(ledger)
            tasks = list(self._tasks.values())
        for task in tasks:
            task._keep_for_run(keeper)

    def _leave_run(self) -> None:
        with self._lock:
            keeper, self._keeper = self._keeper, None
            tasks = list(self._tasks.values())
        if keeper is not None:
            for task in tasks:
                task._let_go(keeper)

    def _check(self) -> None:
        """Refuse a graph that can't be run: see `run`."""
        check(self._members, {task_id: task.title or task_id for task_id, task in self._tasks.items()})

    # --- for whoever records it --------------------------------------------------------------------------------------

    def _proposal(self, ledger: str) -> GraphProposal:
        """Return what is to be recorded of this handle in a ledger, its tasks aside; no facts: nothing."""
        with self._lock:
            changed, title = tuple(self._changed.values()), self._revised_title
            seen = self._seen.get(ledger, 0)
            if self._ledger == ledger:
                kept = tuple(self._kept)
                revised = (GraphRevised(changed, title),) if changed or title is not None else ()
                return GraphProposal((*revised, *kept), seen, changed, title, kept)
            dropped = tuple(self._kept)  # of runs that this ledger knows nothing of
            if not seen:
                return GraphProposal((self._created(),), 0, changed, title, dropped)
            anew = GraphRevised(tuple(self._members.values()), self._title)
            return GraphProposal((anew,), seen, changed, title, dropped)

    def _created(self) -> GraphCreated:
        members = tuple(self._members.values())
        about = (self._source, self._max_workers, self._derived_from)
        return GraphCreated(self._title, self._created_at, members, *about)

    def _reimport(self, expected: int) -> GraphProposal:
        """Return what brings back a graph that was deleted, whatever this handle has seen."""
        with self._lock:
            changed, kept = tuple(self._changed.values()), tuple(self._kept)
            return GraphProposal((self._created(), *kept), expected, changed, self._revised_title, kept)

    def _committed(self, ledger: str, state: GraphState, proposal: GraphProposal) -> None:
        """Take note that a ledger now has the graph at `state`, what `proposal` holds included.

        While it belongs to a run that is recorded elsewhere, the ledger has a snapshot and nothing more.
        """
        with self._lock:
            if self._keeper is not None and self._keeper.ledger != ledger:
                self._seen[ledger] = state.version
                return
            self._ledger = ledger
            self._seen[ledger] = state.version
            self._state = state
            for member in proposal.pending:
                if self._changed.get(member.task) is member:
                    del self._changed[member.task]
            if self._revised_title == proposal.title:
                self._revised_title = None
            self._kept = [fact for fact in self._kept if fact not in proposal.kept]

    def _advance(self, fact: GraphFact) -> None:
        """Keep a fact that the ledger could not be told: whoever records the graph next tells it."""
        with self._lock:
            self._kept.append(fact)


def _with_dependents(wanted: set[str], placed: Sequence[tuple[Task, Member]]) -> set[str]:
    """Return `wanted` and everything that depends on it, directly or not."""
    children: dict[str, list[str]] = {}
    for _, member in placed:
        for parent in member.after:
            children.setdefault(parent, []).append(member.task)
    found, left = set(wanted), list(wanted)
    while left:
        new = [child for child in children.get(left.pop(), ()) if child not in found]
        found.update(new)
        left += new
    return found


public(TaskGraph, RecordedError)
