"""What the events of a graph's stream mean: `GraphState` and `RunState`, and the one fold of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ttasks.errors import DamagedLedgerError, TransitionError, UnknownEventError
from ttasks.events import facts as f
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.status import RunStatus
from ttasks.state.record import evolve

Errors = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class GraphState:
    """A graph as its events tell it: its row in `graphs`, and with `members` (in insertion order) those of
    `graph_tasks` and `graph_dependencies`.

    `runs` counts the runs, `run_status` is where the latest stands (None: never run), `errors` maps the id of each
    task that had one in it to ``{"type": qualified name, "text": str}``.
    """

    id: str
    title: str
    created_at: datetime
    members: Mapping[str, f.Member]
    source: f.Source | None
    max_workers: int | None
    derived_from: str | None
    version: int
    runs: int = 0
    run_status: RunStatus | None = None
    cancel_requested_by: str | None = None
    errors: Errors = field(default_factory=dict)
    is_deleted: bool = False


@dataclass(frozen=True)
class RunState:
    """One run of a graph, and its row in `runs`. `runner` is the position of the RunnerStarted that runs it now.

    `duration` is how long its runners worked at it, in seconds: the sum of the stretches that have ended. None where
    one of them was not recorded, as in ledgers of format 2.
    """

    graph_id: str
    run: int
    position: int
    runner: int
    status: RunStatus
    max_workers: int
    started_at: datetime
    finished_at: datetime | None = None
    cancel_requested_by: str | None = None
    why: str | None = None
    errors: Errors = field(default_factory=dict)
    duration: float | None = None


def apply(state: GraphState | None, fact: f.Fact | OpaqueEvent, *, graph_id: str, version: int) -> GraphState:
    """Return the state after one more fact, which is number `version` of the graph's stream.

    Raises:
        TransitionError: the fact can't follow in this state.
        UnknownEventError: it is of a type from the future that must not be passed over.
        DamagedLedgerError: it has no place in a graph's stream, or not there.
    """
    if isinstance(fact, f.GraphCreated):
        return _created(state, fact, graph_id, version)
    if isinstance(fact, OpaqueEvent):
        if state is None or not fact.is_ignorable:
            raise UnknownEventError(fact.type, fact.type_version, f"graph-{graph_id}", version=version)
        return evolve(state, version=version)
    if state is None:
        raise DamagedLedgerError(f"{type(fact).__name__} can't be event {version} of graph {graph_id}")
    match fact:
        case f.GraphRevised():
            title = fact.title if fact.title is not None else state.title
            merged = {**state.members, **{member.task: member for member in fact.members}}
            return evolve(state, version=version, title=title, members=merged)
        case f.GraphRunStarted():
            if state.run_status is RunStatus.RUNNING or fact.run != state.runs + 1:
                raise TransitionError(f"run {fact.run} of graph {graph_id} can't start now: run {state.runs} is there")
            return evolve(
                state,
                version=version,
                runs=fact.run,
                run_status=RunStatus.RUNNING,
                cancel_requested_by=None,
                errors={},
            )
        case f.GraphRunResumed():
            _check_run(state, fact.run, RunStatus.INTERRUPTED, "be resumed")
            return evolve(state, version=version, run_status=RunStatus.RUNNING)
        case f.GraphCancelRequested():
            running = state.run_status in (RunStatus.RUNNING, RunStatus.INTERRUPTED)
            return evolve(state, version=version, cancel_requested_by=fact.by if running else state.cancel_requested_by)
        case f.GraphRunFinished():
            _check_run(state, fact.run, RunStatus.RUNNING, "finish")
            return evolve(state, version=version, run_status=fact.outcome, errors=fact.errors)
        case f.GraphRunInterrupted():
            _check_run(state, fact.run, RunStatus.RUNNING, "be interrupted")
            return evolve(state, version=version, run_status=RunStatus.INTERRUPTED, errors=fact.errors)
        case f.GraphDeleted():
            return evolve(state, version=version, is_deleted=True)
    raise DamagedLedgerError(f"{type(fact).__name__} can't be event {version} of graph {graph_id}")


def _created(state: GraphState | None, fact: f.GraphCreated, graph_id: str, version: int) -> GraphState:
    if state is not None and not state.is_deleted:
        raise TransitionError(f"graph {graph_id} exists already")
    new = GraphState(
        id=graph_id,
        title=fact.title,
        created_at=fact.created_at,
        members={member.task: member for member in fact.members},
        source=fact.source,
        max_workers=fact.max_workers,
        derived_from=fact.derived_from,
        version=version,
    )
    if state is None:
        return new
    # It was deleted and comes back: what its runs came to is still so.
    return evolve(
        new,
        runs=state.runs,
        run_status=state.run_status,
        cancel_requested_by=state.cancel_requested_by,
        errors=state.errors,
    )


def _check_run(state: GraphState, run: int, expected: RunStatus, what: str) -> None:
    if state.run_status is not expected or state.runs != run:
        stands = f"run {state.runs} is {state.run_status}" if state.runs else "it was never run"
        raise TransitionError(f"run {run} of graph {state.id} can't {what}: {stands}")


def apply_run(
    run: RunState | None,
    fact: f.Fact | OpaqueEvent,
    *,
    graph_id: str,
    position: int,
    runner: int,
    recorded_at: datetime,
) -> RunState | None:
    """Return the graph's latest run after one more fact of its stream (None: it was never run)."""
    match fact:
        case f.GraphRunStarted():
            return RunState(
                graph_id,
                fact.run,
                position,
                runner,
                RunStatus.RUNNING,
                fact.max_workers,
                started_at=recorded_at,
                duration=0.0,
            )
        case f.GraphRunResumed() if run is not None:
            return evolve(run, status=RunStatus.RUNNING, runner=runner, finished_at=None)
        case f.GraphCancelRequested() if run is not None and run.status in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
            return evolve(run, cancel_requested_by=fact.by, why=fact.why)
        case f.GraphRunFinished() if run is not None:
            worked_s = _sum(run.duration, fact.duration)
            return evolve(run, status=fact.outcome, finished_at=recorded_at, errors=fact.errors, duration=worked_s)
        case f.GraphRunInterrupted() if run is not None:
            return evolve(
                run,
                status=RunStatus.INTERRUPTED,
                finished_at=recorded_at,
                why=fact.why,
                errors=fact.errors,
                duration=_sum(run.duration, fact.duration),
            )
    return run


def _sum(before_s: float | None, stretch_s: float | None) -> float | None:
    return None if before_s is None or stretch_s is None else before_s + stretch_s
