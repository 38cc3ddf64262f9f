"""Going on with what was interrupted, and carrying on with what ended."""

from __future__ import annotations

import contextlib
import hashlib
import shlex
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.text import Text

from ttasks.cli.app import EXIT_NOT_OK, Hint
from ttasks.cli.look import find
from ttasks.cli.run import (
    DEFAULT_WORKERS,
    Ended,
    Terminated,
    carry_out,
    exit_code,
    hear_signals,
    latest_interrupted,
    reporting,
)
from ttasks.cli.surroundings import say_what_differs
from ttasks.cli.text import console, state
from ttasks.cli.withheld import give_again, say_step, words_to_go_on
from ttasks.cli.workflow import load_workflow
from ttasks.display import count, moment, printable, short
from ttasks.errors import (
    AlreadyRunningError,
    LedgerUnwritableError,
    NotFoundError,
    NotResumableError,
    SurvivorError,
    TransitionError,
    TtasksError,
)
from ttasks.events.status import RunStatus
from ttasks.log.reading import Readers
from ttasks.model.graph import TaskGraph
from ttasks.model.interrupted import Interrupted
from ttasks.model.task import Task
from ttasks.runtime.executor import TaskExecutor
from ttasks.runtime.graph_run import INTERRUPTIONS_MAX
from ttasks.runtime.nesting import is_cancelled_outside
from ttasks.runtime.resume import ResumedRun, ResumedTask, missing_folder, prepare, run_folder, withheld
from ttasks.state.naming import named
from ttasks.stores.interrupted import Leftovers
from ttasks.stores.ledger import SQLiteStore

NOTHING: Final = "nothing to resume: no run and no task was interrupted. After a failure, it is `ttasks retry`"
PAUSE_S: Final = 0.1
"""How long to wait before a task that is to stop, and may have been about to start, is looked for again."""


@dataclass(frozen=True)
class Options:
    """How to go on. `variables` names secrets that are given again, from the environment."""

    variables: Sequence[str] = ()
    finally_only: bool = False
    force_handlers: bool = False

    def words(self) -> str:
        """Return these options as they are given to ``resume``."""
        said = [f"--env {shlex.quote(name)}" for name in self.variables]
        said += [
            name
            for name, is_given in (("--finally-only", self.finally_only), ("--force-handlers", self.force_handlers))
            if is_given
        ]
        return "".join(f" {each}" for each in said)


def list_interrupted(path: Path, part: str | None, hint: Hint) -> None:
    """Print what was interrupted, and which finally tasks are owed; nothing is written."""
    out = console()
    with SQLiteStore(path, read_only=True) as store:
        only = find(store._readers, part)[1] if part is not None else None
        found = [work for work in store.interrupted() if only in (None, work.id, *_tasks_of(work))]
        owed = [one for one in store.owed() if only in (None, one.graph_id, one.task_id)]
        for work in found:
            _show(store, work, hint)
        listed = {work.id for work in found}
        for one in owed:
            if one.graph_id not in listed:
                task, graph = short(one.task_id), short(one.graph_id)
                out.print(f"owed: finally task '{printable(one.title) or task}' ({task}) of graph {graph}")
                if one.task_id not in listed:
                    _print_steps(store, hint, one.task_id, {})
    if not found and not owed:
        out.print(NOTHING if only is None else f"nothing to resume: {only} was not interrupted")


def _tasks_of(work: Interrupted) -> set[str]:
    return {*work.running, *work.asking, *work.left, *work.owed}


def _show(store: SQLiteStore, work: Interrupted, hint: Hint) -> None:
    out = console()
    # A graph's by the graph: one that was deleted by itself is still part of that.
    tasks = store.graphs[work.id] if work.kind == "graph" else [store.tasks[work.id]]
    waited = {task.id for task in tasks if task._view.retry_due_at is not None}
    names = {task.id: printable(task.name) for task in tasks}

    def named(ids: Sequence[str]) -> str:
        return ", ".join(names[id_] or short(id_) for id_ in ids)

    run = f", run {work.run}" if work.run is not None else ""
    title = f": {printable(work.title)}" if work.title else ""
    out.print(Text.assemble(state("interrupted"), f" {work.kind} {short(work.id)}{run}{title}"))
    heard = f", last heard of at {moment(work.heard_at)}" if work.heard_at is not None else ""
    out.print(f"  {printable(work.why)}{heard}")
    if work.is_cancelled:
        out.print("  it was cancelled: only what is owed will run")
    for what, ids in (
        ("was running", [id_ for id_ in work.running if id_ not in waited]),
        ("waited for its retry", [id_ for id_ in work.running if id_ in waited]),
    ):
        if ids:
            out.print(f"  {what}: {named(ids)}")
    if work.kind == "graph":
        out.print(f"  not begun: {count(len(work.left), 'task')}; owed: {named(work.owed) or 'no finally task'}")
    _print_steps(store, hint, work.id, names)


