"""What surrounds a fact in the log: its place, its stream, its runner, its cause, its hash."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ttasks.events.facts import Fact
from ttasks.public import public


@dataclass(frozen=True)
class OpaqueEvent:
    """An event of a type, or a version of a type, that this ttasks does not know: kept byte for byte.

    `is_ignorable`: its writer says that a fold may pass over it.
    """

    type: str
    type_version: int
    data: str
    is_ignorable: bool = False


@dataclass(frozen=True)
class RecordedEvent:
    """One event as the log holds it; `position` names it within its ledger.

    `version` counts the events of its stream, from 1. `runner` is the position of its runner's RunnerStarted (None
    only in LedgerCreated), `cause` that of the event that led to it. `hash` is 32 bytes.
    """

    position: int
    stream: str
    version: int
    recorded_at: datetime
    runner: int | None
    cause: int | None
    fact: Fact | OpaqueEvent
    hash: bytes

    @property
    def type(self) -> str:
        """The name of the event's type."""
        return self.fact.type if isinstance(self.fact, OpaqueEvent) else type(self.fact).__name__

    @property
    def attempt(self) -> int | None:
        """The attempt it speaks of, counted from 1; None for facts of no attempt."""
        attempt: Any = getattr(self.fact, "attempt", None)
        return attempt if isinstance(attempt, int) else None

    @property
    def data(self) -> dict[str, Any]:
        """What its type holds, as JSON values under the names in docs/reference/format.md; a new dict each time."""
        data: dict[str, Any] = json.loads(self._json())
        return data

    def _json(self) -> str:
        from ttasks.events.codec import encode  # which needs what is defined here

        return encode(self.fact)

    def __str__(self) -> str:
        from ttasks.events.codec import iso

        return f"{self.position} {iso(self.recorded_at)} {self.stream}@{self.version} {self.type} {self._json()}"


def recorded_event(**columns: Any) -> RecordedEvent:
    """Return the event with these fields, all of which are given, three times as fast as `RecordedEvent` does."""
    event = object.__new__(RecordedEvent)
    event.__dict__.update(columns)
    return event


public(OpaqueEvent, RecordedEvent)
