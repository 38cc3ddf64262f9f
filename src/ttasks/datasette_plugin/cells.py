"""How a value of a ledger is shown in Datasette's own tables and in the results of queries."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Callable
from importlib.resources import files
from typing import Any, Final

from markupsafe import Markup

from ttasks import display
from ttasks.datasette_plugin.ledgers import Links, is_ledger, links_of
from ttasks.events.codec import from_iso
from ttasks.events.status import TaskStatus
from ttasks.state.rows import from_text

FOLDED_FROM: Final = 160
"""Texts with more characters than this, or with more than one line, are folded."""
HASH_SHOWN: Final = 12
"""How many hexadecimal digits of a hash are shown; the rest is in its title."""
TEXT_MAX: Final = 20_000
"""How many characters of a text a cell holds at the most."""
_STATES: Final = frozenset((*map(str, TaskStatus), *display.LOOKS_LIKE))


def cell(datasette: Any, database: str | None, row: Any, column: str, value: Any) -> Markup | None:
    """Return how a value of a ledger is shown; None: as Datasette does, and always so in a database that is none.

    `value` is a dict, with ``value`` and ``label``, where Datasette looked up what a reference reads.
    """
    if value is None or value == "" or database is None or not is_ledger(datasette, database):
        return None
    if isinstance(value, bytes):
        return _hash(value)
    if column in _LINKED:
        links = links_of(datasette, database)
        if isinstance(value, dict):
            return _labelled(links, column, value)
        if column == "title":
            return _title(links, row, value)
        if column == "stream":
            return _stream(links, value)
        if (address := _address(links, column, value)) is not None:
            return _link(address, str(value))
    shown = _SHOWN.get(column)
    told = shown(value) if shown is not None else None
    return told if told is not None or not isinstance(value, str) else _text(value)


_TASKS: Final = frozenset({"task_id", "blocked_by", "dependency_id"})
_POSITIONS: Final = frozenset({"position", "cause", "runner", "end_position"})
_LINKED: Final = frozenset({"title", "graph_id", "stream", *_TASKS, *_POSITIONS})


def _address(links: Links, column: str, value: Any) -> str | None:
    if isinstance(value, str) and column in _TASKS:
        return links.task(value)
    if isinstance(value, str) and column == "graph_id":
        return links.run(value)
    if isinstance(value, int) and column in _POSITIONS:
        return links.event(value)
    return None


def _link(address: str, id_: str) -> Markup:
    """Return a link that reads as the end of an id; a position is shown whole."""
    if len(id_) <= display.ID_LENGTH:
        return Markup('<a href="{}">{}</a>').format(address, display.printable(id_))
    return Markup('<a href="{}" title="{}">…{}</a>').format(
        address, display.printable(id_), display.printable(display.short(id_))
    )


def _labelled(links: Links, column: str, value: dict[str, Any]) -> Markup | None:
    address = _address(links, column, value["value"])
    if address is None:
        return None
    label = display.printable(_plain(str(value["label"]))) or display.short(str(value.get("value", "")))
    return Markup('<a href="{}" title="{}">{}</a>').format(address, display.printable(str(value["value"])), label)


def _stream(links: Links, value: Any) -> Markup | None:
    """Show a stream as its kind and the end of its id; ``stdout``, ``stderr`` and ``ledger`` as they are."""
    kind, _, id_ = str(value).partition("-")
    address = {"task": links.task, "graph": links.run}.get(kind)
    if not id_ or (address is None and kind != "runner"):
        return _text(str(value))
    end = display.printable(display.short(id_))
    if address is None:
        return Markup('{} <span title="{}">…{}</span>').format(kind, display.printable(id_), end)
    return Markup("{} {}").format(kind, _link(address(id_), id_))


def _title(links: Links, row: Any, value: Any) -> Markup | None:
    """Show a title as the link to what bears it, where its id is in the same row."""
    names = row.keys()
    text = _plain(str(value))
    whose = [name for name in ("task_id", "graph_id") if name in names and row[name]]
    if "task_id" in names or "graph_id" in names:
        address = _address(links, whose[0], row[whose[0]]) if whose else None
    elif "id" in names and row["id"]:
        address = links.task(str(row["id"])) if "payload" in names else links.run(str(row["id"]))
    else:
        address = None
    if address is None or len(text) > FOLDED_FROM:
        return _text(str(value))
    return Markup('<a href="{}">{}</a>').format(address, display.printable(text))


def _state(value: Any) -> Markup | None:
    if value not in _STATES:
        return None
    looks = display.looks_like(value)
    return Markup('<span class="ttasks-state ttasks-{}">{} {}</span>').format(looks, _icons()[looks], value)


@functools.cache
def _icons() -> dict[str, Markup]:
    """Return the drawing of each state, as the pages have it."""
    text = files("ttasks.datasette_plugin").joinpath("templates/ttasks/icons.html").read_text("utf-8")
    drawn = re.findall(r'<symbol id="i-(\w+)" viewBox="([\d ]+)">(.*?)</symbol>', text)
    return {
        state: Markup(  # noqa: S704  (nothing but what is in our own file)
            f'<svg viewBox="{box}" width="14" height="14" aria-hidden="true">{shape}</svg>'
        )
        for state, box, shape in drawn
    }


def _seconds(value: Any) -> Markup | None:
    if not isinstance(value, int | float) or value < 0:
        return None
    return Markup('<span class="ttasks-number" title="{} s">{}</span>').format(value, display.duration(value))


def _time(value: Any) -> Markup | None:
    try:
        moment = from_iso(value)
    except (ValueError, TypeError):
        return None
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(value, display.moment(moment))


def _counted(noun: str) -> Callable[[Any], Markup | None]:
    """Return what shows how many of something there are."""

    def shown(value: Any) -> Markup | None:
        if not isinstance(value, int):
            return None
        return Markup('<span class="ttasks-number" title="{} {}">{:,}</span>').format(value, noun, value)

    return shown


def _credits(value: Any) -> Markup | None:
    if not isinstance(value, int | float):
        return None
    told = display.ai_credits(value)
    return Markup('<span class="ttasks-number" title="{} billionths of an AI credit">{}</span>').format(value, told)


def _number(value: Any) -> Markup | None:
    if not isinstance(value, int | float):
        return None
    return Markup('<span class="ttasks-number" title="{}">{:.4g}</span>').format(value, value)


def _exit_code(value: Any) -> Markup | None:
    if not isinstance(value, int) or not value:
        return None
    return Markup('<span class="ttasks-number" title="{}">{}</span>').format(display.exit_text(value), value)


def _yes_or_no(value: Any) -> Markup | None:
    return Markup('<span title="{}">{}</span>').format(value, "yes" if value else "no") if value in (0, 1) else None


def _commit(value: Any) -> Markup | None:
    if not isinstance(value, str) or len(value) <= HASH_SHOWN:
        return None
    return Markup('<code title="{}">{}</code>').format(display.printable(value), display.printable(value[:HASH_SHOWN]))


def _hash(value: bytes) -> Markup | None:
    if len(value) != 32:
        return None
    return Markup('<code title="{}">{}…</code>').format(value.hex(), value.hex()[:HASH_SHOWN])


def _command_line(value: Any) -> Markup | None:
    """Show a command line as one would type it."""
    try:
        words = json.loads(value)
    except (ValueError, TypeError):
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    return _code(shlex.join(words))


def _json(value: Any) -> Markup | None:
    try:
        told = json.dumps(json.loads(value), indent=2, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        return None
    return _code(told, summary=value)


def _files(value: Any) -> Markup | None:
    """Show the files that a tool changed, a line each."""
    try:
        told = [f"{each['path']} ({each['kind']})" for each in json.loads(value)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return _code("\n".join(told))


def _text(value: str) -> Markup | None:
    """Show a text that could draw more than letters with that spelled out, and a long one folded."""
    text = _plain(value)
    if text == value and text.isprintable() and len(text) <= FOLDED_FROM:
        return None
    return _code(text)


def _code(text: str, summary: str | None = None) -> Markup:
    """Return a text as it is, line by line; folded under its beginning where it is long."""
    cut = "" if len(text) <= TEXT_MAX else f"\n… {len(text) - TEXT_MAX:,} more characters"
    lines = [display.printable(line) for line in text[:TEXT_MAX].split("\n")]
    if len(lines) == 1 and len(lines[0]) <= FOLDED_FROM:
        return Markup('<code class="ttasks-text">{}</code>').format(lines[0])
    begin = display.printable((summary if summary is not None else text).strip().split("\n")[0][:80])
    whole = Markup('<pre class="ttasks-text">{}</pre>').format("\n".join(lines) + cut)
    return Markup("<details><summary><code>{}…</code></summary>{}</details>").format(begin, whole)


def _plain(stored: str) -> str:
    """Return what a text column stands for; as it is, where somebody's query made another text of it."""
    try:
        return from_text(stored) if stored else stored
    except ValueError:
        return stored


