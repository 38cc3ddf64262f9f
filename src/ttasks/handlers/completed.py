"""What a child process came to: a `subprocess.CompletedProcess`, also where what it printed stays in the ledger."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from ttasks.handlers.kept import Kept
from ttasks.log.stored import StoredText


def completed_process(
    command: Sequence[str], returncode: int, kept: Mapping[str, Kept]
) -> subprocess.CompletedProcess[str]:
    """Return what a process came to whose output was kept like this, by stream."""
    stdout, stderr = kept["stdout"].shown(), kept["stderr"].shown()
    if isinstance(stdout, StoredText) or isinstance(stderr, StoredText):
        return StoredProcess(command, returncode, stdout, stderr)
    return subprocess.CompletedProcess(command, returncode, stdout, stderr)


def stderr_of(completed: subprocess.CompletedProcess[str]) -> str | StoredText:
    """Return what a process printed to stderr, without reading it where the ledger has it."""
    return completed.shown["stderr"] if isinstance(completed, StoredProcess) else completed.stderr


def stderr_end(completed: subprocess.CompletedProcess[str], characters_max: int) -> str:
    """Return the last characters that a process printed to stderr; of what the ledger has no more is held at once."""
    stderr = stderr_of(completed)
    parts = [stderr] if isinstance(stderr, str) else stderr.parts()
    end = ""
    for part in parts:
        end = (end + part)[-characters_max:]
    return end


class StoredProcess(subprocess.CompletedProcess[Any]):
    """One whose `stdout` or `stderr` is read from the ledger, each time that it is asked for.

    `shown` holds both as they were given. Pickled or copied it becomes a plain CompletedProcess with the whole texts.

    Args:
        command: its `args`.
        returncode: its exit code.
        stdout, stderr: a text (bytes, None), or one that is stored.
        is_binary: stored texts are given out as bytes.
    """

    def __init__(
        self, command: Any, returncode: int, stdout: object, stderr: object, *, is_binary: bool = False
    ) -> None:
        self.shown: dict[str, Any] = {}
        self._is_binary = is_binary
        super().__init__(command, returncode, stdout, stderr)

    def _read(self, stream: str) -> Any:
        shown = self.shown[stream]
        if not isinstance(shown, StoredText):
            return shown
        return shown.read().encode() if self._is_binary else shown.read()

    @property
    def stdout(self) -> Any:
        """What it printed to stdout."""
        return self._read("stdout")

    @stdout.setter
    def stdout(self, value: object) -> None:
        self.shown["stdout"] = value

    @property
    def stderr(self) -> Any:
        """What it printed to stderr."""
        return self._read("stderr")

    @stderr.setter
    def stderr(self, value: object) -> None:
        self.shown["stderr"] = value

    def _whole(self) -> subprocess.CompletedProcess[Any]:
        return subprocess.CompletedProcess(self.args, self.returncode, self.stdout, self.stderr)

    def __repr__(self) -> str:
        return repr(self._whole())

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.CompletedProcess, (self.args, self.returncode, self.stdout, self.stderr)
