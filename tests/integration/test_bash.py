"""Scripts: real shells, real process groups, real pipes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from freezegun import freeze_time

from processes import PATIENCE_S, alive, in_thread, until
from ttasks import (
    LedgerUnwritableError,
    RetryPolicy,
    SQLiteStore,
    Task,
    TaskCancelled,
    TaskContext,
    TaskEvent,
    TaskExecutionError,
    TaskExecutor,
    TaskResult,
    TaskStatus,
    TaskTimeoutError,
    TaskType,
)
from ttasks.events.facts import ProcessSpawned, TaskOutput
from ttasks.handlers.shell import bash_handler
from ttasks.log.verify import verify

IS_CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture
def here(outside_git: Path) -> Path:
    """The working directory."""
    return outside_git


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        yield store
        assert verify(store._readers).problems == []


def run(script: str, **fields: Any) -> TaskResult:
    return TaskExecutor().execute(Task.bash(script, **fields))


def failure(script: str, store: Any = None, **fields: Any) -> tuple[Task, Exception]:
    """Run a script that has to fail; return its task and what was raised."""
    task = Task.bash(script, **fields)
    with pytest.raises((TaskExecutionError, TaskTimeoutError)) as raised:
        TaskExecutor(store).execute(task)
    return task, raised.value


def printed(store: SQLiteStore, task: Task) -> list[tuple[str, str]]:
    """Return the chunks that the ledger holds: stream and text, in order."""
    events = store._readers.events(stream=f"task-{task.id}", type="TaskOutput")
    chunks = [chunk for event in events if isinstance(event.fact, TaskOutput) for chunk in event.fact.chunks]
    return [(stream, text) for stream, _, text in chunks]


# --- ends and texts --------------------------------------------------------------------------------------------------


def test_a_script_s_stdout_is_output_and_its_stderr_is_error_word_for_word() -> None:
    task = Task.bash("printf ' out \\n\\n'; printf '\\terr' >&2")
    result = TaskExecutor().execute(task)
    assert (result.status, result.output, result.error) == (TaskStatus.SUCCEEDED, " out \n\n", "\terr")
    assert (result.returncode, result.termination_reason, task.error) == (0, None, None)
    assert isinstance(result.raw, subprocess.CompletedProcess)
    assert (result.raw.returncode, result.raw.stdout, result.raw.stderr) == (0, " out \n\n", "\terr")


def test_a_script_that_prints_nothing_has_no_error_and_an_empty_output() -> None:
    result = run("true")
    assert (result.output, result.error) == ("", None)


@pytest.mark.parametrize("code", [1, 7, 126, 127, 255])
def test_a_code_without_a_word_on_stderr_is_named(code: int) -> None:
    task, error = failure(f"echo out; exit {code}")
    assert str(error) == task.error == f"exited with code {code}"
    assert isinstance(error, TaskExecutionError) and isinstance(error, RuntimeError)
    assert error.completed is not None
    assert (error.completed.returncode, error.completed.stdout, error.completed.stderr) == (code, "out\n", "")
    result = task.result
    assert result is not None
    assert (result.status, result.returncode, result.output) == (TaskStatus.FAILED, code, "out\n")
    assert (result.error, result.termination_reason) == (f"exited with code {code}", "exit_code")
    assert result.raw is error.completed


def test_a_code_with_words_on_stderr_is_those_words() -> None:
    task, error = failure("printf 'no such\\nthing\\n' >&2; exit 3")
    assert str(error) == task.error == "no such\nthing\n"
    assert task.result is not None
    assert (task.result.error, task.result.returncode) == ("no such\nthing\n", 3)


def test_a_script_that_a_signal_ended_says_so_first_and_then_its_last_lines() -> None:
    task, error = failure("echo warning: cache is cold >&2; kill -KILL $$")
    assert task.error == str(error) == "killed by SIGKILL (probably out of memory, or kill -9)\nwarning: cache is cold"
    assert task.result is not None
    assert (task.result.error, task.result.returncode) == (task.error, -signal.SIGKILL)
    assert task.result.raw.stderr == "warning: cache is cold\n"


def test_a_script_that_a_signal_ended_in_silence_says_which() -> None:
    task, _ = failure("kill -SEGV $$")
    assert task.error == "killed by SIGSEGV (a crash: invalid memory access)"


def test_a_shell_that_reports_a_killed_command_fails_with_its_stderr_word_for_word() -> None:
    task, _ = failure("bash -c 'kill -KILL $$'; exit $?")
    assert task.result is not None
    assert task.result.returncode == 128 + signal.SIGKILL
    assert task.error == task.result.raw.stderr


def test_a_syntax_error_is_the_shell_s_own_word() -> None:
    task, _ = failure("if true; then")
    assert task.error is not None and "syntax error" in task.error


def test_what_was_recorded_of_a_script_is_what_was_shown(store: SQLiteStore) -> None:
    task, _ = failure("echo out; echo err >&2; exit 3", store)
    found = store.tasks[task.id]
    assert found.result == task.result
    assert (found.error, found.result.raw) == ("err\n", None)


@pytest.mark.parametrize("code", [0, 3])
def test_a_long_stderr_is_recorded_once_and_read_whole(store: SQLiteStore, code: int) -> None:
    task = Task.bash(f"seq 100000 >&2; exit {code}")
    with contextlib.suppress(TaskExecutionError):
        TaskExecutor(store).execute(task)
    whole = "".join(f"{number}\n" for number in range(1, 100_001))
    found = store.tasks[task.id]
    assert found.result is not None
    assert found.result.error == whole
    assert found.error == (whole if code else None)
    size = sum(len(text) for _, text in printed(store, task))
    assert size == len(whole)
    ends = [event for event in store._readers.events(stream=f"task-{task.id}") if event.type in ENDS]
    assert len(str(ends[0])) < 20_000


ENDS = ("TaskSucceeded", "TaskFailed")


def test_each_attempt_of_a_script_keeps_its_own_output(store: SQLiteStore, here: Path) -> None:
    task = Task.bash("echo x >> tries; wc -l < tries; [ $(wc -l < tries) = 3 ]")
    TaskExecutor(store).execute(task, retry_policy=RetryPolicy(5))
    assert [store._readers.printed(task.id, attempt)["stdout"].strip() for attempt in (1, 2, 3)] == ["1", "2", "3"]
    assert store.tasks[task.id].result.output.strip() == "3"


def test_a_script_runs_in_a_context_made_by_hand_and_nothing_is_recorded() -> None:
    task = Task.bash("echo out; seq 50000 >&2")
    completed = bash_handler(TaskContext(task))
    assert (completed.stdout, len(completed.stderr.splitlines())) == ("out\n", 50_000)
    assert (task.status, task.attempts) == (TaskStatus.PENDING, 0)


# --- what a script is given ------------------------------------------------------------------------------------------


def test_a_script_runs_where_its_runner_stands(here: Path) -> None:
    assert run("pwd -P").output == f"{here.resolve()}\n"


def test_a_script_runs_in_its_cwd(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    assert run("pwd -P", cwd=str(folder)).output == f"{folder.resolve()}\n"


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.write_text("")], ids=["missing", "a file"])
def test_a_cwd_that_is_no_folder_fails_the_task_with_its_name(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "gone"
    make(path)
    task, error = failure("true", cwd=str(path))
    assert str(path) in str(error)
    assert (task.status, task.error) == (TaskStatus.FAILED, str(error))
    assert task.result is not None


def test_a_script_s_variables_are_added_to_its_runner_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTASKS_TEST_INHERITED", "from the runner")
    monkeypatch.setenv("TTASKS_TEST_REPLACED", "from the runner")
    task_env = {"TTASKS_TEST_ADDED": "a 'b' \"c\" $d ✓", "TTASKS_TEST_REPLACED": "from the task"}
    result = run('printf \'%s|\' "$TTASKS_TEST_INHERITED" "$TTASKS_TEST_REPLACED" "$TTASKS_TEST_ADDED"', env=task_env)
    assert result.output == "from the runner|from the task|a 'b' \"c\" $d ✓|"


def test_a_script_with_a_ledger_can_tell_which_attempt_it_is(store: SQLiteStore) -> None:
    task = Task.bash('printf %s "$TTASKS_ATTEMPT"')
    result = TaskExecutor(store).execute(task)
    (started,) = store._readers.events(stream=f"task-{task.id}", type="TaskStarted")
    assert result.output == f"{store._ledger}:{started.position}"


def test_a_secret_value_runs_but_is_not_recorded(store: SQLiteStore, tmp_path: Path) -> None:
    task = Task.bash("printf %s ${#API_TOKEN}", env={"API_TOKEN": "tell-nobody"})
    assert TaskExecutor(store).execute(task).output == str(len("tell-nobody"))
    held = b"".join(path.read_bytes() for path in tmp_path.glob("ledger.db*"))
    assert b"API_TOKEN" in held
    assert b"tell-nobody" not in held


def test_stdin_is_empty() -> None:
    assert run("cat; readlink /proc/self/fd/0 2>/dev/null || echo /dev/null").output == "/dev/null\n"


def test_a_script_leads_a_session_and_a_group_of_its_own(store: SQLiteStore) -> None:
    task = Task.bash("echo $$; ps -o pgid= -o sid= -p $$")
    pid, group, session = TaskExecutor(store).execute(task).output.split()
    assert pid == group == session
    assert int(group) != os.getpgid(0)
    (spawned,) = store._readers.events(stream=f"task-{task.id}", type="ProcessSpawned")
    assert isinstance(spawned.fact, ProcessSpawned)
    assert (spawned.fact.pid, spawned.fact.attempt) == (int(pid), 1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no way to list descriptors here")
def test_a_script_inherits_no_descriptor_of_its_runner(store: SQLiteStore) -> None:
    listing = "3"  # what ls itself opened to list them
    assert TaskExecutor(store).execute(Task.bash("exec ls /proc/self/fd")).output.split() == ["0", "1", "2", listing]


def test_a_nul_in_a_script_fails_the_task_with_a_sentence(store: SQLiteStore) -> None:
    task, error = failure("echo a\0b", store)
    assert "NUL" in str(error)
    assert store.tasks[task.id].payload == "echo a\0b"
    assert store.tasks[task.id].status is TaskStatus.FAILED


def test_a_lone_surrogate_in_a_script_is_the_byte_it_stands_for() -> None:
    assert run("printf '\udcff' | od -An -tx1").output.strip() == "ff"


def test_a_script_that_can_not_be_encoded_fails_the_task() -> None:
    task, _ = failure("echo \ud800")
    assert task.status is TaskStatus.FAILED


def test_a_script_of_a_megabyte_runs_and_still_knows_its_stdin() -> None:
    script = "".join(f": {number:060d}\n" for number in range(16_000)) + "cat\necho done\nexit 5"
    assert len(script) > 1_000_000
    _, error = failure(script)
    assert error.completed is not None  # type: ignore[attr-defined]
    assert (error.completed.stdout, error.completed.returncode) == ("done\n", 5)  # type: ignore[attr-defined]


def test_a_long_script_of_wide_characters_runs() -> None:
    text = "✓" * 60_000
    assert run(f"printf %s '{text}'").output == text


# --- output ----------------------------------------------------------------------------------------------------------


def test_bad_utf_8_is_replaced_and_the_rest_is_kept(store: SQLiteStore) -> None:
    task = Task.bash(r"printf 'a\xffb\xc3'; printf '\xe2\x9c' >&2")
    result = TaskExecutor(store).execute(task)
    assert (result.output, result.error) == ("a\ufffdb\ufffd", "\ufffd")
    assert store.tasks[task.id].result == result


def test_a_character_that_comes_in_two_parts_is_whole(store: SQLiteStore) -> None:
    fifo = Path("fifo")
    os.mkfifo(fifo)
    heard = threading.Event()
    task = Task.bash(r"printf 'x\n\xe2\x9c'; read < fifo; printf '\x93'")
    executor = TaskExecutor(store)
    executor.events.subscribe(lambda event: heard.set() if event.type == "output" else None)
    future = in_thread(lambda: executor.execute(task))
    assert heard.wait(PATIENCE_S)
    fifo.write_text("go\n")
    assert future.result(PATIENCE_S).output == "x\n✓"


def test_nul_and_carriage_return_in_output_come_back_as_they_were(store: SQLiteStore) -> None:
    task = Task.bash(r"printf 'a\0b\r\nc\rd\n'")
    assert TaskExecutor(store).execute(task).output == "a\0b\r\nc\rd\n"
    assert store.tasks[task.id].result.output == "a\0b\r\nc\rd\n"


def lines_heard(script: str, store: Any = None) -> tuple[Task, list[TaskEvent]]:
    executor, heard = TaskExecutor(store), []
    executor.events.subscribe(lambda event: heard.append(event) if event.type == "output" else None)
    task = Task.bash(script)
    executor.execute(task)
    assert executor.events.errors == []
    return task, heard


def test_each_line_is_an_event_with_its_stream_and_its_end() -> None:
    task, heard = lines_heard("printf 'one\\ntwo\\n\\nlast'; printf 'err\\n' >&2")
    by_stream = {
        stream: [event.output_chunk for event in heard if event.output_stream == stream]
        for stream in ("stdout", "stderr")
    }
    assert by_stream == {"stdout": ["one\n", "two\n", "\n", "last"], "stderr": ["err\n"]}
    assert {(event.previous_status, event.status, event.record) for event in heard} == {
        (None, TaskStatus.RUNNING, None)
    }
    assert all(event.task is task for event in heard)


def test_a_carriage_return_ends_what_a_progress_bar_overwrites_and_with_a_line_feed_it_is_one_end() -> None:
    task, heard = lines_heard(r"printf '1%%\r2%%\r'; sleep 0.05; printf '\nlast\r\n\rbar'")
    assert [event.output_chunk for event in heard] == ["1%\r", "2%\r\n", "last\r\n", "\r", "bar"]
    assert task.result is not None and task.result.output == "1%\r2%\r\nlast\r\n\rbar"


@pytest.mark.parametrize("odd", [r"a\x0bb", r"a\xe2\x80\xa8b", r"a\x85b", r"a\x0cb"])
def test_nothing_else_ends_a_line(odd: str) -> None:
    _, heard = lines_heard(f"printf '{odd}\\nend\\n'")
    assert len(heard) == 2


def test_many_lines_come_one_by_one_and_in_order(store: SQLiteStore) -> None:
    task, heard = lines_heard("seq 20000", store)
    assert [event.output_chunk for event in heard] == [f"{number}\n" for number in range(1, 20_001)]
    assert "".join(event.output_chunk or "" for event in heard) == store.tasks[task.id].result.output


def test_a_line_longer_than_any_buffer_is_one_event() -> None:
    _, heard = lines_heard("head -c 1000000 /dev/zero | tr '\\0' x; echo")
    assert [len(event.output_chunk or "") for event in heard] == [1_000_001]


def test_output_is_published_while_the_script_runs() -> None:
    fifo = Path("fifo")
    os.mkfifo(fifo)
    executor = TaskExecutor()

    def let_go(event: TaskEvent) -> None:
        if event.output_chunk == "first\n":
            fifo.write_text("go\n")

    executor.events.subscribe(let_go)
    task = Task.bash("echo first; read < fifo; echo second", timeout=PATIENCE_S)
    assert executor.execute(task).output == "first\nsecond\n"


def test_output_is_in_the_ledger_while_the_script_runs(store: SQLiteStore) -> None:
    fifo = Path("fifo")
    os.mkfifo(fifo)
    task = Task.bash("echo first; read < fifo")
    future = in_thread(lambda: TaskExecutor(store).execute(task))
    until(lambda: task.is_running and printed(store, task))
    assert printed(store, task) == [("stdout", "first\n")]
    assert store.tasks[task.id].status is TaskStatus.RUNNING
    fifo.write_text("go\n")
    future.result(PATIENCE_S)


def test_the_ledger_has_both_streams_in_the_order_of_their_arrival(store: SQLiteStore) -> None:
    os.mkfifo("fifo")
    executor = TaskExecutor(store)

    def let_go(event: TaskEvent) -> None:
        if event.type == "output":
            Path("fifo").write_text("go\n")

    executor.events.subscribe(let_go)
    task = Task.bash(
        # A reader that comes before the last writer is gone reads nothing, and has to come again.
        "go() { until read < fifo; do :; done; }; for i in 1 2 3; do echo out $i; go; echo err $i >&2; go; done",
        timeout=PATIENCE_S,
    )
    executor.execute(task)
    assert printed(store, task) == [
        (stream, f"{word} {number}\n")
        for number in (1, 2, 3)
        for stream, word in (("stdout", "out"), ("stderr", "err"))
    ]


def test_all_output_is_in_the_ledger_before_the_end(store: SQLiteStore) -> None:
    task = Task.bash("seq 1000; seq 1000 >&2")
    TaskExecutor(store).execute(task)
    kinds = [event.type for event in store._readers.events(stream=f"task-{task.id}")]
    assert kinds[-1] == "TaskSucceeded"
    assert kinds.count("TaskOutput") >= 1


@pytest.mark.campaign
def test_much_output_passes_through_with_the_ledger_growing_by_about_that_much(tmp_path: Path) -> None:
    megabytes = 100 if IS_CAMPAIGN else 10
    size = megabytes * 1_000_000
    path = tmp_path / "much.db"
    line = "0123456789 abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    task = Task.bash(f"yes '{line}' | head -c {size}")
    with SQLiteStore(path) as store:
        result = TaskExecutor(store).execute(task)
        assert len(result.output) == size
        assert result.output.startswith(f"{line}\n{line}\n")
    assert size <= path.stat().st_size <= 1.2 * size
    with SQLiteStore(path) as store:
        assert store.tasks[task.id].result.output == result.output
        assert verify(store._readers).problems == []


# --- time-outs -------------------------------------------------------------------------------------------------------


def timed_out(script: str, store: Any = None, timeout: float = 0.3) -> Task:
    task = Task.bash(script, timeout=timeout)
    with pytest.raises(TaskTimeoutError) as raised:
        TaskExecutor(store).execute(task)
    error = raised.value
    assert isinstance(error, TimeoutError)
    assert str(error) == task.error == f"Task timed out after {timeout:g} seconds"
    assert task.result is not None
    assert (task.status, task.result.status, task.result.error) == (TaskStatus.FAILED, TaskStatus.FAILED, str(error))
    assert task.result.termination_reason == "timeout"
    assert task.result.raw is error.completed
    return task


def test_a_time_out_keeps_what_was_printed_so_far(store: SQLiteStore) -> None:
    task = timed_out("echo out; echo err >&2; exec sleep 1000", store)
    assert task.result is not None
    assert (task.result.output, task.result.raw.stderr) == ("out\n", "err\n")
    assert store.tasks[task.id].result == task.result
    assert printed(store, task) == [("stdout", "out\n"), ("stderr", "err\n")]


@pytest.mark.parametrize(
    "script",
    [
        "echo $$; sleep 1000",
        "echo $$; (sleep 1000 & sleep 1000) & sleep 1000; wait",
        "echo $$; nohup sleep 1000 >/dev/null 2>&1 & bash -c 'sleep 1000 & exec sleep 1000'",
        "echo $$; bash -c '(sleep 1000 >&- 2>&- &)'; sleep 1000",
    ],
    ids=["child", "grandchildren", "immune to hang-up", "orphan"],
)
def test_after_a_time_out_nothing_of_the_group_lives(script: str) -> None:
    task = timed_out(script)
    assert task.result is not None
    assert alive(int(task.result.output.split()[0])) == []


def test_a_group_that_ignores_sigterm_is_killed() -> None:
    task = timed_out(
        "trap '' TERM; echo $$; (trap '' TERM; while :; do sleep 1000; done) & while :; do sleep 1000; done"
    )
    assert task.result is not None
    assert alive(int(task.result.output)) == []
    assert 5 <= task.result.duration < 10


IGNORING = '(trap "" TERM; while :; do sleep 1000; done) &'
"""A background child that ignores SIGTERM."""


@pytest.mark.parametrize(
    "script",
    [
        f"{IGNORING} echo $$; exec sleep 1000",
        f"{IGNORING} echo $$",
        f"echo $$; bash -c '{IGNORING} exec sleep 1000 >&- 2>&-' & sleep 1000",
        "echo $$; kill -STOP $$",
    ],
    ids=["its script obeys", "its script is over", "a grandchild", "stopped"],
)
@pytest.mark.parametrize("how", ["time-out", "cancel"])
def test_what_does_not_heed_sigterm_is_killed_with_its_group(script: str, how: str) -> None:
    executor = TaskExecutor()
    if how == "cancel":
        executor.events.subscribe(lambda event: executor.cancel(task) if event.type == "output" else None)
    task = Task.bash(script, timeout=0.5 if how == "time-out" else PATIENCE_S, grace=0.2)
    with pytest.raises((TaskTimeoutError, TaskCancelled)):
        executor.execute(task)
    assert task.result is not None
    assert task.result.termination_reason == ("timeout" if how == "time-out" else "cancelled")
    assert alive(int(task.result.output)) == []


def test_a_script_that_closed_its_output_is_still_under_its_limit() -> None:
    task = timed_out("echo $$; exec >&- 2>&-; sleep 1000")
    assert task.result is not None
    assert alive(int(task.result.output)) == []


def test_a_group_is_given_time_to_clean_up() -> None:
    task = timed_out("trap 'echo cleaned; exit' TERM; echo $$; sleep 1000 & wait")
    assert task.result is not None
    assert task.result.output.endswith("cleaned\n")


@pytest.mark.parametrize("moment", ["2000-01-01", "2040-01-01"])
def test_a_time_out_comes_while_the_clock_stands_still(moment: str) -> None:
    with freeze_time(moment):
        task = timed_out("sleep 1000", timeout=0.1)
    assert task.result is not None
    assert 0.1 <= task.result.duration < PATIENCE_S
    assert task.result.started_at == task.result.finished_at


def test_the_limit_covers_what_background_children_keep_open() -> None:
    task = timed_out("echo $$; sleep 1000 & echo out")
    assert task.result is not None
    group, out = task.result.output.split()
    assert out == "out"
    assert alive(int(group)) == []


@pytest.mark.parametrize(
    ("script", "is_noisy"), [("setsid sleep 1000 & echo $!", False), ("setsid yes & echo $! >&2", True)]
)
def test_the_limit_covers_output_that_is_held_open_from_outside_the_group(
    script: str, is_noisy: bool, store: SQLiteStore
) -> None:
    executor, heard = TaskExecutor(store), list[str]()
    executor.events.subscribe(lambda event: heard.append(str(event.type)))
    task = Task.bash(script, timeout=0.3)
    pipes, threads = open_pipes(), set(threading.enumerate())
    with pytest.raises(TaskTimeoutError):
        executor.execute(task)
    assert task.result is not None
    left = psutil.Process(int(task.result.raw.stderr if is_noisy else task.result.output))
    try:
        assert task.result.duration < PATIENCE_S
        # Nobody goes on reading from it, and what was read by then is all that there is.
        assert open_pipes() <= pipes
        until(lambda: not [each for each in threading.enumerate() if "process" in each.name and each not in threads])
        assert heard[-1] == "failed"
        assert task.result.output == "".join(text for stream, text in printed(store, task) if stream == "stdout")
    finally:
        left.kill()


def open_pipes() -> set[str]:
    """Return the pipes that this process holds; none where that can't be seen."""
    if not Path("/proc/self/fd").exists():
        return set()
    held = []
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            held.append(os.readlink(path))
    return {name for name in held if name.startswith("pipe:")}


