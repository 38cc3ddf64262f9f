"""One prompt of a conversation and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ttasks.handlers.copilot.recorder import Recorder

T = TypeVar("T")


class Turn:
    """One prompt and what comes of it. Any thread may `stop` it; the loop is woken by that."""

    def __init__(self, recorder: Recorder, loop: asyncio.AbstractEventLoop) -> None:
        self.recorder = recorder
        self._loop = loop
        self._changed = asyncio.Event()
        self.finished = asyncio.Event()
        self.may_be_sent = False
        self.stopped_why: str | None = None
        self.error: BaseException | None = None

    def stop(self, why: str) -> None:
        """End the turn before its time; `why` is recorded."""
        self.stopped_why = self.stopped_why or why
        self._loop.call_soon_threadsafe(self._changed.set)

    def fail(self, error: BaseException) -> None:
        """End the turn by an error, on the loop's thread."""
        self.error = self.error or error
        self._changed.set()

    def changed(self) -> None:
        """Look again, on the loop's thread."""
        self._changed.set()

    @property
    def is_over(self) -> bool:
        """True once it has ended by itself, or failed."""
        return self.recorder.is_over or self.error is not None

    @property
    def is_ending(self) -> bool:
        """True once it has ended, or somebody wants it to: nothing more may be done in its name."""
        return self.is_over or self.stopped_why is not None

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, which is looked at again whenever anything happens."""
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do `work`, and return what it returns; None where the turn was stopped before, which cancels it."""
        task = asyncio.ensure_future(work)
        task.add_done_callback(lambda _: self.changed())
        await self.until(lambda: task.done() or self.stopped_why is not None)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
        return None if task.cancelled() else task.result()
