"""Running a workflow file, and saying what happens as it happens."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Final

from rich.color import ColorSystem
from rich.style import Style
from rich.text import Text

from ttasks.cli.app import EXIT_CTRL_C, EXIT_NOT_OK, Hint
from ttasks.cli.text import STYLES, console
from ttasks.cli.withheld import say_how_to_go_on
from ttasks.cli.workflow import Workflow, load_workflow
from ttasks.clock import monotonic_s
from ttasks.display import count, duration, printable, short
from ttasks.events.facts import Source
from ttasks.events.status import RunStatus, TaskStatus, TaskType
from ttasks.log.reading import Readers
from ttasks.log.redaction import redacted
from ttasks.model.event import TaskEvent, TaskEventType
from ttasks.model.graph import TaskGraph
from ttasks.model.interrupted import Interrupted
from ttasks.model.retry import RetryPolicy
from ttasks.model.task import Task
from ttasks.runtime.executor import TaskExecutor
from ttasks.state.reconcile import Then, reconcile
from ttasks.stores.ledger import SQLiteStore

DEFAULT_WORKERS: Final = 4
LAST_LINES: Final = 20
CTRL_C: Final = (
    "Ctrl-C: what runs is cancelled; finally tasks still run. Ctrl-C again stops at once, and leaves them owed.",
    "Ctrl-C again: what runs is stopped at once.",
)
"""What is said of the first Ctrl-C, and of the second."""
COLOR_SYSTEMS: Final = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}


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


class Reporter:
    """Prints each event on a line of its own, whichever thread it comes from; `names` are those of tasks, by id."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._out = console()
        self._colors = COLOR_SYSTEMS.get(self._out.color_system or "")
        self._lock = threading.Lock()
        width = min(max(map(len, names.values()), default=0), 30)
        self._names = {task_id: self._styled(name.ljust(width), "bold") for task_id, name in names.items()}

    def _styled(self, text: str, style: str) -> str:
        # By hand, because a Console takes a tenth of a millisecond a line, and scripts print millions.
        return Style.parse(style).render(text, color_system=self._colors)

    def __call__(self, event: TaskEvent) -> None:
        """Print one event."""
        if event.type is TaskEventType.OUTPUT:
            style = "dim red" if event.output_stream == "stderr" else "dim"
            self._line(event, "| " + printable((event.output_chunk or "").rstrip("\r\n")), style)
        elif event.type is TaskEventType.PROGRESS:
            percent = f"{event.progress_percent:g} % " if event.progress_percent is not None else ""
            self._line(event, "… " + percent + printable(event.progress_message or ""), "cyan")
        elif event.type is TaskEventType.STARTED:
            again = f" (attempt {event.task.attempts})" if event.task.attempts > 1 else ""
            self._line(event, f"started{again}", "bold")
        else:
            self._line(event, self._end(event), STYLES.get(str(event.type), "bold red"))

    def _end(self, event: TaskEvent) -> str:
        text, result = str(event.type).replace("_", " "), event.task.result
        if result is not None and event.type is not TaskEventType.BLOCKED:
            heard = "; last heard of" if event.type is TaskEventType.INTERRUPTED else ""
            text += f"{heard} after {duration(result.duration)}"
        if event.type in (TaskEventType.FAILED, TaskEventType.PERSISTENCE_FAILED):
            text += ": " + printable((event.error or "").strip().rpartition("\n")[2])
        return text

    def _line(self, event: TaskEvent, text: str, style: str) -> None:
        at = self._styled(event.timestamp.astimezone().strftime("%H:%M:%S"), "dim")
        line = f"{at} {self._names[event.task_id]} {self._styled(text, style)}\n"
        with self._lock:
            self._out.file.write(line)
            self._out.file.flush()


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

    Ctrl-C says at once what it does: what runs may take seconds to end, in which people would press it again.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _SaysInterrupts())
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminate)


@contextlib.contextmanager
def last_words() -> Iterator[None]:
    """Say something before an interrupted process ends, where anybody is left to read it: a terminal may be gone."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
        return carry_out(executor, store, graph, ledger, hint, lambda: graph.run(executor, workers))


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
) -> int:
    """Run a graph by `start`, saying what happens; return the exit code. `again` says what is special about it."""
    started_s = monotonic_s()
    out = console()
    # The handles have what they were given; what is shown of them is what the ledger holds.
    names = {task.id: printable(redacted(task.name, store._redaction(task))) or short(task.id) for task in graph}
    texts = (graph.title or short(graph.id), str(ledger))
    title, where = (printable(redacted(text, store._redaction(graph))) for text in texts)
    out.print(f"{title}: {again}{count(len(graph), 'task')}, graph {graph.id}, ledger {where}")
    hear_signals()
    with executor.events.subscribed(Reporter(names)):
        try:
            start()
        except KeyboardInterrupt:
            _summarise(graph, names, store._readers, monotonic_s() - started_s, hint)
            return EXIT_CTRL_C
        except Terminated:
            with last_words():
                _summarise(graph, names, store._readers, monotonic_s() - started_s, hint)
            raise
    _summarise(graph, names, store._readers, monotonic_s() - started_s, hint)
    return 0 if graph.ok else EXIT_NOT_OK


def _summarise(graph: TaskGraph, names: Mapping[str, str], readers: Readers, seconds: float, hint: Hint) -> None:
    out = console()
    out.print()
    for task in graph:
        if task.is_failed or task.is_interrupted:
            _show_end(graph, task, names[task.id], readers)
    for task in graph.blocked:
        cause = names.get(task.blocked_by or "", "another task")
        out.print(Text(f"{names[task.id]}: blocked by {cause}", "magenta"))
    counts = Counter(task.status for task in graph)
    parts = [f"{counts[status]} {status}" for status in TaskStatus if counts[status]]
    verdict = ("OK", "bold green") if graph.ok else ("NOT OK", "bold red")
    out.print(Text.assemble(verdict, f": {', '.join(parts)} in {duration(seconds)}"))
    asking = [task for task in graph if reconcile(task._view, is_alive=False).then is Then.PERSON]
    for task in asking:
        decide = hint(f"resolve {short(task.id)} --rerun")
        out.print(f"{names[task.id]} waits for a person: {decide}  (or --succeeded, or --failed)")
    if graph.run_status is RunStatus.INTERRUPTED:
        say_how_to_go_on(readers, graph.id, "resume", "Go on with it", hint)
    elif not graph.ok:
        say_how_to_go_on(readers, graph.id, "retry", "Then carry on" if asking else "Carry on", hint)
    out.print(f"Look at it: {hint(f'show {short(graph.id)}')}")


def _show_end(graph: TaskGraph, task: Task, name: str, readers: Readers) -> None:
    out = console()
    optional = " (optional)" if graph.is_optional(task) else ""
    error = printable((task.error or "").strip().rpartition("\n")[2])
    out.print(Text(f"{name}{optional}: {task.status}: {error}", style=STYLES[str(task.status)]))
    for stream, line in readers.last_lines(task.id, task.attempts, LAST_LINES):
        out.print(Text("  | " + printable(line), style="red" if stream == "stderr" else ""))
