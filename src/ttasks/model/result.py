"""How a task ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ttasks.events.status import TaskStatus
from ttasks.public import public


def _no_error() -> str | None:
    return None


@dataclass(frozen=True)
class TaskResult:
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
    A loaded result reads `output`, and a long `error`, from the log when it is first asked for.
    """

    task_id: str
    status: TaskStatus
    started_at: datetime
    finished_at: datetime
    duration: float
    # Made by factories, so that the class has no such attributes: a loaded result lacks them until __getattr__.
    output: str = field(default_factory=str)
    error: str | None = field(default_factory=_no_error)
    returncode: int | None = None
    raw: Any = field(default=None, compare=False)
    termination_reason: str | None = None
    error_code: str | None = None

    if not TYPE_CHECKING:  # a checker would take it for any name at all

        def __getattr__(self, name: str) -> Any:
            readers = self.__dict__.get("_readers", {})
            if name not in readers:
                raise AttributeError(f"'TaskResult' object has no attribute '{name}'")
            value = self.__dict__[name] = readers[name]()
            return value

    def __getstate__(self) -> dict[str, Any]:
        """Return all it holds, for a copy or pickle: what is still in the log is read now."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def loaded_result(readers: dict[str, Callable[[], str | None]], **fields: Any) -> TaskResult:
    """Return a result whose fields in `readers` are read when first asked for."""
    result = object.__new__(TaskResult)
    unsaid = {"raw": None, "returncode": None, "termination_reason": None, "error_code": None}
    result.__dict__.update(unsaid, **fields)
    result.__dict__["_readers"] = readers
    return result


def is_loaded(result: TaskResult) -> bool:
    """True when the result was loaded from a ledger, and may still read from it."""
    return "_readers" in result.__dict__


public(TaskResult)
