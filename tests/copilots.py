"""What tests of Copilot tasks share: the fake CLI behind an executor with a ledger, and what it recorded."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from doubles.scripted import Step, requests_in, scripted_cli
from processes import until
from ttasks import (
    SQLiteStore,
    Task,
    TaskEvent,
    TaskExecutor,
    TaskType,
    make_copilot_agent_handler,
    make_copilot_prompt_handler,
)
from ttasks.events.facts import TaskFact
from ttasks.log.survivors import MARK

VARIABLES = (
    "COPILOT_PROVIDER_BASE_URL",
    "COPILOT_PROVIDER_TYPE",
    "COPILOT_PROVIDER_API_KEY",
    "COPILOT_PROVIDER_BEARER_TOKEN",
    "COPILOT_PROVIDER_WIRE_API",
    "COPILOT_MODEL",
    "COPILOT_CLI_PATH",
    "COPILOT_GITHUB_TOKEN",
    "GH_TOKEN",
    "GITHUB_TOKEN",
    "TTASKS_COPILOT_PERMISSIONS",
    "TTASKS_REDACT",
)
"""What Copilot tasks read of the environment: nothing of it is of whoever runs the tests."""
BYOK = {"type": "openai", "wire_api": "completions", "base_url": "http://127.0.0.1:9/v1", "api_key": "sk-of-no-use"}


class Bench:
    """A fake CLI in a folder of the test's own, executors that use it, and what comes of that."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        self.home = home
        self.ledger = folder / "ledger" / "ledger.db"
        self.events: list[TaskEvent] = []
        self._stores: list[SQLiteStore] = []
        self._threads = set(threading.enumerate())

    def cli(self, *turns: Sequence[Step], **behaviour: Any) -> Path:
        """Make the fake act by this script; return its path."""
        return scripted_cli(self.folder / "cli", *turns, **behaviour)

    @property
    def cli_path(self) -> Path:
        """The fake, an echo unless it was given a script."""
        path = self.folder / "cli" / "copilot"
        return path if path.exists() else self.cli()

    @property
    def store(self) -> SQLiteStore:
        """The latest store on the ledger; the first is opened when it is asked for."""
        return self._stores[-1] if self._stores else self.open_store()

    def open_store(self, **options: Any) -> SQLiteStore:
        self._stores.append(SQLiteStore(self.ledger, **options))
        return self._stores[-1]

    def executor(self, **options: Any) -> TaskExecutor:
        """Return an executor on the ledger whose AGENT handler has these options, and whose events are kept."""
        executor = TaskExecutor(self.store)
        options = {"cli_path": self.cli_path, **options}
        executor.register(TaskType.AGENT, make_copilot_agent_handler(**options))
        shared = {name: options[name] for name in ("cli_path", "provider", "model") if name in options}
        executor.register(TaskType.PROMPT, make_copilot_prompt_handler(**shared))
        executor.events.subscribe(self.events.append)
        return executor

    def run(self, payload: str = "Go", *, executor: TaskExecutor | None = None, **fields: Any) -> Task:
        """Execute an agent's task, however it ends, and return it."""
        task = Task.agent(payload, **fields)
        with contextlib.suppress(Exception):
            (executor or self.executor()).execute(task)
        return task

    def facts(self, task: Task, *kinds: type[Any]) -> list[Any]:
        """Return what is recorded of a task, oldest first: all facts, or those of these types."""
        facts = [event.fact for event in self.store.history(task)]
        return [fact for fact in facts if isinstance(fact, kinds or TaskFact)]

    def rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Return what a query finds in the ledger's file."""
        with contextlib.closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, values)]

    def raw(self) -> bytes:
        """Return what the ledger's files hold, byte for byte."""
        return b"".join(path.read_bytes() for path in self.ledger.parent.iterdir())

    def asked(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of what the CLI was asked by this method."""
        return [request.get("params") or {} for request in requests_in(self.home, method)]

    def prompts(self) -> list[str]:
        return [str(params["prompt"]) for params in self.asked("session.send")]

    def spoken(self, kind: str) -> list[str | None]:
        """Return what events of a type said."""
        told = [event for event in self.events if event.type == kind]
        return [event.output_chunk if kind == "output" else event.progress_message for event in told]

    def wait_for_file(self, name: str) -> str:
        """Return what a file of the bench's folder holds once it is there."""
        path = self.folder / name
        until(path.exists)
        return path.read_text()

    def processes(self) -> list[psutil.Process]:
        """Return the fakes, and what they started, that still run."""
        found = []
        for process in psutil.process_iter(["environ", "status"]):
            environment = process.info["environ"] or {}
            is_ours = environment.get("COPILOT_HOME") == str(self.home) and MARK in environment
            if is_ours and process.info["status"] != psutil.STATUS_ZOMBIE:
                found.append(process)
        return found

    def is_quiet(self) -> bool:
        """Return whether neither a process nor a thread of a conversation is left."""
        threads = [thread.name for thread in set(threading.enumerate()) - self._threads]
        return not self.processes() and not [name for name in threads if name.startswith("ttasks-copilot")]

    def close(self) -> None:
        for process in self.processes():  # a test that failed left them
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for store in self._stores:
            store.close()


def pid_of_shell(bench: Bench) -> tuple[Step, str]:
    """Return a step that runs a shell which never ends, and the name of the file that then holds its process's id."""
    name = "shell.pid"
    path = bench.folder / name
    return {"shell": f"echo $$ > {path}.new; mv {path}.new {path}; sleep 600"}, name


@pytest.fixture(scope="session")
def sdk() -> str:
    """Return the version of the SDK, after it was imported: that takes a second, which is no test's own."""
    import copilot

    return str(copilot.__version__)


@pytest.fixture
def bench(sdk: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "copilot-home"
    monkeypatch.setenv("COPILOT_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    made = Bench(tmp_path, home)
    yield made
    made.close()


def gone(pid: int | str) -> bool:
    """Return whether a process has ended; a zombie has."""
    try:
        return psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
