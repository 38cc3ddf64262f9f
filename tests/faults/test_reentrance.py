"""A signal handler, `__del__` or a trace function comes in between while its thread records: it ends all the same."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ttasks import (
    InMemoryStore,
    NoThreadError,
    ReentranceError,
    SQLiteStore,
    Task,
    TaskCancelled,
    TaskContext,
    TaskExecutor,
    TaskGraph,
    TaskType,
    TtasksError,
    reentrance,
)
from ttasks.clock import Wakeup
from ttasks.log.reading import Readers
from ttasks.log.transaction import Transaction
from ttasks.log.verify import verify

pytestmark = [pytest.mark.usefixtures("outside_git"), pytest.mark.timeout(60)]
WAIT_S = 30.0
Stores = SQLiteStore | InMemoryStore


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    with SQLiteStore(tmp_path / "ledger.db") if request.param == "file" else InMemoryStore() as made:
        yield made


class Between:
    """Calls what it is told to, once, in the middle of the next commit: the writer's locks are held, and nothing is
    written yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.call: Callable[[], object] | None = None
        commit = Transaction._write

        def between(transaction: Transaction, *arguments: Any) -> None:
            call, self.call = self.call, None
            if call is not None:
                call()
            commit(transaction, *arguments)

        monkeypatch.setattr(Transaction, "_write", between)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    return Between(monkeypatch)


@pytest.fixture
def on_sigterm() -> Iterator[Callable[[Callable[[], object]], None]]:
    """Have SIGTERM call something, on the main thread, wherever that is."""
    before = signal.getsignal(signal.SIGTERM)

    def hear(call: Callable[[], object]) -> None:
        signal.signal(signal.SIGTERM, lambda *_: call())

    yield hear
    signal.signal(signal.SIGTERM, before)


def send_sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)


def refusal_of(call: Callable[[], object]) -> ReentranceError:
    with pytest.raises(ReentranceError, match="Nothing was done: do it in another thread") as refused:
        call()
    return refused.value


# --- cancelling -----------------------------------------------------------------------------------------------------


def test_a_task_is_cancelled_by_a_signal_handler_while_its_start_is_recorded(
    store: Stores, between: Between, on_sigterm: Callable[[Callable[[], object]], None]
) -> None:
    task, cancelled = Task.bash("…"), threading.Event()
    executor = TaskExecutor(store)

    def wait_for_cancel(context: TaskContext) -> None:
        assert context._port is not None
        context._port.on_cancel(cancelled.set)
        assert cancelled.wait(WAIT_S)

    executor.register(TaskType.BASH, wait_for_cancel)
    on_sigterm(lambda: executor.cancel(task))
    between.call = send_sigterm

    with pytest.raises(TaskCancelled):
        executor.execute(task)

    assert task.is_cancelled and store.tasks[task.id].is_cancelled


