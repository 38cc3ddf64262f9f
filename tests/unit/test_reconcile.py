"""What the log claims, held against what is alive: the one table, against the one drawn in the docs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import pytest

from strategies import AT, created, ended, started
from ttasks import TaskStatus
from ttasks.errors import TransitionError
from ttasks.events.facts import (
    TaskBlocked,
    TaskCancelled,
    TaskCancelRequested,
    TaskFact,
    TaskFailed,
    TaskInterrupted,
    TaskResolved,
    TaskRetryScheduled,
    TaskStarted,
    TaskSucceeded,
)
from ttasks.events.status import OnInterrupted
from ttasks.state import decide
from ttasks.state.reconcile import DEAD, INTERRUPTIONS_MAX, LEAVE_ALONE, Answer, Claim, Then, answer, claim, reconcile
from ttasks.state.task import TaskState, apply

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorials" / "resuming.md"
ASKED = TaskCancelRequested("ann@host")


def drawn() -> list[tuple[str, str, str, str]]:
    """Return the rows of the table in the docs."""
    section = PAGE.read_text("utf-8").partition("| the log says it |")[2].partition("\n\n")[0]
    rows = [line.removeprefix("|").removesuffix("|").split("|") for line in section.splitlines()[2:]]
    return [(a.strip(), b.strip(), c.strip(), d.strip()) for a, b, c, d in rows]


def folded(*facts: TaskFact, on_interrupted: OnInterrupted = OnInterrupted.RERUN) -> TaskState:
    history: Sequence[TaskFact] = (created(on_interrupted=on_interrupted), *facts)
    state = reduce(lambda state, item: apply(state, item[1], task_id="t", version=item[0]), enumerate(history, 1), None)
    assert state is not None
    return state


LIVES: dict[Claim, tuple[TaskFact, ...]] = {
    Claim.RUNS: (started(),),
    Claim.WAITS: (started(), ended(TaskFailed), TaskRetryScheduled(1, 1, 5.0, AT)),
    Claim.INTERRUPTED: (started(), ended(TaskInterrupted)),
}
"""For each claim, a life that ends in it."""


def example(claimed: Claim, wanted: Answer) -> TaskState:
    """Return a task of which the log claims this, and whose answer is this."""
    if wanted is not Answer.CANCEL:
        return folded(*LIVES[claimed], on_interrupted=OnInterrupted(wanted.value))
    if claimed is Claim.INTERRUPTED:
        return folded(started(), ASKED, ended(TaskInterrupted))
    return folded(*LIVES[claimed], ASKED)


@pytest.mark.parametrize(("says", "wants", "records", "then"), drawn())
def test_the_table_is_the_one_in_the_docs(says: str, wants: str, records: str, then: str) -> None:
    state = example(Claim(says), Answer(wants))
    assert (claim(state), answer(state)) == (Claim(says), Answer(wants))
    verdict = reconcile(state, is_alive=False)
    assert ", ".join(fact.__name__ for fact in verdict.records) == records
    assert verdict.then == then


def test_the_docs_draw_every_line_of_the_table_once() -> None:
    assert sorted((says, wants) for says, wants, _, _ in drawn()) == sorted((str(a), str(b)) for a, b in DEAD)


@pytest.mark.parametrize("claimed", [Claim.RUNS, Claim.WAITS])
@pytest.mark.parametrize("wanted", Answer)
def test_what_somebody_runs_is_left_alone(claimed: Claim, wanted: Answer) -> None:
    assert reconcile(example(claimed, wanted), is_alive=True) == LEAVE_ALONE


@pytest.mark.parametrize("wanted", Answer)
def test_what_is_recorded_as_interrupted_is_that_whoever_lives(wanted: Answer) -> None:
    state = example(Claim.INTERRUPTED, wanted)
    assert reconcile(state, is_alive=True) == reconcile(state, is_alive=False)


@pytest.mark.parametrize(
    "life",
    [
        (),
        (TaskBlocked("parent"),),
        (TaskCancelled(),),
        (started(), ended(TaskSucceeded)),
        (started(), ended(TaskFailed)),
        (started(), ended(TaskInterrupted), TaskFailed()),
    ],
    ids=["pending", "blocked", "cancelled", "succeeded", "failed", "resolved"],
)
@pytest.mark.parametrize("is_alive", [True, False])
def test_of_what_is_settled_nothing_is_recorded(life: tuple[TaskFact, ...], is_alive: bool) -> None:
    assert reconcile(folded(*life), is_alive=is_alive, is_run_cancelled=True) == LEAVE_ALONE


@pytest.mark.parametrize(("claimed", "wanted"), DEAD)
def test_every_line_of_the_table_can_be_recorded(claimed: Claim, wanted: Answer) -> None:
    state = example(claimed, wanted)
    for kind in DEAD[claimed, wanted].records:
        fact = ended(TaskInterrupted) if kind is TaskInterrupted else kind()
        state = apply(state, fact, task_id="t", version=state.version + 1)
    if DEAD[claimed, wanted].then is Then.AGAIN:
        state = apply(state, started(state.attempts + 1), task_id="t", version=state.version + 1)
        assert state.status is TaskStatus.RUNNING
    elif DEAD[claimed, wanted].then is Then.NOTHING:
        assert state.status in (TaskStatus.CANCELLED, TaskStatus.FAILED)


def test_running_by_hand_is_a_claim_like_any_other() -> None:
    state = folded(TaskStarted())
    assert claim(state) is Claim.RUNS
    assert reconcile(state, is_alive=False).records == (TaskInterrupted,)


def interrupted(times: int, on_interrupted: OnInterrupted = OnInterrupted.RERUN) -> TaskState:
    facts = [fact for n in range(1, times + 1) for fact in (started(n), ended(TaskInterrupted, n))]
    return folded(*facts, on_interrupted=on_interrupted)


def test_after_three_interrupted_attempts_in_a_row_a_task_waits_for_a_person() -> None:
    assert INTERRUPTIONS_MAX == 3
    assert [reconcile(interrupted(times), is_alive=False).then for times in (1, 2, 3, 4)] == [
        Then.AGAIN,
        Then.AGAIN,
        Then.PERSON,
        Then.PERSON,
    ]


def test_an_attempt_that_runs_counts_as_the_third_once_its_runner_is_gone() -> None:
    life = (started(1), ended(TaskInterrupted, 1), started(2), ended(TaskInterrupted, 2), started(3))
    assert reconcile(folded(*life), is_alive=False).then is Then.PERSON


def test_an_attempt_that_ends_by_itself_starts_the_count_anew() -> None:
    life = (started(1), ended(TaskInterrupted, 1), started(2), ended(TaskInterrupted, 2))
    failed = (started(3), ended(TaskFailed, 3), started(4), ended(TaskInterrupted, 4))
    assert reconcile(folded(*life, *failed), is_alive=False).then is Then.AGAIN


def test_a_task_that_fails_when_it_is_interrupted_does_so_each_time() -> None:
    assert answer(interrupted(5, OnInterrupted.FAIL)) is Answer.FAIL


@pytest.mark.parametrize("on_interrupted", OnInterrupted)
def test_a_person_who_says_rerun_is_obeyed_whatever_was_said_before(on_interrupted: OnInterrupted) -> None:
    life = (started(), ASKED, ended(TaskInterrupted), TaskResolved("rerun", "ann@host"))
    assert answer(folded(*life, on_interrupted=on_interrupted)) is Answer.RERUN


def test_a_person_who_says_rerun_starts_the_count_anew() -> None:
    state = apply(interrupted(3), TaskResolved("rerun", "ann@host"), task_id="t", version=9)
    for attempt in (4, 5):
        state = apply(state, started(attempt), task_id="t", version=10)
        state = apply(state, ended(TaskInterrupted, attempt), task_id="t", version=11)
        assert answer(state) is Answer.RERUN


def test_of_a_cancelled_run_a_task_is_cancelled_even_where_a_person_said_rerun() -> None:
    life = (started(), ended(TaskInterrupted), TaskResolved("rerun", "ann@host"))
    assert answer(folded(*life), is_run_cancelled=True) is Answer.CANCEL


# --- what a person decides -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decided", "types", "status"),
    [
        ("succeeded", [TaskResolved, TaskSucceeded], "succeeded"),
        ("failed", [TaskResolved, TaskFailed], "failed"),
        ("rerun", [TaskResolved], "interrupted"),
    ],
)
def test_a_person_decides_what_an_interrupted_task_counts_as(
    decided: decide.Resolution, types: list[type], status: str
) -> None:
    state = folded(*LIVES[Claim.INTERRUPTED])
    facts = decide.resolve(state, decided, "ann@host", "I looked")
    assert [type(fact) for fact in facts] == types
    assert facts[0] == TaskResolved(decided, "ann@host", "I looked")
    for fact in facts:
        state = apply(state, fact, task_id="t", version=state.version + 1)
    assert (str(state.status), state.resolution) == (status, decided)


@pytest.mark.parametrize(("note", "error"), [(None, "ann@host decided that it failed"), ("no", "… it failed: no")])
def test_the_error_of_a_task_that_a_person_called_failed_says_so(note: str | None, error: str) -> None:
    _, failed = decide.resolve(folded(*LIVES[Claim.INTERRUPTED]), "failed", "ann@host", note)
    assert isinstance(failed, TaskFailed)
    assert failed.error == error.replace("…", "ann@host decided that")


@pytest.mark.parametrize("life", [(), (started(), ended(TaskSucceeded)), (started(), ended(TaskFailed))])
def test_only_what_was_interrupted_can_be_resolved(life: tuple[TaskFact, ...]) -> None:
    with pytest.raises(TransitionError, match="not interrupted: there is nothing to resolve"):
        decide.resolve(folded(*life), "rerun", "ann@host", None)
