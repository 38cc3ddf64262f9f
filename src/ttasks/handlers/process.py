"""Child processes: each in a session and process group of its own, read as it prints, ended whole."""

from __future__ import annotations

import codecs
import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final

from ttasks.clock import monotonic_s
from ttasks.errors import TaskCancelled, TaskExecutionError, TaskTimeoutError
from ttasks.handlers.context import AttemptPort, DetachedPort, TaskContext

READ_BYTES: Final = 64 * 1024
TERM_WAIT_S: Final = 5.0
"""How long a group has between SIGTERM and SIGKILL."""
KILL_WAIT_S: Final = 2.0
ARGUMENT_BYTES_MAX: Final = 100_000
"""Linux refuses arguments of 128 KiB and more (execve(2)); longer scripts go through a file."""


class ChildProcess:
    """One child process and the group it leads. It is made running; `wait` has to follow."""

    def __init__(self, command: Sequence[str], context: TaskContext, pass_fds: Sequence[int] = ()) -> None:
        self._port: AttemptPort = context._port or DetachedPort()
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=context.cwd,
            env={**os.environ, **context.env, **self._port.environment()},
            start_new_session=True,
            pass_fds=pass_fds,
        )
        self.pid = self._popen.pid
        self._text: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._over = threading.Event()
        self._wake = threading.Event()
        self._ending = threading.Lock()
        self._port.spawned(self.pid)
        self._reader = threading.Thread(target=self._read, name=f"ttasks-read-{self.pid}", daemon=True)
        self._reader.start()
        self._port.on_cancel(self._wake.set)

    def wait(self, timeout_s: float | None) -> subprocess.CompletedProcess[str]:
        """Wait until it has ended and nobody holds its output open any more.

        Raises:
            TaskTimeoutError: that took longer than `timeout_s`; the group was ended.
            TaskCancelled: it was cancelled or stopped meanwhile; the group was ended.
        """
        deadline = None if timeout_s is None else monotonic_s() + timeout_s
        try:
            while not self._over.is_set() and not self._port.is_cancelled and not self._port.is_stopped:
                left = None if deadline is None else deadline - monotonic_s()
                if left is not None and left <= 0:
                    self.end()
                    raise TaskTimeoutError(f"Task timed out after {timeout_s:g} seconds", self._completed())
                self._wake.wait(left)
        except BaseException:
            self.end()
            raise
        if not self._over.is_set():
            self.end()
            raise TaskCancelled(completed=self._completed())
        return self._completed()

    def _completed(self) -> subprocess.CompletedProcess[str]:
        code = self._popen.returncode
        return subprocess.CompletedProcess(
            self._popen.args,
            code if code is not None else -signal.SIGKILL,
            "".join(self._text["stdout"]),
            "".join(self._text["stderr"]),
        )

    def end(self) -> None:
        """End the whole group: SIGTERM, a moment, SIGKILL; return when nothing of it is left."""
        with self._ending:
            if self._signal(signal.SIGTERM) and not self._is_gone_after(TERM_WAIT_S):
                self._signal(signal.SIGKILL)
                self._is_gone_after(KILL_WAIT_S)
        # What the group printed last is still to be read. A process that left the group may hold the pipes open.
        self._over.wait(KILL_WAIT_S)

    def _signal(self, number: int) -> bool:
        """Send a signal to the group; False: there is nobody left in it."""
        try:
            os.killpg(self.pid, number)
        except ProcessLookupError:
            return False
        except PermissionError:  # macOS says this of a group of zombies
            return False
        return True

    def _is_gone_after(self, seconds: float) -> bool:
        # The group's other members are not our children: there is nothing to wait for but their absence.
        deadline, pause = monotonic_s() + seconds, 0.001
        while self._has_live_member():
            if monotonic_s() > deadline:
                return False
            time.sleep(pause)
            if pause > 0.01 and _only_zombies_in(self.pid):
                return True
            pause = min(pause * 2, 0.1)
        return True

    def _has_live_member(self) -> bool:
        # A leader that has ended is a zombie until it is reaped, and a zombie still counts as a member.
        self._popen.poll()
        return self._signal(0)

    def _read(self) -> None:
        """Read both pipes until nobody holds them open, then reap the process."""
        assert self._popen.stdout is not None and self._popen.stderr is not None
        decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in self._text}
        with selectors.DefaultSelector() as selector:
            for name, pipe in (("stdout", self._popen.stdout), ("stderr", self._popen.stderr)):
                selector.register(pipe.fileno(), selectors.EVENT_READ, name)
            while selector.get_map():
                for key, _ in selector.select():
                    data = os.read(key.fd, READ_BYTES)
                    text = decoders[key.data].decode(data, final=not data)
                    if text:
                        self._text[key.data].append(text)
                        self._port.printed(key.data, text)
                    if not data:
                        selector.unregister(key.fd)
        self._popen.stdout.close()
        self._popen.stderr.close()
        self._port.finished_printing()
        self._popen.wait()
        self._over.set()
        self._wake.set()


def _only_zombies_in(group: int) -> bool:
    """True when all that is left of a process group has ended, and only waits for init to take note."""
    import psutil

    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return False
    return True


@contextlib.contextmanager
def _script(payload: str) -> Iterator[tuple[list[str], list[int]]]:
    """Lend the arguments that make a shell run `payload`, and the descriptors that it has to inherit."""
    if len(payload) * 4 < ARGUMENT_BYTES_MAX or len(os.fsencode(payload)) < ARGUMENT_BYTES_MAX:
        yield ["-c", payload], []
        return
    with tempfile.TemporaryFile() as file:
        file.write(os.fsencode(payload))
        file.seek(0)
        yield [f"/dev/fd/{file.fileno()}"], [file.fileno()]


def run_shell(shell: str, context: TaskContext) -> subprocess.CompletedProcess[str]:
    """Run the payload in `shell` and return what became of it.

    Raises:
        TaskExecutionError: it ended with another code than 0, or could not be started at all.
        TaskTimeoutError: it took longer than the context's time-out; what it printed so far is in `completed`.
        TaskCancelled: it was cancelled.
    """
    try:
        with _script(context.payload) as (arguments, descriptors):
            child = ChildProcess([shell, *arguments], context, descriptors)
            completed = child.wait(context.timeout)
    except (OSError, ValueError) as error:
        if isinstance(error, TaskTimeoutError):
            raise
        raise TaskExecutionError(_not_started(shell, context, error)) from error
    if completed.returncode != 0:
        raise TaskExecutionError(completed.stderr or f"exited with code {completed.returncode}", completed)
    return completed


def _not_started(shell: str, context: TaskContext, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError) and context.cwd is not None:
        return f"could not be started: the folder {context.cwd!r} (cwd) does not exist or is no folder"
    if "null byte" in str(error):
        return "could not be started: the script holds a NUL character, which no command line can"
    return f"{shell} could not be started: {error}"
