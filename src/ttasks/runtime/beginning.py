"""What a run of a graph begins with: what is refused, what dead runners left, and the facts that open it."""

from __future__ import annotations

from ttasks.errors import AlreadyRunningError
from ttasks.events.facts import GraphFact, GraphRunStarted, Member
from ttasks.events.status import RunStatus
from ttasks.log.environment import forget_environment, keep_environment
from ttasks.model.graph import TaskGraph
from ttasks.model.task import Task
from ttasks.runtime.executor import TaskExecutor
from ttasks.state.naming import named
from ttasks.state.reconcile import Claim, Then, claim
from ttasks.stores.recovery import Found, Recovery


class Beginning:
    """The beginning of a new run. Making it looks at everything, and writes nothing.

    `found` are, by id, the tasks that a runner which is gone left, or that are interrupted. `is_cancelled`: only
    finally tasks are to run.

    Raises:
        TypeError, ValueError: `graph`, `max_workers`; a cycle, or a dependency that is not in the graph.
        AlreadyRunningError: the graph, or a task of it, runs.
        WithheldError: a task lacks what its ledger withholds.
    """

    is_cancelled = False

    def __init__(self, executor: TaskExecutor, graph: TaskGraph, max_workers: int) -> None:
        if not isinstance(graph, TaskGraph):
            raise TypeError(f"graph must be a TaskGraph, got {type(graph).__name__}")
        if isinstance(max_workers, bool) or not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be an int, got {type(max_workers).__name__}")
        if max_workers < 1:
            raise ValueError(f"max_workers must be greater than 0, got {max_workers}")
        graph._check()
        self.executor = executor
        self.graph = graph
        self.max_workers = max_workers
        self.tasks: dict[str, Task] = {task.id: task for task in graph}
        self.members: dict[str, Member] = dict(graph._members)
        log = executor._journal.log
        self._recovery = Recovery(log.readers) if log is not None else None
        self._check()
        self.found = self._find()

    def _check(self) -> None:
        """Refuse a graph that can't be run now. Nothing was written."""
        if self.graph.run_status is RunStatus.RUNNING and (
            self._recovery is None or self._recovery.liveness.is_graph_run(self.graph.id)
        ):
            raise running_already(self.graph)
        for task in self.tasks.values():
            if not task.status.is_sink:
                task._check_whole()

    def _find(self) -> dict[str, Found]:
        """Return by id the tasks that a runner which is gone left, or that are interrupted.

        Raises:
            AlreadyRunningError: one is RUNNING. Nothing was written.
        """
        found: dict[str, Found] = {}
        for task in self.tasks.values():
            if claim(task._view) is Claim.SETTLED:
                continue
            if self._recovery is None and (task.is_running or task._view.is_owned):
                raise AlreadyRunningError(
                    f"task '{task.title or task.id}' is RUNNING ({task.id}): the graph can't be run. "
                    "Nothing was written"
                )
            if self._recovery is not None:
                found[task.id] = self._recovery.find(task, is_run_cancelled=self._is_given_up(task))
        return found

    def _is_given_up(self, task: Task) -> bool:  # noqa: ARG002 - a run that is resumed may have been cancelled
        """True for a task that a cancel of the run ends."""
        return False

    def others(self) -> list[Task]:
        """Return the tasks, other than those found, that the ledger may have to be told of."""
        return [task for task in self.tasks.values() if task.id not in self.found]

    def held(self) -> set[str]:
        """Return the tasks that stay as they are in this run, though they might run in another."""
        return {task_id for task_id, found in self.found.items() if found.verdict.then is Then.PERSON}

    def opening(self) -> tuple[int, list[GraphFact]]:
        """Return the number of the run, and the facts that begin it."""
        runs = self._recovery.runs(self.graph.id) if self._recovery is not None else []
        facts: list[GraphFact] = []
        if self._recovery is not None and runs and runs[-1].status is RunStatus.RUNNING:
            facts.append(self._recovery.interrupted_run(runs[-1]))
        number, ids = len(runs) + 1, list(self.members)
        place = {task_id: index for index, task_id in enumerate(ids)}
        members = self.members.values()
        started = GraphRunStarted(
            run=number,
            max_workers=self.max_workers,
            tasks=tuple(ids),
            edges=tuple((place[member.task], place[parent]) for member in members for parent in member.after),
            finally_tasks=tuple(place[member.task] for member in members if member.is_finally),
            optional_tasks=tuple(place[member.task] for member in members if not member.is_required),
            handlers=self.executor._handler_names({task.type for task in self.tasks.values()}),
            cwd=log.moved_to() if (log := self.executor._journal.log) is not None else None,
        )
        return number, [*facts, started]

    def note_environment(self) -> None:
        """Note beside the ledger what the run began in, for whoever goes on with it. It never fails."""
        if (log := self.executor._journal.log) is not None and log.path is not None:
            keep_environment(log.path, self.graph.id, log.redaction)

    def forget_environment(self) -> None:
        """Remove that note: the run has succeeded, and with it all that it carried on with."""
        if (log := self.executor._journal.log) is None or log.path is None:
            return
        forget_environment(log.path, self.graph.id)
        before = self.graph._derived_from
        while before is not None:
            forget_environment(log.path, before)
            state = log.readers.graph(before)
            before = state.derived_from if state is not None else None

    def errors(self) -> dict[str, BaseException]:
        """Return what was raised in this run before this process took it over."""
        return {}

    def refused(self, refusal: Exception) -> Exception:
        """Return what to raise where the beginning could not be recorded."""
        recovery = self._recovery
        return running_already(self.graph) if recovery is not None and recovery.is_running(self.graph.id) else refusal


def running_already(graph: TaskGraph) -> AlreadyRunningError:
    return AlreadyRunningError(f"{named('graph', graph.title, graph.id)} is running already. Nothing was written")
