"""A conversation as threads use it: opened, asked and closed by calls that wait, and that Ctrl-C, cancels and
time-outs end."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, Final, Generic, TypeVar

from ttasks import clock
from ttasks.errors import CopilotError, TaskCancelled, TaskTimeoutError
from ttasks.handlers.context import AttemptPort
from ttasks.handlers.copilot.cli import SESSION_MARK
from ttasks.handlers.copilot.conversation import CLOSED_TEXT, Conversation
from ttasks.handlers.copilot.loop import LoopThread
from ttasks.handlers.copilot.options import Options, Settled
from ttasks.handlers.copilot.recorder import Recorder
from ttasks.handlers.copilot.turn import Turn
from ttasks.log.survivors import marking
from ttasks.state.task import GRACE_S

T = TypeVar("T")
TURN_WAIT_S: Final = 0.1
"""How long a turn that waits for another looks away from whether it is cancelled."""


class _Work(Generic[T]):
    """Something that runs on the loop, from its start until it has really ended, also where it was cancelled."""

    def __init__(self, thread: LoopThread, work: Coroutine[Any, Any, T]) -> None:
        self.changed = clock.Wakeup()
        self._is_done = False
        self._value: T
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = thread
        try:
            thread.soon(lambda: self._start(work))
        except BaseException:
            work.close()
            raise

    def _start(self, work: Coroutine[Any, Any, T]) -> None:
        self._task = asyncio.ensure_future(self._run(work))
        self._task.add_done_callback(lambda _: self._look_whether_begun(work))

    def _look_whether_begun(self, work: Coroutine[Any, Any, T]) -> None:
        if not self._is_done:  # it was cancelled before its first step
            work.close()
            self._error = asyncio.CancelledError()
            self._is_done = True
            self.changed.set()

    async def _run(self, work: Coroutine[Any, Any, T]) -> None:
        try:
            self._value = await work
        except BaseException as error:  # noqa: BLE001 - whoever waits for it gets it
            self._error = error
        self._is_done = True
        self.changed.set()

    @property
    def is_done(self) -> bool:
        return self._is_done

    def cancel(self, _: str = "") -> None:
        """Let it end before its time."""
        self._thread.soon(lambda: self._task is not None and self._task.cancel())

    def result(self) -> T:
        """Return what it came to, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


class Waiting:
    """What may end a wait for the agent: the attempt's cancel, a time-out, Ctrl-C.

    `why` says which of them it was (None: none yet).
    """

    def __init__(self, port: AttemptPort, timeout_s: float | None) -> None:
        self.why: str | None = None
        self._port = port
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else clock.monotonic_s() + timeout_s
        self._interruption: BaseException | None = None

    def reason(self) -> str | None:
        """Return why the wait has to end; None: it need not."""
        if self._port.is_stopped:
            return "stopped"
        if self._port.is_cancelled:
            return "cancelled"
        return "timeout" if self.left_s() == 0.0 else None

    def left_s(self) -> float | None:
        """Return how many seconds are left; None: there is no limit."""
        return None if self._deadline is None else max(0.0, self._deadline - clock.monotonic_s())

    def wait_for(self, work: _Work[T], end: Callable[[str], object]) -> T:
        """Wait until `work` is done, and call `end` once where it has to end before that; return its result.

        Raises:
            TaskCancelled, TaskTimeoutError: it had to. It has ended by now.
        """
        self._port.on_cancel(work.changed.set)
        while not work.is_done:
            try:
                if self.why is None and (why := self.reason()) is not None:
                    self.why = why
                    end(why)
                clock.wait(work.changed, self.left_s() if self.why is None else None)
                work.changed.clear()
            except BaseException as interruption:  # noqa: BLE001 - Ctrl-C; it is raised when nothing is left half done
                self._interruption = self._interruption or interruption
                if self.why is None:
                    self.why = "cancelled"
                    end("cancelled")
        if self._interruption is not None:
            raise self._interruption
        if self.why == "timeout":
            raise TaskTimeoutError(f"Task timed out after {self._timeout_s:g} seconds", code="timeout")
        if self.why is not None:
            raise TaskCancelled
        try:
            return work.result()
        except asyncio.CancelledError:
            raise CopilotError(CLOSED_TEXT, code="aborted") from None

    def take_turn(self, lock: threading.Lock) -> None:
        """Wait for `lock`; the time that took does not count.

        Raises:
            TaskCancelled: the attempt was cancelled meanwhile.
        """
        if lock.acquire(blocking=False):
            return
        while not lock.acquire(timeout=TURN_WAIT_S):
            if self._port.is_stopped or self._port.is_cancelled:
                raise TaskCancelled
        if self._timeout_s is not None:
            self._deadline = clock.monotonic_s() + self._timeout_s


