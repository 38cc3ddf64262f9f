"""Which of Datasette's databases are ledgers, who may see them, and where their pages are."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, Final, TypeVar
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from datasette.utils import tilde_encode

from ttasks.display import printable
from ttasks.errors import LedgerUnwritableError, TtasksError
from ttasks.log import files
from ttasks.log.migrate import SCHEMA_VERSION
from ttasks.log.projection import TABLES
from ttasks.log.reading import Readers
from ttasks.state.next_steps import Step

ROOT: Final = "/-/ttasks"
VISIBLE: Final = ("events", *TABLES)
"""What somebody must be allowed to see of a ledger to be shown its pages."""
STEPS_BETWEEN_LOOKS: Final = 10_000
"""How many of its instructions SQLite does before the time is looked at."""

Answer = TypeVar("Answer")
_READERS: WeakKeyDictionary[Any, tuple[tuple[int, int], Readers]] = WeakKeyDictionary()
_LOOKED_AT: WeakKeyDictionary[Any, tuple[bool, tuple[int, int] | None]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Links:
    """The addresses of a ledger's pages. `of_tables` is that of its database in Datasette."""

    root: str
    of_tables: str

    def home(self) -> str:
        return self.root

    def run(self, graph_id: str, run: int | None = None) -> str:
        """Return the address of a run of a graph; without `run`, of its latest."""
        return f"{self.root}/graph/{tilde_encode(graph_id)}" + (f"/run/{run}" if run is not None else "")

    def task(self, task_id: str, attempt: int | None = None) -> str:
        """Return the address of a task; without `attempt`, its latest attempt is shown."""
        return f"{self.root}/task/{tilde_encode(task_id)}" + (f"?attempt={attempt}" if attempt is not None else "")

    def output(self, task_id: str, attempt: int) -> str:
        """Return the address of what an attempt printed, as it is."""
        return f"{self.root}/task/{tilde_encode(task_id)}/attempt/{attempt}/output.txt"

    def event(self, position: int) -> str:
        return f"{self.root}/event/{position}"

    def search(self, **asked: object) -> str:
        return f"{self.root}/search" + (f"?{urlencode(asked)}" if asked else "")

    def table(self, name: str, **where: object) -> str:
        """Return the address of a table in Datasette, with its own parameters, such as ``status="failed"``."""
        return f"{self.of_tables}/{name}" + (f"?{urlencode(where)}" if where else "")


_ANSWERS: Final = {
    "--rerun": "Run it again",
    "--succeeded": "It did what it was to do",
    "--failed": "It did not",
}


@dataclass(frozen=True)
class Ledger:
    """A ledger that Datasette serves: `name` is that of its database."""

    name: str
    path: Path
    readers: Readers
    links: Links

    @property
    def older_version(self) -> int | None:
        """The schema version of a ledger that an older ttasks made and that was not migrated yet; else None."""
        version = self.readers.schema_version
        return version if version < SCHEMA_VERSION else None

    def command(self, words: str) -> str:
        """Return the command line of ttasks that says `words` to this ledger."""
        return f"ttasks {words} --ledger {quote(str(self.path))}"

    def choices(self, step: Step) -> list[tuple[str, str]]:
        """Return what each way to take a step does, and its command."""
        if step.verb != "resolve":
            return [self.step(step)]
        ways = {option: replace(step, options=(option,)) for option in (*step.options, *step.alternatives)}
        return [(_ANSWERS[option], self.command(way.words())) for option, way in ways.items()]

    def step(self, step: Step, names: Mapping[str, str] | None = None) -> tuple[str, str]:
        """Return what a step does, and its command; `names` are those of tasks, by id."""
        of = printable((names or {}).get(step.id, "")) or "it"
        what = step.why
        if step.verb == "resolve":
            what = f"Decide what {of} counts as (or {', or '.join(step.alternatives)})"
        elif step.verb == "resume":
            what = f"Go on with {of}"
        return what, self.command(step.words())


def is_ledger_of_any_version(database: Any) -> bool:
    """True when one of Datasette's databases is a ledger, also one that only a newer ttasks can read."""
    return bool(database.path) and files.is_ledger(Path(database.path))


def ledger_of(datasette: Any, name: str) -> Ledger | None:
    """Return the ledger that Datasette serves under a name; None: there is no such database, or it is no ledger.

    It looks at the file, so it is for a thread.

    Raises:
        TtasksError: it is a ledger, and it can't be read.
    """
    database = datasette.databases.get(name)
    if database is None or not is_ledger_of_any_version(database):
        return None
    path = Path(database.path).absolute()
    status = path.stat()
    inode = status.st_dev, status.st_ino
    known, readers = _READERS.get(database, (None, None))
    if readers is None or known != inode:  # connections to a file that was replaced go on reading the old one
        readers = Readers.open(path)
        _READERS[database] = inode, readers
    return Ledger(name, path, readers, links_of(datasette, name))


def links_of(datasette: Any, name: str) -> Links:
    """Return the addresses of the pages of the ledger that Datasette serves under a name."""
    route = datasette.databases[name].route or name
    return Links(str(datasette.urls.path(f"{ROOT}/{tilde_encode(route)}")), str(datasette.urls.database(name)))


def is_ledger(datasette: Any, name: str | None) -> bool:
    """True when Datasette serves a ledger under a name. It is asked for every cell: a file is read once per change."""
    database = datasette.databases.get(name) if name is not None else None
    if database is None or not database.path:
        return False
    known, seen = _LOOKED_AT.get(database, (False, None))
    if known:  # what is a ledger stays one; an empty file may become one
        return True
    try:
        found = Path(database.path).stat()
    except OSError:
        return False
    now = (found.st_mtime_ns, found.st_size)
    if seen != now:
        known = _can_be_read(Path(database.path))
        _LOOKED_AT[database] = (known, now)
    return known


def _can_be_read(path: Path) -> bool:
    try:
        return files.schema_version(path) is not None
    except TtasksError:
        return False


def ledger_names(datasette: Any) -> list[str]:
    """Return the names under which Datasette serves ledgers."""
    return [name for name in datasette.databases if is_ledger(datasette, name)]


def within(seconds: float, question: Callable[[Any], Answer]) -> Callable[[Any], Answer]:
    """Return `question`, which SQLite gives up on after so many seconds: it fails with "interrupted"."""

    def asked(connection: Any) -> Answer:
        deadline = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_BETWEEN_LOOKS)
        try:
            return question(connection)
        finally:
            connection.bound()

    return asked


def is_too_long(error: LedgerUnwritableError) -> bool:
    """True where a question was given up on because it took too long (see `within`)."""
    return getattr(error.__cause__, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT


async def may_see(datasette: Any, actor: Any, name: str) -> bool:
    """True when `actor` may see the database of a ledger, and each of its tables.

    Datasette asks nobody on behalf of a plugin's own pages, and 1.0 asks otherwise than 0.65 does.
    """
    if hasattr(datasette, "allowed_resources"):
        from datasette.resources import DatabaseResource, TableResource  # type: ignore[import-not-found,unused-ignore]

        wanted = [("view-database", DatabaseResource(name))]
        wanted += [("view-table", TableResource(name, table)) for table in VISIBLE]
        for action, resource in wanted:
            if not await datasette.allowed(action=action, resource=resource, actor=actor):
                return False
        return True
    from datasette import Forbidden

    asked = [("view-database", name), "view-instance"]
    try:
        for table in VISIBLE:
            await datasette.ensure_permissions(actor, [("view-table", (name, table)), *asked])
    except Forbidden:
        return False
    return True
