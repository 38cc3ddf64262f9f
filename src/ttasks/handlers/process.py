"""Child processes: each in a session and process group of its own, read as it prints, ended whole."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import selectors
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Sequence
from typing import Final

from ttasks import clock
from ttasks.clock import monotonic_s
from ttasks.errors import TaskCancelled, TaskTimeoutError
from ttasks.handlers.completed import completed_process
from ttasks.handlers.context import AttemptPort, DetachedPort, TaskContext

READ_BYTES: Final = 64 * 1024
TERM_WAIT_S: Final = 5.0
"""How long a group has between SIGTERM and SIGKILL."""
KILL_WAIT_S: Final = 2.0
LOOK_UP_S: Final = 0.2
"""How long a reader sleeps before it looks whether its group was ended."""


class ChildProcess:
    """One child process and the group it leads.

    It is started, read and ended by threads of its own: Ctrl-C reaches the main thread at any line of it, and there it
    must not leave a process that nobody knows of.
    """

    def __init__(self, command: Sequence[str], context: TaskContext, pass_fds: Sequence[int] = ()) -> None:
        self._port: AttemptPort = context._port or DetachedPort()
        self._command = command
        self._cwd = context.cwd
        self._env = {**os.environ, **context.env, **self._port.environment()}
        self._pass_fds = pass_fds
        self._popen: subprocess.Popen[bytes] | None = None
        self._failure: Exception | None = None
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self._over = threading.Event()
        self._wake = clock.Wakeup()
        self._starting = threading.Lock()
        self._is_ending = False
        self._is_gone = False
        self._ended = threading.Event()

    def run(self, timeout_s: float | None) -> subprocess.CompletedProcess[str]:
        """Start it, and wait until it has ended and nobody holds its output open any more.

        Raises:
            OSError, ValueError: it could not be started.
            TaskTimeoutError: that took longer than `timeout_s`; the group was ended.
            TaskCancelled: it was cancelled or stopped meanwhile; the group was ended.
        """
        deadline = None if timeout_s is None else monotonic_s() + timeout_s
        try:
            threading.Thread(target=self._live, name="ttasks-process", daemon=True).start()
            self._port.on_cancel(self._wake.set)
            while not self._over.is_set() and not self._port.is_cancelled and not self._port.is_stopped:
                left = None if deadline is None else deadline - monotonic_s()
                if left is not None and left <= 0:
                    self.end()
                    raise TaskTimeoutError(f"Task timed out after {timeout_s:g} seconds", self._completed())
                clock.wait(self._wake, left)
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.end()
            raise
        if not self._over.is_set():
            self.end()
            raise TaskCancelled(completed=self._completed())
        return self._completed()

    def _completed(self) -> subprocess.CompletedProcess[str]:
        self._port.stop_printing()  # a process that left the group may hold the pipes open still
        code = self._popen.returncode if self._popen is not None else None
        return completed_process(self._command, code if code is not None else -signal.SIGKILL, self._port.kept)

    def end(self) -> None:
        """End the whole group: SIGTERM, a moment, SIGKILL; return when nothing of it is left."""
        with self._starting:
            is_first, self._is_ending = not self._is_ending, True
        if is_first:
            try:
                threading.Thread(target=self._end, name="ttasks-end", daemon=True).start()
            except RuntimeError:  # the system has no more threads to give
                self._end()
        clock.wait(self._ended)

    def _end(self) -> None:
        try:
            if self._popen is not None:
                if self._signal(signal.SIGTERM) and not self._is_gone_after(TERM_WAIT_S):
                    self._signal(signal.SIGKILL)
                    self._is_gone_after(KILL_WAIT_S)
                self._is_gone = True
                self._over.wait(KILL_WAIT_S)  # what the group printed last is still to be read
        finally:
            self._ended.set()

    def _signal(self, number: int) -> bool:
        """Send a signal to the group; False: there is nobody left in it."""
        assert self._popen is not None
        try:
            os.killpg(self._popen.pid, number)
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
            if pause > 0.01 and self._popen is not None and _only_zombies_in(self._popen.pid):
                return True
            pause = min(pause * 2, 0.1)
        return True

    def _has_live_member(self) -> bool:
        # A leader that has ended is a zombie until it is reaped, and a zombie still counts as a member.
        assert self._popen is not None
        self._popen.poll()
        return self._signal(0)

    def _live(self) -> None:
        """Start the process, read both pipes until nobody holds them open, then reap it."""
        try:
            if self._start():
                self._read()
        except Exception as error:  # noqa: BLE001 - `run` raises it
            self._failure = error
        finally:
            self._over.set()
            self._wake.set()

    def _start(self) -> bool:
        """Start the process; False: it is not wanted any more."""
        with self._starting:
            if self._is_ending:
                return False
            self._popen = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._cwd,
                env=self._env,
                start_new_session=True,
                pass_fds=self._pass_fds,
            )
        self._port.spawned(self._popen.pid)
        return True

    def _read(self) -> None:
        assert self._popen is not None and self._popen.stdout is not None and self._popen.stderr is not None
        with self._popen.stdout as stdout, self._popen.stderr as stderr, selectors.DefaultSelector() as selector:
            selector.register(stdout.fileno(), selectors.EVENT_READ, "stdout")
            selector.register(stderr.fileno(), selectors.EVENT_READ, "stderr")
            while selector.get_map() and not self._is_gone:
                for key, _ in selector.select(LOOK_UP_S):
                    if not self._take(key.data, os.read(key.fd, READ_BYTES)):
                        selector.unregister(key.fd)
            # A process that left the group may hold the pipes open, and print for ever: it is not waited for, and what
            # the group printed is in the pipes by now.
            for key in list(selector.get_map().values()):
                self._drain(key.data, key.fd)
        self._port.finished_printing()
        self._popen.wait()

    def _drain(self, name: str, pipe: int) -> None:
        """Read what is in a pipe, and no more."""
        (left,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, struct.pack("i", 0)))
        while left > 0 and (data := os.read(pipe, min(left, READ_BYTES))):
            left -= self._take(name, data)
        self._take(name, b"")

    def _take(self, name: str, data: bytes) -> int:
        """Pass on what was read of a stream, its end being empty; return how many bytes that are."""
        text = self._decoders[name].decode(data, final=not data)
        if text:
            self._port.printed(name, text)
        return len(data)


def _only_zombies_in(group: int) -> bool:
    """True when all that is left of a process group has ended, and only waits for init to take note."""
    import psutil

    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return False
    return True
