"""A turn of the fake CLI: the steps of a script, told as the events that the real one tells."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fake_session import Aborted, Json, Session, new_id

APPROVED = ("approve-once", "approve-for-session", "approve-for-location", "approve-permanently")
REJECTED = "denied-interactively-by-user"
NOBODY_ASKED = "denied-no-approval-rule-and-could-not-request-from-user"
NOT_SIGNED_IN = "Execution failed: InvalidArg, No GitHub OAuth token or Copilot HMAC key provided"


class TurnFailed(Exception):
    """The turn is over: its `session.error` is told."""


def take_turn(session: Session, prompt: str, message: str) -> Json:
    """Do what the script says of a prompt, until `session.idle` is told. Return what `sendAndWait` answers."""
    number = session.count_prompt()
    prompts, turns = session.script["prompts"], session.script["turns"]
    steps = prompts[prompt] if prompt in prompts else turns[number] if number < len(turns) else [{"say": prompt}]
    turn = Turn(session, message)
    asked = {"content": prompt, "transformedContent": prompt, "messageId": message}
    session.emit("user.message", {**asked, "delivery": "idle", "interactionId": message, "turnId": "0"})
    try:
        if not session.has_provider and session.script["login"] is None:
            turn.fail({"errorType": "query", "message": NOT_SIGNED_IN})
        turn.take(steps)
    except Aborted:
        session.kill_children()
        turn.agent = turn.parent = None
        session.emit("abort", {"reason": "user_initiated"})
        session.emit("agent.interrupted", turn.interruption(), ephemeral=True)
        turn.end_call()
        turn.outcome["aborted"] = True
    except TurnFailed as error:
        turn.outcome["error"] = str(error)
    return session.tell_idle(turn.outcome)


class Turn:
    """What happens between a prompt and `session.idle`."""

    def __init__(self, session: Session, message: str) -> None:
        self.session, self.message = session, message
        self.calls = 0
        self.is_calling = False
        self.agent: str | None = None
        self.parent: str | None = None
        self.running: list[tuple[str, str]] = []
        self.outcome: Json = {"messageId": message, "response": None, "aborted": False}

    def emit(self, kind: str, data: Json, *, ephemeral: bool = False) -> Json:
        parent = {"parentToolCallId": self.parent} if self.parent and kind.startswith(("assistant", "tool")) else {}
        return self.session.emit(kind, {**data, **parent}, ephemeral=ephemeral, agent=self.agent)

    def take(self, steps: list[Json]) -> None:
        for step in steps:
            kinds = [kind for kind in STEPS if kind in step]
            if len(kinds) != 1:
                sys.exit(f"fake_cli: a step must be one of {', '.join(STEPS)}: {step}")
            STEPS[kinds[0]](self, step)

    def begin_call(self) -> str:
        self.calls += 1
        self.is_calling = True
        turn = str(self.calls - 1)
        self.emit("assistant.turn_start", {"turnId": turn, "interactionId": self.message})
        self.emit("model.call_start", {"turnId": turn, "model": self.session.model}, ephemeral=True)
        return turn

    def end_call(self) -> None:
        if self.is_calling:
            self.is_calling = False
            self.emit("assistant.turn_end", {"turnId": str(self.calls - 1)})

    def say(self, step: Json) -> None:
        turn = self.begin_call()
        message = self.stream(step["say"])
        self.take(step.get("during", []))
        self.use(step, "stop")
        said = self.tell(message, step["say"], [], turn)
        if self.agent is None:
            self.outcome["response"] = said
        self.end_call()

    def stream(self, text: str) -> str:
        message = new_id()
        if self.session.params.get("streaming") and text:
            self.emit("assistant.message_start", {"messageId": message}, ephemeral=True)
            for word in re.findall(r"\s*\S+\s*", text):
                self.emit("assistant.message_delta", {"messageId": message, "deltaContent": word}, ephemeral=True)
        return message

    def tell(self, message: str, text: str, requests: list[Json], turn: str) -> Json:
        about = {"messageId": message, "originatingMessageId": self.message, "model": self.session.model}
        data = {"content": text, "toolRequests": requests, "interactionId": self.message, "turnId": turn}
        return self.emit("assistant.message", {**about, **data, "apiCallId": f"completion-{self.calls}"})

    def use(self, step: Json, finish_reason: str) -> None:
        session = self.session
        usage: Json = {
            "model": session.model,
            "inputTokens": 100,
            "outputTokens": 7,
            "cacheReadTokens": 40,
            "cacheWriteTokens": 0,
            "cost": 0.0 if session.has_provider else 1.0,
            "duration": 20,
            "initiator": "sub-agent" if self.agent else "user" if self.calls == 1 else "agent",
            "isByok": session.has_provider,
            "apiCallId": f"completion-{self.calls}",
            "apiEndpoint": "/chat/completions",
            "finishReason": finish_reason,
            "aiCreditsStatus": "unavailable" if session.has_provider else "complete",
        }
        if not session.has_provider:
            usage["copilotUsage"] = {"totalNanoAiu": 250_000_000.0, "tokenDetails": []}
        usage |= step.get("usage", {})
        session.count_call(usage, self.agent)
        self.emit("assistant.usage", usage, ephemeral=True)

    def call_tools(self, step: Json) -> None:
        tools = [{"id": new_id(), **tool} for tool in step.get("tools", [step])]
        turn = self.begin_call()
        message = self.stream(step.get("text", ""))
        self.use(step, "tool_calls")
        requests = [
            {"toolCallId": tool["id"], "name": tool["tool"], "arguments": tool.get("arguments", {}), "type": "function"}
            for tool in tools
        ]
        self.tell(message, step.get("text", ""), requests, turn)
        for tool in tools:
            self.run_tool(tool, turn)
        self.end_call()

    def run_tool(self, tool: Json, turn: str) -> None:
        call, name, arguments = tool["id"], tool["tool"], tool.get("arguments", {})
        about = {
            "toolCallId": call,
            "toolName": name,
            "arguments": arguments,
            "turnId": turn,
            "model": self.session.model,
        }
        if "server" in tool:
            about |= {"mcpServerName": tool["server"], "mcpToolName": name}
        self.emit("tool.execution_start", about)
        self.running.append((call, name))
        refusal = self.ask(tool)
        data: Json = {"toolCallId": call, "model": self.session.model, "interactionId": self.message, "turnId": turn}
        if refusal is not None:
            data |= {"success": False, "error": {"message": refusal, "code": "denied"}}
        else:
            with self.sub_agent(tool):
                self.take(tool.get("during", []))
            data |= self.call_own(tool) if name in self.session.own_tools else done_by(tool)
        self.running.pop()
        self.emit("tool.execution_complete", data)

    @contextmanager
    def sub_agent(self, tool: Json) -> Iterator[None]:
        if "agent" not in tool:
            yield
            return
        outer = self.agent, self.parent, self.calls
        self.agent, self.parent, self.calls = new_id(), tool["id"], 0
        about = {"toolCallId": tool["id"], "agentName": "general-purpose", "agentDisplayName": tool["agent"]}
        self.session.emit("subagent.started", {**about, "agentDescription": tool["agent"]}, agent=self.agent)
        yield
        if "error" in tool:
            self.session.emit("subagent.failed", {**about, "error": tool["error"]}, agent=self.agent)
        else:
            self.session.emit("subagent.completed", {**about, "model": self.session.model}, agent=self.agent)
        self.agent, self.parent, self.calls = outer
        self.is_calling = True

    def ask(self, tool: Json) -> str | None:
        """Return why a tool may not be run, after asking if it has to be asked."""
        request = permission_request(tool, self.session.own_tools)
        if request is None:
            return None
        nobody = (
            "Permission denied and could not request permission from user. Copilot needed the user's approval "
            "and no one could answer."
        )
        if not self.session.params.get("requestPermission"):
            return nobody
        id = new_id()
        about = {"agentMode": "interactive", "permissionMode": "manual", "ownerSessionId": self.session.id}
        self.emit("permission.requested", {"requestId": id, "permissionRequest": request, **about})
        answer = self.session.answer_of(id)
        feedback = answer.get("feedback")
        if answer["kind"] in APPROVED:
            result, refusal = {"kind": "approved"}, None
        elif answer["kind"] == "reject":
            result = {"kind": REJECTED, **({"feedback": feedback} if feedback else {})}
            refusal = "The user rejected this tool call." + (f" User feedback: {feedback}" if feedback else "")
        else:
            result, refusal = {"kind": NOBODY_ASKED}, nobody
        self.emit("permission.completed", {"requestId": id, "toolCallId": tool["id"], "result": result})
        return refusal

    def call_own(self, tool: Json) -> Json:
        id = new_id()
        about = {"toolCallId": tool["id"], "toolName": tool["tool"], "arguments": tool.get("arguments", {})}
        self.emit("external_tool.requested", {"requestId": id, "sessionId": self.session.id, **about})
        answer = self.session.answer_of(id)
        self.emit("external_tool.completed", {"requestId": id})
        result = answer["result"] if isinstance(answer["result"], dict) else {"textResultForLlm": answer["result"]}
        text = result["textResultForLlm"]
        if answer.get("error") or result.get("resultType", "success") != "success":
            return {"success": False, "error": {"message": answer.get("error") or text, "code": "failure"}}
        return {"success": True, "result": {"content": text, "detailedContent": text}}

    def shell(self, step: Json) -> None:
        # As the real one does it: a process group of its own, which an abort kills and a SIGKILL of the CLI doesn't.
        child = subprocess.Popen(
            ["bash", "-c", step["shell"]],
            cwd=self.session.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.session.children.append(child)
        if not step.get("in_background"):
            self.session.wait(lambda: child.poll() is not None)

    def retry(self, step: Json) -> None:
        self.begin_call()
        about, failure = {"turnId": str(self.calls - 1), "model": self.session.model}, step["retry"]
        self.tell_failure(failure)
        self.emit("assistant.turn_retry", {**about, "reason": failure.get("reason", "rate_limit")}, ephemeral=True)

    def tell_failure(self, failure: Json) -> None:
        about = {"model": self.session.model, "source": "top_level", "failureKind": "api", "durationMs": 20}
        said = {"statusCode": failure.get("statusCode"), "errorMessage": failure.get("message", "")}
        self.emit("model.call_failure", {**about, **said}, ephemeral=True)

    def fail(self, error: Json) -> None:
        """Tell the error that ends the turn, and raise TurnFailed."""
        if not self.is_calling:
            self.begin_call()
        if "statusCode" in error:
            self.tell_failure(error)
        self.end_call()
        self.emit("session.error", {**error, "originatingMessageId": self.message})
        raise TurnFailed(error["message"])

    def tell_event(self, step: Json) -> None:
        event = step["event"]
        self.emit(event["type"], event.get("data", {}), ephemeral=event.get("ephemeral", False))

    def interruption(self) -> Json:
        about = {"turn": self.calls - 1, "elapsedMs": 20}
        if not self.running:
            return {**about, "activity": "model_call", "model": self.session.model}
        calls, names = zip(*self.running, strict=True)
        return {**about, "activity": "tool_call", "toolCallIds": list(calls), "toolNames": list(names)}


def permission_request(tool: Json, own_tools: Json) -> Json | None:
    """Return what the SDK is asked about a tool (None: nothing), with the fields of the real one."""
    name, arguments = tool["tool"], tool.get("arguments", {})
    about: Json = {"toolCallId": tool["id"], "intention": arguments.get("description", f"Use {name}")}
    path = str(arguments.get("path", ""))
    if not tool.get("asks", True):
        return None
    if "server" in tool:
        about = {"kind": "mcp", "toolCallId": tool["id"], "serverName": tool["server"], "toolName": name}
        return {**about, "toolTitle": name, "args": arguments, "readOnly": False}
    if name in own_tools:
        about = {"kind": "custom-tool", "toolCallId": tool["id"], "toolName": name}
        return {**about, "toolDescription": own_tools[name].get("description", ""), "args": arguments}
    if name == "bash":
        command = arguments.get("command", "")
        about |= {"kind": "shell", "fullCommandText": command, "canOfferSessionApproval": False}
        commands = [{"identifier": command, "readOnly": False}]
        return {
            **about,
            "commands": commands,
            "possiblePaths": [],
            "possibleUrls": [],
            "hasWriteFileRedirection": False,
        }
    if name in ("create", "edit"):
        diff = "".join(f"+{line}\n" for line in str(arguments.get("file_text", "")).splitlines())
        return {**about, "kind": "write", "fileName": path, "diff": diff, "canOfferSessionApproval": True}
    if name in ("view", "grep", "glob"):
        return {**about, "kind": "read", "path": path}
    if name == "web_fetch":
        return {**about, "kind": "url", "url": arguments.get("url", "")}
    return None


def done_by(tool: Json) -> Json:
    """Return how a tool ended, as the script has it."""
    if "error" in tool:
        return {"success": False, "error": {"message": tool["error"], "code": "failure"}}
    content: str = tool.get("output", "")
    data: Json = {}
    if tool["tool"] == "bash":
        code = tool.get("exit_code", 0)
        data["shellExecution"] = {"exitCode": code}
        content += f"<shellId: 0 completed with exit code {code}>"
    if "files" in tool:
        data["fileEdits"] = [{"path": path, "kind": kind} for path, kind in tool["files"].items()]
    return {"success": True, "result": {"content": content, "detailedContent": content}, **data}


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


STEPS: Mapping[str, Callable[[Turn, Json], None]] = {
    "say": Turn.say,
    "tool": Turn.call_tools,
    "tools": Turn.call_tools,
    "fail": lambda turn, step: turn.fail(step["fail"]),
    "retry": Turn.retry,
    "shell": Turn.shell,
    "wait_for": lambda turn, step: turn.session.wait(Path(step["wait_for"]).exists),
    "event": Turn.tell_event,
    "hang": lambda turn, step: turn.session.wait(lambda: False),
    "kill": lambda turn, step: kill_self(),
    "exit": lambda turn, step: os._exit(step["exit"]),
    "garbage": lambda turn, step: turn.session.wire.send_garbage(),
}
