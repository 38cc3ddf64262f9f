"""Whether what is stored of an event has the form of its type, which nothing but `verify` asks.

Decoding trusts what `encode` wrote. Here it may be anything that somebody got into the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from math import isfinite
from types import NoneType
from typing import Any, Final

from ttasks.events.codec import from_iso, iso, lift, to_json
from ttasks.events.facts import Fact
from ttasks.log.query import ENVELOPE
from ttasks.state.task import TaskState

COLUMNS: Final = tuple(ENVELOPE.split(", "))
_CLASSES: Final = {int: "INTEGER", str: "TEXT", bytes: "BLOB", float: "REAL", NoneType: "NULL"}
_INTEGER_OR_NULL: Final = (int, NoneType)
_STORED: Final = ((int,), (str,), (int,), (str,), (int,), (str,), _INTEGER_OR_NULL, _INTEGER_OR_NULL, (str,), (bytes,))
_USUAL: Final = frozenset(
    (int, str, int, str, int, str, runner, cause, str, bytes)
    for runner in _INTEGER_OR_NULL
    for cause in _INTEGER_OR_NULL
)
HASH_BYTES: Final = 32
Validate = Callable[..., object]
_FORMS: dict[type[Any], tuple[Validate, tuple[str, ...]]] = {}

_LONE_SURROGATE: Final = re.compile(r"\\ud[89a-f][0-9a-f]{2}")
"""What pydantic reads no text with; any character in its place has the same form."""
_MAY_BE_NO_NUMBER: Final = re.compile(r"\d{19}|[eE]\+?\d{3}|NaN|Infinity")
"""Without any of these in it, JSON holds only numbers that fit into 64 bits."""


def envelope_problem(row: tuple[Any, ...]) -> str | None:
    """Return what is wrong with the form of a stored envelope; None where nothing is.

    Texts in it that are not UTF-8 hold lone surrogates (``surrogateescape``).
    """
    if tuple(map(type, row)) not in _USUAL:
        columns = zip(COLUMNS, map(type, row), _STORED, strict=True)
        column, stored, allowed = next(each for each in columns if each[1] not in each[2])
        return f"its {column} is {_CLASSES[stored]}, not {_CLASSES[allowed[0]]}"
    if not (row[1] + row[3] + row[5] + row[8]).isascii():
        for column, value in zip(COLUMNS, row, strict=True):
            if isinstance(value, str) and not _is_utf8(value):
                return f"its {column} is not UTF-8"
    if len(row[-1]) != HASH_BYTES:
        return f"its hash has {len(row[-1])} bytes, not {HASH_BYTES}"
    if not _is_time(row[COLUMNS.index("recorded_at")]):
        return "its recorded_at is not a time as 2026-11-24T08:00:00.000000Z is one"
    return None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_time(text: str) -> bool:
    try:
        return iso(from_iso(text)) == text
    except (ValueError, OverflowError):
        return False


def fact_problem(fact: Fact, type_version: int, data: str) -> str | None:
    """Return what is wrong with the form of a fact that could be decoded from `data`; None where nothing is."""
    fact_type = type(fact)
    if type_version < fact_type.TYPE_VERSION:
        data = to_json(lift(fact_type, type_version, data))
    validate, times = _form(fact_type)
    problem = _problem(validate, data)
    if problem is not None:
        return problem
    for name in times:
        value = getattr(fact, name)
        if value is not None and value.tzinfo is not UTC:
            return f"{name} is not a time in UTC"
    return None


def state_problem(state: TaskState) -> str | None:
    """Return what is wrong with the form of a task that was folded from facts which may hold anything."""
    result = vars(state.result) if state.result is not None else None
    return _problem(_form(TaskState)[0], to_json({**vars(state), "result": result}))


def _form(record: type[Any]) -> tuple[Validate, tuple[str, ...]]:
    """Return what checks JSON for being a `record`, and which of its fields are times."""
    if record not in _FORMS:
        from pydantic import TypeAdapter

        kinds = (datetime.__name__, f"{datetime.__name__} | None")
        times = tuple(field.name for field in fields(record) if field.type in kinds)
        _FORMS[record] = (TypeAdapter(record).validate_json, times)
    return _FORMS[record]


def _problem(validate: Validate, data: str) -> str | None:
    from pydantic import ValidationError

    if _MAY_BE_NO_NUMBER.search(data):
        try:
            json.loads(data, parse_int=_integer, parse_float=_float, parse_constant=_float)
        except ValueError as error:
            return str(error)
    if "\\ud" in data:
        data = _LONE_SURROGATE.sub(r"\\ufffd", data)
    try:
        validate(data, strict=True)
    except ValidationError as error:
        first, *more = error.errors(include_url=False, include_context=False, include_input=False)
        place = ".".join(map(str, first["loc"]))
        others = f" (and {len(more)} more)" if more else ""
        return f"{place}: {first['msg']}{others}" if place else f"{first['msg']}{others}"
    return None


def _integer(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"the number {text[:20]}… does not fit into 64 bits")
    return number


def _float(text: str) -> float:
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"the number {text[:20]} is not finite")
    return number
