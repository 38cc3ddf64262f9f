"""What an agent may do: a policy, a list of rules, or a function of the caller's, asked for every request."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import unquote, urlsplit

from ttasks.model.callbacks import check_runs_when_called
from ttasks.model.retry import qualified_name
from ttasks.public import public

POLICIES: Final = {"approve_all": ("*",), "deny_all": (), "read_only": ("read",)}
"""What each named policy comes to as rules."""
KINDS: Final = frozenset({
    "*", "shell", "write", "read", "url", "mcp", "custom-tool", "memory", "hook", "workflow", "extension-env-access",
    "extension-management", "extension-permission-access",
})  # fmt: skip
"""What rules may speak of: the kinds of requests that the SDK knows, and all of them."""
NO_RULE: Final = "no rule"
"""What a denial is by that no rule asked for."""


@dataclass(frozen=True)
class PermissionRequest:
    """What an agent wants to do.

    `kind` is ``shell``, ``write``, ``read``, ``url``, ``mcp`` or another word of the agent's; `subject` is what it is
    about: the command, the path (absolute), the address, the tool. `paths` are all paths of a write or read,
    `arguments` what a tool of its own would get. `intention` is what the agent says it is for; don't rely on it.
    `leaves_sandbox`: it is to be done outside of the sandbox that the session was given.
    """

    task_id: str
    kind: str
    subject: str
    working_directory: str
    intention: str | None = None
    paths: tuple[str, ...] = ()
    arguments: Any = None
    leaves_sandbox: bool = False


Answer = bool | str
"""True: yes; False: no; a text: no, and the agent is told this."""
Permissions = str | Sequence[str] | Callable[[PermissionRequest], Answer]


@dataclass(frozen=True)
class Decision:
    """Whether a request is approved, by what, and what the agent is told."""

    is_approved: bool
    by: str
    feedback: str | None = None

    @property
    def word(self) -> Literal["approved", "denied"]:
        """Return it in the word of the ledger."""
        return "approved" if self.is_approved else "denied"


_KINDS: Final = ", ".join(sorted(KINDS))
_RULE: Final = re.compile(r"(?P<deny>deny\s+)?(?P<kind>\*|(?!deny\b)[a-z][a-z_-]*)(?:\((?P<pattern>.+)\))?", re.DOTALL)
# What joins commands is cut at; what else a shell may make a command of is matched only as a whole, without wildcards.
_JOINS: Final = re.compile(r"&&|\|\||[;|&]")
_NOT_PLAIN: Final = re.compile(r"[`()<>\n\r\\]")
_BLANK: Final = " \t\n"
"""What a shell makes nothing of around a command; to it, a space of another alphabet is part of a word."""
# A denial looks for commands wherever a shell may begin one: one too many does no harm.
_BEGINNINGS: Final = re.compile(r"[;|&`(){}\n\r]")
_BEFORE: Final = re.compile(r"(?:(?:if|then|elif|else|while|until|do|time|!|[A-Za-z_]\w*=\S*) )+")
_ADDRESS: Final = re.compile(
    r"(?:(?P<scheme>[^:/]+)://)?(?P<host>[^/:]*)(?::(?P<port>[^/]*))?(?P<path>/.*)?", re.DOTALL
)
_PORTS: Final = {"http": "80", "https": "443"}


@dataclass(frozen=True)
class Rule:
    """One rule: ``kind``, ``kind(pattern)``, or one of these after ``deny``."""

    text: str
    kind: str
    pattern: str | None
    denies: bool
    resolved: str | None = None
    """An absolute pattern with links followed: now, because an agent may change them."""

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Return the rule that `text` says.

        Raises:
            ValueError: it says none.
        """
        match = _RULE.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"permissions: {text!r} is no rule; write a kind, or kind(pattern), after 'deny' to refuse it: "
                "'read', 'write(src/*)', 'shell(git status*)', 'url(https://docs.python.org/*)', 'deny shell(rm *)'"
            )
        if match["kind"] not in KINDS:
            like = get_close_matches(match["kind"].replace("_", "-"), KINDS, 1)
            hint = f"did you mean {like[0]!r}?" if like else f"expected one of {_KINDS}"
            if text.strip() in POLICIES:
                hint = "a policy stands alone, without rules"
            where = f" in {text!r}" if text.strip() != match["kind"] else ""
            raise ValueError(f"permissions: {match['kind']!r}{where} is no kind of request; {hint}")
        pattern = match["pattern"]
        return cls(text.strip(), match["kind"], pattern, match["deny"] is not None, _resolved(pattern or ""))

    def matches(self, request: PermissionRequest) -> bool:
        """True when the rule speaks of this request: to approve it, of all of it; to deny it, of some of it."""
        if self.kind not in ("*", request.kind):
            return False
        if request.leaves_sandbox and not self.denies and self.text != "*":
            return False
        if self.pattern is None and (self.kind == "*" or request.kind not in ("write", "read")):
            return True
        if request.kind in ("write", "read"):
            paths = request.paths or (request.subject,)
            return self._all_or_any(self._is_path(path, request.working_directory) for path in paths)
        assert self.pattern is not None
        if request.kind == "shell":
            return self._is_command(request.subject)
        if request.kind == "url":
            return self._is_address(request.subject)
        return fnmatchcase(request.subject, self.pattern)

    def _all_or_any(self, found: Any) -> bool:
        return any(found) if self.denies else all(found)

    def _is_path(self, path: str, working_directory: str) -> bool:
        # Links are followed: a link inside the folder that leads out of it is outside.
        root = os.path.realpath(working_directory)
        try:
            real = os.path.realpath(os.path.join(root, path))  # noqa: PTH118 - Path.resolve raises for a link in a loop
        except ValueError:  # no file can have that name
            return self.denies
        is_inside = Path(real).is_relative_to(root)
        if self.pattern is None:
            return is_inside or self.denies
        named = os.path.normpath(os.path.join(working_directory, path))  # noqa: PTH118 - links are not followed here
        if self.resolved is not None:
            pattern = os.path.expanduser(self.pattern)  # noqa: PTH111 - a pattern is no path
            return any(
                fnmatchcase(form, wanted)
                for form in ((real, named) if self.denies else (real,))
                for wanted in (pattern, self.resolved)
            )
        pattern = os.path.normpath(self.pattern)
        found = fnmatchcase(os.path.relpath(real, root), pattern)
        if self.denies:
            return found or fnmatchcase(os.path.relpath(named, working_directory), pattern)
        return found and is_inside

    def _is_command(self, command: str) -> bool:
        assert self.pattern is not None
        if command.strip(_BLANK) == self.pattern:
            return True
        if self.denies:
            return any(fnmatchcase(text, self.pattern) for text in _commands_in(command))
        return all(self.is_part(part) for part in _parts(command) or [""])

    def is_part(self, part: str) -> bool:
        """True when the rule speaks of one command, which nothing else is joined to."""
        return bool(part) and not _NOT_PLAIN.search(part) and fnmatchcase(part, self.pattern or "*")

    def _is_address(self, address: str) -> bool:
        wanted = _ADDRESS.fullmatch(self.pattern or "*")
        found = _address(address)
        if wanted is None or found is None:
            return self.denies  # programs may read it in different ways
        scheme, host, port, path = found
        default = _PORTS.get(scheme, "") if wanted["scheme"] and not self.denies else "*"
        is_any_path = self.denies or not wanted["scheme"] or wanted["host"].endswith("*")
        if not wanted["scheme"] and not self.denies and scheme not in _PORTS:
            return False
        return (
            fnmatchcase(scheme, (wanted["scheme"] or "*").lower())
            and fnmatchcase(host, wanted["host"].lower())
            and fnmatchcase(port, wanted["port"] or default)
            and fnmatchcase(path, wanted["path"] or ("*" if is_any_path else "/"))
        )


