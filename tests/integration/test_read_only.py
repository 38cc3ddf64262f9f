"""Looking at a ledger: on copies that can't be written, after crashes, and while others write. It leaves no trace."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from ttasks import (
    DamagedLedgerError,
    LedgerUnwritableError,
    NotALedgerError,
    RecordedEvent,
    SQLiteStore,
    Task,
    TaskExecutor,
    TaskGraph,
    TaskType,
)
from ttasks.events.facts import TaskCancelRequested, TaskRevised, TaskStarted
from ttasks.log import files
from ttasks.log.event_log import EventLog
from ttasks.log.files import Fingerprint
from ttasks.log.listener import Listener
from ttasks.log.migrate import SCHEMA_VERSION
from ttasks.log.reading import READ_AGAIN_MAX, Readers
from ttasks.log.transaction import Batch
from ttasks.log.verify import verify

pytestmark = pytest.mark.usefixtures("outside_git")
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where a ledger is to be, in a folder of its own."""
    (tmp_path / "ledgers").mkdir()
    return tmp_path / "ledgers" / "ledger.db"


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Give a folder that any user can get to, which pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="ttasks-"))
    folder.chmod(0o755)
    yield folder
    for inside in [folder, *folder.iterdir()]:
        if inside.is_dir():
            inside.chmod(0o755)
    shutil.rmtree(folder)


def fill(path: Path) -> tuple[Task, TaskGraph]:
    """Make a ledger with a task that printed something and a graph that was run, and close it."""
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        task = Task.bash("echo out", title="told")
        executor.execute(task)
        graph = TaskGraph(title="g")
        graph.add(Task.bash("exit 3", title="bad"))
        graph.run(executor)
    return task, graph


LOOK = """
    task, graph = store.tasks[sys.argv[2]], store.graphs[sys.argv[3]]
    print(task.title, task.status, task.result.output.strip(), graph.ok, [each.status.value for each in graph])
    print(len(store.events) == list(store.events)[-1].position, [run.status.value for run in store.runs])
    print([event.type for event in store.history(graph)], [event.position for event in store.events.follow(timeout=0)])
    past = store.as_of(store.history(task)[0].position)
    print(past.tasks[task.id].status, len(past.graphs))
    try:
        store.tasks.save(Task.bash("true"))
    except LedgerUnwritableError as error:
        print("refused")
"""
SEEN = """\
told succeeded out False ['failed']
True ['failed']
['GraphCreated', 'GraphRunStarted', 'GraphRunFinished'] []
pending 0
refused
"""


