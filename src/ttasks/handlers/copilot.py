"""GitHub Copilot tasks. This version of ttasks has their names, and says that it can't run them yet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ttasks.errors import TaskExecutionError
from ttasks.handlers.context import TaskContext
from ttasks.model.checks import check_number
from ttasks.public import public

Handler = Callable[[TaskContext], Any]


def _check_model(model: str) -> None:
    if not isinstance(model, str):
        raise TypeError(f"model must be a str, got {type(model).__name__}")
    if not model.strip():
        raise ValueError("model must not be empty")


def _refusal(kind: str) -> Handler:
    def copilot_handler(context: TaskContext) -> NoReturn:
        raise TaskExecutionError(
            f"task {context.id} was not run: this version of ttasks can't run Copilot {kind} tasks yet"
        )

    return copilot_handler


def make_copilot_prompt_handler(*, model: str = "gpt-5.4-mini", timeout: float = 60.0) -> Handler:
    """Return a handler for PROMPT tasks. In this version of ttasks it fails each task with one sentence.

    Raises:
        ValueError: `model must not be empty`, or `timeout` is not above 0.
    """
    _check_model(model)
    check_number(timeout, "timeout")
    return _refusal("prompt")


def make_copilot_agent_handler(*, model: str = "gpt-5.5") -> Handler:
    """Return a handler for AGENT tasks. In this version of ttasks it fails each task with one sentence.

    Raises:
        ValueError: `model must not be empty`.
    """
    _check_model(model)
    return _refusal("agent")


class CopilotAgentSession:
    """One Copilot conversation for many AGENT tasks. In this version of ttasks opening one raises RuntimeError."""

    def __init__(self, *, model: str = "gpt-5.5", **_options: Any) -> None:
        _check_model(model)
        self._model = model

    def __enter__(self) -> CopilotAgentSession:
        raise TaskExecutionError("this version of ttasks can't open Copilot sessions yet")

    def __exit__(self, *_: object) -> None:
        """Nothing: it never opens."""


public(make_copilot_prompt_handler, make_copilot_agent_handler, CopilotAgentSession)
