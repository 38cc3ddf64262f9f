"""What was left by runners that died: found, ended, and put into facts. Nothing in here records."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ttasks import clock
from ttasks.errors import AlreadyRunningError
from ttasks.events.agent_facts import AgentSessionOpened
from ttasks.events.facts import (
    GraphRunInterrupted,
    GraphRunResumed,
    GraphRunStarted,
    ProcessReaped,
    TaskCancelled,
    TaskFact,
    TaskFailed,
    TaskInterrupted,
    TaskStarted,
)
from ttasks.events.status import RunStatus, TaskStatus, TerminationReason
from ttasks.log import runner as host
from ttasks.log.liveness import Liveness, is_alive
from ttasks.log.query import EventFilter
from ttasks.log.reading import Readers
from ttasks.log.survivors import Dead, Ended, Leader, end_survivors, mark
from ttasks.model.task import Task
from ttasks.state.graph import RunState
from ttasks.state.reconcile import Claim, Then, Verdict, claim, reconcile
from ttasks.state.runner import RunnerState
from ttasks.state.task import GRACE_S, AttemptState, TaskState


@dataclass(frozen=True)
class Found:
    """A task that nobody runs: what is to become of it, and the attempt that the log claims or had interrupted."""

    task: Task
    verdict: Verdict
    attempt: AttemptState | None

    def only_interrupted(self) -> Found:
        """Return the same, without what its own answer would make of it: a person decides instead."""
        records = tuple(kind for kind in self.verdict.records if kind is TaskInterrupted)
        return Found(self.task, Verdict(records, Then.PERSON), self.attempt)


class Recovery:
    """Holds what one ledger claims against what is alive at this moment."""

    def __init__(self, readers: Readers) -> None:
        self._readers = readers
        self._ledger = readers.ledger()
        self.liveness = Liveness(readers)

    def find(self, task: Task, *, is_run_cancelled: bool = False) -> Found:
        """Return what is to become of a task; nothing is ended or recorded by that.

        Raises:
            AlreadyRunningError: somebody runs it, or waits for its retry; or it is RUNNING in memory only.
        """
        state = task._view
        claimed = claim(state)
        if claimed is Claim.SETTLED:
            return Found(task, reconcile(state, is_alive=False), None)
        is_alive = claimed is not Claim.INTERRUPTED and (self._is_only_here(task) or self.liveness.is_run(state))
        if is_alive:
            raise AlreadyRunningError(
                f"task '{task.title or task.id}' is RUNNING ({task.id}): it, and what it is part of, can't be run now. "
                "Nothing was written"
            )
        # The one that this handle knows, not the latest: somebody may have resumed the task since, and runs that.
        known = (attempt for attempt in self._readers.attempts(task.id) if attempt.attempt == state.attempts)
        verdict = reconcile(state, is_alive=False, is_run_cancelled=is_run_cancelled)
        return Found(task, verdict, next(known, None))

    def runs(self, graph_id: str) -> list[RunState]:
        """Return the runs of a graph, oldest first."""
        return self._readers.runs(graph_id)

    def is_running(self, graph_id: str) -> bool:
        """True when the ledger has a run of the graph as RUNNING."""
        found = self._readers.graph(graph_id)
        return found is not None and found.run_status is RunStatus.RUNNING

    def interrupted_run(self, run: RunState) -> GraphRunInterrupted:
        """Return the fact that a run's runner is gone."""
        return GraphRunInterrupted(run.run, gone(self.liveness.runner(run.runner)), duration=self._worked_s(run))

    def _worked_s(self, run: RunState) -> float | None:
        """Return how long the runner that is gone had worked at the run when it recorded its last event."""
        claims = (GraphRunStarted.__name__, GraphRunResumed.__name__)
        stretch = EventFilter(f"graph-{run.graph_id}", types=claims, newest_first=True, limit=1)
        began = next(iter(self._readers.matching(stretch)), None)
        if began is None:
            return None
        last = EventFilter(runner=run.runner, after=began.position - 1, newest_first=True, limit=1)
        heard = [event.recorded_at for event in self._readers.matching(last)]
        return max(0.0, (max(heard, default=began.recorded_at) - began.recorded_at).total_seconds())

    def _is_only_here(self, task: Task) -> bool:
        """True for a task that runs as far as this handle says, and not as far as the ledger does."""
        recorded = task._recorded
        is_recorded = task._ledger == self._ledger and (recorded.status is TaskStatus.RUNNING or recorded.is_owned)
        return not is_recorded

    def end(self, found: Sequence[Found]) -> dict[str, list[TaskFact]]:
        """End what is left of these tasks' attempts; return the facts to record of each, by task id.

        Raises:
            SurvivorError: something is left all the same. Nothing was recorded.
        """
        dead: dict[str, Dead] = {}
        sessions: dict[str, str] = {}
        for one in found:
            if one.attempt is not None:
                dead[mark(self._ledger, one.attempt.position)] = self._dead(one.task, one.attempt)
                session = self._dead_session(one.task, one.attempt)
                if session is not None:
                    dead[session] = Dead("", grace_s=self._grace_s(one.task, one.attempt))
                    sessions[one.task.id] = session
        ended: Mapping[str, Ended] = end_survivors(dead) if dead else {}
        facts: dict[str, list[TaskFact]] = {}
        for one in found:
            name = mark(self._ledger, one.attempt.position) if one.attempt is not None else ""
            of_it = ended.get(name) or ended.get(sessions.get(one.task.id, ""))
            facts[one.task.id] = [*_reaped(one.attempt, of_it), *self.facts(one)]
        return facts

    def _dead_session(self, task: Task, attempt: AttemptState) -> str | None:
        """Return what the processes of an agent's session carry that the attempt was a turn of; None: there is none.

        The session is of the whole process that ran the attempt: while that lives, other tasks may go on with it.
        """
        if attempt.session is None:
            return None
        runner = self.liveness.runner(attempt.runner)
        if runner is not None and is_alive(runner, self._readers.path):
            return None
        opened = EventFilter(f"task-{task.id}", types=(AgentSessionOpened.__name__,), after=attempt.position)
        facts = (event.fact for event in self._readers.matching(opened))
        of_it = (fact for fact in facts if isinstance(fact, AgentSessionOpened) and fact.attempt == attempt.attempt)
        return next((fact.mark for fact in of_it), None)

    def _dead(self, task: Task, attempt: AttemptState) -> Dead:
        """Return what is known of an attempt's processes: of a boot before this one only the mark can tell them."""
        runner = self.liveness.runner(attempt.runner)
        # Starts count from the boot, so that after another one they, and pids, may well be the same.
        is_of_boot = runner is not None and runner.boot_id == host.boot_id()
        leader = Leader(attempt.pid, attempt.process_start) if is_of_boot and attempt.pid is not None else None
        return Dead(runner.id if runner is not None else "", leader, self._grace_s(task, attempt))

    def _grace_s(self, task: Task, attempt: AttemptState) -> float:
        """Return how long the attempt's processes have after SIGTERM, by what it was started with."""
        begun = next(self._readers.events(stream=f"task-{task.id}", after=attempt.position - 1, limit=1), None)
        grace = begun.fact.grace if begun is not None and isinstance(begun.fact, TaskStarted) else None
        return GRACE_S if grace is None else grace

    def facts(self, found: Found) -> list[TaskFact]:
        """Return the facts to record of a task of which no process is left."""
        state = found.task._view
        make = {TaskInterrupted: self._interrupted, TaskCancelled: _cancelled, TaskFailed: _failed}
        return [make[kind](state, found.attempt) for kind in found.verdict.records]

    def _interrupted(self, state: TaskState, attempt: AttemptState | None) -> TaskFact:
        reason = TerminationReason.INTERRUPTED.value
        if attempt is None or state.running_attempt is None:
            return TaskInterrupted(attempt=state.running_attempt, error=f"{without_runner(state)}, and nobody runs it")
        # Nobody knows when it ended: what is known is when it was last heard of.
        latest = EventFilter(f"task-{state.id}", newest_first=True, limit=1)
        heard = max(attempt.started_at, *(event.recorded_at for event in self._readers.matching(latest)))
        return TaskInterrupted(
            attempt=attempt.attempt,
            started_at=attempt.started_at,
            finished_at=heard,
            duration=(heard - attempt.started_at).total_seconds(),
            error=f"{gone(self.liveness.runner(attempt.runner))}: what became of the work is unknown",
            reason=reason,
        )


