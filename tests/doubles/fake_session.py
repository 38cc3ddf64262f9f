"""A conversation of the fake CLI: what it tells, what it keeps, and what it counts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]

GLANCE_S = 0.01
"""How often whoever waits looks again, in seconds."""


class Aborted(Exception):
    """The turn is over, because somebody wished so."""


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id() -> str:
    return str(uuid.uuid4())


class Wire:
    """The two pipes: each message is JSON after a header that says how long it is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def messages(self) -> Iterator[Json]:
        while True:
            length = 0
            while (line := sys.stdin.buffer.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            if line == b"":
                return
            yield json.loads(sys.stdin.buffer.read(length))

    def send(self, message: Json) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        with self._lock:
            sys.stdout.buffer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
            sys.stdout.buffer.flush()

    def send_garbage(self) -> None:
        with self._lock:
            sys.stdout.buffer.write(b"Segmentation fault (not really)\n\n")
            sys.stdout.buffer.flush()


class Session:
    """A conversation: its events and totals are in `folder`, and a prompt's turn is taken in a thread of its own."""

    def __init__(self, wire: Wire, script: Json, folder: Path, params: Json) -> None:
        self.id: str = params["sessionId"]
        self.wire, self.script, self.folder, self.params = wire, script, folder, params
        self.model: str = params.get("model") or "claude-sonnet-4.5"
        self.has_provider = bool(params.get("provider"))
        self.cwd: str = params.get("workingDirectory") or str(Path.cwd())
        self.own_tools = {tool["name"]: tool for tool in params.get("tools") or ()}
        self.answers: dict[str, Json] = {}
        self.answered = threading.Condition()
        self.is_aborted = self.is_busy = False
        self.children: list[subprocess.Popen[bytes]] = []
        self.events = [json.loads(line) for line in self._read("events.jsonl").splitlines()]
        self.totals: Json = json.loads(self._read("totals.json") or "{}") or {
            "started": now(),
            "prompts": 0,
            "calls": {},
        }

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def emit(self, kind: str, data: Json, *, ephemeral: bool = False, agent: str | None = None) -> Json:
        parent = self.events[-1]["id"] if self.events else None
        event: Json = {"type": kind, "data": data, "id": new_id(), "timestamp": now(), "parentId": parent}
        event |= {"ephemeral": True} if ephemeral else {}
        event |= {"agentId": agent} if agent else {}
        if not ephemeral:
            self.events.append(event)
            with (self.folder / "events.jsonl").open("a") as file:
                file.write(json.dumps(event) + "\n")
        self.wire.send({"method": "session.event", "params": {"sessionId": self.id, "event": event}})
        return event

    def wait(self, is_so: Callable[[], bool]) -> None:
        with self.answered:
            while not is_so():
                if self.is_aborted:
                    raise Aborted
                self.answered.wait(GLANCE_S)

    def answer(self, request: str, result: Json) -> None:
        with self.answered:
            self.answers[request] = result
            self.answered.notify_all()

    def answer_of(self, request: str) -> Json:
        """Return what the SDK said to a request of ours, once it does."""
        self.wait(lambda: request in self.answers)
        return self.answers.pop(request)

    def kill_children(self) -> None:
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        self.children.clear()

    def abort(self) -> None:
        with self.answered:
            self.is_aborted = self.is_busy
            self.answered.notify_all()

    def tell_idle(self, outcome: Json) -> Json:
        """Tell that the turn is over, and return its outcome, with the event that ended it."""
        aborted = {"aborted": True} if outcome["aborted"] else {}
        self.emit("assistant.idle", aborted, ephemeral=True)
        with self.answered:
            self.is_aborted = self.is_busy = False
            self.answered.notify_all()
        idle = self.emit("session.idle", {**aborted, "mode": "interactive"}, ephemeral=True)
        return {**outcome, "completionEventId": idle["id"]}

    def end(self) -> None:
        """Abort what goes on, and return once it is over."""
        self.abort()
        with self.answered:
            self.answered.wait_for(lambda: not self.is_busy)
        self.kill_children()

    def count_call(self, usage: Json, agent: str | None) -> None:
        model = self.totals["calls"].setdefault(agent or "main", {}).setdefault(usage["model"], {})
        for name in ("inputTokens", "outputTokens", "cacheReadTokens", "cacheWriteTokens", "duration", "cost"):
            model[name] = model.get(name, 0) + usage[name]
        model["count"] = model.get("count", 0) + 1
        model["nanoAiu"] = model.get("nanoAiu", 0) + usage.get("copilotUsage", {}).get("totalNanoAiu", 0)
        self._keep_totals()

    def count_prompt(self) -> int:
        """Return how many prompts there were before this one."""
        self.totals["prompts"] += 1
        self._keep_totals()
        return int(self.totals["prompts"]) - 1

    def _keep_totals(self) -> None:
        (self.folder / "totals.json").write_text(json.dumps(self.totals))

    def metrics(self) -> Json:
        """Return the totals of the whole conversation, as `session.usage.getMetrics` has them."""
        credits_status = "unavailable" if self.has_provider else "complete"
        by_agent = {
            agent: summed(list(models.items()), credits_status) for agent, models in self.totals["calls"].items()
        }
        everything = summed(
            [item for models in self.totals["calls"].values() for item in models.items()], credits_status
        )
        per_prompt = 0.0 if self.has_provider else 1.0
        return {
            **everything,
            "totalPremiumRequestCost": per_prompt * self.totals["prompts"],
            "totalUserRequests": self.totals["prompts"],
            "aiCreditsStatus": credits_status,
            "sessionStartTime": self.totals["started"],
            "codeChanges": {"linesAdded": 0, "linesRemoved": 0, "filesModifiedCount": 0, "filesModified": []},
            "agentMetrics": by_agent,
            "currentModel": self.model,
            "lastCallInputTokens": 100,
            "lastCallOutputTokens": 7,
        }


def summed(models: list[tuple[str, Json]], credits_status: str) -> Json:
    metrics: Json = {}
    for name, calls in models:
        model = metrics.setdefault(
            name,
            {"requests": {"count": 0, "cost": 0.0}, "usage": {}, "totalNanoAiu": 0, "aiCreditsStatus": credits_status},
        )
        model["requests"]["count"] += calls["count"]
        model["requests"]["cost"] += calls["cost"]
        model["totalNanoAiu"] += calls["nanoAiu"]
        for kind in ("inputTokens", "outputTokens", "cacheReadTokens", "cacheWriteTokens"):
            model["usage"][kind] = model["usage"].get(kind, 0) + calls[kind]
    return {
        "modelMetrics": metrics,
        "totalNanoAiu": sum(model["totalNanoAiu"] for model in metrics.values()),
        "totalApiDurationMs": sum(calls["duration"] for _, calls in models),
    }