def test_without_a_limit_a_background_child_is_waited_for_while_it_holds_the_output_open() -> None:
    os.mkfifo("fifo")
    executor = TaskExecutor()

    def let_go(event: TaskEvent) -> None:
        if event.output_chunk == "leader is done\n":
            Path("fifo").write_text("go\n")

    executor.events.subscribe(let_go)
    task = Task.bash("(read < fifo; echo from the background) & echo leader is done")
    assert executor.execute(task).output == "leader is done\nfrom the background\n"


@pytest.mark.parametrize("timeout", [None, PATIENCE_S])
def test_a_background_child_that_gave_its_output_up_is_left_alone(timeout: float | None) -> None:
    result = run("sleep 1000 </dev/null >/dev/null 2>&1 & echo $!", timeout=timeout)
    left = psutil.Process(int(result.output))
    try:
        assert left.is_running()
    finally:
        left.kill()


def test_a_subscriber_that_does_not_come_back_hinders_no_end_and_hears_of_no_output_after_it() -> None:
    executor, heard, may_go_on = TaskExecutor(), list[str](), threading.Event()

    def hear(event: TaskEvent) -> None:
        heard.append(str(event.type))
        if event.type == "output":
            may_go_on.wait(PATIENCE_S)

    executor.events.subscribe(hear)
    threads = set(threading.enumerate())
    with pytest.raises(TaskTimeoutError):
        executor.execute(Task.bash("printf 'line\\nno end'; exec sleep 1000", timeout=0.3))
    may_go_on.set()
    until(lambda: not [each for each in threading.enumerate() if "process" in each.name and each not in threads])
    assert heard == ["started", "output", "failed"]


