"""What the states have in common: frozen records that are made whole and copied with changes."""

from __future__ import annotations

from typing import Any, TypeVar

State = TypeVar("State")


def made(record: type[State], **fields: Any) -> State:
    """Return an instance of a frozen dataclass, all of whose fields are given.

    As calling the class, but about four times as fast on records of thirty fields: see `evolve`.
    """
    state = object.__new__(record)
    state.__dict__.update(fields)
    return state


def evolve(state: State, **changes: Any) -> State:
    """Return a copy of a frozen dataclass instance with these fields changed.

    As dataclasses.replace, but about ten times as fast on records of thirty fields (it neither calls __init__ nor
    sets each field through object.__setattr__), and this runs for every event.
    """
    copy = object.__new__(type(state))
    copy.__dict__.update(state.__dict__)
    copy.__dict__.update(changes)
    return copy
