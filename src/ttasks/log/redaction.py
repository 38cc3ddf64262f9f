"""What is kept out of texts: values of variables that are named as secret, and what patterns match.

Every text is taken line by line, so that what a script prints can be searched as its lines come, and gives the same
as if all of it were there.
"""

from __future__ import annotations

import re
import string
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Final

from ttasks.errors import RedactionError

MASK: Final = "***"
"""What stands in the place of a secret."""
VARIABLE: Final = "TTASKS_REDACT"
"""The environment variable that says what is redacted, as the stores' `redact` does."""
SECRET_CHARACTERS_MIN: Final = 8
"""Shorter values would be found in texts that have nothing to do with them, so only those named one by one are."""
LINE_CHARACTERS_MAX: Final = 16 * 1024
"""How much of a line is held back until it is complete; what is longer comes in parts, a quarter of this behind."""
PASSES_MAX: Final = 4
"""How often a line is searched again for what its own masks have made: more than once only by odd patterns."""

_PATTERN_PREFIX: Final = "re:"
_ORDINARY_PREFIX: Final = "!"
_NAME: Final = re.compile(r"[A-Za-z_*?][A-Za-z0-9_*?]*")
_EXACT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LINE_END: Final = re.compile(r"([\r\n]+)")
_PROBE_SIZES: Final = (12, 16, 20, 24, 28, 32)
_PROBE_SECONDS_MAX: Final = 0.02
"""An ordinary pattern takes microseconds for a probe; one that takes this long doubles it with each character or so."""

Span = tuple[int, int]


