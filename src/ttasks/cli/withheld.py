"""What a ledger withholds of tasks that are to run: taken from the workflow file as it was, or from the environment."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ttasks.cli.app import Hint
from ttasks.cli.text import console
from ttasks.cli.workflow import Workflow, WorkflowTask, load_workflow
from ttasks.display import printable, short
from ttasks.errors import NotFoundError, WorkflowError
from ttasks.events.facts import LedgerCreated, Source
from ttasks.events.status import TaskStatus
from ttasks.log.reading import Readers
from ttasks.log.redaction import MASK
from ttasks.log.secrets import digest
from ttasks.model.graph import TaskGraph
from ttasks.model.task import Task
from ttasks.state.next_steps import Step
from ttasks.state.task import TaskState

TEXTS: Final = ("payload", "cwd")
"""Without these a task can't run."""


@dataclass
class Restored:
    """What a workflow file has of one task that its ledger withholds, and what of that it has not."""

    texts: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    lost_texts: list[str] = field(default_factory=list)
    lost_env: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, state: TaskState, spec: WorkflowTask | None, names: Iterable[str], key: str) -> Restored:
        """Look for a task's redacted texts and for the values of variables; `key` is that of the ledger's digests.

        A text counts where the recorded one can be made of it, and a value where its digest is the recorded one: the
        task may have been changed after it was made from the file.
        """
        restored = cls()
        for name in TEXTS:
            if name not in (state.redacted or ()):
                continue
            text = getattr(spec, name) if spec is not None else None
            if text is not None and _fits(text, getattr(state, name)):
                restored.texts[name] = text
            else:
                restored.lost_texts.append(name)
        for name in names:
            value = spec.env.get(name) if spec is not None else None
            if value is not None and digest(value, key) == (state.env_digests or {}).get(name):
                restored.env[name] = value
            else:
                restored.lost_env.append(name)
        return restored


def _fits(text: str, recorded: str) -> bool:
    """True when a recorded text may be this one with masks in place of parts of it."""
    first, *others = recorded.split(MASK)
    if not others:
        return text == recorded
    *between, last = others
    at = len(first)
    if not text.startswith(first):
        return False
    for part in between:
        found = text.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return text.endswith(last) and len(text) - len(last) >= at


def as_recorded(source: Source | None) -> Workflow | None:
    """Return the workflow file that a graph was made from, where it is what it was then."""
    if source is None:
        return None
    try:
        workflow = load_workflow(Path(source.path))
    except WorkflowError:
        return None
    return workflow if workflow.sha256 == source.sha256 else None


def _specs(workflow: Workflow | None, states: Sequence[TaskState]) -> dict[str, WorkflowTask]:
    """Return by task id what the file says of each task: they come in its order, and names may be redacted."""
    specs = list(workflow.tasks.values()) if workflow is not None else []
    is_alike = len(specs) == len(states) and all(
        state.name == spec.name or "name" in (state.redacted or ()) for state, spec in zip(states, specs, strict=True)
    )
    return {state.id: spec for state, spec in zip(states, specs, strict=True)} if is_alike else {}


def _digest_key(readers: Readers) -> str:
    first = next(readers.events(limit=1)).fact
    assert isinstance(first, LedgerCreated)
    return first.digest_key


