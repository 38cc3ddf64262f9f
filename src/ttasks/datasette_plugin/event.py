"""One event: what it holds, where it stands among others, and whether its hash is still that of what is stored."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ttasks.datasette_plugin.ledgers import Ledger, Links, is_too_long, within
from ttasks.datasette_plugin.page import Asked, Page
from ttasks.datasette_plugin.printed import lines_of
from ttasks.datasette_plugin.telling import told
from ttasks.datasette_plugin.terminal import Block, Line
from ttasks.display import printable
from ttasks.errors import DamagedLedgerError, LedgerUnwritableError, NotFoundError
from ttasks.events.codec import from_iso
from ttasks.events.envelope import OpaqueEvent, RecordedEvent
from ttasks.events.facts import TaskOutput
from ttasks.log.chain import GENESIS, event_hash
from ttasks.log.query import ENVELOPE, POSITION_MAX
from ttasks.log.reading import CHANGING_NOTHING, Readers, event_of, in_one_view
from ttasks.state import rows

EFFECTS_LOOKED_THROUGH: Final = 50_000
"""How many positions are looked through for events that this one led to: there is no index of causes."""
EFFECTS_MAX: Final = 50
SECONDS_MAX: Final = 2.0
SHORT_CHARACTERS: Final = 120


@dataclass(frozen=True)
class Near:
    """Another event, to be linked to."""

    position: int
    stream: str
    type: str


@dataclass(frozen=True)
class Field:
    """One of the things an event holds. `href` leads to what it names; `is_short`: it fits into a line."""

    name: str
    text: Block
    is_short: bool
    href: str | None = None


@dataclass(frozen=True)
class About:
    """Whose event it is, and where that is shown (None: nowhere)."""

    name: str
    href: str | None


def page(ledger: Ledger, asked: Asked) -> Page:
    """Return the page of an event.

    Raises:
        NotFoundError: there is no such event.
    """
    readers = ledger.readers
    position = min(asked.number("position") or 0, POSITION_MAX)
    row, before = readers.ask(in_one_view(lambda connection: _stored(connection, position)))
    if row is None:
        raise NotFoundError(f"there is no event {position} in this ledger: its latest is {readers.head_position()}")
    _, stream, version, type_, type_version, recorded_at, runner, cause, data, hash_ = row
    event, lines, left_out, problem = _read(row)
    context: dict[str, Any] = {
        "position": position,
        "stream": stream,
        "version": version,
        "type": type_,
        "type_version": type_version,
        "recorded_at": from_iso(recorded_at),
        "runner_position": runner,
        "runner": readers.runner(runner) if runner is not None else None,
        "cause_position": cause,
        "about": _about(readers, ledger.links, stream, position),
        "says": told(event.fact) if event is not None else "",
        **readers.ask(in_one_view(lambda connection: _near(connection, position, stream, version, cause))),
        **_effects(readers, position),
        **_held(ledger.links, event, data),
        "problem": problem,
        "printed": lines,
        "has_errors": any(stream == "stderr" for stream, _ in lines or ()),
        "left_out": left_out,
        "hash": hash_.hex(),
        "hash_before": before.hex() if before is not None else GENESIS.hex(),
        "has_before": before is not None,
        "matches": event_hash(before if before is not None else GENESIS, row[:-1]) == hash_,
        "verify": ledger.command("verify"),
    }
    return Page("event.html", f"Event {position}: {printable(type_)}", context)


def _stored(connection: sqlite3.Connection, position: int) -> tuple[tuple[Any, ...] | None, bytes | None]:
    """Return the event as it is stored, and the hash of the one before it."""
    query = f"SELECT {ENVELOPE} FROM events WHERE position = ?"  # noqa: S608
    row = connection.execute(query, (position,)).fetchone()
    before = connection.execute("SELECT hash FROM events WHERE position = ?", (position - 1,)).fetchone()
    return row, before[0] if before is not None else None


Lines: TypeAlias = list[tuple[str, Line]]


def _read(row: tuple[Any, ...]) -> tuple[RecordedEvent | None, Lines | None, int, str]:
    """Return the event, the lines that it prints, how many characters come before those, and why it can't be read."""
    try:
        event = event_of(row)
        if not isinstance(event.fact, TaskOutput):
            return event, None, 0, ""
        return event, *lines_of(event, event.fact), ""
    except DamagedLedgerError as error:
        return None, None, 0, str(error)


