"""Reading the log again for its state: all of it, or as far as it went at an earlier moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final, TypeVar

from ttasks.errors import DamagedLedgerError, UnknownEventError
from ttasks.events.envelope import RecordedEvent
from ttasks.events.facts import TaskOutput, TaskProgressed
from ttasks.events.status import RunStatus, TaskStatus
from ttasks.log.projection import GraphFold, StreamFold, TaskFold, agent_row, all_rows, new_fold
from ttasks.log.query import EventFilter
from ttasks.log.reading import CHANGING_NOTHING, LogReader, Readers
from ttasks.state import rows
from ttasks.state.agent import AgentState, ModelCallState, PermissionState, ToolCallState
from ttasks.state.graph import GraphState, RunState
from ttasks.state.reconcile import Claim, claim
from ttasks.state.record import evolve
from ttasks.state.runner import RunnerState
from ttasks.state.task import AttemptState, TaskState

Kind = TypeVar("Kind", ToolCallState, PermissionState, ModelCallState)


class Replay:
    """Streams folded, event by event, into everything that has a row."""

    def __init__(self) -> None:
        self._folds: dict[str, StreamFold] = {}
        self._attempts: dict[tuple[str, int], AttemptState] = {}
        self._runs: dict[tuple[str, int], RunState] = {}
        self._of_agents: dict[int, AgentState] = {}

    def version(self, stream: str) -> int:
        """Return how many events of a stream were folded."""
        fold = self._folds.get(stream)
        return fold.version if fold is not None else 0

    def apply(self, event: RecordedEvent) -> StreamFold:
        """Fold one more event; they have to come in the log's order. Return what its stream comes to."""
        fold = self._folds.get(event.stream)
        if fold is None:
            fold = self._folds[event.stream] = new_fold(event.stream)
        try:
            fold.apply(event)
        except UnknownEventError as error:
            raise UnknownEventError(
                error.type, error.type_version, event.stream, version=event.version, position=event.position
            ) from None
        if isinstance(fold, TaskFold):
            if fold.attempt is not None:
                self._attempts[fold.task_id, fold.attempt.attempt] = fold.attempt
            if fold.conversation is not None:
                self._of_agents.update((state.position, state) for state in fold.conversation.take())
        elif isinstance(fold, GraphFold) and fold.run is not None:
            self._runs[fold.graph_id, fold.run.run] = fold.run
        return fold

    def rows(self) -> Iterator[tuple[str, rows.Row]]:
        """Yield (table, row) for every row that the log comes to."""
        yield from all_rows(iter(self._folds.values()))
        for attempt in self._attempts.values():
            yield "attempts", rows.attempt_row(attempt)
        for run in self._runs.values():
            yield "runs", rows.run_row(run)
        yield from map(agent_row, self._of_agents.values())

    def attempts(self) -> list[AttemptState]:
        """Return every attempt, oldest first."""
        return sorted(self._attempts.values(), key=lambda attempt: attempt.position)

    def runs(self) -> list[RunState]:
        """Return every run, oldest first."""
        return sorted(self._runs.values(), key=lambda run: run.position)

    def of_agents(self, kind: type[Kind]) -> list[Kind]:
        """Return every tool call, request for permission or call of a model, oldest first."""
        return [state for _, state in sorted(self._of_agents.items()) if isinstance(state, kind)]


_KIND: Final = {"tasks": "task", "graphs": "graph"}
_PRINTED: Final = (TaskOutput.__name__, TaskProgressed.__name__)
"""What changes no row but that of its task, and there the version."""


