"""What an agent did inside an attempt: one frozen type per fact, in the stream of its task.

The rules of `facts` hold here too. An attempt holds at most one conversation, so a fact needs only its attempt to say
whose it is. `at` is when it happened, which is a little before it is recorded. `agent` is the id of the sub-agent that
a fact is about (None: the agent that was asked).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from ttasks.events.facts import Record, TaskFact

Json = Any
"""A value that JSON has a form for."""


@dataclass(frozen=True, eq=False, repr=False)
class FileEdit(Record):
    """A file that a tool changed: `kind` is what was done to it, in the tool's word (``create``, ``edit``)."""

    path: str
    kind: str


@dataclass(frozen=True, eq=False, repr=False)
class AgentFact(TaskFact):
    """A fact about the conversation of an attempt."""

    attempt: int
    at: datetime


@dataclass(frozen=True, eq=False, repr=False)
class AgentSessionOpened(AgentFact):
    """The attempt's conversation: `session` is its id, by which it can be taken up again.

    `is_resumed`: it was begun by an earlier attempt or task. `model` is the one that was asked for. `provider` is the
    address of the model's own endpoint (None: GitHub Copilot), `account` how, and as whom, the agent was signed in
    there. `permissions` is what decides requests, in order; `tools` those that it was limited to (None: not limited),
    `excluded_tools` those it was denied. `mark` is what its processes carry in $TTASKS_ATTEMPT (None: the attempt's
    own mark).
    """

    session: str
    is_resumed: bool
    cli_version: str | None = None
    sdk_version: str | None = None
    model: str | None = None
    reasoning_effort: str | None = None
    cwd: str | None = None
    provider: str | None = None
    account: str | None = None
    permissions: tuple[str, ...] | None = None
    tools: tuple[str, ...] | None = None
    excluded_tools: tuple[str, ...] | None = None
    mark: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class AgentPrompted(AgentFact):
    """The agent was sent `prompt`: the task's payload, or what asks it to go on after an interruption."""

    prompt: str


@dataclass(frozen=True, eq=False, repr=False)
class AgentAnswered(AgentFact):
    """A whole message of the agent. `is_partial`: the rest of it never came."""

    text: str
    is_partial: bool
    model: str | None = None
    agent: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ToolCallStarted(AgentFact):
    """The agent called a tool.

    `call` is the call's id within the conversation, `parent` that of the call it is part of. `server` is the MCP server
    that the tool is of (None: it is built in, or the caller's own).
    """

    call: str
    tool: str
    arguments: Json = None
    server: str | None = None
    parent: str | None = None
    agent: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ToolCallEnded(AgentFact):
    """How a tool call ended. ``aborted``: nobody said how, because the turn was ended while it ran.

    A command that ended with another code than 0 has `exit_code`, and ``failed``. `output` is what the agent was given,
    `files` what was changed.
    """

    call: str
    outcome: Literal["succeeded", "failed", "denied", "aborted"]
    exit_code: int | None = None
    output: str | None = None
    error: str | None = None
    files: tuple[FileEdit, ...] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class PermissionRequested(AgentFact):
    """The agent wants to do something that has to be allowed.

    `kind` is of what sort (``shell``, ``write``, ``read``, ``url``, ``mcp``, ``custom-tool`` …), `subject` what it is
    about: the command, the path, the address, the tool. `intention` is what the agent says it is for. `call` is the
    tool call that it belongs to.
    """

    request: str
    kind: str
    subject: str
    intention: str | None = None
    call: str | None = None
    agent: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class PermissionDecided(AgentFact):
    """What was decided of a request, and by what: a rule, as it was given, or the name of a function.

    `feedback` is what the agent was told of it.
    """

    request: str
    decision: Literal["approved", "denied"]
    by: str
    feedback: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ModelCalled(AgentFact):
    """A model answered. Counts are tokens, `duration` is in seconds.

    `multiplier` is what the model costs in premium requests a prompt, and the same on every call: it must not be
    summed. `nano_aiu` is what the call cost, in billionths of an AI credit. `call` is the provider's id of the call.
    """

    model: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    duration: float | None = None
    multiplier: float | None = None
    nano_aiu: float | None = None
    initiator: str | None = None
    finish_reason: str | None = None
    call: str | None = None
    agent: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class AgentErred(AgentFact):
    """Something went wrong. `kind` is the agent's word for it, `status_code` that of HTTP.

    `is_retried`: the agent tries again by itself; otherwise this ended the turn.
    """

    kind: str
    message: str
    is_retried: bool
    status_code: int | None = None
    agent: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class AgentAborted(AgentFact):
    """The turn was ended before the agent was done. `why`: ``cancelled``, ``timeout``, ``stopped`` (its runner
    was), ``closed`` (its session was), ``failed`` (it could not be recorded), ``crashed``."""

    why: str


@dataclass(frozen=True, eq=False, repr=False)
class AgentTurnEnded(AgentFact):
    """What the attempt's turn came to: what it added to the totals of the conversation.

    `premium_requests` and `nano_aiu` are what it cost by the agent's own account (None: it did not say), `requests`
    how many prompts count as such. `lines_added` and `lines_removed` are those of all files that it changed.
    """

    model_calls: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    premium_requests: float | None = None
    nano_aiu: float | None = None
    requests: int | None = None
    lines_added: int | None = None
    lines_removed: int | None = None
