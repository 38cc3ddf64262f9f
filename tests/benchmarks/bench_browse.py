"""How fast the pages of a large ledger are, beside Datasette's own page of its tasks, and what they cost a writer.

    python tests/benchmarks/bench_browse.py [--quick] [--writer] [--tasks N] [--output-mb N]

The ledger is made by the library's own append, in large commits. Each page is asked for in process, in turns with the
reference; what is printed is the median. With --writer, another process then runs tasks as fast as it can, by itself
and while pages are asked for without a pause.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench_main_job import Aim, say

from ttasks import clock
from ttasks.cli.browse import datasette_of
from ttasks.events import facts as f
from ttasks.events.status import OnInterrupted, RunStatus, TaskType
from ttasks.log.event_log import EventLog
from ttasks.log.transaction import Batch

COMMIT_TASKS: Final = 2000
CHUNK_BYTES: Final = 64 * 1024
DAYS: Final = 14
FAILS_EVERY: Final = 40
RETRIED_EVERY: Final = 15
REFERENCE: Final = "/ledger/tasks"
WRITER: Final = """
import sys, time
from ttasks import SQLiteStore, Task, TaskExecutor, TaskType
seconds, done = float(sys.argv[2]), 0
with SQLiteStore(sys.argv[1]) as store, TaskExecutor.empty(store) as executor:
    executor.register(TaskType.BASH, lambda context: None)
    executor.execute(Task.bash("true", title="writer"))
    print("begun", flush=True)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        executor.execute(Task.bash("true", title="writer"))
        done += 1
    print(done / (time.perf_counter() - begun))
