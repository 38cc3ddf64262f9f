"""What the main job costs, beside plain SQLite and plain `subprocess`: one table, in one run.

    python tests/benchmarks/bench_main_job.py [--quick]

Machines are noisy: reference and subject take turns, each turn gives one ratio, and what is printed of ratios and
rates is the median. Making ledgers, tasks and graphs is not timed. All files are in the temporary folder (``TMPDIR``
says on which disk), which is the working directory too: outside of a git checkout no runner's commit is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import itertools
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType
from ttasks.log.transaction import Transaction

Timed = Callable[[], float]
"""Prepares something, does it, and returns the seconds that doing it took."""

BARE_IMPORT = "import sqlite3, threading, subprocess"
USED_NAMES = "from ttasks import SQLiteStore, Task, TaskExecutor"
ONE_TASK = f"""
import sys
{USED_NAMES}
with SQLiteStore(sys.argv[1]) as store:
    TaskExecutor(store).execute(Task.bash("true"))
"""

KILLED_HALFWAY = """
import itertools, os, signal, sys
from ttasks import SQLiteStore, Task, TaskExecutor, TaskGraph, TaskType
ledger, count = sys.argv[1], int(sys.argv[2])
graph, before, begun = TaskGraph(), [], itertools.count(1)
for number in range(count):
    before = [graph.add(Task.bash("true"), after=before if number % 10 else [])]
def work(context):
    if next(begun) > count / 2:
        os.kill(os.getpid(), signal.SIGKILL)
with SQLiteStore(ledger) as store, TaskExecutor.empty(store) as executor:
    executor.register(TaskType.BASH, work)
    graph.run(executor)
"""
RESUMED = """
import os, sys, time
from ttasks import SQLiteStore, TaskExecutor, TaskType
def work(context):
    os.write(1, f"{time.perf_counter() - begun}\\n".encode())  # whole, though another worker writes in the same moment
    os._exit(0)
begun = time.perf_counter()
with SQLiteStore(sys.argv[1]) as store, TaskExecutor.empty(store) as executor:
    executor.register(TaskType.BASH, work)
    executor.resume()
