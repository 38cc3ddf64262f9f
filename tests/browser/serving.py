"""What is looked at in a browser: a served sample of everything, the kinds of pages that show it, and Chromium."""

from __future__ import annotations

import contextlib
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from browsed import Browsed
from processes import PATIENCE_S
from ttasks import SQLiteStore, Task, TaskExecutor

if TYPE_CHECKING:
    from playwright.sync_api import Browser

TTASKS: Final = [sys.executable, "-c", "from ttasks.cli import main; main()"]
CHROMIUM: Final = shutil.which("chromium")
FLAGS: Final = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
DESKTOP: Final = (1300, 900)
PHONE: Final = (390, 844)
ROOT: Final = "/-/ttasks"
LEDGER: Final = f"{ROOT}/ledger"


@dataclass(frozen=True)
class Kind:
    """One kind of own page: what it is called, which addresses are such pages, and the address of one of them."""

    name: str
    addresses: re.Pattern[str]
    address: Callable[[Browsed], str]


NEVER: Final = "(?!)"
"""What no address is: pages of a kind that is there already."""

PAGES: Final = (
    Kind("ledgers", re.compile(ROOT), lambda _: ROOT),
    Kind("home", re.compile(LEDGER), lambda _: LEDGER),
    Kind("run", re.compile(f"{LEDGER}/graph/[^/]+(/run/[0-9]+)?"), lambda made: f"{LEDGER}/graph/{made.failed}"),
    Kind("wide", re.compile(f"{LEDGER}/graph/{NEVER}"), lambda made: f"{LEDGER}/graph/{made.wide}"),
    Kind("task", re.compile(f"{LEDGER}/task/[^/]+"), lambda made: f"{LEDGER}/task/{made.colours}"),
    Kind("hostile", re.compile(f"{LEDGER}/task/{NEVER}"), lambda made: f"{LEDGER}/task/{made.hostile_task}"),
    Kind("agent", re.compile(f"{LEDGER}/task/{NEVER}"), lambda made: f"{LEDGER}/task/{made.agent}"),
    Kind("hostile-agent", re.compile(f"{LEDGER}/task/{NEVER}"), lambda made: f"{LEDGER}/task/{made.hostile_agent}"),
    Kind("event", re.compile(f"{LEDGER}/event/[0-9]+"), lambda _: f"{LEDGER}/event/30"),
    Kind("search", re.compile(f"{LEDGER}/search"), lambda _: f"{LEDGER}/search?q=no+space"),
)
"""The kinds of pages that are looked at."""


@dataclass(frozen=True)
class Served:
    """A server of a ledger, at `url` (without a path)."""

    process: subprocess.Popen[str]
    url: str


@contextlib.contextmanager
def served(*ledgers: Path) -> Iterator[Served]:
    """Serve ledgers on a port that the system chooses, by ``ttasks browse`` in a process of its own."""
    words = [*TTASKS, "browse", "--port", "0", *map(str, ledgers)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    try:
        yield Served(process, _first_line(process).split("/-/")[0])
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _first_line(process: subprocess.Popen[str]) -> str:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    assert process.stdout is not None
    threading.Thread(target=lambda read: lines.put(read()), args=[process.stdout.readline], daemon=True).start()
    line = lines.get(timeout=PATIENCE_S)
    assert line.startswith("http://127.0.0.1:"), f"it printed {line!r}"
    return line


def make_small_ledger(path: Path) -> Path:
    """Make a ledger of one task; beside another one, so that there are several to choose from."""
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.execute(Task.bash("echo by itself", title="by itself"))
    return path


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start the system's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


def what_is_missing() -> str | None:
    """Return why no browser can be driven here; None: one can."""
    if CHROMIUM is None:
        return "there is no chromium (apt-get install chromium)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "there is no playwright (pip install playwright)"
    return None