WAYS: dict[str, Callable[[Stores, TaskExecutor, Task], object]] = {
    "executor.cancel": lambda _, executor, task: executor.cancel(task),
    "store.tasks.cancel": lambda store, _, task: store.tasks.cancel(task.id),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_task_that_waits_is_cancelled_by_a_signal_handler_as_soon_as_the_append_in_hand_is_done(
    store: Stores, between: Between, on_sigterm: Callable[[Callable[[], object]], None], way: str
) -> None:
    executor, waiting, saved = TaskExecutor(store), Task.bash("true"), Task.bash("true")
    store.tasks.save(waiting)
    on_sigterm(lambda: WAYS[way](store, executor, waiting))
    between.call = send_sigterm

    store.tasks.save(saved)
    reentrance.wait_for_handed_over(WAIT_S)

    assert saved.id in store.tasks
    assert store.tasks[waiting.id].is_cancelled


@pytest.mark.parametrize("kind", ["task", "graph"])
def test_a_task_is_cancelled_by_a_signal_handler_while_its_thread_deletes_another(
    store: Stores, between: Between, on_sigterm: Callable[[Callable[[], object]], None], kind: str
) -> None:
    waiting, task, graph = Task.bash("true"), Task.bash("true"), TaskGraph()
    store.tasks.save(waiting)
    store.tasks.save(task)
    store.graphs.save(graph)
    on_sigterm(lambda: store.tasks.cancel(waiting.id))
    between.call = send_sigterm

    if kind == "task":
        del store.tasks[task.id]
    else:
        del store.graphs[graph.id]
    reentrance.wait_for_handed_over(WAIT_S)

    assert store.tasks[waiting.id].is_cancelled
    assert task.id not in store.tasks or graph.id not in store.graphs


def test_a_run_is_cancelled_by_a_signal_handler_while_its_thread_records(
    store: Stores, between: Between, on_sigterm: Callable[[Callable[[], object]], None]
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    def wait_for_cancel(context: TaskContext) -> None:
        assert context._port is not None
        context._port.on_cancel(cancelled.set)
        begun.set()
        assert cancelled.wait(WAIT_S)

    executor, graph = TaskExecutor(store), TaskGraph()
    executor.register(TaskType.BASH, wait_for_cancel)
    graph.add(Task.bash("…"))
    running = threading.Thread(target=graph.run, args=(executor,))
    running.start()
    assert begun.wait(WAIT_S)
    on_sigterm(lambda: store.graphs.cancel(graph.id))
    between.call = send_sigterm

    store.tasks.save(Task.bash("true"))
    running.join(WAIT_S)

    assert str(graph.run_status) == "cancelled"


def test_a_handle_that_is_being_changed_is_cancelled_after_that() -> None:
    task = Task.bash("true")

    with task._lock:
        task.cancel()
        assert not task.is_cancelled
    reentrance.wait_for_handed_over(WAIT_S)

    assert task.is_cancelled


def test_closing_a_store_waits_for_a_cancel_that_was_handed_over(tmp_path: Path, between: Between) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store:
        task = Task.bash("true")
        store.tasks.save(task)
        between.call = lambda: store.tasks.cancel(task.id)
        store.tasks.save(Task.bash("true"))

    with SQLiteStore(path, read_only=True) as store:
        assert store.tasks[task.id].is_cancelled


def test_several_can_wait_for_what_was_handed_over() -> None:
    begun, may_end = threading.Event(), threading.Event()
    reentrance.hand_over(lambda: (begun.set(), may_end.wait(WAIT_S)))
    assert begun.wait(WAIT_S)
    (done,) = reentrance._HANDED_OVER
    waiting = [threading.Thread(target=reentrance.wait_for_handed_over, args=(WAIT_S,)) for _ in range(2)]
    for each in waiting:
        each.start()

    may_end.set()
    for each in waiting:
        each.join(WAIT_S / 2)

    assert not any(each.is_alive() for each in waiting)
    assert not done.locked()


def test_where_no_thread_is_to_be_had_a_cancel_is_refused(
    store: Stores, between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_thread(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    task, refused = Task.bash("true"), []
    store.tasks.save(task)
    monkeypatch.setattr(reentrance._thread, "start_new_thread", no_thread)

    def cancel() -> None:
        with pytest.raises(NoThreadError, match=r"can't start new thread\. Nothing was done"):
            store.tasks.cancel(task.id)
        refused.append(True)

    between.call = cancel
    store.tasks.save(Task.bash("true"))

    assert refused == [True]
    reentrance.wait_for_handed_over(0)
    assert store.tasks[task.id].is_pending


def test_all_who_wait_for_what_was_handed_over_go_on_when_it_is_done() -> None:
    go, waited = threading.Event(), threading.Event()

    def wait() -> None:
        reentrance.hand_over(go.wait, WAIT_S)
        waited.set()

    threading.Thread(target=wait, daemon=True).start()
    while not reentrance._HANDED_OVER:
        assert not waited.wait(0.001)
    also = threading.Thread(target=reentrance.wait_for_handed_over, args=[10 * WAIT_S], daemon=True)
    also.start()
    go.set()

    assert waited.wait(WAIT_S)
    also.join(WAIT_S)
    assert not also.is_alive()


# --- what is refused ------------------------------------------------------------------------------------------------


def other_graph() -> TaskGraph:
    graph = TaskGraph()
    graph.add(Task.bash("true"))
    return graph


REFUSED: dict[str, Callable[[Stores, TaskExecutor, Task], object]] = {
    "execute": lambda _, executor, __: executor.execute(Task.bash("true")),
    "submit": lambda _, executor, __: executor.submit(Task.bash("true")),
    "run": lambda _, executor, __: other_graph().run(executor),
    "resume": lambda _, executor, __: executor.resume(),
    "shutdown": lambda _, executor, __: executor.shutdown(),
    "mark_blocked": lambda _, executor, task: executor.mark_blocked(task, "x"),
    "save a task": lambda store, _, __: store.tasks.save(Task.bash("true")),
    "save a graph": lambda store, _, __: store.graphs.save(other_graph()),
    "delete": lambda store, _, task: store.tasks.__delitem__(task.id),
    "resolve": lambda store, _, task: store.tasks.resolve(task.id, "failed"),
    "close": lambda store, _, __: store.close(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_record_inside_an_append_is_refused_and_nothing_of_it_happens(
    store: Stores, between: Between, on_sigterm: Callable[[Callable[[], object]], None], what: str
) -> None:
    executor, kept, saved, refused = TaskExecutor(store), Task.bash("true"), Task.bash("true"), []
    store.tasks.save(kept)
    on_sigterm(lambda: refused.append(refusal_of(lambda: REFUSED[what](store, executor, kept))))
    between.call = send_sigterm

    store.tasks.save(saved)

    assert len(refused) == 1
    assert set(store.tasks) == {kept.id, saved.id}
    assert list(store.graphs) == []
    assert kept.is_pending
    executor.shutdown()


def test_what_is_in_a_file_can_be_read_inside_an_append(tmp_path: Path, between: Between) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        before, read = Task.bash("true"), []
        store.tasks.save(before)
        between.call = lambda: read.extend([list(store.tasks), [event.type for event in store.events(limit=1)]])

        store.tasks.save(Task.bash("true"))

    assert read == [[before.id], ["LedgerCreated"]]


def test_reading_the_log_of_a_ledger_in_memory_inside_an_append_is_refused(between: Between) -> None:
    with InMemoryStore() as store:
        store.tasks.save(Task.bash("true"))
        refused: list[ReentranceError] = []
        between.call = lambda: refused.append(refusal_of(lambda: list(store.events)))

        store.tasks.save(Task.bash("true"))

        assert len(refused) == 1
        assert len(list(store.events)) == 4


def test_del_inside_an_append_runs_nothing_and_leaves_no_start(store: Stores, between: Between) -> None:
    executor, refused = TaskExecutor(store), []

    class Runs:
        def __init__(self) -> None:
            self.itself = self  # only the garbage collector finds it

        def __del__(self) -> None:
            refused.append(refusal_of(lambda: executor.execute(Task.bash("true", title="late"))))

    def collect() -> None:
        Runs()
        gc.collect()

    between.call = collect
    saved = Task.bash("true")
    store.tasks.save(saved)

    assert [error.what for error in refused] == ["running a task"]
    assert list(store.tasks) == [saved.id]
    assert [event.type for event in store.events] == ["LedgerCreated", "RunnerStarted", "TaskCreated"]


def test_a_handle_refuses_to_be_changed_inside_of_its_own_change() -> None:
    task = Task.bash("true", title="before")

    with task._lock:
        for change in (lambda: setattr(task, "title", "after"), lambda: task.transition_to(task.status)):
            assert "a change of task 'before'" in str(refusal_of(change))

    assert task.title == "before"


def test_a_ledger_can_not_be_opened_inside_the_opening_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, refused = tmp_path / "ledger.db", []
    is_empty = Transaction.is_empty

    def opening(transaction: Transaction) -> bool:
        refused.append(refusal_of(lambda: SQLiteStore(path)))
        return is_empty(transaction)

    monkeypatch.setattr(Transaction, "is_empty", opening)
    SQLiteStore(path).close()

    assert {error.what for error in refused} == {"opening a ledger"}


def test_rebuilding_inside_an_append_is_refused(tmp_path: Path, between: Between) -> None:
    with SQLiteStore(tmp_path / "ledger.db") as store:
        refused: list[ReentranceError] = []
        log = store._writable()
        between.call = lambda: refused.append(refusal_of(lambda: log.replace_rows([], lambda _: 0)))

        store.tasks.save(Task.bash("true"))

    assert [error.what for error in refused] == ["making the rows again"]


def test_the_refusal_can_be_pickled() -> None:
    kind, arguments = ReentranceError("an append").__reduce__()  # type: ignore[misc]

    assert str(kind(*arguments)) == str(ReentranceError("an append"))
    assert issubclass(kind, TtasksError)


# --- waking ---------------------------------------------------------------------------------------------------------


def test_a_wakeup_stays_set_for_all_who_wait_until_it_is_cleared() -> None:
    wakeup = Wakeup()
    assert wakeup.wait(0) is False and not wakeup.is_set()
    woken: list[bool] = []
    waiting = [threading.Thread(target=lambda: woken.append(wakeup.wait())) for _ in range(3)]
    for thread in waiting:
        thread.start()

    wakeup.set()
    for thread in waiting:
        thread.join(WAIT_S)

    assert woken == [True] * 3
    assert wakeup.wait() and wakeup.is_set()
    wakeup.clear()
    assert wakeup.wait(0) is False


# --- at every line --------------------------------------------------------------------------------------------------

CAMPAIGN = os.environ.get("TTASKS_CAMPAIGN") == "full"
TRACED = """
import faulthandler, sys
from ttasks import *
from ttasks import reentrance

faulthandler.dump_traceback_later(90, exit=True)
kind, call, step = sys.argv[1], sys.argv[2], int(sys.argv[3])
path = sys.argv[4]

def run(at):
    store = SQLiteStore(path) if kind == "file" else InMemoryStore()
    executor = TaskExecutor(store)
    executor.register(TaskType.BASH, lambda context: context.emit_progress(5, "x"))
    task, other = Task.bash("true"), Task.bash("true")
    store.tasks.save(other)
    calls = {
        "executor.cancel": lambda: executor.cancel(task),
        "task.cancel": task.cancel,
        "store.cancel": lambda: store.tasks.cancel(other.id),
        "save": lambda: store.tasks.save(other),
        "read": lambda: [list(store.tasks), list(store.events(limit=3))],
        "execute": lambda: executor.execute(Task.bash("true")),
        "graph": lambda: TaskGraph().run(executor),
        "submit": lambda: executor.submit(Task.bash("true")),
        "open": lambda: SQLiteStore(path).close(),
    }
    lines = 0

    def trace(frame, event, _):
        nonlocal lines
        if "/ttasks/" not in frame.f_code.co_filename and "threading.py" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        if lines == at and event == "line":
            sys.settrace(None)
            try:
                calls[call]()
            except ReentranceError:
                pass
        return trace

    sys.settrace(trace)
    try:
        executor.execute(task)
    except (TaskCancelled, TransitionError):
        assert task.is_cancelled
    finally:
        sys.settrace(None)
    reentrance.wait_for_handed_over(30)
    assert task.status in (TaskStatus.CANCELLED, TaskStatus.SUCCEEDED), (at, task.status)
    assert call != "store.cancel" or not 0 < at < lines or store.tasks[other.id].is_cancelled, at
    recorded = store.tasks.get(task.id)
    assert task.is_cancelled or recorded.status is task.status, at
    executor.shutdown()
    store.close()
    return lines

run(-1)
count = run(-1)
for at in range(1, count, step):
    run(at)
"""


@pytest.mark.parametrize("call", ["executor.cancel", "task.cancel", "store.cancel", "save", "read", "execute", "open"])
@pytest.mark.parametrize("kind", ["file", "memory"])
@pytest.mark.campaign
def test_whatever_comes_in_between_at_any_line_of_an_execution_it_ends(tmp_path: Path, kind: str, call: str) -> None:
    path = tmp_path / "ledger.db"
    step = "17" if CAMPAIGN else "151"

    done = subprocess.run(
        [sys.executable, "-c", TRACED, kind, call, step, str(path)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stderr) == (0, "")
    if kind == "file":
        assert verify(Readers.open(path)).problems == []
