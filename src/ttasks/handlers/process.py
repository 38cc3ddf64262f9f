"""Child processes: each in a session and process group of its own, read as it prints, ended with all it started."""

from __future__ import annotations

import atexit
import codecs
import fcntl
import os
import selectors
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Collection, Sequence
from typing import Final, TypeVar

from ttasks import clock
from ttasks.clock import monotonic_s
from ttasks.errors import SurvivorError, TaskCancelled, TaskExecutionError, TaskTimeoutError
from ttasks.handlers.completed import completed_process
from ttasks.handlers.context import AttemptPort, DetachedPort, TaskContext
from ttasks.handlers.environment import encoded, script_environment
from ttasks.handlers.unread import drop
from ttasks.log.processes import holders, name_of
from ttasks.log.runner import process_start
from ttasks.log.survivors import KILL_WAIT_S, MARK, RUNNER, Dead, Leader, end_survivors, find, innermost, mark, marking

Error = TypeVar("Error", TaskTimeoutError, TaskCancelled)
READ_BYTES: Final = 64 * 1024
LOOK_UP_S: Final = 0.2
"""How long a reader sleeps before it looks whether its script has exited, or was ended."""
LOOK_UP_SOON_S: Final = 0.02
"""The same, where the end of the script is all that is waited for."""
WAITING_S: Final = 1.0
"""How long the output of a script that has exited may be held open before that is said."""
CODE_LOST: Final = (
    "it has ended, but its exit code is lost, so whether it succeeded is unknown: this process ignores SIGCHLD, or some"
    " of it waits for any child. Call signal.signal(SIGCHLD, SIG_DFL) before, and wait only for children of your own"
)
NAMED_MAX: Final = 3
"""How many processes that hold it open are named."""


