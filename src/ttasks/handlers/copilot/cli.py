"""The Copilot CLI: where it is, how it is started, how nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from ttasks.handlers.copilot.failures import missing, not_runnable
from ttasks.log.runner import process_start
from ttasks.log.survivors import MARK, RUNNER, Dead, Ended, Leader, end_survivors, innermost

if TYPE_CHECKING:
    from copilot import RuntimeConnection

SESSION_MARK: Final = "copilot:"
"""How the mark begins that the processes of a session carry, which is no attempt's own."""
# In a session of its own, so that Ctrl-C in a terminal reaches us and not it: the turn is aborted then, and recorded.
_LAUNCHER: Final = """
import os, sys
os.setsid()
try:
    os.execvp(sys.argv[1], sys.argv[1:])
except OSError as error:
    sys.exit(f"{sys.argv[1]}: {error.strerror}")
"""


def find_cli(cli_path: str | None) -> str:
    """Return the path of the CLI: the one that is asked for, else the SDK's own, else ``copilot`` on PATH.

    Nothing is ever downloaded.

    Raises:
        CopilotError: ``cli_missing`` or ``cli_not_runnable``.
    """
    if cli_path is not None:
        found = cli_path if os.path.exists(cli_path) else shutil.which(cli_path)  # noqa: PTH110 - as the SDK does
        if found is None:
            raise missing(f"{cli_path} does not exist")
    else:
        found = _cached() or shutil.which("copilot")
        if found is None:
            raise missing("none is named in cli_path= or COPILOT_CLI_PATH, the SDK has none, and none is on PATH")
    if not os.path.isfile(found):  # noqa: PTH113
        raise not_runnable(f"{found} is no file")
    if not found.endswith(".js") and not os.access(found, os.X_OK):
        raise not_runnable(f"{found} may not be executed")
    return os.path.abspath(found)  # noqa: PTH100


def _cached() -> str | None:
    """Return the CLI that ``python -m copilot download-runtime`` brought, if it is there."""
    try:
        from copilot._cli_download import get_cached_cli_path
    except ImportError:  # another SDK keeps it elsewhere: the CLI has to be named then
        return None
    return get_cached_cli_path()


def connection_to(path: str) -> RuntimeConnection:
    """Return how the SDK starts the CLI at `path`."""
    from copilot import RuntimeConnection

    command = ("node", path) if path.endswith(".js") else (path,)
    if not sys.executable:
        return RuntimeConnection.for_stdio(path=path)
    return RuntimeConnection.for_stdio(path=sys.executable, args=("-I", "-S", "-c", _LAUNCHER, *command))


def started_with(env: Mapping[str, str]) -> Leader | None:
    """Return the CLI that this process started with the mark in `env`; None where it is gone already."""
    import psutil

    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if child.environ().get(MARK) == env[MARK]:
                return Leader(child.pid, process_start(child.pid))
    return None


def end_all(env: Mapping[str, str], leader: Leader | None, grace_s: float) -> Ended:
    """End the CLI and every process that it or its agent started: those that carry the mark in `env`.

    Returns:
        What was ended.

    Raises:
        SurvivorError: one of them is left all the same.
    """
    own = innermost(env[MARK])
    attempt = Dead(innermost(env.get(RUNNER, "")), leader, grace_s)
    return end_survivors({own: attempt}).get(own, Ended())
