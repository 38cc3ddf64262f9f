"""What may follow what in a task's life, and what each fact makes of its state."""

from __future__ import annotations

import json
from dataclasses import fields
from datetime import timedelta
from functools import reduce
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import AT, created, ended, facts_of, started, task_histories
from ttasks.errors import (
    AlreadyRunningError,
    DamagedLedgerError,
    SealedTaskError,
    TransitionError,
    TtasksError,
    UnknownEventError,
)
from ttasks.events import facts as f
from ttasks.events.codec import decode, encode
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import TaskFact
from ttasks.events.status import OnInterrupted, TaskStatus
from ttasks.state import decide
from ttasks.state.record import evolve
from ttasks.state.task import (
    REPORTS,
    AttemptState,
    TaskState,
    apply,
    apply_attempt,
    from_snapshot,
    snapshot,
)
from ttasks.state.transitions import FACT_FOR, FINAL, NEXT, TRANSITIONS, next_status

PENDING, RUNNING, SUCCEEDED = TaskStatus.PENDING, TaskStatus.RUNNING, TaskStatus.SUCCEEDED
FAILED, CANCELLED = TaskStatus.FAILED, TaskStatus.CANCELLED
BLOCKED, INTERRUPTED = TaskStatus.BLOCKED, TaskStatus.INTERRUPTED

# SPEC §2.1 once more, drawn by hand: from the status at the left to the status above.
TABLE = """
              pending  running  succeeded  failed  cancelled  blocked  interrupted
pending       .        x        .          x       x          x        .
running       .        .        x          x       x          .        x
succeeded     .        .        .          .       .          .        .
failed        .        x        .          .       x          .        .
cancelled     .        .        .          .       .          .        .
blocked       .        x        .          .       x          .        .
interrupted   .        x        x          x       x          .        .
"""


def drawn() -> set[tuple[TaskStatus, TaskStatus]]:
    head, *lines = TABLE.strip().splitlines()
    columns = [TaskStatus(word) for word in head.split()]
    return {
        (TaskStatus(line.split()[0]), column)
        for line in lines
        for column, mark in zip(columns, line.split()[1:], strict=True)
        if mark == "x"
    }


MOVES = sorted(drawn())
NO_MOVES = sorted({(one, other) for one in TaskStatus for other in TaskStatus} - drawn())


def fold(*facts: f.Fact | OpaqueEvent, state: TaskState | None = None) -> TaskState:
    """Return what these facts come to, after `state`."""
    for fact in facts:
        state = apply(state, fact, task_id="t", version=1 if state is None else state.version + 1)
    assert state is not None
    return state


def by_hand(status: TaskStatus) -> TaskState:
    """Return a task that was brought into `status` by hand, the shortest way."""
    way: dict[TaskStatus, list[TaskFact]] = {
        PENDING: [],
        RUNNING: [f.TaskStarted()],
        SUCCEEDED: [f.TaskStarted(), f.TaskSucceeded()],
        FAILED: [f.TaskFailed()],
        CANCELLED: [f.TaskCancelled()],
        BLOCKED: [f.TaskBlocked()],
        INTERRUPTED: [f.TaskStarted(), f.TaskInterrupted()],
    }
    return fold(created(), *way[status])


RUNS = fold(created(), started())
RETRY = f.TaskRetryScheduled(1, 1, 60.0, AT + timedelta(seconds=60))
WAITS = fold(created(), started(), ended(f.TaskFailed, error="first"), RETRY)


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_of_transitions_is_the_one_drawn_by_hand() -> None:
    assert {(before, after) for (before, _), after in TRANSITIONS.items()} == drawn()


def test_each_status_is_entered_by_one_type_of_fact() -> None:
    assert {(fact, after) for (_, fact), after in TRANSITIONS.items()} == {
        (f.TaskStarted, RUNNING),
        (f.TaskSucceeded, SUCCEEDED),
        (f.TaskFailed, FAILED),
        (f.TaskCancelled, CANCELLED),
        (f.TaskBlocked, BLOCKED),
        (f.TaskInterrupted, INTERRUPTED),
    }


def test_only_succeeded_and_cancelled_have_no_way_out() -> None:
    assert FINAL == {SUCCEEDED, CANCELLED} == {status for status in TaskStatus if status.is_sink}
    assert all(bool(NEXT[status]) is not status.is_sink for status in TaskStatus)