def give_again(readers: Readers, handle: TaskGraph | Task, variables: Sequence[str]) -> None:
    """Give what is withheld again: of these variables from the environment, then from the workflow file as it was.

    What is given and differs from what was recorded is said, and so is a file that was changed where it was needed.

    Raises:
        NotFoundError: a variable is not in the environment. Nothing was given.
    """
    unset = [name for name in variables if name not in os.environ]
    if unset:
        raise NotFoundError(
            f"--env {unset[0]}: there is no such variable in the environment. Nothing was run or written"
        )
    everything = list(handle) if isinstance(handle, TaskGraph) else [handle]
    lacking = [task for task in everything if not task.is_succeeded and task._given.missing(task._view)]
    if not lacking:
        return
    key = _digest_key(readers)
    _give_variables(lacking, {name: os.environ[name] for name in variables}, key)
    lacking = [task for task in lacking if task._given.missing(task._view)]
    source = handle._source if isinstance(handle, TaskGraph) else None
    if not lacking or source is None:
        return
    workflow = as_recorded(source)
    if workflow is None:
        said = f"{source.path} is not what it was then, so what the ledger withholds can't be taken from it"
        console(stderr=True).print(printable(f"ttasks: {said}"))
    specs = _specs(workflow, [task._view for task in everything])
    for task in lacking:
        found = Restored.of(task._view, specs.get(task.id), task._given.missing_env, key)
        if found.texts or found.env:
            task.give_again(payload=found.texts.get("payload"), cwd=found.texts.get("cwd"), env=found.env)


def _give_variables(tasks: Iterable[Task], values: Mapping[str, str], key: str) -> None:
    other: dict[str, list[str]] = {}
    for task in tasks:
        again = {name: value for name, value in values.items() if name in task._given.missing_env}
        for name, value in again.items():
            if digest(value, key) != (task._view.env_digests or {}).get(name):
                other.setdefault(name, []).append(task.name)
        if again:
            task.give_again(env=again)
    for name, names in other.items():
        said = f"{name} is not the value that it was: its digest differs from what is recorded of {', '.join(names)}"
        console().print(printable(f"{said}. What is given now counts"))


def words_to_go_on(readers: Readers, id_: str, command: str) -> str | None:
    """Return the words that go on with a graph or task by ``resume`` or ``retry``.

    They name the variables that have to be given again, whose values are not in the workflow file as it was. None: a
    script or folder is withheld that can't be taken from there either.
    """
    words = f"{command} {short(id_)}"
    graph = readers.graph(id_)
    tasks = readers.tasks_of_graph(id_) if graph is not None else {}
    states = [tasks[task_id] for task_id in graph.members] if graph is not None else [_task(readers, id_)]
    finally_ids = {task_id for task_id, member in graph.members.items() if member.is_finally} if graph else set()
    needed = [
        state
        for state in states
        if _is_to_run(state.status, command, is_finally=state.id in finally_ids)
        and (state.env_digests or set(TEXTS) & set(state.redacted or ()))
    ]
    if not needed:
        return words
    workflow = as_recorded(graph.source) if graph is not None else None
    specs, key, names = _specs(workflow, states), _digest_key(readers), set[str]()
    for state in needed:
        found = Restored.of(state, specs.get(state.id), state.env_digests or (), key)
        if found.lost_texts:
            return None
        names.update(found.lost_env)
    return words + "".join(f" --env {shlex.quote(name)}" for name in sorted(names))


def _task(readers: Readers, id_: str) -> TaskState:
    state = readers.task(id_)
    assert state is not None
    return state


def _is_to_run(status: TaskStatus, command: str, *, is_finally: bool) -> bool:
    if command == "retry":
        return status is not TaskStatus.SUCCEEDED or is_finally
    return not status.is_sink


def say_how_to_go_on(readers: Readers, id_: str, command: str, what: str, hint: Hint) -> None:
    """Print the command line that goes on with a graph or task after `what`, or why there is none."""
    words = words_to_go_on(readers, id_, command)
    if words is not None:
        console().print(f"{what}: {hint(words)}")
        return
    graph = readers.graph(id_)
    source = graph.source if graph is not None else None
    how = f"and {source.path} is not what it was then" if source is not None else "in Python: task.give_again(…)"
    why = f"it can't go on by a command: the ledger withholds a script or folder of it, {how}"
    console().print(printable(why))


def say_step(readers: Readers, step: Step, what: str, hint: Hint) -> None:
    """Print the command line of what a person can do next after `what`; of a resume or retry only one that can work."""
    if step.verb in ("resume", "retry"):
        say_how_to_go_on(readers, step.id, step.verb, what, hint)
    else:
        console().print(f"{what}: {hint.step(step)}")
