"""docs/guarantees.md names tests that are there: every promise has one, and the page can't rot."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "guarantees.md"


def promises() -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each promise with the tests that it names, each by its file and its own name."""
    found = []
    for item in re.split(r"^- (?!\[)", PAGE.read_text("utf-8"), flags=re.MULTILINE)[1:]:
        sentence, _, rest = item.partition("\n")
        named, file = list[tuple[str, str]](), ""
        for word in re.findall(r"`(tests/\S+\.py|test_\w+)`", re.split(r"^#", rest, flags=re.MULTILINE)[0]):
            if word.startswith("tests/"):
                file = word
            else:
                named.append((file, word))
        found.append((sentence.strip(), named))
    return found


@cache
def names_in(file: str) -> frozenset[str]:
    """Return the names of the functions of a test file that pytest collects."""
    module = ast.parse((ROOT / file).read_text("utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in module.body if isinstance(node, functions))


@pytest.mark.parametrize(("sentence", "named"), promises(), ids=lambda value: value if isinstance(value, str) else "")
def test_a_promise_names_tests_that_exist(sentence: str, named: list[tuple[str, str]]) -> None:
    assert sentence.endswith(".")
    assert named, f"{sentence!r} names no test"
    for file, name in named:
        assert (ROOT / file).is_file(), f"{sentence!r}: there is no {file!r}"
        assert name in names_in(file), f"{sentence!r}: {file} has no {name}"


def test_no_name_of_a_test_on_the_page_is_passed_over() -> None:
    on_the_page = re.findall(r"\btest_\w+(?!\.py)\b", re.sub(r"`tests/\S+`", "", PAGE.read_text("utf-8")))
    assert on_the_page == [name for _, named in promises() for _, name in named]
    assert len(on_the_page) > 100
