"""Every exception of ttasks, as one tree under `TtasksError`.

Each is also the built-in class that callers of such a library already catch, carries its parts as attributes, and
says whether anything was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import ttasks
from ttasks.public import public


class TtasksError(Exception):
    """The root of everything that ttasks raises on purpose, but for wrong arguments."""


class TaskCancelled(TtasksError):
    """A task was cancelled. A handler may raise it; its text is then the result's error.

    `completed` holds what a script had printed by then (None: nothing ran).
    """

    def __init__(self, message: str = "", completed: CompletedProcess[str] | None = None) -> None:
        super().__init__(message)
        self.completed = completed


class TaskExecutionError(TtasksError, RuntimeError):
    """A script ended with a non-zero exit code. The text is its stderr, or ``exited with code 7``; of a
    script that a signal ended, the signal comes first, and the last lines of stderr follow.

    `code` is a word by which programs know what went wrong; it is the result's `error_code`.
    """

    def __init__(
        self, message: str, completed: CompletedProcess[str] | None = None, *, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.completed = completed
        self.code = code


class TaskTimeoutError(TtasksError, TimeoutError):
    """A task ran longer than its time-out. `completed` holds what was printed so far; `code` is as in
    `TaskExecutionError`.
    """

    def __init__(
        self, message: str, completed: CompletedProcess[str] | None = None, *, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.completed = completed
        self.code = code


class CopilotError(TaskExecutionError):
    """A Copilot prompt or agent could not be run, or failed. Its text says what to do.

    `code` is one of ``cli_missing cli_not_runnable cli_incompatible cli_crashed not_authenticated quota_exceeded
    rate_limited provider_refused provider_failed provider_unreachable model_unavailable context_limit
    session_not_found bad_working_directory aborted copilot_error``.
    """


class TransitionError(TtasksError, ValueError):
    """A command that this state does not allow. Nothing was changed or written."""


class SealedTaskError(TtasksError, AttributeError):
    """A write to a SUCCEEDED task, which is immutable. Nothing was changed."""


class AlreadyRunningError(TransitionError):
    """A task or graph that is running already, here or in another process. Nothing was written."""


class GraphError(TtasksError, ValueError):
    """A graph that can't be run as it is: a cycle, a dependency that is not in it. Nothing was written."""


class WithheldError(TtasksError, ValueError):
    """A task can't run as it was loaded: the ledger withholds what it needs. Nothing was run or written.

    `missing` names what has to be given again: ``payload``, ``cwd``, ``env['API_TOKEN']``.
    """

    def __init__(self, message: str, missing: Sequence[str]) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class NotResumableError(TtasksError, ValueError):
    """What was interrupted can't go on as it was: something can't be restored. Nothing was started or written.

    `problems` holds a sentence for each thing that is missing, which says how to give it.
    """

    def __init__(self, what: str, problems: Sequence[str]) -> None:
        self.what = what
        self.problems = tuple(problems)
        super().__init__(f"{what} can't be resumed: {'; '.join(self.problems)}. Nothing was started or written")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.what, self.problems)


class SurvivorError(TtasksError, RuntimeError):
    """Processes of an attempt whose runner died can't be ended. Nothing was started; `pids` are theirs."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.pids = tuple(pids)
        named = ", ".join(map(str, self.pids))
        super().__init__(
            f"of an attempt whose runner died, what is left can't be ended: process {named}. "
            "Nothing was started; end it, and try again"
        )

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.pids,)


class RedactionError(TtasksError, ValueError):
    """What is to be redacted is said in a way that can't be used. Nothing was opened or written."""


