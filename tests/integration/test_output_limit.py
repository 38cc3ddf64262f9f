"""`max_output_bytes`: the beginning and the end stay in memory, and the ledger has everything."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import PATIENCE_S
from ttasks import (
    InMemoryStore,
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
    TaskTimeoutError,
    TaskType,
)
from ttasks.events.facts import AttemptEnd, TaskOutput
from ttasks.handlers.shell import bash_handler
from ttasks.log.verify import verify

IS_CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
LIMIT = 1000
COUNT = "".join(f"{number}\n" for number in range(1, 5001))
"""What `seq 5000` prints."""


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        yield store
        assert verify(store._readers).problems == []


def shown(whole: str, elsewhere: str = "the ledger has all of it", limit: int = LIMIT) -> str:
    """Return what is shown of a text in ASCII that is longer than its limit, and has its line ends elsewhere."""
    head, tail = whole[: (limit + 1) // 2], whole[len(whole) - limit // 2 :]
    notice = f"[{len(whole) - limit} bytes left out: max_output_bytes is {limit}; {elsewhere}]"
    return "\n".join([head.removesuffix("\n"), notice, tail])


def run(script: str, store: Any = None, limit: int | None = LIMIT, **fields: Any) -> tuple[Task, Exception | None]:
    task, raised = Task.bash(script, **fields), None
    try:
        TaskExecutor(store, max_output_bytes=limit).execute(task)
    except (TaskExecutionError, TaskTimeoutError, TaskCancelled) as error:
        raised = error
    return task, raised


def whole(store: SQLiteStore, task: Task, attempt: int = 1) -> dict[str, str]:
    """Return all that the ledger has of what an attempt printed."""
    return store._readers.printed(task.id, attempt)


# --- the argument ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [TaskExecutor, TaskExecutor.empty], ids=["TaskExecutor", "empty"])
@pytest.mark.parametrize("value", [True, False, 1.0, "1000", [1]])
def test_what_is_no_number_of_bytes_is_refused(make: Callable[..., TaskExecutor], value: Any) -> None:
    with pytest.raises(TypeError, match="max_output_bytes must be an int"):
        make(max_output_bytes=value)


@pytest.mark.parametrize("make", [TaskExecutor, TaskExecutor.empty], ids=["TaskExecutor", "empty"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_limit_below_one_byte_is_refused(make: Callable[..., TaskExecutor], value: int) -> None:
    with pytest.raises(ValueError, match="max_output_bytes must be at least 1"):
        make(max_output_bytes=value)


def test_the_limit_is_given_by_name_only() -> None:
    with pytest.raises(TypeError):
        TaskExecutor(None, 1000)  # type: ignore[misc]


def test_an_executor_made_empty_and_one_of_a_subclass_keep_to_their_limit() -> None:
    class Mine(TaskExecutor):
        pass

    for executor in (Mine(max_output_bytes=LIMIT), Mine.empty(max_output_bytes=LIMIT)):
        executor.register(TaskType.BASH, bash_handler)
        assert isinstance(executor, Mine)
        assert executor.execute(Task.bash("seq 5000")).output == shown(COUNT, "no ledger has it")


# --- results and errors ----------------------------------------------------------------------------------------------


def test_each_stream_is_shown_by_its_beginning_and_its_end_and_the_ledger_has_both_whole(store: SQLiteStore) -> None:
    task, _ = run("seq 5000; seq 5000 >&2", store)
    result = task.result
    assert result is not None
    assert (result.output, result.error) == (shown(COUNT), shown(COUNT))
    assert (result.raw.stdout, result.raw.stderr, result.raw.returncode) == (result.output, result.error, 0)
    assert whole(store, task) == {"stdout": COUNT, "stderr": COUNT}
    loaded = store.tasks[task.id].result
    assert loaded is not None
    assert (loaded.output, loaded.error) == (COUNT, COUNT)


@pytest.mark.parametrize("executor", [TaskExecutor(max_output_bytes=LIMIT), TaskExecutor()], ids=["limit", "none"])
def test_a_stream_within_the_limit_is_shown_as_it_is(executor: TaskExecutor) -> None:
    text = "✓" * (LIMIT // 3) + "x"
    assert executor.execute(Task.bash(f"printf {text}")).output == text


def test_the_limit_is_each_stream_s_own() -> None:
    task, _ = run(f"printf %{LIMIT}s; printf %{LIMIT}s >&2")
    assert task.result is not None
    assert (task.result.output, task.result.error) == (" " * LIMIT, " " * LIMIT)


def test_no_character_is_cut_in_two_and_bad_bytes_count_as_they_are_recorded(store: SQLiteStore) -> None:
    task, _ = run(r"for i in {1..200}; do printf '✓\xff'; done", store, limit=100)
    assert task.result is not None
    text = "✓\ufffd" * 200
    (left_out,) = re.findall(r"\n\[(\d+) bytes left out", task.result.output)
    head, tail = re.split(r"\n\[.*\]\n", task.result.output)
    assert text.startswith(head) and text.endswith(tail)
    assert len((head + tail).encode()) + int(left_out) == len(text.encode())
    assert whole(store, task)["stdout"] == text


@pytest.mark.parametrize("lines", [300, 5000], ids=["shorter than a row keeps", "longer"])
def test_a_failure_is_told_by_the_ends_of_its_stderr_and_recorded_by_all_of_it(store: SQLiteStore, lines: int) -> None:
    stderr = "".join(f"{number}\n" for number in range(1, lines + 1))
    executor, heard = TaskExecutor(store, max_output_bytes=LIMIT), list[TaskEvent]()
    executor.events.subscribe(heard.append)
    task = Task.bash(f"seq {lines} >&2; exit 3")
    with pytest.raises(TaskExecutionError) as raised:
        executor.execute(task)
    assert task.result is not None and raised.value.completed is not None
    texts = {str(raised.value), task.error, task.result.error, raised.value.completed.stderr, heard[-1].error}
    assert texts == {shown(stderr)}
    assert (task.result.returncode, task.result.termination_reason) == (3, "exit_code")
    loaded = store.tasks[task.id]
    assert loaded.result is not None
    assert (loaded.error, loaded.result.error) == (stderr, stderr)


@pytest.mark.parametrize(
    "script", ["seq 9000; exit 7", "seq 9000 >&2; exit 7", "seq 300 >&2; exit 7", "seq 9000 >&2", "exit 7"]
)
def test_the_limit_changes_nothing_in_the_ledger(store: SQLiteStore, script: str) -> None:
    facts = []
    for limit in (LIMIT, None):
        task, _ = run(script, store, limit)
        events = list(store._readers.events(stream=f"task-{task.id}"))
        ends = [event.fact for event in events if isinstance(event.fact, AttemptEnd)]
        row = store._readers._one("SELECT error, error_length, result_error FROM tasks WHERE id = ?", (task.id,))
        facts.append((whole(store, task), [(end.error, end.error_length, end.returncode) for end in ends], row))
    assert facts[0] == facts[1]


def test_a_code_without_a_word_on_stderr_is_still_named() -> None:
    task, error = run("seq 5000; exit 7")
    assert str(error) == task.error == "exited with code 7"


def test_a_time_out_and_a_cancel_keep_both_ends_of_what_was_printed_so_far(store: SQLiteStore) -> None:
    task, _ = run("seq 5000; exec sleep 1000", store, timeout=1)
    assert task.result is not None
    assert (task.error, task.result.output) == ("Task timed out after 1 seconds", shown(COUNT))
    executor = TaskExecutor(store, max_output_bytes=LIMIT)
    executor.events.subscribe(lambda event: executor.cancel(event.task) if event.output_chunk == "5000\n" else None)
    cancelled = Task.bash("seq 5000; exec sleep 1000", timeout=PATIENCE_S)
    with pytest.raises(TaskCancelled) as raised:
        executor.execute(cancelled)
    assert cancelled.result is not None and raised.value.completed is not None
    assert cancelled.result.output == raised.value.completed.stdout == shown(COUNT)
    assert [whole(store, each)["stdout"] for each in (task, cancelled)] == [COUNT, COUNT]


def test_each_attempt_has_the_whole_limit_to_itself(store: SQLiteStore) -> None:
    task = Task.bash("echo x >> tries; seq 5000 >&2; [ $(wc -l < tries) = 3 ]")
    result = TaskExecutor(store, max_output_bytes=LIMIT).execute(task, retry_policy=RetryPolicy(3))
    assert result.error == shown(COUNT)
    assert [whole(store, task, attempt)["stderr"] for attempt in (1, 2, 3)] == [COUNT] * 3


def test_without_a_ledger_nothing_is_said_to_have_the_rest() -> None:
    task, _ = run("seq 5000")
    assert task.result is not None
    assert task.result.output == shown(COUNT, "no ledger has it")


def test_a_ledger_in_memory_has_the_rest_too() -> None:
    with InMemoryStore() as store:
        task, _ = run("seq 5000", store)
        assert task.result is not None
        assert task.result.output == shown(COUNT)
        assert store._readers.printed(task.id, 1)["stdout"] == COUNT


def test_both_ends_are_those_of_what_is_recorded_where_secrets_are_masked(tmp_path: Path) -> None:
    env = {"API_TOKEN": "correct-horse"}
    with SQLiteStore(tmp_path / "ledger.db") as store:
        task, error = run('for i in {1..500}; do echo "$i $API_TOKEN" >&2; done; exit 1', store, env=env)
        masked = "".join(f"{number} ***\n" for number in range(1, 501))
        assert str(error) == task.error == shown(masked)
        assert whole(store, task)["stderr"] == masked
        loaded = store.tasks[task.id].result
        assert loaded is not None and loaded.error == masked


def test_a_graph_keeps_to_the_limit_of_its_executor(store: SQLiteStore) -> None:
    graph = TaskGraph()
    one = graph.add(Task.bash("seq 5000"))
    two = graph.add(Task.bash("seq 5000 >&2; exit 1"), after=[one])
    graph.run(TaskExecutor(store, max_output_bytes=LIMIT))
    assert one.result is not None
    assert (one.result.output, str(graph.errors[two.id])) == (shown(COUNT), shown(COUNT))


def test_what_a_handler_ran_by_itself_is_its_own_affair(store: SQLiteStore) -> None:
    def handler(context: TaskContext) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["seq", "5000"], capture_output=True, text=True)

    executor = TaskExecutor.empty(store, max_output_bytes=LIMIT)
    executor.register(TaskType.BASH, handler)
    task = Task.bash("count")
    assert executor.execute(task).output == COUNT
    assert whole(store, task)["stdout"] == COUNT


def test_a_ledger_that_was_lost_meanwhile_gets_everything_with_a_later_save(tmp_path: Path) -> None:
    path, kept = tmp_path / "ledger.db", tmp_path / "kept.db"
    with SQLiteStore(path) as store:
        task = Task.bash(f"mv '{path}' '{kept}'; seq 5000; seq 5000 >&2")
        with pytest.raises(LedgerUnwritableError):
            TaskExecutor(store, max_output_bytes=LIMIT).execute(task)
        assert task.result is not None and task.result.output == shown(COUNT)
        kept.rename(path)
        store.tasks.save(task)
        assert whole(store, task) == {"stdout": COUNT, "stderr": COUNT}
        loaded = store.tasks[task.id].result
        assert loaded is not None and loaded.error == COUNT


# --- the bus ---------------------------------------------------------------------------------------------------------


def lines_heard(script: str) -> list[str]:
    executor, heard = TaskExecutor(max_output_bytes=LIMIT), list[str]()
    executor.events.subscribe(lambda event: heard.append(event.output_chunk or "") if event.type == "output" else None)
    executor.execute(Task.bash(script))
    assert executor.events.errors == []
    return heard


def test_every_line_is_published_whatever_is_kept_of_the_stream() -> None:
    assert "".join(lines_heard("seq 5000")) == COUNT


def test_a_line_longer_than_the_limit_is_published_by_its_beginning_and_its_end() -> None:
    size = 1_000_000
    script = f"echo a; head -c {size} /dev/zero | tr '\\0' x; echo; echo b; printf %{LIMIT + 1}s"
    half = "x" * (LIMIT // 2)
    notice = "[{} bytes left out: max_output_bytes is 1000; no ledger has it]"
    assert lines_heard(script) == [
        "a\n",
        f"{half} {notice.format(size - LIMIT)} {half}\n",
        "b\n",
        f"{' ' * (LIMIT // 2 - 1)} {notice.format(1)} {' ' * (LIMIT // 2)}",
    ]


# --- memory ----------------------------------------------------------------------------------------------------------

MEGABYTES = 50 if IS_CAMPAIGN else 10
LINE = "0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@pytest.mark.campaign
@pytest.mark.parametrize("lines", [f"yes '{LINE}'", "yes | tr -d '\\n'"], ids=["lines", "one long line"])
@pytest.mark.parametrize("redirect", ["", ">&2"], ids=["stdout", "stderr"])
def test_memory_stays_within_the_limit_however_much_is_printed(store: SQLiteStore, lines: str, redirect: str) -> None:
    limit = 200_000
    executor = TaskExecutor(store, max_output_bytes=limit)
    longest = 0

    def hear(event: TaskEvent) -> None:
        nonlocal longest
        longest = max(longest, len(event.output_chunk or ""))

    executor.events.subscribe(hear)
    executor.execute(Task.bash("echo warm"))
    script = f"{lines} | head -c {MEGABYTES}000000"
    task = Task.bash(f"({script}) {redirect}; exit 1")
    tracemalloc.start()
    try:
        with pytest.raises(TaskExecutionError):
            executor.execute(task)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000
    assert 0 < longest < limit + 200
    expected = hashlib.sha256(subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE).stdout).digest()
    digest = hashlib.sha256()
    for event in store._readers.events(stream=f"task-{task.id}", type="TaskOutput"):
        assert isinstance(event.fact, TaskOutput)
        for _, _, text in event.fact.chunks:
            digest.update(text.encode())
    assert digest.digest() == expected


RESIDENT = """
import resource, sys
from ttasks import SQLiteStore, Task, TaskExecutor
with SQLiteStore(sys.argv[1]) as store, TaskExecutor(store, max_output_bytes=100_000) as executor:
    executor.execute(Task.bash("seq 100000"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    executor.execute(Task.bash("yes | head -c " + sys.argv[2]))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units elsewhere")
def test_the_whole_process_grows_by_less_than_a_tenth_of_what_is_printed(tmp_path: Path) -> None:
    size = MEGABYTES * 1_000_000
    command = [sys.executable, "-c", RESIDENT, str(tmp_path / "ledger.db"), str(size)]
    grown_kib = int(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert (tmp_path / "ledger.db").stat().st_size > size
    assert grown_kib * 1024 < max(size / 10, 4_000_000)