class Past(LogReader):
    """What could be asked of a ledger when `position` was the last one in its log.

    No row is read, because rows are of today: each answer is folded from the streams that it is about.

    Args:
        readers: the ledger.
        position: up to where it is folded.
        by_entry: collections are in the order in which their members came, not in (created_at, id) order.
    """

    def __init__(self, readers: Readers, position: int, *, by_entry: bool = False) -> None:
        self.path = readers.path
        self._readers = readers
        self._position = position
        self._by_entry = by_entry
        self._ids: dict[str, list[str]] = {}

    def at(self, position: int) -> Past:
        """Return a still earlier past."""
        return Past(self._readers, position, by_entry=self._by_entry)

    def close(self) -> None:
        """Nothing: the connections are the ledger's own."""

    # --- events ------------------------------------------------------------------------------------------------------

    def matching(self, wanted: EventFilter) -> Iterator[RecordedEvent]:
        return self._readers.matching(self._then(wanted))

    def count_matching(self, wanted: EventFilter) -> int:
        return self._readers.count_matching(self._then(wanted))

    def _then(self, wanted: EventFilter) -> EventFilter:
        end = self._position + 1
        return replace(wanted, before=end if wanted.before is None else min(wanted.before, end))

    def head_position(self) -> int:
        return self._position

    def has_type(self, type_: str) -> bool:
        return self._readers.has_type(type_)  # also where it came later

    # --- tasks and graphs --------------------------------------------------------------------------------------------

    def _replay(self, stream: str, without: tuple[str, ...] = CHANGING_NOTHING) -> tuple[Replay, StreamFold | None]:
        replay, fold = Replay(), None
        for event in self.matching(EventFilter(stream=stream, without=without)):
            fold = replay.apply(event)
        return replay, fold

    def task(self, task_id: str) -> TaskState | None:
        """Return a task as it was, a deleted one too; None where there was none."""
        stream = f"task-{task_id}"
        _, fold = self._replay(stream)
        return evolve(fold.state, version=self.version(stream)) if fold is not None else None

    def attempts(self, task_id: str) -> list[AttemptState]:
        """Return a task's attempts as they were, oldest first."""
        replay, _ = self._replay(f"task-{task_id}")
        return replay.attempts()

    def _of_agents(self, kind: type[Kind], task_id: str, attempt: int | None) -> list[Kind]:
        replay, _ = self._replay(f"task-{task_id}", without=_PRINTED)
        return [state for state in replay.of_agents(kind) if attempt in (None, state.attempt)]

    def tool_calls(self, task_id: str, attempt: int | None = None) -> list[ToolCallState]:
        """Return the tool calls of a task, or of one attempt, as they were, oldest first."""
        return self._of_agents(ToolCallState, task_id, attempt)

    def permissions(self, task_id: str, attempt: int | None = None) -> list[PermissionState]:
        """Return what was asked permission for in a task, or in one attempt, as it was, oldest first."""
        return self._of_agents(PermissionState, task_id, attempt)

    def model_calls(self, task_id: str, attempt: int | None = None) -> list[ModelCallState]:
        """Return the calls of models in a task, or in one attempt, as they were, oldest first."""
        return self._of_agents(ModelCallState, task_id, attempt)

    def graph(self, graph_id: str) -> GraphState | None:
        """Return a graph as it was, a deleted one too; None where there was none."""
        _, fold = self._replay(f"graph-{graph_id}")
        return fold.state if fold is not None else None

    def graph_with_tasks(self, graph_id: str) -> tuple[GraphState, dict[str, TaskState]] | None:
        """Return a graph and its tasks by id, deleted ones too, as they were; None where there was none."""
        graph = self.graph(graph_id)
        if graph is None:
            return None
        tasks = {task_id: self.task(task_id) for task_id in graph.members}
        return graph, {task_id: task for task_id, task in tasks.items() if task is not None}

    def tasks(self) -> list[TaskState]:
        """Return the tasks that were not deleted, in the collection's order."""
        states = self._all("tasks")
        return [evolve(state, version=self.version(f"task-{state.id}")) for state in states]

    def ids(self, table: str) -> list[str]:
        """Return the ids in ``tasks`` or ``graphs`` that were not deleted, in the collection's order."""
        if table not in self._ids:
            self._ids[table] = [state.id for state in self._all(table)]
        return list(self._ids[table])

    def count(self, table: str) -> int:
        """Return how many of ``tasks`` or ``graphs`` were not deleted."""
        return len(self.ids(table))

    def _all(self, table: str) -> list[Any]:
        replay = Replay()
        there: dict[str, Any] = {}
        for event in self.matching(EventFilter(kind=_KIND[table], without=CHANGING_NOTHING)):
            state = replay.apply(event).state
            # Who is deleted and comes back is behind those who stayed, as in a dict.
            if state.is_deleted:
                there.pop(event.stream, None)
            else:
                there[event.stream] = state
        if self._by_entry:
            return list(there.values())
        return sorted(there.values(), key=lambda state: (state.created_at, state.id))

    def claimed_tasks(self) -> list[TaskState]:
        """Return the tasks that were not deleted and were RUNNING, INTERRUPTED, or waited for a retry."""
        return [task for task in self.tasks() if claim(task) is not Claim.SETTLED]

    def open_graphs(self) -> list[str]:
        """Return the ids of graphs, not deleted, whose latest run was RUNNING or INTERRUPTED."""
        is_open = (RunStatus.RUNNING, RunStatus.INTERRUPTED)
        return [state.id for state in self._all("graphs") if state.run_status in is_open]

    def graphs_with_finally_left(self) -> list[str]:
        """Return the ids of graphs, not deleted, that had been run and had an INTERRUPTED finally task."""
        left = {task.id for task in self.claimed_tasks() if task.status is TaskStatus.INTERRUPTED}
        return [
            state.id
            for state in self._all("graphs")
            if state.runs and any(member.is_finally and member.task in left for member in state.members.values())
        ]

    # --- runs and runners --------------------------------------------------------------------------------------------

    def runs(
        self, graph_id: str | None = None, *, newest_first: bool = False, limit: int | None = None
    ) -> list[RunState]:
        """Return the runs of a graph, or all, as they were: oldest first unless told otherwise, at most `limit`."""
        if graph_id is not None:
            replay, _ = self._replay(f"graph-{graph_id}")
        else:
            replay = Replay()
            for event in self.matching(EventFilter(kind="graph")):
                replay.apply(event)
        found = replay.runs()
        return (found[::-1] if newest_first else found)[:limit]

    def runner(self, position: int) -> RunnerState | None:
        """Return the runner registered at a position, with what was known of it."""
        registered = next(self.matching(EventFilter(after=position - 1, limit=1)), None)
        if registered is None:
            return None
        _, fold = self._replay(registered.stream)
        state = fold.state if fold is not None else None
        if not isinstance(state, RunnerState):
            raise DamagedLedgerError(f"event {position} should register a runner, but is a {registered.type}")
        return state
