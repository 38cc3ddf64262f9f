"""What is masked of the variables that this process inherited, in what tasks give out.

Only there: what people wrote is recorded as they wrote it, so that a variable of the environment never renames a task
or keeps a run from being resumed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from ttasks.log.redaction import SECRET_CHARACTERS_MIN, Redaction
from ttasks.log.secrets import looks_secret

NO_SECRETS: Final = (
    "_FILE", "_PATH", "_DIR", "_URL", "_URI", "_NAME", "_USER", "_HOST", "_PORT", "_TYPE", "_ID",
)  # fmt: skip
"""How names end, in either case, of variables that say where a secret is, or whose it is."""
PLAIN_CHARACTERS_MIN: Final = 16
"""Shorter values of lower-case letters only, or of digits only, are words and numbers that texts may have in them."""

_NOTHING: Final = Redaction()


@dataclass
class _Seen:
    """An environment as it was, and what is looked for of it, by the variables that were named, and named ordinary."""

    environment: Any
    literals: dict[tuple[tuple[str, ...], ...], tuple[str, ...]] = field(default_factory=dict)


_seen = _Seen(None)


def with_inherited(redaction: Redaction | None) -> Redaction | None:
    """Return what is kept out of what a task gives out: what is kept out anyway, and what is inherited by now."""
    global _seen
    seen, now = _seen, _compared()
    if seen.environment != now:
        seen = _seen = _Seen(dict(now))
    said = (redaction.names, redaction.ordinary) if redaction is not None else ()
    literals = seen.literals.get(said)
    if literals is None:
        literals = seen.literals[said] = tuple(inherited_literals(environment(), redaction))
    return _joined(redaction, literals) if literals else redaction


def environment() -> dict[str, str]:
    """Return the variables of this process, though other threads change them meanwhile."""
    return {name: value for name in list(os.environ) if (value := os.environ.get(name)) is not None}


def _compared() -> Mapping[Any, Any]:
    """Return the environment in the form that is compared soonest: it is asked for with each attempt."""
    raw = getattr(os.environ, "_data", None)
    return raw if isinstance(raw, dict) else dict(os.environ)


@lru_cache(maxsize=1024)
def _joined(redaction: Redaction | None, literals: tuple[str, ...]) -> Redaction:
    return (redaction or _NOTHING).with_literals(literals)


def inherited_literals(environment: Mapping[str, str], redaction: Redaction | None) -> list[str]:
    """Return what to look for of these variables: the lines of values that are long and odd enough to be secrets."""
    known = redaction or _NOTHING
    secret = {name for name in environment if looks_secret(name, redaction)}
    of_others = {value.strip() for name, value in environment.items() if name not in secret}
    found: list[str] = []
    for name in sorted(secret):
        value = environment[name]
        if name.upper().endswith(NO_SECRETS) or value.strip() in of_others or os.path.exists(value):  # noqa: PTH110
            continue
        lines = known.literals_of(name, value)
        found += [line for line in lines if line not in of_others and not _may_be_a_word(line)]
    return found


def _may_be_a_word(line: str) -> bool:
    if len(line) >= PLAIN_CHARACTERS_MIN:
        return False
    is_plain = (line.isalpha() and line.islower()) or line.isdigit()
    return is_plain or len(line) < SECRET_CHARACTERS_MIN