def test_pending_and_running_are_active() -> None:
    assert {status for status in TaskStatus if status.is_active} == {PENDING, RUNNING}


def test_a_parent_that_is_neither_active_nor_succeeded_is_bad() -> None:
    assert {status for status in TaskStatus if status.is_bad} == {FAILED, CANCELLED, BLOCKED, INTERRUPTED}


def test_what_facts_make_lacks_no_field_of_its_record() -> None:
    state = fold(created(), started(1), ended(f.TaskSucceeded, 1))
    attempt = apply_attempt(None, started(1), task_id="t", position=1, runner=1)
    for record in (state, state.result, attempt):
        assert record is not None
        assert vars(record).keys() == {field.name for field in fields(record)}


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_a_fact_that_the_table_has_moves_the_status(before: TaskStatus, after: TaskStatus) -> None:
    assert fold(FACT_FOR[after](), state=by_hand(before)).status is after


@pytest.mark.parametrize(("before", "after"), [(before, after) for before, after in NO_MOVES if after is not PENDING])
def test_a_fact_that_the_table_lacks_is_refused_with_what_can_follow(before: TaskStatus, after: TaskStatus) -> None:
    with pytest.raises(TransitionError, match=f"Cannot transition task from '{before}' to '{after}'") as refusal:
        next_status(before, FACT_FOR[after])

    assert all(status in str(refusal.value) for status in NEXT[before] or ("nothing",))


# --- setting the status by hand -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), MOVES)
def test_a_move_by_hand_that_the_table_has_is_one_fact_without_an_attempt(
    before: TaskStatus, after: TaskStatus
) -> None:
    (fact,) = decide.transition(by_hand(before), after, None, "ann")

    assert type(fact) is FACT_FOR[after]
    assert getattr(fact, "attempt", None) is None
    assert fold(fact, state=by_hand(before)).status is after


@pytest.mark.parametrize(("before", "after"), NO_MOVES)
def test_a_move_by_hand_that_the_table_lacks_is_refused(before: TaskStatus, after: TaskStatus) -> None:
    with pytest.raises(TransitionError, match=f"Cannot transition task from '{before}' to '{after}'"):
        decide.transition(by_hand(before), after, None, "ann")


@pytest.mark.parametrize("state", [RUNS, WAITS], ids=["running", "waiting for its retry"])
@pytest.mark.parametrize("status", [status for status in TaskStatus if status is not CANCELLED])
def test_only_its_runner_moves_the_status_of_an_attempt(state: TaskState, status: TaskStatus) -> None:
    with pytest.raises(AlreadyRunningError, match="task 'a task' is RUNNING"):
        decide.transition(state, status, None, "ann")


@pytest.mark.parametrize("state", [RUNS, WAITS], ids=["running", "waiting for its retry"])
def test_cancelling_an_attempt_by_hand_is_a_request(state: TaskState) -> None:
    assert decide.transition(state, CANCELLED, "why", "ann") == [f.TaskCancelRequested("ann")]


@pytest.mark.parametrize("status", [FAILED, CANCELLED, BLOCKED])
def test_an_error_given_with_a_move_by_hand_becomes_the_tasks_error(status: TaskStatus) -> None:
    state = fold(created())

    assert fold(*decide.transition(state, status, "why", "ann"), state=state).error == "why"


@pytest.mark.parametrize("status", [RUNNING, SUCCEEDED])
def test_an_error_given_with_a_move_that_clears_errors_is_dropped(status: TaskStatus) -> None:
    state = by_hand(PENDING if status is RUNNING else RUNNING)

    assert fold(*decide.transition(state, status, "why", "ann"), state=state).error is None


def test_running_by_hand_is_no_attempt() -> None:
    state = by_hand(RUNNING)

    assert (state.attempts, state.running_attempt, state.is_owned) == (0, None, False)


def test_ending_by_hand_leaves_no_result() -> None:
    for status in (SUCCEEDED, FAILED, CANCELLED, INTERRUPTED):
        state = by_hand(RUNNING)
        assert fold(*decide.transition(state, status, None, "ann"), state=state).result is None


