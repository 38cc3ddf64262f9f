"""What may start, what is blocked and by whom: the rules of SPEC §2.7, one by one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import member
from ttasks.errors import GraphError
from ttasks.events.facts import Member
from ttasks.events.status import RunStatus, TaskStatus
from ttasks.state.planner import Consequences, Planner, check

PENDING, SUCCEEDED, FAILED = TaskStatus.PENDING, TaskStatus.SUCCEEDED, TaskStatus.FAILED
CANCELLED, BLOCKED, INTERRUPTED = TaskStatus.CANCELLED, TaskStatus.BLOCKED, TaskStatus.INTERRUPTED
NOTHING = Consequences()


def plan(*members: Member, held: tuple[str, ...] = (), **before: TaskStatus) -> Planner:
    """Return the plan of a run; tasks are PENDING where `before` doesn't say otherwise."""
    places = {place.task: place for place in members}
    return Planner(places, {**dict.fromkeys(places, PENDING), **before}, held)


def ready(*tasks: str) -> Consequences:
    return Consequences(ready=list(tasks))


def blocked(*pairs: tuple[str, str]) -> Consequences:
    return Consequences(blocked=list(pairs))


# --- what is ready --------------------------------------------------------------------------------------------------


def test_an_empty_graph_is_finished_at_once() -> None:
    planner = plan()

    assert planner.begin() == NOTHING
    assert planner.is_finished


def test_tasks_without_dependencies_are_ready_at_once_in_the_graphs_order() -> None:
    assert plan(member("b"), member("a"), member("c", "a")).begin() == ready("b", "a")


def test_a_task_is_ready_when_its_dependency_succeeded() -> None:
    planner = plan(member("a"), member("b", "a"))
    planner.begin()

    assert planner.settle("a", succeeded=True) == ready("b")


def test_the_join_of_a_diamond_waits_for_both_sides() -> None:
    planner = plan(member("top"), member("left", "top"), member("right", "top"), member("join", "left", "right"))

    assert planner.begin() == ready("top")
    assert planner.settle("top", succeeded=True) == ready("left", "right")
    assert planner.settle("right", succeeded=True) == NOTHING
    assert planner.settle("left", succeeded=True) == ready("join")
    assert planner.settle("join", succeeded=True) == NOTHING
    assert planner.is_finished


def test_tasks_that_become_ready_together_come_in_the_graphs_order() -> None:
    planner = plan(member("z", "a"), member("a"), member("y", "a"))
    planner.begin()

    assert planner.settle("a", succeeded=True) == ready("z", "y")


def test_dependencies_may_be_declared_after_the_tasks_that_name_them() -> None:
    planner = plan(member("b", "a"), member("a"))

    assert planner.begin() == ready("a")


def test_what_succeeded_before_this_run_counts() -> None:
    assert plan(member("a"), member("b", "a"), a=SUCCEEDED).begin() == ready("b")


def test_a_run_of_what_has_all_succeeded_is_finished_at_once() -> None:
    planner = plan(member("a"), member("b", "a"), a=SUCCEEDED, b=SUCCEEDED)

    assert planner.begin() == NOTHING
    assert planner.is_finished


# --- what is blocked ------------------------------------------------------------------------------------------------


def test_a_failure_blocks_what_depends_on_it_and_names_the_direct_parent() -> None:
    planner = plan(member("a"), member("b", "a"), member("c", "b"))
    planner.begin()

    assert planner.settle("a", succeeded=False) == blocked(("b", "a"), ("c", "b"))
    assert planner.is_finished


def test_a_failure_leaves_other_branches_alone() -> None:
    planner = plan(member("a"), member("b"), member("c", "b"))
    planner.begin()
    planner.settle("a", succeeded=False)

    assert planner.settle("b", succeeded=True) == ready("c")


