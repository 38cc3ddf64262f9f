"""What a person can do next about a graph or a task: decided here alone, rendered by the command and the pages."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from ttasks.events.facts import Member
from ttasks.events.status import RunStatus, TaskStatus
from ttasks.state.reconcile import Then, reconcile
from ttasks.state.task import TaskState

ANSWERS: Final = ("--rerun", "--succeeded", "--failed")


@dataclass(frozen=True)
class Step:
    """A command that a person can give: ``ttasks VERB ID OPTIONS``.

    `why` says what it does, as the beginning of a sentence. `alternatives` are options that may be given instead of the
    first of `options`.
    """

    verb: Literal["resolve", "resume", "retry", "cancel"]
    id: str
    why: str
    options: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    def words(self, id_: str | None = None) -> str:
        """Return the words of the command after its name; `id_` is another way to name what it is about."""
        return " ".join([self.verb, id_ or self.id, *map(shlex.quote, self.options)])


def for_graph(
    graph_id: str,
    status: RunStatus | None,
    members: Mapping[str, Member],
    tasks: Mapping[str, TaskState],
    left: Collection[str],
    errors: Collection[str],
    *,
    is_cancelled: bool,
) -> list[Step]:
    """Return what a person can do about a graph, in the order in which it is best done.

    Args:
        graph_id: the graph; it is not deleted.
        status: where its latest run stands, as far as this host can tell (None: it was never run).
        members: its tasks' places in it.
        tasks: its tasks.
        left: those of them that nobody runs though they have not come to an end.
        errors: those of them that have an error of the latest run.
        is_cancelled: a cancel of the latest run was asked for.
    """
    is_open = status is RunStatus.INTERRUPTED
    steps: list[Step] = []
    again: list[Step] = []
    for member in members.values():
        task = tasks[member.task]
        if task.id not in left:
            continue
        is_given_up = is_open and is_cancelled and not member.is_finally
        then = reconcile(task, is_alive=False, is_run_cancelled=is_given_up).then
        if then is Then.PERSON:
            steps.append(_resolve(task))
        elif then in (Then.AGAIN, Then.WAIT):
            again.append(_resume(task))
    places = [(member, tasks[member.task]) for member in members.values()]
    if is_open:
        to_run = [
            task
            for member, task in places
            if (task.status is TaskStatus.PENDING or task.id in left) and (member.is_finally or not is_cancelled)
        ]
        steps.append(Step("resume", graph_id, "Go on with it", _given_again(to_run)))
    elif status is RunStatus.RUNNING:
        steps.append(Step("cancel", graph_id, "Cancel it"))
    else:
        steps += again
    is_ok = all(
        task.status is TaskStatus.SUCCEEDED and task.id not in errors for member, task in places if member.is_required
    )
    # A retry would do again what waits for a person: it is refused until that has an answer.
    asks = any(step.verb == "resolve" for step in steps)
    if status in (RunStatus.FAILED, RunStatus.CANCELLED) and not is_ok and not asks:
        to_run = [task for member, task in places if member.is_finally or task.status is not TaskStatus.SUCCEEDED]
        steps.append(Step("retry", graph_id, "Carry on", _given_again(to_run)))
    return steps


def for_task(task: TaskState) -> list[Step]:
    """Return what a person can do about a task that nobody runs, and that is of no graph which can go on."""
    then = reconcile(task, is_alive=False).then
    if then is Then.PERSON:
        return [_resolve(task)]
    return [_resume(task)] if then in (Then.AGAIN, Then.WAIT) else []


def of_task(steps: Iterable[Step], task_id: str, graph_id: str) -> list[Step]:
    """Return those of the steps about a graph that concern one of its tasks, which was left."""
    return [step for step in steps if step.id in (task_id, graph_id) and step.verb != "cancel"]


def _resolve(task: TaskState) -> Step:
    rerun, *others = ANSWERS
    return Step("resolve", task.id, "Decide what it counts as", (rerun,), tuple(others))


def _resume(task: TaskState) -> Step:
    return Step("resume", task.id, "Go on with it", _given_again([task]))


def _given_again(tasks: Iterable[TaskState]) -> tuple[str, ...]:
    """Return the options that give the secret variables again that the ledger withholds of these tasks."""
    names = sorted({name for task in tasks for name in task.env_digests or ()})
    return tuple(word for name in names for word in ("--env", name))
