"""One attempt at one task: what it runs, how it ends, and what is recorded of that.

This is the seam: a specification goes in, facts come out.
"""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from ttasks import clock
from ttasks.errors import TaskCancelled, TaskExecutionError, TaskTimeoutError, TtasksError, words
from ttasks.events.agent_facts import AgentFact
from ttasks.events.facts import (
    AttemptEnd,
    ProcessReaped,
    ProcessSpawned,
    TaskFact,
    TaskFailed,
    TaskInterrupted,
    TaskProgressed,
    TaskStarted,
    TaskSucceeded,
)
from ttasks.events.facts import (
    TaskCancelled as TaskCancelledFact,
)
from ttasks.events.status import TaskStatus, TerminationReason
from ttasks.handlers.context import TaskContext
from ttasks.handlers.kept import RECORDED_LINES, HeadAndTail, Kept, Limit
from ttasks.log.runner import process_start
from ttasks.log.secrets import given_out
from ttasks.log.stored import StoredAttempt, StoredText
from ttasks.log.survivors import mark, marking
from ttasks.model.callbacks import awaits, is_signal
from ttasks.model.event import TaskEvent, TaskEventType
from ttasks.model.result import TaskResult, is_long, reading
from ttasks.model.retry import RetryPolicy, qualified_name
from ttasks.model.task import Task
from ttasks.model.task_view import Keeper
from ttasks.runtime.bus import EventBus
from ttasks.runtime.journal import Journal
from ttasks.runtime.output import STREAMS, OutputBuffer, Printing
from ttasks.runtime.texts import Text, Texts, is_stderr, stored_words
from ttasks.state.rows import tail
from ttasks.state.task import GRACE_S

Handler = Callable[[TaskContext], Any]
ONCE: Final = RetryPolicy()


@dataclass(frozen=True)
class RunRef:
    """The run of a graph that an attempt belongs to."""

    graph: str
    run: int


@dataclass(frozen=True)
class Ending:
    """How an attempt ended: the fact to record, the result to hand out, the exception to raise (None: success)."""

    fact: AttemptEnd
    result: TaskResult
    error: BaseException | None


@dataclass(slots=True)
class _Execution:
    """What the attempts of one execution have in common: what was asked of them."""

    is_cancelled: bool = False
    is_stopped: bool = False
    is_hurried: bool = False
    keeper: Keeper | None = None
    latest: Attempt | None = None


