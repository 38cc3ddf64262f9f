"""What runners that are gone left in a ledger, by its rows and the operating system. Nothing is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime

from ttasks.events.status import RunStatus, TaskStatus
from ttasks.log.liveness import Liveness
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers, lacks
from ttasks.log.replay import Past
from ttasks.model.interrupted import Interrupted, Owed
from ttasks.state import next_steps
from ttasks.state.graph import GraphState, RunState
from ttasks.state.next_steps import Step
from ttasks.state.reconcile import WAITING, Claim, Then, claim, reconcile
from ttasks.state.task import AttemptState, TaskState
from ttasks.stores.recovery import gone, without_runner


class Leftovers:
    """What is left of one ledger's runs and attempts, as of this moment."""

    def __init__(self, readers: Readers | Past) -> None:
        self._readers = readers
        self._liveness = Liveness(readers)

    def interrupted(self) -> list[Interrupted]:
        """Return what was interrupted: graphs, then tasks that ran by themselves, each in (created_at, id) order."""
        found = [self._graph(graph, run, tasks) for graph, run, tasks in self._open_runs()]
        told = {task_id for work in found for task_id in (*work.running, *work.asking)}
        return found + [work for work in self._tasks() if work.id not in told]

    def owed(self) -> list[Owed]:
        """Return the finally tasks that are owed, in the order of their graphs, and in each graph's order."""
        found = []
        for graph, run, tasks in self._left_runs():
            is_over = run.status is not RunStatus.RUNNING and run.status is not RunStatus.INTERRUPTED
            for member in graph.members.values():
                task = tasks[member.task]
                if member.is_finally and self._is_owed(task) and not (is_over and task.status is TaskStatus.PENDING):
                    asks = self.then(task) is Then.PERSON
                    found.append(Owed(graph.id, task.id, task.title, asks))
        return found

    def steps_of_graph(self, graph_id: str) -> list[Step]:
        """Return what a person can do next about a graph and its tasks; nothing for one that was deleted."""
        found = self._readers.graph_with_tasks(graph_id)
        if found is None or found[0].is_deleted:
            return []
        graph, tasks = found
        runs = self._readers.runs(graph_id, newest_first=True, limit=1)
        status = self.run_status(runs[0]) if runs else None
        is_cancelled = bool(runs) and runs[0].cancel_requested_by is not None
        left = {id_ for id_ in graph.members if not tasks[id_].is_deleted and self.is_left(tasks[id_])}
        return next_steps.for_graph(
            graph_id, status, graph.members, tasks, left, graph.errors.keys(), is_cancelled=is_cancelled
        )

    def steps_of_task(self, task: TaskState) -> list[Step]:
        """Return what a person can do next about a task that was left, and about its graph; nothing for any other."""
        if task.is_deleted or not self.is_left(task):
            return []
        latest = next(iter(self._readers.attempts(task.id)[-1:]), None)
        graph_id = latest.graph if latest is not None else None
        if graph_id is not None and (steps := self.steps_of_graph(graph_id)):
            return next_steps.of_task(steps, task.id, graph_id)
        return next_steps.for_task(task)

    def is_interrupted(self, run: RunState) -> bool:
        """True for a run that is recorded as interrupted, or that nobody runs any more."""
        while run.status is RunStatus.RUNNING:
            if self._liveness.runs(f"graph-{run.graph_id}", run.runner):
                return False
            # It may have ended after it was read and before its runner was looked for; from now on it can't.
            now = self._readers.latest_run(run.graph_id)
            if now == run:
                return True
            run = now
        return run.status is RunStatus.INTERRUPTED

    def is_left(self, task: TaskState) -> bool:
        """True for a task that was interrupted, recorded or not, or whose retry nobody waits for any more."""
        while claim(task) in (Claim.RUNS, Claim.WAITS):
            if self._liveness.is_run(task):
                return False
            now = self._readers.task(task.id)  # as in `is_interrupted`
            if now is None or now.version == task.version:
                return now is not None
            task = now
        return claim(task) is Claim.INTERRUPTED

    def run_status(self, run: RunState) -> RunStatus:
        """Return where a run stands, as far as this host can tell."""
        return RunStatus.INTERRUPTED if self.is_interrupted(run) else run.status

    def counts(self, status: RunStatus | str, counts: Mapping[str, int]) -> dict[str, int]:
        """Return how many tasks of a run stand where: in one that was interrupted nobody runs, or waits for, any."""
        told = dict(counts)
        if status == RunStatus.INTERRUPTED:
            for claimed in (TaskStatus.RUNNING, WAITING):
                left = told.pop(claimed, 0)
                if left:
                    told[TaskStatus.INTERRUPTED] = told.get(TaskStatus.INTERRUPTED, 0) + left
        return told

    def task_status(self, task: TaskState) -> tuple[str, str]:
        """Return where a task stands, as far as this host can tell, and what there is to say about that.

        It is a `TaskStatus`, or `WAITING` for a task that waits for its retry.
        """
        if not self.is_left(task):
            if task.retry_due_at is not None:
                due = task.retry_due_at.astimezone().strftime("%H:%M:%S")
                return WAITING, f"attempt {task.attempts} failed, the next is due at {due}"
            return task.status, ""
        note = "it waits for a person" if self.then(task) is Then.PERSON else ""
        if claim(task) is Claim.INTERRUPTED:
            return TaskStatus.INTERRUPTED, note
        what = "its retry was to follow" if claim(task) is Claim.WAITS else "it was running"
        return TaskStatus.INTERRUPTED, "; ".join(filter(None, [f"{what}: {self.why(task)}", note]))

    def then(self, task: TaskState, *, is_run_cancelled: bool = False) -> Then:
        """Return what a resumed run does with a task that is left."""
        return reconcile(task, is_alive=False, is_run_cancelled=is_run_cancelled).then

    def why(self, task: TaskState) -> str:
        """Say what is known of how a task that is left was interrupted."""
        if claim(task) is Claim.INTERRUPTED:
            return task.error or "it was interrupted"
        owner = self._liveness.owner(task)
        return gone(self._liveness.runner(owner)) if owner is not None else without_runner(task)

    # ---

    def _open_runs(self) -> Iterator[tuple[GraphState, RunState, dict[str, TaskState]]]:
        for graph_id in self._readers.open_graphs():
            run = self._readers.latest_run(graph_id)
            if self.is_interrupted(run):
                yield self._whole(graph_id, run)

    def _left_runs(self) -> Iterator[tuple[GraphState, RunState, dict[str, TaskState]]]:
        """Yield the interrupted runs, and those that ended without one of their finally tasks."""
        wanted = dict.fromkeys([*self._readers.open_graphs(), *self._readers.graphs_with_finally_left()])
        for graph_id in wanted:
            run = self._readers.latest_run(graph_id)
            if run.status is not RunStatus.RUNNING or self.is_interrupted(run):
                yield self._whole(graph_id, run)

    def _whole(self, graph_id: str, run: RunState) -> tuple[GraphState, RunState, dict[str, TaskState]]:
        found = self._readers.graph_with_tasks(graph_id)
        if found is None:
            raise lacks(self._readers.path, f"graph {graph_id}")
        return found[0], run, found[1]

    def _is_owed(self, task: TaskState) -> bool:
        return task.status is TaskStatus.PENDING or self.is_left(task)

    def _graph(self, graph: GraphState, run: RunState, tasks: dict[str, TaskState]) -> Interrupted:
        is_cancelled = run.cancel_requested_by is not None
        running, asking, left, owed = list[str](), list[str](), list[str](), list[str]()
        for member in graph.members.values():
            task = tasks[member.task]
            is_given_up = is_cancelled and not member.is_finally
            if self.is_left(task):
                then = self.then(task, is_run_cancelled=is_given_up)
                if then in (Then.AGAIN, Then.WAIT):
                    running.append(task.id)
                elif then is Then.PERSON:
                    asking.append(task.id)
            elif task.status is TaskStatus.PENDING and not is_given_up:
                left.append(task.id)
            if member.is_finally and self._is_owed(task):
                owed.append(task.id)
        runner = self._liveness.runner(run.runner)
        why = run.why if run.status is RunStatus.INTERRUPTED and run.why else gone(runner)
        heard_at = max(filter(None, (self._task_heard_at(tasks[id_]) for id_ in running)), default=None)
        return Interrupted(
            kind="graph",
            id=graph.id,
            title=graph.title,
            run=run.run,
            why=why,
            heard_at=heard_at or run.finished_at or self._heard_at(f"graph-{graph.id}"),
            running=tuple(running),
            asking=tuple(asking),
            left=tuple(left),
            owed=tuple(owed),
            is_cancelled=is_cancelled,
        )

    def _tasks(self) -> Iterator[Interrupted]:
        open_graphs = set(self._readers.open_graphs())
        for task in self._readers.claimed_tasks():
            latest = next(iter(self._readers.attempts(task.id)[-1:]), None)
            if not self.is_left(task) or self._is_in_open_run(latest, open_graphs):
                continue
            then = self.then(task)
            yield Interrupted(
                kind="task",
                id=task.id,
                title=task.title,
                run=None,
                why=self.why(task),
                heard_at=self._task_heard_at(task),
                running=(task.id,) if then in (Then.AGAIN, Then.WAIT) else (),
                asking=(task.id,) if then is Then.PERSON else (),
                left=(),
                owed=(),
                is_cancelled=task.cancel_requested_by is not None,
            )

    def _is_in_open_run(self, attempt: AttemptState | None, open_graphs: Collection[str]) -> bool:
        """True when the attempt's run is, or can be, going on: what became of its tasks is told with it."""
        if attempt is None or attempt.graph not in open_graphs:
            return False
        runs = self._readers.runs(attempt.graph, newest_first=True, limit=1)
        return bool(runs) and runs[0].run == attempt.run

    def _task_heard_at(self, task: TaskState) -> datetime | None:
        """Return when whoever ran the task was last heard of, and not whoever found that out or decided upon it."""
        if claim(task) is Claim.INTERRUPTED and task.result is not None:
            return task.result.finished_at
        return self._heard_at(f"task-{task.id}", without=("TaskCancelRequested", "TaskRevised"))

    def _heard_at(self, stream: str, without: tuple[str, ...] = ()) -> datetime | None:
        latest = EventFilter(stream, without=without, newest_first=True, limit=1)
        return next((event.recorded_at for event in self._readers.matching(latest)), None)