# --- other commands -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [PENDING, RUNNING, FAILED, BLOCKED, INTERRUPTED])
def test_cancelling_what_nobody_runs_cancels_it(status: TaskStatus) -> None:
    assert decide.cancel(by_hand(status), "ann") == [f.TaskCancelled(by="ann")]


@pytest.mark.parametrize("status", [SUCCEEDED, CANCELLED])
def test_cancelling_what_is_over_does_nothing(status: TaskStatus) -> None:
    assert decide.cancel(by_hand(status), "ann") == []


def test_cancelling_a_second_time_asks_no_second_time() -> None:
    asked = fold(*decide.cancel(RUNS, "ann"), state=RUNS)

    assert decide.cancel(asked, "bob") == []


def test_cancelling_keeps_an_existing_error() -> None:
    failed = fold(f.TaskFailed(error="boom"), state=by_hand(RUNNING))

    assert fold(*decide.cancel(failed, "ann"), state=failed).error == "boom"


@pytest.mark.parametrize("status", [PENDING, FAILED, BLOCKED, INTERRUPTED])
def test_a_task_that_is_not_over_may_start(status: TaskStatus) -> None:
    decide.check_may_start(by_hand(status))


@pytest.mark.parametrize("status", [SUCCEEDED, CANCELLED])
def test_a_task_that_is_over_may_not_start(status: TaskStatus) -> None:
    with pytest.raises(TransitionError, match=f"Cannot execute task with status '{status}'"):
        decide.check_may_start(by_hand(status))


@pytest.mark.parametrize("state", [by_hand(RUNNING), RUNS, WAITS], ids=["by hand", "running", "waiting for its retry"])
def test_a_task_that_runs_may_not_start_a_second_time(state: TaskState) -> None:
    with pytest.raises(AlreadyRunningError, match="Cannot execute task with status 'running'"):
        decide.check_may_start(state)


def test_blocking_records_the_parent_to_blame() -> None:
    state = fold(created())

    blocked = fold(*decide.block(state, "parent"), state=state)

    assert (blocked.status, blocked.blocked_by) == (BLOCKED, "parent")


@pytest.mark.parametrize("status", [status for status in TaskStatus if status is not PENDING])
def test_only_a_pending_task_can_be_blocked(status: TaskStatus) -> None:
    with pytest.raises(TransitionError, match=f"Cannot transition task from '{status}' to 'blocked'"):
        decide.block(by_hand(status), "parent")


@pytest.mark.parametrize("field", ["title", "payload", "description", "timeout", "error"])
def test_nothing_of_a_succeeded_task_can_be_revised(field: str) -> None:
    state = by_hand(SUCCEEDED)

    with pytest.raises(SealedTaskError, match="SUCCEEDED tasks are immutable"):
        decide.revise(state, field, getattr(state, field))


def test_a_revision_that_was_recorded_after_the_success_can_not_follow() -> None:
    with pytest.raises(TransitionError, match="SUCCEEDED tasks are immutable: task t can't be revised any more"):
        apply(by_hand(SUCCEEDED), f.TaskRevised({"title": "another"}), task_id="t", version=9)


@pytest.mark.parametrize("status", [status for status in TaskStatus if status is not SUCCEEDED])
def test_until_it_has_succeeded_a_task_can_be_revised(status: TaskStatus) -> None:
    state = by_hand(status)

    revised = fold(*decide.revise(state, "title", "another"), state=state)

    assert (revised.title, revised.status) == ("another", status)


def test_revising_to_the_same_value_records_nothing() -> None:
    assert decide.revise(fold(created()), "title", "a task") == []


def test_revising_an_error_to_its_own_tail_is_a_change() -> None:
    failed = fold(ended(f.TaskFailed, error="tail", error_length=9000), state=RUNS)

    revised = fold(*decide.revise(failed, "error", "tail"), state=failed)

    assert (revised.error, revised.error_length) == ("tail", None)


# --- what a fact clears, and what it keeps (SPEC §2.2) --------------------------------------------------------------


def test_a_start_clears_what_the_last_attempt_left() -> None:
    failed = fold(ended(f.TaskFailed, error="boom", error_length=9), state=RUNS)

    again = fold(started(2), state=failed)

    assert (again.error, again.error_length, again.result, again.attempts) == (None, None, None, 2)


