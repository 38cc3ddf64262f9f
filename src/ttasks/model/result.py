"""How a task ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ttasks.events.status import TaskStatus


def _no_error() -> str | None:
    return None


@dataclass(frozen=True)
class TaskResult:
    """How the latest attempt at a task ended.

    `duration` is in seconds, by a monotonic clock; `started_at` and `finished_at` are aware UTC. For a script `output`
    is its stdout, `error` its stderr (None when empty; ``exited with code 7`` or the time-out's text where that says
    more), `raw` its `subprocess.CompletedProcess`. For another handler `raw` is what it returned, and `output` that
    too when it is a text. `raw` is never persisted: a loaded result has None. `termination_reason` is None after
    success, else ``exit_code``, ``timeout``, ``cancelled``, ``handler`` or ``interrupted``.

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

    def __getattr__(self, name: str) -> Any:
        readers = self.__dict__.get("_readers", {})
        if name not in readers:
            raise AttributeError(f"'TaskResult' object has no attribute '{name}'")
        value = self.__dict__[name] = readers[name]()
        return value


def loaded_result(readers: dict[str, Callable[[], str | None]], **fields: Any) -> TaskResult:
    """Return a result whose fields in `readers` are read when first asked for."""
    result = object.__new__(TaskResult)
    result.__dict__.update({"raw": None, "returncode": None, "termination_reason": None}, **fields)
    result.__dict__["_readers"] = readers
    return result


TaskResult.__module__ = "ttasks"