def look(path: Path, task: Task, graph: TaskGraph) -> str:
    """Return what somebody sees who can read the ledger and write nothing, also where these tests are run by root."""
    program = f"""
        import os, sys
        from ttasks import *
        if os.getuid() == 0:
            os.setgroups([])
            os.setgid({NOBODY})
            os.setuid({NOBODY})
        try:
            open(os.path.dirname(sys.argv[1]) + "/probe", "w")
        except PermissionError:
            pass
        else:
            sys.exit("the folder can be written")
        with SQLiteStore(sys.argv[1], read_only=True) as store:
    """
    text = textwrap.dedent(program) + textwrap.indent(textwrap.dedent(LOOK), "    ")
    arguments = [sys.executable, "-c", text, str(path), task.id, graph.id]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def everything_in(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def copy(path: Path, folder: Path, *endings: str) -> Path:
    """Copy a ledger and its side files into a folder that can't be written, nor anything in it."""
    folder.mkdir()
    for ending in ("", *endings):
        target = folder / f"ledger.db{ending}"
        shutil.copyfile(path.with_name(path.name + ending), target)
        target.chmod(0o444)
    folder.chmod(0o555)
    return folder / "ledger.db"


# --- cold ------------------------------------------------------------------------------------------------------------


def test_looking_at_a_ledger_that_nobody_has_open_leaves_the_folder_as_it_was(path: Path) -> None:
    task, graph = fill(path)
    for beside in path.parent.glob("ledger.db-*"):
        beside.unlink()
    before = everything_in(path.parent)
    with SQLiteStore(path, read_only=True) as store:
        assert store.tasks[task.id].result.output == "out\n"  # type: ignore[union-attr]
        assert [run.graph_id for run in store.runs] == [graph.id]
        assert everything_in(path.parent) == before
    assert verify(Readers.open(path)).is_clean
    assert list(before) == ["ledger.db"]
    assert everything_in(path.parent) == before


def test_a_cold_copy_in_a_folder_that_can_t_be_written_shows_everything(path: Path, elsewhere: Path) -> None:
    task, graph = fill(path)
    copied = copy(path, elsewhere / "archive")
    before = everything_in(copied.parent)
    assert look(copied, task, graph) == SEEN
    assert everything_in(copied.parent) == before


def test_a_copy_made_by_vacuum_shows_everything(path: Path, elsewhere: Path) -> None:
    task, graph = fill(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM INTO ?", (str(path.with_name("copy")),))
    (elsewhere / "archive").mkdir()
    copied = Path(shutil.copyfile(path.with_name("copy"), elsewhere / "archive" / "ledger.db"))
    copied.chmod(0o444)
    copied.parent.chmod(0o555)
    assert look(copied, task, graph) == SEEN


@pytest.fixture
def killed(path: Path) -> tuple[Path, Task, TaskGraph]:
    """Leave a ledger behind as a killed process does: what was recorded last is only in its WAL."""
    task, graph = fill(path)
    program = """
        import os, signal, sys
        from ttasks import *
        store = SQLiteStore(sys.argv[1])
        store.tasks.save(Task.bash("true", title="the last one"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.with_name("ledger.db-wal").stat().st_size > 0
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        (in_file,) = connection.execute("SELECT count(*) FROM tasks WHERE title = 'the last one'").fetchone()
    assert in_file == 0
    return path, task, graph


@pytest.mark.parametrize("endings", [("-wal",), ("-wal", "-shm")], ids=["with its WAL", "with its WAL and index"])
def test_a_copy_of_what_a_killed_process_left_shows_everything_in_a_folder_that_can_t_be_written(
    killed: tuple[Path, Task, TaskGraph], elsewhere: Path, endings: tuple[str, ...]
) -> None:
    path, task, graph = killed
    copied = copy(path, elsewhere / "archive", *endings)
    before = everything_in(copied.parent)
    assert look(copied, task, graph) == SEEN
    assert everything_in(copied.parent) == before
    with SQLiteStore(copied, read_only=True) as store:
        assert [each.title for each in store.tasks.values()][-1] == "the last one"


def test_looking_at_what_a_killed_process_left_changes_neither_file_nor_wal(
    killed: tuple[Path, Task, TaskGraph],
) -> None:
    path, task, _ = killed
    before = everything_in(path.parent)
    with SQLiteStore(path, read_only=True) as store:
        assert [each.title for each in store.tasks.values()][-1] == "the last one"
    after = everything_in(path.parent)
    assert set(after) == set(before)
    for name in ("ledger.db", "ledger.db-wal"):
        assert after[name] == before[name]
    with SQLiteStore(path) as store:
        assert task in store.tasks


def test_reading_without_locks_notices_who_writes_meanwhile_and_reads_again(path: Path) -> None:
    task, _ = fill(path)
    readers = Readers.open(path)
    asked: list[str] = []

    def question(connection: sqlite3.Connection) -> tuple[str, str]:
        query = "SELECT title FROM tasks WHERE id = ?"
        (before,) = connection.execute(query, (task.id,)).fetchone()
        asked.append(before)
        if len(asked) == 1:
            log = EventLog.open(path)
            log.append(Batch(f"task-{task.id}", [], log.readers.version(f"task-{task.id}")))
            with SQLiteStore(path) as store:
                store.tasks.save(Task.bash("true"))
            log.close()
            with closing(sqlite3.connect(path)) as rude:  # what a checkpoint does under a reader without locks
                rude.execute("UPDATE tasks SET title = 'another' WHERE id = ?", (task.id,))
                rude.commit()
        (after,) = connection.execute(query, (task.id,)).fetchone()
        return before, after

    assert readers.ask(question) == ("another", "another")
    assert asked == ["told", "another"]
    readers.close()


def test_what_can_not_be_read_without_locks_while_somebody_writes_is_read_again(path: Path) -> None:
    task, _ = fill(path)
    content = path.read_bytes()
    readers = Readers.open(path)
    failed: list[sqlite3.DatabaseError] = []

    def question(connection: sqlite3.Connection) -> str:
        if not failed:
            path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))  # half written
        try:
            (title,) = connection.execute("SELECT title FROM tasks WHERE id = ?", (task.id,)).fetchone()
        except sqlite3.DatabaseError as error:
            failed.append(error)
            path.write_bytes(content)
            raise
        return str(title)

    assert readers.ask(question) == "told"
    assert len(failed) == 1
    readers.close()


def test_reading_without_locks_gives_up_when_somebody_writes_each_time(path: Path) -> None:
    fill(path)
    readers = Readers.open(path)
    asked: list[None] = []

    def question(connection: sqlite3.Connection) -> None:
        asked.append(None)
        stamp = path.stat().st_mtime_ns + 1_000_000_000
        os.utime(path, ns=(stamp, stamp))

    with pytest.raises(LedgerUnwritableError, match="was written to while it was read; read it again"):
        readers.ask(question)
    assert len(asked) == READ_AGAIN_MAX


def test_a_store_that_looked_before_anybody_wrote_shows_what_is_written_afterwards(path: Path) -> None:
    fill(path)
    with SQLiteStore(path, read_only=True) as looking:
        assert len(looking.tasks) == 2
        following = looking.events(type="TaskCreated", limit=2).follow(timeout=30)
        with SQLiteStore(path) as store:
            store.tasks.save(Task.bash("true", title="while it is open"))
            assert len(looking.tasks) == 3
            assert next(following).data["title"] == "while it is open"
        assert len(looking.tasks) == 3
        with SQLiteStore(path) as store:
            store.tasks.save(Task.bash("true", title="and again"))
        assert len(looking.tasks) == 4
        assert next(following).data["title"] == "and again"
        assert verify(looking._readers).is_clean


def test_who_listens_for_cancels_keeps_no_connection_that_is_read_without_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = fill(path)
    looked, heard = threading.Event(), threading.Event()
    open_reader = files.open_reader

    def opening(opened: Path) -> tuple[sqlite3.Connection, Fingerprint | None]:
        connection, before = open_reader(opened)
        if before is not None:
            looked.set()
        return connection, before

    monkeypatch.setattr(files, "open_reader", opening)
    waiting = Task.bash("true")
    readers = Readers.open(path)
    listener = Listener(readers, {f"task-{waiting.id}": heard.set})
    try:
        assert looked.wait(30)
        with SQLiteStore(path) as store:
            store.tasks.save(waiting)
            started = TaskStarted(1, "somewhere.handler", "true", task.created_at, 0)
            request = TaskCancelRequested("somebody")
            store._writable().append(Batch(f"task-{waiting.id}", [started, request], 1))
            assert heard.wait(30)
    finally:
        listener.stop()
        readers.close()


def test_a_fingerprint_tells_who_has_a_ledger_open(path: Path) -> None:
    fill(path)
    cold = Fingerprint.of(path)
    assert not cold.has_shm
    with SQLiteStore(path):
        assert Fingerprint.of(path).has_shm
    assert Fingerprint.of(path) == cold


# --- beside a live writer ------------------------------------------------------------------------------------------


RUN = """
    import sys
    from ttasks import *
    graph = TaskGraph(title="live")
    before = []
    for number in range(3):
        task = Task.bash(f"echo begun {number}; while ! test -e go.{number}; do sleep 0.01; done", title=str(number))
        graph.add(task, after=before)
        before = [task]
    with SQLiteStore(sys.argv[1], busy_timeout=5) as store, TaskExecutor(store) as executor:
        graph.run(executor)
        sys.exit(0 if graph.ok else 1)
"""


def test_a_run_can_be_watched_while_it_goes_on_and_does_not_notice(path: Path) -> None:
    fill(path)
    arguments = [sys.executable, "-c", textwrap.dedent(RUN), str(path)]
    with SQLiteStore(path, read_only=True) as store:
        before = len(store.events)
        following = store.events(type=["TaskOutput", "TaskSucceeded", "GraphRunFinished"]).follow(timeout=60)
        iterating = iter(store.events)
        next(iterating)
        with subprocess.Popen(arguments) as runner:
            try:
                for number in range(3):
                    watch_a_task(store, number, following, runner.pid)
                    Path(f"go.{number}").touch()
                    assert next(following).type == "TaskSucceeded"
                assert next(following).type == "GraphRunFinished"
                assert runner.wait(60) == 0
            finally:
                for number in range(3):
                    Path(f"go.{number}").touch()
        assert [graph.ok for graph in store.graphs.values()] == [False, True]
        assert [event.position for event in iterating] == list(range(2, before + 1))
        assert verify(store._readers).is_clean


def watch_a_task(store: SQLiteStore, number: int, following: Iterator[RecordedEvent], pid: int) -> None:
    printed = next(following)
    assert printed.data["chunks"][0][2] == f"begun {number}\n"
    task_id = printed.stream.removeprefix("task-")
    assert store.tasks[task_id].is_running
    (graph,) = [each for each in store.graphs.values() if each.title == "live"]
    assert [task.is_succeeded for task in graph] == [place < number for place in range(3)]
    (run,) = store.runs(graph=graph)
    assert (run.status, run.finished_at, run.runner.pid) == ("running", None, pid)
    assert store.as_of(printed.position).tasks[task_id].is_running


def test_a_reader_never_takes_the_writers_lock_nor_keeps_the_wal_from_shrinking(path: Path) -> None:
    fill(path)
    with SQLiteStore(path) as store, SQLiteStore(path, read_only=True) as looking:
        lock = path.with_name("ledger.db-lock")
        lock.unlink()
        iterating = iter(looking.events)
        next(iterating)
        assert len(looking.graphs.values()) == 1
        assert not lock.exists()
        store.tasks.save(Task.bash("true"))
        connection = store._writable()._connection
        assert connection is not None
        assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)


def test_a_graph_is_read_as_it_was_at_one_moment(path: Path) -> None:
    with SQLiteStore(path) as store:
        graph = TaskGraph(title="0")
        graph.add(Task.bash("true"))
        store.graphs.save(graph)
        readers = Readers.open(path)
        executed = Readers._lent

        class Interrupting:
            """A connection between whose queries somebody adds a task to the graph."""

            in_transaction = True

            def __init__(self, connection: sqlite3.Connection) -> None:
                self._connection = connection

            def execute(self, *arguments: object) -> sqlite3.Cursor:
                if "graph_tasks" in str(arguments[0]) and len(graph) == 1:
                    graph.add(Task.bash("true"))
                    graph.title = "1"
                    store.graphs.save(graph)
                return self._connection.execute(*arguments)  # type: ignore[arg-type]

        @contextmanager
        def interrupting(self: Readers) -> Iterator[Interrupting]:
            with executed(self) as connection:
                yield Interrupting(connection)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Readers, "_lent", interrupting)
            found = readers.graph_with_tasks(graph.id)
        assert found is not None
        state, tasks = found
        assert (state.title, len(state.members), len(tasks)) == ("0", 1, 1)
        found = readers.graph_with_tasks(graph.id)
        assert found is not None
        assert (found[0].title, len(found[0].members), len(found[1])) == ("1", 2, 2)
        readers.close()


# --- what can't be read --------------------------------------------------------------------------------------------


def test_where_there_is_no_ledger_nothing_is_made(tmp_path: Path) -> None:
    for missing in (tmp_path / "ledger.db", tmp_path / "no" / "such" / "folder" / "ledger.db"):
        with pytest.raises(NotALedgerError, match=r"there is no ledger at .*schema_version"):
            SQLiteStore(missing, read_only=True)
    assert [file.name for file in tmp_path.iterdir()] == ["here"]


def test_an_empty_file_is_no_ledger_to_look_at(path: Path) -> None:
    path.touch()
    with pytest.raises(NotALedgerError, match="there is no ledger at"):
        SQLiteStore(path, read_only=True)
    assert path.read_bytes() == b""


def marked(path: Path, version: int, checkpoint: bool = True) -> sqlite3.Connection:
    """Give the ledger another version of the schema; where told so, in its WAL only."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(f"PRAGMA user_version = {version}")
    if checkpoint:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return connection


@pytest.mark.parametrize("checkpoint", [True, False], ids=["in the file", "in the WAL"])
def test_a_ledger_of_a_newer_version_is_refused_and_left_untouched(path: Path, checkpoint: bool) -> None:
    fill(path)
    with closing(marked(path, SCHEMA_VERSION + 1, checkpoint)):
        before = everything_in(path.parent)
        with pytest.raises(NotALedgerError, match=f"has schema_version {SCHEMA_VERSION + 1}, this ttasks"):
            SQLiteStore(path, read_only=True)
        assert set(everything_in(path.parent)) == set(before)
        assert everything_in(path.parent)["ledger.db"] == before["ledger.db"]


def test_a_ledger_that_was_migrated_a_moment_ago_can_be_read_though_its_header_is_behind(path: Path) -> None:
    task, _ = fill(path)
    marked(path, SCHEMA_VERSION - 1).close()
    with closing(marked(path, SCHEMA_VERSION, checkpoint=False)):
        assert path.read_bytes()[60:64] == (SCHEMA_VERSION - 1).to_bytes(4, "big")
        with SQLiteStore(path, read_only=True) as store:
            assert task in store.tasks


def test_a_ledger_in_memory_can_t_be_opened_to_look_at_only() -> None:
    with pytest.raises(ValueError, match="in memory"):
        SQLiteStore(":memory:", read_only=True)
    assert not Path(":memory:").exists()


def test_a_damaged_file_is_said_to_be_damaged(path: Path) -> None:
    fill(path)
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xff" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(DamagedLedgerError, match="can't be read"), SQLiteStore(path, read_only=True) as store:
        list(store.events)


# --- what it holds on to -------------------------------------------------------------------------------------------


def test_a_change_of_the_working_directory_does_not_lead_to_another_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = fill(path)
    (tmp_path / "there").mkdir()
    fill(tmp_path / "there" / "ledger.db")
    monkeypatch.chdir(path.parent)
    with SQLiteStore("ledger.db", read_only=True) as store:
        monkeypatch.chdir(tmp_path / "there")
        store._readers.close()  # its connections are opened anew
        assert task in store.tasks
        assert str(store) == "SQLiteStore(ledger.db)"


def descriptors(path: Path) -> list[str]:
    """Return which of the ledger's files this process has open."""
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return [link for link in links if link.startswith(str(path))]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("read_only", [False, True])
def test_a_closed_store_has_no_file_open_also_after_its_tasks_were_looked_at(path: Path, read_only: bool) -> None:
    task, _ = fill(path)
    with SQLiteStore(path, read_only=read_only) as store:
        found = store.tasks[task.id]
    assert found.result is not None
    assert found.result.output == "out\n"
    assert descriptors(path) == []


def test_a_store_that_only_reads_is_no_ledger_to_run_with(path: Path) -> None:
    task, graph = fill(path)
    entered: list[str] = []
    with SQLiteStore(path, read_only=True) as store:
        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, lambda context: entered.append(context.id))
        writes: list[Callable[[], object]] = [
            lambda: executor.execute(Task.bash("true")),
            lambda: store.graphs[graph.id].run(executor),
            lambda: store.tasks.save(Task.bash("true")),
            lambda: store.tasks.cancel(task.id),
            lambda: store.tasks.pop(task.id),
            lambda: store.graphs.pop(graph.id),
            lambda: store.tasks.clear(),
        ]
        for write in writes:
            with pytest.raises(LedgerUnwritableError, match="is read-only; nothing was written"):
                write()
        assert task in store.tasks
        assert graph in store.graphs
    assert entered == []


def test_a_task_that_a_store_only_reads_can_be_changed_and_saved_where_it_can_be_written(path: Path) -> None:
    task, graph = fill(path)
    with SQLiteStore(path, read_only=True) as looking, SQLiteStore(path) as store:
        (bad,) = looking.graphs[graph.id]
        bad.title = "new"
        store.tasks.save(bad)
        assert looking.tasks[bad.id].title == "new"
        assert [event.fact for event in looking.history(bad)][-1] == TaskRevised({"title": "new"})
        assert task in looking.tasks
