"""The only reader of time, ids, and facts about this host. Every other room gets them as arguments."""

from __future__ import annotations

import contextlib
import os
import pwd
import threading
import time
from datetime import UTC, datetime, timedelta, tzinfo
from queue import Empty, SimpleQueue
from typing import Final

SIGNAL_WAIT_S: Final = 0.1
"""How long a signal may wait for the main thread to look up."""


def now() -> datetime:
    """Return the system clock's time: aware UTC, microseconds, never rounded."""
    return datetime.now(UTC)


def later(seconds: float) -> datetime:
    """Return the time in so many seconds, the last one there is where that is beyond the calendar."""
    try:
        return now() + timedelta(seconds=seconds)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)


def monotonic_s() -> float:
    """Return seconds of the monotonic clock, for durations and time-outs."""
    # Not time.monotonic: tests patch that one, and a time-out that waits for a frozen clock never comes.
    return time.clock_gettime(time.CLOCK_MONOTONIC)


class Wakeup:
    """An event that may be set at any time, also by a signal handler on the thread that is about to wait for it.

    An Event's own lock would make that wait for ever.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._tokens: SimpleQueue[None] = SimpleQueue()

    def set(self) -> None:
        """Let go all who wait, from now on."""
        self._is_set = True
        self._tokens.put(None)

    def clear(self) -> None:
        """Let those who wait from now on wait again. Only who waits may call it."""
        self._is_set = False
        while not self._tokens.empty():
            self._tokens.get()

    def is_set(self) -> bool:
        """True once it was set."""
        return self._is_set

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, at most so many seconds (None: for ever); return whether it is."""
        if not self._is_set:
            with contextlib.suppress(Empty):
                self._tokens.get(timeout=seconds)
                self._tokens.put(None)  # for others who wait
        return self._is_set


def wait(event: threading.Event | Wakeup, seconds: float | None = None) -> bool:
    """Wait for `event`, at most so many seconds (None: for ever); return whether it came."""
    if threading.current_thread() is not threading.main_thread():
        return event.wait(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
    # Python runs its signal handlers in the main thread, when that comes back from a wait. A signal wakes it, but not
    # one that comes between its last look and its falling asleep: so no sleep of it may be long.
    deadline = None if seconds is None else monotonic_s() + seconds
    while not event.is_set():
        left = SIGNAL_WAIT_S if deadline is None else min(deadline - monotonic_s(), SIGNAL_WAIT_S)
        if left <= 0:
            return False
        event.wait(left)
    return True


def aware(moment: datetime, zone: tzinfo = UTC) -> datetime:
    """Return `moment` in `zone`; a naive one is taken as local time (SPEC §2)."""
    return moment.astimezone(zone)


def new_id() -> str:
    """Return a new uuid, version 7 (RFC 9562 §5.7): ids made later sort later.

    Time-ordered ids keep new rows together at the right edge of each b-tree, so a commit touches fewer pages.
    """
    random = int.from_bytes(os.urandom(10), "big")
    value = (time.time_ns() // 1_000_000 & 0xFFFF_FFFF_FFFF) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def user_name() -> str:
    """Return the name of the user this process runs as, its number where it has no name.

    By the system's word, not by $USER, which anybody can set.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def whoami() -> str:
    """Return who acts here, as acts of a person are recorded: ``user@host``."""
    return f"{user_name()}@{os.uname().nodename}"
