"""A ledger has one name, regular files of its own beside it, and folders of its owner above it."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from needs import demand
from ttasks import LedgerUnwritableError, NotALedgerError, SQLiteStore, Task, TaskExecutor, TaskGraph, TaskStatus
from ttasks.log import checked, files, liveness, mounts, place
from ttasks.log.event_log import EventLog
from ttasks.log.liveness import RunnerLock
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

TTASKS = [sys.executable, "-c", "from ttasks.cli import main; main()"]
TIMEOUT_S = 60


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.execute(Task.bash("true", title="first"))
    return path


def ttasks(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TTASKS, *map(str, arguments)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


def is_clean(path: Path) -> bool:
    with contextlib.closing(Readers.open(path)) as readers:
        return verify(readers).is_clean


def everything_in(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


OPENS: dict[str, Callable[[Path], Any]] = {
    "to write": EventLog.open,
    "to read": Readers.open,
    "as a store": SQLiteStore,
    "as a store to look at": lambda path: SQLiteStore(path, read_only=True),
}
every_opening = pytest.mark.parametrize("opens", OPENS.values(), ids=OPENS)


# --- one name -------------------------------------------------------------------------------------------------------


@every_opening
@pytest.mark.parametrize("name", ["ledger.db", "other.db"])
def test_a_file_with_two_names_is_refused_under_each(ledger: Path, opens: Callable[[Path], Any], name: str) -> None:
    os.link(ledger, ledger.with_name("other.db"))
    before = everything_in(ledger.parent)

    with pytest.raises(LedgerUnwritableError, match=r"has 2 names \(hard links\).* or use a copy"):
        opens(ledger.with_name(name))

    assert everything_in(ledger.parent) == before


def test_the_command_that_lists_the_names_works(ledger: Path) -> None:
    other = ledger.with_name("it's another.db")
    os.link(ledger, other)
    refused = ttasks("ls", "--ledger", other)
    (find,) = re.findall(r"`(find .*)`", " ".join(refused.stderr.split()))

    said = subprocess.run(
        find.replace("find /", f"find {shlex.quote(str(ledger.parent))}"),
        shell=True, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert refused.returncode == 1
    assert set(said.stdout.splitlines()) == {str(ledger), str(other)}


def test_a_copy_of_a_file_with_two_names_is_a_ledger_again(ledger: Path, tmp_path: Path) -> None:
    os.link(ledger, ledger.with_name("other.db"))
    copy = tmp_path / "copy.db"
    copy.write_bytes(ledger.read_bytes())

    assert is_clean(copy)


def test_a_second_name_keeps_tasks_from_starting_but_no_end_from_being_recorded(ledger: Path) -> None:
    other = ledger.with_name("other.db")
    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        first = Task.bash(f"ln {ledger} {other}", title="links")
        second = Task.bash("true", title="follows")
        graph = TaskGraph()
        graph.add(first)
        graph.add(second, after=[first])
        with pytest.raises(LedgerUnwritableError, match="has 2 names"):
            graph.run(executor, max_workers=1)
        with pytest.raises(LedgerUnwritableError, match="has 2 names"):
            executor.execute(Task.bash("true"))
        recorded = store.tasks[first.id].status
        other.unlink()
        assert executor.execute(second).status is TaskStatus.SUCCEEDED

    assert recorded is TaskStatus.SUCCEEDED
    assert is_clean(ledger)


def test_a_retry_does_not_start_either_and_the_failure_before_it_is_recorded(ledger: Path) -> None:
    from ttasks import RetryPolicy

    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        task = Task.bash(f"ln {ledger} {ledger}-second; exit 3")
        with pytest.raises(LedgerUnwritableError, match="has 2 names"):
            executor.execute(task, retry_policy=RetryPolicy(max_attempts=2, backoff=0.001))
        assert [attempt.status for attempt in store._readers.attempts(task.id)] == ["failed"]


def mount_table(monkeypatch: pytest.MonkeyPatch, folder: Path, *mounted: Path) -> None:
    """Let the kernel's list of mounts be one that names these too."""
    escapes = {" ": r"\040", "\t": r"\011", "\n": r"\012", "\\": r"\134"}
    lines = [
        f"36 35 98:0 /a/b {''.join(escapes.get(sign, sign) for sign in str(path))} rw,noatime - ext4 /dev/sda rw"
        for path in (Path("/"), *mounted)
    ]
    table = folder / "mountinfo"
    table.write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(mounts, "_MOUNTINFO", table)


