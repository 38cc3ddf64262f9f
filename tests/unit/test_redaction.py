"""What is kept out of texts: how it is said, what is found, and how lines are held back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from ttasks.errors import RedactionError
from ttasks.log.redaction import LINE_CHARACTERS_MAX, MASK, LineRedactor, Redaction, read_redaction, split_variable

SECRET = "correct-horse"


def redaction(*redact: Any, **environment: str) -> Redaction:
    read = read_redaction(redact, environment)
    assert read is not None
    return read


# --- how it is said --------------------------------------------------------------------------------------------------


def test_a_name_stands_for_the_value_of_that_variable() -> None:
    assert redaction("DB_URL", DB_URL=SECRET).text(f"a {SECRET}!") == "a ***!"


def test_a_name_with_stars_stands_for_all_that_it_matches() -> None:
    read = redaction("AWS_*", AWS_ID="id-id-id-1", AWS_SECRET="se-cr-et-2", HOME="/home/ann")
    assert read.text("id-id-id-1 se-cr-et-2 /home/ann") == "*** *** /home/ann"
    assert (read.is_secret("AWS_X"), read.is_secret("aws_x"), read.is_secret("HOME")) == (True, False, False)


def test_a_text_that_begins_with_re_is_a_pattern() -> None:
    assert redaction(r"re:ghp_\w{4,}").text("x ghp_abcd1 y ghp_") == "x *** y ghp_"


def test_a_compiled_pattern_keeps_its_flags() -> None:
    assert redaction(re.compile("bearer [a-z]+", re.IGNORECASE)).text("BEARER XYZ!") == "***!"


def test_the_values_are_read_once() -> None:
    environment = {"A": SECRET}
    read = read_redaction(["A"], environment)
    environment["A"] = "another-horse"
    assert read is not None
    assert read.text(f"{SECRET} another-horse") == "*** another-horse"


def test_the_variable_adds_to_what_is_given() -> None:
    read = redaction("A", A="first-value", B="other-value", TTASKS_REDACT="B")
    assert read.text("first-value other-value") == "*** ***"


@pytest.mark.parametrize("environment", [{}, {"TTASKS_REDACT": ""}, {"TTASKS_REDACT": " \n,, \n"}])
def test_nothing_that_is_said_is_no_redaction(environment: dict[str, str]) -> None:
    assert read_redaction([], environment) is None


def test_a_name_that_is_not_set_is_known_and_a_warning_says_which_it_is_by_its_place() -> None:
    with pytest.warns(RuntimeWarning, match=r"^redact\[1\] names a variable that does not exist") as warned:
        read = redaction("A", "hunter2", A=SECRET)
    assert read.text("hunter2") == "hunter2"
    assert read.is_secret("hunter2")
    assert len(warned) == 1
    assert "hunter2" not in str(warned[0].message)


@pytest.mark.parametrize("item", ["AWS_*", "re:hunter2", "!hunter2", re.compile("hunter2")])
def test_what_may_stand_for_nothing_is_not_warned_of(item: Any) -> None:
    assert read_redaction([item], {}) is not None


def test_of_the_variable_only_what_is_not_written_as_a_variable_is_warned_of() -> None:
    read_redaction([], {"TTASKS_REDACT": "NPM_TOKEN"})  # it is set once, for many programs
    with pytest.warns(RuntimeWarning, match=r"^TTASKS_REDACT, item 2 names a variable") as warned:
        read_redaction([], {"TTASKS_REDACT": "NPM_TOKEN,hunter2"})
    assert "hunter2" not in str(warned[0].message)


def test_a_name_after_an_exclamation_mark_is_ordinary_but_where_it_is_named() -> None:
    read = redaction("AWS_*", "!AWS_REGION", "!A?", "AB", AWS_REGION="eu-central-1", AWS_X="x-value-1", AB="b-value")
    assert read.text("eu-central-1 x-value-1 b-value") == "eu-central-1 *** ***"
    assert (read.is_secret("AWS_REGION"), read.is_ordinary("AWS_REGION")) == (False, True)
    assert (read.is_secret("AB"), read.is_ordinary("AB"), read.is_ordinary("AC")) == (True, False, True)
    assert read.with_literals(["more"]).is_ordinary("AC")


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("A,B", ["A", "B"]),
        (" A , B ,", ["A", "B"]),
        ("A\nB\r\n\nC", ["A", "B", "C"]),
        (r"A,re:\d{3,8}, x", ["A", r"re:\d{3,8}, x"]),
        ("re:a,b\nA,B", ["re:a,b", "A", "B"]),
    ],
)
def test_commas_and_line_ends_separate_and_a_pattern_takes_the_rest_of_its_line(text: str, items: list[str]) -> None:
    assert list(split_variable(text)) == items


@pytest.mark.parametrize("redact", ["GITHUB_TOKEN", b"A", 7, None])
def test_redact_has_to_be_a_list(redact: Any) -> None:
    with pytest.raises(TypeError, match="redact must be a list of str and re"):
        read_redaction(redact, {})


@pytest.mark.parametrize("item", [7, None, b"A", re.compile(b"a")])
def test_an_item_has_to_be_a_text_or_a_pattern_of_text(item: Any) -> None:
    with pytest.raises(TypeError, match=r"redact must hold str and re\.Pattern of str, got \w+ as redact\[0\]$"):
        read_redaction([item], {})


@pytest.mark.parametrize("item", ["", "two words", "1A", "A-B", "s3cret!", "RE:x", "!", "!!A", "!re:x", "! A"])
def test_a_text_that_is_neither_name_nor_pattern_is_refused_by_its_place(item: str) -> None:
    with pytest.raises(RedactionError) as refused:
        read_redaction(["A*", item], {})
    assert str(refused.value) == (
        "redact[1] is not the name of an environment variable; a pattern begins with 're:'. "
        "Nothing was opened or written"
    )


@pytest.mark.parametrize("pattern", ["(", "[a-", "a{99999999999}", "*", "(?P<a>x)(?P<a>y)"])
def test_a_wrong_regular_expression_is_a_value_error_that_names_it(pattern: str) -> None:
    with pytest.raises(ValueError, match="is no regular expression") as refused:
        read_redaction([f"re:{pattern}"], {})
    assert repr(pattern) in str(refused.value)


def test_an_error_says_that_it_was_the_variable() -> None:
    with pytest.raises(RedactionError, match=r"^TTASKS_REDACT: the pattern '\('"):
        read_redaction([], {"TTASKS_REDACT": "A,re:("})


def test_an_empty_pattern_is_refused() -> None:
    with pytest.raises(RedactionError, match="a pattern is empty"):
        read_redaction(["re:"], {})


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(\w+\s?)*$", r"(a|aa)+$", r"(x+x+)+y"])
def test_a_pattern_that_would_take_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(RedactionError, match="takes too long"):
        read_redaction([re.compile(pattern)], {})


@pytest.mark.parametrize(
    "pattern", [r"(?:[\w-]+\.)+[\w-]+", r"(?:\d+,)*\d+", r"(a++)+$", r".*password.*", r"(?i)a\s*=\s*b"]
)
def test_an_ordinary_pattern_is_not(pattern: str) -> None:
    assert read_redaction([f"re:{pattern}"], {}) is not None


# --- what is looked for ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "literals"),
    [
        ("", ()),
        (" \n ", ()),
        ("7", ("7",)),
        ("pin7\n", ("pin7",)),
        ("  spaced value ", ("spaced value",)),
        ("first-line\nsecond-line", ("first-line", "second-line")),
        ("first-line\r\n}\r\nshort\n", ("first-line",)),
    ],
)
def test_a_named_value_is_looked_for_line_by_line(value: str, literals: tuple[str, ...]) -> None:
    assert redaction("A", A=value).literals == literals


@pytest.mark.parametrize(("value", "literals"), [("1234567", ()), ("12345678", ("12345678",))])
def test_a_value_that_nobody_named_is_looked_for_from_eight_characters_on(
    value: str, literals: tuple[str, ...]
) -> None:
    assert redaction("A*", AB=value).literals == literals
    assert Redaction().literals_of("AB", value) == literals


@pytest.mark.parametrize(
    ("literals", "text", "shown"),
    [
        (["abcd", "cdef"], "-abcdef-", "-***-"),  # overlap
        (["abcd", "efgh"], "-abcdefgh-", "-***-"),  # touch
        (["abcd", "abcdef"], "-abcdef-", "-***-"),  # one begins the other
        (["bc", "abcd"], "-abcd-bc-", "-***-***-"),  # one is inside the other
        (["aba"], "-ababa-", "-***-"),  # one overlaps itself
        (["ab"], "ab\nab\r\n\n ab", "***\n***\r\n\n ***"),
        (["(.*)"], "(.*) x", "*** x"),  # nothing in a value is special
        (["***", "**"], "a *** b", "a *** b"),
        (["x"], "", ""),
    ],
)
def test_literals_are_replaced_wherever_they_are(literals: list[str], text: str, shown: str) -> None:
    assert Redaction(literals=literals).text(text) == shown


@pytest.mark.parametrize(
    ("pattern", "text", "shown"),
    [
        (r"x*", "axxb", "a***b"),  # where it matches nothing, nothing is replaced
        (r"^pin: \d+$", "pin: 12\npin: 34\nmy pin: 56", "***\n***\nmy pin: 56"),
        (r"pin\s*:\s*\d+\s*", "pin: 12\n34", "***\n34"),  # the line end is never part of a match
        (r"(?s)BEGIN.*END", "BEGIN\nkey\nEND BEGIN key END", "BEGIN\nkey\nEND ***"),
        (r"(?<=password=)\S+", "password=a&b c", "password=*** c"),
    ],
)
def test_patterns_match_in_a_line(pattern: str, text: str, shown: str) -> None:
    assert redaction(f"re:{pattern}").text(text) == shown


@pytest.mark.parametrize("pattern", [r"\*(?=b)", r"\**b", r"^\*", r"."])
def test_of_a_line_that_a_pattern_never_leaves_alone_nothing_is_shown(pattern: str) -> None:
    read = redaction(f"re:{pattern}")
    once = read.text("*b\nc")
    assert read.text(once) == once
    assert once.splitlines()[0] == MASK


def test_one_covers_another_when_it_replaces_all_that_the_other_does() -> None:
    both = redaction("A", "re:x", A=SECRET)
    assert both.covers(None) and both.covers(both) and both.covers(redaction("A", A=SECRET))
    assert not both.covers(redaction("A", A="another-horse"))
    assert not both.covers(redaction("B", B=SECRET)) and not both.covers(redaction("re:y"))
    opened = redaction("A", "re:x", "!B_KEY", A=SECRET)
    assert both.covers(opened) and not opened.covers(both) and opened.covers(None)


# --- line by line ----------------------------------------------------------------------------------------------------


def fed(redactor: LineRedactor, *pieces: str) -> list[str]:
    return [*map(redactor.feed, pieces), redactor.finish()]


def test_a_line_is_held_back_until_it_is_complete() -> None:
    redactor = LineRedactor(Redaction(literals=[SECRET]))
    assert fed(redactor, "a\nb corr", "ect-", "horse", " c\nd", "e") == ["a\n", "", "", "b *** c\n", "", "de"]


def test_a_carriage_return_ends_a_line_too() -> None:
    assert fed(LineRedactor(Redaction(literals=[SECRET])), "10 %\r20 %", "\r\n") == ["10 %\r", "20 %\r\n", ""]


def test_after_the_end_nothing_more_is_given_out() -> None:
    redactor = LineRedactor(Redaction(literals=[SECRET]))
    redactor.feed("correct-")
    assert (redactor.finish(), redactor.feed("horse\n"), redactor.finish()) == (MASK, "", "")


@pytest.mark.parametrize(
    ("last", "shown"),
    [("x correct-hors", "x ***"), ("x correct-", "x ***"), ("x correct", "x correct"), (f"x {SECRET}", "x ***")],
)
def test_a_secret_that_breaks_off_at_the_end_is_masked_from_eight_characters_on(last: str, shown: str) -> None:
    assert fed(LineRedactor(Redaction(literals=[SECRET])), last) == ["", shown]


def test_of_a_line_without_end_no_more_is_held_than_is_said() -> None:
    redactor = LineRedactor(Redaction(literals=[SECRET]))
    shown = [redactor.feed("x" * 1000) for _ in range(1000)]
    held, most = 0, 0
    for piece in shown:
        held += 1000 - len(piece)
        most = max(most, held)
    assert LINE_CHARACTERS_MAX - 1000 < most < LINE_CHARACTERS_MAX + 1000
    assert "".join(shown) + redactor.finish() == "x" * 1_000_000


@pytest.mark.parametrize("before", range(60, 120))
def test_a_secret_across_the_border_of_a_long_line_is_found(before: int) -> None:
    redactor = LineRedactor(Redaction(literals=[SECRET], line_characters_max=80))
    line = "-" * before + SECRET + "-" * 200
    shown = "".join(fed(redactor, *line, "\nnext"))
    assert shown == "-" * before + MASK + "-" * 200 + "\nnext"


def test_a_secret_longer_than_the_longest_line_is_found() -> None:
    secret = "".join(map(str, range(1000)))
    redactor = LineRedactor(Redaction(literals=[secret], line_characters_max=80))
    assert "".join(fed(redactor, *f"{'-' * 300}{secret}{'-' * 9000}")) == "-" * 300 + MASK + "-" * 9000


def test_a_pattern_that_reaches_the_end_of_a_long_line_hides_the_rest_of_the_line() -> None:
    redactor = LineRedactor(Redaction(patterns=[re.compile(r"password=\S+")], line_characters_max=80))
    pieces = fed(redactor, "a password=", *["x" * 10] * 50, " b", "\nc\n")
    assert "".join(pieces) == "a ***\nc\n"


@pytest.mark.parametrize("before", range(50, 100))
def test_a_pattern_looks_back_across_the_border_of_a_long_line(before: int) -> None:
    redactor = LineRedactor(Redaction(patterns=[re.compile(r"(?<=pin=)\d+")], line_characters_max=80))
    line = "-" * before + "pin=1234" + "-" * 100
    assert "".join(fed(redactor, *line)).replace("******", MASK) == "-" * before + "pin=***" + "-" * 100


def test_a_pattern_that_takes_squared_time_takes_no_more_than_that_for_a_part_of_a_line() -> None:
    def seconds(characters: int) -> float:
        redactor, begun = LineRedactor(redaction("re:.*password.*")), time.thread_time()
        assert redactor.feed("x" * characters) + redactor.finish() == "x" * characters
        return time.thread_time() - begun

    assert seconds(8 * LINE_CHARACTERS_MAX) < 30 * seconds(LINE_CHARACTERS_MAX)  # squared, it were 64 times


@pytest.mark.parametrize("use", [lambda r: r.text("a\nb"), lambda r: fed(LineRedactor(r), "a\nb")])
def test_a_redaction_without_anything_to_find_changes_nothing(use: Callable[[Redaction], Any]) -> None:
    assert "".join(use(Redaction(["A"]))) == "a\nb"