"""
SECRET = "TTASKS_BENCHMARK_TOKEN"
COMMAND = "from ttasks.cli import main; main()"


@dataclass(frozen=True)
class Size:
    """How much each line does."""

    repetitions: int = 7
    tasks: int = 1000
    processes: int = 200
    lines: int = 100_000
    output_bytes: int = 50_000_000
    loaded: int = 3000
    resumed: int = 10_000


QUICK = Size(repetitions=2, tasks=10, processes=2, lines=1000, output_bytes=500_000, loaded=20, resumed=20)


@dataclass(frozen=True)
class Aim:
    """What a figure should be."""

    relation: str
    value: float
    unit: str = ""

    def verdict(self, figure: float) -> str:
        """Return the aim, and whether `figure` is what it should be."""
        is_met = {"<=": figure <= self.value, "<": figure < self.value, ">=": figure >= self.value}[self.relation]
        return f"{self.relation} {self.value:g} {self.unit}".strip() + (": ok" if is_met else ": over")


class Pairs(list[tuple[float, float]]):
    """The seconds of a reference and of its subject, a pair a turn."""

    @classmethod
    def of(cls, reference: Timed, subject: Timed, repetitions: int) -> Pairs:
        """Let both take turns; the first turn warms up and does not count."""
        return cls([(reference(), subject()) for _ in range(repetitions + 1)][1:])

    @property
    def costs(self) -> list[float]:
        """How many times as long as its reference each subject took."""
        return [subject / reference for reference, subject in self]

    @property
    def seconds(self) -> float:
        """How long the subject took."""
        return median(subject for _, subject in self)


def say(name: str, ratios: list[float], to: str, figure: str, aim: Aim | None = None, judged: float = 0) -> None:
    """Print one line of the table; `judged` is what the aim is for."""
    verdict = aim.verdict(judged) if aim is not None else "none"
    ratio = f"{median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
    print(f"{name:<24} | {ratio:<21} x {to:<50} | {figure:<22} | aim {verdict}", flush=True)


def graph_of(count: int, after: Callable[[list[Task]], list[Task]]) -> TaskGraph:
    """Return a graph; `after` says what a task depends on, given the tasks before it."""
    graph, tasks = TaskGraph(title="benchmark"), list[Task]()
    for number in range(count):
        tasks.append(graph.add(Task.bash("true", title=f"task {number}"), after=after(tasks)))
    return graph


def some() -> Callable[[list[Task]], list[Task]]:
    """Return a choice of up to three tasks, the same ones each time."""
    choice = random.Random(7)
    return lambda before: choice.sample(before, min(len(before), choice.randint(0, 3)))


def timed(work: Callable[[], Any]) -> float:
    """Return how many seconds `work` takes."""
    gc.collect()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def process(*command: str, **options: Any) -> float:
    """Return how many seconds a whole process takes."""
    return timed(lambda: subprocess.run(command, check=True, **options))


class Bench:
    """The lines, in a folder of their own."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.size = size
        self._new_paths = (folder / f"{number}.db" for number in itertools.count())
        self._commits = 0

    @contextlib.contextmanager
    def executor(self, *, is_empty: bool = False) -> Iterator[TaskExecutor]:
        """Lend an executor on a new ledger that this process is registered in; an empty one runs no-ops."""
        with SQLiteStore(next(self._new_paths)) as store:
            executor = TaskExecutor.empty(store) if is_empty else TaskExecutor(store)
            if is_empty:
                executor.register(TaskType.BASH, lambda context: None)
            executor.execute(Task.bash("true"))
            yield executor

    @contextlib.contextmanager
    def plain(self) -> Iterator[Callable[[str], object]]:
        """Lend what commits one row to a plain SQLite database that is as durable as a ledger."""
        connection = sqlite3.connect(next(self._new_paths), isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        with contextlib.closing(connection):
            yield lambda text: connection.execute("INSERT INTO rows (text) VALUES (?)", (text,))

    # --- no-op tasks --------------------------------------------------------------------------------------------------

    def no_ops(self, name: str, subject: Timed, aim: Aim) -> None:
        """Print the line of something that runs the tasks, beside two plain commits a task."""
        count = 2 * self.size.tasks

        def reference() -> float:
            with self.plain() as insert:
                return timed(lambda: [insert("x" * 300) for _ in range(count)])

        ratios = Pairs.of(reference, subject, self.size.repetitions).costs
        commits = self._commits / self.size.tasks
        judged = commits if aim.unit else median(ratios)
        say(name, ratios, f"{count:,} plain commits", f"{commits:.2f} commits a task", aim, judged)

    def _counted(self, work: Callable[[], object]) -> float:
        """Do `work`, count its commits, return its seconds."""
        commit, mutex = Transaction.commit, threading.Lock()
        self._commits = 0

        def counted(transaction: Transaction, *arguments: Any) -> Any:
            with mutex:
                self._commits += 1
            return commit(transaction, *arguments)

        Transaction.commit = counted  # type: ignore[method-assign, assignment]
        try:
            return timed(work)
        finally:
            Transaction.commit = commit  # type: ignore[method-assign]

    def on_threads(self, threads: int) -> float:
        """Execute the tasks one after the other, on each of so many threads."""
        left = iter([Task.bash("true") for _ in range(self.size.tasks)])  # threads may share a list's iterator
        with self.executor(is_empty=True) as executor:

            def work(_: int = 0) -> None:
                for task in left:
                    executor.execute(task)

            if threads == 1:
                return self._counted(work)
            with ThreadPoolExecutor(threads) as pool:
                return self._counted(lambda: list(pool.map(work, range(threads))))

    def graph(self, after: Callable[[list[Task]], list[Task]]) -> float:
        """Run a graph of the tasks."""
        graph = graph_of(self.size.tasks, after)
        with self.executor(is_empty=True) as executor:
            seconds = self._counted(lambda: graph.run(executor, 4))
        assert graph.ok
        return seconds

    # --- processes and their output -----------------------------------------------------------------------------------

    def scripts(self, script: str, count: int = 1) -> float:
        """Run a script as a task, so many times."""
        tasks = [Task.bash(script) for _ in range(count)]
        with self.executor() as executor:
            return timed(lambda: [executor.execute(task) for task in tasks])

    def processes(self) -> None:
        """Print the line for processes that do nothing."""
        count = self.size.processes
        plain = functools.partial(process, "bash", "-c", "true")
        pairs = Pairs.of(
            lambda: sum(plain() for _ in range(count)), lambda: self.scripts("true", count), self.size.repetitions
        )
        say(f"{count} x true", pairs.costs, "subprocess.run", f"{pairs.seconds / count * 1000:.1f} ms a task")

    def short_lines(self) -> None:
        """Print the line for many short lines."""
        script, repetitions = f"seq {self.size.lines}", 2 * self.size.repetitions
        plain = functools.partial(process, "bash", "-c", script, capture_output=True)
        pairs = Pairs.of(plain, lambda: self.scripts(script), repetitions)
        rate, aim = self.size.lines / pairs.seconds / 1e6, Aim(">=", 1.5, "M lines/s")
        to = "subprocess.run(capture_output=True)"
        say(f"{self.size.lines:,} lines", pairs.costs, to, f"{rate:.2f} M lines/s", aim, rate)

    def much_output(self) -> None:
        """Print the lines for many bytes, without and with an inherited variable whose value is masked in them."""
        script = f"yes 'a line of output, as long as lines are on the average' | head -c {self.size.output_bytes}"

        def reference() -> float:
            with self.plain() as insert:

                def work() -> None:
                    with subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE) as child:
                        assert child.stdout is not None
                        while piece := child.stdout.read(64 * 1024):
                            insert(piece.decode())

                return timed(work)

        def with_secret() -> float:
            os.environ[SECRET] = "Tr0ub4dor-and-3"
            try:
                return self.scripts(script)
            finally:
                del os.environ[SECRET]

        megabytes = self.size.output_bytes / 1e6
        for what, subject in (("of output", lambda: self.scripts(script)), ("and a secret", with_secret)):
            pairs = Pairs.of(reference, subject, self.size.repetitions)
            rates = [1 / cost for cost in pairs.costs]
            to, figure = "rate of a pipe into plain rows, 64 KiB a commit", f"{megabytes / pairs.seconds:.0f} MB/s"
            say(f"{megabytes:g} MB {what}", rates, to, figure, Aim(">=", 0.5), median(rates))

    # --- loading, and whole processes ---------------------------------------------------------------------------------

    def loading(self) -> None:
        """Print the lines for loading tasks that have run, and a graph of them."""
        graph, tables = graph_of(self.size.loaded, some()), ("tasks", "graph_tasks", "graph_dependencies")
        with self.executor(is_empty=True) as executor:
            graph.run(executor)
            store, plain = executor.store, sqlite3.connect(executor.store.path)

            def fetch(*names: str) -> float:
                return timed(lambda: [plain.execute(f"SELECT * FROM {name}").fetchall() for name in names])

            self._load("tasks loaded", lambda: fetch(tables[0]), lambda: timed(lambda: list(store.tasks.values())))
            self._load("in a graph loaded", lambda: fetch(*tables), lambda: timed(lambda: store.graphs[graph.id]))
            plain.close()

    def _load(self, name: str, reference: Timed, subject: Timed) -> None:
        pairs = Pairs.of(reference, subject, 3 * self.size.repetitions)
        each, to = pairs.seconds / self.size.loaded * 1e6, "sqlite3 fetching the rows"
        say(f"{self.size.loaded:,} {name}", pairs.costs, to, f"{each:.1f} µs a task", Aim("<=", 15, "µs"), each)

    def imports(self) -> None:
        """Print the lines for whole processes."""
        with self.executor() as executor:
            ledger = executor.store.path
        self._import("import ttasks", "import ttasks", aim=Aim("<=", 1.5))
        self._import("its names imported", USED_NAMES)
        self._import("a process, a bash task", ONE_TASK, ledger)

    def _import(self, name: str, *arguments: str, aim: Aim | None = None) -> None:
        python = functools.partial(process, sys.executable, "-c")
        pairs = Pairs.of(lambda: python(BARE_IMPORT), lambda: python(*arguments), 2 * self.size.repetitions)
        to, figure = f'python -c "{BARE_IMPORT}"', f"{pairs.seconds * 1000:.0f} ms"
        say(name, pairs.costs, to, figure, aim, median(pairs.costs))

    # --- going on -----------------------------------------------------------------------------------------------------

    def resuming(self) -> None:
        """Print the line for what it takes until a graph of which half is done goes on."""
        ledger, tables = next(self._new_paths), ("tasks", "graph_tasks", "graph_dependencies")
        killed = subprocess.run([sys.executable, "-c", KILLED_HALFWAY, str(ledger), str(self.size.resumed)])
        assert killed.returncode == -signal.SIGKILL

        def fetch() -> float:
            with contextlib.closing(sqlite3.connect(self._copy(ledger))) as plain:
                return timed(lambda: [plain.execute(f"SELECT * FROM {name}").fetchall() for name in tables])

        def subject() -> float:
            child = [sys.executable, "-c", RESUMED, str(self._copy(ledger))]
            ran = subprocess.run(child, check=True, capture_output=True, text=True)
            return float(ran.stdout.split()[0])  # the first task's

        pairs = Pairs.of(fetch, subject, self.size.repetitions)
        name, figure = f"{self.size.resumed:,} tasks go on", f"{pairs.seconds * 1000:.0f} ms"
        say(name, pairs.costs, "sqlite3 fetching the rows", figure, Aim("<=", 1, "s"), pairs.seconds)

    def resume_command(self) -> None:
        """Print the line for what it takes until the command goes on with a file's run."""
        file, ledger = Path("forty.yaml"), next(self._new_paths)
        scripts = dict.fromkeys(range(40), "true") | {20: "[ -e go ] || exec sleep 1000"}
        file.write_text(
            "\n".join(["tasks:", *(f"  t{number}: {{bash: '{text}'}}" for number, text in scripts.items())])
        )

        def first_start(*arguments: str, of: str = "") -> subprocess.Popen[str]:
            words = [sys.executable, "-c", COMMAND, *arguments]
            child = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
            assert child.stdout is not None
            while not re.search(rf"{of} +started", next(child.stdout)):
                continue
            return child

        with first_start("run", str(file), "--ledger", str(ledger), of="t20") as killed:
            killed.kill()
        Path("go").touch()

        def subject() -> float:
            copy, begun = str(self._copy(ledger)), time.perf_counter()
            with first_start("resume", "--ledger", copy) as child:
                seconds = time.perf_counter() - begun
                child.communicate()
            return seconds

        subject()  # ends what the killed one left, which is there only once
        plain = functools.partial(process, sys.executable, "-c", BARE_IMPORT)
        pairs = Pairs.of(plain, subject, 2 * self.size.repetitions)
        to, figure = f'python -c "{BARE_IMPORT}"', f"{pairs.seconds * 1000:.0f} ms"
        say("ttasks resume goes on", pairs.costs, to, figure, Aim("<=", 0.5, "s"), pairs.seconds)

    def _copy(self, ledger: Path) -> Path:
        """Return a copy of a ledger whose runner is gone: what it left is as it was."""
        copy = next(self._new_paths)
        for end in ("", "-wal"):
            shutil.copy(f"{ledger}{end}", f"{copy}{end}")
        return copy

    def run(self) -> None:
        """Print every line."""
        self.no_ops("tasks in a row", lambda: self.on_threads(1), Aim("<=", 1.6))
        self.no_ops("tasks on 8 threads", lambda: self.on_threads(8), Aim("<", 0.6, "commits"))
        self.no_ops("a chain of tasks", lambda: self.graph(lambda before: before[-1:]), Aim("<=", 1.2))
        self.no_ops("a random graph", lambda: self.graph(some()), Aim("<=", 1.2))
        self.processes()
        self.short_lines()
        self.much_output()
        self.loading()
        self.imports()
        self.resuming()
        self.resume_command()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What the main job costs, beside plain SQLite and subprocess.")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: only to see that it runs")
    size = QUICK if parser.parse_args().quick else Size()
    if "PYTHONPATH" in os.environ:  # for the processes that are started in the other folder
        folders = os.environ["PYTHONPATH"].split(os.pathsep)
        os.environ["PYTHONPATH"] = os.pathsep.join(str(Path(folder).absolute()) for folder in folders)
    with tempfile.TemporaryDirectory(prefix="ttasks-bench-") as folder:
        os.chdir(folder)
        Bench(Path(folder), size).run()


if __name__ == "__main__":
    main()