def test_a_start_clears_who_was_to_blame() -> None:
    blocked = fold(f.TaskBlocked("parent", "no parent"), state=fold(created()))

    again = fold(started(), state=blocked)

    assert (again.blocked_by, again.error) == (None, None)


def test_success_clears_an_error_that_was_set_meanwhile() -> None:
    assert fold(f.TaskRevised({"error": "odd"}), ended(f.TaskSucceeded), state=RUNS).error is None


def test_what_was_printed_to_stderr_before_success_is_the_results_error_only() -> None:
    state = fold(ended(f.TaskSucceeded, error="a warning\n"), state=RUNS)

    assert state.result is not None
    assert (state.error, state.result.error) == (None, "a warning\n")


@pytest.mark.parametrize("end", [f.TaskFailed, f.TaskCancelled, f.TaskInterrupted])
def test_an_attempt_that_ended_badly_leaves_its_error_and_a_result(end: type[f.AttemptEnd]) -> None:
    state = fold(ended(end, error="boom", error_length=5000, returncode=7, reason="exit_code"), state=RUNS)

    assert (state.error, state.error_length, state.running_attempt) == ("boom", 5000, None)
    assert state.result is not None
    assert (state.result.status, state.result.attempt, state.result.error) == (state.status, 1, "boom")
    assert (state.result.error_length, state.result.returncode, state.result.reason) == (5000, 7, "exit_code")
    assert (state.result.started_at, state.result.finished_at, state.result.duration) == (AT, AT, 0.5)


def test_an_end_without_an_error_keeps_the_error_that_is_there() -> None:
    assert fold(f.TaskRevised({"error": "odd"}), ended(f.TaskInterrupted), state=RUNS).error == "odd"


def test_blocking_gives_no_result() -> None:
    assert by_hand(BLOCKED).result is None


def test_blocking_without_an_error_keeps_the_error_that_is_there() -> None:
    assert fold(created(error="odd"), f.TaskBlocked("parent")).error == "odd"


def test_cancelling_a_blocked_task_keeps_who_was_to_blame() -> None:
    blocked = fold(created(), f.TaskBlocked("parent"))

    assert fold(f.TaskCancelled(), state=blocked).blocked_by == "parent"


def test_revising_the_error_forgets_how_long_the_old_one_was() -> None:
    failed = fold(ended(f.TaskFailed, error="tail", error_length=9000), state=RUNS)

    assert fold(f.TaskRevised({"error": None}), state=failed).error_length is None


def test_what_is_redacted_is_known_until_it_is_revised() -> None:
    state = fold(created(payload="***", title="***", redacted=("payload", "title")))
    assert state.redacted == ("payload", "title")
    again = fold(f.TaskRevised({"payload": "a ***", "description": "***"}, redacted=("description",)), state=state)
    assert again.redacted == ("description", "title")
    assert fold(f.TaskRevised({"title": "t", "description": "d"}), state=again).redacted is None


# --- asking to cancel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RUNS, WAITS, by_hand(RUNNING)], ids=["running", "waiting for its retry", "by hand"])
def test_a_request_to_cancel_is_kept_until_the_end(state: TaskState) -> None:
    asked = fold(f.TaskCancelRequested("ann"), state=state)

    assert (asked.cancel_requested_by, asked.status) == ("ann", state.status)
    assert fold(f.TaskCancelled(attempt=state.running_attempt), state=asked).cancel_requested_by is None


@pytest.mark.parametrize("status", [status for status in TaskStatus if status is not RUNNING])
def test_a_request_to_cancel_that_came_too_late_changes_nothing(status: TaskStatus) -> None:
    state = by_hand(status)

    late = fold(f.TaskCancelRequested("ann"), state=state)

    assert late.cancel_requested_by is None
    assert late.status is status


def test_after_a_request_to_cancel_what_was_raised_is_the_results_error_only() -> None:
    asked = fold(f.TaskRevised({"error": "mine"}), f.TaskCancelRequested("ann"), state=RUNS)

    over = fold(ended(f.TaskCancelled, error="its"), state=asked)

    assert over.result is not None
    assert (over.error, over.result.error) == ("mine", "its")


def test_a_handler_that_cancels_by_itself_leaves_its_error() -> None:
    assert fold(ended(f.TaskCancelled, error="no need"), state=RUNS).error == "no need"


