"""The handlers of PROMPT and AGENT tasks that every executor has: what they need is imported by the first such task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ttasks.handlers.context import TaskContext


def copilot_prompt_handler(context: TaskContext) -> str:
    """Answer a prompt, as ``make_copilot_prompt_handler()`` does."""
    from ttasks.handlers.copilot.session import make_copilot_prompt_handler

    text: str = make_copilot_prompt_handler()(context)
    return text


def copilot_agent_handler(context: TaskContext) -> str:
    """Carry out an instruction, as ``make_copilot_agent_handler()`` does."""
    from ttasks.handlers.copilot.session import make_copilot_agent_handler

    text: str = make_copilot_agent_handler()(context)
    return text


def named(handler: Callable[[TaskContext], str]) -> Callable[[TaskContext], Any]:
    """Return a handler that goes by its own name in `ttasks`, wherever it is made."""
    # This name is in the log, by which resuming knows whether it is the same handler: it outlives moves of the code.
    handler.__module__, handler.__qualname__ = "ttasks", handler.__name__
    return handler


named(copilot_prompt_handler)
named(copilot_agent_handler)
