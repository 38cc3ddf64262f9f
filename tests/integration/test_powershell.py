"""PowerShell tasks: a stand-in called `pwsh` for what is ours, the real one, where there is one, for what is its."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processes import PATIENCE_S, alive, in_thread, until
from ttasks import (
    SQLiteStore,
    Task,
    TaskCancelled,
    TaskExecutionError,
    TaskExecutor,
    TaskGraph,
    TaskResult,
    TaskStatus,
    TaskTimeoutError,
)
from ttasks.events.facts import ProcessSpawned
from ttasks.log.verify import verify

BASH = shutil.which("bash")
STAND_IN = f"""#!{BASH}
# Takes its arguments as pwsh does, and runs the command, which the tests write for bash, in this very process.
if [ "$1 $2" != "-NoProfile -Command" ]; then
  echo "pwsh was called with $1 $2" >&2
  exit 64
fi
shift 2
if [ "$1" = - ]; then
  eval "$(cat)"
else
  eval "$*"
fi
"""
TELLING = f"""#!{sys.executable}
import json, sys
print(json.dumps(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        yield store
        assert verify(store._readers).problems == []


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder of PATH, without a pwsh in it."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


@pytest.fixture
def pwsh(folder: Path) -> Path:
    """The stand-in, on PATH."""
    return install(folder)


def install(folder: Path, text: str = STAND_IN) -> Path:
    path = folder / "pwsh"
    path.write_text(text)
    path.chmod(0o755)
    return path


def run(script: str, store: Any = None, **fields: Any) -> TaskResult:
    return TaskExecutor(store).execute(Task.powershell(script, **fields))


def failure(script: str, store: Any = None, **fields: Any) -> tuple[Task, Exception]:
    """Run a script that has to fail; return its task and what was raised."""
    task = Task.powershell(script, **fields)
    with pytest.raises((TaskExecutionError, TaskTimeoutError)) as raised:
        TaskExecutor(store).execute(task)
    return task, raised.value


# --- how pwsh is found -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_pwsh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A PATH without a pwsh."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    return os.environ["PATH"]


def test_a_missing_pwsh_is_a_failure_that_says_so_and_what_to_do(store: SQLiteStore, no_pwsh: str) -> None:
    task, error = failure("Get-Item", store)
    assert isinstance(error, TaskExecutionError) and error.completed is None
    assert str(error) == task.error
    for words in ("pwsh could not be started", no_pwsh, "nothing was run", "Install PowerShell"):
        assert words in str(error)
    found = store.tasks[task.id]
    assert (found.status, found.error) == (TaskStatus.FAILED, str(error))
    assert found.result is not None
    assert (found.result.returncode, found.result.termination_reason) == (None, "handler")


def test_a_missing_pwsh_fails_its_task_only(store: SQLiteStore, no_pwsh: str) -> None:
    graph = TaskGraph()
    task, other = graph.add(Task.powershell("Get-Item")), graph.add(Task.bash("echo fine"))
    graph.run(TaskExecutor(store))
    assert (task.status, other.status, graph.ok) == (TaskStatus.FAILED, TaskStatus.SUCCEEDED, False)


def test_pwsh_is_looked_for_at_each_start(no_pwsh: str) -> None:
    executor = TaskExecutor()
    task = Task.powershell("echo found")
    with pytest.raises(TaskExecutionError, match="pwsh"):
        executor.execute(task)
    Path(no_pwsh).mkdir()
    path = install(Path(no_pwsh))
    assert executor.execute(task).output == "found\n"
    path.unlink()
    with pytest.raises(TaskExecutionError, match="pwsh"):
        executor.execute(Task.powershell("echo found"))


def test_a_task_s_own_path_is_what_counts(pwsh: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    install(other, TELLING)
    assert json.loads(run("echo a", env={"PATH": f"{other}:{os.environ['PATH']}"}).output)[-1] == "echo a"
    _, error = failure("echo a", env={"PATH": str(tmp_path / "nothing")})
    assert f"({tmp_path / 'nothing'})" in str(error)


def test_a_folder_of_path_that_is_relative_is_so_to_the_runner(pwsh: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = os.path.relpath(pwsh.parent)
    assert run("pwd -P", cwd=str(tmp_path / "elsewhere"), env={"PATH": path}).output == f"{tmp_path / 'elsewhere'}\n"


@pytest.mark.parametrize("text", ["#!/no/such/interpreter\n", "no program at all"])
def test_a_pwsh_that_can_not_be_run_fails_the_task_with_its_name(folder: Path, tmp_path: Path, text: str) -> None:
    path = install(folder, text)
    task, error = failure("echo a", cwd=str(tmp_path))
    assert f"{path} could not be started" in str(error)
    assert task.status is TaskStatus.FAILED


def test_a_cwd_that_is_no_folder_is_named(pwsh: Path, tmp_path: Path) -> None:
    _, error = failure("echo a", cwd=str(tmp_path / "gone"))
    assert f"the folder '{tmp_path / 'gone'}' (cwd) does not exist" in str(error)


# --- how it is given the script --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "script",
    [
        "Get-Item .",
        "  two  blanks, 'quotes', \"more\", $dollars\nand `lines`\n",
        "-NotAParameter",
        "@'\nüñí ✓ 😀\n'@",
        "",
    ],
)
def test_pwsh_is_called_without_a_profile_and_with_the_script_as_its_command(folder: Path, script: str) -> None:
    path = install(folder, TELLING)
    result = run(script)
    assert json.loads(result.output) == ["-NoProfile", "-Command", script]
    assert result.raw.args == [str(path), "-NoProfile", "-Command", script]


def test_a_script_of_half_a_megabyte_reaches_pwsh_as_it_is_and_it_still_knows_its_stdin(pwsh: Path) -> None:
    script = "".join(f": {number:060d}\n" for number in range(8_000)) + "cat\nprintf 'a  b\\n'\nexit 5"
    assert len(script) > 500_000
    _, error = failure(script)
    assert error.completed is not None  # type: ignore[attr-defined]
    assert (error.completed.stdout, error.completed.returncode) == ("a  b\n", 5)  # type: ignore[attr-defined]


def test_a_long_script_that_can_not_be_cut_says_what_to_do_instead(pwsh: Path) -> None:
    _, error = failure("echo " + "x" * 200_000)
    assert "without a blank" in str(error) and "nothing was run" in str(error) and "& ./script.ps1" in str(error)


def test_a_script_that_is_too_long_for_the_system_says_what_to_do_instead(pwsh: Path) -> None:
    script = "echo " * 4_000_000
    task, error = failure(script)
    assert f"the script ({len(script)} bytes)" in str(error) and "in a file" in str(error)
    assert task.status is TaskStatus.FAILED


def test_a_lone_dash_does_not_stand_for_stdin(pwsh: Path, folder: Path) -> None:
    _, error = failure("-")
    assert error.completed is not None and error.completed.returncode != 0  # type: ignore[attr-defined]
    install(folder, TELLING)
    assert json.loads(run("-").output)[-1].strip() == "-"


def test_a_nul_in_a_script_fails_the_task_with_a_sentence(pwsh: Path) -> None:
    _, error = failure("echo a\0b")
    assert "NUL" in str(error)


# --- everything else is as for Bash ----------------------------------------------------------------------------------


def test_what_it_prints_and_how_it_ends_is_told_and_recorded(pwsh: Path, store: SQLiteStore) -> None:
    task, error = failure(r"printf 'a\xffb\n'; printf 'no such thing\n' >&2; exit 7", store)
    assert str(error) == task.error == "no such thing\n"
    assert task.result is not None
    assert (task.result.output, task.result.returncode) == ("a\ufffdb\n", 7)
    assert store.tasks[task.id].result == task.result
    (attempt,) = store._readers.attempts(task.id)
    assert attempt.handler == "ttasks.handlers.shell.powershell_handler"
    silent, error = failure("exit 7")
    assert str(error) == silent.error == "exited with code 7"


def test_it_leads_a_session_and_a_group_of_its_own_with_an_empty_stdin(pwsh: Path, store: SQLiteStore) -> None:
    task = Task.powershell(
        'echo $$; ps -o pgid= -o sid= -p $$; cat; printf %s "$TTASKS_ATTEMPT $KEY"', env={"KEY": "v"}
    )
    pid, group, session, attempt, value = TaskExecutor(store).execute(task).output.split()
    assert pid == group == session
    (spawned,) = store._readers.events(stream=f"task-{task.id}", type="ProcessSpawned")
    assert isinstance(spawned.fact, ProcessSpawned) and spawned.fact.pid == int(pid)
    (started,) = store._readers.events(stream=f"task-{task.id}", type="TaskStarted")
    assert (attempt, value) == (f"{store._ledger}:{started.position}", "v")


def test_its_output_is_published_while_it_runs(pwsh: Path) -> None:
    os.mkfifo("fifo")
    executor = TaskExecutor()
    executor.events.subscribe(lambda event: Path("fifo").write_text("go\n") if event.output_chunk == "one\n" else None)
    task = Task.powershell("echo one; read < fifo; echo two", timeout=PATIENCE_S)
    assert executor.execute(task).output == "one\ntwo\n"


def test_after_a_time_out_nothing_of_its_group_lives(pwsh: Path, store: SQLiteStore) -> None:
    task, error = failure("echo $$; (sleep 1000 & sleep 1000) & sleep 1000", store, timeout=0.5)
    assert isinstance(error, TaskTimeoutError) and str(error) == "Task timed out after 0.5 seconds"
    assert task.result is not None and error.completed is task.result.raw
    assert alive(int(task.result.output)) == []


def test_a_cancel_ends_its_group(pwsh: Path) -> None:
    executor, heard = TaskExecutor(), threading.Event()
    executor.events.subscribe(lambda event: heard.set() if event.type == "output" else None)
    task = Task.powershell("echo $$; sleep 1000 & sleep 1000", timeout=PATIENCE_S)
    future = in_thread(lambda: executor.execute(task))
    assert heard.wait(PATIENCE_S)
    assert executor.is_running(task.id)
    executor.cancel(task)
    with pytest.raises(TaskCancelled):
        future.result(PATIENCE_S)
    assert task.result is not None
    assert task.result.returncode == -signal.SIGTERM
    until(lambda: alive(int(task.result.output)) == [])  # type: ignore[union-attr]


def test_its_limit_of_output_is_that_of_its_executor(pwsh: Path, store: SQLiteStore) -> None:
    task = Task.powershell("seq 5000")
    result = TaskExecutor(store, max_output_bytes=1000).execute(task)
    assert "bytes left out" in result.output and len(result.output) < 1200
    assert store.tasks[task.id].result.output.splitlines() == [str(number) for number in range(1, 5001)]


# --- the real one ----------------------------------------------------------------------------------------------------

real = pytest.mark.skipif(
    shutil.which("pwsh") is None,
    reason="there is no pwsh here; it is in no package registry, so that not even CI can demand it",
)


@real
def test_the_real_one_runs_a_script_of_several_lines() -> None:
    script = "$name = @'\nwörld  ✓\n'@\nforeach ($i in 1..2) {\n  Write-Output \"hello $name $i\"\n}"
    assert run(script).output == "hello wörld  ✓ 1\nhello wörld  ✓ 2\n"


@real
@pytest.mark.parametrize(
    ("script", "code"),
    [
        ("exit 7", 7),
        ("throw 'no'", 1),
        ("Write-Error no", 1),
        ("bash -c 'exit 7'", 1),
        ("bash -c 'exit 7'; exit $LASTEXITCODE", 7),
        ("if (", 1),
        ("-", 1),
    ],
)
def test_the_real_one_s_exit_code_is_the_result_s(script: str, code: int) -> None:
    task, _ = failure(script)
    assert task.result is not None and task.result.returncode == code


@real
def test_the_real_one_goes_on_after_an_error_that_ends_nothing() -> None:
    result = run("Write-Error no; Write-Output on")
    assert result.output == "on\n"
    assert result.error is not None and "no" in result.error


@real
def test_the_real_one_puts_a_long_script_together_again() -> None:
    script = "\n".join(f"# {number} {'x' * 60}" for number in range(4000)) + "\nWrite-Output 'a  b'\nexit 5"
    assert len(script) > 200_000
    task, _ = failure(script)
    assert task.result is not None
    assert (task.result.output, task.result.returncode) == ("a  b\n", 5)


@real
def test_the_real_one_has_an_empty_stdin() -> None:
    assert run("[Console]::In.ReadToEnd().Length").output == "0\n"


@real
def test_the_real_one_is_ended_with_its_children() -> None:
    task, _ = failure("Write-Output $PID; Start-Process sleep 1000; Start-Sleep 1000", timeout=10)
    assert task.result is not None
    assert alive(int(task.result.output)) == []