class ChildProcess:
    """One child process, the group it leads, and all that carries its attempt's mark.

    It is started, read and ended by threads of its own: Ctrl-C reaches the main thread at any line of it, and there it
    must not leave a process that nobody knows of.
    """

    def __init__(self, command: Sequence[str], context: TaskContext, pass_fds: Sequence[int] = ()) -> None:
        """Take note of what to start.

        Raises:
            ValueError: the command or the environment can't be written as UTF-8.
        """
        self._port: AttemptPort = context._port or DetachedPort()
        self._command = command
        program, *arguments = command
        self._bytes = [os.fsencode(program), *(encoded(argument, "the script") for argument in arguments)]
        self._cwd = context.cwd
        self._marks = self._port.environment() or marking(mark(clock.new_id(), self._port.number))
        self._env = script_environment(context.env, self._marks)
        self._grace_s = context.grace
        self._waits_for_output = context.wait_for_output
        self._pass_fds = pass_fds
        self._popen: subprocess.Popen[bytes] | None = None
        self._leader: Leader | None = None
        self._failure: Exception | None = None
        self._decoders = {name: codecs.getincrementaldecoder("utf-8")("replace") for name in ("stdout", "stderr")}
        self._over = threading.Event()
        self._wake = clock.Wakeup()
        self._starting = threading.Lock()
        # Held by the thread that waits for it. A lock of C's: whatever leaves its `with`, that lets go of it.
        self._wanted = threading.Lock()
        self._is_ending = False
        self._is_gone = False
        self._is_hurried = False
        self._ended = threading.Event()
        self._survivors: SurvivorError | None = None

    def run(self, timeout_s: float | None) -> subprocess.CompletedProcess[str]:
        """Start it, and wait until it has ended and nobody holds its output open any more.

        Where the task does not wait for output, what holds it open lives on after a success, and is ended otherwise.

        Raises:
            OSError, ValueError: it could not be started.
            TaskExecutionError: its exit code is lost.
            TaskTimeoutError: that took longer than `timeout_s`; all of it was ended.
            TaskCancelled: it was cancelled or stopped meanwhile; all of it was ended.
        """
        with self._wanted:
            return self._wait(timeout_s)

    def _wait(self, timeout_s: float | None) -> subprocess.CompletedProcess[str]:
        deadline = None if timeout_s is None else monotonic_s() + timeout_s
        try:
            threading.Thread(target=self._live, name="ttasks-process", daemon=True).start()
            self._port.on_cancel(self._wake.set)
            while not self._over.is_set() and not self._port.is_cancelled and not self._port.is_stopped:
                left = None if deadline is None else deadline - monotonic_s()
                if left is not None and left <= 0:
                    self.end()
                    text = f"Task timed out after {timeout_s:g} seconds"
                    raise self._noted(TaskTimeoutError(text, self._completed()))
                clock.wait(self._wake, left)
            if self._failure is not None:
                raise self._failure
        except BaseException:
            self.end()
            raise
        if not self._over.is_set():
            self.end()
            raise self._noted(TaskCancelled(completed=self._completed()))
        completed = self._completed()
        if not self._waits_for_output and (completed.returncode or self._port.is_cancelled or self._port.is_stopped):
            self.end()
        return completed

    def _noted(self, error: Error) -> Error:
        if self._survivors is not None:
            error.add_note(f"process {', '.join(map(str, self._survivors.pids))} can't be ended")
        return error

    def _completed(self) -> subprocess.CompletedProcess[str]:
        self._port.stop_printing()  # a process that can't be ended may hold the pipes open still
        code = self._popen.returncode if self._popen is not None else None
        return completed_process(self._command, code if code is not None else -signal.SIGKILL, self._port.kept)

    def end(self) -> None:
        """End all of it: SIGTERM, its grace, SIGKILL; return when nothing is left. Ctrl-C meanwhile ends the grace."""
        interruption: BaseException | None = None
        while not self._ended.is_set():
            try:
                if not self._is_ending:
                    threading.Thread(target=self._end, name="ttasks-end", daemon=True).start()
                clock.wait(self._ended)
            except BaseException as raised:  # noqa: BLE001 - it is raised when nothing is left
                if isinstance(raised, RuntimeError) and not self._is_ending:  # the system has no more threads to give
                    self._end()
                else:
                    interruption, self._is_hurried = raised, True
        if interruption is not None:
            raise interruption

    def end_if_given_up(self) -> None:
        """End it at once where Ctrl-C that came too often has let nobody wait for it any more."""
        if not self._wanted.locked():
            self._is_hurried = True
            self.end()

    def _end(self) -> None:
        with self._starting:
            if self._is_ending:  # Ctrl-C came while the thread that ends was started, and it was started again
                return
            self._is_ending = True
        try:
            if self._popen is not None:
                self._end_all()
                self._is_gone = True
                self._over.wait(KILL_WAIT_S)  # what it printed last is still to be read
        finally:
            self._ended.set()

    def _end_all(self) -> None:
        own = innermost(self._marks[MARK])
        try:
            ended = end_survivors({own: self._attempt()}, is_hurried=self._must_hurry).get(own)
        except SurvivorError as left:
            self._survivors = left
            return
        if ended is not None and ended.strays:
            self._port.reaped(sorted(ended.strays), ended.signal)

    def _attempt(self) -> Dead:
        return Dead(innermost(self._marks[RUNNER]), self._leader, self._grace_s)

    def _must_hurry(self) -> bool:
        return self._is_hurried or self._port.is_hurried

    def _live(self) -> None:
        """Start the process, read both pipes until nobody holds them open, then reap it."""
        _LIVE.add(self)
        try:
            if self._start():
                self._read()
        except Exception as error:  # noqa: BLE001 - `run` raises it
            self._failure = error
        finally:
            _LIVE.discard(self)
            self._over.set()
            self._wake.set()

    def _start(self) -> bool:
        """Start the process; False: it is not wanted any more."""
        with self._starting:
            if self._is_ending or not self._wanted.locked():
                return False
            try:
                self._popen = subprocess.Popen(
                    self._bytes,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=_folder(self._cwd),
                    env=self._env,
                    start_new_session=True,
                    pass_fds=self._pass_fds,
                )
            except OSError as error:
                if isinstance(error.filename, bytes):
                    error.filename = error.filename.decode("utf-8", "surrogateescape")
                raise
            # Now: once it is reaped, by whomever, its start is not known any more, and another may have its pid.
            self._leader = Leader(self._popen.pid, process_start(self._popen.pid))
        self._port.spawned(self._popen.pid)
        return True

    def _read(self) -> None:
        assert self._popen is not None and self._popen.stdout is not None and self._popen.stderr is not None
        with self._popen.stdout as stdout, self._popen.stderr as stderr, selectors.DefaultSelector() as selector:
            selector.register(stdout.fileno(), selectors.EVENT_READ, "stdout")
            selector.register(stderr.fileno(), selectors.EVENT_READ, "stderr")
            self._read_while_open(selector)
            # A process that lives on may hold the pipes open, and print for ever: it is not waited for, and what the
            # script printed is in the pipes by now.
            for key in list(selector.get_map().values()):
                self._drain(key.data, key.fd)
                if not self._is_gone:
                    drop(os.dup(key.fd))
        self._port.finished_printing()
        self._reap(self._popen)

    def _reap(self, popen: subprocess.Popen[bytes]) -> None:
        """Take the exit code.

        Raises:
            TaskExecutionError: it is lost, which `subprocess` has as 0, a success.
        """
        if hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
            try:
                os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOWAIT)
            except ChildProcessError as lost:
                popen.wait()
                raise TaskExecutionError(CODE_LOST) from lost
        popen.wait()

    def _read_while_open(self, selector: selectors.BaseSelector) -> None:
        """Read until nobody holds a pipe open, or what does is not waited for."""
        look_up_s = LOOK_UP_S if self._waits_for_output else LOOK_UP_SOON_S
        looked_s, exited_s, is_said = monotonic_s(), None, False
        while selector.get_map() and not self._is_gone:
            if not self._wanted.locked() and not self._is_hurried:
                self._is_hurried = True  # its end may wait for this thread to read, so another one sees to that
                threading.Thread(target=self._end, name="ttasks-end", daemon=True).start()
            for key, _ in selector.select(look_up_s):
                if not self._take(key.data, os.read(key.fd, READ_BYTES)):
                    selector.unregister(key.fd)
            now_s = monotonic_s()
            if is_said or now_s - looked_s < look_up_s:
                continue
            looked_s = now_s
            if exited_s is None and self._has_exited():
                exited_s = now_s
            if exited_s is None:
                continue
            if not self._waits_for_output:
                return
            if now_s - exited_s >= WAITING_S:
                is_said = True
                self._port.tell(self._waiting([key.fd for key in selector.get_map().values()]))

    def _has_exited(self) -> bool:
        """True once the script itself has; it is not reaped by that, so that its pid stays its own."""
        assert self._popen is not None
        if not hasattr(os, "waitid"):  # macOS, before Python 3.13
            return self._popen.poll() is not None
        try:
            return os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # it was reaped by a handler of SIGCHLD, say
            return True

    def _waiting(self, pipes: Collection[int]) -> str:
        """Say what is waited for though the script has exited."""
        pids = holders(pipes)
        if pids is None:  # what they have open can't be seen here
            own = innermost(self._marks[MARK])
            pids = sorted(each.process.pid for each in find({own: self._attempt()}).get(own, ()))
        named = [f"{pid} ({name_of(pid) or 'ended'})" for pid in pids[:NAMED_MAX]]
        if not named:
            return "waiting: the script has exited, but something that it started still holds its output"
        more = f" and {len(pids) - NAMED_MAX} more" if len(pids) > NAMED_MAX else ""
        who = f"process {named[0]} still holds" if len(pids) == 1 else f"processes {', '.join(named)}{more} still hold"
        return f"waiting: the script has exited, but {who} its output"

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


_LIVE: Final[set[ChildProcess]] = set()


def _end_those_given_up() -> None:
    """End what Ctrl-C left behind, before the threads that would do it are gone with the interpreter."""
    for child in list(_LIVE):
        child.end_if_given_up()


atexit.register(_end_those_given_up)
os.register_at_fork(after_in_child=_LIVE.clear)


def _folder(cwd: str | None) -> str | bytes | None:
    """Return the folder as paths are written here, as UTF-8 where this locale can't write it."""
    if cwd is None:
        return None
    try:
        os.fsencode(cwd)
    except UnicodeEncodeError:
        return encoded(cwd, "the folder (cwd)")
    return cwd
