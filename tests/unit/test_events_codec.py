"""The codec: every fact comes back as it was, in a form that SQLite can hold."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import FrozenInstanceError, dataclass, fields
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import AT, created, facts_of, texts, times
from ttasks.events import agent_facts as a
from ttasks.events import codec
from ttasks.events import facts as f
from ttasks.events.codec import FACT_TYPES, decode, encode, from_iso, iso, to_json
from ttasks.events.envelope import OpaqueEvent
from ttasks.events.facts import Fact

TYPES = sorted(FACT_TYPES, key=lambda fact_type: fact_type.__name__)
any_fact = st.one_of(map(facts_of, TYPES))


def read_back(fact: Fact) -> Fact | OpaqueEvent:
    return decode(type(fact).__name__, fact.TYPE_VERSION, encode(fact))


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        yield connection


@pytest.mark.parametrize("fact_type", TYPES)
def test_decoding_what_was_encoded_gives_the_same_fact(fact_type: type[Fact]) -> None:
    @settings(max_examples=25)
    @given(facts_of(fact_type))
    def check(fact: Fact) -> None:
        assert read_back(fact) == fact

    check()


@settings(max_examples=150)
@given(any_fact)
def test_fields_that_are_none_are_left_out_and_all_others_are_written_in_order(fact: Fact) -> None:
    held = [field.name for field in fields(fact) if getattr(fact, field.name) is not None]

    assert list(json.loads(encode(fact))) == held


@settings(max_examples=150)
@given(fact=any_fact)
def test_what_is_stored_is_utf_8_without_nul_and_json_to_sqlite(fact: Fact, database: sqlite3.Connection) -> None:
    stored = encode(fact)

    assert "\0" not in stored
    assert stored.encode("utf-8").decode("utf-8") == stored
    assert database.execute("SELECT ?, json_valid(?)", (stored, stored)).fetchone() == (stored, 1)


@settings(max_examples=100)
@given(any_fact)
def test_encoding_again_gives_the_same_bytes(fact: Fact) -> None:
    assert encode(read_back(fact)) == encode(fact)


def test_a_megabyte_of_emoji_nul_and_lone_surrogates_comes_back_as_it_was() -> None:
    for hostile in ("x" * 2**20, "😀" * 2**18, "\0" * 2**18, "\udcff" * 2**18):
        fact = created(payload=hostile, env={hostile: hostile})
        assert read_back(fact) == fact


def test_two_surrogates_that_make_a_character_come_back_as_that_character() -> None:
    fact = read_back(created("\ud83d\ude00"))

    assert isinstance(fact, f.TaskCreated)
    assert fact.title == "\U0001f600"


def test_ordinary_text_is_stored_readable() -> None:
    assert '"title":"grüße 😀"' in encode(created("grüße 😀"))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_json_has_no_form_for_is_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(created(timeout=number))


def test_a_value_that_no_fact_may_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="a fact can't hold bytes"):
        encode(f.TaskRevised({"title": b"bytes"}))


# --- time -----------------------------------------------------------------------------------------------------------


@given(times)
def test_a_time_comes_back_to_the_microsecond_in_utc(moment: datetime) -> None:
    back = from_iso(iso(moment))

    assert back == moment
    assert back.tzinfo is UTC


@given(times, times)
def test_stored_times_sort_as_times_do(one: datetime, other: datetime) -> None:
    assert (iso(one) < iso(other)) == (one < other)


def test_a_time_of_another_zone_is_stored_in_utc() -> None:
    assert iso(datetime(2026, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=2)))) == "2025-12-31T23:30:00.000000Z"


# --- the future -----------------------------------------------------------------------------------------------------


def test_a_type_from_the_future_is_kept_byte_for_byte() -> None:
    data = '{ "b" : 1.0, "a":"\\u00e4",\n"c":[ ] }'

    event = decode("TaskTeleported", 3, data)

    assert event == OpaqueEvent("TaskTeleported", 3, data, is_ignorable=False)
    assert encode(event) == data


def test_a_newer_version_of_a_known_type_is_kept_byte_for_byte() -> None:
    data = '{"by": "somebody", "because": 1}'

    event = decode("TaskDeleted", 2, data)

    assert event == OpaqueEvent("TaskDeleted", 2, data, is_ignorable=False)
    assert encode(event) == data


@pytest.mark.parametrize(
    ("data", "is_ignorable"),
    [('{"ignorable":true}', True), ('{"ignorable":false}', False), ('{"ignorable":"true"}', False), ("{}", False)],
)
def test_only_data_that_says_so_may_be_passed_over(data: str, is_ignorable: bool) -> None:
    assert decode("TaskTeleported", 1, data) == OpaqueEvent("TaskTeleported", 1, data, is_ignorable)


def test_the_base_types_of_facts_are_no_types_of_events() -> None:
    for name in ("Fact", "TaskFact", "GraphFact", "AttemptEnd", "Member"):
        assert isinstance(decode(name, 1, "{}"), OpaqueEvent)


@settings(max_examples=100)
@given(any_fact, st.dictionaries(texts.filter(lambda name: not name.isidentifier()), texts, max_size=3))
def test_fields_from_the_future_are_ignored(fact: Fact, added: dict[str, str]) -> None:
    stored = to_json({**json.loads(encode(fact)), **added})

    assert decode(type(fact).__name__, fact.TYPE_VERSION, stored) == fact


def test_fields_from_the_future_are_ignored_in_the_parts_of_a_fact_too() -> None:
    policy = f.RetrySpec(2, 0.5)
    fact = f.GraphCreated("g", AT, (f.Member("t", retry_policy=policy),), f.Source("/w.yaml", "00"))
    content = json.loads(encode(fact))
    content["members"][0]["added"] = content["members"][0]["retry_policy"]["added"] = content["source"]["added"] = 1

    assert decode("GraphCreated", 1, json.dumps(content)) == fact


# --- the past -------------------------------------------------------------------------------------------------------


def test_upcasters_lift_old_data_version_by_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f.TaskDeleted, "TYPE_VERSION", 3)
    lifts = {
        ("TaskDeleted", 1): lambda data: {"who": data["user"]},
        ("TaskDeleted", 2): lambda data: {"by": data["who"] + "@here"},
    }

    assert decode("TaskDeleted", 1, '{"user":"ann"}', lifts) == f.TaskDeleted("ann@here")
    assert decode("TaskDeleted", 2, '{"who":"bob"}', lifts) == f.TaskDeleted("bob@here")
    assert decode("TaskDeleted", 3, '{"by":"eve"}', lifts) == f.TaskDeleted("eve")


def test_a_field_that_may_be_none_reads_as_none_where_old_data_lacks_it() -> None:
    assert decode("ProcessSpawned", 1, '{"attempt":1,"pid":2}') == f.ProcessSpawned(1, 2, None)


def test_data_that_lacks_a_field_which_must_be_there_is_refused() -> None:
    with pytest.raises(TypeError, match="by"):
        decode("TaskDeleted", 1, "{}")


def test_every_version_of_every_type_can_be_lifted_to_today() -> None:
    for fact_type in FACT_TYPES:
        for version in range(1, fact_type.TYPE_VERSION):
            assert (fact_type.__name__, version) in codec.UPCASTERS


def test_every_concrete_fact_is_known_to_the_codec() -> None:
    abstract = {f.Fact, f.TaskFact, f.GraphFact, f.AttemptEnd, a.AgentFact}

    def below(fact_type: type[Fact]) -> set[type[Fact]]:
        return {fact_type}.union(*map(below, fact_type.__subclasses__()))

    declared = {fact_type for fact_type in below(f.Fact) if fact_type.__module__ in (f.__name__, a.__name__)}

    assert declared - abstract == FACT_TYPES


def test_a_field_with_a_default_other_than_none_is_always_written() -> None:
    assert json.loads(encode(f.GraphRunResumed(1, "ann"))) == {
        "run": 1,
        "by": "ann",
        "finally_only": False,
        "forced_handlers": False,
    }


@dataclass(frozen=True)
class _Unknown(f.TaskFact):
    pass


def test_a_fact_of_no_known_type_is_not_encoded() -> None:
    with pytest.raises(KeyError):
        encode(_Unknown())


def test_records_are_compared_by_type_and_fields_and_show_them() -> None:
    source = f.Source("/a.yaml", "12")
    assert source == f.Source("/a.yaml", "12") != f.Source("/b.yaml", "12")
    assert hash(source) == hash(f.Source("/a.yaml", "12")) != hash(f.Source("/b.yaml", "12"))
    assert source != a.FileEdit("/a.yaml", "12")
    assert source != ("/a.yaml", "12")
    assert repr(source) == "Source(path='/a.yaml', sha256='12')"
    with pytest.raises(FrozenInstanceError):
        source.path = "/b.yaml"  # type: ignore[misc]
