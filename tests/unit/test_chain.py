"""The chain: what is hashed, and that no two events hash alike."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttasks.log.chain import GENESIS, event_hash

EVENT: tuple[Any, ...] = (7, "task-x", 2, "TaskDeleted", 1, "2026-11-24T08:00:00.000000Z", 2, 5, '{"by":"ann"}')
columns = st.tuples(
    st.integers(1), st.text(), st.integers(1), st.text(), st.integers(1), st.text(),
    st.none() | st.integers(1), st.none() | st.integers(1), st.text(),
)  # fmt: skip


def test_an_event_is_hashed_as_the_documents_say() -> None:
    written = (
        b"ttasks event 1\n" + GENESIS + b"1:7,6:task-x,1:2,11:TaskDeleted,1:1,27:2026-11-24T08:00:00.000000Z,1:2,-"
        b'13:{"by":"\xc3\xa4\xc3\xb6"},'
    )

    assert event_hash(GENESIS, (*EVENT[:7], None, '{"by":"äö"}')) == sha256(written).digest()


def test_the_hash_of_a_known_event_never_changes() -> None:
    assert event_hash(GENESIS, EVENT).hex() == "8b3efa86d0a7af207e53dee7f914ceaff877c21bdd57cf234716628035edf0bb"


def test_the_first_event_follows_32_zero_bytes() -> None:
    assert bytes(32) == GENESIS


@pytest.mark.parametrize("place", range(len(EVENT)))
def test_a_change_of_any_column_changes_the_hash(place: int) -> None:
    changed = [*EVENT]
    changed[place] = f"{changed[place]}0" if isinstance(changed[place], str) else changed[place] + 1

    assert event_hash(GENESIS, tuple(changed)) != event_hash(GENESIS, EVENT)


def test_another_hash_before_it_changes_the_hash() -> None:
    assert event_hash(b"\1" * 32, EVENT) != event_hash(GENESIS, EVENT)


def test_a_column_that_is_null_is_not_one_that_says_so() -> None:
    hashes = {event_hash(GENESIS, (*EVENT[:8], data)) for data in (None, "", "-", "None", "0:,")}

    assert len(hashes) == 5


def test_text_can_not_move_from_one_column_into_the_next() -> None:
    assert event_hash(GENESIS, ("ab", "c")) != event_hash(GENESIS, ("a", "bc"))
    assert event_hash(GENESIS, ("1:a,1:b",)) != event_hash(GENESIS, ("a", "b"))


@settings(max_examples=200)
@given(columns, columns)
def test_different_events_have_different_hashes(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert (event_hash(GENESIS, one) == event_hash(GENESIS, other)) == (one == other)


@given(columns)
def test_a_hash_has_32_bytes(event: tuple[Any, ...]) -> None:
    assert len(event_hash(GENESIS, event)) == 32
