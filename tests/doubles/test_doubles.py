"""The doubles are held against the real things: the fake CLI against the SDK, the model's server against the CLI."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import psutil
import pytest
from copilot import CopilotClient, RuntimeConnection, define_tool
from copilot.rpc import PermissionDecisionReject, PermissionDecisionUserNotAvailable
from copilot.session import CopilotSession, PermissionHandler
from copilot.session_events import SessionEvent
from pydantic import BaseModel

from doubles.model_server import (
    Answer,
    CallTool,
    CallTools,
    DropConnection,
    Fail,
    Hang,
    ModelServer,
    Request,
    Say,
    Usage,
)
from doubles.real import RealCli
from doubles.scripted import FAKE_CLI, Step, requests_in, scripted_cli
from processes import PATIENCE_S, until

pytestmark = pytest.mark.usefixtures("pipes_closed")

APPROVE = PermissionHandler.approve_all
BYOK = {"type": "openai", "wire_api": "completions", "base_url": "http://127.0.0.1:9/v1", "api_key": "none"}


class City(BaseModel):
    name: str


@define_tool(description="How the weather is")
async def weather(city: City) -> str:
    return f"sun in {city.name}"


class Talk:
    """A conversation that is listened to. What is asked of an event is asked of its data as it was sent."""

    def __init__(self, client: CopilotClient) -> None:
        self.client = client
        self.session: CopilotSession
        self.events: list[SessionEvent] = []
        self._came = asyncio.Event()

    def hear(self, event: SessionEvent) -> None:
        self.events.append(event)
        self._came.set()

    async def wait_for(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Return the data of the `count`-th event of this type."""
        async with asyncio.timeout(PATIENCE_S):
            while len(found := self.all(kind)) < count:
                self._came.clear()
                await self._came.wait()
        return found[count - 1]

    async def send(self, prompt: str) -> str:
        """Send a prompt, and return the last answer once the turn is over."""
        turns = len(self.all("session.idle"))
        await self.session.send(prompt)
        await self.wait_for("session.idle", turns + 1)
        return self.answer

    @property
    def answer(self) -> str:
        answers = [event for event in self.events if event.type.value == "assistant.message" and not event.agent_id]
        return str(answers[-1].data.to_dict()["content"]) if answers else ""

    @property
    def kinds(self) -> list[str]:
        return [event.raw_type or event.type.value for event in self.events]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [event.data.to_dict() for event, found in zip(self.events, self.kinds, strict=True) if found == kind]

    def one(self, kind: str) -> dict[str, Any]:
        (data,) = self.all(kind)
        return data


