"""How a task ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from ttasks.events.status import TaskStatus
from ttasks.public import public

KEPT_BYTES_MAX: Final = 64 * 1024
"""How much of a text that the ledger has is kept in memory too; a longer one is read each time it is asked for."""


def is_long(text: str) -> bool:
    """True when a text has more than is kept."""
    if len(text) * 4 <= KEPT_BYTES_MAX:
        return False
    return len(text) > KEPT_BYTES_MAX or len(text.encode("utf-8", "surrogatepass")) > KEPT_BYTES_MAX


def none() -> Any:
    """Return None: the default of a field that the class must not have as an attribute."""
    return None


class ReadWhenAsked:
    """A frozen dataclass some fields of which are read when they are asked for: those that `reading` was given.

    Such a field needs a default that is made by a factory, so that the class has no attribute of that name.
    """

    if not TYPE_CHECKING:  # a checker would take it for any name at all

        def __getattr__(self, name: str) -> Any:
            readers = self.__dict__.get("_readers", {})
            if name not in readers:
                raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")
            value = readers[name]()
            if not isinstance(value, str) or not is_long(value):
                self.__dict__[name] = value
            return value


def reading(item: ReadWhenAsked, readers: dict[str, Callable[[], Any]]) -> None:
    """Let these fields of a new object be read when they are asked for; one that is long is not kept."""
    for name in readers:
        item.__dict__.pop(name, None)
    item.__dict__["_readers"] = readers


def is_read_when_asked(item: ReadWhenAsked, name: str) -> bool:
    """True when a field was not read yet, or is too long to be kept."""
    return name not in item.__dict__


@dataclass(frozen=True)
class TaskResult(ReadWhenAsked):
    """How the latest attempt at a task ended.

    `duration` is in seconds, by a monotonic clock; `started_at` and `finished_at` are aware UTC. For a script `output`
    is its stdout, `error` its stderr (None when empty; ``exited with code 7`` or the time-out's text where that says
    more; of a script that a signal ended, the signal and the last lines of stderr), `raw` its
    `subprocess.CompletedProcess`. For another handler `raw` is what it returned, and `output` that too when it is a
    text. `raw` is never persisted: a loaded result has None. `termination_reason` is None after
    success, else ``exit_code``, ``timeout``, ``cancelled``, ``handler`` or ``interrupted``. `error_code` is the word by
    which programs know what went wrong: the `code` of the TtasksError that the handler failed with (None: it has none).

    Where its executor has a `max_output_bytes`, `output`, `error` and `raw` hold the beginning and the end of what a
    script printed, with a notice in between.

    Secrets are masked in `output` and `error`, as they are in the log, but not in what a handler of your own returned.
    A loaded result reads `output`, and a long `error`, from the log when it is first asked for. Where there is a
    ledger, every result reads an `output`, an `error`, and the `stdout` and `stderr` of its `raw`, of more than 64 KiB
    each time it is asked for, also after its store was closed: bind it to a name to use it more than once. LedgerError
    where the file is gone by then.
    """

    task_id: str
    status: TaskStatus
    started_at: datetime
    finished_at: datetime
    duration: float
    # Made by factories, so that the class has no such attributes: a loaded result lacks them until __getattr__.
    output: str = field(default_factory=str)
    error: str | None = field(default_factory=none)
    returncode: int | None = None
    raw: Any = field(default_factory=none, compare=False)
    termination_reason: str | None = None
    error_code: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Return all it holds, for a copy or pickle: what is still in the log is read now."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def loaded_result(readers: dict[str, Callable[[], str | None]], **fields: Any) -> TaskResult:
    """Return a result that was loaded, whose fields in `readers` are read when they are asked for."""
    result = object.__new__(TaskResult)
    unsaid = {"raw": None, "returncode": None, "termination_reason": None, "error_code": None}
    result.__dict__.update(unsaid, _is_loaded=True, **fields)
    reading(result, readers)
    return result


def is_loaded(result: TaskResult) -> bool:
    """True when the result was loaded from a ledger."""
    return "_is_loaded" in result.__dict__


public(TaskResult)
