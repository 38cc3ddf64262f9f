"""Facts to JSON text and back, by (type, type_version).

Stored text is always valid UTF-8 without NUL, whatever the facts hold: JSON escapes NUL, and a text with a lone
surrogate (a file name that is no UTF-8) makes its whole event be written in ASCII escapes.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from functools import lru_cache
from math import isfinite
from operator import attrgetter
from typing import Any, Final

from ttasks.events import agent_facts, facts
from ttasks.events.agent_facts import FileEdit
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import Fact, Member, RetrySpec, Source
from ttasks.events.status import OnInterrupted, RunStatus, TaskType
from ttasks.events.upcasters import UPCASTERS, Upcaster


@lru_cache(maxsize=256)  # one moment is written into the event, its row and its attempt's row
def iso(moment: datetime) -> str:
    """Return `moment` in UTC as ``2026-11-24T08:00:00.000000Z``: fixed width, so that texts sort as times do."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    # Half the time of isoformat, which asks for the offset and writes it, to be cut off.
    return "%04d-%02d-%02dT%02d:%02d:%02d.%06dZ" % (  # noqa: UP031 - and an f-string takes as long
        moment.year, moment.month, moment.day, moment.hour, moment.minute, moment.second, moment.microsecond,
    )  # fmt: skip


from_iso: Final = datetime.fromisoformat
"""Returns the aware UTC datetime that `iso` wrote."""


def _json_value(value: object) -> object:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Member | RetrySpec | Source | FileEdit):
        return {name: item for name, item in vars(value).items() if item is not None}
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a fact can't hold {type(value).__name__}")


_write = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, check_circular=False, default=_json_value
).encode
_write_ascii = json.JSONEncoder(
    ensure_ascii=True, separators=(",", ":"), allow_nan=False, check_circular=False, default=_json_value
).encode


def to_json(value: object) -> str:
    """Return `value` as compact JSON that SQLite can hold: valid UTF-8, no NUL.

    Raises:
        ValueError: it holds NaN or an infinity.
        TypeError: it holds something that JSON and this codec have no form for.
    """
    text = _write(value)
    # isascii is a flag of the string, encode walks it: most texts never pay for the check.
    return text if text.isascii() or _is_storable(text) else _write_ascii(value)


