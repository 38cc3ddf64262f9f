"""What is withheld from the log: values of variables whose names look secret."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import created, started, texts
from ttasks.events import facts as f
from ttasks.log.redaction import Redaction
from ttasks.log.secret_names import is_secret
from ttasks.log.secrets import digest, is_withheld, split_env, withhold

KEY, OTHER_KEY = "00" * 32, "11" * 32


SECRET = """
    TOKEN GITHUB_TOKEN token MyTokenFile NPMTOKEN TOKENS TOKENIZER_TOKEN XTOKEN2 CLIENT_SECRET SECRETS clientSecret
    DB_PASSWORD PGPASSWORD MYSQL_PASSWD passwd GPG_PASSPHRASE GOOGLE_CREDENTIALS credential
    KEY key API_KEY api-key KEYS API_KEYS KEY_2 KEY2 API_KEY_2 _KEY ssh_key_path AWS_ACCESS_KEY_ID SSH_PRIVATE_KEY
    APIKEY OPENAI_APIKEY MYAPIKEY2 apikey apiKey apiKeyId accessKey dbAccessKey accessKey_prod SSHKey sha256Key
    GHOST_KEY ghostKey REPUBLIC_KEY HOT_KEY PUBLIC_API_KEY SSH_HOST_RSA_KEY CACHE_SECRET_KEY 4_KEY \u0664KEY
"""
ORDINARY = """
    PATH HOME TOKE_N LANG TOKENIZER TOKENIZERS_PARALLELISM MyTokenizer SECRETARY SECRETARY_NAME
    CACHE_KEY cache_key CACHE_KEYS CACHE_KEY_2 CACHE_2_KEY CACHE__KEY CACHE-KEY MY_CACHE_KEY cacheKey CacheKey
    PRIMARY_KEY FOREIGN_KEY PUBLIC_KEY SSH_PUBLIC_KEY sshPublicKey SORT_KEY sortKeys PARTITION_KEY HOST_KEY
    ssh_host_key PUBLIC_KEY_PATH MONKEY TURKEY KEYMAP keyMap HOTKEY hotKey KEYBOARD_LAYOUT KEYCLOAK_URL DONKEYS
    KEYSTONE JOCKEY accessKeyId mykey 42 \u00c4KEY
"""


@pytest.mark.parametrize("name", SECRET.split())
def test_a_name_that_looks_secret_is(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["", *ORDINARY.split()])
def test_any_other_name_is_not(name: str) -> None:
    assert not is_secret(name)


WORDS = ["PASSWORD", "SECRET", "TOKEN", "KEY", "APIKEY", "IZER", "ARY", "CACHE", "PUBLIC", "MON", "MAP", "X", "2", "_"]


@settings(max_examples=1000)
@given(st.lists(st.sampled_from(WORDS).flatmap(lambda word: st.sampled_from([word, word.lower(), word.title()]))))
def test_what_was_withheld_for_another_word_than_key_still_is(words: list[str]) -> None:
    """The names that were withheld before KEY became stricter, without those that are none of them."""
    name = "".join(words)
    was_secret = any(word in name.upper() for word in ("TOKEN", "SECRET", "PASSWORD"))
    for ordinary in ("TOKENIZER", "SECRETARY"):
        if ordinary in name.upper():
            rest = name.upper().replace("TOKENIZER", "|").replace("SECRETARY", "|")
            was_secret = any(word in rest for word in ("TOKEN", "SECRET", "PASSWORD"))
    assert is_secret(name) or not was_secret


@pytest.mark.parametrize("before", ["", "MY_", "my", "2", "PUBLIC_", "CACHE_", "MON"])
@pytest.mark.parametrize("word", ["PASSWORD", "SECRET", "TOKEN", "PASSWD", "PASSPHRASE", "CREDENTIAL"])
@pytest.mark.parametrize("after", ["", "S", "_KEY", "KEY", "_FILE", "2", "_CACHE_KEY"])
def test_every_other_word_counts_anywhere(before: str, word: str, after: str) -> None:
    for name in (before + word + after, (before + word + after).lower()):
        assert is_secret(name)


def test_a_variable_that_was_said_to_be_ordinary_is_recorded() -> None:
    redaction = Redaction(["BUILD_KEY"], ordinary=["*_KEY"])
    env = {"SORTING_KEY": "by-name-1", "BUILD_KEY": "build-it", "A_TOKEN": "s3cret"}
    plain, digests = split_env(env, KEY, redaction)
    assert plain == {"SORTING_KEY": "by-name-1"}
    assert digests is not None and set(digests) == {"BUILD_KEY", "A_TOKEN"}
    assert not is_withheld("SORTING_KEY", "by-name-1", redaction)
    assert is_withheld("SORTING_KEY", "pin=1", Redaction(patterns=[re.compile("pin")], ordinary=["*_KEY"]))


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