def _print_steps(store: SQLiteStore, hint: Hint, id_: str, names: Mapping[str, str]) -> None:
    """Print what a person can do next about a graph, or about a task."""
    left = Leftovers(store._readers)
    task = store._readers.task(id_)
    for step in left.steps_of_task(task) if task is not None else left.steps_of_graph(id_):
        if step.verb == "resolve":
            what = f"waits for a person: {names.get(step.id) or short(step.id)}"
        else:
            what = step.why[0].lower() + step.why[1:]
        say_step(store._readers, step, f"  {what}", hint)


def resume_file(path: Path, file: Path, hint: Hint, variables: Sequence[str]) -> int:
    """Go on with the latest run of a workflow file; return the exit code."""
    workflow = load_workflow(file)
    Readers.open(path)  # before anything is opened for writing
    with SQLiteStore(path) as store:
        left = latest_interrupted(store, workflow.path)
        if left is None:
            latest, name = store._readers.graph_of_file(str(workflow.path)), printable(str(file))
            if latest is not None:
                _refuse_what_runs(store, latest)
            is_known = "the latest run of {} was not interrupted" if latest else "{} was never run into this ledger"
            console().print(f"nothing to resume: {is_known.format(name)}")
            return 0
    return resume_interrupted(path, left.id, hint, Options(variables))


def resume_interrupted(path: Path, part: str | None, hint: Hint, options: Options) -> int:
    """Go on with a graph or task, or with everything; return the exit code."""
    out = console()
    readers = Readers.open(path)  # before anything is opened for writing
    only = find(readers, part)[1] if part is not None else None
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        found = [work for work in store.interrupted() if only in (None, work.id)]
        if only is not None and not found:
            _refuse_what_runs(store, only)
        if options.finally_only:
            tasks = [work for work in found if work.kind == "task"]
            found = [work for work in found if work.kind == "graph"]
            if only is not None and tasks:
                raise NotFoundError(f"{only} is a task: --finally-only is for graphs. Nothing was run or written")
        ready = [(work, handle) for work in found if work.can_go_on for handle in [_handle(store, work)]]
        for _, handle in ready:
            give_again(readers, handle, options.variables)
        # All are looked at before the first begins: what can't be restored is said before anything runs.
        runs = [(work, handle, _prepared(executor, store, handle, options, ready, hint)) for work, handle in ready]
        for work in found:
            if not work.can_go_on:
                _show(store, work, hint)
        if not found:
            out.print(NOTHING if only is None else f"nothing to resume: {only} was not interrupted")
        for work, _, run in runs:
            if run is not None and work.kind == "graph":
                say_what_differs(store, work.id)
        status = 0
        for work, handle, run in runs:
            if run is None:
                continue
            if isinstance(handle, TaskGraph):
                _say_whether_changed(handle, hint)
            try:
                ended = _go_on(executor, store, work, handle, run, path, hint)
            except (AlreadyRunningError, SurvivorError) as refusal:  # it keeps no other from going on
                console(stderr=True).print(f"ttasks: {printable(str(refusal))}")
                ended = Ended(EXIT_NOT_OK, False)
            status = ended.code or status
            if ended.is_stopped:
                break
        return status


def _say_whether_changed(graph: TaskGraph, hint: Hint) -> None:
    """Say so where the workflow file that a graph was made from is not what it was then."""
    source = graph._source
    if source is None:
        return
    try:
        is_same = hashlib.sha256(Path(source.path).read_bytes()).hexdigest() == source.sha256
        what = "was changed since"
    except OSError:
        is_same, what = False, "can't be read any more"
    if not is_same:
        path, here = Path(source.path), Path.cwd()
        file = str(path.relative_to(here) if path.is_relative_to(here) else path)
        anew = f"; as it is now: {hint(f'run {shlex.quote(file)}')}" if "changed" in what else ""
        console().print(printable(f"{file} {what}: what goes on is what was recorded of it then{anew}"))