def _resolved(pattern: str) -> str | None:
    """Return an absolute pattern with links in it followed, up to its first wildcard; None: it is relative."""
    pattern = os.path.expanduser(pattern)  # noqa: PTH111 - a pattern is no path
    if not os.path.isabs(pattern):  # noqa: PTH117
        return None
    fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
    if fixed != pattern:
        fixed = fixed.rpartition("/")[0]
    return os.path.realpath(fixed or "/").rstrip("/") + pattern[len(fixed) :]


def _parts(command: str) -> list[str]:
    """Return the commands that are joined in one."""
    return [part for text in _JOINS.split(command) if (part := text.strip(_BLANK))]


def _commands_in(command: str) -> Iterator[str]:
    """Yield whatever may be meant as a command in one: of it all, and of its parts, as they are and unquoted."""
    joined = command.replace("\\\n", "")
    for text in (command, joined, *(re.sub(r"[\"'\\]", "", form) for form in (command, joined))):
        yield text.strip()
        for part in map(str.split, _BEGINNINGS.split(text)):
            line = f"{' '.join(part)} "
            before = _BEFORE.match(line)
            words = line[before.end() :].split() if before is not None else part
            yield " ".join(part)
            yield " ".join(words)
            yield " ".join([*(word.rpartition("/")[2] for word in words[:1]), *words[1:]])


