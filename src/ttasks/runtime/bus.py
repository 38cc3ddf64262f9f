"""`EventBus`: who hears what happens."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ttasks.model.callbacks import check_ran, check_runs_when_called, is_signal
from ttasks.model.event import TaskEvent
from ttasks.public import public

Subscriber = Callable[[TaskEvent], object]


class EventBus:
    """Calls its subscribers, in order, with every event. What one raises is kept in `errors` and harms nobody."""

    def __init__(self) -> None:
        # No lock: a signal handler may come at any line of this, and subscribe. Each change is one step.
        self._subscribers: dict[object, Subscriber] = {}
        self._errors: list[BaseException] = []

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call `callback` with every event from now on; return what ends that, and may be called twice.

        Raises:
            TypeError: `subscriber must be callable`; or a call would do nothing, because it is async or has a yield.
        """
        check_runs_when_called(callback, "subscriber")
        token = object()
        self._subscribers[token] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(token, None)

        return unsubscribe

    @contextlib.contextmanager
    def subscribed(self, callback: Subscriber) -> Iterator[None]:
        """Call `callback` with every event inside the `with`."""
        unsubscribe = self.subscribe(callback)
        try:
            yield
        finally:
            unsubscribe()

    @property
    def has_subscribers(self) -> bool:
        """True when somebody listens."""
        return bool(self._subscribers)

    def emit(self, event: TaskEvent) -> None:
        """Tell every subscriber, in the order they came, on this thread and with no lock held.

        Raises:
            KeyboardInterrupt, SystemExit: a signal came to the main thread meanwhile. Every subscriber was told.
        """
        interruption: BaseException | None = None
        for callback in list(self._subscribers.values()):
            try:
                returned = callback(event)
                if returned is not None:
                    check_ran(returned, "a subscriber")
            except BaseException as error:  # noqa: BLE001 - a subscriber can never break the work it observes
                if is_signal(error):
                    interruption = error
                else:
                    self._errors.append(error)
        if interruption is not None:
            raise interruption

    @property
    def errors(self) -> list[BaseException]:
        """What subscribers raised, oldest first: a new list each time. KeyboardInterrupt and SystemExit are not in it
        where they came on the main thread.
        """
        return list(self._errors)


public(EventBus)
