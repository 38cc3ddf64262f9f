"""Running a workflow file, and saying what happens as it happens."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from rich.text import Text

from ttasks.cli.app import EXIT_CTRL_C, EXIT_NOT_OK, Hint
from ttasks.cli.reporter import Reporter
from ttasks.cli.text import STYLES, console, print_lines
from ttasks.cli.withheld import say_how_to_go_on, say_step
from ttasks.cli.workflow import Workflow, load_workflow
from ttasks.clock import monotonic_s
from ttasks.display import count, duration, printable, short, why_of_result
from ttasks.events.facts import Source
from ttasks.events.status import RunStatus, TaskStatus, TaskType
from ttasks.log.reading import Readers
from ttasks.log.redaction import redacted
from ttasks.model.graph import TaskGraph
from ttasks.model.interrupted import Interrupted
from ttasks.model.retry import RetryPolicy
from ttasks.model.task import Task
from ttasks.runtime.executor import TaskExecutor
from ttasks.stores.interrupted import Leftovers
from ttasks.stores.ledger import SQLiteStore

DEFAULT_WORKERS: Final = 4
LAST_LINES: Final = 20
CTRL_C: Final = (
    "Ctrl-C: what runs is cancelled; finally tasks still run. Ctrl-C again stops at once, and leaves them owed.",
    "Ctrl-C again: what runs is stopped at once.",
)
"""What is said of the first Ctrl-C, and of the second."""
VERDICTS: Final[Mapping[str, tuple[str, str]]] = {
    RunStatus.SUCCEEDED: ("OK", "bold green"),
    RunStatus.FAILED: ("NOT OK", "bold red"),
    RunStatus.CANCELLED: ("CANCELLED", "bold yellow"),
    RunStatus.INTERRUPTED: ("INTERRUPTED", "bold yellow"),
}
"""The first word about a run that ended, by what is recorded of it. Of one that still runs its runner leaves."""


def graph_of(workflow: Workflow) -> TaskGraph:
    """Return the graph that a workflow file describes."""
    tasks = {
        name: Task(
            spec.title,
            spec.payload,
            TaskType(spec.kind),
            spec.description,
            timeout=spec.timeout,
            cwd=spec.cwd,
            env=spec.env,
            on_interrupted=spec.on_interrupted,
            name=name,
            grace=spec.grace,
            wait_for_output=spec.wait_for_output,
        )
        for name, spec in workflow.tasks.items()
    }
    graph = TaskGraph(title=workflow.title or workflow.path.stem)
    for name, spec in workflow.tasks.items():
        once = spec.max_attempts == 1
        graph.add(
            tasks[name],
            after=[tasks[parent] for parent in spec.after],
            finally_=spec.finally_,
            required=spec.required,
            retry_policy=None if once else RetryPolicy(spec.max_attempts, spec.backoff),
        )
    graph._source = Source(str(workflow.path), workflow.sha256)
    graph._max_workers = workflow.max_workers
    return graph


class Terminated(SystemExit):
    """SIGTERM or SIGHUP: an interruption, not a decision; what runs is ended and recorded as interrupted."""


class _SaysInterrupts:
    """Handles SIGINT as Python does, and says what comes of the first and the second."""

    def __init__(self) -> None:
        self._left = list(CTRL_C)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Say it, and raise KeyboardInterrupt."""
        if self._left:
            with contextlib.suppress(OSError):  # not by print: the main thread may be in the middle of one
                os.write(2, f"\n{self._left.pop(0)}\n".encode())
        signal.default_int_handler(number, frame)


def _terminate(number: int, _: FrameType | None) -> None:
    raise Terminated(128 + number)


