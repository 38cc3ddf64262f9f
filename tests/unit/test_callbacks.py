"""Functions of the caller's: what would never run is refused, and nothing but a signal passes through them."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import types
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, create_autospec

import pytest

from ttasks import (
    CopilotAgentSession,
    EventBus,
    InMemoryStore,
    RetryPolicy,
    Task,
    TaskContext,
    TaskEvent,
    TaskEventType,
    TaskExecutionError,
    TaskExecutor,
    TaskGraph,
    TaskType,
    make_copilot_agent_handler,
)


async def coroutine(given: Any) -> None:
    pass


def generator(given: Any) -> Iterator[None]:
    yield


async def async_generator(given: Any) -> AsyncIterator[None]:
    yield


@types.coroutine
def old_coroutine(given: Any) -> Generator[None, None, None]:
    yield


class Async:
    async def __call__(self, given: Any) -> None:
        pass

    async def method(self, given: Any) -> None:
        pass

    @staticmethod
    async def static(given: Any) -> None:
        pass

    @classmethod
    async def of_class(cls, given: Any) -> None:
        pass


class Yields:
    def __call__(self, given: Any) -> Iterator[None]:
        yield


def plain(given: Any) -> None:
    pass


class Works:
    def __call__(self, given: Any) -> str:
        return "done"


NEVER_RUN: dict[str, Callable[..., Any]] = {
    "async def": coroutine,
    "async lambda": lambda given: (yield),
    "yield": generator,
    "async yield": async_generator,
    "types.coroutine": old_coroutine,
    "async __call__": Async(),
    "yield in __call__": Yields(),
    "async method": Async().method,
    "async static method": Async.static,
    "async class method": Async.of_class,
    "partial": functools.partial(coroutine),
    "partial of a partial": functools.partial(functools.partial(generator)),
    "partial of an object": functools.partial(Async()),
    "partial of a method": functools.partial(Async().method),
    "AsyncMock": AsyncMock(),
    "mock of an async function": MagicMock(spec=coroutine),
    "AsyncMock with a spec": AsyncMock(spec=coroutine),
    "autospec": create_autospec(coroutine),
    "partial of a mock": functools.partial(AsyncMock()),
}
if hasattr(inspect, "markcoroutinefunction"):
    NEVER_RUN["marked"] = inspect.markcoroutinefunction(Works())

RUN: dict[str, Callable[..., Any]] = {
    "def": lambda given: None,
    "object": Works(),
    "method": [].append,
    "class": Works,
    "built-in": len,
    "partial": functools.partial(len),
    "Mock": Mock(),
    "MagicMock": MagicMock(),
    "mock with a spec": MagicMock(spec=plain),
    "autospec": create_autospec(Works()),
    "wrapper of async": functools.wraps(coroutine)(lambda given: asyncio.run(coroutine(given))),
}


@pytest.fixture(autouse=True)
def _nothing_is_left_unawaited() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


TAKERS: dict[str, Callable[[Any], object]] = {
    "handler": lambda given: TaskExecutor.empty().register(TaskType.BASH, given),
    "subscriber": lambda given: EventBus().subscribe(given),
    "subscriber in a with": lambda given: EventBus().subscribed(given).__enter__(),
    "retry_on": lambda given: RetryPolicy(2, retry_on=given),
    "progress_emitter": lambda given: TaskContext(Task.bash(""), progress_emitter=given),
    "on_event": lambda given: CopilotAgentSession(on_event=given),
    "session.on": lambda given: CopilotAgentSession().on(given),
    "permissions": lambda given: make_copilot_agent_handler(permissions=given),
}


REFUSED = r"must do its work when it is called, but calling .* only makes an? .*Give a"


@pytest.mark.parametrize("kind", NEVER_RUN)
def test_a_function_whose_call_runs_nothing_is_refused(kind: str) -> None:
    with pytest.raises(TypeError, match=f"^handler {REFUSED}"):
        TaskExecutor.empty().register(TaskType.BASH, NEVER_RUN[kind])


@pytest.mark.parametrize("kind", RUN)
def test_a_function_that_runs_when_it_is_called_is_taken(kind: str) -> None:
    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, RUN[kind])
    assert executor.is_registered(TaskType.BASH)


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize("kind", ["async def", "yield", "AsyncMock"])
def test_every_place_that_takes_a_function_refuses_one_that_would_never_run(taker: str, kind: str) -> None:
    with pytest.raises(TypeError, match=REFUSED):
        TAKERS[taker](NEVER_RUN[kind])
    TAKERS[taker](RUN["def"])


@pytest.mark.parametrize("taker", TAKERS)
def test_what_can_not_be_called_is_refused(taker: str) -> None:
    with pytest.raises(TypeError, match="callable"):
        TAKERS[taker](object())


def test_a_refused_handler_leaves_the_one_before() -> None:
    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, lambda _: "done")
    with pytest.raises(TypeError):
        executor.register(TaskType.BASH, coroutine)
    assert executor.execute(Task.bash("")).output == "done"


class Awaitable:
    def __await__(self) -> Generator[None, None, None]:
        yield


RETURNED: dict[str, Callable[[], Any]] = {
    "a coroutine": lambda: coroutine(None),
    "a generator": lambda: generator(None),
    "an async generator": lambda: async_generator(None),
    "a generator ": lambda: (item for item in "ab"),
    "Awaitable, an awaitable": Awaitable,
}


@pytest.mark.parametrize("kind", RETURNED)
def test_a_handler_that_returns_work_that_was_not_done_fails(kind: str) -> None:
    store = InMemoryStore()
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, lambda _: RETURNED[kind]())
    task = Task.bash("")

    with pytest.raises(TaskExecutionError, match=f"returned {kind.strip()}: the work was not done"):
        executor.execute(task)

    assert task.is_failed
    assert store.tasks[task.id].result is not None


def test_in_a_graph_work_that_was_not_done_blocks_what_depends_on_it() -> None:
    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, lambda _: coroutine(None))
    graph = TaskGraph()
    first, second = graph.add(Task.bash("")), Task.bash("")
    graph.add(second, after=[first])

    graph.run(executor)

    assert (first.is_failed, second.is_blocked) == (True, True)


def test_a_generator_that_minds_being_closed_fails_its_task_all_the_same() -> None:
    def stubborn() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise ValueError

    def work(_: TaskContext) -> Iterator[int]:
        begun = stubborn()
        next(begun)
        return begun

    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, lambda context: work(context))
    with pytest.raises(TaskExecutionError, match="returned a generator"):
        executor.execute(Task.bash(""))


def fails(_: TaskContext) -> None:
    raise ValueError("it fails")


def test_a_retry_on_that_returns_a_coroutine_is_an_error_and_no_retry() -> None:
    executor = TaskExecutor.empty()
    executor.register(TaskType.BASH, fails)
    task = Task.bash("")
    policy = RetryPolicy(3, retry_on=lambda error: coroutine(error))  # type: ignore[arg-type,return-value]

    with pytest.raises(TypeError, match="retry_on returned a coroutine"):
        executor.execute(task, retry_policy=policy)

    assert (task.attempts, task.error) == (1, "it fails")


def test_a_subscriber_that_returns_a_coroutine_is_listed() -> None:
    bus = EventBus()
    bus.subscribe(lambda event: coroutine(event))
    bus.emit(TaskEvent(TaskEventType.STARTED, "", Task.bash(""), None, None, None))  # type: ignore[arg-type]
    assert [str(error)[:37] for error in bus.errors] == ["a subscriber returned a coroutine, wh"]


class Loose:
    """A store of a user's own, whose `save` is `given`."""

    def __init__(self, given: Callable[[object], object]) -> None:
        self.tasks = self.graphs = self
        self.save = given


