"""Functions of the caller's: they have to do their work when they are called, and none may break what calls it."""

from __future__ import annotations

import inspect
import sys
import threading
from functools import partial
from types import AsyncGeneratorType, CoroutineType, FunctionType, GeneratorType, MethodType
from typing import Any, Final

_MADE_BY: Final = (
    (inspect.CO_ASYNC_GENERATOR, "an async generator"),
    (inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE, "a coroutine"),
    (inspect.CO_GENERATOR, "a generator"),
)
_NEVER_RAN: Final[dict[type, str]] = {
    CoroutineType: "a coroutine",
    GeneratorType: "a generator",
    AsyncGeneratorType: "an async generator",
}


def check_runs_when_called(function: object, name: str) -> None:
    """Refuse what can't be called, or whose call runs nothing and only makes a coroutine or generator.

    Raises:
        TypeError: `{name} must be callable`, or it says what a call makes, and what to give in its place.
    """
    if not callable(function):
        raise TypeError(f"{name} must be callable, got {type(function).__name__}")
    made = _makes(function)
    if made is not None:
        raise TypeError(
            f"{name} must do its work when it is called, but calling {_shown(function)} only makes {made}, which would "
            f"never run. {_instead(made)}"
        )


def _makes(function: Any) -> str | None:
    # By `type`, not by isinstance: a mock with a spec passes for an instance of anything.
    while issubclass(type(function), partial | staticmethod | classmethod | MethodType):
        function = function.func if issubclass(type(function), partial) else function.__func__
    if not issubclass(type(function), FunctionType | type):
        made = _by_flags(inspect.getattr_static(type(function), "__call__", None))
        if made is not None:
            return made
    return _by_flags(function)


def _by_flags(function: Any) -> str | None:
    flags = getattr(getattr(function, "__code__", None), "co_flags", None)  # an AsyncMock pretends to have some
    made = next((made for mask, made in _MADE_BY if flags & mask), None) if type(flags) is int else None
    return made or ("a coroutine" if _is_marked(function) else None)


def _is_marked(function: Any) -> bool:
    """True for what passes for a coroutine function though its code is none: a mock of one, or one that says so."""
    of_asyncio = getattr(sys.modules.get("asyncio.coroutines"), "_is_coroutine", None)
    # Since Python 3.12; its name there has changed since.
    of_inspect = getattr(inspect, "_is_coroutine_marker", None) or getattr(inspect, "_is_coroutine_mark", None)
    names = {"_is_coroutine": of_asyncio, "_is_coroutine_marker": of_inspect}
    return any(mark is not None and getattr(function, name, None) is mark for name, mark in names.items())


def never_ran(value: object) -> str | None:
    """Return what `value` is, where it is work that nobody has run: it is closed; None: it is something else."""
    made = _NEVER_RAN.get(type(value))
    if isinstance(value, CoroutineType | GeneratorType):
        try:
            value.close()  # else Python warns that it was never awaited
        except Exception:  # noqa: BLE001 - one that was begun, and minds being closed: it is of no use all the same
            return made
    return made


def check_ran(value: object, what: str) -> None:
    """Refuse what a callback returned in place of doing its work.

    Raises:
        TypeError: it is a coroutine or generator, which was closed.
    """
    made = never_ran(value)
    if made is not None:
        raise TypeError(f"{what} returned {made}, which would never run. {_instead(made)}")


def awaits(value: object) -> str | None:
    """Return what `value` is, where it is not the outcome of work but work yet to be done; None: it is an outcome."""
    made = never_ran(value)
    if made is None and hasattr(type(value), "__await__"):
        return f"{type(value).__name__}, an awaitable"
    return made


def is_signal(error: BaseException) -> bool:
    """True for what ends the program: only that passes through a callback, and only on the main thread."""
    return isinstance(error, KeyboardInterrupt | SystemExit) and threading.current_thread() is threading.main_thread()


def _instead(made: str) -> str:
    if made == "a coroutine":
        return "Give a function that is not async; it may call asyncio.run(…)"
    return "Give a function without yield; it may loop over what yields"


def _shown(function: Any) -> str:
    return getattr(function, "__qualname__", None) or repr(function)