def test_a_handler_that_runs_two_scripts_gets_what_each_of_them_printed(store: SQLiteStore) -> None:
    printed: list[str] = []

    def twice(context: TaskContext) -> None:
        printed.extend(bash_handler(context).stdout for _ in range(2))

    executor = TaskExecutor(store)
    executor.register(TaskType.BASH, twice)
    task = Task.bash("echo once")
    executor.execute(task)
    assert printed == ["once\n", "once\n"]
    assert store._readers.printed(task.id, 1)["stdout"] == "once\nonce\n"


def test_a_script_that_ends_in_time_is_not_disturbed() -> None:
    assert run("echo done", timeout=PATIENCE_S).output == "done\n"


@pytest.mark.parametrize(
    "timeout",
    [
        10**9,
        pytest.param(1e10),
        pytest.param(1e300),
    ],
)
def test_a_limit_of_any_length_is_no_trouble(timeout: float) -> None:
    assert run("sleep 0.2; echo done", timeout=timeout).output == "done\n"


def test_each_attempt_has_the_whole_limit_to_itself(store: SQLiteStore) -> None:
    task = Task.bash("[ -e tried ] && exit 0; touch tried; sleep 1000", timeout=0.5)
    assert TaskExecutor(store).execute(task, retry_policy=RetryPolicy(2)).status is TaskStatus.SUCCEEDED
    assert [attempt.reason for attempt in store._readers.attempts(task.id)] == ["timeout", None]


