"""However a run is stopped, and wherever: it is resumed to the same end, and nothing that was done is done again."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import psutil
import pytest
from crash_graphs import SHAPES

from ttasks import SQLiteStore, Task, TaskGraph
from ttasks.log.verify import verify
from ttasks.testing import Crash, CrashLab, Moment

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
MakeLab = Callable[..., CrashLab]


def processes_of(ledger: str) -> list[psutil.Process]:
    """Return what runs of any attempt of a ledger."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        mark = (process.info["environ"] or {}).get("TTASKS_ATTEMPT", "")
        if mark.startswith(f"{ledger}:") and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


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
        assert store.runs(graph=graph)(limit=1).__iter__().__next__().status == (
            "succeeded" if graph.ok else "failed"
        ), where
        assert len(store.runs(graph=graph)) == 1, f"{where}: it is the same run"
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