def _is_storable(text: str) -> bool:
    """True unless `text` holds a lone surrogate, which UTF-8 has no form for."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_quote: Final = json.encoder.encode_basestring
_WRITERS: Final[Mapping[type, Callable[[Any], str]]] = defaultdict(
    lambda: _write,
    {
        str: _quote,
        TaskType: _quote,
        OnInterrupted: _quote,
        RunStatus: _quote,
        int: int.__repr__,
        datetime: lambda moment: f'"{iso(moment)}"',
        float: lambda number: repr(number) if isfinite(number) else _write(number),
    },
)
"""How a value is written, by its type: those that facts mostly hold need no JSON encoder."""

_ABSTRACT: Final = frozenset({"Fact", "TaskFact", "GraphFact", "AttemptEnd", "AgentFact"})
_TYPES: Final[Mapping[str, type[Fact]]] = {
    name: item
    for name, item in (vars(facts) | vars(agent_facts)).items()
    if isinstance(item, type) and issubclass(item, Fact) and name not in _ABSTRACT
}
FACT_TYPES: Final = frozenset(_TYPES.values())
"""Every type of fact that this version of ttasks writes."""


def _member(data: Mapping[str, Any]) -> Member:
    policy = data.get("retry_policy")
    return Member(
        data["task"],
        tuple(data["after"]),
        data["is_finally"],
        data["is_required"],
        policy and _retry_spec(policy),
    )


def _retry_spec(data: Mapping[str, Any]) -> RetrySpec:
    known = {field.name: data[field.name] for field in fields(RetrySpec) if field.name in data}
    if "retry_on" in known:
        known["retry_on"] = tuple(known["retry_on"])
    return RetrySpec(**known)


_FROM_JSON: Final[Mapping[str, Callable[[Any], Any]]] = {
    "datetime": from_iso,
    "TaskType": TaskType,
    "OnInterrupted": OnInterrupted,
    "RunStatus": RunStatus,
    "RetrySpec": _retry_spec,
    "Source": lambda data: Source(data["path"], data["sha256"]),
    "tuple[Member, ...]": lambda items: tuple(map(_member, items)),
    "tuple[Chunk, ...]": lambda items: tuple(map(tuple, items)),
    "tuple[tuple[int, int], ...]": lambda items: tuple(map(tuple, items)),
    "tuple[FileEdit, ...]": lambda items: tuple(FileEdit(item["path"], item["kind"]) for item in items),
    "tuple[str, ...]": tuple,
    "tuple[int, ...]": tuple,
}


class _Form:
    """How one type of fact is written and read: its fields, and those that JSON has no type for."""

    def __init__(self, fact_type: type[Fact]) -> None:
        self.fact_type = fact_type
        self.names = tuple(field.name for field in fields(fact_type))
        self.keys = tuple(f"{_quote(name)}:" for name in self.names)
        self.values: Callable[[Any], tuple[Any, ...]] = (
            attrgetter(*self.names) if len(self.names) > 1 else lambda fact: (getattr(fact, self.names[0]),)
        )
        declared = {field.name: str(field.type).removesuffix(" | None") for field in fields(fact_type)}
        self.readers = {name: _FROM_JSON[kind] for name, kind in declared.items() if kind in _FROM_JSON}


_FORMS: Final = {fact_type: _Form(fact_type) for fact_type in FACT_TYPES}


def encode(fact: Fact | OpaqueEvent) -> str:
    """Return the JSON text that is stored and hashed: the fields in declared order, those that are None left out."""
    if isinstance(fact, OpaqueEvent):
        return fact.data
    return as_stored(fact)[1]


def as_stored(fact: Fact) -> tuple[Fact, str]:
    """Return the fact as it will be read back, and the text that `encode` returns.

    It is another one only where it holds two surrogates in a row: JSON can't tell them from the character they make.
    """
    form = _FORMS[type(fact)]
    # By hand, because a JSON encoder that is given a dict takes five times as long, and this is done for every event.
    parts = [
        f"{key}{_WRITERS[type(value)](value)}"
        for key, value in zip(form.keys, form.values(fact), strict=True)
        if value is not None
    ]
    text = "{" + ",".join(parts) + "}"
    if text.isascii() or _is_storable(text):
        return fact, text
    escaped = _write_ascii(json.loads(text))
    read = decode(type(fact).__name__, fact.TYPE_VERSION, escaped)
    assert isinstance(read, Fact)
    return read, escaped


def decode(
    type_name: str, type_version: int, data: str, upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS
) -> Fact | OpaqueEvent:
    """Return the fact that `encode` wrote, lifted to today's version of its type; fields from the future are dropped.

    A type, or a version of one, that this ttasks does not know comes back as an OpaqueEvent.

    Raises:
        ValueError, KeyError, TypeError: the data is not what this type of fact holds.
    """
    fact_type = _TYPES.get(type_name)
    if fact_type is None or type_version > fact_type.TYPE_VERSION:
        return OpaqueEvent(type_name, type_version, data, json.loads(data).get("ignorable") is True)
    content = lift(fact_type, type_version, data, upcasters)
    form = _FORMS[fact_type]
    known = {name: content[name] for name in form.names if name in content}
    for name, read in form.readers.items():
        if name in known:
            known[name] = read(known[name])
    return fact_type(**known)


def lift(
    fact_type: type[Fact], type_version: int, data: str, upcasters: Mapping[tuple[str, int], Upcaster] = UPCASTERS
) -> dict[str, Any]:
    """Return the content of stored data, in the form that today's version of its type has."""
    content: dict[str, Any] = json.loads(data)
    for version in range(type_version, fact_type.TYPE_VERSION):
        content = upcasters[fact_type.__name__, version](content)
    return content