# --- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cancel",
    [
        lambda executor, task: executor.cancel(task),
        lambda executor, task: task.cancel(),
        lambda executor, task: executor.store.tasks.cancel(task.id),
    ],
    ids=["executor.cancel", "task.cancel", "store.tasks.cancel"],
)
def test_cancelling_ends_the_group_and_keeps_what_was_printed(store: SQLiteStore, cancel: Any) -> None:
    executor = TaskExecutor(store)
    said: list[str] = []
    running: list[bool] = []

    def hear(event: TaskEvent) -> None:
        said.append(str(event.type))
        if event.type == "output":
            running.append(executor.is_running(task.id))
            cancel(executor, task)

    executor.events.subscribe(hear)
    task = Task.bash("echo $$; (sleep 1000 & sleep 1000) & sleep 1000", timeout=PATIENCE_S)
    with pytest.raises(TaskCancelled, match=f"Task '{task.id}' was cancelled"):
        executor.execute(task)
    assert executor.events.errors == []
    assert running == [True]
    assert not executor.is_running(task.id)
    assert said == ["started", "output", "cancelled"]
    assert (task.status, task.error) == (TaskStatus.CANCELLED, None)
    assert task.result is not None
    assert (task.result.termination_reason, task.result.error) == ("cancelled", f"Task '{task.id}' was cancelled")
    assert alive(int(task.result.output)) == []
    assert store.tasks[task.id].result == task.result