def _prepared(
    executor: TaskExecutor,
    store: SQLiteStore,
    handle: TaskGraph | Task,
    options: Options,
    all_of_them: Sequence[tuple[Interrupted, TaskGraph | Task]],
    hint: Hint,
) -> ResumedRun | ResumedTask | None:
    """Return what goes on with one of several; where it can't, say how to go on with those that can."""
    try:
        return prepare(executor, store, handle, options.finally_only, options.force_handlers)
    except NotResumableError:
        others = [
            hint(f"resume {short(other.id)}{options.words()}")
            for other, its_handle in all_of_them
            if its_handle is not handle and _can_go_on(executor, store, its_handle, options)
        ]
        if others:
            said = (
                f"one of {len(all_of_them)} can't go on as it was, so none was started. The others: {'; '.join(others)}"
            )
            console(stderr=True).print(f"ttasks: {said}")
        raise


def _can_go_on(executor: TaskExecutor, store: SQLiteStore, handle: TaskGraph | Task, options: Options) -> bool:
    try:
        prepare(executor, store, handle, options.finally_only, options.force_handlers)
    except TtasksError:
        return False
    return True


def _refuse_what_runs(store: SQLiteStore, id_: str) -> None:
    """Raise AlreadyRunningError where somebody runs what was to be resumed."""
    if id_ in store.graphs:
        prepare(TaskExecutor(store), store, store.graphs[id_], False, False)
    elif id_ in store.tasks:
        prepare(TaskExecutor(store), store, store.tasks[id_], False, False)
    else:
        raise NotFoundError(f"{id_} was deleted: there is nothing to resume")


def _handle(store: SQLiteStore, work: Interrupted) -> TaskGraph | Task:
    return store.graphs[work.id] if work.kind == "graph" else store.tasks[work.id]


def _go_on(
    executor: TaskExecutor,
    store: SQLiteStore,
    work: Interrupted,
    handle: TaskGraph | Task,
    run: ResumedRun | ResumedTask,
    path: Path,
    hint: Hint,
) -> Ended:
    if isinstance(handle, TaskGraph):
        return carry_out(executor, store, handle, path, hint, run.run, again=f"going on with run {work.run}, ")
    out = console()
    name = printable(handle.title or short(handle.id))
    out.print(f"{name}: going on with task {handle.id}, ledger {printable(str(path))}")
    hear_signals()
    with reporting(executor, {handle.id: printable(handle.name)}):
        stopped_by = _see_through(executor, handle, run.run)
    out.print(Text.assemble(f"{name}: ", state(handle.status)))
    for step in Leftovers(store._readers).steps_of_task(handle._view):
        what = "it waits for a person" if step.verb == "resolve" else step.why
        say_step(store._readers, step, what, hint)
    return Ended(exit_code(handle.status, stopped_by), stopped_by is not None)


def _see_through(executor: TaskExecutor, task: Task, start: Callable[[], None]) -> BaseException | None:
    """Run a task by `start`, and return what cut it short: as in a graph, one Ctrl-C cancels it, what follows stops it.

    As there, one SIGTERM counts as a Ctrl-C inside an attempt that was cancelled, and a second one ends the grace.

    The thread that signals reach only waits, so that nothing is recorded by halves.
    """
    ended: Future[None] = Future()

    def work() -> None:
        try:
            start()
            ended.set_result(None)
        except BaseException as error:  # noqa: BLE001 - it is raised by whoever waits
            ended.set_exception(error)

    threading.Thread(target=work, name="ttasks-resume", daemon=True).start()
    interruptions: list[KeyboardInterrupt | Terminated] = []
    is_cancel: bool | None = None
    while True:
        try:
            for last in interruptions[-1:]:
                if is_cancel is None:
                    is_cancel = _means_cancel(last)
                live = executor._live.get(task.id)
                if len(interruptions) == 1 and is_cancel:
                    executor.cancel(task)
                elif live is not None:  # else it is about to start: it is looked for again in a moment
                    live.stop()
                    if len(interruptions) > 1 and isinstance(last, Terminated):
                        live.hurry()
            wait([ended], PAUSE_S)  # not for longer: a signal may come just before it falls asleep (see `clock.wait`)
            if ended.done():
                break
        except (KeyboardInterrupt, Terminated) as interruption:
            if len(interruptions) == INTERRUPTIONS_MAX:
                raise
            interruptions.append(interruption)
    error = ended.exception()
    if error is not None and (not interruptions or isinstance(error, LedgerUnwritableError)):
        raise error
    return interruptions[-1] if interruptions else None


