"""What the log claims of a task, held against what is alive: what to record, and what a resumed run does then.

One table (SPEC §6). Nothing here asks whether anything is alive: whoever does says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ttasks.events.facts import TaskCancelled, TaskFact, TaskFailed, TaskInterrupted
from ttasks.events.status import OnInterrupted, TaskStatus
from ttasks.state.task import TaskState

INTERRUPTIONS_MAX: Final = 3
"""So many interrupted attempts in a row, and a task waits for a person: it may be what crashes the machine."""


WAITING: Final = "waiting"
"""Where people are told that a task stands which is FAILED, and whose living runner will try it again."""


class Claim(StrEnum):
    """What the log says of a task."""

    RUNS = "runs"
    WAITS = "waits for its retry"
    INTERRUPTED = "is interrupted"
    SETTLED = "is settled"


class Answer(StrEnum):
    """What is to become of work that was interrupted: `on_interrupted`, or a cancel that was asked for before."""

    CANCEL = "cancel"
    RERUN = "rerun"
    FAIL = "fail"
    ASK = "ask"


class Then(StrEnum):
    """What a resumed run does with the task."""

    AGAIN = "start it again"
    WAIT = "wait, then start its next attempt"
    PERSON = "wait for a person"
    NOTHING = "nothing"


@dataclass(frozen=True)
class Verdict:
    """`records` are the types of the facts to record, in this order; `then` is what a resumed run does."""

    records: tuple[type[TaskFact], ...]
    then: Then


LEAVE_ALONE: Final = Verdict((), Then.NOTHING)
"""For what somebody runs, and for what is settled."""

DEAD: Final[Mapping[tuple[Claim, Answer], Verdict]] = {
    (Claim.RUNS, Answer.CANCEL): Verdict((TaskInterrupted, TaskCancelled), Then.NOTHING),
    (Claim.RUNS, Answer.RERUN): Verdict((TaskInterrupted,), Then.AGAIN),
    (Claim.RUNS, Answer.FAIL): Verdict((TaskInterrupted, TaskFailed), Then.NOTHING),
    (Claim.RUNS, Answer.ASK): Verdict((TaskInterrupted,), Then.PERSON),
    (Claim.WAITS, Answer.CANCEL): Verdict((TaskCancelled,), Then.NOTHING),
    (Claim.WAITS, Answer.RERUN): Verdict((), Then.WAIT),
    (Claim.WAITS, Answer.FAIL): Verdict((), Then.WAIT),  # that attempt failed: nothing about it is unknown
    (Claim.WAITS, Answer.ASK): Verdict((), Then.WAIT),
    (Claim.INTERRUPTED, Answer.CANCEL): Verdict((TaskCancelled,), Then.NOTHING),
    (Claim.INTERRUPTED, Answer.RERUN): Verdict((), Then.AGAIN),
    (Claim.INTERRUPTED, Answer.FAIL): Verdict((TaskFailed,), Then.NOTHING),
    (Claim.INTERRUPTED, Answer.ASK): Verdict((), Then.PERSON),
}
"""What becomes of a claim that nobody alive stands behind."""


def claim(state: TaskState) -> Claim:
    """Return what the log claims of the task."""
    if state.status is TaskStatus.RUNNING:
        return Claim.RUNS
    if state.retry_due_at is not None:
        return Claim.WAITS
    return Claim.INTERRUPTED if state.status is TaskStatus.INTERRUPTED else Claim.SETTLED


def answer(state: TaskState, *, is_run_cancelled: bool = False) -> Answer:
    """Return what is to become of the task, were it interrupted now.

    Args:
        state: the task.
        is_run_cancelled: the run that it belongs to was cancelled, and the task is none that runs all the same.
    """
    if is_run_cancelled:
        return Answer.CANCEL
    if state.resolution == "rerun":  # a person decided, after whatever was asked for before
        return Answer.RERUN
    if state.cancel_requested_by is not None:
        return Answer.CANCEL
    interruptions = state.interruptions + (claim(state) is Claim.RUNS)
    if state.on_interrupted is OnInterrupted.RERUN and interruptions >= INTERRUPTIONS_MAX:
        return Answer.ASK
    return Answer(state.on_interrupted.value)


def reconcile(state: TaskState, *, is_alive: bool, is_run_cancelled: bool = False) -> Verdict:
    """Return what to record of the task, and what follows.

    Args:
        state: the task.
        is_alive: whether whoever runs it, or waits for its retry, lives.
        is_run_cancelled: as for `answer`.
    """
    claimed = claim(state)
    if claimed is Claim.SETTLED or (is_alive and claimed is not Claim.INTERRUPTED):
        return LEAVE_ALONE
    return DEAD[claimed, answer(state, is_run_cancelled=is_run_cancelled)]