def test_cancelling_again_while_the_group_ends_is_harmless() -> None:
    executor = TaskExecutor()
    said: list[str] = []

    def hear(event: TaskEvent) -> None:
        said.append(str(event.type))
        if event.type == "output":
            executor.cancel(task)

    executor.events.subscribe(hear)
    task = Task.bash("trap 'echo ending; exit' TERM; echo $$; sleep 1000 & wait", timeout=PATIENCE_S)
    with pytest.raises(TaskCancelled):
        executor.execute(task)
    assert said == ["started", "output", "output", "cancelled"]


def test_a_cancel_ends_background_children_that_outlived_their_script() -> None:
    executor, heard = TaskExecutor(), threading.Event()
    executor.events.subscribe(lambda event: heard.set() if event.type == "output" else None)
    task = Task.bash("sleep 1000 & echo $$")
    future = in_thread(lambda: executor.execute(task))
    assert heard.wait(PATIENCE_S)
    (leader,) = [child for child in psutil.Process().children() if os.getpgid(child.pid) == child.pid]
    until(lambda: leader.status() == psutil.STATUS_ZOMBIE)
    executor.cancel(task)
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE_S)
    assert task.result is not None
    assert alive(int(task.result.output)) == []


def test_a_script_cancelled_at_its_start_prints_nothing() -> None:
    executor = TaskExecutor()
    executor.events.subscribe(lambda event: executor.cancel(event.task) if event.type == "started" else None)
    task = Task.bash("touch ran")
    with pytest.raises(TaskCancelled):
        executor.execute(task)
    assert not Path("ran").exists()


