"""With a ledger, long output is in memory only as long as somebody uses it: a result reads it from the file."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import PATIENCE_S
from ttasks import (
    InMemoryStore,
    LedgerError,
    LedgerUnwritableError,
    RetryPolicy,
    SQLiteStore,
    Task,
    TaskCancelled,
    TaskContext,
    TaskEvent,
    TaskExecutionError,
    TaskExecutor,
    TaskGraph,
    TaskResult,
    TaskStatus,
    TaskTimeoutError,
    TaskType,
)
from ttasks.handlers.kept import LINE_BYTES_MAX
from ttasks.handlers.shell import bash_handler
from ttasks.log.verify import verify
from ttasks.model.result import KEPT_BYTES_MAX

LONG = "".join(f"{number}\n" for number in range(1, 20_001))
"""What `seq 20000` prints: more than is kept."""
FILL = "x" * 300_000


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def store(path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(path) as store:
        yield store
        assert verify(store._readers).problems == []


def result_of(task: Task) -> TaskResult:
    assert task.result is not None
    return task.result


def fail(store: Any, script: str, **fields: Any) -> tuple[Task, Exception]:
    task = Task.bash(script, **fields)
    with pytest.raises((TaskExecutionError, TaskTimeoutError, TaskCancelled)) as raised:
        TaskExecutor(store).execute(task)
    return task, raised.value


def returning(store: Any, value: object) -> TaskExecutor:
    executor = TaskExecutor(store)
    executor.register(TaskType.BASH, lambda _: value)
    return executor


# --- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
import resource, subprocess, sys
from ttasks import SQLiteStore, Task, TaskExecutionError, TaskExecutor, TaskGraph, TaskType

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "linux" else 1 / 1024)

MEGABYTE = 10**6
line = "a line of output of about sixty characters, again and again"
with SQLiteStore("ledger.db") as store:
    executor = TaskExecutor(store)
    executor.execute(Task.bash("echo warm"))
    before = peak()
    {work}
    print(int(peak() - before))
"""
WORK = {
    "one script": "kept = executor.execute(Task.bash(f'yes {line} | head -c {50 * MEGABYTE}'))",
    "one line": "kept = executor.execute(Task.bash(f'head -c {50 * MEGABYTE} /dev/zero | tr \"\\\\0\" x'))",
    "one line for a subscriber": """
        executor.events.subscribe(lambda event: None)
        kept = executor.execute(Task.bash(f'head -c {50 * MEGABYTE} /dev/zero | tr "\\\\0" x'))
    """,
    "one line where secrets are masked": """
        kept = executor.execute(
            Task.bash(f'head -c {50 * MEGABYTE} /dev/zero | tr "\\\\0" x', env={"API_TOKEN": "wertvoll-123"})
        )
    """,
    "an error": """
        heard, kept = [], []
        executor.events.subscribe(lambda event: heard.append(event) if event.type != "output" else None)
        task = Task.bash(f'head -c {50 * MEGABYTE} /dev/zero | tr "\\\\0" x >&2; exit 3')
        try:
            executor.execute(task)
        except TaskExecutionError as error:
            kept.append(error)
    """,
    "results of scripts": """
        script = f'yes {line} | head -c {MEGABYTE}'
        kept = [executor.execute(Task.bash(script)) for _ in range(50)]
    """,
    "results of a graph": """
        graph = TaskGraph()
        for _ in range(50):
            graph.add(Task.bash(f'yes {line} | head -c {MEGABYTE}'))
        graph.run(executor)
    """,
    "errors of a graph": """
        graph = TaskGraph()
        for _ in range(14):
            graph.add(Task.bash(f'yes {line} | head -c {4 * MEGABYTE} >&2; exit 1'))
        graph.run(executor)
        assert len(graph.errors) == 14
    """,
    "texts that handlers return": """
        executor.register(TaskType.BASH, lambda context: context.id[:10] * (MEGABYTE // 10))
        kept = [executor.execute(Task.bash("")) for _ in range(50)]
    """,
    "processes that handlers return": """
        executor.register(
            TaskType.BASH,
            lambda context: subprocess.CompletedProcess([], 0, context.id[:10].encode() * (MEGABYTE // 10), b""),
        )
        kept = [executor.execute(Task.bash("")) for _ in range(50)]
    """,
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_memory_does_not_grow_with_output(work: str, tmp_path: Path) -> None:
    indented = textwrap.indent(textwrap.dedent(work).strip(), "    ").strip()
    program = MEMORY.replace("{work}", indented)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert ran.stderr == ""
    assert int(ran.stdout) < 32 * 1024  # KiB; each printed 50 MB or more


def test_a_run_of_the_command_that_fails_takes_as_little_memory(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("tasks:\n  a: {bash: 'head -c 60000000 /dev/zero | tr \"\\0\" x >&2; exit 3'}\n")
    program = """
import resource, subprocess, sys
TTASKS = [sys.executable, "-c", "from ttasks.cli import main; main()"]
def peak_of(*arguments):
    subprocess.run([*TTASKS, *arguments], stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "linux" else 1 / 1024)
base = peak_of("--help")
ran = peak_of("run", "a.yaml")
task = subprocess.check_output([*TTASKS, "ls", "--tasks"], text=True).splitlines()[-1].split()[0]
print(int(ran - base), int(peak_of("show", "--output", task) - base))
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert max(map(int, ran.stdout.split())) < 64 * 1024  # KiB


# --- the same texts --------------------------------------------------------------------------------------------------


def test_a_result_that_is_not_in_memory_is_the_same_as_one_that_is(store: SQLiteStore) -> None:
    script = "seq 20000; seq 20000 >&2"
    stored = TaskExecutor(store).execute(Task.bash(script))
    kept = TaskExecutor().execute(Task.bash(script))
    assert (stored.output, stored.error) == (kept.output, kept.error) == (LONG, LONG)
    assert (stored.raw.stdout, stored.raw.stderr, stored.raw.args) == (LONG, LONG, kept.raw.args)
    assert repr(stored.raw) == repr(kept.raw)
    assert isinstance(stored.raw, subprocess.CompletedProcess)
    stored.raw.check_returncode()


def test_output_is_read_each_time_and_not_kept(store: SQLiteStore) -> None:
    result = TaskExecutor(store).execute(Task.bash("seq 20000"))
    assert result.output == result.output == LONG
    assert "output" not in vars(result)
    assert store.tasks[result.task_id].result == result


@pytest.mark.parametrize("unit", ["x", "ü", "✓", "😀"])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_up_to_64_kib_are_kept(path: Path, unit: str, more: int) -> None:
    store = SQLiteStore(path)
    size = KEPT_BYTES_MAX // len(unit.encode()) + more
    result = returning(store, subprocess.CompletedProcess("it", 0, unit * size, "")).execute(Task.bash(""))
    script = TaskExecutor(store).execute(Task.bash(f"printf '{unit}%.0s' $(seq {size})"))
    assert result.output == script.output == unit * size
    store.close()
    path.unlink()
    if len(unit.encode()) * size <= KEPT_BYTES_MAX:
        assert result.output == script.output == script.raw.stdout == unit * size
    else:
        for each in (result, script):
            with pytest.raises(
                LedgerError, match=r"attempt 1 of task-.* printed is only in its ledger: .*ledger.db is gone"
            ):
                _ = each.output


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_copies_have_the_text_in_them(path: Path, copied: Callable[[Any], Any]) -> None:
    store = SQLiteStore(path)
    result = TaskExecutor(store).execute(Task.bash("seq 20000"))
    _, error = fail(store, "seq 20000 >&2; exit 3")
    copies = copied(result), copied(result.raw), copied(error)
    store.close()
    path.unlink()
    assert copies[0].output == copies[1].stdout == LONG
    assert type(copies[1]) is subprocess.CompletedProcess
    if copied is not copy.copy:
        assert (str(copies[2]), copies[2].completed.stderr) == (LONG, LONG)


def test_an_error_says_all_of_a_long_stderr_wherever_it_is_asked_for(store: SQLiteStore) -> None:
    task, error = fail(store, "seq 20000 >&2; exit 3")
    assert type(error) is TaskExecutionError
    assert str(error) == task.error == result_of(task).error == LONG
    assert error.completed is result_of(task).raw
    assert len(repr(error)) < 200
    loaded = store.tasks[task.id]
    assert (loaded.error, loaded.result) == (LONG, task.result)
    (attempt,) = store._readers.attempts(task.id)
    assert (attempt.error, attempt.error_length, attempt.exception) == (
        LONG[-4096:], len(LONG), "ttasks.TaskExecutionError",
    )  # fmt: skip


def test_subscribers_hear_all_of_a_long_error(store: SQLiteStore) -> None:
    executor, heard = TaskExecutor(store), list[TaskEvent]()
    executor.events.subscribe(lambda event: heard.append(event) if event.type == "failed" else None)
    with pytest.raises(TaskExecutionError):
        executor.execute(Task.bash("seq 20000 >&2; exit 3"))
    assert [event.error for event in heard] == [LONG]


def test_a_time_out_and_a_cancel_hold_what_was_printed(store: SQLiteStore) -> None:
    task, error = fail(store, "seq 20000; seq 20000 >&2; exec sleep 60", timeout=1)
    assert isinstance(error, TaskTimeoutError) and error.completed is not None
    assert (error.completed.stdout, error.completed.stderr, result_of(task).output) == (LONG, LONG, LONG)
    cancelled = Task.bash("seq 20000; echo ready >&2; exec sleep 60")
    executor = TaskExecutor(store)
    executor.events.subscribe(lambda event: executor.cancel(cancelled) if event.output_stream == "stderr" else None)
    with pytest.raises(TaskCancelled) as raised:
        executor.execute(cancelled)
    assert raised.value.completed is not None
    assert raised.value.completed.stdout == result_of(cancelled).output == LONG


def test_a_cancelled_script_that_fails_with_a_long_error_has_it_in_its_result(store: SQLiteStore) -> None:
    task = Task.bash("seq 20000 >&2; exit 3")
    executor = TaskExecutor(store)

    def handler(context: TaskContext) -> object:
        try:
            return bash_handler(context)
        finally:
            executor.cancel(task)

    executor.register(TaskType.BASH, handler)
    with pytest.raises(TaskCancelled):
        executor.execute(task)
    assert (task.status, result_of(task).error) == (TaskStatus.CANCELLED, LONG)
    assert store.tasks[task.id].result == task.result


# --- what handlers have ----------------------------------------------------------------------------------------------


def run_another(context: TaskContext, script: str) -> subprocess.CompletedProcess[str]:
    """Run one more script in an attempt, whose own payload stays what its start recorded."""
    other = TaskContext(Task.bash(script))
    other._port = context._port
    return bash_handler(other)


def test_a_handler_reads_what_its_scripts_printed_while_it_runs(store: SQLiteStore) -> None:
    """The last of it is not recorded yet then, and each script has its own."""
    seen: list[str] = []

    def handler(context: TaskContext) -> object:
        for script in ("seq 20000; echo first", "seq 20000; echo second"):
            completed = run_another(context, script)
            seen.append(completed.stdout)
        return completed

    executor = TaskExecutor(store)
    executor.register(TaskType.BASH, handler)
    result = executor.execute(Task.bash(""))
    assert seen == [f"{LONG}first\n", f"{LONG}second\n"]
    assert result.output == result.raw.stdout == seen[1]


def test_a_handler_that_says_what_its_script_printed_does_not_record_it_twice(store: SQLiteStore) -> None:
    def handler(context: TaskContext) -> object:
        completed = bash_handler(context)
        raise TaskExecutionError(completed.stderr, completed)

    executor, task = TaskExecutor(store), Task.bash("seq 20000 >&2")
    executor.register(TaskType.BASH, handler)
    with pytest.raises(TaskExecutionError, match=r"20000\s$"):
        executor.execute(task)
    assert task.error == LONG
    assert len(str(store.history(task)[-1])) < 6000
    other = Task.bash("seq 20000 >&2")
    executor.register(TaskType.BASH, lambda context: _raise(TaskExecutionError("its own", bash_handler(context))))
    with pytest.raises(TaskExecutionError, match="its own"):
        executor.execute(other)
    assert (other.error, result_of(other).raw.stderr) == ("its own", LONG)


def _raise(error: Exception) -> object:
    raise error


@pytest.mark.parametrize(
    "value",
    [FILL, subprocess.CompletedProcess("it", 0, FILL, FILL), subprocess.CompletedProcess("it", 0, FILL.encode())],
)
def test_what_a_handler_returns_is_given_back_as_it_was(store: SQLiteStore, value: Any) -> None:
    result = returning(store, value).execute(Task.bash(""))
    assert result.output == FILL
    assert repr(result.raw) == repr(value)
    assert type(result.raw) is str or isinstance(result.raw, subprocess.CompletedProcess)
    assert result.raw is not value
    assert store.tasks[result.task_id].result == result


class Words(str):
    __slots__ = ()


class Process(subprocess.CompletedProcess[str]):
    pass


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Words(FILL), FILL),
        (Process("it", 0, FILL), FILL),
        (subprocess.CompletedProcess("it", 0, b"\xff" * 100_000), "\ufffd" * 100_000),
        (FILL + "wertvoll-123", FILL + "***"),
        (FILL + "\ud83d\ude00", FILL + "\ud83d\ude00"),
    ],
    ids=["a str of its own", "a process of its own", "no UTF-8", "a secret", "surrogates"],
)
def test_what_the_ledger_would_not_give_back_as_it_was_is_kept(store: SQLiteStore, value: Any, shown: str) -> None:
    result = returning(store, value).execute(Task.bash("", env={"API_TOKEN": "wertvoll-123"}))
    assert result.raw is value
    assert result.output == shown


def test_upstream_results_are_read_when_a_handler_asks(store: SQLiteStore) -> None:
    executor, graph = TaskExecutor(store), TaskGraph()
    executor.register(
        TaskType.AGENT, lambda context: str(sum(len(one.result.output) for one in context.upstream.values()))
    )
    one, two = Task.bash("seq 20000"), Task.agent("count")
    graph.add(one)
    graph.add(two, after=[one])
    graph.run(executor)
    assert result_of(two).output == str(len(LONG))


def test_each_attempt_has_its_own_output(store: SQLiteStore) -> None:
    executor, results = TaskExecutor(store), list[TaskResult]()
    executor.events.subscribe(lambda event: results.append(result_of(event.task)) if event.type == "failed" else None)
    task = Task.bash("echo $TTASKS_ATTEMPT; seq 20000; exit 1")
    with pytest.raises(TaskExecutionError):
        executor.execute(task, retry_policy=RetryPolicy(3))
    outputs = [result.output for result in results]
    assert len(set(outputs)) == 3
    assert all(output.endswith(f"\n{LONG}") for output in outputs)


# --- where it is read from -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["gone", "another", "of an earlier day"])
def test_a_ledger_that_is_not_there_any_more_is_named(path: Path, how: str) -> None:
    copied = path.with_name("copy.db")
    SQLiteStore(path).close()
    shutil.copy(path, copied)
    with SQLiteStore(path) as store:
        task, error = fail(store, "seq 20000; seq 20000 >&2; exit 1")
        assert result_of(task).output == LONG
    path.rename(path.with_name("away.db"))
    if how == "another":
        SQLiteStore(path).close()
    elif how == "of an earlier day":
        copied.rename(path)
    said = "is gone; put it back" if how == "gone" else "is another ledger by now; put the one with the id .* back"
    for asked in (lambda: result_of(task).output, lambda: result_of(task).raw.stderr, lambda: task.error):
        with pytest.raises(LedgerError, match=rf"attempt 1 of task-{task.id} .*{said}"):
            asked()
    assert "is only in its ledger" in str(error)
    if how != "gone":
        path.unlink()
    path.with_name("away.db").rename(path)
    assert (result_of(task).output, str(error)) == (LONG, LONG)


def test_reading_a_result_leaves_a_closed_ledger_as_it_is(path: Path) -> None:
    with SQLiteStore(path) as store:
        result = TaskExecutor(store).execute(Task.bash("seq 20000"))
    before = {each.name: each.stat() for each in path.parent.iterdir()}
    assert result.output == LONG
    assert before.keys() == {each.name for each in path.parent.iterdir()}
    assert path.stat().st_mtime_ns == before[path.name].st_mtime_ns


def test_what_a_lost_ledger_lacks_is_read_from_the_handle(path: Path) -> None:
    away = path.with_name("away.db")

    def handler(context: TaskContext) -> object:
        assert bash_handler(context).stdout == LONG
        path.rename(away)
        return run_another(context, "seq 20000; echo more")

    with SQLiteStore(path) as store:
        executor, task = TaskExecutor(store), Task.bash("seq 20000")
        executor.register(TaskType.BASH, handler)
        with pytest.raises(LedgerUnwritableError) as lost:
            executor.execute(task)
        away.rename(path)
        assert lost.value.result is task.result
        assert result_of(task).output == f"{LONG}more\n"
        store.tasks.save(task)
        assert result_of(task).output == f"{LONG}more\n"
        assert store._readers.printed(task.id, 1)["stdout"] == f"{LONG}{LONG}more\n"


def test_a_text_that_a_handler_returned_is_kept_where_the_ledger_is_lost(path: Path) -> None:
    def handler(_: TaskContext) -> str:
        path.rename(path.with_name("away.db"))
        return FILL

    with SQLiteStore(path) as store:
        executor, task = TaskExecutor(store), Task.bash("")
        executor.register(TaskType.BASH, handler)
        with pytest.raises(LedgerUnwritableError):
            executor.execute(task)
        path.with_name("away.db").rename(path)
        assert result_of(task).output == FILL
        store.tasks.save(task)
        assert result_of(store.tasks[task.id]).output == FILL


@pytest.mark.parametrize("make", [InMemoryStore, lambda: SQLiteStore(":memory:")], ids=["InMemoryStore", ":memory:"])
def test_a_ledger_in_memory_holds_output_once_and_as_long_as_a_result_needs_it(make: Callable[[], Any]) -> None:
    with make() as store:
        result = TaskExecutor(store).execute(Task.bash("seq 20000"))
        text = returning(store, FILL).execute(Task.bash(""))
        assert "output" not in vars(result)
        assert result.output == LONG
    assert (result.output, result.raw.stdout, text.output) == (LONG, LONG, FILL)


def test_saved_in_another_ledger_output_is_there_too(store: SQLiteStore, tmp_path: Path) -> None:
    task, _ = fail(store, "seq 20000; seq 20000 >&2; exit 1")
    with SQLiteStore(tmp_path / "other.db") as other:
        other.tasks.save(task)
        assert other._readers.printed(task.id, 1) == {"stdout": LONG, "stderr": LONG}
        assert other.tasks[task.id].error == LONG


# --- lines -----------------------------------------------------------------------------------------------------------


def test_of_a_line_that_is_too_long_both_ends_are_published(store: SQLiteStore) -> None:
    executor, lines = TaskExecutor(store), list[str]()
    executor.events.subscribe(lambda event: lines.append(event.output_chunk) if event.output_chunk else None)
    for size in (LINE_BYTES_MAX, LINE_BYTES_MAX + 300_000):
        executor.execute(Task.bash(f"head -c {size} /dev/zero | tr '\\0' x; echo; echo short"))
    half = "x" * (LINE_BYTES_MAX // 2)
    notice = f"[300000 bytes left out: a published line has at most {LINE_BYTES_MAX}; the ledger has all of it]"
    assert lines == [f"{half}{half}\n", "short\n", f"{half} {notice} {half}\n", "short\n"]


def test_without_a_ledger_everything_is_kept() -> None:
    executor, lines = TaskExecutor(), list[str]()
    executor.events.subscribe(lambda event: lines.append(event.output_chunk) if event.output_chunk else None)
    result = executor.execute(Task.bash("head -c 300000 /dev/zero | tr '\\0' x"))
    assert (result.output, lines) == (FILL, [FILL])
    assert type(result.raw) is subprocess.CompletedProcess
