"""What an attempt prints and how far it says it is, on its way into the ledger: in batches, within 0.2 s."""

from __future__ import annotations

import itertools
import os
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from ttasks import clock
from ttasks.errors import ReentranceError
from ttasks.events.agent_facts import AgentFact
from ttasks.events.codec import iso
from ttasks.events.facts import Chunk, ProcessReaped, ProcessSpawned, TaskFact, TaskOutput, TaskProgressed
from ttasks.handlers.kept import Kept, Limit
from ttasks.log.event_log import EventLog
from ttasks.log.redaction import LineRedactor, Redaction
from ttasks.log.transaction import Owned
from ttasks.model.task import Task
from ttasks.reentrance import is_mine
from ttasks.runtime.bus import EventBus
from ttasks.runtime.journal import Journal
from ttasks.stores.recording import Entry

BATCH_CHARACTERS: Final = 64 * 1024
BATCH_WAIT_S: Final = 0.2
STREAMS: Final = ("stdout", "stderr")
IDLE_S: Final = 5.0
_LINE_END: Final = re.compile("(\r?\n|\r)")


class OutputBuffer:
    """The facts of one running attempt that nobody needs at once. Any thread may add to it."""

    def __init__(self, journal: Journal, task: Task, attempt: int, cause: int) -> None:
        self._journal = journal
        self._task = task
        self._attempt = attempt
        self._cause = cause
        self._lock = threading.RLock()
        self._flushing = threading.RLock()
        self._facts: list[TaskFact] = []
        self._chunks: list[Chunk] = []
        self._size = 0
        self.counts = dict.fromkeys(STREAMS, 0)
        self._is_scheduled = False
        self._is_stuck = False
        self._refusal: Exception | None = None

    def printed(self, stream: str, text: str) -> None:
        """Take what was read from a pipe; a full batch is written on this thread."""
        chunk: Chunk = ("stdout" if stream == "stdout" else "stderr", iso(clock.now()), text)
        with self._lock:
            self._chunks.append(chunk)
            self.counts[stream] += 1
            self._size += len(text)
            is_full = self._size >= BATCH_CHARACTERS and not self._is_stuck
        if is_full:
            self.flush()
        else:
            self._schedule()

    def add(self, fact: ProcessSpawned | ProcessReaped | TaskProgressed | AgentFact) -> None:
        """Take a fact."""
        with self._lock:
            self._close_batch()
            self._facts.append(fact)
        self._schedule()

    def add_at_once(self, fact: AgentFact) -> None:
        """Take a fact, and return when it is written, with all that was taken before.

        Raises:
            LedgerUnwritableError, StreamConflictError: the ledger refused; it goes with the attempt's end, if that can.
        """
        if is_mine(self._flushing):
            raise ReentranceError("a report that is to be written at once")
        with self._lock:
            self._close_batch()
            self._facts.append(fact)
        self.flush()
        self.check()

    def check(self) -> None:
        """Raise what the ledger refused something with, if it has."""
        if self._refusal is not None:
            raise self._refusal

    def _close_batch(self) -> None:
        if self._chunks:
            self._facts.append(TaskOutput(self._attempt, tuple(self._chunks)))
            self._chunks = []
            self._size = 0

    def _schedule(self) -> None:
        with self._lock:
            if self._is_scheduled or self._is_stuck:
                return
            self._is_scheduled = True
        log = self._journal.log
        assert log is not None
        if not _flusher_of(log).schedule(self):
            self.flush()

    def flush(self) -> None:
        """Write what is there. Where the ledger refuses, it stays, and goes with the attempt's end."""
        if is_mine(self._flushing):  # what came in between is written with what is taken next
            return
        with self._flushing:
            with self._lock:
                self._is_scheduled = False
                self._close_batch()
                facts, self._facts = self._facts, []
            if not facts or self._is_stuck:
                with self._lock:
                    self._facts = facts + self._facts
                return
            try:
                self._journal.record([Entry(self._task, facts, Owned(self._attempt, knows_cancel=True), self._cause)])
            except Exception as refusal:  # noqa: BLE001 - they go with the attempt's end, which tells who executes
                with self._lock:
                    self._facts = facts + self._facts
                    self._is_stuck = True
                    self._refusal = refusal

    def unwritten(self) -> list[TaskFact]:
        """Return what is not written yet, and leave it here."""
        with self._flushing, self._lock:
            self._close_batch()
            return list(self._facts)

    def take(self) -> list[TaskFact]:
        """Return what is not written yet: the attempt's end takes it along."""
        with self._flushing, self._lock:
            self._close_batch()
            facts, self._facts = self._facts, []
            return facts