def test_a_store_whose_save_is_async_saved_nothing_and_is_listed() -> None:
    executor = TaskExecutor.empty(Loose(coroutine))  # type: ignore[arg-type]
    executor.register(TaskType.BASH, lambda _: "done")
    executor.execute(Task.bash(""))
    assert [str(error)[:25] for _, error in executor.persistence_errors] == ["save returned a coroutine"] * 2


# --- what may pass ---------------------------------------------------------------------------------------------------


class Own(BaseException):
    """Somebody's own, outside of Exception."""


OTHERS = [GeneratorExit, asyncio.CancelledError, Own, BaseException]
SIGNALS = [KeyboardInterrupt, SystemExit]


def raising(kind: type[BaseException]) -> Callable[[object], object]:
    def raise_it(_: object) -> object:
        raise kind

    return raise_it


@pytest.mark.parametrize("kind", OTHERS)
def test_a_subscriber_breaks_no_task_by_any_other_exception_on_the_main_thread(kind: type[BaseException]) -> None:
    assert threading.current_thread() is threading.main_thread()
    store = InMemoryStore()
    executor = TaskExecutor.empty(store)
    executor.register(TaskType.BASH, lambda _: "done")
    executor.events.subscribe(raising(kind))
    task = Task.bash("")

    assert executor.execute(task).output == "done"

    assert [type(error) for error in executor.events.errors] == [kind] * 2
    assert store.tasks[task.id].is_succeeded


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_passes_through_a_subscriber_on_the_main_thread(kind: type[BaseException]) -> None:
    bus = EventBus()
    bus.subscribe(raising(kind))
    with pytest.raises(kind):
        bus.emit(TaskEvent(TaskEventType.STARTED, "", Task.bash(""), None, None, None))  # type: ignore[arg-type]
    assert bus.errors == []