def _address(text: str) -> tuple[str, str, str, str] | None:
    """Return scheme, host, port, and path with query, as a browser understands an address; None: it is no plain one."""
    if re.search(r"[\s\\\x00-\x1f\x7f]", text):
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not parts.scheme or not host:
        return None
    kept: list[str] = []
    for segment in re.sub("%2e", ".", parts.path, flags=re.IGNORECASE).split("/")[1:]:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    path = f"/{'/'.join(kept)}" + (f"?{parts.query}" if parts.query else "")
    known = _PORTS.get(parts.scheme, "")
    return parts.scheme, unquote(host).lower().rstrip("."), str(port) if port is not None else known, path


class Policy:
    """Decides requests. `names` is what decides, as it is recorded."""

    def __init__(self, permissions: Permissions) -> None:
        self._ask: Callable[[PermissionRequest], Any] | None = None
        self._name: str | None = None
        self._rules: tuple[Rule, ...] = ()
        if isinstance(permissions, str):
            if permissions not in POLICIES:
                raise ValueError(
                    f"permissions must be one of {', '.join(map(repr, POLICIES))}, a list of rules, or a function; "
                    f"got {permissions!r}"
                )
            self._name = permissions
            self._rules = tuple(map(Rule.parse, POLICIES[permissions]))
            self.names: tuple[str, ...] = (permissions,)
        elif callable(permissions):
            check_runs_when_called(permissions, "permissions")
            self._ask = permissions
            self.names = (qualified_name(permissions),)
        elif isinstance(permissions, Sequence) and all(isinstance(rule, str) for rule in permissions):
            self._rules = tuple(map(Rule.parse, permissions))
            self.names = tuple(rule.text for rule in self._rules)
        else:
            raise TypeError(f"permissions must be a str, rules or callable, got {type(permissions).__name__}")

    def decide(self, request: PermissionRequest) -> Decision:
        """Decide; a function of the caller's is called on this thread.

        A rule that denies comes before all that approve; what no rule speaks of is denied.
        """
        if self._ask is not None:
            return self._asked(self._ask, request)
        if request.kind == "shell" and self._name is None:
            return self._shell(request)
        rules = [rule for rule in self._rules if rule.matches(request)]
        return self._by(next((rule for rule in rules if rule.denies), None) or next(iter(rules), None))

    def _shell(self, request: PermissionRequest) -> Decision:
        """Decide a command, each part of which may be approved by another rule."""
        rules = [rule for rule in self._rules if rule.kind in ("shell", "*")]
        denial = next((rule for rule in rules if rule.denies and rule.matches(request)), None)
        whole = next((rule for rule in rules if not rule.denies and rule.matches(request)), None)
        if denial is not None or whole is not None:
            return self._by(denial or whole)
        approving = [rule for rule in rules if not rule.denies]
        found = [next((rule for rule in approving if rule.is_part(part)), None) for part in _parts(request.subject)]
        if not found or None in found or request.leaves_sandbox:
            return self._by(None)
        return Decision(True, ", ".join(dict.fromkeys(rule.text for rule in found if rule is not None)))

    def _by(self, rule: Rule | None) -> Decision:
        if rule is not None and not rule.denies:
            return Decision(True, self._name or rule.text)
        by = self._name or (rule.text if rule is not None else NO_RULE)
        what = f"the rule {rule.text!r} forbids it" if rule is not None else f"nothing allows it ({by})"
        return Decision(False, by, f"This is not permitted here: {what}.")

    def _asked(self, ask: Callable[[PermissionRequest], Any], request: PermissionRequest) -> Decision:
        (name,) = self.names
        try:
            answer = ask(request)
        except BaseException as error:  # noqa: BLE001 - what can't be decided is denied, and the record says why
            return Decision(False, f"{name}: raised {type(error).__name__}: {error}", "This is not permitted here.")
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            return Decision(False, f"{name}: returned an awaitable, not a bool or str", "This is not permitted here.")
        if answer is True:
            return Decision(True, name)
        if answer is False or isinstance(answer, str):
            return Decision(False, name, answer or "This is not permitted here.")
        text = f"{name}: returned {type(answer).__name__}, not a bool or str"
        return Decision(False, text, "This is not permitted here.")


def parse_permissions(text: str) -> Permissions:
    """Return what `text` says, as it stands in an environment variable: a policy, or rules between commas or lines."""
    if text.strip() in POLICIES:
        return text.strip()
    rules = re.split(r"[,\n](?![^(]*\))", text)
    return [rule.strip() for rule in rules if rule.strip()]


public(PermissionRequest)