def test_is_running_speaks_of_live_processes_only() -> None:
    executor = TaskExecutor()
    seen: list[bool] = []
    executor.events.subscribe(lambda event: seen.append(executor.is_running(event.task_id)))
    task = Task.bash("echo line")
    assert not executor.is_running(task.id)
    executor.execute(task)
    assert (seen[1], seen[-1]) == (True, False)
    assert not executor.is_running("no such task")


CTRL_C = """
import os, signal, sys
from ttasks import Task, TaskExecutor
signal.signal(signal.SIGINT, signal.default_int_handler)
executor = TaskExecutor()
task = Task.bash("echo $$; (sleep 1000 & sleep 1000) & sleep 1000")
def hear(event):
    if event.type == "output":
        print(event.output_chunk, end="", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
executor.events.subscribe(hear)
try:
    executor.execute(task)
except KeyboardInterrupt:
    print(task.status, flush=True)
"""


def test_ctrl_c_ends_the_group_and_settles_the_task() -> None:
    ran = subprocess.run([sys.executable, "-c", CTRL_C], capture_output=True, text=True, timeout=PATIENCE_S)
    group, status = ran.stdout.split()
    assert alive(int(group)) == []
    assert status == "cancelled"


# --- where there is no bash ------------------------------------------------------------------------------------------

