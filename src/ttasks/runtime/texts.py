"""The long texts of an attempt: what its handler printed, returned or raised, and what a result has of that."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from ttasks import clock
from ttasks.errors import TaskCancelled, TaskExecutionError, TaskTimeoutError
from ttasks.events.codec import iso
from ttasks.events.facts import AttemptEnd, Chunk, TaskFact, TaskOutput
from ttasks.handlers.completed import StoredProcess
from ttasks.handlers.kept import UNLIMITED, Kept, Limit, Recorded
from ttasks.log.redaction import Redaction, redacted
from ttasks.log.stored import PrintedText, ReturnedText, StoredAttempt, StoredText
from ttasks.model.result import is_long
from ttasks.runtime.output import STREAMS, OutputBuffer

Text = str | StoredText
"""A text, or where it is read once somebody asks for it."""


class Texts:
    """What one attempt says, as it may be shown, and where a result finds what is too long to be kept.

    `buffer` is where output is recorded (None: nowhere), `stored` where long texts are read (None: all are kept, as
    without a ledger, or as a limit says), `redaction` what is masked in them, `limit` how much of a text is shown.
    """

    def __init__(self, attempt: int) -> None:
        self.redaction: Redaction | None = None
        self.buffer: OutputBuffer | None = None
        self.stored: StoredAttempt | None = None
        self.limit: Limit = UNLIMITED
        self._attempt = attempt
        self._noted: list[Chunk] = []
        self._unwritten: list[TaskFact] = []
        self._lock = threading.Lock()

    def clean(self, text: str) -> str:
        """Return a text as it may be shown."""
        return redacted(text, self.redaction)

    def keep(self, stream: str) -> Kept:
        """Return what keeps what a child prints to a stream from here on."""
        stored = self.stored
        if stored is None:
            return self.limit.keep("\n")
        begun = self._chunks(stream)
        return Recorded(lambda count, characters: PrintedText(stored, characters, stream, begun, count))

    def _chunks(self, stream: str) -> int:
        """Return how many chunks are recorded, or will be, of what was printed to a stream so far."""
        begun = self.buffer.counts[stream] if self.buffer is not None else 0
        return begun + sum(to == stream for to, _, _ in self._noted)

    def shown(self, completed: subprocess.CompletedProcess[Any], stream: str) -> Text:
        """Return what a process printed, as it may be shown; what the ledger has is not read."""
        value = completed.shown[stream] if isinstance(completed, StoredProcess) else getattr(completed, stream)
        return value if isinstance(value, StoredText) else self.clean(_text(value))

    def returned(self, value: str, cleaned: str) -> tuple[Text, Any]:
        """Return the output and the `raw` of a result whose handler returned this text."""
        if self.stored is None or not is_long(cleaned) or not _is_given_back(cleaned, cleaned):
            return cleaned, value
        output = ReturnedText(self.stored, len(cleaned))
        return output, output if type(value) is str and value == cleaned else value

    def noted_of(self, error: BaseException | None) -> subprocess.CompletedProcess[Any] | None:
        """Return `noted` of the process that an error is about, which the error then has too; None: it has none."""
        completed = getattr(error, "completed", None)
        if not isinstance(completed, subprocess.CompletedProcess):
            return None
        noted = self.noted(completed)
        if noted is not completed and isinstance(error, TaskExecutionError | TaskTimeoutError | TaskCancelled):
            error.completed = noted
        return noted

    def noted(self, completed: subprocess.CompletedProcess[Any]) -> subprocess.CompletedProcess[Any]:
        """Record what a handler ran by itself and handed back.

        Returns:
            The same process; or one like it whose long output is read from the ledger, where that has it unchanged.
        """
        if isinstance(completed, StoredProcess):
            return completed
        at = iso(clock.now())
        texts: dict[str, Any] = {stream: getattr(completed, stream) for stream in STREAMS}
        is_binary = any(isinstance(value, bytes) for value in texts.values())
        for stream, value in list(texts.items()):
            if text := _text(value):
                cleaned = self.clean(text)
                if self.stored is not None and cleaned == text and is_long(text) and _is_given_back(text, value):
                    texts[stream] = PrintedText(self.stored, len(text), stream, self._chunks(stream), 1)
                self._noted.append(("stdout" if stream == "stdout" else "stderr", at, cleaned))
        if type(completed) is not subprocess.CompletedProcess or not _has_stored(texts.values()):
            return completed
        return StoredProcess(
            completed.args, completed.returncode, texts["stdout"], texts["stderr"], is_binary=is_binary
        )

    # --- what is not recorded yet ------------------------------------------------------------------------------------

    def take(self) -> list[TaskFact]:
        """Return the facts that the attempt's end takes along, oldest first: the same ones until `settled`."""
        with self._lock:
            if self.buffer is not None:
                self._unwritten += self.buffer.take()
            if self._noted:
                self._unwritten.append(TaskOutput(self._attempt, tuple(self._noted)))
                self._noted = []
            return list(self._unwritten)

    def unwritten(self, end: AttemptEnd | None) -> list[TaskFact]:
        """Return what is not recorded, and the end; while that is being recorded, maybe what is recorded already."""
        with self._lock:
            facts = list(self._unwritten)
            if self.buffer is not None:
                facts += self.buffer.unwritten()
            if self._noted:
                facts.append(TaskOutput(self._attempt, tuple(self._noted)))
        return facts if end is None else [*facts, end]

    def settled(self, left: Sequence[TaskFact]) -> None:
        """Take note that all is recorded but what is `left`, which is not going to be any more."""
        if self.stored is not None:
            self.stored.unwritten = lambda: left
        self._unwritten.clear()


def stored_words(error: BaseException | None) -> StoredText | None:
    """Return the text of an error that is in the ledger, without reading it; None: it is somewhere else."""
    said = error.args[0] if error is not None and len(error.args) == 1 else None
    return said if isinstance(said, StoredText) else None


def is_stderr(completed: subprocess.CompletedProcess[Any], said: Text) -> bool:
    """True when a text is what a process printed to stderr."""
    stderr = completed.shown["stderr"] if isinstance(completed, StoredProcess) else completed.stderr
    if isinstance(stderr, StoredText) and isinstance(said, str):
        return len(said) == stderr.characters and said == stderr.read()
    return bool(stderr == said)


def _text(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


def _has_stored(values: Any) -> bool:
    return any(isinstance(value, StoredText) for value in values)


def _is_given_back(text: str, value: object) -> bool:
    """True when the ledger gives a text back as a handler had it; of surrogates in a row it makes characters."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        return False
    return value == (encoded if isinstance(value, bytes) else text)