class WorkflowError(TtasksError, ValueError):
    """A workflow file that can't be used. Nothing was run or written.

    `problems` holds one or more ``(line, task, text)``: the line from 1 (None: the file as a whole), the name of the
    task (None: not inside one), and a sentence that says what is wrong and what is expected.
    """

    def __init__(self, path: Path, problems: Sequence[tuple[int | None, str | None, str]]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__("\n".join(self._line(*problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.path, self.problems)

    def _line(self, line: int | None, task: str | None, text: str) -> str:
        place = f"{self.path}:{line}" if line is not None else f"{self.path}"
        return f"{place}: task '{task}': {text}" if task is not None else f"{place}: {text}"


class NotFoundError(TtasksError, LookupError):
    """No task or graph is meant, or more than one could be."""


class UnknownTypeError(NotFoundError, ValueError):
    """No type of event is called so: this ttasks knows none, and the ledger holds none. Nothing was read.

    `type` is what was asked for, `like` a name that resembles it (None: none does).
    """

    def __init__(self, type: str, like: str | None) -> None:
        self.type = type
        self.like = like
        hint = f"; did you mean {like!r}?" if like is not None else ""
        super().__init__(f"no type of event is called {type!r}{hint}")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.type, self.like)


class LedgerError(TtasksError, RuntimeError):
    """Something is wrong with a ledger file."""


class NotALedgerError(LedgerError):
    """The file is not a ledger, or one of a newer ttasks. It was left untouched."""


class LedgerUnwritableError(LedgerError):
    """The ledger can't be written: disk full, read-only, locked by a stranger, deleted, replaced.

    Nothing of the append was written. `result` is what a task that had run ended with (None: nothing had run); the
    task's handle keeps it as pending, and a later `save` records it.
    """

    def __init__(self, message: str, result: ttasks.TaskResult | None = None) -> None:
        super().__init__(message)
        self.result = result


class ReentranceError(TtasksError, RuntimeError):
    """Something was asked for by a signal handler, `__del__` or the like, while its own thread was recording.

    Waiting for that would never end. Nothing was done.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what} was asked for while this very thread was recording, by a signal handler, a __del__ or a trace "
            "function that came in between. Nothing was done: do it in another thread. What is safe anywhere is "
            "executor.cancel(task), store.tasks.cancel(id) and store.graphs.cancel(id)"
        )

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.what,)


class NoThreadError(TtasksError, RuntimeError):
    """Something needs a thread, and there is none: the interpreter is ending, or the system has no more to give.

    Nothing was done.
    """

    def __init__(self, what: str, why: str) -> None:
        self.what = what
        self.why = why
        super().__init__(f"{what} needs a thread, and there is none to be had: {why}. Nothing was done")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.what, self.why)


class StreamConflictError(LedgerError):
    """Somebody else appended to this stream first. Nothing was written: load again and decide again.

    `stream`, `expected_version` (what the caller had seen) and `version` (what the ledger holds) are attributes; `by`
    says in words what the last event is and who recorded it.
    """

    def __init__(self, stream: str, expected_version: int, version: int, detail: str = "", by: str = "") -> None:
        self.stream = stream
        self.expected_version = expected_version
        self.version = version
        self.detail = detail
        self.by = by
        seen = f"{stream} has {version} events, {expected_version} were seen"
        was_faster = f" ({by})" if by else ""
        super().__init__(f"{detail or seen}{was_faster}; nothing was written: load it again and decide again")

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        return type(self), (self.stream, self.expected_version, self.version, self.detail, self.by)


class UnknownEventError(LedgerError):
    """A fold met an event type that this version of ttasks does not know, and that is not marked as ignorable.

    Its parts are attributes: `type` and `type_version` of the event, its `stream`, and where they are known its
    `version` in that stream and its `position` in the log. Nothing was written.
    """

    def __init__(
        self, type_: str, type_version: int, stream: str, *, version: int | None = None, position: int | None = None
    ) -> None:
        self.type = type_
        self.type_version = type_version
        self.stream = stream
        self.version = version
        self.position = position
        place = f"{stream}@{version}" if version is not None else stream
        where = f"event {position}, {place}," if position is not None else place
        super().__init__(
            f"{where} is a {type_} (version {type_version}), which this ttasks does not know: a newer one wrote it. "
            "Nothing was written; use the ledger with that"
        )


class DamagedLedgerError(LedgerError):
    """What is stored is not what ttasks writes: an event that can't be decoded, or facts out of order."""


def words(error: BaseException) -> str:
    """Return the text of an error, also of one that can't say it."""
    try:
        return str(error)
    except Exception as odd:  # noqa: BLE001 - an error without words is still an error
        return f"{type(error).__name__}, which has no text: {odd!r}"


public(*(each for each in vars().values() if isinstance(each, type) and issubclass(each, TtasksError)))
