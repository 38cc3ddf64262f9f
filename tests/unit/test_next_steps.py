"""What a person can do next, by where the latest run stands and what was left of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from strategies import AT, member
from ttasks.events.status import OnInterrupted, RunStatus, TaskStatus, TaskType
from ttasks.state.next_steps import Step, for_graph, for_task, of_task
from ttasks.state.task import TaskState

ASK = {"status": TaskStatus.INTERRUPTED, "on_interrupted": OnInterrupted.ASK}
AGAIN = {"status": TaskStatus.INTERRUPTED}
MEMBERS = {"work": member("work"), "clean": member("clean", "work", is_finally=True)}
OPEN, FAILED, CANCELLED = RunStatus.INTERRUPTED, RunStatus.FAILED, RunStatus.CANCELLED


def task(id_: str, **changes: Any) -> TaskState:
    state = TaskState(
        id=id_,
        name=id_,
        title=id_,
        type=TaskType.BASH,
        status=TaskStatus.SUCCEEDED,
        payload="true",
        description="",
        created_at=AT,
        timeout=None,
        cwd=None,
        env=None,
        env_digests=None,
        on_interrupted=OnInterrupted.RERUN,
        derived_from=None,
        version=1,
    )
    return replace(state, **changes)


def steps(
    status: RunStatus | None,
    work: dict[str, Any],
    clean: dict[str, Any],
    *,
    is_cancelled: bool = False,
    errors: str = "",
) -> list[str]:
    tasks = {"work": task("work", **work), "clean": task("clean", **clean)}
    left = {id_ for id_, state in tasks.items() if state.status is TaskStatus.INTERRUPTED}
    found = for_graph("g", status, MEMBERS, tasks, left, errors.split(), is_cancelled=is_cancelled)
    return [step.words() for step in found]


@pytest.mark.parametrize(
    ("status", "work", "clean", "words"),
    [
        (None, {}, {}, []),
        (RunStatus.RUNNING, {}, {}, ["cancel g"]),
        (RunStatus.RUNNING, ASK, {}, ["resolve work --rerun", "cancel g"]),
        (RunStatus.SUCCEEDED, {}, {}, []),
        (OPEN, AGAIN, {}, ["resume g"]),
        (OPEN, ASK, AGAIN, ["resolve work --rerun", "resume g"]),
        (FAILED, AGAIN, ASK, ["resolve clean --rerun", "resume work"]),
        (FAILED, {}, {}, []),
        (CANCELLED, {"status": TaskStatus.CANCELLED}, {}, ["retry g"]),
        (CANCELLED, {"status": TaskStatus.CANCELLED}, ASK, ["resolve clean --rerun"]),
    ],
)
def test_the_steps_follow_from_the_run_and_what_was_left(
    status: RunStatus | None, work: dict[str, Any], clean: dict[str, Any], words: list[str]
) -> None:
    assert steps(status, work, clean) == words


def test_of_a_cancelled_run_that_can_go_on_only_finally_tasks_ask() -> None:
    assert steps(OPEN, ASK, ASK, is_cancelled=True) == ["resolve clean --rerun", "resume g"]
    assert steps(CANCELLED, ASK, ASK, is_cancelled=True) == ["resolve work --rerun", "resolve clean --rerun"]


def test_a_run_whose_tasks_have_all_succeeded_is_retried_only_for_an_error() -> None:
    assert steps(FAILED, {}, {}, errors="work") == ["retry g"]


def test_a_step_gives_again_what_is_withheld_of_the_tasks_that_it_runs() -> None:
    secret = {"env_digests": {"TOKEN": "…", "API KEY": "…"}}
    options = " --env 'API KEY' --env TOKEN"
    assert steps(OPEN, {**AGAIN, **secret}, {}) == [f"resume g{options}"]
    assert steps(OPEN, {**AGAIN, **secret}, {"status": TaskStatus.PENDING}, is_cancelled=True) == ["resume g"]
    assert steps(FAILED, {"status": TaskStatus.FAILED}, secret) == [f"retry g{options}"], "finally tasks are repeated"
    assert steps(FAILED, secret, {"status": TaskStatus.FAILED}) == ["retry g"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [(ASK, ["resolve t --rerun"]), (AGAIN, ["resume t"]), ({}, []), ({**AGAIN, "cancel_requested_by": "kim"}, [])],
)
def test_a_task_by_itself_is_decided_or_gone_on_with(changes: dict[str, Any], words: list[str]) -> None:
    assert [step.words() for step in for_task(task("t", **changes))] == words


def test_a_task_has_its_own_steps_and_those_of_its_graph_but_no_cancel_of_others() -> None:
    found = [Step("resolve", "a", ""), Step("resolve", "b", ""), Step("retry", "g", ""), Step("cancel", "g", "")]
    assert of_task(found, "a", "g") == [found[0], found[2]]
    assert found[0].words("short") == "resolve short"