@pytest.mark.parametrize("kind", OTHERS)
def test_a_store_of_a_users_own_breaks_nothing_by_any_other_exception(kind: type[BaseException]) -> None:
    executor = TaskExecutor.empty(Loose(raising(kind)))  # type: ignore[arg-type]
    executor.register(TaskType.BASH, lambda _: "done")
    task = Task.bash("")

    assert executor.execute(task).output == "done"

    assert [type(error) for _, error in executor.persistence_errors] == [kind] * 2


@pytest.mark.parametrize("kind", SIGNALS)
def test_a_signal_passes_through_a_store_of_a_users_own_and_leaves_no_task_running(kind: type[BaseException]) -> None:
    executor = TaskExecutor.empty(Loose(raising(kind)))  # type: ignore[arg-type]
    executor.register(TaskType.BASH, lambda _: "done")
    task = Task.bash("")
    with pytest.raises(kind):
        executor.execute(task)
    assert not task.is_running


@pytest.mark.parametrize("kind", OTHERS)
def test_a_retry_on_that_raises_any_exception_leaves_the_task_failed(kind: type[BaseException]) -> None:
    executor = TaskExecutor.empty(InMemoryStore())
    executor.register(TaskType.BASH, fails)
    task = Task.bash("")

    with pytest.raises(kind) as raised:
        executor.execute(task, retry_policy=RetryPolicy(3, retry_on=raising(kind)))  # type: ignore[arg-type]

    assert isinstance(raised.value.__cause__, ValueError)
    assert (task.is_failed, task.attempts, task.error) == (True, 1, "it fails")


@pytest.mark.parametrize("kind", [*OTHERS, *SIGNALS])
def test_what_a_subscriber_of_an_agent_raises_is_listed(kind: type[BaseException]) -> None:
    session = CopilotAgentSession(on_event=raising(kind))
    session.on(lambda event: coroutine(event))
    thread = threading.Thread(target=session._publish, args=(None,))
    thread.start()
    thread.join()
    first, second = session.event_errors
    assert isinstance(first.__cause__, kind)
    assert "returned a coroutine" in str(second)