WITHOUT_BASH = """
import os, sys
from ttasks import Task, TaskExecutor
os.environ["PATH"] = sys.argv[1]
script = 'test -z "$BASH_VERSION" && echo in another shell; ' + open(sys.argv[2]).read()
result = TaskExecutor().execute(Task.bash(script))
print(result.output, result.raw.args[0])
"""


@pytest.mark.parametrize("padding", ["", ": " + "x" * 200_000], ids=["short", "long"])
def test_where_there_is_no_bash_sh_runs_the_script(tmp_path: Path, padding: str) -> None:
    if Path("/bin/sh").resolve().name == "bash":
        pytest.skip("/bin/sh is bash here, which can't be told from it")
    (tmp_path / "script").write_text(padding)
    ran = subprocess.run(
        [sys.executable, "-c", WITHOUT_BASH, str(tmp_path), str(tmp_path / "script")],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("in another shell\n")
    assert ran.stdout.split()[-1] == "/bin/sh"


# --- trouble ---------------------------------------------------------------------------------------------------------


def test_output_that_could_not_be_written_waits_with_the_end(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    kept = tmp_path / "kept.db"
    with SQLiteStore(path) as store:
        task = Task.bash(f"echo before; mv '{path}' '{kept}'; seq 50000; echo err >&2")
        with pytest.raises(LedgerUnwritableError) as lost:
            TaskExecutor(store).execute(task)
        assert lost.value.result is task.result
        assert task.is_succeeded
        kept.rename(path)
        store.tasks.save(task)
        found = store.tasks[task.id]
        assert found.result == task.result
        assert found.result.output == "before\n" + "".join(f"{number}\n" for number in range(1, 50_001))
        assert found.result.error == "err\n"
        assert verify(store._readers).problems == []


def test_a_shell_that_can_not_be_started_fails_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    task = Task.bash("true", env={"BIG": "x" * 200_000})
    with pytest.raises(TaskExecutionError, match="could not be started"):
        TaskExecutor().execute(task)
    assert task.status is TaskStatus.FAILED


def test_many_scripts_at_once_keep_their_outputs_apart(store: SQLiteStore) -> None:
    with TaskExecutor(store) as executor:
        tasks = [Task.bash(f"for i in $(seq 200); do echo {number}; done") for number in range(12)]
        futures = [executor.submit(task) for task in tasks]
        outputs = [future.result(PATIENCE_S).output for future in futures]
    assert outputs == [f"{number}\n" * 200 for number in range(12)]
    assert [store.tasks[task.id].result.output for task in tasks] == outputs


def test_a_script_leaves_no_file_behind(monkeypatch: pytest.MonkeyPatch, here: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    run(": " + "x" * 300_000)
    assert list(folder.iterdir()) == []
    assert list(here.iterdir()) == []
