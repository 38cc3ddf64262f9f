"""What the exit code of a script means, and why a task failed, in the words that every place shows."""

from __future__ import annotations

import signal
from typing import Final

from ttasks.events.status import TerminationReason

LINES_MAX: Final = 20
BYTES_MAX: Final = 3000
"""How much of stderr follows a signal in an error text. Rows keep the last 4 KiB, and the signal comes first."""

_SIGNALS: Final = {
    "SIGKILL": "probably out of memory, or kill -9",
    "SIGTERM": "asked to end, by kill or a shutdown",
    "SIGINT": "Ctrl-C, or kill -INT",
    "SIGHUP": "terminal closed",
    "SIGQUIT": "Ctrl-\\, or kill -QUIT",
    "SIGSEGV": "a crash: invalid memory access",
    "SIGBUS": "a crash: invalid memory access, or no space for a mapped file",
    "SIGILL": "a crash: invalid instruction, perhaps of another processor",
    "SIGFPE": "a crash: arithmetic error, such as a division by zero",
    "SIGABRT": "a crash: failed assertion, or unhandled error",
    "SIGTRAP": "a breakpoint, or a failed assertion",
    "SIGSYS": "a system call that is forbidden here",
    "SIGPIPE": "writing to a pipe that nothing reads any more",
    "SIGALRM": "a timer of its own",
    "SIGXCPU": "CPU time used up, ulimit -t",
    "SIGXFSZ": "file too large, ulimit -f",
}
_SHELL_CODES: Final = {
    126: "a command was found, but could not be executed",
    127: "a command was not found",
}
_SHELL_SIGNAL: Final = 128
"""A shell whose command was ended by a signal exits with this plus the number of the signal."""


def exit_text(code: int, reason: str | None = TerminationReason.EXIT_CODE) -> str:
    """Say what an exit code means: ``exited with code 7``, ``killed by SIGKILL (probably out of memory, or kill -9)``.

    Args:
        code: as `subprocess` has it: below zero, the number of the signal that ended the script.
        reason: why the attempt ended. Where that is not the exit code, ttasks ended the script: no cause is guessed.
    """
    is_guessed = reason == TerminationReason.EXIT_CODE
    if code < 0:
        name = _signal_name(-code) or f"signal {-code}"
        cause = f" ({_SIGNALS[name]})" if is_guessed and name in _SIGNALS else ""
        return f"killed by {name}{cause}"
    text = f"exited with code {code}"
    if not is_guessed:
        return text
    if code in _SHELL_CODES:
        return f"{text} ({_SHELL_CODES[code]})"
    name = _signal_name(code - _SHELL_SIGNAL)
    if name in _SIGNALS:
        return f"{text} (a command was killed by {name}, {_SIGNALS[name]})"
    return text


def error_text(code: int, stderr: str) -> str:
    """Return the error text of a script that ended with another code than 0.

    It is stderr, or the code where there is none. Of a script that a signal ended, stderr can't say so: the signal
    comes first, and the last lines of stderr follow.
    """
    if code >= 0:
        return stderr or f"exited with code {code}"
    end = stderr[-BYTES_MAX:].encode("utf-8", "surrogatepass")[-BYTES_MAX:].decode("utf-8", "ignore")
    return "\n".join([exit_text(code), *end.strip("\n").split("\n")[-LINES_MAX:]]).rstrip("\n")


def why(error: str | None, code: int | None, reason: str | None) -> str:
    """Say in one line why a task or an attempt failed: by its exit code, where that is why, and the last line it said.

    Args:
        error: its error text, or the end of that.
        code: its exit code (None: it has none).
        reason: why it ended, a `TerminationReason` (None: success, or nothing is known).
    """
    last = (error or "").strip().rpartition("\n")[2].rpartition("\r")[2]
    if not code or reason != TerminationReason.EXIT_CODE:
        return last
    text = exit_text(code)
    return text if last in ("", text, f"exited with code {code}") else f"{text}: {last}"


def _signal_name(number: int) -> str:
    """Return the name of a signal; empty where it has none, or only one among the real-time signals."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        return ""
    return name if not name.startswith("SIGRT") else ""
