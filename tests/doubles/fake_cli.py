#!/usr/bin/env python3
"""A fake of the Copilot CLI: it speaks its protocol over stdin and stdout, and does what a script says.

It is for tests of what no real CLI does on demand, and for those that should take no time. Its events have the fields
that CLI 1.0.102 was seen to send. The script is the JSON file that FAKE_COPILOT_SCRIPT names (`scripted.py` makes one
and a command that uses it). Without one, every prompt is echoed. All its keys are optional:

    start               what is done instead of answering `connect`: "mute", "exit" (with 3), "kill", "garbage"
    stderr              a text to print there first
    version             1.0.102; protocol_version: 3
    login               who is signed in (octocat); null: nobody
    models              the only ones there are (null: all)
    create, resume      what happens instead: {"error": "…"}, {"hang": true}, {"kill": true}
    has_send_and_wait   whether `session.sendAndWait` is known (false, as in 1.0.102)
    prompts             {prompt: steps}
    turns               [steps, …]: those of a conversation's first prompt, second …, where `prompts` doesn't say

A turn's steps, each an object with one of these keys. `during` holds steps that are taken in the midst of one:

    say        a text: the model's answer, streamed word by word before `during`, whole after it
    tool       its name, with arguments; then what comes of it: output, exit_code, error (a text), files ({path: kind});
               asks (false: no permission is needed), server (of MCP), agent (the name of the sub-agent that `during` is
               of). A tool of the caller's own is really called
    tools      several tools, called at once and run in order
    fail       data of the `session.error` that ends the turn: errorType, message, statusCode
    retry      {reason, statusCode, message}: a model's failure that is tried again
    shell      a command that is really run, in a process group of its own; in_background: the next step doesn't wait
    wait_for   a path: goes on when it is there
    event      any event, as it is: {type, data, ephemeral}
    hang, kill, exit, garbage     never goes on; SIGKILLs itself; exits with a code; prints what is no message

`say`, `tool` and `tools` are a call of the model each: `usage` overrides fields of its `assistant.usage`, `text` is
what it says before tools. State is kept in COPILOT_HOME/session-state, and every request is appended to
COPILOT_HOME/requests.jsonl.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fake_session import Json, Session, Wire, new_id, now
from fake_turn import kill_self, take_turn

BEHAVIOUR: Json = {
    "start": None,
    "stderr": "",
    "version": "1.0.102",
    "protocol_version": 3,
    "login": "octocat",
    "models": None,
    "create": {},
    "resume": {},
    "has_send_and_wait": False,
    "prompts": {},
    "turns": [],
}
FAILED, UNKNOWN_METHOD = -32603, -32601


class RequestError(Exception):
    """A request is answered with an error."""

    def __init__(self, message: str, code: int = FAILED, data: Json | None = None) -> None:
        super().__init__(message)
        self.code, self.data = code, data


class Unanswered(Exception):
    """A request gets no answer now: another thread gives it, or nobody."""


class FakeCli:
    """Answers requests in the order in which they come. Turns are taken in other threads, one for each session."""

    def __init__(self, script: Json, home: Path) -> None:
        self.script = {**BEHAVIOUR, **script}
        self.home = home
        self.wire = Wire()
        self.sessions: dict[str, Session] = {}
        self.prompts: dict[str, queue.Queue[tuple[str, str, str | None]]] = {}
        self.requests = home / "requests.jsonl"

    def run(self) -> None:
        for message in self.wire.messages():
            with self.requests.open("a") as file:
                file.write(json.dumps(message) + "\n")
            if "method" not in message:
                continue
            try:
                self.reply(message["id"], self.result_of(message["id"], message["method"], message.get("params") or {}))
            except Unanswered:
                continue
            except RequestError as error:
                self.reply_error(message["id"], error)
            if message["method"] == "runtime.shutdown":
                return
        for session in self.sessions.values():  # nobody is there any more: as the real one, it ends what runs
            session.kill_children()

    def reply(self, id: str, result: Json | None) -> None:
        self.wire.send({"id": id, "result": result})

    def reply_error(self, id: str, error: RequestError) -> None:
        data = {"data": error.data} if error.data is not None else {}
        self.wire.send({"id": id, "error": {"code": error.code, "message": str(error), **data}})

    def result_of(self, id: str, method: str, params: Json) -> Json | None:
        answer = ANSWERS.get(method)
        if answer is not None:
            return answer(self, params)
        if method == "session.sendAndWait" and self.script["has_send_and_wait"]:
            self.enqueue(params, id)
            raise Unanswered
        raise RequestError(f"Unhandled method {method}", UNKNOWN_METHOD)

    def connect(self, params: Json) -> Json:
        start = self.script["start"]
        print(self.script["stderr"], end="", file=sys.stderr, flush=True)
        if start == "mute":
            raise Unanswered
        if start == "exit":
            sys.exit(3)
        if start == "kill":
            kill_self()
        if start == "garbage":
            self.wire.send_garbage()
            raise Unanswered
        return {"ok": True, **self.status(params), "taskKinds": ["agent", "shell", "client"]}

    def status(self, params: Json) -> Json:
        return {"version": self.script["version"], "protocolVersion": self.script["protocol_version"]}

    def ping(self, params: Json) -> Json:
        about = {"timestamp": int(time.time() * 1000), "protocolVersion": self.script["protocol_version"]}
        return {"message": f"pong: {params.get('message')}", **about}

    def auth_status(self, params: Json) -> Json:
        login = self.script["login"]
        if login is None:
            return {"isAuthenticated": False, "statusMessage": "Not authenticated"}
        return {"isAuthenticated": True, "authType": "user", "host": "https://github.com", "login": login}

    def list_models(self, params: Json) -> Json:
        if self.script["login"] is None:
            raise RequestError("Request models.list failed with message: Not authenticated. Please authenticate first.")
        capabilities = {"supports": {"vision": False}, "limits": {"max_context_window_tokens": 128_000}}
        models = self.script["models"] or []
        return {"models": [{"id": model, "name": model, "capabilities": capabilities} for model in models]}

    def create(self, params: Json) -> Json:
        self.fail_as_scripted("create")
        id = params.setdefault("sessionId", new_id())
        models, model, cwd = self.script["models"], params.get("model"), params.get("workingDirectory")
        if "/" in id or " " in id:
            self.refuse("create", f"Rejected session.create request with invalid sessionId: {id}")
        if models is not None and model and model not in models and not params.get("provider"):
            self.refuse("create", f'Model "{model}" is not available.')
        if cwd and not Path(cwd).is_dir():
            self.refuse("create", f"session construction failed: Directory does not exist or cannot be accessed: {cwd}")
        session = self.open(params)
        about = {"sessionId": id, "version": 1, "producer": "copilot-agent", "copilotVersion": self.script["version"]}
        context = {"context": {"cwd": session.cwd}, "remoteSteerable": False, "alreadyInUse": False}
        session.emit("session.start", {**about, "startTime": now(), "selectedModel": session.model, **context})
        return self.opened(session)

    def resume(self, params: Json) -> Json:
        self.fail_as_scripted("resume")
        if not self.folder(params["sessionId"]).exists():
            self.refuse("resume", f"Failed to load session events: Session not found: {params['sessionId']}")
        session = self.open(params)
        count, context = len(session.events), {"context": {"cwd": session.cwd}, "sessionWasActive": False}
        session.emit(
            "session.resume", {"resumeTime": now(), "eventCount": count, "selectedModel": session.model, **context}
        )
        return self.opened(session)

    def fail_as_scripted(self, what: str) -> None:
        failure = self.script[what]
        if "error" in failure:
            self.refuse(what, failure["error"])
        if failure.get("kill"):
            kill_self()
        if failure.get("hang"):
            raise Unanswered

    def refuse(self, what: str, message: str) -> None:
        raise RequestError(f"Request session.{what} failed with message: {message}")

    def folder(self, id: str) -> Path:
        return self.home / "session-state" / id

    def open(self, params: Json) -> Session:
        folder = self.folder(params["sessionId"])
        folder.mkdir(parents=True, exist_ok=True)
        session = Session(self.wire, self.script, folder, params)
        self.sessions[session.id] = session
        self.prompts[session.id] = queue.Queue()
        threading.Thread(target=self.take_turns, args=(session,), daemon=True).start()
        return session

    def opened(self, session: Session) -> Json:
        capabilities = {"ui": {"elicitation": False}, "extensions": False}
        about = {"sessionId": session.id, "startTime": session.totals["started"], "isRemote": False}
        return {**about, "workspacePath": str(session.folder), "capabilities": capabilities}

    def enqueue(self, params: Json, waiting: str | None = None) -> Json:
        session = self.session(params)
        message = new_id()
        session.is_busy = True
        self.prompts[session.id].put((params["prompt"], message, waiting))
        return {"messageId": message}

    def take_turns(self, session: Session) -> None:
        while True:
            prompt, message, waiting = self.prompts[session.id].get()
            session.is_busy = True
            outcome = take_turn(session, prompt, message)
            if waiting is not None and "error" in outcome:
                data = {"completionEventId": outcome["completionEventId"]}
                self.reply_error(waiting, RequestError(outcome["error"], data=data))
            elif waiting is not None:
                self.reply(waiting, outcome)

    def session(self, params: Json) -> Session:
        session = self.sessions.get(params["sessionId"])
        if session is None:
            raise RequestError(f"Session not found: {params['sessionId']}")
        return session

    def answer(self, params: Json) -> Json:
        result = params["result"] if "kind" in (params.get("result") or ()) else params
        self.session(params).answer(params["requestId"], result)
        return {"success": True}

    def abort(self, params: Json) -> Json:
        self.session(params).abort()
        return {"success": True}

    def detach(self, params: Json) -> Json:
        session = self.session(params)
        session.end()
        metrics = session.metrics()
        session.emit(
            "session.shutdown", {"shutdownType": "routine", **shutdown_totals(metrics), "accountingSnapshot": metrics}
        )
        del self.sessions[session.id]
        return {"success": True}

    def get_messages(self, params: Json) -> Json:
        return {"events": self.session(params).events}

    def get_metrics(self, params: Json) -> Json:
        return self.session(params).metrics()

    def metadata(self, params: Json) -> Json:
        folder = self.folder(params["sessionId"])
        if not folder.exists():
            return {}
        first, *_, last = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines() * 2]
        times = {"startTime": first["timestamp"], "modifiedTime": last["timestamp"]}
        about = {
            "sessionId": folder.name,
            "isRemote": False,
            "summary": "A conversation",
            "context": first["data"]["context"],
        }
        return {"session": {**about, **times}}

    def list_sessions(self, params: Json) -> Json:
        folders = sorted((self.home / "session-state").glob("*"), key=lambda folder: folder.stat().st_mtime)
        return {"sessions": [self.metadata({"sessionId": folder.name})["session"] for folder in folders]}

    def last_id(self, params: Json) -> Json:
        sessions = self.list_sessions(params)["sessions"]
        return {"sessionId": sessions[-1]["sessionId"]} if sessions else {}

    def delete(self, params: Json) -> Json:
        shutil.rmtree(self.folder(params["sessionId"]), ignore_errors=True)
        return {"success": True}

    def shutdown(self, params: Json) -> None:
        for session in list(self.sessions.values()):
            session.end()


ANSWERS: dict[str, Callable[[FakeCli, Json], Json | None]] = {
    "connect": FakeCli.connect,
    "ping": FakeCli.ping,
    "status.get": FakeCli.status,
    "auth.getStatus": FakeCli.auth_status,
    "models.list": FakeCli.list_models,
    "session.create": FakeCli.create,
    "session.resume": FakeCli.resume,
    "session.send": FakeCli.enqueue,
    "session.abort": FakeCli.abort,
    "session.detach": FakeCli.detach,
    "session.getMessages": FakeCli.get_messages,
    "session.usage.getMetrics": FakeCli.get_metrics,
    "session.permissions.handlePendingPermissionRequest": FakeCli.answer,
    "session.tools.handlePendingToolCall": FakeCli.answer,
    "session.getMetadata": FakeCli.metadata,
    "session.list": FakeCli.list_sessions,
    "session.getLastId": FakeCli.last_id,
    "session.delete": FakeCli.delete,
    "runtime.shutdown": FakeCli.shutdown,
}


def shutdown_totals(metrics: Json) -> Json:
    names = ("modelMetrics", "agentMetrics", "totalNanoAiu", "totalApiDurationMs", "codeChanges", "currentModel")
    started = int(time.time() * 1000)
    return {**{name: metrics[name] for name in names}, "sessionStartTime": started, "totalPremiumRequests": 0}


def main() -> None:
    named = os.environ.get("FAKE_COPILOT_SCRIPT")
    script = json.loads(Path(named).read_text("utf-8")) if named else {}
    if unknown := set(script) - set(BEHAVIOUR):
        sys.exit(f"fake_cli: the script has keys that mean nothing: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory() as nowhere:
        home = Path(os.environ.get("COPILOT_HOME", nowhere))
        home.mkdir(parents=True, exist_ok=True)
        FakeCli(script, home).run()


if __name__ == "__main__":
    main()
