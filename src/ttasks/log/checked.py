"""What the last check of a ledger found, kept beside it for whoever looks later.

It is only a note: anybody who can write there can write it. It says what to check again, never that all is well.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ttasks import clock
from ttasks.errors import LedgerUnwritableError
from ttasks.events.codec import from_iso, iso
from ttasks.log import place
from ttasks.log.files import checked_path
from ttasks.log.query import POSITION_MAX
from ttasks.log.reading import UNREADABLE
from ttasks.log.verify import Report
from ttasks.version import __version__

BYTES_MAX: Final = 4096
"""How much of a side file is read: more than that is none of ours."""
TEXT_LENGTH_MAX: Final = 256
YEAR_MIN: Final = 1970
YEAR_MAX: Final = 9999


@dataclass(frozen=True)
class Checked:
    """A check of a ledger.

    `by` is ``user@host``; `position` and `head` are the place and the hash (hex) of the last event that it read, 0 and
    zeros where there was none; `problems` is how many promises were broken, `promise` and `broken_at` are of the first
    of them (None: it shows at no single event); `version` is that of the ttasks that checked.
    """

    at: datetime
    by: str
    position: int
    head: str
    problems: int
    promise: str | None
    broken_at: int | None
    version: str

    @property
    def is_clean(self) -> bool:
        """True when every promise held."""
        return self.problems == 0


def checked_now(report: Report) -> Checked:
    """Return what is to be kept of a check that has just been made."""
    first = report.first
    return Checked(
        at=clock.now(),
        by=clock.whoami()[:TEXT_LENGTH_MAX],
        position=report.events,
        head=report.head,
        problems=len(report.problems),
        promise=first.promise if first is not None else None,
        broken_at=first.position if first is not None else None,
        version=__version__,
    )


def write(path: Path, checked: Checked) -> bool:
    """Keep a check beside the ledger at `path`, whole and for its owner only; return False where it can't be written.

    What was kept before stays then. Nobody waits for it to reach the disk: whoever loses it checks again.
    """
    beside = checked_path(path)
    unfinished = beside.with_name(beside.name + "-new")
    try:
        unfinished.unlink(missing_ok=True)  # of a check that was killed; one that goes on now loses its note
        descriptor = place.open_beside(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_to_text(checked))
        unfinished.replace(beside)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        return False
    return True


def read(path: Path) -> Checked | None:
    """Return the last check of the ledger at `path`; None: there is none, or none that ttasks would have written."""
    with contextlib.suppress(LedgerUnwritableError, OSError, *UNREADABLE):
        return _from_text(_content(checked_path(path)))
    return None


def _content(path: Path) -> bytes:
    """Return the first bytes of a side file."""
    descriptor = place.open_beside(path, os.O_RDONLY)
    try:
        return os.read(descriptor, BYTES_MAX + 1)
    finally:
        os.close(descriptor)


def _to_text(checked: Checked) -> str:
    first = {"promise": checked.promise, "position": checked.broken_at} if not checked.is_clean else None
    said = {
        "when": iso(checked.at),
        "who": checked.by,
        "is_clean": checked.is_clean,
        "problems": checked.problems,
        "first": first,
        "position": checked.position,
        "head": checked.head,
        "ttasks": checked.version,
    }
    return json.dumps(said) + "\n"


def _from_text(content: bytes) -> Checked:
    if len(content) > BYTES_MAX:
        raise ValueError("it is longer than any that ttasks writes")
    said = json.loads(content)
    problems, first = _number(said["problems"]), said["first"]
    if said["is_clean"] is not (problems == 0) or (first is None) is not (problems == 0):
        raise ValueError("it contradicts itself")
    head = _text(said["head"])
    if len(bytes.fromhex(head)) != 32:
        raise ValueError("its head is no hash")
    at = from_iso(_text(said["when"]))
    if at.tzinfo is None or not YEAR_MIN <= at.year < YEAR_MAX:
        raise ValueError(f"{at} can't be told in every zone")
    broken_at = first["position"] if first is not None else None
    return Checked(
        at=at,
        by=_text(said["who"]),
        position=_number(said["position"]),
        head=head,
        problems=problems,
        promise=_text(first["promise"]) if first is not None else None,
        broken_at=_number(broken_at) if broken_at is not None else None,
        version=_text(said["ttasks"]),
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= POSITION_MAX:
        raise ValueError(f"{value!r} is no count")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > TEXT_LENGTH_MAX:
        raise ValueError("it holds no text where one is due")
    return value