def _means_cancel(interruption: KeyboardInterrupt | Terminated) -> bool:
    if isinstance(interruption, KeyboardInterrupt):
        return True
    return interruption.code == 128 + signal.SIGTERM and is_cancelled_outside()


def retry_graph(
    path: Path, part: str | None, hint: Hint, names: Sequence[str], variables: Sequence[str], jobs: int | None
) -> int:
    """Carry on with a graph that ended, as a new one; return the exit code."""
    table, graph_id = find(Readers.open(path), part)
    if table != "graphs":
        raise NotFoundError(f"{graph_id} is a task: what is retried is a graph")
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        if graph_id not in store.graphs:
            raise NotFoundError(f"graph {graph_id} was deleted: there is nothing to retry")
        old = store.graphs[graph_id]
        if old.run_status in (RunStatus.RUNNING, RunStatus.INTERRUPTED):
            with contextlib.suppress(NotResumableError):  # that is for `resume` to say
                prepare(executor, store, old, False, True)  # AlreadyRunningError where it runs
            go_on = words_to_go_on(store._readers, graph_id, "resume") or f"resume {short(graph_id)}"
            raise TransitionError(
                f"{named('graph', old.title, graph_id)} was interrupted: go on with it ({hint(go_on)}), or only with "
                f"its finally tasks ({hint(f'{go_on} --finally-only')}), and retry it then"
            )
        if old.ok and not names:
            console().print(
                f"nothing to retry: every task succeeded. {hint(f'retry {short(graph_id)} --task NAME')} repeats one"
            )
            return 0
        again_tasks = [_named(old, name) for name in names]
        _refuse_what_asks(store, old, again_tasks, hint)
        graph = old.retry(again_tasks or None)
        give_again(store._readers, graph, variables)
        to_run = [task for task in graph if not task.is_succeeded]
        problems = [problem for task in to_run for problem in withheld(task)]
        folder = run_folder(store._readers, graph_id)
        problems += missing_folder(folder, to_run)
        if problems:
            raise NotResumableError(f"graph '{graph.title or graph.id}'", problems)
        workers = jobs or graph._max_workers or DEFAULT_WORKERS
        again = f"carrying on with graph {short(graph_id)}, "
        _say_whether_changed(old, hint)
        say_what_differs(store, graph_id)
        with contextlib.ExitStack() as there:
            if folder is not None and any(task.cwd is None for task in to_run):
                console().print(f"in {printable(folder)}, where that run was started")
                there.enter_context(contextlib.chdir(folder))
            return carry_out(executor, store, graph, path, hint, lambda: graph.run(executor, workers), again=again).code


def _refuse_what_asks(store: SQLiteStore, graph: TaskGraph, again: Sequence[Task], hint: Hint) -> None:
    """Raise TransitionError where a retry would do a task again that was interrupted and waits for a person."""
    for step in Leftovers(store._readers).steps_of_graph(graph.id):
        task = next((task for task in graph if task.id == step.id), None)
        if step.verb != "resolve" or task is None or task in again:
            continue
        repeat = hint(f"retry {short(graph.id)} --task {shlex.quote(task.name)}")
        raise TransitionError(
            f"{named('task', task.title, task.id)} was interrupted and waits for a person, so that it is not done "
            f"twice. Nothing was run. Say what it counts as: {hint.step(step)}; or do it again: {repeat}"
        )


def _named(graph: TaskGraph, name: str) -> Task:
    """Return the task of a graph that has this name, or whose id begins or ends with it."""
    found = [task for task in graph if task.name == name] or [
        task for task in graph if task.id.startswith(name) or task.id.endswith(name)
    ]
    if len(found) != 1:
        known = ", ".join(printable(task.name) for task in graph)
        what = f"has {len(found)} tasks" if found else "has no task"
        raise NotFoundError(f"graph {graph.id} {what} that {name!r} names; its tasks: {known}")
    return found[0]
