"""What is printed for terminals, as HTML: colours as classes, all else that could steer one spelled out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup, escape
from rich.ansi import AnsiDecoder
from rich.color import Color, ColorSystem
from rich.style import Style

from ttasks.display import COLOUR, coloured, count, printable

LINE_CHARACTERS_MAX: Final = 4_000
"""How much of one line is drawn: its beginning and its end."""
OVERWRITTEN_MAX: Final = 20
"""How many of the states of a line that were overwritten are drawn, the latest."""
SETTINGS_MAX: Final = 100
"""How many of the colours that are set in what is not drawn are looked at, the latest."""
TEXT_CHARACTERS_MAX: Final = 64_000
"""How much of a text (a payload, an error) is shown: its beginning and its end."""
LONG_LINES: Final = 14
LONG_CHARACTERS: Final = 1_500

_FLAGS: Final = ("bold", "dim", "italic", "underline", "strike")


@dataclass(frozen=True)
class Line:
    """A line as it stood at the end, and, oldest first, what it said before it was overwritten (carriage return).

    `overwritten` counts all of those states, `earlier` holds the latest of them.
    """

    html: Markup
    earlier: Sequence[Markup] = ()
    overwritten: int = 0


class Terminal:
    """Draws the lines of one stream, in their order: a colour lasts until another is set, over ends of lines too."""

    def __init__(self) -> None:
        self._decoder = AnsiDecoder()

    def line(self, text: str) -> Line:
        """Return a line; `text` is without its line end."""
        *before, last = text.rstrip("\r").split("\r")
        earlier = [state for state in before if state]
        kept = max(0, len(earlier) - OVERWRITTEN_MAX)
        self._pass_over("\r".join(earlier[:kept]))
        drawn = [self._drawn(state) for state in earlier[kept:]]
        return Line(self._drawn(last), drawn, len(earlier))

    def _drawn(self, text: str) -> Markup:
        if len(text) <= LINE_CHARACTERS_MAX:
            return self._html(text)
        head, end = LINE_CHARACTERS_MAX * 3 // 4, len(text) - LINE_CHARACTERS_MAX // 4
        begin = self._html(text[:head])
        self._pass_over(text[head:end])
        note = Markup('<span class="cut">… {:,} characters left out here …</span>').format(end - head)
        return begin + note + self._html(text[end:])

    def _pass_over(self, text: str) -> None:
        """Take in the colours that are set in what is not drawn: they last beyond it."""
        self._decoder.decode_line("".join(COLOUR.findall(text)[-SETTINGS_MAX:]))

    def _html(self, text: str) -> Markup:
        drawn = self._decoder.decode_line(coloured(text))
        plain, end, parts = drawn.plain, 0, list[Markup]()
        for span in drawn.spans:
            names = _classes(span.style) if isinstance(span.style, Style) else ""
            inside = escape(plain[span.start : span.end])
            parts.append(escape(plain[end : span.start]))
            parts.append(Markup('<span class="{}">{}</span>').format(names, inside) if names else inside)
            end = span.end
        return Markup("").join([*parts, escape(plain[end:])])


def _classes(style: Style) -> str:
    names = [name for name in _FLAGS if getattr(style, name)]
    fore, back = _number(style.color), _number(style.bgcolor)
    if style.reverse:
        fore, back = (None, fore) if fore is not None else (None, None)
        names += ["reverse"] if back is None else []
    if back is not None:
        names.append(f"b{back}")  # and no colour of its own on it: any pair could be unreadable, or meant to hide
    elif fore is not None:
        names.append(f"c{fore}")
    return " ".join(names)


def _number(color: Color | None) -> int | None:
    """Return which of the 16 colours comes nearest; None: that of the page."""
    return None if color is None or color.is_default else color.downgrade(ColorSystem.STANDARD).number


@dataclass(frozen=True)
class Block:
    """A text of several lines, made harmless: of a huge one `head` and `tail`, between which `left_out` characters are.

    `summary` says what there is, where it is long enough to be folded away; otherwise it is empty.
    """

    head: str
    tail: str
    left_out: int
    summary: str

    @classmethod
    def of(cls, text: str, most: int = TEXT_CHARACTERS_MAX) -> Block:
        """Return a text as a page shows it, at most `most` characters of it."""
        head, tail, left_out = text, "", max(0, len(text) - most)
        if left_out:
            cut = most * 3 // 4
            head, tail = text[:cut], text[cut + left_out :]
        lines = text.count("\n") + 1
        is_long = lines > LONG_LINES or len(text) > LONG_CHARACTERS
        first = next(filter(None, map(str.strip, head.split("\n"))), "")
        begin = f"{printable(first[:100])}{'…' if len(first) > 100 else ''}"
        summary = f"{begin} ({count(lines, 'line')}, {len(text):,} characters)" if is_long else ""
        return cls(_lines(head), _lines(tail), left_out, summary)


def _lines(text: str) -> str:
    return "\n".join(map(printable, text.replace("\r\n", "\n").split("\n")))