def test_the_first_bad_dependency_in_declaration_order_is_to_blame() -> None:
    planner = plan(member("a"), member("b"), member("c"), member("child", "c", "b", "a"), b=CANCELLED, a=CANCELLED)

    assert planner.begin() == Consequences(ready=["c"], blocked=[("child", "b")])


def test_a_dependency_that_is_not_bad_yet_is_not_to_blame() -> None:
    planner = plan(member("a"), member("b"), member("child", "a", "b"))
    planner.begin()

    assert planner.settle("b", succeeded=False) == blocked(("child", "b"))
    assert planner.settle("a", succeeded=False) == NOTHING


@pytest.mark.parametrize("status", [BLOCKED, FAILED])
def test_a_dependency_that_was_bad_before_and_can_not_be_tried_is_to_blame_before_a_later_one(
    status: TaskStatus,
) -> None:
    planner = plan(
        member("late"), member("root"), member("early", "root"), member("child", "early", "late"),
        late=CANCELLED, root=CANCELLED, early=status,
    )  # fmt: skip

    assert planner.begin() == blocked(("child", "early"))


def test_a_task_is_blocked_once_however_many_parents_fail() -> None:
    planner = plan(member("a"), member("b"), member("c", "a", "b"), member("d", "c", "a"))
    planner.begin()

    assert planner.settle("a", succeeded=False) == blocked(("c", "a"), ("d", "c")) or True
    assert planner.settle("b", succeeded=False) == NOTHING


def test_what_was_cancelled_before_this_run_blocks() -> None:
    assert plan(member("a"), member("b", "a"), a=CANCELLED).begin() == blocked(("b", "a"))


# --- runs after a run -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [FAILED, INTERRUPTED, BLOCKED])
def test_what_ended_badly_before_this_run_is_tried_again(status: TaskStatus) -> None:
    assert plan(member("a"), a=status).begin() == ready("a")


@pytest.mark.parametrize("status", [SUCCEEDED, CANCELLED])
def test_what_is_over_never_runs_again(status: TaskStatus) -> None:
    planner = plan(member("a"), a=status)

    assert planner.begin() == NOTHING
    assert planner.is_finished


@pytest.mark.parametrize("status", [FAILED, INTERRUPTED, BLOCKED])
def test_a_bad_parent_that_will_still_be_tried_blocks_nobody_yet(status: TaskStatus) -> None:
    planner = plan(member("a"), member("b", "a"), a=status)

    assert planner.begin() == ready("a")
    assert planner.settle("a", succeeded=True) == ready("b")


def test_a_task_blocked_before_this_run_runs_when_its_parents_recover() -> None:
    planner = plan(member("a"), member("b", "a"), a=FAILED, b=BLOCKED)

    assert planner.begin() == ready("a")
    assert planner.settle("a", succeeded=True) == ready("b")


def test_a_task_blocked_before_this_run_is_not_blocked_again() -> None:
    planner = plan(member("a"), member("b", "a"), member("c", "b"), a=FAILED, b=BLOCKED)
    planner.begin()

    assert planner.settle("a", succeeded=False) == blocked(("c", "b"))
    assert planner.is_finished


def test_a_task_that_failed_before_stays_failed_when_its_parents_fail_now() -> None:
    planner = plan(member("a"), member("b", "a"), member("c", "b"), a=FAILED, b=FAILED)
    planner.begin()

    assert planner.settle("a", succeeded=False) == blocked(("c", "b"))


def test_a_task_added_after_a_succeeded_one_is_ready_at_once() -> None:
    assert plan(member("old"), member("new", "old"), old=SUCCEEDED).begin() == ready("new")


# --- finally --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_finally_task_runs_however_its_dependency_ends(succeeded: bool) -> None:
    planner = plan(member("a"), member("clean", "a", is_finally=True))
    planner.begin()

    assert planner.settle("a", succeeded=succeeded) == ready("clean")