class Driver:
    """Drives one conversation. Turns of several threads are taken one after the other."""

    def __init__(
        self, options: Options, settled: Settled, tell: Callable[[Any], None], grace_s: float = GRACE_S
    ) -> None:
        self._grace_s = grace_s
        self._options = options
        self._settled = settled
        self._tell = tell
        self._turns = threading.Lock()
        self._thread: LoopThread | None = None
        self._conversation: Conversation | None = None

    @property
    def id(self) -> str:
        """The session's id.

        Raises:
            RuntimeError: the session is not open yet.
        """
        if self._conversation is None:
            raise RuntimeError("CopilotAgentSession is not active: it is being opened")
        return self._conversation.id

    def open(self, port: AttemptPort, waiting: Waiting, resumes: str | None = None) -> None:
        """Start the CLI and open a session, the one that `resumes` names if the CLI still has it.

        Raises:
            CopilotError: it could not be opened. No process and no thread is left.
            TaskCancelled, TaskTimeoutError: it took too long. Nothing is left.
        """
        marks = port.environment() or marking(f"{SESSION_MARK}{uuid.uuid4()}")
        port.withhold(self._settled.secrets)
        self._thread = LoopThread()
        conversation = self._conversation = Conversation(self._options, self._settled, marks, self._tell, self._grace_s)
        try:
            work = _Work(self._thread, self._open(conversation, resumes))
            waiting.wait_for(work, work.cancel)
        except BaseException:
            self.close(aborts=True)
            raise
        if conversation.pid is not None:
            port.spawned(conversation.pid)

    @staticmethod
    async def _open(conversation: Conversation, resumes: str | None) -> None:
        if resumes is not None:
            try:
                await conversation.open(resumes)
            except CopilotError as error:
                if error.code != "session_not_found":
                    raise
            else:
                return
        await conversation.open()

    def turn(
        self, port: AttemptPort, task_id: str, prompt: str, waiting: Waiting, interrupted: str | None = None
    ) -> str:
        """Send `prompt`, wait until the agent is done, and return what it said last.

        Args:
            interrupted: as `Conversation.take`.

        Raises:
            CopilotError: the agent failed, or its CLI did.
            TaskCancelled, TaskTimeoutError: the turn was ended before that.
        """
        if self._thread is not None and self._thread.is_current:
            raise RuntimeError("the session can't be asked by a subscriber of its own, which keeps it from answering")
        waiting.take_turn(self._turns)
        try:
            thread, conversation = self._thread, self._conversation
            if thread is None or conversation is None:
                raise RuntimeError("CopilotAgentSession is not active: it was closed")
            settled = self._settled
            port.withhold(settled.secrets)
            recorder = Recorder(port, task_id, settled.working_directory, settled.address)
            turn = Turn(recorder, thread.loop)
            work = _Work(thread, conversation.take(turn, prompt, interrupted))
            return waiting.wait_for(work, turn.stop)
        finally:
            self._turns.release()

    def close(self, port: AttemptPort | None = None, *, aborts: bool = False) -> None:
        """Close the session and end the CLI; with `aborts` also what its agent still runs. Repeating it is harmless.

        What was ended by force outside of the CLI's group is told to `port`.

        Raises:
            CopilotError: the CLI had died, or could not be closed as it should. Nothing of it is left.
        """
        thread, self._thread = self._thread, None
        conversation = self._conversation
        if thread is None or conversation is None:
            return
        try:
            thread.call(conversation.close(aborts=aborts))
        finally:
            thread.close()
            if port is not None and conversation.ended.strays:
                port.reaped(sorted(conversation.ended.strays), conversation.ended.signal)