def test_cancelling_a_failed_task_with_a_result_keeps_its_error() -> None:
    failed = fold(ended(f.TaskFailed, error="boom"), state=RUNS)

    over = fold(ended(f.TaskCancelled, None, error="Task 't' was cancelled", reason="cancelled"), state=failed)

    assert over.result is not None
    assert (over.error, over.result.status) == ("boom", CANCELLED)


def test_a_request_to_cancel_outlives_an_interruption() -> None:
    asked = fold(f.TaskCancelRequested("ann"), state=RUNS)

    assert fold(ended(f.TaskInterrupted), state=asked).cancel_requested_by == "ann"


def test_a_new_attempt_starts_without_a_request_to_cancel() -> None:
    interrupted = fold(f.TaskCancelRequested("ann"), ended(f.TaskInterrupted), state=RUNS)

    assert fold(started(2), state=interrupted).cancel_requested_by is None


# --- retries and interruptions --------------------------------------------------------------------------------------


def test_a_task_whose_retry_waits_is_failed_and_owned() -> None:
    assert (WAITS.status, WAITS.is_owned, WAITS.retry) == (FAILED, True, 1)
    assert WAITS.retry_due_at == AT + timedelta(seconds=60)


def test_a_retry_that_starts_no_longer_waits() -> None:
    again = fold(started(2, retry=1), state=WAITS)

    assert (again.retry_due_at, again.retry, again.running_attempt) == (None, 1, 2)


def test_interruptions_in_a_row_are_counted() -> None:
    state = fold(created())
    for attempt in (1, 2, 3):
        state = fold(started(attempt), ended(f.TaskInterrupted, attempt), state=state)

    assert state.interruptions == 3


@pytest.mark.parametrize("end", [f.TaskSucceeded, f.TaskFailed, f.TaskCancelled])
def test_any_other_end_starts_the_count_of_interruptions_afresh(end: type[f.AttemptEnd]) -> None:
    twice = fold(ended(f.TaskInterrupted), started(2), state=RUNS)

    assert fold(ended(end, 2), state=twice).interruptions == 0


def test_a_persons_answer_starts_the_count_of_interruptions_afresh() -> None:
    interrupted = fold(ended(f.TaskInterrupted), state=RUNS)

    answered = fold(f.TaskResolved("rerun", "ann"), state=interrupted)

    assert (answered.interruptions, answered.resolution, answered.status) == (0, "rerun", INTERRUPTED)


def test_a_new_attempt_forgets_the_answer_to_the_last() -> None:
    answered = fold(ended(f.TaskInterrupted), f.TaskResolved("rerun", "ann"), state=RUNS)

    assert fold(started(2), state=answered).resolution is None


@pytest.mark.parametrize(
    "fact",
    [
        f.ProcessSpawned(1, 2),
        f.TaskProgressed(1, AT, 50.0),
        f.TaskOutput(1, (("stdout", "…", "hi\n"),)),
        f.ProcessReaped(1, (2,), "SIGKILL", "its runner died"),
    ],
)
def test_what_happens_inside_an_attempt_changes_only_the_version(fact: TaskFact) -> None:
    after = fold(fact, state=RUNS)

    assert vars(after) == {**vars(RUNS), "version": RUNS.version + 1}


# --- what has no place in a stream ----------------------------------------------------------------------------------


def test_a_task_is_created_once() -> None:
    with pytest.raises(TransitionError, match="exists already"):
        fold(created(), created())


@pytest.mark.parametrize("fact", [started(), f.TaskDeleted("ann"), f.GraphDeleted("ann")])
def test_nothing_but_its_creation_or_import_can_be_the_first_of_a_task(fact: f.Fact) -> None:
    with pytest.raises(DamagedLedgerError, match="can't be event 1 of task t"):
        fold(fact)


def test_a_fact_of_another_kind_of_stream_is_refused() -> None:
    with pytest.raises(DamagedLedgerError, match="GraphDeleted can't be event 2 of task t"):
        fold(created(), f.GraphDeleted("ann"))


def test_a_type_from_the_future_stops_the_fold() -> None:
    with pytest.raises(UnknownEventError, match=r"TaskTeleported \(version 2\)"):
        fold(created(), OpaqueEvent("TaskTeleported", 2, "{}"))