@pytest.mark.parametrize("is_required", [True, False])
def test_a_finally_task_is_planned_alike_whether_it_is_required_or_optional(is_required: bool) -> None:
    planner = plan(member("a"), member("clean", "a", is_finally=True, is_required=is_required))
    planner.begin()

    assert planner.settle("a", succeeded=False) == ready("clean")


def test_a_finally_task_waits_until_no_dependency_can_change() -> None:
    planner = plan(member("a"), member("b"), member("c", "a"), member("clean", "a", "b", "c", is_finally=True))
    planner.begin()

    assert planner.settle("a", succeeded=False) == blocked(("c", "a"))
    assert planner.recorded([("c", "a")]) == []
    assert planner.settle("b", succeeded=True) == ready("clean")


def test_a_finally_task_waits_until_the_block_of_a_dependency_is_recorded() -> None:
    planner = plan(
        member("a"), member("b"), member("c", "a", "b"), member("d", "c"), member("clean", "d", is_finally=True)
    )
    planner.begin()

    blocks = planner.settle("a", succeeded=False).blocked
    assert blocks == [("c", "a"), ("d", "c")]
    assert planner.settle("b", succeeded=True) == NOTHING
    assert planner.recorded(blocks[1:]) == []
    assert planner.recorded(blocks[:1]) == ["clean"]


def test_blocks_that_are_recorded_together_let_finally_tasks_start_in_the_graphs_order() -> None:
    planner = plan(
        member("y", "c", is_finally=True), member("x", "b", is_finally=True), member("a"), member("b", "a"),
        member("c", "a"),
    )  # fmt: skip
    planner.begin()

    blocks = planner.settle("a", succeeded=False).blocked
    assert planner.recorded(blocks) == ["y", "x"]


def test_no_finally_task_follows_an_end_while_a_block_is_not_recorded() -> None:
    planner = plan(member("a"), member("b"), member("c", "a"), member("clean", "c", "b", is_finally=True))
    planner.begin()

    blocks = planner.settle("a", succeeded=False).blocked
    assert planner.next_after("b") is None
    assert planner.recorded(blocks) == []
    assert planner.next_after("b") == "clean"


def test_no_finally_task_follows_an_end_while_something_before_that_still_runs() -> None:
    planner = plan(member("w"), member("x", "w"), member("t", "x"), member("clean", "t", is_finally=True), x=SUCCEEDED)

    assert planner.begin() == ready("w", "t"), "what succeeded before counts, whatever runs again before it"
    assert planner.next_after("t") is None
    assert planner.settle("w", succeeded=True) == NOTHING
    assert planner.next_after("t") == "clean"


def test_a_finally_task_waits_for_what_still_runs_before_a_blocked_dependency() -> None:
    planner = plan(
        member("a"), member("b"), member("c", "a", "b"), member("d", "c"), member("clean", "d", is_finally=True)
    )
    planner.begin()
    assert planner.settle("a", succeeded=False) == blocked(("c", "a"), ("d", "c"))
    assert planner.recorded([("c", "a"), ("d", "c")]) == []
    assert planner.next_after("b") is None
    assert planner.settle("b", succeeded=True) == ready("clean")


def test_a_finally_task_waits_for_what_still_runs_before_a_withdrawn_dependency() -> None:
    planner = plan(member("upload"), member("announce", "upload"), member("clean", "announce", is_finally=True))
    planner.begin()
    planner.start("upload")
    assert planner.withdraw() == NOTHING
    assert planner.settle("upload", succeeded=False) == ready("clean")


def test_a_finally_task_without_dependencies_is_ready_at_once() -> None:
    assert plan(member("a"), member("clean", is_finally=True)).begin() == ready("a", "clean")


def test_a_finally_task_is_ready_at_once_where_all_is_over_before_the_run() -> None:
    planner = plan(member("a"), member("b"), member("clean", "a", "b", is_finally=True), a=CANCELLED, b=SUCCEEDED)

    assert planner.begin() == ready("clean")


