"""What each fact makes of a graph, of its latest run, and of a runner."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import AT, graph_created, graph_histories, member, run_started
from ttasks.errors import DamagedLedgerError, TransitionError, UnknownEventError
from ttasks.events import facts as f
from ttasks.events.codec import decode, encode
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import GraphFact
from ttasks.events.status import RunStatus
from ttasks.state import runner as runner_rules
from ttasks.state.graph import GraphState, RunState, apply, apply_run

CREATED = graph_created(member("a"), member("b", "a"))
FINISHED = f.GraphRunFinished(1, RunStatus.FAILED, {"a": {"type": "ValueError", "text": "boom"}})
LATER = AT + timedelta(seconds=9)


def fold(*facts: f.Fact | OpaqueEvent, state: GraphState | None = None) -> GraphState:
    """Return what these facts come to, after `state`."""
    for fact in facts:
        state = apply(state, fact, graph_id="g", version=1 if state is None else state.version + 1)
    assert state is not None
    return state


def fold_run(*facts: f.Fact, run: RunState | None = None, runner: int = 2) -> RunState | None:
    for place, fact in enumerate(facts, 10):
        at = AT if isinstance(fact, f.GraphRunStarted) else LATER
        run = apply_run(run, fact, graph_id="g", position=place, runner=runner, recorded_at=at)
    return run


# --- the graph ------------------------------------------------------------------------------------------------------


def test_a_graph_begins_as_it_was_created() -> None:
    source = f.Source("/w.yaml", "00")

    state = fold(graph_created(member("b", "a"), member("a"), source=source, max_workers=2, derived_from="old"))

    assert list(state.members) == ["b", "a"]
    assert (state.source, state.max_workers, state.derived_from) == (source, 2, "old")
    assert (state.runs, state.run_status, state.is_deleted) == (0, None, False)


def test_a_task_that_is_added_comes_last() -> None:
    assert list(fold(CREATED, f.GraphRevised((member("0"),))).members) == ["a", "b", "0"]


def test_a_task_that_is_added_again_is_replaced_in_its_place() -> None:
    state = fold(CREATED, f.GraphRevised((member("a", is_finally=True),)))

    assert list(state.members) == ["a", "b"]
    assert state.members["a"].is_finally


def test_a_revision_without_a_title_keeps_the_title() -> None:
    assert fold(CREATED, f.GraphRevised((member("c"),))).title == "a graph"
    assert fold(CREATED, f.GraphRevised(title="")).title == ""


def test_a_run_starts_finishes_and_leaves_its_errors() -> None:
    running = fold(CREATED, run_started())
    finished = fold(FINISHED, state=running)

    assert (running.runs, running.run_status) == (1, RunStatus.RUNNING)
    assert (finished.runs, finished.run_status) == (1, RunStatus.FAILED)
    assert finished.errors == {"a": {"type": "ValueError", "text": "boom"}}


def test_the_next_run_starts_without_the_errors_and_requests_of_the_last() -> None:
    state = fold(CREATED, run_started(), f.GraphCancelRequested("ann", "Ctrl-C"), FINISHED, run_started(2))

    assert (state.runs, state.errors, state.cancel_requested_by) == (2, {}, None)


@pytest.mark.parametrize("before", [[], [run_started()]], ids=["never run", "running"])
def test_runs_are_counted_without_gaps(before: list[GraphFact]) -> None:
    with pytest.raises(TransitionError, match="run 3 of graph g can't start now"):
        fold(CREATED, *before, run_started(3))


def test_a_graph_has_one_run_at_a_time() -> None:
    with pytest.raises(TransitionError, match="run 2 of graph g can't start now: run 1 is there"):
        fold(CREATED, run_started(), run_started(2))


@pytest.mark.parametrize("before", [[], [run_started(), FINISHED]], ids=["never run", "finished"])
def test_only_a_running_run_can_finish(before: list[GraphFact]) -> None:
    with pytest.raises(TransitionError, match="can't finish"):
        fold(CREATED, *before, FINISHED)


@pytest.mark.parametrize("before", [[], [run_started(), FINISHED]], ids=["never run", "finished"])
def test_only_a_running_run_can_be_interrupted(before: list[GraphFact]) -> None:
    with pytest.raises(TransitionError):
        fold(CREATED, *before, f.GraphRunInterrupted(1, "killed"))


@pytest.mark.parametrize(
    "before",
    [[], [run_started()], [run_started(), FINISHED]],
    ids=["never run", "running", "finished"],
)
def test_only_an_interrupted_run_can_be_resumed(before: list[GraphFact]) -> None:
    with pytest.raises(TransitionError):
        fold(CREATED, *before, f.GraphRunResumed(1, "ann"))


@pytest.mark.parametrize(
    "end", [f.GraphRunFinished(2, RunStatus.SUCCEEDED), f.GraphRunInterrupted(2, "killed")], ids=["finish", "interrupt"]
)
def test_only_the_run_that_is_there_can_end(end: GraphFact) -> None:
    with pytest.raises(TransitionError):
        fold(CREATED, run_started(), end)


def test_an_interrupted_run_can_be_resumed() -> None:
    interrupted = fold(CREATED, run_started(), f.GraphRunInterrupted(1, "killed"))
    resumed = fold(f.GraphRunResumed(1, "ann"), state=interrupted)

    assert (interrupted.run_status, resumed.run_status, resumed.runs) == (RunStatus.INTERRUPTED, RunStatus.RUNNING, 1)


def test_an_interrupted_run_may_be_left_for_a_new_one() -> None:
    state = fold(CREATED, run_started(), f.GraphRunInterrupted(1, "killed"), run_started(2))

    assert (state.runs, state.run_status) == (2, RunStatus.RUNNING)


@pytest.mark.parametrize("end", [(), (f.GraphRunInterrupted(1, "killed"),)], ids=["running", "interrupted"])
def test_a_run_that_is_not_over_can_be_asked_to_cancel(end: tuple[GraphFact, ...]) -> None:
    assert fold(CREATED, run_started(), *end, f.GraphCancelRequested("ann", "Ctrl-C")).cancel_requested_by == "ann"


@pytest.mark.parametrize("before", [[], [run_started(), FINISHED]], ids=["never run", "finished"])
def test_a_request_to_cancel_that_came_too_late_changes_nothing(before: list[GraphFact]) -> None:
    assert fold(CREATED, *before, f.GraphCancelRequested("ann", "Ctrl-C")).cancel_requested_by is None


def test_a_graph_is_created_once() -> None:
    with pytest.raises(TransitionError, match="exists already"):
        fold(CREATED, CREATED)


def test_a_deleted_graph_can_come_back_and_goes_on_counting_its_runs() -> None:
    state = fold(CREATED, run_started(), FINISHED, f.GraphDeleted("ann"), graph_created(title="back"), run_started(2))

    assert (state.title, state.is_deleted, state.runs, state.members) == ("back", False, 2, {})


@pytest.mark.parametrize("fact", [run_started(), f.GraphDeleted("ann"), f.TaskDeleted("ann")])
def test_nothing_but_its_creation_can_be_the_first_of_a_graph(fact: f.Fact) -> None:
    with pytest.raises(DamagedLedgerError, match="can't be event 1 of graph g"):
        fold(fact)


def test_a_fact_of_another_kind_of_stream_is_refused() -> None:
    with pytest.raises(DamagedLedgerError, match="TaskDeleted can't be event 2 of graph g"):
        fold(CREATED, f.TaskDeleted("ann"))


def test_a_type_from_the_future_stops_the_fold_unless_it_may_be_ignored() -> None:
    with pytest.raises(UnknownEventError, match="GraphPraised"):
        fold(CREATED, OpaqueEvent("GraphPraised", 1, "{}"))

    after = fold(CREATED, OpaqueEvent("GraphPraised", 1, '{"ignorable":true}', is_ignorable=True))
    assert vars(after) == {**vars(fold(CREATED)), "version": 2}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([run_started()], 0.0),
        ([run_started(), f.GraphRunFinished(1, RunStatus.SUCCEEDED, duration=2.5)], 2.5),
        ([run_started(), f.GraphRunInterrupted(1, "SIGTERM", duration=1.0), f.GraphRunResumed(1, "ann")], 1.0),
        ([run_started(), FINISHED], None),
    ],
    ids=["runs", "finished", "resumed", "by an older ttasks"],
)
def test_a_run_took_as_long_as_its_runners_worked_at_it(facts: list[f.Fact], expected: float | None) -> None:
    run = fold_run(*facts)

    assert run is not None
    assert run.duration == expected


@pytest.mark.parametrize(("first_s", "total_s"), [(1.0, 3.5), (None, None)])
def test_the_stretches_of_a_resumed_run_add_up_where_all_are_known(first_s: float, total_s: float) -> None:
    interrupted = f.GraphRunInterrupted(1, "SIGTERM", duration=first_s)
    finished = f.GraphRunFinished(1, RunStatus.SUCCEEDED, duration=2.5)

    run = fold_run(run_started(), interrupted, f.GraphRunResumed(1, "ann"), finished)

    assert run is not None
    assert run.duration == total_s


# --- its latest run -------------------------------------------------------------------------------------------------


def test_a_run_is_its_start_and_its_end() -> None:
    assert fold_run(CREATED, run_started(), f.GraphCancelRequested("ann", "Ctrl-C"), FINISHED) == RunState(
        graph_id="g",
        run=1,
        position=11,
        runner=2,
        status=RunStatus.FAILED,
        max_workers=4,
        started_at=AT,
        finished_at=LATER,
        cancel_requested_by="ann",
        why="Ctrl-C",
        errors={"a": {"type": "ValueError", "text": "boom"}},
    )


def test_who_resumes_a_run_is_its_runner_from_then_on() -> None:
    interrupted = fold_run(run_started(), f.GraphRunInterrupted(1, "killed"))
    resumed = fold_run(f.GraphRunResumed(1, "ann"), run=interrupted, runner=77)

    assert interrupted is not None
    assert resumed is not None
    assert (interrupted.status, interrupted.finished_at, interrupted.why) == (RunStatus.INTERRUPTED, LATER, "killed")
    assert (resumed.status, resumed.finished_at, resumed.runner, resumed.position) == (RunStatus.RUNNING, None, 77, 10)


@pytest.mark.parametrize("end", [(), (f.GraphRunInterrupted(1, "killed"),)], ids=["running", "interrupted"])
def test_a_run_shows_the_request_to_cancel_that_its_graph_shows(end: tuple[GraphFact, ...]) -> None:
    run = fold_run(run_started(), *end, f.GraphCancelRequested("ann", "ttasks cancel"))

    assert run is not None
    assert run.cancel_requested_by == "ann"


def test_a_graph_that_never_ran_has_no_run() -> None:
    assert fold_run(CREATED, f.GraphRevised(), f.GraphDeleted("ann")) is None


@settings(max_examples=60)
@given(graph_histories(), st.data())
def test_folding_in_two_parts_is_folding_at_once(history: list[GraphFact], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(history)))

    assert fold(*history[cut:], state=fold(*history[:cut])) == fold(*history)


@settings(max_examples=60)
@given(graph_histories())
def test_folding_what_is_read_back_is_folding_what_was_written(history: list[GraphFact]) -> None:
    read = [decode(type(fact).__name__, fact.TYPE_VERSION, encode(fact)) for fact in history]

    assert fold(*read) == fold(*history)


@settings(max_examples=100)
@given(graph_histories())
def test_a_graph_and_its_latest_run_always_agree(history: list[GraphFact]) -> None:
    state, run = None, None
    for fact in history:
        state = fold(fact, state=state)
        run = fold_run(fact, run=run)
        if state.run_status is not None:
            assert run is not None
            assert (run.run, run.status) == (state.runs, state.run_status)
            assert run.errors == state.errors


# --- runners --------------------------------------------------------------------------------------------------------

RUNNER = f.RunnerStarted("host", "boot", 7, "ticks:1", "ann", "/tmp", ("ttasks", "run"), "0.1.0", "3.11.0", "linux")


def test_a_runner_is_its_start_and_what_was_found_out_later() -> None:
    started = runner_rules.apply(None, RUNNER, runner_id="r", position=2, recorded_at=AT)
    described = runner_rules.apply(
        started, f.RunnerDescribed("/repo", "c0ffee", "main", True), runner_id="r", position=5, recorded_at=LATER
    )

    assert {name: getattr(described, name) for name in vars(RUNNER)} == vars(RUNNER)
    assert (described.position, described.started_at) == (2, AT)
    assert (described.git_root, described.git_commit, described.git_dirty) == ("/repo", "c0ffee", True)


def test_a_runner_starts_once() -> None:
    started = runner_rules.apply(None, RUNNER, runner_id="r", position=2, recorded_at=AT)

    with pytest.raises(DamagedLedgerError, match="can't follow in the stream of runner r"):
        runner_rules.apply(started, RUNNER, runner_id="r", position=3, recorded_at=AT)


def test_a_runner_is_not_described_before_it_starts() -> None:
    with pytest.raises(DamagedLedgerError, match="can't follow in the stream of runner r"):
        runner_rules.apply(None, f.RunnerDescribed("/repo"), runner_id="r", position=3, recorded_at=AT)