class Redaction:
    """Replaces by ``***`` what must not be recorded or shown. It never changes once made; threads may share it.

    `names` are the variables that hold secrets, some of them with ``*`` and ``?``, and `ordinary` those that hold none,
    though their names look secret or match one with a ``*`` or ``?``. `literals` are the values that are
    looked for, each without line ends, and `patterns` whatever looks like one. A line of more than
    `line_characters_max` characters is searched in parts, each together with the last `kept_characters` before it.
    """

    def __init__(
        self,
        names: Iterable[str] = (),
        patterns: Iterable[re.Pattern[str]] = (),
        literals: Iterable[str] = (),
        line_characters_max: int = LINE_CHARACTERS_MAX,
        *,
        ordinary: Iterable[str] = (),
    ) -> None:
        self.names = tuple(dict.fromkeys(names))
        self.ordinary = tuple(dict.fromkeys(ordinary))
        self.patterns = tuple(dict.fromkeys(patterns))
        self.literals = tuple(dict.fromkeys(literals))
        self.kept_characters = max(line_characters_max // 4, *map(len, self.literals), 1)
        self.line_characters_max = max(line_characters_max, 2 * self.kept_characters)

    @property
    def is_idle(self) -> bool:
        """True when there is nothing to look for, as where none of `names` is set."""
        return not self.patterns and not self.literals

    def covers(self, other: Redaction | None) -> bool:
        """True when this one replaces all that `other` does."""
        return other is None or (
            set(other.names) <= set(self.names)
            and set(other.patterns) <= set(self.patterns)
            and set(other.literals) <= set(self.literals)
            and set(self.ordinary) <= set(other.ordinary)
        )

    def is_secret(self, name: str) -> bool:
        """True when the variable of this name is one of `names`."""
        if name in self.names:
            return True
        return any(fnmatchcase(name, known) for known in self.names) and not self.is_ordinary(name)

    def is_ordinary(self, name: str) -> bool:
        """True when the variable of this name is one of `ordinary`; one of `names` without ``*`` and ``?`` never is."""
        return name not in self.names and any(fnmatchcase(name, known) for known in self.ordinary)

    def with_literals(self, literals: Iterable[str]) -> Redaction:
        """Return one that looks for these values too."""
        literals = (*self.literals, *literals)
        return Redaction(self.names, self.patterns, literals, self.line_characters_max, ordinary=self.ordinary)

    def literals_of(self, name: str, value: str) -> tuple[str, ...]:
        """Return what to look for so that the value of a secret variable is found: its lines, trimmed.

        Lines shorter than `SECRET_CHARACTERS_MIN` are left out, but for a value of one line whose variable is named
        without ``*`` and ``?``.
        """
        lines = [line for line in map(str.strip, _LINE_END.split(value)[::2]) if line]
        if len(lines) == 1 and name in self.names:
            return tuple(lines)
        return tuple(line for line in lines if len(line) >= SECRET_CHARACTERS_MIN)

    def text(self, text: str) -> str:
        """Return `text` with what is found in its lines replaced; line ends stay, and doing it again changes nothing.

        Where two finds overlap or touch, one ``***`` stands for both.
        """
        # Most texts have nothing in them: asking only that is several times as fast as asking where.
        literals = [literal for literal in self.literals if literal in text]
        if not literals and not self.patterns:
            return text
        parts = _LINE_END.split(text)  # line, line ends, line, …
        lines = parts[::2]
        hits = {place for literal in literals for place, line in enumerate(lines) if literal in line}
        if len(text) > self.line_characters_max:
            hits.update([place for place, line in enumerate(lines) if len(line) > self.line_characters_max])
        for search in (pattern.search for pattern in self.patterns):
            hits.update([place for place, line in enumerate(lines) if place not in hits and search(line)])
        if not hits:
            return text
        for place in hits:
            is_long = len(lines[place]) > self.line_characters_max
            parts[2 * place] = Line(self).whole(lines[place]) if is_long else self.line(lines[place])
        return "".join(parts)

    def finds(self, text: str) -> bool:
        """True when something in `text` would be replaced."""
        return self.text(text) != text

    def line(self, line: str) -> str:
        """Return a line, or a part of one, with what is found in it replaced."""
        for _ in range(PASSES_MAX):
            spans = self.spans(line)
            masked = mask(line, spans, 0, len(line)) if spans else line
            if masked == line:
                return line
            line = masked
        return MASK  # a pattern that keeps finding what it has left: nothing of the line is safe to show

    def spans(self, line: str) -> list[Span]:
        """Return where in a line something is found, in order: parts that neither overlap nor touch."""
        found = [span for literal in self.literals for span in _places(literal, line)]
        for pattern in self.patterns:
            found += [match.span() for match in pattern.finditer(line) if match[0]]
        return merge(found) if found else found

    def goes_on(self, line: str, before: int) -> bool:
        """True when a pattern's match that begins before an index reaches the end of `line`: more of it may follow."""
        return any(
            match.start() < before and match.end() == len(line)
            for pattern in self.patterns
            for match in pattern.finditer(line)
        )

    def cut_off(self, line: str) -> list[Span]:
        """Return where `line` ends with the beginning of a literal, of at least `SECRET_CHARACTERS_MIN` characters."""
        found = []
        for literal in self.literals:
            sizes = range(min(len(literal) - 1, len(line)), SECRET_CHARACTERS_MIN - 1, -1)
            size = next((size for size in sizes if line.endswith(literal[:size])), 0)
            if size:
                found.append((len(line) - size, len(line)))
        return found


def redacted(text: str, redaction: Redaction | None) -> str:
    """Return `text` as it may be shown; with None, as it is."""
    return text if redaction is None else redaction.text(text)


def _places(literal: str, line: str) -> Iterator[Span]:
    at = line.find(literal)
    while at >= 0:
        yield at, at + len(literal)
        at = line.find(literal, at + 1)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Return the parts that these cover, in order; what overlaps or touches is one part."""
    merged: list[Span] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def mask(line: str, spans: Iterable[Span], start: int, end: int) -> str:
    """Return `line` from `start` to `end` with a mask in place of each of these parts, or of what it has of one."""
    parts, at = [], start
    for first, last in spans:
        if last > start and first < end:
            parts += [line[at:first], MASK]
            at = last
    parts.append(line[at:end])
    return "".join(parts)


class Line:
    """One line that comes in pieces, wherever they are cut: what is safe to show of it comes out.

    All of a line is held back up to the redaction's `line_characters_max`; of a longer one never less than its longest
    literal, so none is missed. A pattern's match is found up to that length; where one reaches the end of what is
    there, more of it may follow, and the rest of the line is left out.
    """

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._hold("", 0)
        self._is_hidden = False

    def _hold(self, held: str, shown: int) -> None:
        self._held, self._held_characters = [held], len(held)
        self._shown_characters = shown  # how much of what is held was given out: patterns look back at it

    def whole(self, line: str) -> str:
        """Return all of a line."""
        return self.add(line) + self.last()

    def add(self, piece: str) -> str:
        """Take the next piece, and return what is safe to show. It is the same wherever the line is cut into pieces."""
        shown = []
        while piece:
            room = self._redaction.line_characters_max - (self._held_characters - self._shown_characters)
            if room == 0:
                shown.append(self._show_part())
                continue
            self._held.append(piece[:room])
            self._held_characters += len(self._held[-1])
            piece = piece[room:]
        return "".join(shown)

    def last(self, *, is_cut_off: bool = False) -> str:
        """Return what is left, with a secret masked that the end cuts off, where the end may do that."""
        if self._is_hidden:
            return ""
        line = "".join(self._held)
        spans = self._redaction.spans(line)
        if is_cut_off:
            spans = merge([*spans, *self._redaction.cut_off(line)])
        return self._masked(line, spans, self._shown_characters, len(line))

    def _show_part(self) -> str:
        line, shown = "".join(self._held), self._shown_characters
        self._hold("", 0)
        if self._is_hidden:
            return ""
        end = len(line) - self._redaction.kept_characters
        spans = self._redaction.spans(line)
        for first, last in spans:
            if first < end < last:
                self._is_hidden = last == len(line) and self._redaction.goes_on(line, end)
                end = last
                break
        start = max(0, end - self._redaction.kept_characters)
        if not self._is_hidden:
            self._hold(line[start:], end - start)
        return self._masked(line, spans, shown, end)

    def _masked(self, line: str, spans: list[Span], start: int, end: int) -> str:
        return self._redaction.line(mask(line, spans, start, end)) if spans else line[start:end]


class LineRedactor:
    """Redacts what is read from one stream, in whatever pieces it comes: whole lines come out. Threads may share it."""

    def __init__(self, redaction: Redaction) -> None:
        self._redaction = redaction
        self._lock = threading.Lock()
        self._line = Line(redaction)
        self._is_finished = False

    def feed(self, text: str) -> str:
        """Take what was read next, and return what it completes."""
        with self._lock:
            if self._is_finished:
                return ""
            first = _LINE_END.search(text)
            if first is None:
                return self._line.add(text)
            # Found from both ends: taking the text apart line by line costs as much as reading it.
            begun, last = first.start(), max(text.rfind("\n"), text.rfind("\r")) + 1
            shown = self._line.add(text[:begun]) + self._line.last() + self._redaction.text(text[begun:last])
            self._line = Line(self._redaction)
            return shown + self._line.add(text[last:])

    def finish(self) -> str:
        """Return the last line, which has no end. Where it breaks off inside of a literal, that part is masked too."""
        with self._lock:
            if self._is_finished:
                return ""
            self._is_finished = True
            return self._line.last(is_cut_off=True)


# --- what is to be redacted, in a user's words ----------------------------------------------------------------------


def read_redaction(redact: Iterable[str | re.Pattern[str]], environment: Mapping[str, str]) -> Redaction | None:
    """Return what `redact` and the environment's TTASKS_REDACT say, None where neither says anything.

    Args:
        redact: names of environment variables, patterns such as ``re:ghp_[A-Za-z0-9]{36}``, compiled patterns; a name
            after ``!`` holds no secret. RuntimeWarning: a variable that is named does not exist.
        environment: where the values of named variables are taken from, now and once.

    Raises:
        TypeError: `redact` is no collection of texts and compiled patterns.
        RedactionError: one of them is neither a name nor a pattern that can be used.
    """
    if isinstance(redact, str | bytes) or not isinstance(redact, Iterable):
        raise TypeError(f"redact must be a list of str and re.Pattern, got {type(redact).__name__}")
    names: list[str] = []
    ordinary: list[str] = []
    patterns: list[re.Pattern[str]] = []
    said = [("redact", f"redact[{index}]", item) for index, item in enumerate(redact)]
    of_variable = enumerate(split_variable(environment.get(VARIABLE, "")), 1)
    said += [(VARIABLE, f"{VARIABLE}, item {number}", item) for number, item in of_variable]
    for source, place, item in said:
        if isinstance(item, re.Pattern) and isinstance(item.pattern, str):
            patterns.append(_checked(source, item))
        elif not isinstance(item, str):
            raise TypeError(f"redact must hold str and re.Pattern of str, got {type(item).__name__} as {place}")
        elif item.startswith(_PATTERN_PREFIX):
            patterns.append(_compiled(source, item.removeprefix(_PATTERN_PREFIX)))
        elif _NAME.fullmatch(item.removeprefix(_ORDINARY_PREFIX)):
            (ordinary if item.startswith(_ORDINARY_PREFIX) else names).append(item.removeprefix(_ORDINARY_PREFIX))
        else:  # by its place only: it may be a secret
            raise RedactionError(
                f"{place} is not the name of an environment variable; a pattern begins with "
                f"'{_PATTERN_PREFIX}'. Nothing was opened or written"
            )
        if isinstance(item, str) and _may_be_a_value(source, item, environment):
            warnings.warn(
                f"{place} names a variable that does not exist, so nothing is kept out for it. If it is the secret "
                "itself: give the name of a variable that holds it",
                RuntimeWarning,
                stacklevel=3,
            )
    if not said:
        return None
    named = Redaction(names, ordinary=ordinary)
    secret = [(name, value) for name, value in environment.items() if named.is_secret(name)]
    literals = [line for name, value in secret for line in named.literals_of(name, value)]
    return Redaction(names, patterns, literals, ordinary=ordinary)


def _may_be_a_value(source: str, item: str, environment: Mapping[str, str]) -> bool:
    """True for a name of one variable that does not exist.

    TTASKS_REDACT is set once for many programs, so that some of its variables may exist only for others. There a name
    counts only where it is not written as variables are.
    """
    if not _EXACT_NAME.fullmatch(item) or item in environment:
        return False
    return source != VARIABLE or not item.isupper()


def split_variable(text: str) -> Iterator[str]:
    """Yield the items of a TTASKS_REDACT: commas and line ends separate them, a pattern takes the rest of its line."""
    for line in text.splitlines():
        rest = line.strip()
        while rest and not rest.startswith(_PATTERN_PREFIX):
            item, _, rest = (part.strip() for part in rest.partition(","))
            if item:
                yield item
        if rest:
            yield rest


def _compiled(source: str, pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise RedactionError(
            f"{source}: the pattern {pattern!r} is no regular expression: {error}. Nothing was opened or written"
        ) from error
    return _checked(source, compiled)


def _checked(source: str, pattern: re.Pattern[str]) -> re.Pattern[str]:
    """Refuse a pattern that would match nothing or take for ever: `re` can't be interrupted, and holds all threads."""
    if not pattern.pattern:
        raise RedactionError(f"{source}: a pattern is empty. Nothing was opened or written")
    repeated = sorted({*pattern.pattern} & {*string.printable} | {*"aA0 _-./="})
    for size in _PROBE_SIZES:
        for character in repeated:
            started = time.thread_time()
            pattern.search(character * size + "\0")
            if time.thread_time() - started > _PROBE_SECONDS_MAX:
                raise RedactionError(
                    f"{source}: the pattern {pattern.pattern!r} takes too long: {size} times {character!r} and it is "
                    "still trying ways to match. Make its repetitions exclude each other, or possessive ('++'). "
                    "Nothing was opened or written"
                )
    return pattern