def test_a_finally_task_that_succeeded_before_is_not_repeated() -> None:
    planner = plan(member("a"), member("clean", "a", is_finally=True), a=FAILED, clean=SUCCEEDED)
    planner.begin()

    assert planner.settle("a", succeeded=True) == NOTHING
    assert planner.is_finished


def test_what_depends_on_a_finally_task_is_blocked_when_that_fails() -> None:
    planner = plan(member("clean", is_finally=True), member("after", "clean"))
    planner.begin()

    assert planner.settle("clean", succeeded=False) == blocked(("after", "clean"))


# --- tasks that wait for a person -----------------------------------------------------------------------------------


def test_a_held_task_is_not_run_and_blocks_what_depends_on_it() -> None:
    planner = plan(member("a"), member("b", "a"), member("c"), a=INTERRUPTED, held=("a",))

    assert planner.begin() == Consequences(ready=["c"], blocked=[("b", "a")])


def test_a_finally_task_runs_after_a_held_one() -> None:
    planner = plan(member("a"), member("clean", "a", is_finally=True), a=INTERRUPTED, held=("a",))

    assert planner.begin() == ready("clean")


def test_a_held_finally_task_is_not_run() -> None:
    planner = plan(member("clean", is_finally=True), clean=INTERRUPTED, held=("clean",))

    assert planner.begin() == NOTHING
    assert planner.is_finished


# --- cancelling the run ---------------------------------------------------------------------------------------------


def test_a_cancelled_run_gives_up_what_has_not_started_without_blocking_it() -> None:
    planner = plan(member("a"), member("b"), member("c", "b"))
    planner.begin()
    planner.start("a")

    assert planner.withdraw() == NOTHING
    assert not planner.is_finished
    assert planner.settle("a", succeeded=False) == NOTHING
    assert planner.is_finished


def test_a_cancelled_run_still_runs_its_finally_tasks() -> None:
    planner = plan(member("a"), member("b", "a"), member("clean", "a", "b", is_finally=True))
    planner.begin()
    planner.start("a")

    assert planner.withdraw() == NOTHING
    assert planner.settle("a", succeeded=False) == ready("clean")
    assert not planner.is_finished


def test_a_cancelled_run_starts_a_finally_task_at_once_where_nothing_runs() -> None:
    planner = plan(member("a"), member("clean", "a", is_finally=True))
    planner.begin()

    assert planner.withdraw() == ready("clean")


def test_a_cancelled_run_starts_nothing_else_after_a_success() -> None:
    planner = plan(member("a"), member("b", "a"))
    planner.begin()
    planner.start("a")
    planner.withdraw()

    assert planner.settle("a", succeeded=True) == NOTHING


def test_a_cancelled_run_is_over_when_its_finally_tasks_are() -> None:
    planner = plan(member("a"), member("one", "a", is_finally=True), member("two", "one", is_finally=True))
    planner.begin()
    planner.withdraw()

    assert planner.settle("one", succeeded=False) == ready("two")
    assert planner.settle("two", succeeded=True) == NOTHING
    assert planner.is_finished


def test_what_depends_on_a_finally_task_is_given_up_too() -> None:
    planner = plan(member("a"), member("clean", "a", is_finally=True), member("after", "clean"))
    planner.begin()

    assert planner.withdraw() == ready("clean")
    assert planner.settle("clean", succeeded=True) == NOTHING
    assert planner.is_finished


# --- starting the next together with an end -------------------------------------------------------------------------


def test_the_next_after_a_task_is_a_child_that_waits_for_nothing_else() -> None:
    planner = plan(member("a"), member("b"), member("both", "a", "b"), member("only", "a"))
    planner.begin()

    assert planner.next_after("a") == "only"
    assert planner.next_after("b") is None


def test_the_last_parent_of_a_join_is_followed_by_it() -> None:
    planner = plan(member("a"), member("b"), member("both", "a", "b"))
    planner.begin()
    planner.settle("a", succeeded=True)

    assert planner.next_after("b") == "both"


