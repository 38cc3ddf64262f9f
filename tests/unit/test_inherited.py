"""What is looked for of the variables that a process inherited."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ttasks.log.inherited import NO_SECRETS, inherited_literals, with_inherited
from ttasks.log.redaction import Redaction

SECRET = "Tr0ub4dor-and-3"


@pytest.fixture(autouse=True)
def _nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("A_TOKEN", "B_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GITHUB_TOKEN", SECRET),
        ("apiKey", SECRET),
        ("PGPASSWORD", "Abcdefgh"),
        ("A_TOKEN", "abcdefgh1"),
        ("A_TOKEN", "correct-horse"),
        ("A_TOKEN", "a" * 16),
        ("A_TOKEN", "1" * 16),
        ("A_TOKEN", "12345678a"),
        ("A_TOKEN", "ÄÖÜ-äöü-1"),
        ("A_TOKEN_PATHS", SECRET),
    ],
)
def test_a_long_odd_value_under_a_secret_name_is_looked_for(name: str, value: str) -> None:
    assert inherited_literals({name: value, "PATH": "/bin"}, None) == [value]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A_TOKEN", ""),
        ("A_TOKEN", "Ab3-xyz"),
        ("A_TOKEN", "   Ab3-x   "),
        ("A_TOKEN", "a" * 15),
        ("A_TOKEN", "ä" * 15),
        ("A_TOKEN", "1" * 15),
        ("HOME_OF", SECRET),
        ("CACHE_KEY", SECRET),
        ("A_TOKEN", "/etc/passwd"),
        ("A_TOKEN", "/etc"),
        *((f"A_TOKEN{end}", SECRET) for end in (*NO_SECRETS, "_file")),
    ],
)
def test_what_may_be_no_secret_is_left_alone(name: str, value: str) -> None:
    assert inherited_literals({name: value}, None) == []


def test_the_ends_of_names_that_are_left_alone_are_these() -> None:
    ends = "_FILE _PATH _DIR _URL _URI _NAME _USER _HOST _PORT _TYPE _ID"
    assert " ".join(NO_SECRETS) == ends
    for page in ("README.md", "docs/secrets.md"):
        text = (Path(__file__).parents[2] / page).read_text("utf-8")
        assert all(f"`{end}`" in text for end in NO_SECRETS), page


def test_a_path_counts_where_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Key-file-1").touch()
    monkeypatch.chdir(tmp_path)
    here = {"A_TOKEN": "Key-file-1", "B_TOKEN": str(tmp_path / "Key-file-1"), "C_TOKEN": "Key-file-2"}
    assert inherited_literals(here, None) == ["Key-file-2"]


def test_a_value_that_an_ordinary_variable_has_too_is_left_alone() -> None:
    assert inherited_literals({"A_TOKEN": SECRET, "LABEL": SECRET}, None) == []
    assert inherited_literals({"A_TOKEN": SECRET, "B_TOKEN": SECRET}, None) == [SECRET, SECRET]
    assert inherited_literals({"A_TOKEN": f"{SECRET}\nof-two-Lines", "LABEL": SECRET}, None) == ["of-two-Lines"]


def test_of_several_lines_those_are_looked_for_that_would_be_by_themselves() -> None:
    key = "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA\nshort\nlowercase\n12345678\n-----END KEY-----\n"
    found = ["-----BEGIN KEY-----", "MIIEpAIBAAKCAQEA", "-----END KEY-----"]
    assert inherited_literals({"A_KEY": key}, None) == found


def test_a_variable_that_was_said_to_be_ordinary_is_left_alone() -> None:
    ordinary = Redaction(ordinary=["A_*"])
    assert inherited_literals({"A_TOKEN": SECRET, "B_TOKEN": "other-Value-2"}, ordinary) == ["other-Value-2"]


def test_the_environment_is_looked_at_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Redaction(literals=["of-the-base"])
    assert with_inherited(None) is None
    assert with_inherited(base) is base
    monkeypatch.setenv("A_TOKEN", SECRET)
    first = with_inherited(base)
    assert first is not None and first.text(f"{SECRET} of-the-base") == "*** ***"
    assert with_inherited(base) is first  # made once
    monkeypatch.setenv("A_TOKEN", "another-Value-2")
    second = with_inherited(None)
    assert second is not None and second.text(f"{SECRET} another-Value-2") == f"{SECRET} ***"
    monkeypatch.delenv("A_TOKEN")
    assert with_inherited(base) is base


def test_what_was_said_to_be_ordinary_by_one_is_not_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", SECRET)
    opened = Redaction(ordinary=["A_TOKEN"])
    assert with_inherited(opened) is opened
    masked = with_inherited(Redaction())
    assert masked is not None and masked.text(SECRET) == "***"


def test_an_environment_that_was_replaced_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"A_TOKEN": SECRET})
    masked = with_inherited(None)
    assert masked is not None and masked.text(SECRET) == "***"
    os.environ["A_TOKEN"] = "another-Value-2"
    masked = with_inherited(None)
    assert masked is not None and masked.text("another-Value-2") == "***"