"""


@dataclass(frozen=True)
class Size:
    """How large the ledger is, and how often a page is asked for."""

    tasks: int = 100_000
    graphs: int = 400
    tasks_of_graph: int = 50
    tasks_of_wide: int = 1000
    output_mb: float = 100
    turns: int = 5
    writer_s: float = 10


QUICK: Final = Size(tasks=300, graphs=4, tasks_of_graph=5, tasks_of_wide=30, output_mb=0.2, turns=1, writer_s=0.5)


@dataclass(frozen=True)
class Made:
    """What the pages are about."""

    wide: str
    graph: str
    failed: str
    loud: str
    event: int


PAGES: Final[tuple[tuple[str, Callable[[Made], str]], ...]] = (
    ("home", lambda made: "/-/ttasks/ledger"),
    ("home, what changes", lambda made: "/-/ttasks/ledger?_live=1"),
    ("run of many tasks", lambda made: f"/-/ttasks/ledger/graph/{made.wide}"),
    ("run, what changes", lambda made: f"/-/ttasks/ledger/graph/{made.wide}?_live=1"),
    ("run of few tasks", lambda made: f"/-/ttasks/ledger/graph/{made.graph}"),
    ("task that failed", lambda made: f"/-/ttasks/ledger/task/{made.failed}"),
    ("task of much output", lambda made: f"/-/ttasks/ledger/task/{made.loud}"),
    ("event", lambda made: f"/-/ttasks/ledger/event/{made.event}"),
    ("search, a rare word", lambda made: "/-/ttasks/ledger/search?q=needle"),
    ("search, no such word", lambda made: "/-/ttasks/ledger/search?q=nowhere"),
    ("search, a common word", lambda made: "/-/ttasks/ledger/search?q=step"),
    ("database", lambda made: "/ledger"),
    ("table of events", lambda made: "/ledger/events"),
    ("table of attempts", lambda made: "/ledger/attempts"),
    ("tasks that failed", lambda made: "/ledger/tasks?status=failed&_sort_desc=result_finished_at"),
)
"""The pages that are asked for; canned queries follow, as Datasette lists them."""
OWN: Final = "/-/ttasks/"
AIM: Final = Aim("<=", 0.5, "s")


# --- a large ledger --------------------------------------------------------------------------------------------------


class Maker:
    """Appends the histories of tasks and graphs that ended in the last days, oldest first."""

    def __init__(self, log: EventLog, size: Size) -> None:
        self._log = log
        self._size = size
        self._number = 0
        self._begin = clock.now() - timedelta(days=DAYS)
        self._step = timedelta(days=DAYS) / (size.tasks + 1)
        self.failed = ""

    def _at(self) -> datetime:
        return self._begin + self._number * self._step

    def task(self, graph: str | None = None, *, output_bytes: int = 0) -> tuple[str, Batch]:
        """Return a task's id and its whole history: each so manieth fails, or works only at its second attempt."""
        self._number += 1
        number, at, id_ = self._number, self._at(), clock.new_id()
        title = "needle" if number % (self._size.tasks // 3) == 0 else f"step {number}"
        command = f"make step-{number} --keep-going"
        history: list[f.Fact] = [
            f.TaskCreated(title, title, TaskType.BASH, command, "", at, OnInterrupted.RERUN),
        ]
        fails, again = number % FAILS_EVERY == 0, number % RETRIED_EVERY == 0
        for attempt in (1, 2) if again else (1,):
            run = 1 if graph is not None else None
            handler = "ttasks.handlers.shell.bash"
            history += [
                f.TaskStarted(attempt, handler, command, at, attempt - 1, cwd="/tmp", graph=graph, run=run),
                f.ProcessSpawned(attempt, 1000 + number % 30_000, f"ticks:{number}"),
                f.TaskOutput(attempt, (("stdout", at, f"step {number} of the whole\nit took a while\n"),)),
            ]
            for start in range(0, output_bytes, CHUNK_BYTES):
                line = f"line {start} of a long story that is told at length\n"
                text = (line * (CHUNK_BYTES // len(line) + 1))[: min(CHUNK_BYTES, output_bytes - start)]
                history.append(f.TaskOutput(attempt, (("stdout", at, text),)))
            end = {"started_at": at, "finished_at": at + timedelta(seconds=1), "duration": 1.0}
            if fails or (again and attempt == 1):
                error = f"step {number}: no space left on device"
                history.append(f.TaskFailed(attempt, **end, error=error, returncode=28))
            else:
                history.append(f.TaskSucceeded(attempt, **end, returncode=0))
        if fails:
            self.failed = id_
        return id_, Batch(f"task-{id_}", history, 0)

    def graph(self, count: int) -> str:
        """Append a graph that ran once, each of its tasks after one of those before it; return its id."""
        id_, at = clock.new_id(), self._at()
        made = [self.task(id_) for _ in range(count)]
        ids = [task_id for task_id, _ in made]
        edges = tuple((place, place // 2) for place in range(1, count))
        members = tuple(f.Member(task_id, (ids[place // 2],) if place else ()) for place, task_id in enumerate(ids))
        is_ok = not any(isinstance(batch.facts[-1], f.TaskFailed) for _, batch in made)
        outcome = RunStatus.SUCCEEDED if is_ok else RunStatus.FAILED
        history = [
            f.GraphCreated(f"graph of {count}", at, members),
            f.GraphRunStarted(1, 4, tuple(ids), edges),
            f.GraphRunFinished(1, outcome),
        ]
        self._log.append(*[batch for _, batch in made], Batch(f"graph-{id_}", history, 0))
        return id_

    def make(self) -> Made:
        """Append everything."""
        size = self._size
        loud, batch = self.task(output_bytes=int(size.output_mb * 1_000_000))
        self._log.append(batch)
        graphs = [self.graph(size.tasks_of_graph) for _ in range(size.graphs)]
        wide = self.graph(size.tasks_of_wide)
        while self._number < size.tasks:
            count = min(COMMIT_TASKS, size.tasks - self._number)
            self._log.append(*[self.task()[1] for _ in range(count)])
        return Made(wide, graphs[-1], self.failed, loud, self._log.readers.head_position() // 2)


def make_large_ledger(path: Path, size: Size) -> Made:
    """Make the ledger, and say what it is like."""
    begun = time.perf_counter()
    log = EventLog.open(path, durability="normal")
    try:
        made = Maker(log, size).make()
        events = log.readers.head_position()
    finally:
        log.close()
    took = time.perf_counter() - begun
    print(
        f"{events:,} events, {size.tasks:,} tasks, {path.stat().st_size / 1e6:,.0f} MB, made in {took:.1f} s",
        flush=True,
    )
    return made


# --- pages -----------------------------------------------------------------------------------------------------------


class Browsing:
    """Asks for pages, in process."""

    def __init__(self, path: Path, made: Made) -> None:
        self._datasette = datasette_of([path])
        self._made = made
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def get(self, path: str) -> tuple[float, Any]:
        """Return how many seconds an answer took, and the answer."""
        begun = time.perf_counter()
        answer = self._loop.run_until_complete(self._datasette.client.get(path))
        return time.perf_counter() - begun, answer

    def pages(self) -> list[tuple[str, str]]:
        """Return the names and addresses of all pages."""
        listed = json.loads(self.get("/ledger.json")[1].text)["queries"]
        queries = [(f"query {each['name']}", f"/ledger/{each['name']}") for each in listed]
        return [*((name, address(self._made)) for name, address in PAGES), *queries]

    def times(self, turns: int) -> dict[str, float]:
        """Print a line for each page; return the seconds of those that are there, by address."""
        found = {}
        for name, path in self.pages():
            _, answer = self.get(path)
            if answer.status_code == 404:
                print(f"{name:<24} | not there", flush=True)
                continue
            assert answer.status_code == 200, f"{path} answered {answer.status_code}: {answer.text[:500]}"
            self.get(REFERENCE)
            pairs = [(self.get(REFERENCE)[0], self.get(path)[0]) for _ in range(turns)]
            found[path] = median(subject for _, subject in pairs)
            figure = f"{found[path] * 1000:.0f} ms, {len(answer.content) / 1000:,.0f} kB"
            ratios = [subject / reference for reference, subject in pairs]
            say(name, ratios, "Datasette's page of tasks", figure, AIM if OWN in path else None, found[path])
        return found


# --- beside a writer -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Start a process that runs tasks for so many seconds, and then prints how many it ran in a second."""
    words = [sys.executable, "-c", WRITER, str(path), str(seconds)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        yield child


def rate_of(child: subprocess.Popen[str]) -> float:
    """Return what the writer printed, once it has ended."""
    return float(child.communicate()[0])


def beside_a_writer(browsing: Browsing, path: Path, alone: dict[str, float], seconds: float) -> None:
    """Print what a writer and the pages cost each other."""
    with writing(path, seconds) as child:
        undisturbed = rate_of(child)
    taken: dict[str, list[float]] = {address: [] for address in alone}
    with writing(path, seconds * 2) as child:
        while child.poll() is None:
            for address, times in taken.items():
                took, answer = browsing.get(address)
                assert answer.status_code == 200, f"{address} answered {answer.status_code} beside a writer"
                times.append(took)
                if child.poll() is not None:
                    break
        disturbed = rate_of(child)
    asked = sum(map(len, taken.values()))
    figure = f"{disturbed:,.0f} tasks/s"
    say("a writer while pages are", [disturbed / undisturbed], f"its rate alone ({undisturbed:,.0f} tasks/s)", figure)
    for address, times in taken.items():
        if times:
            figure, was = f"{median(times) * 1000:.0f} ms", f"without a writer ({alone[address] * 1000:.0f} ms)"
            name = f"… {address.removeprefix('/-/ttasks/ledger')[:22] or 'home'}"
            say(name, [each / alone[address] for each in times], was, figure)
    print(f"{asked} pages were asked for meanwhile", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="How fast the pages of a large ledger are.")
    parser.add_argument("--quick", action="store_true", help="a tiny ledger: only to see that it runs")
    parser.add_argument("--writer", action="store_true", help="also beside a writer at full speed")
    parser.add_argument("--tasks", type=int, help="how many tasks the ledger has")
    parser.add_argument("--output-mb", type=float, help="how much one of them printed")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="make ledger.db in here, and leave it there")
    asked = parser.parse_args()
    size = QUICK if asked.quick else Size()
    given = {"tasks": asked.tasks, "output_mb": asked.output_mb}
    size = Size(**{**vars(size), **{name: value for name, value in given.items() if value is not None}})
    with tempfile.TemporaryDirectory(prefix="ttasks-bench-") as folder:
        path = (asked.keep or Path(folder)).absolute() / "ledger.db"
        os.chdir(folder)
        made = make_large_ledger(path, size)
        browsing = Browsing(path, made)
        alone = browsing.times(size.turns)
        if asked.writer:
            beside_a_writer(browsing, path, alone, size.writer_s)
        browsing.close()


if __name__ == "__main__":
    main()