_OF_STATES: Final = ("status", "result_status", "resolution", "decision")
_OF_SECONDS: Final = ("duration", "result_duration", "timeout", "total_seconds", "average_seconds", "median_seconds")
_OF_TIMES: Final = (
    *("recorded_at", "created_at", "started_at", "finished_at", "retry_due_at", "result_started_at"),
    *("result_finished_at", "at", "last_at", "requested_at", "decided_at", "called_at"),
)
_OF_TOKENS: Final = tuple(f"{of}_tokens" for of in ("input", "output", "cache_read", "cache_write", "reasoning"))
_SHOWN: Final[dict[str, Callable[[Any], Markup | None]]] = {
    **dict.fromkeys(_OF_STATES, _state),
    **dict.fromkeys(_OF_SECONDS, _seconds),
    **dict.fromkeys(_OF_TIMES, _time),
    **dict.fromkeys(("error_length", "result_error_length"), _counted("characters")),
    **dict.fromkeys(_OF_TOKENS, _counted("tokens")),
    **dict.fromkeys(("is_deleted", "is_finally", "is_required", "git_dirty", "with_changes"), _yes_or_no),
    **dict.fromkeys(("git_commit", "source_sha256"), _commit),
    **dict.fromkeys(("data", "env", "env_digests", "redacted", "errors", "retry_policy", "arguments"), _json),
    **dict.fromkeys(("returncode", "result_returncode"), _exit_code),
    "files": _files,
    "nano_aiu": _credits,
    **dict.fromkeys(("ai_credits", "premium_requests"), _number),
    "command": _command_line,
}
"""What is shown otherwise than as text, by the name of its column: queries have no table to go by."""
