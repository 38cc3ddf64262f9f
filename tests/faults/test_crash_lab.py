"""However a run is stopped, and wherever: it is resumed to the same end, and nothing that was done is done again."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable

import pytest
from crash_graphs import SHAPES

from processes import processes_of
from ttasks import SQLiteStore, Task, TaskContext, TaskExecutor, TaskGraph, TaskType
from ttasks.log.verify import verify
from ttasks.state.reconcile import INTERRUPTIONS_MAX
from ttasks.testing import Crash, CrashLab, Moment

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
MakeLab = Callable[..., CrashLab]


def started(store: SQLiteStore, task: Task) -> list[int]:
    """Return the attempts of a task, in order."""
    return [event.fact.attempt for event in store.events(task=task, type="TaskStarted")]  # type: ignore[union-attr]


def check_end(crash: Crash, before: dict[str, Task], graph: TaskGraph, expected: dict[str, str]) -> None:
    """Check all that has to hold of a graph that was carried on with after a crash."""
    where = f"append {crash.at}, {crash.moment}"
    assert {task.name: str(task.status) for task in graph} == expected, where
    with SQLiteStore(crash.ledger, read_only=True) as store:
        assert verify(store._readers).problems == [], where
        assert (store.interrupted(), store.owed()) == ([], []), where
        for task in graph:
            attempts = started(store, task)
            assert attempts == list(range(1, len(attempts) + 1)), where
            was = before.get(task.name)
            if was is not None and was.is_succeeded:
                assert len(attempts) == was.attempts, f"{where}: {task.name} had succeeded, and ran again"
            if was is not None and was.is_running:
                assert len(attempts) > was.attempts, f"{where}: {task.name} was interrupted, and not run again"
            ends = store.events(task=task, type="TaskSucceeded")
            assert len(ends) == (expected[task.name] == "succeeded"), where
        runs = [str(run.status) for run in store.runs(graph=graph)]
        assert runs == ["succeeded" if graph.ok else "failed"], f"{where}: it is the same run"
        assert processes_of(store._ledger) == [], where


@pytest.mark.campaign
@pytest.mark.parametrize("shape", SHAPES)
def test_a_run_that_is_stopped_at_any_append_is_resumed_to_the_same_end(
    crash_lab: MakeLab,
    shape: str,
) -> None:
    build, expected = SHAPES[shape]
    lab = crash_lab(build)
    stops = [(at, moment) for at in range(1, lab.appends() + 1) for moment in Moment]
    if not CAMPAIGN:
        stops = random.Random(shape).sample(stops, min(len(stops), 12))
    happened = 0
    for at, moment in stops:
        crash = lab.crash(at, moment)
        happened += crash.happened
        before = crash.tasks() if crash.ledger.exists() else {}
        graph = crash.carry_on()
        check_end(crash, before, graph, expected)
    assert happened >= len(stops) - 3


@pytest.mark.campaign
@pytest.mark.parametrize("shape", ["cleanup", "retries", "shell"])
def test_a_resume_that_is_stopped_itself_is_resumed_to_the_same_end(crash_lab: MakeLab, shape: str) -> None:
    build, expected = SHAPES[shape]
    lab = crash_lab(build)
    chance = random.Random(shape)
    appends = lab.appends()
    for _ in range(15 if CAMPAIGN else 3):
        crash = lab.crash(chance.randint(2, appends - 1), chance.choice(list(Moment)))
        before = crash.tasks()
        for _ in range(2):  # a third interruption would make a task wait for a person
            crash = crash.crash_again(chance.randint(1, 4), chance.choice([Moment.BEFORE, Moment.AFTER]))
            before = {**before, **{name: task for name, task in crash.tasks().items() if task.is_succeeded}}
        if any(task._view.interruptions + task.is_running >= INTERRUPTIONS_MAX for task in crash.tasks().values()):
            continue  # one waits for a person now
        check_end(crash, {name: task for name, task in before.items() if task.is_succeeded}, crash.carry_on(), expected)


@pytest.mark.campaign
def test_with_several_workers_too_a_run_is_resumed_to_the_same_end(crash_lab: MakeLab) -> None:
    build, expected = SHAPES["fan"]
    lab = crash_lab(build, max_workers=4)
    stops = [(at, moment) for at in range(1, lab.appends() + 1) for moment in Moment]
    for at, moment in stops if CAMPAIGN else random.Random(4).sample(stops, 6):
        crash = lab.crash(at, moment)
        check_end(crash, crash.tasks() if crash.ledger.exists() else {}, crash.carry_on(), expected)


# --- the lab itself --------------------------------------------------------------------------------------------------


def test_before_an_append_nothing_of_it_is_there_and_after_it_all_is(crash_lab: MakeLab) -> None:
    lab = crash_lab(SHAPES["chain"][0])
    assert lab.appends() == 7, "all that is new; a start; four ends, of which three start the next; the end of the run"
    assert lab.crash(1, Moment.BEFORE).tasks() == {}
    saved = lab.crash(1, Moment.AFTER).tasks()
    assert {name: str(task.status) for name, task in saved.items()} == dict.fromkeys("abcd", "pending")
    assert str(lab.crash(3, Moment.BEFORE).tasks()["a"].status) == "running"
    ended = lab.crash(3, Moment.AFTER).tasks()
    assert [str(ended[name].status) for name in "ab"] == ["succeeded", "running"]


def test_an_append_that_nobody_saw_is_there(crash_lab: MakeLab) -> None:
    crash = crash_lab(SHAPES["chain"][0]).crash(3, Moment.UNSEEN)
    assert crash.happened
    assert crash.tasks()["a"].is_succeeded


def test_a_run_that_makes_fewer_appends_ends_as_it_ends(crash_lab: MakeLab) -> None:
    crash = crash_lab(SHAPES["chain"][0]).crash(1000, Moment.AFTER)
    assert not crash.happened
    assert {str(task.status) for task in crash.tasks().values()} == {"succeeded"}


def test_iterating_gives_each_append_and_each_moment_once(crash_lab: MakeLab) -> None:
    stops = [(crash.at, crash.moment) for crash in crash_lab(one_task)]
    assert stops == [(at, moment) for at in (1, 2, 3, 4) for moment in Moment]


def test_a_graph_that_can_not_be_built_is_said(crash_lab: MakeLab) -> None:
    with pytest.raises(RuntimeError, match=r"append 1 \(after\): the run ended with exit code 1"):
        crash_lab(no_graph).crash(1, Moment.AFTER)


def test_a_run_that_does_not_end_is_ended(crash_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttasks.testing.crash.PATIENCE_S", 1)
    with pytest.raises(TimeoutError, match="did not end within 1 seconds"):
        crash_lab(endless).crash(1000, Moment.AFTER)


def one_task(executor: TaskExecutor) -> TaskGraph:
    graph = TaskGraph()
    graph.add(Task.bash("true"))
    return graph


def no_graph(executor: TaskExecutor) -> TaskGraph:
    raise ValueError("there is none")


def endless(executor: TaskExecutor) -> TaskGraph:
    executor.register(TaskType.BASH, forever)
    return one_task(executor)


def forever(context: TaskContext) -> None:
    threading.Event().wait()
