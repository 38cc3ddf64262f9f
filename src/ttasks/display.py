"""How things are told to people, in a terminal as on a page: hostile text made harmless, times, durations, counts."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from ttasks.events.agent_facts import AgentSessionOpened, FileEdit
from ttasks.events.status import TaskStatus, TerminationReason
from ttasks.model.result import TaskResult
from ttasks.state.exits import exit_text as exit_text  # for templates
from ttasks.state.exits import why
from ttasks.state.graph import RunState
from ttasks.state.reconcile import WAITING
from ttasks.state.task import AttemptState, TaskState

_JOINERS: Final = "\u200d\ufe0f"
TAB: Final = "    "
# What SGR sequences (ECMA-48, 8.3.117) may hold is bounded, because their numbers are read: a digit too many is text.
_SGR: Final = r"\x1b\[[0-9;:]{0,60}m"
COLOUR: Final = re.compile(_SGR)
_KNOWN: Final = re.compile(rf"({_SGR})|\x1b\[[0-2]?K|\x1b\]8;[^\x07\x1b]*(?:\x07|\x1b\\)")
ID_LENGTH: Final = 8
LOOKS_LIKE: Final = {
    "approved": "succeeded",
    "denied": "blocked",
    "aborted": "cancelled",
    "unknown": "interrupted",
    "unanswered": "interrupted",
    WAITING: "running",
}
"""How words look that are no status of a task, such as those of agents' tool calls: as a task that stands like that."""
_SUBJECTS: Final = ("command", "pattern", "query", "path", "file_path", "url", "prompt")
"""Which argument of a tool says best what it was called for, by the tools that there are."""


def printable(text: str, tab: str = TAB) -> str:
    """Return `text` with what could steer a terminal (escape codes, direction marks, lone surrogates) spelled out.

    A tab becomes `tab`.
    """
    if text.isprintable():
        return text
    # One pass over the text for each such character: a script's output has few of them, and millions of others.
    for ch in set(text):
        if not ch.isprintable() and ch not in _JOINERS:
            text = text.replace(ch, tab if ch == "\t" else ch.encode("unicode_escape").decode("ascii"))
    return text


def why_of_result(error: str | None, result: TaskResult | None) -> str:
    """Say in one line why a task ended: its error text, with the exit code of the attempt whose text it is."""
    if result is None or result.status is not TaskStatus.FAILED:
        return plain(why(error, None, None))
    return plain(why(error, result.returncode, result.termination_reason))


def why_of_task(task: TaskState) -> str:
    """Say the same of a task as the ledger has it."""
    result = task.result
    if result is None or result.status is not TaskStatus.FAILED or task.status is not TaskStatus.FAILED:
        return plain(why(task.error, None, None))
    return plain(why(task.error, result.returncode, result.reason))


def why_of_attempt(attempt: AttemptState) -> str:
    """Say the same of an attempt; where ttasks ended its process, by which signal and why it did."""
    if attempt.returncode is None or attempt.reason == TerminationReason.EXIT_CODE:
        return plain(why(attempt.error, attempt.returncode, attempt.reason))
    parts = (exit_text(attempt.returncode, attempt.reason), why(attempt.error, None, None))
    return plain(": ".join(filter(None, parts)))


def coloured(text: str, tab: str = TAB) -> str:
    """Return `text` with no escape sequence left but those that set colours, which are whole; it may end in one.

    Of a link its text is left. What erases the end of a line is dropped: a progress bar prints it with each state.
    """
    if "\x1b" not in text:
        return printable(text, tab)
    parts, end = list[str](), 0
    for found in _KNOWN.finditer(text):
        parts += printable(text[end : found.start()], tab), found[1] or ""
        end = found.end()
    return "".join([*parts, printable(text[end:], tab)])


def plain(text: str, tab: str = TAB) -> str:
    """Return `text` without its colours, and with what could steer a terminal spelled out."""
    return COLOUR.sub("", coloured(text, tab)) if "\x1b" in text else printable(text, tab)


def latest(line: str) -> str:
    """Return what a line says last, of what it has overwritten itself (by a carriage return); it has no line end."""
    return line.rstrip("\r").rpartition("\r")[2] if "\r" in line else line


def short(id_: str) -> str:
    """Return the end of an id: ids made at about the same time begin alike."""
    return id_[-ID_LENGTH:]


