"""What is withheld from the log: values of variables whose names look secret."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from strategies import created, started, texts
from ttasks.events import facts as f
from ttasks.log.secrets import digest, is_secret, split_env, withhold

KEY, OTHER_KEY = "00" * 32, "11" * 32


@pytest.mark.parametrize(
    "name", ["TOKEN", "GITHUB_TOKEN", "token", "MyTokenFile", "CLIENT_SECRET", "DB_PASSWORD", "API_KEY", "ssh_key_path"]
)
def test_a_name_that_looks_secret_is(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["", "PATH", "HOME", "TOKE_N", "PASSWD", "LANG"])
def test_any_other_name_is_not(name: str) -> None:
    assert not is_secret(name)


def test_the_same_value_has_the_same_digest_in_one_ledger_only() -> None:
    assert digest("hunter2", KEY) == digest("hunter2", KEY)
    assert digest("hunter2", KEY) != digest("hunter2", OTHER_KEY)
    assert digest("hunter2", KEY) != digest("hunter3", KEY)


@settings(max_examples=10)
@given(texts)
def test_any_text_has_a_digest_that_does_not_hold_it(value: str) -> None:
    name, rounds, hashed = digest(value, KEY).split(":")

    assert (name, rounds, len(hashed)) == ("pbkdf2-sha256", "20000", 32)


def test_an_environment_is_split_into_values_and_digests() -> None:
    assert split_env({"A": "1", "MY_KEY": "s3cret"}, KEY) == ({"A": "1"}, {"MY_KEY": digest("s3cret", KEY)})


@pytest.mark.parametrize("env", [None, {}])
def test_an_environment_without_variables_has_neither(env: dict[str, str] | None) -> None:
    assert split_env(env, KEY) == (None, None)


def test_what_is_left_without_a_variable_is_none() -> None:
    assert split_env({"A": "1"}, KEY) == ({"A": "1"}, None)
    assert split_env({"A_KEY": "1"}, KEY)[0] is None


@pytest.mark.parametrize(
    "fact", [created(env={"A": "1", "TOKEN": "s3cret"}), started(env={"A": "1", "TOKEN": "s3cret"})]
)
def test_facts_about_a_task_are_recorded_without_secret_values(fact: f.TaskCreated | f.TaskStarted) -> None:
    recorded = withhold(fact, KEY)

    assert "s3cret" not in repr(recorded)
    assert isinstance(recorded, f.TaskCreated | f.TaskStarted)
    assert (recorded.env, recorded.env_digests) == ({"A": "1"}, {"TOKEN": digest("s3cret", KEY)})


def test_a_snapshot_is_recorded_without_secret_values() -> None:
    fact = f.TaskImported({"title": "t", "env": {"A": "1", "TOKEN": "s3cret"}, "env_digests": {"KEY": "old"}})

    recorded = withhold(fact, KEY)

    assert isinstance(recorded, f.TaskImported)
    assert recorded.state == {
        "title": "t",
        "env": {"A": "1"},
        "env_digests": {"KEY": "old", "TOKEN": digest("s3cret", KEY)},
    }


def test_a_digest_that_is_there_already_is_kept() -> None:
    fact = created(env={"A": "1"}, env_digests={"TOKEN": "old"})

    recorded = withhold(fact, KEY)

    assert isinstance(recorded, f.TaskCreated)
    assert recorded.env_digests == {"TOKEN": "old"}


@pytest.mark.parametrize("fact", [created(), started(), f.TaskDeleted("ann"), f.TaskImported({"title": "t"})])
def test_a_fact_without_variables_is_recorded_as_it_is(fact: f.TaskFact) -> None:
    assert withhold(fact, KEY) is fact
