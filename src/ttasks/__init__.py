"""ttasks: a task ledger, executor and DAG runner for one machine.

Every event is appended to one SQLite file; everything else is derived from it. What is named here is the library's
API, and ``from ttasks import …`` the only supported way to it. The names are loaded when first used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

from ttasks.version import __version__

try:
    import fcntl as _fcntl  # noqa: F401 - what ttasks can't do without
except ImportError:  # pragma: no cover - only where there is none
    raise ImportError(f"ttasks runs on Linux and macOS: {sys.platform} has no fcntl and no process groups") from None

if TYPE_CHECKING:
    from ttasks.errors import (
        AlreadyRunningError,
        CopilotError,
        DamagedLedgerError,
        GraphError,
        LedgerError,
        LedgerUnwritableError,
        NotALedgerError,
        NotFoundError,
        NoThreadError,
        NotResumableError,
        RedactionError,
        ReentranceError,
        SealedTaskError,
        StreamConflictError,
        SurvivorError,
        TaskCancelled,
        TaskExecutionError,
        TaskTimeoutError,
        TransitionError,
        TtasksError,
        UnknownEventError,
        UnknownTypeError,
        WithheldError,
        WorkflowError,
    )
    from ttasks.events.envelope import OpaqueEvent, RecordedEvent
    from ttasks.events.status import RunStatus, TaskStatus, TaskType
    from ttasks.handlers.context import TaskContext
    from ttasks.handlers.copilot.permissions import PermissionRequest
    from ttasks.handlers.copilot.session import (
        CopilotAgentSession,
        make_copilot_agent_handler,
        make_copilot_prompt_handler,
    )
    from ttasks.log.environment import EnvironmentChange
    from ttasks.model.event import TaskEvent, TaskEventType
    from ttasks.model.graph import RecordedError, TaskGraph
    from ttasks.model.interrupted import Interrupted, Owed
    from ttasks.model.result import TaskResult
    from ttasks.model.retry import RetryPolicy
    from ttasks.model.run import Run, Runner
    from ttasks.model.task import Task
    from ttasks.runtime.bus import EventBus
    from ttasks.runtime.executor import TaskExecutor
    from ttasks.stores.ledger import PastStore, SQLiteStore
    from ttasks.stores.memory import InMemoryStore
    from ttasks.stores.protocol import Store
    from ttasks.stores.views import EventView, RunView

_HOMES: Final = {
    "ttasks.errors": (
        "AlreadyRunningError", "CopilotError", "DamagedLedgerError", "GraphError", "LedgerError",
        "LedgerUnwritableError", "NoThreadError",
        "NotALedgerError", "NotFoundError", "NotResumableError", "RedactionError", "ReentranceError", "SealedTaskError",
        "StreamConflictError", "SurvivorError", "TaskCancelled", "TaskExecutionError", "TaskTimeoutError",
        "TransitionError", "TtasksError",
        "UnknownEventError", "UnknownTypeError", "WithheldError", "WorkflowError",
    ),
    "ttasks.events.envelope": ("OpaqueEvent", "RecordedEvent"),
    "ttasks.events.status": ("RunStatus", "TaskStatus", "TaskType"),
    "ttasks.handlers.context": ("TaskContext",),
    "ttasks.handlers.copilot.permissions": ("PermissionRequest",),
    "ttasks.handlers.copilot.session": (
        "CopilotAgentSession", "make_copilot_agent_handler", "make_copilot_prompt_handler",
    ),
    "ttasks.log.environment": ("EnvironmentChange",),
    "ttasks.model.event": ("TaskEvent", "TaskEventType"),
    "ttasks.model.graph": ("RecordedError", "TaskGraph"),
    "ttasks.model.interrupted": ("Interrupted", "Owed"),
    "ttasks.model.result": ("TaskResult",),
    "ttasks.model.retry": ("RetryPolicy",),
    "ttasks.model.run": ("Run", "Runner"),
    "ttasks.model.task": ("Task",),
    "ttasks.runtime.bus": ("EventBus",),
    "ttasks.runtime.executor": ("TaskExecutor",),
    "ttasks.stores.ledger": ("PastStore", "SQLiteStore"),
    "ttasks.stores.memory": ("InMemoryStore",),
    "ttasks.stores.protocol": ("Store",),
    "ttasks.stores.views": ("EventView", "RunView"),
}  # fmt: skip
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}


if not TYPE_CHECKING:  # a checker would take it for any name at all

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"module 'ttasks' has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(home), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "AlreadyRunningError",
    "CopilotAgentSession",
    "CopilotError",
    "DamagedLedgerError",
    "EnvironmentChange",
    "EventBus",
    "EventView",
    "GraphError",
    "InMemoryStore",
    "Interrupted",
    "LedgerError",
    "LedgerUnwritableError",
    "NoThreadError",
    "NotALedgerError",
    "NotFoundError",
    "NotResumableError",
    "OpaqueEvent",
    "Owed",
    "PastStore",
    "PermissionRequest",
    "RecordedError",
    "RecordedEvent",
    "RedactionError",
    "ReentranceError",
    "RetryPolicy",
    "Run",
    "RunStatus",
    "RunView",
    "Runner",
    "SQLiteStore",
    "SealedTaskError",
    "Store",
    "StreamConflictError",
    "SurvivorError",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskEvent",
    "TaskEventType",
    "TaskExecutionError",
    "TaskExecutor",
    "TaskGraph",
    "TaskResult",
    "TaskStatus",
    "TaskTimeoutError",
    "TaskType",
    "TransitionError",
    "TtasksError",
    "UnknownEventError",
    "UnknownTypeError",
    "WithheldError",
    "WorkflowError",
    "__version__",
    "make_copilot_agent_handler",
    "make_copilot_prompt_handler",
]