def gone(runner: RunnerState | None) -> str:
    """Say that a runner is gone, and who it was."""
    if runner is not None and host.is_this_process(runner):
        return "this process has lost track of it"
    who = f", process {runner.pid} on {runner.host}," if runner is not None else ""
    return f"its runner{who} is gone"


def without_runner(state: TaskState) -> str:
    """Say how a task came to be RUNNING of which no runner is recorded."""
    if state.running_attempt is not None:
        return f"attempt {state.running_attempt} was recorded elsewhere, and its end was not saved here"
    return "it was set to RUNNING by hand"


def _cancelled(state: TaskState, _: AttemptState | None) -> TaskFact:
    now = clock.now()
    return TaskCancelled(
        started_at=now,
        finished_at=now,
        duration=0.0,
        error=f"Task '{state.id}' was cancelled",
        reason=TerminationReason.CANCELLED.value,
        by=state.cancel_requested_by or clock.whoami(),
    )


def _failed(_: TaskState, attempt: AttemptState | None) -> TaskFact:
    which = f"attempt {attempt.attempt}" if attempt is not None else "it"
    return TaskFailed(error=f"{which} was interrupted, and on_interrupted is 'fail'")


def _reaped(attempt: AttemptState | None, ended: Ended | None) -> Collection[TaskFact]:
    if attempt is None or ended is None:
        return ()
    why = "the runner of the attempt is gone, and they were left"
    return (ProcessReaped(attempt.attempt, tuple(sorted(ended.pids)), ended.signal, why),)