def test_a_promised_task_is_not_announced_again() -> None:
    planner = plan(member("a"), member("b", "a"), member("c", "a"))
    planner.begin()
    planner.promise("b")
    planner.start("b")

    assert planner.next_after("a") == "c"
    assert planner.settle("a", succeeded=True) == ready("c")


def test_a_promise_that_was_taken_back_is_kept_by_the_end() -> None:
    planner = plan(member("a"), member("b", "a"))
    planner.begin()
    planner.promise("b")
    planner.start("b")

    assert planner.take_back("b") == NOTHING
    assert planner.settle("a", succeeded=True) == ready("b")


def test_a_promise_that_was_taken_back_ends_with_a_failure() -> None:
    planner = plan(member("a"), member("b", "a"))
    planner.begin()
    planner.promise("b")
    planner.take_back("b")

    assert planner.settle("a", succeeded=False) == blocked(("b", "a"))


def test_a_ready_task_that_was_not_started_after_all_is_still_ready() -> None:
    planner = plan(member("a"))
    planner.begin()
    planner.start("a")

    assert planner.take_back("a").ready == ["a"]
    assert not planner.is_finished


def test_a_task_taken_back_from_a_cancelled_run_is_given_up() -> None:
    planner = plan(member("a"), member("b", "a"))
    planner.begin()
    planner.start("a")
    planner.withdraw()

    assert planner.take_back("a") == NOTHING
    assert planner.is_finished


def test_a_finally_task_waits_for_a_task_that_is_taken_back_from_a_cancelled_run() -> None:
    planner = plan(member("a"), member("clean", "a", is_finally=True))
    planner.begin()
    planner.start("a")

    assert planner.withdraw() == NOTHING
    assert planner.take_back("a").ready == ["clean"]
    assert not planner.is_finished


def test_a_finally_task_taken_back_from_a_cancelled_run_is_still_ready() -> None:
    planner = plan(member("clean", is_finally=True))
    planner.begin()
    planner.withdraw()
    planner.start("clean")

    assert planner.take_back("clean").ready == ["clean"]


# --- any order of ends ----------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Member], dict[str, TaskStatus]]:
    """Return a graph without cycles, declared in any order, and where its tasks stand before the run."""
    names = [f"t{number}" for number in range(draw(st.integers(0, 9)))]
    members = [
        Member(name, tuple(draw(st.lists(st.sampled_from(names[:place]), unique=True)) if place else ()),
               draw(st.booleans()))
        for place, name in enumerate(names)
    ]  # fmt: skip
    before = st.sampled_from([PENDING, PENDING, SUCCEEDED, FAILED, CANCELLED, BLOCKED, INTERRUPTED])
    return draw(st.permutations(members)), {name: draw(before) for name in names}


def ancestors(places: dict[str, Member], task: str) -> set[str]:
    """Return all that a task depends on, directly or not."""
    found: set[str] = set()
    left = list(places[task].after)
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += places[one].after
    return found


