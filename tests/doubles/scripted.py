"""The fake CLI as a test wants it: a command of its own, which acts by a script."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FAKE_CLI = Path(__file__).with_name("fake_cli.py")

Step = dict[str, Any]


def scripted_cli(folder: Path, *turns: Sequence[Step], **behaviour: Any) -> Path:
    """Write a command into `folder` that is the fake CLI with this script; return its path.

    It needs nothing in its environment.

    Args:
        folder: it is made if it is missing. A script that it holds already is replaced, also for commands returned
            before.
        turns: the steps of a conversation's first prompt, of its second … What isn't there is echoed.
        behaviour: the other keys of a script; `fake_cli` has them all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "script.json"
    script.write_text(json.dumps({"turns": [list(turn) for turn in turns], **behaviour}), "utf-8")
    command = folder / "copilot"
    python, fake, named = (shlex.quote(str(part)) for part in (sys.executable, FAKE_CLI, script))
    command.write_text(f'#!/bin/sh\nFAKE_COPILOT_SCRIPT={named} exec {python} -S {fake} "$@"\n', "utf-8")
    command.chmod(0o755)
    return command


def requests_in(home: Path, method: str | None = None) -> list[dict[str, Any]]:
    """Return what fakes with this COPILOT_HOME were asked, oldest first: all messages, or those with this method."""
    log = home / "requests.jsonl"
    messages = [json.loads(line) for line in log.read_text("utf-8").split("\n")[:-1]] if log.exists() else []
    return [message for message in messages if method in (None, message.get("method"))]
