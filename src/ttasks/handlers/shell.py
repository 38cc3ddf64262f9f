"""The handlers of Bash and PowerShell tasks."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache

from ttasks.errors import TaskExecutionError
from ttasks.handlers.context import TaskContext
from ttasks.handlers.process import run_shell


@cache
def _shell() -> str:
    return shutil.which("bash") or "/bin/sh"


def bash_handler(context: TaskContext) -> subprocess.CompletedProcess[str]:
    """Run the payload in bash, in sh where there is no bash, as trusted code.

    Raises:
        TaskExecutionError, TaskTimeoutError, TaskCancelled: as `run_shell`.
    """
    return run_shell(_shell(), context)


def powershell_handler(context: TaskContext) -> subprocess.CompletedProcess[str]:
    """Fail: this version of ttasks does not run PowerShell yet."""
    raise TaskExecutionError(f"task {context.id} was not run: this version of ttasks can't run PowerShell tasks yet")