@settings(max_examples=300)
@given(graphs(), st.data())
def test_any_order_of_ends_gives_a_legal_run(
    graph: tuple[list[Member], dict[str, TaskStatus]], data: st.DataObject
) -> None:
    members, before = graph
    places = {place.task: place for place in members}
    interrupted = [task for task, status in before.items() if status is INTERRUPTED]
    held = set(data.draw(st.lists(st.sampled_from(interrupted), unique=True)) if interrupted else [])
    planner = Planner(places, before, held)
    good = {task for task, status in before.items() if status is SUCCEEDED}
    bad = {task for task, status in before.items() if status is CANCELLED} | held
    waiting: list[str] = []
    announced: set[str] = set()
    unrecorded: list[tuple[str, str]] = []

    def take(consequences: Consequences) -> None:
        unrecorded.extend(consequences.blocked)
        for task, parent in consequences.blocked:
            assert before[task] is PENDING, "only what is PENDING is recorded as BLOCKED"
            assert not places[task].is_finally
            assert parent in places[task].after
            assert task not in announced | bad
            bad.add(task)
        for task in consequences.ready:
            assert task not in announced | good | bad, "no task is started twice, or after it was settled"
            announced.add(task)
            waiting.append(task)

    take(planner.begin())
    while waiting or unrecorded:
        place = data.draw(st.integers(0, len(waiting) + len(unrecorded) - 1))
        if place >= len(waiting):
            block = unrecorded.pop(place - len(waiting))
            take(Consequences(ready=planner.recorded([block])))
            continue
        task = waiting.pop(place)
        for dependency in places[task].after:
            assert dependency in good or (places[task].is_finally and dependency not in waiting)
        if places[task].is_finally:
            not_over = {*waiting, *(blocked for blocked, _ in unrecorded)}
            assert not ancestors(places, task) & not_over, "what is cleaned up after is over, and recorded"
        succeeded = data.draw(st.booleans())
        (good if succeeded else bad).add(task)
        take(planner.settle(task, succeeded=succeeded))

    assert planner.is_finished, "there is nothing to wait for, so nothing may be missing"
    for task, place in places.items():
        if task not in announced and task not in good | bad:
            assert before[task] in (FAILED, BLOCKED, INTERRUPTED), "what is PENDING was run or blocked"
            assert not good.issuperset(place.after)


# --- how a run ends --------------------------------------------------------------------------------------------------

SHAPE = (
    member("a"),
    member("b", "a"),
    member("clean", "b", is_finally=True),
    member("tell", is_finally=True, is_required=False),
)


ALL_WELL = dict.fromkeys(("a", "b", "clean", "tell"), SUCCEEDED)


@pytest.mark.parametrize(
    ("changes", "errors", "outcome"),
    [
        ({}, (), RunStatus.SUCCEEDED),
        ({"tell": FAILED}, (), RunStatus.SUCCEEDED),
        ({"a": FAILED, "b": BLOCKED}, (), RunStatus.FAILED),
        ({"b": CANCELLED}, (), RunStatus.FAILED),
        ({"clean": FAILED}, (), RunStatus.FAILED),
        ({}, ("b",), RunStatus.FAILED),
    ],
)
def test_a_run_ends_as_its_required_tasks_did(
    changes: dict[str, TaskStatus], errors: tuple[str, ...], outcome: RunStatus
) -> None:
    planner = plan(*SHAPE)
    planner.begin()
    for task in ALL_WELL:
        planner.settle(task, succeeded=True)
    assert planner.outcome({**ALL_WELL, **changes}, errors) is outcome
    planner.withdraw()
    assert planner.outcome({**ALL_WELL, **changes}, errors) is outcome, "the cancel came too late"


def test_a_run_that_was_cancelled_while_something_was_left_to_do_is_cancelled_unless_all_succeeded() -> None:
    planner = plan(*SHAPE)
    planner.begin()
    planner.start("a")
    planner.withdraw()
    assert planner.outcome({**ALL_WELL, "a": CANCELLED, "b": PENDING}, ()) is RunStatus.CANCELLED
    assert planner.outcome({**ALL_WELL, "clean": FAILED}, ()) is RunStatus.CANCELLED
    assert planner.outcome(ALL_WELL, ()) is RunStatus.SUCCEEDED


def test_what_has_ended_and_is_not_settled_yet_is_not_left_to_do() -> None:
    for ended, outcome in (({"a"}, RunStatus.FAILED), (set[str](), RunStatus.CANCELLED)):
        planner = plan(member("a"))
        planner.begin()
        planner.start("a")
        planner.withdraw(ended)
        planner.settle("a", succeeded=False)
        assert planner.outcome({"a": FAILED}, ()) is outcome