class Attempt:
    """One attempt, from its start to its end. It is the port that its handler's context reports to."""

    def __init__(
        self,
        task: Task,
        upstream: Mapping[str, Task],
        handler: Handler,
        *,
        journal: Journal,
        bus: EventBus,
        policy: RetryPolicy,
        output_bytes_max: int | None = None,
        retry: int = 0,
        run: RunRef | None = None,
        cwd: str | None = None,
    ) -> None:
        self.task = task
        self.policy = policy
        self.retry = retry
        self.run = run
        self.number = task.attempts + 1
        self.is_retry = False
        self.waits_s: float | None = None
        self._upstream = upstream
        self._handler = handler
        self._journal = journal
        self._bus = bus
        self._output_bytes_max = output_bytes_max
        self.execution = _Execution()
        self._enders: deque[Callable[[], None]] = deque()
        self._buffer: OutputBuffer | None = None
        self._texts = Texts(self.number)
        self._redact()
        self._printing: Printing | None = None
        self._is_over = False
        self.has_started = False
        self.is_settled = False
        self._pid: int | None = None
        self._marks: dict[str, str] | None = None
        self._thread: int | None = None
        self.position: int | None = None
        self.ending: Ending | None = None
        self.status_before = task.status
        self.context = TaskContext(task, upstream)
        self.context._progress_emitter = self._progress  # our own needs no check, which each attempt would pay for
        self.context._port = self
        self._default_cwd = cwd
        self.context._run_in(cwd)
        self.started_at = clock.now()
        self._started_s = clock.monotonic_s()

    def _redact(self) -> None:
        redaction = self._journal.redaction(self.task)
        self._redaction = self._texts.redaction = None if redaction is None or redaction.is_idle else redaction

    def next(self) -> Attempt:
        """Return the attempt that retries this one."""
        following = Attempt(
            self.task,
            self._upstream,
            self._handler,
            journal=self._journal,
            bus=self._bus,
            policy=self.policy,
            output_bytes_max=self._output_bytes_max,
            retry=self.retry + 1,
            run=self.run,
            cwd=self._default_cwd,
        )
        # Whoever asks one of them to end means the work, whichever attempt it is at by then.
        following.execution = self.execution
        following.is_retry = True
        return following

    def has_failed(self, waits_s: float) -> None:
        """Be the attempt before, which failed under another runner: the next one is due after `waits_s` seconds."""
        self.number -= 1
        self.retry -= 1
        self.waits_s = waits_s
        result = self.task.result
        assert result is not None
        fact = TaskFailed(self.number, error=result.error)
        self.ending = Ending(fact, result, TaskExecutionError(result.error or "it failed under a runner that is gone"))
        self.has_started = self.is_settled = True

    def start_fact(self) -> TaskStarted:
        """Return what is recorded before the handler is entered: all that resuming needs."""
        context = self.context
        return TaskStarted(
            attempt=self.number,
            handler=qualified_name(self._handler),
            payload=context.payload,
            started_at=self.started_at,
            retry=self.retry,
            timeout=context.timeout,
            cwd=context.cwd if context.cwd is not None else self._moved_to(),
            env=dict(context.env) or None,
            retry_policy=self.policy.spec() if self.policy != ONCE else None,
            graph=self.run.graph if self.run is not None else None,
            run=self.run.run if self.run is not None else None,
            grace=None if context.grace == GRACE_S else context.grace,
            wait_for_output=None if context.wait_for_output else False,
        )

    def _moved_to(self) -> str | None:
        """Return where this process is, if that is not where it registered: resuming has to know."""
        log = self._journal.log
        return log.moved_to() if log is not None else None

    def started(self, position: int | None) -> None:
        """Take note that the start was recorded, at `position` (None: there is no ledger)."""
        self.has_started = True
        self.position = position
        if self._output_bytes_max is not None:
            elsewhere = "the ledger has all of it" if position is not None else "no ledger has it"
            self._texts.limit = Limit(self._output_bytes_max, elsewhere)
        if position is not None:
            log = self._journal.log
            assert log is not None
            self._buffer = self._texts.buffer = OutputBuffer(self._journal, self.task, self.number, position)
            if self._output_bytes_max is None:
                stored = StoredAttempt(log.text_readers, log.ledger, self.task.id, self.number, position)
                stored.unwritten = lambda: self._texts.unwritten(self.ending.fact if self.ending is not None else None)
                self._texts.stored, self._texts.limit = stored, RECORDED_LINES

    # --- running -----------------------------------------------------------------------------------------------------

    def perform(self) -> None:
        """Enter the handler and keep how it ended. Nothing is recorded or raised here."""
        value: Any = None
        error: BaseException | None = None
        self._thread = threading.get_ident()
        try:
            self.context.raise_if_cancelled()
            value = self._handler(self.context)
            if value is not None and (unfinished := awaits(value)) is not None:
                value = None
                raise TaskExecutionError(
                    f"the handler {qualified_name(self._handler)} returned {unfinished}: the work was not done. "
                    "A handler returns when its work is over; it may call asyncio.run(…), or loop over what yields"
                )
        except BaseException as raised:  # noqa: BLE001 - it is recorded, and raised again by whoever executes
            error = raised
        try:
            self.ending = self._ending(value, error)
        except Exception as odd:  # noqa: BLE001 - what the handler returned or raised can't be described
            self.ending = self._failed(TaskExecutionError(f"what the handler gave can't be described: {odd!r}"))

    @property
    def fact(self) -> AttemptEnd:
        """The end that is to be recorded."""
        assert self.ending is not None
        return self.ending.fact

    @property
    def result(self) -> TaskResult:
        """The result that is handed out."""
        assert self.ending is not None
        return self.ending.result

    @property
    def error(self) -> BaseException | None:
        """The exception that is raised; None after success."""
        return self.ending.error if self.ending is not None else None

    def raise_instead(self, error: BaseException) -> None:
        """Let whoever executes get `error`, caused by what the attempt failed with."""
        assert self.ending is not None
        if self.ending.error is not error:
            error.__cause__ = self.ending.error
            self.ending = replace(self.ending, error=error)

    def cancel_ending(self) -> None:
        """Turn the end into a cancel: one was asked for before the end could be recorded."""
        self.ask_cancel()
        self.ending = self.cancelled(self.error, self.result.raw)

    def end_waiting(self, interruption: BaseException | None = None) -> None:
        """End the wait for the retry of this attempt, whose own end is recorded, as cancelled."""
        ending = self.cancelled(interruption)
        fact = replace(ending.fact, attempt=None)
        self.ending = replace(ending, fact=fact)
        self.execution.is_cancelled = True
        self.is_settled = False

    def _ending(self, value: Any, error: BaseException | None) -> Ending:
        if self.is_stopped:
            return self._interrupted(error)
        if self.is_cancelled or isinstance(error, TaskCancelled | KeyboardInterrupt):
            return self.cancelled(error, value)
        if error is not None:
            return self._failed(error)
        return self._succeeded(value)

    def _succeeded(self, value: Any) -> Ending:
        completed = value if isinstance(value, subprocess.CompletedProcess) else None
        returned = self._texts.clean(str(value)) if isinstance(value, str) else None
        output: Text = ""
        stderr: Text | None = None
        raw = value
        if completed is not None:
            raw = completed = self._noted(completed)
            output, stderr = self._texts.shown(completed, "stdout"), self._texts.shown(completed, "stderr") or None
        elif returned is not None:
            output, raw = self._texts.returned(value, returned)
        fact = TaskSucceeded(
            **self._span(),
            **self._printed_error(stderr),
            returncode=_code(completed),
            output=returned,
        )
        return Ending(fact, self._result(TaskStatus.SUCCEEDED, fact, output, stderr, raw), None)

    def _failed(self, error: BaseException) -> Ending:
        completed = self._noted_of(error)
        said: Text = stored_words(error) or words(error) or type(error).__name__
        text = self._texts.clean(said) if isinstance(said, str) else said
        reason = TerminationReason.HANDLER
        if isinstance(error, TaskTimeoutError):
            reason = TerminationReason.TIMEOUT
        elif isinstance(error, TaskExecutionError) and completed is not None:
            reason = TerminationReason.EXIT_CODE
        was_printed = completed is not None and is_stderr(completed, said)
        if completed is not None and was_printed:
            text = self._texts.shown(completed, "stderr")
        fact = TaskFailed(
            **self._span(),
            **(self._printed_error(text) if was_printed else {"error": str(text)}),
            exception=qualified_name(type(error)),
            returncode=_code(completed),
            reason=reason.value,
            error_code=_error_code(error),
        )
        output = self._output_of(completed)
        return Ending(fact, self._result(TaskStatus.FAILED, fact, output, text, completed), error)

    def cancelled(self, error: BaseException | None = None, value: Any = None) -> Ending:
        """Return the end of an attempt that was cancelled, whatever its handler raised or returned."""
        completed = self._noted_of(error)
        if completed is None and isinstance(value, subprocess.CompletedProcess):
            completed = self._noted(value)
        said = stored_words(error)
        text = (
            said
            or self._texts.clean(words(error) if error is not None else "")
            or f"Task '{self.task.id}' was cancelled"
        )
        fact = TaskCancelledFact(
            **self._span(),
            **(self._printed_error(said) if said is not None else {"error": text}),
            exception=qualified_name(type(error)) if error is not None else None,
            returncode=_code(completed),
            reason=TerminationReason.CANCELLED.value,
        )
        output = self._output_of(completed)
        raised = error
        is_own = isinstance(error, TaskCancelled) and words(error)
        if error is None or not (is_own or isinstance(error, KeyboardInterrupt) or is_signal(error)):
            raised = TaskCancelled(f"Task '{self.task.id}' was cancelled", completed)
            raised.__cause__ = error
        return Ending(fact, self._result(TaskStatus.CANCELLED, fact, output, text, completed), raised)

    def _interrupted(self, error: BaseException | None) -> Ending:
        text = "its runner was stopped: what became of the work is unknown"
        fact = TaskInterrupted(**self._span(), error=text, reason=TerminationReason.INTERRUPTED.value)
        completed = self._noted_of(error)
        output = self._output_of(completed)
        return Ending(fact, self._result(TaskStatus.INTERRUPTED, fact, output, text, completed), TaskCancelled(text))

    def _output_of(self, completed: subprocess.CompletedProcess[Any] | None) -> Text:
        """Return what was printed by an attempt that did not succeed; what an agent said is nowhere else."""
        if completed is not None:
            return self._texts.shown(completed, "stdout")
        return self._printing.kept["stdout"].shown() if self._printing is not None else ""

    def _noted(self, completed: subprocess.CompletedProcess[Any]) -> subprocess.CompletedProcess[Any]:
        """Record what a handler ran by itself and handed back; what a child of ours printed was recorded as read."""
        return completed if self._pid is not None else self._texts.noted(completed)

    def _noted_of(self, error: BaseException | None) -> subprocess.CompletedProcess[Any] | None:
        if self._pid is None:
            return self._texts.noted_of(error)
        completed = getattr(error, "completed", None)
        return completed if isinstance(completed, subprocess.CompletedProcess) else None

    def _span(self) -> dict[str, Any]:
        return {
            "attempt": self.number,
            "started_at": self.started_at,
            "finished_at": clock.now(),
            "duration": clock.monotonic_s() - self._started_s,
        }

    def _result(self, status: TaskStatus, fact: AttemptEnd, output: Text, error: Text | None, raw: Any) -> TaskResult:
        assert fact.finished_at is not None and fact.duration is not None
        texts = {"output": output, "error": error, "raw": raw}
        stored = {name: text.read for name, text in texts.items() if isinstance(text, StoredText)}
        result = TaskResult(
            task_id=self.task.id,
            status=status,
            started_at=self.started_at,
            finished_at=fact.finished_at,
            duration=fact.duration,
            output="" if isinstance(output, StoredText) else output,
            error=None if isinstance(error, StoredText) else error,
            returncode=fact.returncode,
            raw=None if isinstance(raw, StoredText) else raw,
            termination_reason=fact.reason,
            error_code=fact.error_code,
        )
        if stored:
            reading(result, stored)
        return result

    def _printed_error(self, stderr: Text | None) -> dict[str, Any]:
        """Return the fields for an error text all of which is in the log as output: a long one is not stored twice."""
        if stderr is None:
            return {}
        kept = self.kept["stderr"]
        if isinstance(kept, HeadAndTail) and kept.is_cut and stderr == kept.shown():
            end, length = kept.error_tail(), kept.characters  # of all that was printed, not of what is shown of it
        else:
            whole = str(stderr)
            end, length = tail(whole), len(whole)
        return {"error": end, "error_length": length if len(end) < length else None}

    def unwritten(self) -> list[TaskFact]:
        """Return the facts that the attempt's end takes along, oldest first: the same ones until it is settled."""
        if self._printing is not None:
            self._printing.stop()  # its handler may run on, and be given up
        self._is_over = True
        return self._texts.take()

    def settled(self, *, is_lost: bool = False) -> None:
        """Take note that its end is recorded, or, `is_lost`, kept by the handle."""
        ending = self.ending
        self._texts.settled(self._texts.unwritten(ending.fact if ending is not None else None) if is_lost else ())
        fact = ending.fact if ending is not None and not is_lost else None
        if ending is not None and isinstance(fact, TaskSucceeded) and is_long(fact.output or ""):
            # An attempt and its context know each other, so what it holds is freed late.
            self.ending = replace(ending, fact=replace(fact, output=None))
        self.is_settled = True

    # --- cancelling --------------------------------------------------------------------------------------------------

    @property
    def is_cancelled(self) -> bool:
        """True once somebody asked for its cancel."""
        return self.execution.is_cancelled

    @property
    def is_stopped(self) -> bool:
        """True once its runner was told to stop at once."""
        return self.execution.is_stopped

    @property
    def has_process(self) -> bool:
        """True while a child process of it runs."""
        return self._pid is not None and not self._is_over

    def ask_cancel(self) -> None:
        """Cancel: the context says so at once, and what it waits for ends."""
        self.execution.is_cancelled = True
        self._call_enders()

    def stop(self) -> None:
        """Stop at once: what became of the work is then unknown."""
        self.execution.is_stopped = True
        self._call_enders()

    @property
    def is_hurried(self) -> bool:
        """True once what it runs has to end without a grace."""
        return self.execution.is_hurried

    def hurry(self) -> None:
        """Stop at once, and give what it runs no time to clean up."""
        self.execution.is_hurried = True
        self.stop()

    def abandon(self) -> None:
        """Give up on a handler that does not end: what it does later changes nothing any more."""
        self.stop()
        self.ending = self._interrupted(None)

    def _call_enders(self) -> None:
        # No lock: a signal handler may come at any line of this, and cancel. Each is taken out once, by whoever does.
        with contextlib.suppress(IndexError):
            while True:
                end = self._enders.popleft()
                end()

    def on_cancel(self, end: Callable[[], None]) -> None:
        """Call `end`, once, from the thread that cancels or stops; at once where that was before."""
        self._enders.append(end)
        if self.is_cancelled or self.is_stopped:
            self._call_enders()

    def wait_for_retry(self, delay_s: float) -> bool:
        """Wait `delay_s` seconds; return False as soon as it is cancelled or stopped."""
        woken = clock.Wakeup()
        self.on_cancel(woken.set)
        clock.wait(woken, delay_s)
        return not self.is_cancelled and not self.is_stopped

    # --- what its handler reports ------------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        """Return what marks this attempt's child processes: by that they are found, wherever they went."""
        if self._marks is None:
            log = self._journal.log
            if log is None:
                self._marks = marking(mark(clock.new_id(), self.number))
            else:
                self._marks = marking(mark(log.ledger, self.position), log.runner_id or "", log.path)
        return self._marks

    def withhold(self, env: Mapping[str, str]) -> None:
        """Keep the secret ones of these variables out of all that is recorded and shown, as those of the task's own."""
        self.task._given.withheld = {**self.task._given.withheld, **env}
        self._redact()

    def spawned(self, pid: int) -> None:
        """Take note of a child process that leads a group of its own."""
        self._pid = pid
        self._printing = None  # a handler may run several, one after the other
        if self._buffer is not None:
            self._buffer.add(ProcessSpawned(self.number, pid, process_start(pid)))

    def reaped(self, pids: Sequence[int], signal: str) -> None:
        """Take note that processes were ended, by this signal, that had left the group of the child."""
        if self._buffer is not None and not self._is_over:
            why = "the attempt ended, and they were outside of its process group"
            self._buffer.add(ProcessReaped(self.number, tuple(pids), signal, why))

    @property
    def kept(self) -> Mapping[str, Kept]:
        """What is kept of what the latest child process printed, by stream."""
        return self._of_child().kept

    def _of_child(self) -> Printing:
        if self._printing is None:  # a handler that ran none asks, or one in whose name others report
            kept = {stream: self._texts.keep(stream) for stream in STREAMS}
            self._printing = Printing(
                self._redaction, self._texts.limit, kept, self._buffer, self._bus, self._publish_lines
            )
        return self._printing

    def printed(self, stream: str, text: str) -> None:
        """Take what it printed, as it was read; secrets are masked before it goes anywhere (SPEC §8)."""
        if not self._is_over:
            self._of_child().take(stream, text)

    def stop_printing(self) -> None:
        """Take no more, but what was held back until its line is complete: it is as complete as it will be."""
        self._of_child().stop()

    def finished_printing(self) -> None:
        """Publish last lines, which may have no line end."""
        lines = self._of_child().finish()
        if not self._is_over:
            for stream, line in lines:
                self._publish_lines(stream, [line])

    def unfinished(self) -> dict[str, str]:
        """Return what was printed of lines that have no end yet, and so are not published, by stream."""
        printing = self._printing
        return printing.unfinished() if printing is not None else {}

    def _publish_lines(self, stream: str, lines: list[str]) -> None:
        with _publishing(self._thread):
            for line in lines:
                self._bus.emit(
                    TaskEvent(
                        TaskEventType.OUTPUT,
                        self.task.id,
                        self.task,
                        clock.now(),
                        None,
                        self.task.status,
                        None,
                        output_stream=stream,
                        output_chunk=line,
                    )
                )

    def report(self, fact: AgentFact, *, at_once: bool = False) -> None:
        """Take a fact about what an agent does; after the end of the attempt it is too late for any."""
        if self._is_over:
            raise RuntimeError(f"nothing can be reported any more: attempt {self.number} has ended")
        if self._buffer is None:
            return
        if self._redaction is not None:
            fact = given_out(fact, self._redaction)
        if at_once:
            self._buffer.add_at_once(fact)
        else:
            self._buffer.add(fact)
            self._buffer.check()

    def check(self) -> None:
        """Raise what the ledger refused, while the attempt runs."""
        if self._buffer is not None and not self._is_over:
            self._buffer.check()

    def tell(self, message: str) -> None:
        """Tell subscribers how far it is, without recording it."""
        if not self._is_over:
            self._emit_progress(clock.now(), None, self._texts.clean(message))

    def interrupted_session(self) -> str | None:
        """Return the conversation of the latest attempt that had one, where all since then were interrupted."""
        log = self._journal.log
        before = [one for one in log.readers.attempts(self.task.id) if one.attempt < self.number] if log else []
        interrupted = itertools.takewhile(lambda one: one.status is TaskStatus.INTERRUPTED, reversed(before))
        return next((one.session for one in interrupted if one.session is not None), None)

    def _progress(self, percent: float | None, message: str | None) -> None:
        at: datetime = clock.now()
        if self._is_over:
            raise RuntimeError(f"progress can't be emitted any more: attempt {self.number} has ended")
        message = message if message is None else self._texts.clean(message)
        if self._buffer is not None:
            self._buffer.add(TaskProgressed(self.number, at, percent, message))
        self._emit_progress(at, percent, message)

    def _emit_progress(self, at: datetime, percent: float | None, message: str | None) -> None:
        with _publishing(self._thread):
            self._bus.emit(
                TaskEvent(
                    TaskEventType.PROGRESS,
                    self.task.id,
                    self.task,
                    at,
                    None,
                    self.task.status,
                    progress_percent=percent,
                    progress_message=message,
                )
            )


_PUBLISHING = threading.local()


@contextlib.contextmanager
def _publishing(thread: int | None) -> Iterator[None]:
    before, _PUBLISHING.thread = publishing_for(), thread
    try:
        yield
    finally:
        _PUBLISHING.thread = before


def publishing_for() -> int | None:
    """Return the thread that runs the task of which this thread publishes something; None: it publishes nothing."""
    thread: int | None = getattr(_PUBLISHING, "thread", None)
    return thread


def _code(completed: subprocess.CompletedProcess[Any] | None) -> int | None:
    code = completed.returncode if completed is not None else None
    return code if isinstance(code, int) and abs(code) < 2**63 else None


def _error_code(error: BaseException) -> str | None:
    # Exceptions of others have a `code` that means something else, as that of SystemExit and of urllib's HTTPError.
    code = getattr(error, "code", None) if isinstance(error, TtasksError) else None
    return code if isinstance(code, str) else None
