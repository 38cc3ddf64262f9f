"""Who hears what happens: in order, and without harm to the work."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ttasks import EventBus, Task, TaskEvent, TaskEventType, TaskExecutor, TaskGraph, TaskStatus, TaskType, clock


def an_event() -> TaskEvent:
    task = Task.bash("true")
    return TaskEvent(TaskEventType.STARTED, task.id, task, clock.now(), TaskStatus.PENDING, TaskStatus.RUNNING)


def test_an_event_made_by_hand_has_nothing_but_what_it_was_given() -> None:
    event = an_event()
    rest = ["error", "progress_percent", "progress_message", "output_stream", "output_chunk", "record"]
    assert [getattr(event, name) for name in rest] == [None] * 6


def test_an_event_is_frozen() -> None:
    with pytest.raises(AttributeError):
        an_event().error = "x"  # type: ignore[misc]


def test_subscribers_hear_every_event_in_the_order_they_came() -> None:
    bus, heard = EventBus(), []
    bus.subscribe(lambda event: heard.append((1, event)))
    bus.subscribe(lambda event: heard.append((2, event)))
    first, second = an_event(), an_event()
    bus.emit(first)
    bus.emit(second)
    assert heard == [(1, first), (2, first), (1, second), (2, second)]


def test_who_unsubscribed_hears_no_more() -> None:
    bus, heard = EventBus(), []
    unsubscribe = bus.subscribe(heard.append)
    unsubscribe()
    bus.emit(an_event())
    assert heard == []


def test_unsubscribing_twice_takes_nobody_else_away() -> None:
    bus, heard = EventBus(), []
    unsubscribe = bus.subscribe(heard.append)
    bus.subscribe(heard.append)
    unsubscribe()
    unsubscribe()
    bus.emit(an_event())
    assert len(heard) == 1


def test_a_callback_that_subscribed_twice_hears_twice_until_each_is_ended() -> None:
    bus, heard = EventBus(), []
    bus.subscribe(heard.append)
    second = bus.subscribe(heard.append)
    bus.emit(an_event())
    second()
    bus.emit(an_event())
    assert len(heard) == 3


def test_subscribed_listens_inside_the_with_only() -> None:
    bus, heard = EventBus(), []
    inside = an_event()
    bus.emit(an_event())
    with bus.subscribed(heard.append):
        bus.emit(inside)
    bus.emit(an_event())
    assert heard == [inside]


def test_subscribed_ends_also_when_the_with_raises() -> None:
    bus, heard = EventBus(), []
    with pytest.raises(KeyError), bus.subscribed(heard.append):
        raise KeyError
    bus.emit(an_event())
    assert heard == []


@pytest.mark.parametrize("callback", [None, "print", 1])
def test_a_subscriber_has_to_be_callable(callback: Any) -> None:
    bus = EventBus()
    with pytest.raises(TypeError, match="subscriber must be callable"):
        bus.subscribe(callback)
    with pytest.raises(TypeError, match="subscriber must be callable"), bus.subscribed(callback):
        pass


def fail(event: TaskEvent) -> None:
    raise KeyError(event.type)


def test_what_a_subscriber_raises_is_listed_and_the_next_one_hears_all_the_same() -> None:
    bus, heard = EventBus(), []
    bus.subscribe(fail)
    bus.subscribe(heard.append)
    bus.emit(an_event())
    assert [repr(error) for error in bus.errors] == [repr(KeyError(TaskEventType.STARTED))]
    assert len(heard) == 1


def test_the_list_of_errors_is_new_each_time() -> None:
    bus = EventBus()
    bus.subscribe(fail)
    bus.emit(an_event())
    bus.errors.clear()
    assert len(bus.errors) == 1


def test_a_subscriber_that_raises_breaks_neither_a_task_nor_a_graph() -> None:
    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, lambda context: context.emit_progress(50) or "done")
    executor.events.subscribe(fail)
    graph = TaskGraph()
    graph.add(Task.bash("true"))
    assert executor.execute(Task.bash("true")).output == "done"
    assert graph.run(executor).ok
    types = [str(error.args[0]) for error in executor.events.errors]
    assert types == ["started", "progress", "succeeded"] * 2


def test_a_subscriber_may_subscribe_and_unsubscribe_while_it_is_called() -> None:
    bus, heard = EventBus(), []

    def once(event: TaskEvent) -> None:
        unsubscribe()
        bus.subscribe(heard.append)

    unsubscribe = bus.subscribe(once)
    bus.emit(an_event())
    bus.emit(an_event())
    bus.emit(an_event())
    assert len(heard) == 2
    assert bus.errors == []


def test_a_subscriber_may_emit() -> None:
    bus, heard = EventBus(), []
    inner = an_event()
    bus.subscribe(heard.append)
    bus.subscribe(lambda event: bus.emit(inner) if event is not inner else None)
    outer = an_event()
    bus.emit(outer)
    assert heard == [outer, inner]


def test_subscribers_are_called_on_the_thread_that_emits() -> None:
    bus, where = EventBus(), []
    bus.subscribe(lambda event: where.append(threading.current_thread()))
    emitter = threading.Thread(target=bus.emit, args=(an_event(),))
    emitter.start()
    emitter.join()
    assert where == [emitter]


def test_no_event_is_lost_while_others_come_and_go() -> None:
    bus, heard = EventBus(), []
    bus.subscribe(heard.append)
    over = threading.Event()

    def come_and_go() -> None:
        while not over.is_set():
            bus.subscribe(lambda event: None)()

    guests = [threading.Thread(target=come_and_go) for _ in range(4)]
    for guest in guests:
        guest.start()
    for _ in range(500):
        bus.emit(an_event())
    over.set()
    for guest in guests:
        guest.join()
    assert len(heard) == 500