@every_opening
@pytest.mark.parametrize("name", ["ledger.db", "with a space.db", "back\\slash.db", "tab\tand\nline.db", "\\040.db"])
def test_a_file_that_is_mounted_by_itself_is_refused(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, opens: Callable[[Path], Any]
) -> None:
    ledger.rename(tmp_path / name)
    mount_table(monkeypatch, tmp_path, tmp_path / name)

    with pytest.raises(LedgerUnwritableError, match=r"is mounted by itself .* Mount its folder instead"):
        opens(tmp_path / name)


def test_a_file_that_is_really_mounted_is_refused_by_the_command(ledger: Path) -> None:
    mounted = ledger.with_name("a mounted.db")
    mounted.touch()
    done = subprocess.run(["mount", "--bind", ledger, mounted], capture_output=True, check=False)
    demand("no file can be mounted here: that needs root" if done.returncode != 0 else None)
    try:
        refused = ttasks("ls", "--ledger", mounted)
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)

    assert refused.returncode == 1
    assert "is mounted by itself" in " ".join(refused.stderr.split())
    assert not mounted.with_name("a mounted.db-lock").exists()
    assert is_clean(ledger)


def test_a_ledger_in_a_folder_that_is_mounted_is_as_any_other(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount_table(monkeypatch, ledger.parent, ledger.parent, ledger.with_name("ledger"), ledger.with_name("ledger.db2"))

    assert is_clean(ledger)


def test_where_mounts_are_not_listed_nothing_is_taken_for_mounted(
    ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_MOUNTINFO", ledger.with_name("none"))

    assert is_clean(ledger)


# --- symbolic links -------------------------------------------------------------------------------------------------


@pytest.fixture(params=["to the file", "to a link to the file", "to its folder"])
def link(request: pytest.FixtureRequest, ledger: Path, tmp_path: Path) -> Path:
    """Another way to the ledger, by symbolic links."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if request.param == "to its folder":
        (elsewhere / "folder").symlink_to(ledger.parent)
        return elsewhere / "folder" / ledger.name
    (elsewhere / "first.db").symlink_to(ledger)
    (elsewhere / "second.db").symlink_to("first.db")
    return elsewhere / ("first.db" if request.param == "to the file" else "second.db")


def test_a_symbolic_link_leads_to_the_same_files_beside_the_ledger(ledger: Path, link: Path) -> None:
    task = Task.bash("true", title="by the link")
    with SQLiteStore(ledger) as store:
        store.tasks.save(Task.bash("true"))
        program = "import sys; from ttasks import *; s = SQLiteStore(sys.argv[1]); s.tasks.save(Task.bash('echo'))"
        subprocess.run([sys.executable, "-c", program, str(link)], check=True, timeout=TIMEOUT_S)
        with SQLiteStore(link) as linked:
            assert linked._log is store._log
            linked.tasks.save(task)
        # What was committed is in the WAL still, which is beside the file and not beside the link.
        with contextlib.closing(Readers.open(link)) as readers:
            assert readers.task(task.id) is not None
            assert readers.count("tasks") == 4

    beside = {each.name for folder in (link.parent, link.parent.parent) for each in folder.iterdir()}
    assert {name for name in beside if ".db" in name} <= {"first.db", "second.db", "ledger.db", "ledger.db-lock"}
    assert is_clean(link)


def test_a_symbolic_link_to_a_ledger_that_is_not_there_yet_leads_to_where_it_is_made(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.db").symlink_to(tmp_path / "real" / "ledger.db")

    EventLog.open(tmp_path / "link.db").close()

    assert (tmp_path / "link.db").is_symlink()
    assert is_clean(tmp_path / "real" / "ledger.db")


# --- files beside it ------------------------------------------------------------------------------------------------


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


def make_dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("victim"))


def make_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)


def make_hard_link(path: Path) -> None:
    path.with_name("another").touch()
    os.link(path.with_name("another"), path)


STRANGERS = {
    "a named pipe": make_pipe,
    "a folder": make_folder,
    "a symbolic link": make_dangling_link,
    "a socket": make_socket,
    r"2 names \(hard links\)": make_hard_link,
}
every_stranger = pytest.mark.parametrize("what", STRANGERS)


@every_stranger
@pytest.mark.parametrize("suffix", ["-lock", "-wal", "-shm", "-journal"])
def test_what_is_no_file_of_the_ledgers_own_is_refused_by_name_and_left_alone(
    ledger: Path, suffix: str, what: str
) -> None:
    beside = ledger.with_name(f"ledger.db{suffix}")
    beside.unlink(missing_ok=True)
    STRANGERS[what](beside)
    before = everything_in(ledger.parent)
    sentence = rf"{re.escape(str(beside))} (is|has) {what}, where the ledger needs .* Move it away and try again"

    with pytest.raises(LedgerUnwritableError, match=sentence):
        EventLog.open(ledger)
    if suffix != "-lock":
        with pytest.raises(LedgerUnwritableError, match=sentence):
            Readers.open(ledger)

    assert everything_in(ledger.parent) == before


def test_the_version_of_a_ledger_is_known_though_a_pipe_is_beside_its_wal(ledger: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.db"
    with SQLiteStore(ledger) as store:
        store.tasks.save(Task.bash("true"))
        for suffix in ("", "-wal"):
            copy.with_name(f"copy.db{suffix}").write_bytes(ledger.with_name(f"ledger.db{suffix}").read_bytes())
    make_pipe(copy.with_name("copy.db-shm"))

    assert files.schema_version(copy) == files.SCHEMA_VERSION


@every_stranger
def test_a_lock_of_writers_that_was_replaced_while_it_is_in_use_is_refused(ledger: Path, what: str) -> None:
    with SQLiteStore(ledger) as store:
        store._log._lock.close()
        ledger.with_name("ledger.db-lock").unlink()
        STRANGERS[what](ledger.with_name("ledger.db-lock"))

        with pytest.raises(LedgerUnwritableError, match=rf"ledger\.db-lock (is|has) {what}"):
            store.tasks.save(Task.bash("true"))

    assert "victim" not in everything_in(ledger.parent)


@every_stranger
def test_what_has_the_name_of_a_runners_lock_holds_nobody_up(ledger: Path, what: str) -> None:
    beside = ledger.with_name("ledger.db-runner-5c8ab0de")
    STRANGERS[what](beside)

    with SQLiteStore(ledger) as store, TaskExecutor(store) as executor:
        assert executor.execute(Task.bash("true")).status is TaskStatus.SUCCEEDED
    assert not liveness._is_held(beside)
    assert ttasks("ls", "--ledger", ledger).returncode == 0

    assert os.path.lexists(beside) == ("hard links" not in what)  # that is a file whose runner is gone
    assert "victim" not in everything_in(ledger.parent)


@pytest.mark.parametrize("what", [what for what in STRANGERS if "hard links" not in what])
def test_a_runner_whose_own_lock_has_something_in_its_place_is_refused(ledger: Path, what: str) -> None:
    STRANGERS[what](files.runner_path(ledger, "mine"))

    with pytest.raises(LedgerUnwritableError, match=what):
        RunnerLock(ledger, "mine")


@every_stranger
def test_a_note_of_a_check_is_none_where_it_is_no_file(ledger: Path, what: str) -> None:
    STRANGERS[what](files.checked_path(ledger))

    assert checked.read(ledger) is None
    assert ttasks("verify", "--ledger", ledger).returncode == 0
    assert "victim" not in everything_in(ledger.parent)


@pytest.mark.parametrize("suffix", ["-lock", "-wal"])
def test_a_file_of_another_user_is_refused(ledger: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = ledger.with_name(f"ledger.db{suffix}")
    beside.touch()
    lstat = Path.lstat

    def of_another(path: Path) -> os.stat_result:
        found = list(lstat(path))
        found[stat.ST_UID] = 4242
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", of_another)

    with pytest.raises(LedgerUnwritableError, match=rf"{suffix} belongs to another user \(uid 4242\)"):
        EventLog.open(ledger)


@pytest.mark.parametrize("opens", [files.schema_version, EventLog.open, Readers.open])
@pytest.mark.parametrize("make", [make_pipe, make_socket])
def test_a_ledger_that_is_no_regular_file_is_refused_without_waiting(
    tmp_path: Path, make: Callable[[Path], None], opens: Callable[[Path], Any]
) -> None:
    make(tmp_path / "ledger.db")

    with pytest.raises(NotALedgerError, match="is no regular file"):
        opens(tmp_path / "ledger.db")

    assert everything_in(tmp_path) == {"ledger.db"}


def test_a_device_beside_a_ledger_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnwritableError, match="null is a device"):
        place.open_beside(Path("/dev/null"), os.O_RDONLY)


def test_a_file_that_can_not_be_opened_says_why(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        place.open_beside(tmp_path / "none", os.O_RDONLY)


# --- folders and modes ----------------------------------------------------------------------------------------------


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes_below(folder: Path) -> dict[str, int]:
    return {str(each.relative_to(folder)): stat.S_IMODE(each.stat().st_mode) for each in folder.rglob("*")}


@pytest.mark.usefixtures("umask")
def test_what_is_made_for_a_ledger_is_its_owners_alone_whatever_the_umask_is(tmp_path: Path) -> None:
    path = tmp_path / "a" / ".ttasks" / "ledger.db"

    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.execute(Task.bash("true"))
        assert ttasks("verify", "--ledger", path).returncode == 0
        modes = modes_below(tmp_path)

    kinds = {re.sub("-runner-.*", "-runner", name) for name in modes}
    beside = {f"a/.ttasks/ledger.db{suffix}" for suffix in ("", "-lock", "-wal", "-shm", "-runner", "-verified")}
    assert kinds == {"a", "a/.ttasks", *beside}
    assert {modes.pop("a"), modes.pop("a/.ttasks")} == {0o700}
    assert set(modes.values()) == {0o600}


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)

    EventLog.open(tmp_path / "shared" / "new" / "ledger.db").close()

    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o2775
    assert stat.S_IMODE((tmp_path / "shared" / "new").stat().st_mode) & 0o777 == 0o700


def test_each_folder_that_is_made_is_synced_into_the_one_above_before_the_ledger_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a" / "b" / "ledger.db"
    synced: list[tuple[Path, bool]] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), path.exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)

    EventLog.open(path).close()

    assert synced == [
        (tmp_path, False),
        (tmp_path / "a", False),
        (path.with_name("ledger.db-new"), False),
        (path.parent, True),
        (path.parent.parent, True),
    ]


def test_a_folder_that_another_process_makes_at_the_same_moment_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def late(folder: Path, mode: int) -> None:
        mkdir(folder)
        mkdir(folder, mode)

    monkeypatch.setattr(Path, "mkdir", late)

    place.make_folders(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_may_be_used_but_not_read_is_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(os, "open", refuse)

    place.sync_folder(tmp_path)


def test_looking_at_a_ledger_never_opens_its_file_but_by_sqlite(ledger: Path) -> None:
    """Closing any descriptor of the file would give up the locks that SQLite has on it."""
    program = (
        "import sys; opened = []\n"
        "sys.addaudithook(lambda name, given: opened.append(str(given[0])) if name == 'open' else None)\n"
        "from pathlib import Path; from ttasks import *; from ttasks.log import files\n"
        "path = Path(sys.argv[1]); odd = path.with_name('odd.db'); odd.write_bytes(path.read_bytes()[:40] * 9)\n"
        "with SQLiteStore(path) as store, TaskExecutor(store) as executor:\n"
        "    executor.execute(Task.bash('true'))\n"
        "    files.schema_version(path); files.is_ledger(path); SQLiteStore(path, read_only=True).close()\n"
        "del opened[:]; files.is_ledger(odd)\n"
        "new = path.with_name('new.db'); SQLiteStore(new).close()\n"
        "print([name for name in opened if name in {str(path), str(odd), str(new)}])"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(ledger)], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )

    assert said.stdout.strip() == "[]"


def test_looking_at_a_ledger_that_was_moved_away_makes_no_file_in_its_place(ledger: Path) -> None:
    with SQLiteStore(ledger) as store, contextlib.closing(Readers.open(ledger)) as readers:
        store.tasks.save(Task.bash("true"))
        store._log._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ledger.rename(ledger.with_name("moved.db"))
        before = everything_in(ledger.parent)
        readers.close()

        with pytest.raises(LedgerUnwritableError, match="can't be read: unable to open database file"):
            readers.head()

        assert everything_in(ledger.parent) == before
        ledger.with_name("moved.db").rename(ledger)


def test_a_file_that_can_not_be_read_is_said_so(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    monkeypatch.setattr(files, "_connect", refuse)
    with pytest.raises(LedgerUnwritableError, match="can't be read: unable to open"):
        files.schema_version(ledger)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(LedgerUnwritableError, match="can't be read: Permission denied"):
        files.schema_version(ledger)
