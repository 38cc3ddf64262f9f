"""Whether Copilot tasks can run here, without asking a model anything."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from importlib.metadata import version

from ttasks.errors import CopilotError
from ttasks.handlers.copilot.cli import SESSION_MARK, find_cli
from ttasks.handlers.copilot.conversation import Conversation
from ttasks.handlers.copilot.failures import failure
from ttasks.handlers.copilot.loop import LoopThread
from ttasks.handlers.copilot.options import AGENT_MODEL, Options
from ttasks.log.survivors import marking


@dataclass(frozen=True)
class Probe:
    """What was found. `error` is why Copilot tasks can't run here; None: they can.

    `provider` is the address of the model endpoint of one's own, else `account` says who is signed in.
    """

    sdk_version: str
    made_for: str | None
    cli_path: str | None = None
    cli_version: str | None = None
    provider: str | None = None
    account: str | None = None
    permissions: tuple[str, ...] = ()
    error: CopilotError | None = None


def probe() -> Probe:
    """Start the CLI that tasks would use, ask it who it is and who is signed in, and end it.

    Raises:
        ValueError: an environment variable says something that can't be used. Nothing was started.
    """
    options = Options(AGENT_MODEL)
    settled = options.settled({}, None)
    path = conversation = error = None
    try:
        path = find_cli(settled.cli_path)
        conversation = Conversation(options, settled, marking(f"{SESSION_MARK}{uuid.uuid4()}"), lambda _: None)
        thread = LoopThread()
        try:
            thread.call(_look(conversation))
        finally:
            thread.close()
    except CopilotError as found:
        error = found
    return Probe(
        version("github-copilot-sdk"),
        _made_for(),
        path,
        conversation.cli_version if conversation is not None else None,
        settled.address,
        conversation.account if conversation is not None else None,
        settled.policy.names,
        error,
    )


async def _look(conversation: Conversation) -> None:
    try:
        await conversation.start()
    except CopilotError:
        raise
    except Exception as error:
        raise failure(error) from error
    finally:
        with contextlib.suppress(CopilotError):  # it was only looked at: nothing is lost
            await conversation.close()


def _made_for() -> str | None:
    """Return the version of the CLI that the SDK was made for, where it says."""
    try:
        from copilot._cli_version import CLI_VERSION
    except ImportError:
        return None
    return CLI_VERSION or None
