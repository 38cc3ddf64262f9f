"""What the command prints to: closed, full, without a reader, non-blocking, ASCII only, a terminal that is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from commands import TTASKS, Command
from processes import until
from ttasks.cli.run import CTRL_C

GOOD = 'title: good\ntasks:\n  a: {bash: "echo one; echo two"}\n  b: {bash: "echo b >> log", after: [a]}\n'
BAD = 'title: bad\ntasks:\n  a: {bash: "echo one; exit 3"}\n'

CLOSED, FULL, NO_READER = "closed", "full", "without a reader"
TROUBLE = {CLOSED: "it is closed", FULL: "No space left on device", NO_READER: "Broken pipe"}


@pytest.fixture
def ttasks(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command.clean_up()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A folder with a ledger in which one graph has succeeded."""
    command = Command(tmp_path_factory.mktemp("ran"))
    command.write("good.yaml", GOOD)
    assert command("run", "good.yaml").returncode == 0
    return command


@contextlib.contextmanager
def stream(what: str) -> Iterator[int]:
    """Lend a descriptor that can't be written to."""
    if what == NO_READER:
        reader, writer = os.pipe()
        os.close(reader)
    elif what == FULL and not os.path.exists("/dev/full"):
        pytest.skip("only Linux has a device that is always full")
    else:
        writer = os.open("/dev/full" if what == FULL else os.devnull, os.O_WRONLY)
    try:
        yield writer
    finally:
        os.close(writer)


def closing(*numbers: int) -> Callable[[], None]:
    """Return what closes descriptors in a child process, before its program begins."""
    return lambda: [os.close(number) for number in numbers] and None


def without_stdout(ttasks: Command, words: Sequence[str], what: str) -> tuple[int, str]:
    """Run a command whose stdout is closed, full or without a reader; return its exit code and its stderr."""
    with stream(what) as out:
        done = subprocess.run(
            [*TTASKS, *words],
            cwd=ttasks.folder,
            env=ttasks.environment(),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=closing(1) if what == CLOSED else None,
        )
    return done.returncode, done.stderr


def goes_on(what: str) -> str:
    return f"ttasks: can't write to stdout ({TROUBLE[what]}): the command goes on without printing\n"


@pytest.mark.parametrize("what", TROUBLE)
def test_a_run_without_stdout_is_done_and_recorded_and_says_so_once(ttasks: Command, what: str) -> None:
    ttasks.write("good.yaml", GOOD)
    assert without_stdout(ttasks, ["run", "good.yaml"], what) == (0, goes_on(what))
    assert ttasks.statuses() == {"a": "succeeded", "b": "succeeded"}
    assert ttasks.sql("SELECT status FROM runs") == [("succeeded",)]


def test_a_failed_run_without_stdout_exits_with_1_and_so_does_its_retry(ttasks: Command) -> None:
    ttasks.write("bad.yaml", BAD)
    assert without_stdout(ttasks, ["run", "bad.yaml"], NO_READER) == (1, goes_on(NO_READER))
    assert without_stdout(ttasks, ["retry"], NO_READER) == (1, goes_on(NO_READER))
    assert ttasks.sql("SELECT status FROM runs") == [("failed",), ("failed",)]


