"""Calls that come in between: by a signal handler, `__del__` or a trace function, on a thread that is inside ttasks.

Such a call must not wait for what its own thread holds, because that never ends. So a thread that records is inside its
section meanwhile. Whatever else would record then is refused, and a cancel is handed over to another thread.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from sys import is_finalizing
from typing import Any, Final

from ttasks import clock
from ttasks.errors import NoThreadError, ReentranceError

EXITING: Final = "the interpreter is ending, so do it before its end"
HANDED_OVER_WAIT_S: Final = 1.0
"""How long closing a store waits for cancels that were handed over."""

_LOCAL = threading.local()
_HANDED_OVER: set[Any] = set()


def section() -> Any:
    """Return what a thread is in (``with section():``) while it records. It may enter it again."""
    # A lock of C's, because a `with` lets go of it whenever Ctrl-C comes. No other thread ever waits for it.
    try:
        return _LOCAL.section
    except AttributeError:
        _LOCAL.section = threading.RLock()
        return _LOCAL.section


def is_mine(lock: Any) -> bool:
    """Return whether this thread holds an RLock."""
    return bool(lock._is_owned())


def is_inside() -> bool:
    """Return whether this thread is inside its section."""
    return is_mine(section())


def refuse(what: str) -> None:
    """Refuse `what` where this thread is inside its section, or the interpreter is ending.

    Raises:
        ReentranceError: it is inside. Nothing was done.
        NoThreadError: no thread can be started any more, which a process needs as well. Nothing was done.
    """
    if is_inside():
        raise ReentranceError(what)
    if not threading.main_thread().is_alive():
        _refuse_at_exit(what)


def _refuse_at_exit(what: str) -> None:
    # Until when threads can be started is another moment in each version of Python. Up to 3.11 they can always, but
    # while modules are cleared away none of them ever runs.
    if is_finalizing():
        raise NoThreadError(what, EXITING)
    try:
        _thread.start_new_thread(_nothing, ())
    except RuntimeError as error:
        raise NoThreadError(what, EXITING) from error


def _nothing() -> None:
    """Show that there are threads."""


def hand_over(call: Callable[[], object], wait_s: float = 0) -> None:
    """Have another thread call `call`, once it gets what this one holds; what that raises goes to `sys.unraisablehook`.

    This one waits for it, but never longer than `wait_s` seconds.

    Raises:
        NoThreadError: there is no other thread to be had. Nothing was done.
    """
    done = _thread.allocate_lock()
    done.acquire()

    def run() -> None:
        try:
            call()
        finally:
            _HANDED_OVER.discard(done)
            done.release()

    _HANDED_OVER.add(done)
    try:
        _thread.start_new_thread(run, ())  # not a Thread: its class has locks, which this thread may be in as well
    except RuntimeError as error:
        _HANDED_OVER.discard(done)
        raise NoThreadError("a cancel while its thread is recording", str(error)) from error
    _wait_for(done, wait_s)


def wait_for_handed_over(seconds: float) -> None:
    """Wait until what was handed over is done, at most so many seconds."""
    deadline_s = clock.monotonic_s() + seconds
    for done in list(_HANDED_OVER):
        _wait_for(done, max(deadline_s - clock.monotonic_s(), 0))


def _wait_for(done: Any, seconds: float) -> None:
    if seconds > 0 and done.acquire(timeout=seconds):
        done.release()  # others may wait for it too


os.register_at_fork(after_in_child=_HANDED_OVER.clear)