class _Flusher:
    """A thread that flushes the buffers of one ledger when they are due: it starts with the first, and ends when idle.

    Each ledger has its own, because one that is locked by a stranger makes its flusher wait.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._due: deque[tuple[float, OutputBuffer]] = deque()
        self._is_running = False

    def schedule(self, buffer: OutputBuffer) -> bool:
        """Flush `buffer` in `BATCH_WAIT_S` seconds; return False where the system has no thread to give for that."""
        with self._changed:
            self._due.append((clock.monotonic_s() + BATCH_WAIT_S, buffer))
            if not self._is_running:
                try:
                    threading.Thread(target=self._run, name="ttasks-flush", daemon=True).start()
                except RuntimeError:
                    self._due.pop()
                    return False
                self._is_running = True
            elif len(self._due) == 1:
                self._changed.notify()
        return True

    def _run(self) -> None:
        while (buffer := self._next()) is not None:
            buffer.flush()

    def _next(self) -> OutputBuffer | None:
        """Wait for a buffer that is due and return it; None: there was none for a while."""
        with self._changed:
            while True:
                if not self._due and not self._changed.wait_for(lambda: self._due, IDLE_S):
                    self._is_running = False
                    return None
                wait = self._due[0][0] - clock.monotonic_s()
                if wait <= 0:
                    return self._due.popleft()[1]
                self._changed.wait(wait)


_FLUSHERS: weakref.WeakKeyDictionary[EventLog, _Flusher] = weakref.WeakKeyDictionary()
_FLUSHERS_LOCK = threading.RLock()


def _flusher_of(log: EventLog) -> _Flusher:
    with _FLUSHERS_LOCK:
        flusher = _FLUSHERS.get(log)
        if flusher is None:
            flusher = _FLUSHERS[log] = _Flusher()
        return flusher


def _after_fork_in_child() -> None:
    global _FLUSHERS, _FLUSHERS_LOCK
    _FLUSHERS, _FLUSHERS_LOCK = weakref.WeakKeyDictionary(), threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)


class LineCutter:
    """Cuts what is read from one stream into lines, each with its end; the last may lack it.

    A carriage return ends a line too, as it does for Python's own text files: what a progress bar has overwritten.
    Of a line that is longer than `limit` only the beginning and the end are kept.
    """

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self._rest = limit.keep(" ")
        self._held = ""

    def cut(self, text: str) -> list[str]:
        """Return the lines that `text` completes."""
        ends: Iterable[str] = itertools.repeat("\n")
        if self._held or "\r" in text:
            text = self._held + text
            self._held = "\r" if text.endswith("\r") else ""  # the other half of a \r\n may follow
            parts = _LINE_END.split(text.removesuffix(self._held))  # line, end, line, …, what is begun
            lines, ends = parts[::2], parts[1::2]
        else:
            lines = text.split("\n")
        self._rest.add(lines[0])
        if len(lines) == 1:
            return []
        begun, lines[0] = lines.pop(), self._rest.text()
        self._rest = self._limit.keep(" ")
        self._rest.add(begun)
        if not self._limit.covers(text):
            lines[1:] = map(self._shortened, lines[1:])
        return [line + end for line, end in zip(lines, ends, strict=False)]

    def unfinished(self) -> str:
        """Return what there is of the line that has no end yet."""
        return self._rest.text() + self._held

    def _shortened(self, line: str) -> str:
        if self._limit.covers(line):
            return line
        kept = self._limit.keep(" ")
        kept.add(line)
        return kept.text()

    def finish(self) -> list[str]:
        """Return what is left, if anything."""
        rest, self._rest, self._held = self.unfinished(), self._limit.keep(" "), ""
        return [rest] if rest else []


class Printing:
    """What one child process of an attempt prints: masked, recorded as it was read, kept, and published by line.

    `kept` is what is kept of it in memory, by stream, `limit` how much of a line is published. `publish` gets a stream
    and whole lines of it.
    """

    def __init__(
        self,
        redaction: Redaction | None,
        limit: Limit,
        kept: Mapping[str, Kept],
        buffer: OutputBuffer | None,
        bus: EventBus,
        publish: Callable[[str, list[str]], None],
    ) -> None:
        self.kept = kept
        self._buffer = buffer
        self._bus = bus
        self._publish = publish
        self._lock = threading.Lock()
        self._redactors = {} if redaction is None else {name: LineRedactor(redaction) for name in STREAMS}
        self._cutters = {name: LineCutter(limit) for name in STREAMS}
        self._last_lines: list[tuple[str, str]] = []
        self._has_stopped = False

    def take(self, stream: str, text: str) -> None:
        """Take what was read; where nobody listens no line is cut."""
        if self._has_stopped:
            return
        if self._redactors:
            text = self._redactors[stream].feed(text)
        self._keep(stream, text)
        if self._bus.has_subscribers:
            with self._lock:
                lines = self._cutters[stream].cut(text)
            self._publish(stream, lines)

    def unfinished(self) -> dict[str, str]:
        """Return what was printed of lines that have no end yet, by stream; no secret is in it."""
        with self._lock:
            return {stream: cutter.unfinished() for stream, cutter in self._cutters.items()}

    def _keep(self, stream: str, text: str) -> None:
        self.kept[stream].add(text)
        if self._buffer is not None and text:
            self._buffer.printed(stream, text)

    def stop(self) -> None:
        """Take no more, but what was held back until its line is complete: it is as complete as it will be."""
        with self._lock:
            has_stopped, self._has_stopped = self._has_stopped, True
        if has_stopped:
            return
        for stream, redactor in self._redactors.items():
            text = redactor.finish()
            self._keep(stream, text)
            with self._lock:
                self._last_lines += [(stream, line) for line in self._cutters[stream].cut(text)]

    def finish(self) -> list[tuple[str, str]]:
        """Take no more, and return the last lines, which may have no line end, each with its stream."""
        self.stop()
        with self._lock:
            lines, self._last_lines = self._last_lines, []
            lines += [(stream, line) for stream, cutter in self._cutters.items() for line in cutter.finish()]
        return lines
