"""The real Copilot CLI and SDK, for tests: where it is, and homes that hold nothing of whoever runs them.

TTASKS_COPILOT_CLI names it: the `copilot` of npm's `@github/copilot-<platform>`, or the `copilot-runtime` that it
unpacks, which starts in a tenth of the time. Where it isn't set, tests that need it are skipped; where CI is set, they
fail.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from needs import demand
from processes import PATIENCE_S

VARIABLE = "TTASKS_COPILOT_CLI"


@dataclass(frozen=True)
class RealCli:
    """The CLI at `path`. `home` is what tests share, because it holds what the CLI unpacks: 235 MB, in two seconds.

    `copilot_home` is the test's own: there the CLI keeps its conversations.
    """

    path: Path
    home: Path
    copilot_home: Path

    @property
    def environment(self) -> dict[str, str]:
        """Return all that it needs to have in its environment."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "COPILOT_HOME": str(self.copilot_home)}


@pytest.fixture
def copilot_home(tmp_path: Path) -> Path:
    """Return a folder of this test that is not there yet, for COPILOT_HOME."""
    return tmp_path / "copilot-home"


@pytest.fixture
def real_cli(unpacked_cli: tuple[Path, Path], copilot_home: Path) -> RealCli:
    path, home = unpacked_cli
    return RealCli(path, home, copilot_home)


@pytest.fixture(scope="session")
def unpacked_cli(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the paths of the CLI and of its home, after it has unpacked there what it consists of."""
    named = os.environ.get(VARIABLE)
    demand(what_is_missing(named))
    path = Path(named or "").resolve()
    base = tmp_path_factory.getbasetemp()
    is_worker = "PYTEST_XDIST_WORKER" in os.environ  # each has a folder of its own in that of the run
    home = (base.parent if is_worker else base) / "home-of-copilot"
    home.mkdir(exist_ok=True)
    # It unpacks aside and renames, so several may: but each takes two seconds and 235 MB then.
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.name != "copilot-runtime" and not (home / ".cache").exists():
            environment = {"PATH": os.environ["PATH"], "HOME": str(home)}
            subprocess.run([path, "--version"], env=environment, check=True, capture_output=True, timeout=PATIENCE_S)
    return path, home


@pytest.fixture
def pipes_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close the pipes of all processes that the test starts here; fail where one of them never ends.

    The SDK (1.0.27) leaves that to the garbage collector, which warns of it in the midst of another test.
    """
    started: list[subprocess.Popen[Any]] = []

    class Noted(subprocess.Popen[Any]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    yield
    for process in started:
        process.wait(PATIENCE_S)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it was not told any more
                    pipe.close()


def what_is_missing(named: str | None) -> str | None:
    if not named:
        return f"{VARIABLE} doesn't name a Copilot CLI"
    if not os.access(named, os.X_OK):
        return f"{VARIABLE} names {named}, which can't be run"
    return None
