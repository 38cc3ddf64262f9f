"""An event loop in a thread of its own: no frozen clock stops its time-outs, nobody waits for calls that never end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from ttasks import clock

T = TypeVar("T")

CALL_END_WAIT_S: Final = 0.2
"""How long a thread that was started for a loop may take to end, which it does at once but where a person is asked."""


class _Loop(asyncio.SelectorEventLoop):
    """`calls` are the threads that were started for it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: set[threading.Thread] = set()

    def time(self) -> float:
        # asyncio's own asks time.monotonic, which tests freeze: a time-out that waits for that never comes.
        return clock.monotonic_s()


class LoopThread:
    """An event loop that runs in a thread of its own until it is closed."""

    def __init__(self) -> None:
        self.loop = _Loop()
        self._is_closing = False
        self._closing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ttasks-copilot", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    self.loop.run_until_complete(task)
            self.loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` on the loop and return what it returns; Ctrl-C waits until it is done or has ended."""
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        interruption: BaseException | None = None
        while not done.is_set():
            try:
                clock.wait(done)
            except BaseException as raised:  # noqa: BLE001 - it is raised again as soon as nothing is left half done
                interruption = interruption or raised
        if interruption is not None:
            raise interruption
        return future.result()

    def soon(self, work: Callable[[], object]) -> None:
        """Call `work` on the loop.

        Raises:
            RuntimeError: the loop is closed, or about to be.
        """
        with self._closing:  # what came between its last look and its end would never be called, nor refused
            if self._is_closing:
                raise RuntimeError("CopilotAgentSession is not active: it was closed")
            self.loop.call_soon_threadsafe(work)

    @property
    def is_current(self) -> bool:
        """True on the loop's own thread, which must never wait for it."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """End the loop and its thread."""
        with self._closing:
            self._is_closing = True
            self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        for thread in self.loop.calls:
            thread.join(CALL_END_WAIT_S)


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Call `work` on a thread of its own. Nobody waits for one that never ends: a person may be asked something there.

    (`asyncio.to_thread` has a pool, whose threads are waited for when the loop or the program ends.)
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", value))

    def call() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = work(*arguments)
        except BaseException as raised:  # noqa: BLE001 - whoever waits for it gets it
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, value, error)

    thread = threading.Thread(target=call, name="ttasks-copilot-call", daemon=True)
    if isinstance(loop, _Loop):
        loop.calls = {one for one in loop.calls if one.is_alive()} | {thread}
    thread.start()
    return await done
