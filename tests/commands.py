"""The real command in a folder of its own: started, watched, signalled."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from processes import PATIENCE_S, processes_of, until

TTASKS = [sys.executable, "-c", "from ttasks.cli import main; main()"]


class Running:
    """A ``ttasks`` that was started; what it prints is collected by lines."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self._queue.put(line)
        self._queue.put(None)

    def until(self, text: str) -> str:
        """Return the next line with `text`, once it has been printed."""
        while True:
            line = self._queue.get(timeout=PATIENCE_S)
            assert line is not None, f"it ended without {text!r}: {self.lines}"
            self.lines.append(line)
            if text in line:
                return line

    def end(self, *signals: signal.Signals) -> tuple[int, str]:
        """Send these signals, wait for its end; return its exit code and all that it printed."""
        for number in signals:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert not self._reader.is_alive(), "something that it started holds its output open"
        while (line := self._queue.get(timeout=PATIENCE_S)) is not None:
            self.lines.append(line)
        return code, "".join(self.lines)

    def kill(self) -> None:
        """kill -9, of that one process."""
        self.process.kill()
        self.process.wait(PATIENCE_S)


class Command:
    """Runs ``ttasks`` in a folder; its ledger is the default one there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / ".ttasks" / "ledger.db"
        self._started: list[subprocess.Popen[str]] = []

    def environment(self, **variables: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if name != "TTASKS_LEDGER"}
        return {**clean, "TZ": "UTC", "PYTHONUNBUFFERED": "1", **variables}

    def __call__(self, *arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TTASKS, *arguments],
            cwd=cwd or self.folder,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *arguments: str, cwd: Path | None = None, **variables: str) -> Running:
        """Start ``ttasks``, and return at once."""
        return self.start_process([*TTASKS, *arguments], cwd=cwd, **variables)

    def start_process(self, words: list[str], *, cwd: Path | None = None, **variables: str) -> Running:
        """Start any process of a test's own, and return at once."""
        process = subprocess.Popen(
            words,
            cwd=cwd or self.folder,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        self._started.append(process)
        return Running(process)

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, "utf-8")
        return path

    def log(self, name: str = "log") -> list[str]:
        """Return the lines of a file that tasks append to."""
        path = self.folder / name
        return path.read_text().split() if path.exists() else []

    def await_file(self, name: str) -> Path:
        """Return a file's path once it is there."""
        until((self.folder / name).exists)
        return self.folder / name

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()

    def statuses(self) -> dict[str, str]:
        """Return where each task of the latest graph stands, as recorded."""
        latest = "(SELECT id FROM graphs ORDER BY created_at DESC LIMIT 1)"
        return dict(
            self.sql(
                "SELECT tasks.name, tasks.status FROM tasks JOIN graph_tasks ON graph_tasks.task_id = tasks.id"
                f" WHERE graph_tasks.graph_id = {latest}"
            )
        )

    def graph_id(self) -> str:
        """Return the id of the latest graph."""
        return str(self.sql("SELECT id FROM graphs ORDER BY created_at DESC LIMIT 1")[0][0])

    def task_id(self, name: str) -> str:
        """Return the id of the latest task of a name."""
        return str(self.sql(f"SELECT id FROM tasks WHERE name = '{name}' ORDER BY created_at DESC LIMIT 1")[0][0])

    def files(self) -> dict[str, bytes]:
        """Return what the ledger's files hold, but for empty ones and the shared memory, which readers write to."""
        return {
            path.name: content
            for path in self.ledger.parent.iterdir()
            if not path.name.endswith("-shm") and (content := path.read_bytes())
        }

    def runners(self) -> list[tuple[Any, ...]]:
        """Return the processes that have recorded anything."""
        return self.sql("SELECT pid FROM runners ORDER BY position")

    def left(self) -> list[psutil.Process]:
        """Return what runs of any attempt of the ledger."""
        (ledger,) = self.sql("SELECT json_extract(data, '$.ledger') FROM events WHERE position = 1")[0]
        return processes_of(ledger)

    def clean_up(self) -> None:
        """End what tests that failed left: the processes that were started, and those of their attempts."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait(PATIENCE_S)
        if self.ledger.exists():
            for left in self.left():
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