def duration(seconds: float | None) -> str:
    """Return a duration as people say it: ``42 ms``, ``1.27 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return ""
    seconds = max(seconds, 0.0)  # a tool call's is the difference of two times of a calendar
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def between(begin: datetime, end: datetime) -> float:
    """Return the seconds between two times of a calendar; 0 where its clock was set back in between."""
    return max((end - begin).total_seconds(), 0.0)


def took(run: RunState, now: datetime | None = None) -> float | None:
    """Return how many seconds a run took: as its runners measured it, else by the times of its start and end.

    `now` is given for a run that goes on. None: it goes on, or it is not known when it ended.
    """
    if now is not None:
        return between(run.started_at, now)
    if run.finished_at is None:
        return None
    return run.duration if run.duration is not None else between(run.started_at, run.finished_at)


def moment(at: datetime | None) -> str:
    """Return a time in the reader's zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if at is not None else ""


def count(number: int, noun: str) -> str:
    """Return ``1 task``, ``2 tasks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def looks_like(word: str) -> str:
    """Return the status of a task in whose colour and shape a word is shown; the word itself where it is one."""
    return LOOKS_LIKE.get(word, word)


def tokens(sent: int | None, answered: int | None, cached: int | None = None) -> str:
    """Return ``1,200 tokens in (1,000 cached), 70 out``; empty where nothing is known."""
    said = []
    if sent is not None:
        said.append(f"{sent:,} token{'' if sent == 1 else 's'} in{f' ({cached:,} cached)' if cached else ''}")
    if answered is not None:
        said.append(f"{answered:,}{'' if said else ' tokens'} out")
    return ", ".join(said)


def ai_credits(nano_aiu: float) -> str:
    """Return billionths of an AI credit as AI credits: ``0.0123``."""
    return f"{nano_aiu / 1e9:.4g}" if abs(nano_aiu) < 1e12 else f"{nano_aiu / 1e9:,.0f}"


def cost(premium_requests: float | None, nano_aiu: float | None) -> str:
    """Return ``1 premium request, 0.12 AI credits``; empty where the agent did not say what it cost."""
    said = []
    if premium_requests is not None:
        said.append(f"{premium_requests:g} premium request{'' if premium_requests == 1 else 's'}")
    if nano_aiu is not None:
        said.append(f"{ai_credits(nano_aiu)} AI credits")
    return ", ".join(said)


def lines_changed(added: int | None, removed: int | None) -> str:
    """Return ``+12 -3 lines``; empty where none were changed."""
    return f"+{added or 0} -{removed or 0} lines" if added or removed else ""


def called_for(arguments: Any) -> str:
    """Return what a tool was called for: its command, path, address or the like, else all its arguments as JSON."""
    if isinstance(arguments, Mapping):
        for name in _SUBJECTS:
            if isinstance(arguments.get(name), str):
                return str(arguments[name])
    if arguments is None or isinstance(arguments, str):
        return arguments or ""
    return json.dumps(arguments, ensure_ascii=False)


def other_arguments(arguments: Any) -> dict[str, str]:
    """Return the arguments that `called_for` does not tell, by name: texts as they are, else as JSON."""
    if not isinstance(arguments, Mapping):
        return {}
    told = next((name for name in _SUBJECTS if isinstance(arguments.get(name), str)), None)
    if told is None:
        return {}
    return {
        str(name): value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in arguments.items()
        if name != told
    }


def files_changed(files: Sequence[FileEdit] | None) -> str:
    """Return the files that a tool changed, with what was done to each."""
    return ", ".join(f"{each.path} ({each.kind})" for each in files or ())


def agent_of(opened: AgentSessionOpened) -> str:
    """Return what ran the agent: ``CLI 1.0.102, SDK 1.0.25``; empty where it did not say."""
    said = [("CLI", opened.cli_version), ("SDK", opened.sdk_version)]
    return ", ".join(f"{name} {version}" for name, version in said if version)


def model_of(opened: AgentSessionOpened) -> str:
    """Return the model that was asked for, with how hard it was to think."""
    effort = f", reasoning effort {opened.reasoning_effort}" if opened.reasoning_effort else ""
    return f"{opened.model or 'the default model'}{effort}"


def through(opened: AgentSessionOpened) -> str:
    """Return through whom the model was reached: the address of a provider, or GitHub Copilot and as whom."""
    if opened.provider is not None:
        return opened.provider
    return f"GitHub Copilot, {opened.account}" if opened.account else "GitHub Copilot"


def tools_of(opened: AgentSessionOpened) -> str:
    """Return which tools the agent had; empty where it was limited in none."""
    only = "" if opened.tools is None else f"only {', '.join(opened.tools)}" if opened.tools else "none"
    without = f"without {', '.join(opened.excluded_tools)}" if opened.excluded_tools else ""
    return ", ".join(filter(None, (only, without)))