def test_a_run_whose_reader_leaves_in_the_middle_goes_on(ttasks: Command) -> None:
    script = "echo first; until [ -e go ]; do sleep 0.02; done; seq 9999; touch end"
    ttasks.write("a.yaml", f"tasks:\n  a: {{bash: '{script}'}}\n")
    run = subprocess.Popen(
        [*TTASKS, "run", "a.yaml"], cwd=ttasks.folder, env=ttasks.environment(), stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with run.stdout:
        assert any("first" in line for line in run.stdout)
    ttasks.write("go", "")
    assert run.wait(60) == 0
    assert ttasks.statuses() == {"a": "succeeded"} and (ttasks.folder / "end").exists()


def test_a_resumed_run_without_stdout_is_done(ttasks: Command) -> None:
    ttasks.write("a.yaml", 'tasks:\n  a: {bash: "if [ ! -e go ]; then touch started; sleep 100; fi"}\n')
    run = ttasks.start("run", "a.yaml")
    ttasks.await_file("started")
    run.kill()
    ttasks.write("go", "")
    assert without_stdout(ttasks, ["resume"], CLOSED) == (0, goes_on(CLOSED))
    assert ttasks.statuses() == {"a": "succeeded"}


@pytest.mark.parametrize(
    ("words", "what"),
    [("verify", NO_READER), ("rebuild", CLOSED), ("doctor bash", NO_READER), ("resume --list", FULL), ("retry", FULL)],
)
def test_what_does_something_does_it_without_stdout_and_exits_with_its_own_code(
    ran: Command, words: str, what: str
) -> None:
    assert without_stdout(ran, words.split(), what) == (0, goes_on(what))


@pytest.mark.parametrize("words", ["ls", "show", "events --json", "run --help", "--version"])
def test_what_only_prints_ends_quietly_without_a_reader(ran: Command, words: str) -> None:
    assert without_stdout(ran, words.split(), NO_READER) == (141, "")


@pytest.mark.parametrize(("words", "what"), [("ls", CLOSED), ("events", FULL), ("--help", FULL), ("--version", CLOSED)])
def test_what_only_prints_and_can_not_says_why_and_exits_with_1(ran: Command, words: str, what: str) -> None:
    assert without_stdout(ran, words.split(), what) == (1, f"ttasks: can't write to stdout ({TROUBLE[what]})\n")


def test_an_error_has_its_exit_code_without_stdout_and_without_stderr(ran: Command) -> None:
    code, said = without_stdout(ran, ["show", "nothing"], FULL)
    assert code == 2 and said.count("\n") == 1 and "has no graph and no task" in said
    for what in TROUBLE:
        with stream(what) as err:
            done = subprocess.run(
                [*TTASKS, "show", "nothing"],
                cwd=ran.folder,
                env=ran.environment(),
                stdout=subprocess.PIPE,
                stderr=err,
                preexec_fn=closing(2) if what == CLOSED else None,
            )
        assert (done.returncode, done.stdout) == (2, b"")


def test_with_stdin_stdout_and_stderr_closed_nothing_is_printed_into_a_file_of_the_ledger(ttasks: Command) -> None:
    ttasks.write("a.yaml", "tasks:\n  a: {bash: touch started; sleep 100}\n")
    run = subprocess.Popen(
        [*TTASKS, "run", "a.yaml"], cwd=ttasks.folder, env=ttasks.environment(), preexec_fn=closing(0, 1, 2)
    )
    ttasks.await_file("started")
    run.send_signal(signal.SIGINT)  # the first Ctrl-C is answered on descriptor 2
    assert run.wait(60) == 130
    assert ttasks.statuses() == {"a": "cancelled"}
    for path in ttasks.ledger.parent.iterdir():
        assert CTRL_C[0].encode() not in path.read_bytes()
    assert ttasks("verify").returncode == 0


def test_a_pipe_that_another_program_made_non_blocking_gets_everything(ttasks: Command) -> None:
    ttasks.write("a.yaml", "tasks:\n  a: {bash: seq 100000 120000}\n")
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    run = subprocess.Popen(
        [*TTASKS, "run", "a.yaml"], cwd=ttasks.folder, env=ttasks.environment(), stdout=writer, stderr=subprocess.PIPE
    )
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ) if hasattr(fcntl, "F_GETPIPE_SZ") else 65_536
    os.close(writer)

    def waiting() -> int:
        return int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4), "little")

    until(lambda: waiting() > size - 4096)  # it has to wait now
    with open(reader, encoding="utf-8") as out:
        printed = out.read()
    assert run.stderr is not None
    with run.stderr:
        assert (run.wait(60), run.stderr.read()) == (0, b"")
    assert [line.rpartition(" ")[2] for line in printed.splitlines() if " | " in line] == [
        str(number) for number in range(100_000, 120_001)
    ]


@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict"])
def test_a_character_that_stdout_can_not_show_is_spelled_out(ttasks: Command, encoding: str) -> None:
    ttasks.write("a.yaml", 'title: "gr\u00fc\u00dfe"\ntasks:\n  a: {bash: "echo \u2713"}\n')
    done = ttasks("run", "a.yaml", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "gr\\xfc\\xdfe: 1 task" in done.stdout and "| \\u2713" in done.stdout
    assert "gr\\xfc\\xdfe" in ttasks("ls", PYTHONIOENCODING=encoding).stdout


def test_a_run_that_ignores_the_hang_up_outlives_the_terminal_that_it_prints_to(ttasks: Command) -> None:
    ttasks.write("a.yaml", 'tasks:\n  a: {bash: "touch started; until [ -e go ]; do sleep 0.02; done; seq 100"}\n')
    ours, its = pty.openpty()

    def as_under_nohup() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    run = subprocess.Popen(
        [*TTASKS, "run", "a.yaml"],
        cwd=ttasks.folder,
        env=ttasks.environment(),
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=as_under_nohup,
    )
    os.close(its)
    ttasks.await_file("started")
    os.close(ours)
    ttasks.write("go", "")
    assert run.wait(60) == 0
    assert ttasks.statuses() == {"a": "succeeded"}
