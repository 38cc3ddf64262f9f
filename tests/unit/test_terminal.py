"""Whatever was printed, its HTML is text in our own elements: nothing in it can run, hide, or steer."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttasks.datasette_plugin import terminal
from ttasks.datasette_plugin.terminal import LINE_CHARACTERS_MAX, OVERWRITTEN_MAX, Block, Terminal

OURS = re.compile(r'<span class="[a-z0-9 ]+">|</span>')
ESCAPES = st.sampled_from(
    [
        "\x1b[31m",
        "\x1b[1;38;5;208;48;2;1;2;3m",
        "\x1b[m",
        "\x1b[38;5m",
        "\x1b[2J",
        "\x1b[10;10H",
        "\x1b]8;;javascript:alert(1)\x07",
        "\x1b]8;;http://x\x1b\\",
        "\x1b]0;title\x07",
        "\x1b]8;;unclosed",
        "\x1b[",
        "\x1b",
        "\x9b31m",
        "\r",
        "\0",
        "\u202e",
        "\ud800",
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "&lt;",
        "{{7*7}}",
    ]
)
ANYTHING = st.lists(st.one_of(ESCAPES, st.text(max_size=20)), max_size=20).map("".join)
PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z"), include_characters=" "), max_size=200)


def html(*lines: str) -> str:
    """Return the HTML of the last of these lines, printed to one terminal."""
    drawn = Terminal()
    for line in lines[:-1]:
        drawn.line(line)
    return str(drawn.line(lines[-1]).html)


def seen(markup: str) -> str:
    return unescape(OURS.sub("", markup))


@given(st.lists(ANYTHING, min_size=1, max_size=5))
def test_there_is_no_tag_but_ours_and_no_character_that_steers(lines: list[str]) -> None:
    drawn = Terminal()
    for line in lines:
        shown = drawn.line(line)
        for markup in map(str, [shown.html, *shown.earlier]):
            assert not re.search("[<>\"']", OURS.sub("", markup))
            assert all(character.isprintable() or character in "\u200d\ufe0f" for character in seen(markup))


@given(PRINTABLE)
def test_what_is_printable_is_shown_as_it_is(text: str) -> None:
    assert seen(html(text)) == text


@given(st.lists(PRINTABLE, max_size=8), st.integers(30, 37))
def test_colours_change_nothing_about_the_text(words: list[str], number: int) -> None:
    assert seen(html("".join(f"\x1b[{number}m{word}\x1b[0m" for word in words))) == "".join(words)


def test_the_sixteen_colours_are_classes() -> None:
    assert html("\x1b[31mred\x1b[0m \x1b[97mwhite\x1b[0m") == (
        '<span class="c1">red</span> <span class="c15">white</span>'
    )


def test_other_colours_become_the_nearest_of_the_sixteen() -> None:
    assert re.fullmatch('<span class="c[0-9]+">orange</span>', html("\x1b[38;5;208morange"))
    assert re.fullmatch('<span class="b[0-9]+">green</span>', html("\x1b[48;2;0;255;0mgreen"))


def test_ways_of_writing_are_classes() -> None:
    assert html("\x1b[1;2;3;4;9mall") == '<span class="bold dim italic underline strike">all</span>'


def test_text_on_a_colour_has_no_colour_of_its_own_so_that_none_is_hidden() -> None:
    assert html("\x1b[31;41mhidden?") == '<span class="b1">hidden?</span>'


def test_reversed_text_stands_on_its_colour() -> None:
    assert html("\x1b[7;32mgreen") == '<span class="b2">green</span>'
    assert html("\x1b[7mplain") == '<span class="reverse">plain</span>'


def test_concealed_text_is_shown() -> None:
    assert seen(html("\x1b[8msecret plan\x1b[0m")) == "secret plan"


def test_an_unclosed_colour_lasts_over_the_end_of_the_line() -> None:
    assert html("\x1b[31mred", "still red") == '<span class="c1">still red</span>'


@pytest.mark.parametrize("end", ["\x07", "\x1b\\"])
def test_of_a_link_its_text_is_left(end: str) -> None:
    assert html(f"\x1b]8;;javascript:alert(1){end}click\x1b]8;;{end} here") == "click here"


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x1b[5;5Hmoved", r"\x1b[5;5Hmoved"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x1b]8;;unclosed", r"\x1b]8;;unclosed"),
        ("\x1b[31", r"\x1b[31"),
        ("\x9b31m", r"\x9b31m"),
        ("a\0b", r"a\x00b"),
        ("\u202eevil", r"\u202eevil"),
        ("\u200bzero", r"\u200bzero"),
        ("\udcff", r"\udcff"),
        ("a\tb", "a    b"),
        ("👩\u200d💻", "👩\u200d💻"),
    ],
)
def test_what_steers_is_spelled_out(printed: str, shown: str) -> None:
    assert seen(html(printed)) == shown


def test_a_number_too_long_to_be_read_is_text() -> None:
    assert seen(html(f"\x1b[{'1' * 5000}mx")).startswith(r"\x1b[1111")


def test_a_line_is_shown_as_it_stood_at_the_end_and_what_was_overwritten_is_kept() -> None:
    line = Terminal().line("10%\r\x1b[32m50%\r100%\r")
    assert (line.html, line.overwritten) == ('<span class="c2">100%</span>', 2)
    assert list(line.earlier) == ["10%", '<span class="c2">50%</span>']


def test_only_the_latest_of_what_was_overwritten_is_kept() -> None:
    line = Terminal().line("\r".join(f"{n}%" for n in range(101)))
    assert (line.html, line.overwritten, len(line.earlier)) == ("100%", 100, OVERWRITTEN_MAX)
    assert (line.earlier[0], line.earlier[-1]) == ("80%", "99%")


def test_a_windows_line_end_overwrites_nothing() -> None:
    assert Terminal().line("text\r").overwritten == 0


def test_of_a_huge_line_the_beginning_and_the_end_are_shown() -> None:
    text = seen(html("a" * 600_000 + "b" * 400_000))
    assert len(text) < LINE_CHARACTERS_MAX + 100
    assert text.startswith("aaa")
    assert text.endswith("bbb")
    assert "996,000 characters left out here" in text


def test_a_colour_that_ends_in_what_is_left_out_ends() -> None:
    assert html("\x1b[31m" + "a" * 5000 + "\x1b[0m" + "b" * 5000, "plain") == "plain"


def test_many_colours_in_what_is_left_out_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    drawn = Terminal()
    decode = drawn._decoder.decode_line
    monkeypatch.setattr(drawn._decoder, "decode_line", lambda line: decoded.append(len(line)) or decode(line))
    drawn.line("\x1b[31m" * 200_000)
    assert max(decoded) <= LINE_CHARACTERS_MAX


def test_a_short_text_is_not_folded() -> None:
    assert Block.of("one\ntwo") == Block("one\ntwo", "", 0, "")


def test_a_long_text_is_folded_under_how_it_begins() -> None:
    assert Block.of("\n<b>\n" + "line\n" * 50).summary == "<b> (53 lines, 255 characters)"


def test_of_a_huge_text_the_beginning_and_the_end_are_shown() -> None:
    block = Block.of("a" * 1_000_000 + "b")
    assert len(block.head) + len(block.tail) == terminal.TEXT_CHARACTERS_MAX
    assert (block.left_out, block.tail[-1]) == (1_000_001 - terminal.TEXT_CHARACTERS_MAX, "b")


@given(ANYTHING)
def test_a_text_holds_nothing_that_steers_but_its_line_ends(text: str) -> None:
    block = Block.of(text)
    assert all(each.isprintable() or each in "\n\u200d\ufe0f" for each in block.head + block.tail)
    assert all(each.isprintable() or each in "\u200d\ufe0f" for each in block.summary)
