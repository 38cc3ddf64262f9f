"""What agents say, made to fit: whatever it is, the event can be stored, read back and verified.

An agent's numbers and arguments are not ours. One that no ledger can hold must not cost the fact that it is in, nor
the commit that it shares with others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import isfinite
from typing import Any, Final

from ttasks.events.agent_facts import AgentFact, Json

DEPTH_MAX: Final = 100
"""How deep lists and objects may lie in each other: pydantic reads 200 levels, SQLite 1000."""
LEFT_OUT: Final = "…"
"""What stands in the place of what lies deeper."""
_INTEGER_MAX: Final = 2**63 - 1


def fitted(fact: AgentFact) -> AgentFact:
    """Return `fact` as a ledger can hold it.

    A number that does not fit (64 bits, finite) becomes a text inside of arguments, and None elsewhere. Arguments that
    are deeper than `DEPTH_MAX` end in ``…`` there; names in them that are no texts become texts.
    """
    changed: dict[str, Any] = {}
    for name, value in vars(fact).items():
        if name == "arguments":
            if not _fits(value, DEPTH_MAX):
                changed[name] = _fitted(value, DEPTH_MAX)
        elif isinstance(value, int | float) and not _is_number(value):
            changed[name] = None
    return replace(fact, **changed) if changed else fact


def _is_number(value: float) -> bool:
    return -_INTEGER_MAX - 1 <= value <= _INTEGER_MAX if isinstance(value, int) else isfinite(value)


def _fits(value: Json, depth: int) -> bool:
    if isinstance(value, Mapping):
        return depth > 0 and all(isinstance(name, str) and _fits(item, depth - 1) for name, item in value.items())
    if isinstance(value, list | tuple):
        return depth > 0 and all(_fits(item, depth - 1) for item in value)
    return not isinstance(value, int | float) or _is_number(value)


def _fitted(value: Json, depth: int) -> Json:
    if isinstance(value, Mapping):
        return {str(name): _fitted(item, depth - 1) for name, item in value.items()} if depth > 0 else LEFT_OUT
    if isinstance(value, list | tuple):
        return [_fitted(item, depth - 1) for item in value] if depth > 0 else LEFT_OUT
    return str(value) if isinstance(value, int | float) and not _is_number(value) else value