def test_a_type_from_the_future_that_may_be_ignored_counts_and_changes_nothing() -> None:
    state = fold(created())

    after = fold(OpaqueEvent("TaskAdmired", 1, '{"ignorable":true}', is_ignorable=True), state=state)

    assert vars(after) == {**vars(state), "version": 2}


# --- all histories --------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(task_histories(), st.data())
def test_folding_in_two_parts_is_folding_at_once(history: list[TaskFact], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(history)))

    first = fold(*history[:cut]) if cut else None

    assert (fold(*history[cut:], state=first) if cut < len(history) else first) == fold(*history)


@settings(max_examples=60)
@given(task_histories())
def test_folding_what_is_read_back_is_folding_what_was_written(history: list[TaskFact]) -> None:
    read = [decode(type(fact).__name__, fact.TYPE_VERSION, encode(fact)) for fact in history]

    assert fold(*read) == fold(*history)


def check_legal(state: TaskState) -> None:
    """Fail where a state is none that SPEC §2 knows."""
    if state.running_attempt is not None:
        assert state.status is RUNNING
        assert state.running_attempt == state.attempts
    if state.retry_due_at is not None:
        assert state.status is FAILED
    if state.status is RUNNING:
        assert state.result is None
        assert state.retry_due_at is None
    if state.status is SUCCEEDED:
        assert state.error is None
    if state.blocked_by is not None:
        assert state.status in (BLOCKED, CANCELLED)
    if state.cancel_requested_by is not None:
        assert state.is_owned or state.status in (RUNNING, INTERRUPTED)
    if state.result is not None:
        assert state.result.status.is_sink or state.result.status.is_bad
        assert state.result.status is not BLOCKED


@settings(max_examples=150)
@given(task_histories())
def test_no_history_reaches_an_illegal_state(history: list[TaskFact]) -> None:
    def follow(state: TaskState | None, fact: TaskFact) -> TaskState:
        after = fold(fact, state=state)
        check_legal(after)
        if state is not None and not isinstance(fact, f.TaskImported):
            assert after.status is state.status or (state.status, after.status) in drawn()
            assert after.attempts in (state.attempts, state.attempts + 1)
        return after

    reduce(follow, history, None)


COMMANDS = st.one_of(
    st.tuples(st.just(decide.transition), st.sampled_from(TaskStatus), st.none() | st.just("why"), st.just("ann")),
    st.tuples(st.just(decide.cancel), st.just("ann")),
    st.tuples(st.just(decide.block), st.just("parent")),
    st.tuples(st.just(decide.revise), st.sampled_from(["title", "error"]), st.sampled_from(["x", "y"])),
)


@settings(max_examples=150)
@given(task_histories(), st.lists(COMMANDS, max_size=8))
def test_whatever_is_commanded_is_refused_or_leads_to_a_legal_state(
    history: list[TaskFact], commands: list[tuple[Any, ...]]
) -> None:
    state = fold(*history)
    for command, *arguments in commands:
        try:
            facts = command(state, *arguments)
        except (TransitionError, SealedTaskError):
            continue
        state = fold(*facts, state=state)
        check_legal(state)


ANY_TASK_FACT = st.one_of(
    *(facts_of(fact_type) for fact_type in (f.TaskCreated, *FACT_FOR.values(), f.TaskRevised, f.TaskDeleted))
)


@settings(max_examples=150)
@given(task_histories(max_events=8), ANY_TASK_FACT)
def test_a_fact_in_any_place_moves_the_status_by_the_table_or_is_refused(
    history: list[TaskFact], fact: TaskFact
) -> None:
    before = fold(*history)
    try:
        after = fold(fact, state=before)
    except TtasksError:
        return
    is_move = (before.status, after.status) in drawn()
    assert is_move is (type(fact) in FACT_FOR.values())
    assert is_move or before.status is after.status


# --- attempts -------------------------------------------------------------------------------------------------------


def fold_attempt(*facts: f.Fact, attempt: AttemptState | None = None) -> AttemptState | None:
    for place, fact in enumerate(facts, 10):
        attempt = apply_attempt(attempt, fact, task_id="t", position=place, runner=2)
    return attempt


