"""What a run had in its environment, noted beside its ledger, so that whoever goes on with it can see a difference.

Nothing of it is in the ledger, from which nothing can be removed. The note has names, and of each value 16 bits of an
HMAC whose key is in the note: one value of 65,536 that are tried has the same, so a difference shows, and a guess is
not confirmed. Of variables that are secret it has only that they were set.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ttasks.errors import LedgerUnwritableError
from ttasks.log import place
from ttasks.log.inherited import environment
from ttasks.log.reading import UNREADABLE
from ttasks.log.redaction import Redaction
from ttasks.log.secrets import is_withheld
from ttasks.public import public

SESSION: Final = frozenset({
    "_", "SHLVL", "PWD", "OLDPWD", "TERM", "COLORTERM", "COLUMNS", "LINES", "WINDOWID", "DISPLAY", "WAYLAND_DISPLAY",
    "XAUTHORITY", "XDG_SEAT", "XDG_VTNR", "XDG_ACTIVATION_TOKEN", "DBUS_SESSION_BUS_ADDRESS", "DESKTOP_STARTUP_ID",
    "SESSION_MANAGER", "GPG_TTY", "GPG_AGENT_INFO", "TMUX", "STY", "WINDOW", "VTE_VERSION", "INVOCATION_ID",
    "JOURNAL_STREAM", "SYSTEMD_EXEC_PID", "MANAGERPID",
})  # fmt: skip
"""Variables of a session or terminal, which are others each time and mean nothing to what runs."""
SESSION_BEGINNINGS: Final = (
    "TTASKS_", "SSH_", "TERM_", "XDG_SESSION_", "TMUX_", "KONSOLE_", "ITERM_", "LC_TERMINAL", "VSCODE_",
)  # fmt: skip
"""How the names of other such variables begin, and of those that ttasks gives a script."""
NOTES_MAX: Final = 50
"""How many notes are kept beside a ledger: the oldest go first, such as those of failed runs that nobody retries."""
BYTES_MAX: Final = 4 * 1024 * 1024
"""More than Linux lets a process have in its environment."""
_ID: Final = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_SET: Final = ""
"""What stands for the value of a secret variable."""


@dataclass(frozen=True)
class EnvironmentChange:
    """How this process's environment differs from that of a run: names of variables, sorted.

    `missing` are no longer set, `new` were not set then, and `changed` have another value.
    """

    missing: tuple[str, ...]
    changed: tuple[str, ...]
    new: tuple[str, ...]

    def __bool__(self) -> bool:
        """True when anything differs."""
        return bool(self.missing or self.changed or self.new)


def note_path(ledger: Path, graph_id: str) -> Path:
    """Return the side file that has the environment of a graph's latest run."""
    real = Path(os.path.realpath(ledger))
    return real.with_name(f"{real.name}-env-{graph_id}")


def keep_environment(ledger: Path, graph_id: str, redaction: Redaction | None) -> None:
    """Note the environment that a run of a graph begins in. Where that can't be written, there is no note."""
    key = os.urandom(16)
    text = json.dumps({"key": key.hex(), "variables": _variables(key, redaction)})
    path = note_path(ledger, graph_id)
    # No run fails for it, where a disk is full or a folder can't be written; nor does one wait for it to be synced.
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        descriptor = place.open_beside(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        _drop_oldest(path, note_path(ledger, ""))


def _drop_oldest(path: Path, like: Path) -> None:
    with os.scandir(path.parent) as entries:  # another ledger, or a folder, may have a name that begins like a note's
        begun_like = [entry for entry in entries if entry.name.startswith(like.name)]
        notes = [
            entry
            for entry in begun_like
            if _ID.fullmatch(entry.name.removeprefix(like.name)) and not entry.is_dir(follow_symlinks=False)
        ]
    if len(notes) > NOTES_MAX:
        by_age = sorted(notes, key=lambda entry: entry.stat(follow_symlinks=False).st_mtime_ns)
        for entry in by_age[: len(notes) - NOTES_MAX]:
            Path(entry.path).unlink(missing_ok=True)


def forget_environment(ledger: Path, graph_id: str) -> None:
    """Remove the note of a graph's run, if there is one: nobody will go on with it."""
    with contextlib.suppress(OSError):
        note_path(ledger, graph_id).unlink(missing_ok=True)


def environment_change(ledger: Path, graph_id: str, redaction: Redaction | None) -> EnvironmentChange | None:
    """Return how the environment differs from that which a run of a graph began in; None: there is no note of that."""
    read = _read(note_path(ledger, graph_id))
    if read is None:
        return None
    key, then = read
    now = _variables(key, redaction)
    both = then.keys() & now.keys()
    return EnvironmentChange(
        missing=tuple(sorted(then.keys() - now.keys())),
        # What counts as secret may be said differently by now, so that one of the two has no digest.
        changed=tuple(sorted(name for name in both if _SET not in (then[name], now[name]) and then[name] != now[name])),
        new=tuple(sorted(now.keys() - then.keys())),
    )


def _variables(key: bytes, redaction: Redaction | None) -> dict[str, str]:
    """Return for each variable that counts the 16 bits of its value, in hex, or nothing where it is secret."""
    import hmac

    return {
        name: _SET
        if is_withheld(name, value, redaction)
        else hmac.digest(key, os.fsencode(f"{name}={value}"), "sha256")[:2].hex()
        for name, value in environment().items()
        if name not in SESSION and not name.startswith(SESSION_BEGINNINGS)
    }


def _read(path: Path) -> tuple[bytes, Mapping[str, str]] | None:
    """Return the key and the variables in a note; None where there is none that ttasks would have written."""
    with contextlib.suppress(LedgerUnwritableError, OSError, *UNREADABLE):
        note = json.loads(_content(path))
        variables = note["variables"]
        if isinstance(variables, dict) and all(isinstance(value, str) for value in variables.values()):
            return bytes.fromhex(note["key"]), variables
    return None


def _content(path: Path) -> str:
    with os.fdopen(place.open_beside(path, os.O_RDONLY), "rb") as file:
        return file.read(BYTES_MAX).decode("utf-8", "surrogateescape")


public(EnvironmentChange)