def _about(readers: Readers, links: Links, stream: str, position: int) -> About:
    kind, _, id_ = stream.partition("-")
    if kind == "task":
        task = readers.task(id_)
        return About(f"task {task.title or id_}" if task is not None else stream, links.task(id_))
    if kind == "graph":
        query = "SELECT title FROM graphs WHERE id = ?"
        found = readers.ask(lambda connection: connection.execute(query, (id_,)).fetchone())
        return About(f"graph {rows.from_text(found[0]) or id_}" if found is not None else stream, links.run(id_))
    if kind == "runner":
        query = "SELECT position FROM runners WHERE id = ?"
        found = readers.ask(lambda connection: connection.execute(query, (id_,)).fetchone())
        runner = readers.runner(found[0]) if found is not None else None
        if runner is not None:
            is_this = runner.position == position
            href = links.table("runners", position=position) if is_this else links.event(runner.position)
            return About(f"runner {runner.user}@{runner.host}", href)
    return About(stream, links.home() if stream == "ledger" else None)


def _near(
    connection: sqlite3.Connection, position: int, stream: str, version: int, cause: int | None
) -> dict[str, Near | None]:
    def one(where: str, *parameters: Any) -> Near | None:
        query = f"SELECT position, stream, type FROM events WHERE {where}"  # noqa: S608
        found = connection.execute(query, parameters).fetchone()
        return Near(*found) if found is not None else None

    return {
        "previous": one("position = ?", position - 1),
        "following": one("position = ?", position + 1),
        "previous_in_stream": one("stream = ? AND version = ?", stream, version - 1),
        "following_in_stream": one("stream = ? AND version = ?", stream, version + 1),
        "cause": one("position = ?", cause) if cause is not None else None,
    }


def _effects(readers: Readers, position: int) -> dict[str, Any]:
    """Return the events that this one led to, as far as they were looked for; what can be thousands is counted."""
    last = min(position + EFFECTS_LOOKED_THROUGH, POSITION_MAX)
    marks = ", ".join("?" * len(CHANGING_NOTHING))
    near = f"FROM events WHERE position > ? AND position <= ? AND cause = ? AND type {{}} ({marks})"
    listed = f"SELECT position, stream, type {near.format('NOT IN')} ORDER BY position LIMIT {EFFECTS_MAX + 1}"
    counted = f"SELECT type, count(*), min(position) {near.format('IN')} GROUP BY type"
    parameters = (position, last, position, *CHANGING_NOTHING)

    def question(connection: sqlite3.Connection) -> dict[str, Any]:
        found = [Near(*row) for row in connection.execute(listed, parameters)]
        reports = connection.execute(counted, parameters).fetchall()
        (head,) = connection.execute("SELECT max(position) FROM events").fetchone()
        return {
            "effects": found[:EFFECTS_MAX],
            "are_more": len(found) > EFFECTS_MAX,
            "reports": reports,
            "looked_to": last if head > last else None,
        }

    try:
        return readers.ask(in_one_view(within(SECONDS_MAX, question)))
    except LedgerUnwritableError as error:
        if not is_too_long(error):
            raise
        return {"effects": [], "are_more": False, "reports": [], "looked_to": position}


def _held(links: Links, event: RecordedEvent | None, data: str) -> dict[str, Any]:
    """Return what the event holds: as fields where its type is known, and as it is stored."""
    fact = event.fact if event is not None else None
    is_unknown = isinstance(fact, OpaqueEvent)
    held: dict[str, Any] = {
        "is_unknown": is_unknown,
        "is_ignorable": isinstance(fact, OpaqueEvent) and fact.is_ignorable,
        "fields": [],
        "raw_open": fact is None or is_unknown,
        "raw": _raw(data, is_readable=fact is not None),
    }
    if event is None or is_unknown:
        return held
    content = event.data
    if isinstance(event.fact, TaskOutput):
        del content["chunks"]  # which are drawn
    held["fields"] = [_field(links, event, content, name) for name in content]
    return held


def _raw(data: str, *, is_readable: bool) -> Block:
    return Block.of(_json(json.loads(data)) if is_readable else data)


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _field(links: Links, event: RecordedEvent, content: Mapping[str, Any], name: str) -> Field:
    value = content[name]
    text = value if isinstance(value, str) else _json(value)
    is_short = len(text) <= SHORT_CHARACTERS and "\n" not in text
    return Field(name, Block.of(text), is_short, _href(links, event, content, name))


def _href(links: Links, event: RecordedEvent, content: Mapping[str, Any], name: str) -> str | None:
    """Return where that is shown which the field names."""
    value = content[name]
    is_of_task = event.stream.startswith("task-")
    if name == "attempt" and is_of_task and isinstance(value, int):
        return links.task(event.stream.removeprefix("task-"), value)
    if name == "run" and not is_of_task and isinstance(value, int):
        return links.run(event.stream.removeprefix("graph-"), value)
    if not isinstance(value, str):
        return None
    if name == "graph":
        return links.run(value, content.get("run"))
    if name == "blocked_by" or (name == "derived_from" and is_of_task):
        return links.task(value)
    return links.run(value) if name == "derived_from" else None