def test_an_attempt_is_its_start_its_process_and_its_end() -> None:
    attempt = fold_attempt(
        created(),
        started(1, graph="g", run=3, retry=2),
        f.ProcessSpawned(1, 77, "ticks:5"),
        ended(f.TaskFailed, error="boom", exception="ValueError", returncode=7, reason="exit_code"),
    )

    assert attempt == AttemptState(
        task_id="t",
        attempt=1,
        position=11,
        runner=2,
        status=FAILED,
        handler="tests.handler",
        started_at=AT,
        retry=2,
        graph="g",
        run=3,
        finished_at=AT,
        duration=0.5,
        returncode=7,
        reason="exit_code",
        exception="ValueError",
        error="boom",
        pid=77,
        process_start="ticks:5",
    )


@pytest.mark.parametrize("fact", [f.TaskStarted(), f.TaskFailed(), f.TaskCancelled(), f.TaskBlocked()])
def test_facts_by_hand_make_no_attempt(fact: TaskFact) -> None:
    assert fold_attempt(created(), fact) is None


def test_facts_by_hand_leave_the_last_attempt_as_it_is() -> None:
    over = fold_attempt(created(), started(), ended(f.TaskFailed))

    assert fold_attempt(f.TaskStarted(), f.TaskSucceeded(), attempt=over) is over


def test_what_another_attempt_says_leaves_this_one_as_it_is() -> None:
    second = fold_attempt(created(), started(), ended(f.TaskFailed), started(2))

    assert fold_attempt(f.ProcessSpawned(1, 9), ended(f.TaskFailed, 1), attempt=second) is second


def test_an_attempt_without_a_handler_is_damage() -> None:
    with pytest.raises(DamagedLedgerError, match="has no handler"):
        fold_attempt(created(), started(handler=None))


# --- snapshots ------------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(task_histories())
def test_a_snapshot_read_back_from_json_is_the_state_without_what_only_its_ledger_means(
    history: list[TaskFact],
) -> None:
    state = fold(*history)
    imported = f.TaskImported(snapshot(state))
    stored = decode("TaskImported", 1, encode(imported))
    assert isinstance(stored, f.TaskImported)

    back = from_snapshot("t", stored.state, state.version)

    gone: dict[str, object] = {"retry_due_at": None, "cancel_requested_by": None, "is_deleted": False}
    if state.running_attempt is not None:
        gone["on_interrupted"] = OnInterrupted.ASK  # how it ends is recorded elsewhere
    assert vars(back) == {**vars(state), **gone}


@settings(max_examples=100)
@given(task_histories())
def test_a_snapshot_for_the_ledger_that_it_comes_from_lacks_only_the_deletion(history: list[TaskFact]) -> None:
    state = fold(*history)
    stored = decode("TaskImported", 1, encode(f.TaskImported(snapshot(state, is_at_home=True))))
    assert isinstance(stored, f.TaskImported)

    assert vars(from_snapshot("t", stored.state, state.version)) == {**vars(state), "is_deleted": False}


@settings(max_examples=100)
@given(task_histories())
def test_a_snapshot_folds_the_same_before_it_is_written_as_after(history: list[TaskFact]) -> None:
    imported = f.TaskImported(snapshot(fold(*history)))

    assert fold(imported) == fold(decode("TaskImported", 1, encode(imported)))


def test_fields_of_a_snapshot_from_the_future_are_ignored() -> None:
    state = fold(ended(f.TaskFailed, error="boom"), state=RUNS)
    content = json.loads(encode(f.TaskImported(snapshot(state))))["state"]
    content["mood"] = content["result"]["mood"] = "good"

    assert from_snapshot("t", content, state.version) == state


def test_an_import_replaces_what_was_there() -> None:
    deleted = fold(created("old"), f.TaskDeleted("ann"))

    back = fold(f.TaskImported(snapshot(fold(created("new")))), state=deleted)

    assert (back.title, back.is_deleted, back.version) == ("new", False, 3)


@settings(max_examples=200)
@given(task_histories("t"))
def test_a_fold_may_leave_reports_unread(facts: list[TaskFact]) -> None:
    state = attempt = None
    for version, fact in enumerate(facts, 1):
        before = state, attempt
        state = apply(state, fact, task_id="t", version=version)
        attempt = apply_attempt(attempt, fact, task_id="t", position=version, runner=1)
        if isinstance(fact, REPORTS):
            assert before[0] is not None
            assert (evolve(before[0], version=version), before[1]) == (state, attempt)