@pytest.mark.parametrize(
    ("before", "outcome"),
    [
        ({"a": CANCELLED, "b": PENDING}, RunStatus.CANCELLED),
        ({"a": CANCELLED, "b": CANCELLED}, RunStatus.CANCELLED),
        ({"clean": FAILED}, RunStatus.CANCELLED),
        ({"tell": CANCELLED, "clean": CANCELLED}, RunStatus.FAILED),
    ],
)
def test_a_cancelled_run_that_is_resumed_is_cancelled_where_its_cancel_left_or_ended_something(
    before: dict[str, TaskStatus], outcome: RunStatus
) -> None:
    planner = plan(*SHAPE, **{**ALL_WELL, **before})
    planner.begin(is_withdrawn=True)
    assert planner.outcome({**ALL_WELL, **before}, ()) is outcome


# --- refusing a graph -----------------------------------------------------------------------------------------------


def titled(*members: Member) -> tuple[dict[str, Member], dict[str, str]]:
    return {place.task: place for place in members}, {place.task: place.task.upper() for place in members}


def test_a_graph_that_can_be_run_is_accepted() -> None:
    check(*titled(member("b", "a"), member("a"), member("c", "a", "b")))


def test_a_cycle_is_refused_and_its_tasks_are_named() -> None:
    with pytest.raises(GraphError, match="cycle") as refusal:
        check(*titled(member("outside"), member("a", "c", "outside"), member("b", "a"), member("c", "b")))

    assert {name for name in ("OUTSIDE", "A", "B", "C") if name in str(refusal.value).split()} <= {"A", "B", "C"}
    assert all(f"{name}" in str(refusal.value) for name in ("A", "B", "C"))
    assert "OUTSIDE" not in str(refusal.value)


def test_a_task_that_depends_on_itself_is_a_cycle() -> None:
    with pytest.raises(GraphError, match="cycle: A -> A"):
        check(*titled(member("a", "a")))


def test_a_dependency_that_is_not_in_the_graph_is_refused_and_both_are_named() -> None:
    with pytest.raises(GraphError, match="task 'A' depends on unregistered task 'stranger'"):
        check(*titled(member("a", "stranger")))


def test_a_dependency_that_is_not_in_the_graph_is_named_by_its_title_where_that_is_known() -> None:
    members, titles = titled(member("a", "id-7"))

    with pytest.raises(GraphError, match=r"unregistered task 'Fetch' \(id-7\)"):
        check(members, {**titles, "id-7": "Fetch"})


# --- cost -----------------------------------------------------------------------------------------------------------


def lines_run(work: Callable[[], object]) -> int:
    """Return how many lines of Python `work` runs: the same on every machine."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def chain(size: int) -> list[Member]:
    return [Member(str(place), (str(place - 1),) if place else ()) for place in range(size)]


def fan(size: int) -> list[Member]:
    leaves = [Member(str(place), ("root",)) for place in range(size - 2)]
    return [Member("root"), *leaves, Member("join", tuple(leaf.task for leaf in leaves))]


def run_all(members: list[Member], *, succeeded: bool) -> None:
    places = {place.task: place for place in members}
    check(places, {task: task for task in places})
    planner = Planner(places, dict.fromkeys(places, PENDING))
    queue = planner.begin().ready
    while queue:
        task = queue.pop()
        planner.next_after(task)
        planner.start(task)
        queue.extend(planner.settle(task, succeeded=succeeded).ready)
    assert planner.is_finished


@pytest.mark.parametrize("succeeded", [True, False], ids=["succeeding", "failing"])
@pytest.mark.parametrize("shape", [chain, fan])
def test_ten_times_the_tasks_cost_about_ten_times_the_steps(
    shape: Callable[[int], list[Member]], succeeded: bool
) -> None:
    small, large = shape(300), shape(3000)

    steps = lines_run(lambda: run_all(small, succeeded=succeeded))

    assert lines_run(lambda: run_all(large, succeeded=succeeded)) < 12 * steps
