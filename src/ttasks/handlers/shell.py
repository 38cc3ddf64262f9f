"""The handlers of Bash and PowerShell tasks: how each shell is found, and how it is given its script."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Final

from ttasks.errors import TaskExecutionError, TaskTimeoutError
from ttasks.handlers.completed import stderr_end, stderr_of
from ttasks.handlers.context import TaskContext
from ttasks.handlers.environment import encoded
from ttasks.handlers.process import ChildProcess
from ttasks.state.exits import BYTES_MAX as STDERR_CHARACTERS_MAX
from ttasks.state.exits import error_text

ARGUMENT_BYTES_MAX: Final = 100_000
"""Linux refuses arguments of 128 KiB and more (execve(2)); longer scripts go another way."""

Given = tuple[list[str], list[int]]
"""The arguments that make a shell run a script, and the descriptors that it has to inherit."""


def bash_handler(context: TaskContext) -> subprocess.CompletedProcess[str]:
    """Run the payload in bash, in sh where there is no bash, as trusted code.

    Raises:
        TaskExecutionError: it ended with another code than 0, or could not be started at all.
        TaskTimeoutError: it took longer than the context's time-out; what it printed so far is in `completed`.
        TaskCancelled: it was cancelled.
    """
    return _run(_shell(), _for_bash, context)


def powershell_handler(context: TaskContext) -> subprocess.CompletedProcess[str]:
    """Run the payload with ``pwsh -NoProfile -Command``, as trusted code.

    Raises:
        TaskExecutionError, TaskTimeoutError, TaskCancelled: as `bash_handler`.
    """
    path = context.env.get("PATH", os.environ.get("PATH", os.defpath))
    pwsh = shutil.which("pwsh", path=path)
    if pwsh is None:
        raise TaskExecutionError(
            f"pwsh could not be started: it is in no folder of PATH ({path}); nothing was run. Install PowerShell 7 or"
            " later (https://aka.ms/powershell), or add the folder that it is in to PATH"
        )
    return _run(str(Path(pwsh).absolute()), _for_powershell, context)


@cache
def _shell() -> str:
    return shutil.which("bash") or "/bin/sh"


@contextlib.contextmanager
def _for_bash(script: str) -> Iterator[Given]:
    if len(script) * 4 < ARGUMENT_BYTES_MAX or len(encoded(script, "the script")) < ARGUMENT_BYTES_MAX:
        yield ["-c", script], []
        return
    with tempfile.TemporaryFile() as file:
        file.write(encoded(script, "the script"))
        file.seek(0)
        # Where this process has no stdin, the file may have its number, which is the script's own stdin.
        descriptor = fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
        try:
            yield [f"/dev/fd/{descriptor}"], [descriptor]
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _for_powershell(script: str) -> Iterator[Given]:
    # A lone - would make pwsh read its stdin, which is empty, and succeed.
    parts, rest = [], encoded(" -" if script == "-" else script, "the script")
    # pwsh joins what follows -Command with blanks (about_Pwsh), so a script that was cut at blanks is itself again.
    while len(rest) > ARGUMENT_BYTES_MAX:
        cut = rest.rfind(b" ", 0, ARGUMENT_BYTES_MAX + 1)
        if cut < 0:
            raise ValueError(
                f"the script has more than {ARGUMENT_BYTES_MAX} bytes in a row without a blank, too many for an"
                " argument; nothing was run. Keep it in a file, and let the task run that: & ./script.ps1"
            )
        parts.append(rest[:cut].decode("utf-8", "surrogateescape"))
        rest = rest[cut + 1 :]
    yield ["-NoProfile", "-Command", *parts, rest.decode("utf-8", "surrogateescape")], []


def _run(
    shell: str, give: Callable[[str], AbstractContextManager[Given]], context: TaskContext
) -> subprocess.CompletedProcess[str]:
    try:
        with give(context.payload) as (arguments, descriptors):
            completed = ChildProcess([shell, *arguments], context, descriptors).run(context.timeout)
    except (OSError, ValueError) as error:
        if isinstance(error, TaskTimeoutError):
            raise
        raise TaskExecutionError(_not_started(shell, context, error)) from error
    if completed.returncode != 0:
        raise _failed(completed)
    return completed


def _failed(completed: subprocess.CompletedProcess[str]) -> TaskExecutionError:
    """Return the error of a script that did not end with 0. A long stderr is not read for it."""
    code = completed.returncode
    if code < 0:
        return TaskExecutionError(error_text(code, stderr_end(completed, STDERR_CHARACTERS_MAX)), completed)
    error = TaskExecutionError("", completed)
    error.args = (stderr_of(completed) or error_text(code, ""),)
    return error


def _not_started(shell: str, context: TaskContext, error: Exception) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError) and error.filename == context.cwd is not None:
        return f"could not be started: the folder {context.cwd!r} (cwd) does not exist or is no folder"
    if "null byte" in str(error):
        if "\0" in (context.cwd or ""):
            return f"could not be started: the folder {context.cwd!r} (cwd) holds a NUL character, which no path can"
        return "could not be started: the script holds a NUL character, which no command line can"
    if isinstance(error, OSError) and error.errno == errno.E2BIG:
        size = len(encoded(context.payload, "the script"))
        return (
            f"{shell} could not be started: the script ({size} bytes) and the variables"
            f" are more than this system gives a process: {error.strerror}. Keep long ones in a file"
        )
    return f"{shell} could not be started: {error}"