@contextlib.asynccontextmanager
async def started(cli: Path, home: Path, environment: dict[str, str] | None = None) -> AsyncIterator[CopilotClient]:
    client = CopilotClient(
        connection=RuntimeConnection.for_stdio(path=str(cli)),
        env={"PATH": os.environ["PATH"], **(environment or {})},
        base_directory=str(home),
        use_logged_in_user=False,
        working_directory=str(home.parent),
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            await client.start()
        yield client
    finally:
        await client.force_stop()


@contextlib.asynccontextmanager
async def talking(
    cli: Path, home: Path, environment: dict[str, str] | None = None, resume: str | None = None, **options: Any
) -> AsyncIterator[Talk]:
    async with started(cli, home, environment) as client:
        talk = Talk(client)
        options = {"model": "fake-model", "on_permission_request": APPROVE, "on_event": talk.hear, **options}
        if resume is None:
            talk.session = await client.create_session(**options)
        else:
            talk.session = await client.resume_session(resume, **options)
        yield talk


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


# The fake CLI, asked by the real SDK.


def test_the_fake_without_a_script_echoes_and_says_who_it_is(copilot_home: Path) -> None:
    async def test() -> None:
        async with talking(FAKE_CLI, copilot_home, streaming=True) as talk:
            assert await talk.send("Say this, please") == "Say this, please"
            status, account = await talk.client.get_status(), await talk.client.get_auth_status()
            assert (status.version, status.protocol_version) == ("1.0.102", 3)
            assert (account.isAuthenticated, account.login) == (True, "octocat")
            assert (await talk.client.ping("you")).message == "pong: you"
        assert [data["deltaContent"] for data in talk.all("assistant.message_delta")] == ["Say ", "this, ", "please"]
        assert talk.kinds[0] == "session.start"
        assert talk.kinds[-1] == "session.idle"
        assert talk.one("assistant.usage")["inputTokens"] == 100

    run(test)


def test_a_fake_that_knows_send_and_wait_answers_it(tmp_path: Path, copilot_home: Path) -> None:
    cli = scripted_cli(
        tmp_path / "cli",
        [{"say": "Yes"}],
        [{"fail": {"errorType": "quota", "message": "Spent", "statusCode": 402}}],
        has_send_and_wait=True,
    )

    async def test() -> None:
        async with talking(cli, copilot_home) as talk:
            answered = await talk.session.send_and_wait("Well?")
            assert answered is not None and answered.data.to_dict()["content"] == "Yes"
            with pytest.raises(Exception, match="Spent"):
                await talk.session.send_and_wait("And now?")
            # SDKs before 1.0.26 don't know it.
            asked = requests_in(copilot_home, "session.sendAndWait") or requests_in(copilot_home, "session.send")
            assert [request["params"]["prompt"] for request in asked] == ["Well?", "And now?"]

    run(test)


@pytest.mark.parametrize(
    ("tool", "kind", "subject"),
    [
        ({"tool": "bash", "arguments": {"command": "ls"}}, "shell", {"fullCommandText": "ls"}),
        ({"tool": "create", "arguments": {"path": "/a", "file_text": "b\n"}}, "write", {"fileName": "/a"}),
        ({"tool": "view", "arguments": {"path": "/a"}}, "read", {"path": "/a"}),
        ({"tool": "web_fetch", "arguments": {"url": "https://x.test"}}, "url", {"url": "https://x.test"}),
        ({"tool": "sums-add", "server": "sums", "arguments": {"a": 1}}, "mcp", {"serverName": "sums"}),
        ({"tool": "weather", "arguments": {"name": "Rome"}}, "custom-tool", {"toolName": "weather"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_kind_of_permission_is_asked_for_and_denied(
    tool: dict[str, Any], kind: str, subject: dict[str, str], tmp_path: Path, copilot_home: Path
) -> None:
    asked: list[Any] = []

    def reject(request: Any, about: dict[str, Any]) -> PermissionDecisionReject:
        asked.append(request)
        return PermissionDecisionReject(feedback="not today")

    async def test() -> None:
        cli = scripted_cli(tmp_path / "cli", [tool])
        async with talking(cli, copilot_home, on_permission_request=reject, tools=[weather]) as talk:
            await talk.send("Do it")
        sent = asked[0].to_dict()
        assert sent["kind"] == kind
        assert sent.items() >= subject.items()
        assert talk.one("permission.completed")["result"]["feedback"] == "not today"
        ended = talk.one("tool.execution_complete")
        assert (ended["success"], ended["error"]["code"]) == (False, "denied")
        assert ended["toolCallId"] == talk.one("tool.execution_start")["toolCallId"] == sent["toolCallId"]

    run(test)


def test_tools_that_are_allowed_end_as_the_script_says(tmp_path: Path, copilot_home: Path) -> None:
    tools = [
        {"tool": "bash", "arguments": {"command": "make"}, "output": "no\n", "exit_code": 2},
        {"tool": "edit", "arguments": {"path": "/a"}, "files": {"/a": "edit"}},
        {"tool": "view", "arguments": {"path": "/b"}, "error": "No such file"},
        {"tool": "weather", "arguments": {"name": "Rome"}},
        {"tool": "skill", "asks": False, "output": "known"},
    ]
    cli = scripted_cli(tmp_path / "cli", [{"tools": tools, "text": "Let me see"}, {"say": "Done"}])

    async def test() -> None:
        async with talking(cli, copilot_home, tools=[weather]) as talk:
            assert await talk.send("Do it") == "Done"
        bash, edit, view, own, skill = talk.all("tool.execution_complete")
        assert (bash["success"], bash["shellExecution"]["exitCode"]) == (True, 2)
        assert edit["fileEdits"] == [{"kind": "edit", "path": "/a"}]
        assert view["error"] == {"message": "No such file", "code": "failure"}
        assert own["result"]["content"] == "sun in Rome"
        assert skill["result"]["content"] == "known"
        assert len(talk.all("permission.requested")) == 4
        assert len(talk.all("assistant.usage")) == 2

    run(test)


def test_a_permission_that_nobody_decides_is_denied(tmp_path: Path, copilot_home: Path) -> None:
    async def test(handler: Any) -> Talk:
        cli = scripted_cli(tmp_path / "cli", [{"tool": "bash", "arguments": {"command": "ls"}}])
        async with talking(cli, copilot_home, on_permission_request=handler) as talk:
            await talk.send("Do it")
        assert "could not request permission" in talk.one("tool.execution_complete")["error"]["message"]
        return talk

    absent = asyncio.run(test(lambda request, about: PermissionDecisionUserNotAvailable()))
    assert absent.one("permission.completed")["result"]["kind"].endswith("could-not-request-from-user")
    assert asyncio.run(test(None)).all("permission.requested") == []


def test_what_a_sub_agent_does_carries_its_id(tmp_path: Path, copilot_home: Path) -> None:
    during = [{"tool": "bash", "arguments": {"command": "ls"}}, {"say": "Counted"}]
    steps: list[Step] = [
        {"tool": "task", "agent": "counter", "during": during, "output": "Counted"},
        {"say": "All done"},
    ]

    async def test() -> None:
        async with talking(scripted_cli(tmp_path / "cli", steps), copilot_home) as talk:
            assert await talk.send("Do it") == "All done"
            metrics = (await talk.session.rpc.usage.get_metrics()).to_dict()
        (agent,) = {event.agent_id for event in talk.events if event.agent_id}
        own = [event.type.value for event in talk.events if event.agent_id]
        assert own[0] == "subagent.started"
        assert own[-1] == "subagent.completed"
        assert own.count("assistant.message") == own.count("assistant.usage") == 2
        assert set(metrics["agentMetrics"]) == {"main", agent}

    run(test)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("authentication", 401),
        ("authorization", 401),
        ("policy", 403),
        ("quota", 402),
        ("rate_limit", 429),
        ("context_limit", 400),
        ("query", 500),
    ],
)
def test_a_turn_fails_with_each_type_of_error(kind: str, status: int, tmp_path: Path, copilot_home: Path) -> None:
    error = {"errorType": kind, "message": "No", "statusCode": status}

    async def test() -> None:
        cli = scripted_cli(tmp_path / "cli", [{"retry": {"statusCode": status}}, {"fail": error}])
        async with talking(cli, copilot_home) as talk:
            await talk.send("Do it")
            assert await talk.send("Again") == "Again"
        assert talk.one("session.error").items() >= error.items()
        assert [failure["statusCode"] for failure in talk.all("model.call_failure")] == [status, status]
        assert talk.one("assistant.turn_retry")["reason"] == "rate_limit"

    run(test)


def test_an_abort_leaves_the_tool_in_flight_unended_and_kills_what_it_runs(tmp_path: Path, copilot_home: Path) -> None:
    pid = tmp_path / "pid"
    during = [{"shell": f"echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 600"}]
    steps = [{"tool": "bash", "arguments": {"command": "x"}, "during": [{"event": {"type": "tool.go"}}, *during]}]

    async def test() -> None:
        async with talking(scripted_cli(tmp_path / "cli", steps), copilot_home) as talk:
            await talk.session.send("Do it")
            await talk.wait_for("tool.go")
            await asyncio.to_thread(until, pid.exists)
            await talk.session.abort()
            assert (await talk.wait_for("session.idle"))["aborted"] is True
            assert not psutil.pid_exists(int(pid.read_text()))
            assert await talk.send("Still there?") == "Still there?"
        assert talk.one("abort") == {"reason": "user_initiated"}
        assert talk.one("agent.interrupted")["activity"] == "tool_call"
        assert talk.all("tool.execution_complete") == []

    run(test)


def test_a_fake_that_is_killed_leaves_its_shells_running(tmp_path: Path, copilot_home: Path) -> None:
    pid = tmp_path / "pid"
    steps = [{"shell": f"echo $$ > {pid}.new; mv {pid}.new {pid}; sleep 600", "in_background": True}]
    steps += [{"wait_for": str(pid)}, {"kill": True}]
    cli = scripted_cli(tmp_path / "cli", [{"tool": "bash", "arguments": {"command": "x"}, "during": steps}])

    async def test() -> None:
        async with talking(cli, copilot_home) as talk:
            await talk.session.send("Do it")
            with pytest.raises(Exception, match="exited"):
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        await talk.client.ping()

    run(test)
    os.killpg(int(pid.read_text()), signal.SIGKILL)


def test_a_turn_that_hangs_has_said_what_it_could(tmp_path: Path, copilot_home: Path) -> None:
    cli = scripted_cli(tmp_path / "cli", [{"say": "One two", "during": [{"hang": True}]}])

    async def test() -> None:
        async with talking(cli, copilot_home, streaming=True) as talk:
            await talk.session.send("Count")
            await talk.wait_for("assistant.message_delta", 2)
            await talk.client.ping()
            assert talk.all("assistant.message") == talk.all("session.idle") == []
            await talk.session.disconnect()

    run(test)


def test_a_turn_waits_for_a_file(tmp_path: Path, copilot_home: Path) -> None:
    gate = tmp_path / "gate"
    steps: list[Step] = [{"event": {"type": "session.at_the_gate"}}, {"wait_for": str(gate)}, {"say": "Through"}]

    async def test() -> None:
        async with talking(scripted_cli(tmp_path / "cli", steps), copilot_home) as talk:
            await talk.session.send("Go")
            await talk.wait_for("session.at_the_gate")
            assert talk.answer == ""
            gate.touch()
            await talk.wait_for("session.idle")
            assert talk.answer == "Through"

    run(test)


def test_events_of_unknown_types_reach_the_sdk_under_their_names(tmp_path: Path, copilot_home: Path) -> None:
    event = {"type": "model.of_tomorrow", "data": {"a": 1}, "ephemeral": True}

    async def test() -> None:
        async with talking(scripted_cli(tmp_path / "cli", [{"event": event}]), copilot_home) as talk:
            await talk.send("Go")
        (unknown,) = [event for event in talk.events if event.raw_type == "model.of_tomorrow"]
        assert (unknown.type.value, unknown.ephemeral) == ("unknown", True)

    run(test)


@pytest.mark.parametrize(
    ("start", "error"),
    [("exit", "glibc too old"), ("kill", "CLI process exited"), ("garbage", "CLI process exited")],
)
def test_a_fake_that_ends_before_it_is_connected(start: str, error: str, tmp_path: Path, copilot_home: Path) -> None:
    async def test() -> None:
        with pytest.raises(RuntimeError, match=error):
            async with started(cli, copilot_home):
                pass

    cli = scripted_cli(tmp_path / "cli", start=start, stderr="glibc too old\n")
    run(test)


def test_a_mute_fake_is_never_connected(tmp_path: Path, copilot_home: Path) -> None:
    async def test() -> None:
        client = CopilotClient(connection=RuntimeConnection.for_stdio(path=str(cli)), base_directory=str(copilot_home))
        connecting = asyncio.create_task(client.start())
        await asyncio.to_thread(until, lambda: requests_in(copilot_home, "connect"))
        done, _ = await asyncio.wait({connecting}, timeout=0.05)
        assert not done
        connecting.cancel()
        await client.force_stop()

    cli = scripted_cli(tmp_path / "cli", start="mute")
    run(test)


def test_a_fake_of_another_version_says_so(tmp_path: Path, copilot_home: Path) -> None:
    async def test() -> None:
        async with started(scripted_cli(tmp_path / "old", version="1.0.64"), copilot_home) as client:
            assert (await client.get_status()).version == "1.0.64"
        with pytest.raises(RuntimeError, match="protocol version mismatch"):
            async with started(scripted_cli(tmp_path / "new", protocol_version=9), copilot_home):
                pass

    run(test)


def test_nobody_is_signed_in(tmp_path: Path, copilot_home: Path) -> None:
    async def test() -> None:
        cli = scripted_cli(tmp_path / "cli", login=None)
        async with talking(cli, copilot_home) as talk:
            assert not (await talk.client.get_auth_status()).isAuthenticated
            with pytest.raises(Exception, match="Not authenticated"):
                await talk.client.list_models()
            await talk.send("Hello")
            assert "No GitHub OAuth token" in talk.one("session.error")["message"]
        async with talking(cli, copilot_home, provider=BYOK) as talk:
            assert await talk.send("Hello") == "Hello"
            assert (talk.one("assistant.usage")["cost"], talk.one("assistant.usage")["isByok"]) == (0.0, True)

    run(test)


def test_a_conversation_that_cannot_be_begun_says_why(tmp_path: Path, copilot_home: Path) -> None:
    async def test() -> None:
        async with started(scripted_cli(tmp_path / "cli", models=["gpt-a"]), copilot_home) as client:
            assert [model.id for model in await client.list_models()] == ["gpt-a"]
            with pytest.raises(Exception, match='Model "gpt-x" is not available'):
                await client.create_session(model="gpt-x")
            with pytest.raises(Exception, match="Directory does not exist or cannot be accessed: /nope"):
                await client.create_session(working_directory="/nope")
            with pytest.raises(Exception, match="invalid sessionId"):
                await client.create_session(session_id="../x y")
            with pytest.raises(Exception, match="Session not found: nope"):
                await client.resume_session("nope")
        async with started(
            scripted_cli(tmp_path / "cli", create={"error": "401 Unauthorized"}), copilot_home
        ) as client:
            with pytest.raises(Exception, match=r"session\.create failed with message: 401 Unauthorized"):
                await client.create_session()
        async with started(scripted_cli(tmp_path / "cli", create={"kill": True}), copilot_home) as client:
            with pytest.raises(Exception, match="exited"):
                await client.create_session()

    run(test)


@pytest.mark.parametrize("end", [{"kill": True}, {"exit": 3}, {"garbage": True}], ids=lambda end: next(iter(end)))
def test_a_conversation_goes_on_in_another_process_after_a_crash(
    end: dict[str, Any], tmp_path: Path, copilot_home: Path
) -> None:
    crash = [{"tool": "bash", "arguments": {"command": "ls"}, "during": [end, {"hang": True}]}]
    cli = scripted_cli(tmp_path / "cli", [{"say": "One"}], crash)

    async def test() -> None:
        async with talking(cli, copilot_home, session_id="mine-1") as talk:
            await talk.send("First")
            await talk.session.send("Second")
            with pytest.raises(Exception, match="exited"):
                async with asyncio.timeout(PATIENCE_S):
                    while True:
                        await talk.client.ping()
        assert talk.all("tool.execution_complete") == []
        async with talking(cli, copilot_home, resume="mine-1") as talk:
            known = await talk.client.get_session_metadata("mine-1")
            assert known is not None and await talk.client.get_session_metadata("other") is None
            assert await talk.send("Third") == "Third"
            kept = [event.type.value for event in await talk.session.get_events()]
            assert kept.count("user.message") == 3
            assert "assistant.usage" not in kept
            metrics = (await talk.session.rpc.usage.get_metrics()).to_dict()
            assert (metrics["totalUserRequests"], metrics["totalPremiumRequestCost"]) == (3, 3.0)
            assert metrics["modelMetrics"]["fake-model"]["usage"]["inputTokens"] == 300
            await talk.session.disconnect()
            assert talk.one("session.shutdown")["shutdownType"] == "routine"

    run(test)


def test_a_prompt_can_have_steps_of_its_own(tmp_path: Path, copilot_home: Path) -> None:
    usage = {"inputTokens": 5, "copilotUsage": {"totalNanoAiu": 9.0}}
    cli = scripted_cli(tmp_path / "cli", prompts={"Why?": [{"say": "Because", "usage": usage}]})

    async def test() -> None:
        async with talking(cli, copilot_home) as talk:
            assert [await talk.send("Who?"), await talk.send("Why?")] == ["Who?", "Because"]
        assert [data["inputTokens"] for data in talk.all("assistant.usage")] == [100, 5]

    run(test)


# The model's server, asked by the real CLI.


def test_the_real_cli_gets_the_answers_in_their_order_and_then_echoes(real_cli: RealCli) -> None:
    async def test() -> None:
        with ModelServer() as server:
            server.script(
                [
                    CallTools(
                        (
                            CallTool("bash", {"command": "echo one; exit 3", "description": "x"}),
                            CallTool("weather", {"name": "Rome"}),
                        ),
                        text="Let me see",
                    ),
                    Say("Done, all of it", Usage(prompt=1000, completion=20, cached=900)),
                ]
            )
            async with talking_to(server, real_cli, streaming=True, tools=[weather]) as talk:
                assert await talk.send("Do it") == "Done, all of it"
                assert await talk.send("What now?") == "What now?"
            _, second, third = server.requests
            assert second.prompt == "Do it"
            assert "exit code 3" in "".join(second.tool_results) and "sun in Rome" in second.tool_results
            assert "bash" in second.tools
            assert third.headers["authorization"] == f"Bearer {server.provider['api_key']}"
            usage = talk.all("assistant.usage")
            assert [data["inputTokens"] for data in usage] == [100, 1000, 100]
            assert [data["cacheReadTokens"] for data in usage] == [40, 900, 40]
            deltas = [data["deltaContent"] for data in talk.all("assistant.message_delta")]
            assert "".join(deltas) == "Let me seeDone, all of itWhat now?"

    run(test)


def test_an_answer_hangs_until_it_is_released_or_its_client_leaves(real_cli: RealCli) -> None:
    async def test() -> None:
        with ModelServer() as server:
            server.script([Hang("Half "), Hang("Half "), Hang()])
            async with talking_to(server, real_cli, streaming=True) as talk:
                await talk.session.send("First")
                await asyncio.to_thread(server.wait_for_hanging)
                server.release()
                await talk.wait_for("session.idle")
                assert talk.answer == "Half "
                await talk.session.send("Second")
                await asyncio.to_thread(server.wait_for_hanging)
                await talk.session.abort()
                await asyncio.to_thread(server.wait_for_departed)
                assert (await talk.wait_for("session.idle", 2))["aborted"] is True
                await talk.session.send("Third")
                await asyncio.to_thread(server.wait_for_requests, 3)
        assert server.hanging == 0

    run(test)


@pytest.mark.parametrize(
    ("answers", "kind", "status"),
    [
        ([Fail(400, "bad request")], "query", 400),
        ([Fail(403, "no")], "authentication", 403),
        ([DropConnection("Half "), Say("Whole")], None, None),
    ],
    ids=["400", "403", "dropped"],
)
def test_the_real_cli_meets_failures(
    answers: list[Answer], kind: str | None, status: int | None, real_cli: RealCli
) -> None:
    async def test() -> None:
        with ModelServer() as server:
            server.script(answers)
            async with talking_to(server, real_cli, streaming=True) as talk:
                answer = await talk.send("Do it")
            errors = [(error["errorType"], error["statusCode"]) for error in talk.all("session.error")]
            assert (errors, answer) == ([(kind, status)], "") if kind else ([], "Whole")
            assert len(server.requests) == len(answers)

    run(test)


def test_without_streaming_whole_answers_are_sent_and_otherwise_can_be_set(real_cli: RealCli) -> None:
    def count(request: Request) -> Answer:
        return Say(f"{len(request.messages)} messages, {len(request.tools)} tools")

    async def test() -> None:
        with ModelServer() as server:
            server.otherwise = count
            async with talking_to(server, real_cli, streaming=False, available_tools=[]) as talk:
                assert await talk.send("How many?") == "2 messages, 0 tools"
            assert talk.all("assistant.message_delta") == []

    run(test)


def test_the_server_ends_all_that_it_began() -> None:
    before = set(threading.enumerate())
    with ModelServer() as server:
        server.script([Hang("Half")])
        asked = urllib.request.Request(f"{server.url}/chat/completions", b'{"model":"m","messages":[],"stream":true}')
        with (
            socket.create_connection(("127.0.0.1", server.port)),
            urllib.request.urlopen(asked, timeout=PATIENCE_S) as answer,
        ):
            server.wait_for_hanging()
            server.close()
            assert b"Half" in answer.read()
        assert server.departed == server.hanging == 0
    assert set(threading.enumerate()) <= before


def test_who_waits_in_vain_is_told_what_came() -> None:
    with ModelServer() as server, pytest.raises(TimeoutError, match="for 1 requests: it has 0 requests, 0 hang"):
        server.wait_for_requests(1, timeout=0.01)


@pytest.mark.parametrize("kind", ["write", "read", "shell"])
def test_the_fake_asks_with_fields_that_the_real_cli_has(
    kind: str, real_cli: RealCli, tmp_path: Path, copilot_home: Path
) -> None:
    (tmp_path / "old").write_text("one\n")
    tool, arguments = {
        "write": ("create", {"path": str(tmp_path / "new"), "file_text": "one\n"}),
        "read": ("view", {"path": str(tmp_path / "old")}),
        "shell": ("bash", {"command": "echo hi", "description": "greet"}),
    }[kind]

    async def test() -> None:
        with ModelServer() as server:
            server.script([CallTool(tool, arguments)])
            async with talking_to(server, real_cli, streaming=True) as real:
                await real.send("Do it")
        steps: list[Step] = [{"tool": tool, "arguments": arguments}, {"say": "Do it"}]
        fake_home = tmp_path / "fake-home"
        async with talking(scripted_cli(tmp_path / "cli", steps), fake_home, streaming=True, provider=BYOK) as fake:
            await fake.send("Do it")
        told = [name for name in fake.kinds if name in real.kinds]
        assert told == fake.kinds
        for name in set(told):
            known = set().union(*(data for data in real.all(name)))
            assert set().union(*(data for data in fake.all(name))) <= known, name
        request = real.one("permission.requested")["permissionRequest"]
        assert set(fake.one("permission.requested")["permissionRequest"]) <= set(request)
        lasting = [name for name in fake.kinds if not name.startswith(("session.", "assistant.message_"))]
        assert lasting == [name for name in real.kinds if name in lasting]

    run(test)


def talking_to(server: ModelServer, cli: RealCli, **options: Any) -> contextlib.AbstractAsyncContextManager[Talk]:
    return talking(cli.path, cli.copilot_home, cli.environment, provider=server.provider, **options)