def hear_signals() -> None:
    """Let SIGTERM and SIGHUP raise `Terminated`, but for one that is ignored: that is what ``nohup`` is for.

    SIGCHLD is not left ignored, as a caller may have it: the system would keep no exit code of a script.
    Ctrl-C says at once what it does: what runs may take seconds to end, in which people would press it again.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _SaysInterrupts())
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


@contextlib.contextmanager
def reporting(executor: TaskExecutor, names: Mapping[str, str]) -> Iterator[None]:
    """Say what happens to tasks inside of this; `names` are theirs, by id."""

    def unfinished(task_id: str) -> Mapping[str, str]:
        live = executor._live.get(task_id)
        return live.unfinished() if live is not None else {}

    with Reporter(names, unfinished) as reporter, executor.events.subscribed(reporter):
        yield


def run_file(file: Path, ledger: Path, jobs: int | None, hint: Hint) -> int:
    """Run a workflow file into a ledger, from the beginning; return the exit code."""
    workflow = load_workflow(file)
    graph = graph_of(workflow)
    workers = jobs or workflow.max_workers or DEFAULT_WORKERS
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        left = latest_interrupted(store, workflow.path)
        if left is not None:
            said = f"the latest run of this file was interrupted ({left.why}); this is a new one. To go on with that"
            say_how_to_go_on(store._readers, left.id, "resume", said, hint)
        return carry_out(executor, store, graph, ledger, hint, lambda: graph.run(executor, workers)).code


def latest_interrupted(store: SQLiteStore, file: Path) -> Interrupted | None:
    """Return the latest graph that was made from a workflow file, where it is interrupted."""
    graph_id = store._readers.graph_of_file(str(file))
    return next((work for work in store.interrupted() if work.id == graph_id), None)


def carry_out(
    executor: TaskExecutor,
    store: SQLiteStore,
    graph: TaskGraph,
    ledger: Path,
    hint: Hint,
    start: Callable[[], object],
    *,
    again: str = "",
) -> Ended:
    """Run a graph by `start`, saying what happens. `again` says what is special about it."""
    started_s = monotonic_s()
    before = {task.id: (task.status, task.attempts) for task in graph}
    runs_before = len(store._readers.runs(graph.id))
    out = console()
    # The handles have what they were given; what is shown of them is what the ledger holds.
    names = {task.id: printable(redacted(task.name, store._redaction(task))) or short(task.id) for task in graph}
    texts = (graph.title or short(graph.id), str(ledger))
    title, where = (printable(redacted(text, store._redaction(graph))) for text in texts)
    out.print(f"{title}: {again}{count(len(graph), 'task')}, graph {graph.id}, ledger {where}")
    hear_signals()
    stopped_by: BaseException | None = None
    with reporting(executor, names):
        try:
            start()
        except (KeyboardInterrupt, Terminated) as interruption:
            stopped_by = interruption
    runs = store._readers.runs(graph.id)
    # What is recorded of a new run is what `ls` and the pages say; a resumed one may have worked before.
    recorded_s = runs[-1].duration if len(runs) > runs_before else None
    seconds = recorded_s if recorded_s is not None else monotonic_s() - started_s
    _summarise(graph, names, before, store._readers, seconds, hint)
    return Ended(exit_code(graph.run_status, stopped_by), stopped_by is not None)


@dataclass(frozen=True)
class Ended:
    """How one of the things ended that a command runs: its exit code, and whether a signal asked to run no more."""

    code: int
    is_stopped: bool


def exit_code(status: RunStatus | TaskStatus | None, stopped_by: BaseException | None) -> int:
    """Return the exit code for what is recorded of a run or task; a signal only counts where it cut that short."""
    if status == RunStatus.SUCCEEDED:
        return 0
    if status == RunStatus.FAILED or stopped_by is None:
        return EXIT_NOT_OK
    return stopped_by.args[0] if isinstance(stopped_by, Terminated) else EXIT_CTRL_C


def _summarise(
    graph: TaskGraph,
    names: Mapping[str, str],
    before: Mapping[str, tuple[TaskStatus, int]],
    readers: Readers,
    seconds: float,
    hint: Hint,
) -> None:
    """Say how a run ended. `before` has the status and the number of attempts of each task before it went on."""
    out = console()
    out.print()
    for task in graph:
        if task.is_failed or task.is_interrupted:
            _show_end(graph, task, names[task.id], readers)
    for task in graph.blocked:
        cause = names.get(task.blocked_by or "", "another task")
        out.print(Text(f"{names[task.id]}: blocked by {cause}", "magenta"))
    kept = {task.id for task in graph if before[task.id] == (task.status, task.attempts) and _is_over(task)}
    now = _counted(task for task in graph if task.id not in kept) or "nothing was left to do"
    earlier = _counted(task for task in graph if task.id in kept)
    verdict = VERDICTS.get(graph.run_status or "", VERDICTS[RunStatus.INTERRUPTED])
    out.print(
        Text.assemble(verdict, f": {now} in {duration(seconds)}", f"; kept from before: {earlier}" if earlier else "")
    )
    for step in Leftovers(readers).steps_of_graph(graph.id):
        what = f"{names[step.id]} waits for a person" if step.verb == "resolve" else step.why
        say_step(readers, step, what, hint)
    out.print(f"Look at it: {hint(f'show {short(graph.id)}')}")


def _is_over(task: Task) -> bool:
    return task.status not in (TaskStatus.PENDING, TaskStatus.INTERRUPTED)


def _waited(task: Task) -> bool:
    # The run has ended, so nobody waits for its retry any more: it was interrupted.
    return task._view.retry_due_at is not None


def _counted(tasks: Iterable[Task]) -> str:
    counts = Counter(TaskStatus.INTERRUPTED if _waited(task) else task.status for task in tasks)
    return ", ".join(f"{counts[status]} {status}" for status in TaskStatus if counts[status])


def _show_end(graph: TaskGraph, task: Task, name: str, readers: Readers) -> None:
    out = console()
    optional = " (optional)" if graph.is_optional(task) else ""
    status, why = task.status, why_of_result(task._view.error, task.result)
    if _waited(task):
        status, why = TaskStatus.INTERRUPTED, f"its retry was to follow; {why}"
    out.print(Text(f"{name}{optional}: {status}: {why}", style=STYLES[str(status)]))
    print_lines(out, readers.last_lines(task.id, task.attempts, LAST_LINES), "  | ")
