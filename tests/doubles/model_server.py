"""A server that takes a model's place: it speaks OpenAI's chat completions, and says what a test scripts.

The real Copilot CLI works with it where a session is given `server.provider`. It asks once for every step of a turn:
for an answer or a tool call, and again with what the tool gave. Sub-agents ask too, and so does every try after a
failure.
"""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from processes import PATIENCE_S

Json = dict[str, Any]

GLANCE_S = 0.02
"""How often a hanging answer looks whether its client is still there, in seconds."""


@dataclass(frozen=True)
class Usage:
    """What an answer is said to have cost, in tokens. `cached` of the `prompt` tokens were read from a cache."""

    prompt: int = 100
    completion: int = 7
    cached: int = 40

    @property
    def wire(self) -> Json:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


@dataclass(frozen=True)
class Say:
    """Answer with a text, word by word, which ends the turn."""

    text: str
    usage: Usage = Usage()


@dataclass(frozen=True)
class CallTool:
    """Call one tool, after a `text` if there is one. Without an `id` it gets one that is new in this server."""

    name: str
    arguments: Mapping[str, Any]
    text: str = ""
    id: str | None = None
    usage: Usage = Usage()


@dataclass(frozen=True)
class CallTools:
    """Call several tools at once. The texts and the usage of `calls` don't count."""

    calls: tuple[CallTool, ...]
    text: str = ""
    usage: Usage = Usage()


@dataclass(frozen=True)
class Hang:
    """Say `text`, then nothing more until `ModelServer.release`, the client's leaving, or the server's end."""

    text: str = ""


@dataclass(frozen=True)
class Fail:
    """Answer with an error of HTTP. The CLI itself tries most of them again: each try takes one answer."""

    status: int
    message: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DropConnection:
    """Say `text`, then close the connection in the middle of the answer."""

    text: str = ""


Spoken = Say | CallTool | CallTools | Hang | DropConnection
Answer = Spoken | Fail


@dataclass(frozen=True)
class Request:
    """What the model was asked: `body` as it was sent, the names of `headers` in lower case."""

    body: Json
    headers: Mapping[str, str]

    @property
    def messages(self) -> list[Json]:
        return list(self.body["messages"])

    @property
    def tools(self) -> list[str]:
        """Return the names of the tools that the model may call."""
        return [tool["function"]["name"] for tool in self.body.get("tools") or ()]

    @cached_property
    def prompt(self) -> str:
        """Return the last thing that the user said, without what the CLI puts before and after it in tags."""
        said = [text_of(message) for message in self.messages if message["role"] == "user"]
        return re.sub(r"<(\w+)>.*?</\1>", "", said[-1], flags=re.DOTALL).strip() if said else ""

    @property
    def tool_results(self) -> list[str]:
        """Return what tools gave so far, oldest first."""
        return [text_of(message) for message in self.messages if message["role"] == "tool"]


def text_of(message: Json) -> str:
    content = message["content"] or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def echo(request: Request) -> Answer:
    return Say(request.prompt)


class ModelServer:
    """A model's server on a port of its own, from `with` to its end.

    Requests are answered with what `script` was given, in the order in which they come; where nothing is left of it,
    with `otherwise`: an echo of what the user said last. `requests` holds them all, oldest first.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.otherwise: Callable[[Request], Answer] = echo
        self.hanging = 0
        self.departed = 0
        """How many clients left while they were being answered."""
        self._answers: deque[Answer] = deque()
        self._changed = threading.Condition()
        self._releases = 0
        self._is_closing = False
        self._calls = 0
        self._connections: set[socket.socket] = set()
        self._http = _Http(self)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(GLANCE_S,), name="model-server")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def port(self) -> int:
        return self._http.server_port

    @property
    def provider(self) -> Json:
        """Return what the SDK's `create_session` and `resume_session` take as `provider`."""
        return {"type": "openai", "wire_api": "completions", "base_url": self.url, "api_key": "sk-of-no-use"}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut off who is being answered, and return once all threads have ended."""
        with self._changed:
            self._is_closing = True
            for connection in self._connections:
                _end_reading(connection)
            self._changed.notify_all()
        self._http.shutdown()
        self._http.server_close()  # waits for the threads of all connections
        self._thread.join(PATIENCE_S)

    def script(self, answers: Iterable[Answer]) -> None:
        """Give these answers next, after those that are left."""
        with self._changed:
            self._answers.extend(answers)

    def release(self) -> None:
        """Let everything that hangs now end as if all had been said."""
        with self._changed:
            self._releases += 1
            self._changed.notify_all()

    def wait_for_requests(self, count: int, timeout: float = PATIENCE_S) -> list[Request]:
        """Return the requests once there are `count` of them, or raise TimeoutError after `timeout` seconds."""
        self._wait(lambda: len(self.requests) >= count, f"{count} requests", timeout)
        return list(self.requests)

    def wait_for_hanging(self, count: int = 1, timeout: float = PATIENCE_S) -> None:
        """Wait until `count` answers hang, with all said that they say before."""
        self._wait(lambda: self.hanging >= count, f"{count} that hang", timeout)

    def wait_for_departed(self, count: int = 1, timeout: float = PATIENCE_S) -> None:
        """Wait until `count` clients have left in the middle of their answers."""
        self._wait(lambda: self.departed >= count, f"{count} that left", timeout)

    def _wait(self, is_so: Callable[[], bool], what: str, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(is_so, timeout):
                raise TimeoutError(
                    f"the model's server waited {timeout} s for {what}: it has {len(self.requests)} requests, "
                    f"{self.hanging} hang, {self.departed} left"
                )

    # What the threads of connections call.

    def _take(self, request: Request) -> Answer:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
            answer = self._answers.popleft() if self._answers else None
        return answer if answer is not None else self.otherwise(request)

    def _new_call_id(self) -> str:
        with self._changed:
            self._calls += 1
            return f"call_{self._calls}"

    def _hang(self, connection: socket.socket) -> None:
        """Return when released. BrokenPipeError: the client has left, or the server is to end."""
        with self._changed:
            releases = self._releases
            self.hanging += 1
            self._changed.notify_all()
            try:
                while self._releases == releases:
                    if self._is_closing or _has_left(connection):
                        raise BrokenPipeError
                    self._changed.wait(GLANCE_S)
            finally:
                self.hanging -= 1

    def _note_departure(self) -> None:
        with self._changed:
            self.departed += not self._is_closing
            self._changed.notify_all()

    def _note_connection(self, connection: socket.socket, is_open: bool) -> None:
        with self._changed:
            if not is_open:
                self._connections.discard(connection)
            elif self._is_closing:
                _end_reading(connection)
            else:
                self._connections.add(connection)


def _end_reading(connection: socket.socket) -> None:
    """Let whoever waits for a request on a connection get none."""
    with contextlib.suppress(OSError):  # it is no connection any more
        connection.shutdown(socket.SHUT_RD)


def _has_left(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except ConnectionError:
        return True


class _Http(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them

    def __init__(self, model: ModelServer) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.model = model


class _Connection(BaseHTTPRequestHandler):
    server: _Http
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what is asked is in `ModelServer.requests`."""

    def setup(self) -> None:
        super().setup()
        self.server.model._note_connection(self.connection, True)

    def finish(self) -> None:
        self.server.model._note_connection(self.connection, False)
        super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # it left before it asked for anything
            super().handle()

    def do_GET(self) -> None:
        self._send_error(Fail(404, "this server only completes chats"))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        request = Request(body, {name.lower(): value for name, value in self.headers.items()})
        if not self.path.endswith("/chat/completions"):
            self._send_error(Fail(404, f"this server only completes chats, not {self.path}"))
            return
        self.close_connection = True
        try:
            self._send(self.server.model._take(request), body)
        except ConnectionError:
            self.server.model._note_departure()

    def _send(self, answer: Answer, body: Json) -> None:
        if isinstance(answer, Fail):
            self._send_error(answer)
        elif body.get("stream"):
            self._stream(answer, body)
        else:
            self._send_whole(answer, body)

    def _send_error(self, answer: Fail) -> None:
        body = json.dumps({"error": {"message": answer.message, "code": answer.status}}).encode()
        self._send_head(answer.status, {"content-length": str(len(body)), **answer.headers}, "application/json")
        self.wfile.write(body)

    def _send_whole(self, answer: Spoken, body: Json) -> None:
        if isinstance(answer, DropConnection):
            return
        if isinstance(answer, Hang):
            self.server.model._hang(self.connection)
        calls = self._calls(answer)
        message = {
            "role": "assistant",
            "content": answer.text or None,
            **({"tool_calls": calls} if calls else {}),
        }
        choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
        whole = {**self._envelope(body, "chat.completion"), "choices": [choice], "usage": usage_of(answer).wire}
        sent = json.dumps(whole).encode()
        self._send_head(200, {"content-length": str(len(sent))}, "application/json")
        self.wfile.write(sent)

    def _stream(self, answer: Spoken, body: Json) -> None:
        self._send_head(200, {}, "text/event-stream")
        envelope = self._envelope(body, "chat.completion.chunk")

        def send(delta: Json, finish_reason: str | None = None) -> None:
            self._send_event({**envelope, "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

        for word in re.findall(r"\s*\S+\s*", answer.text):
            send({"role": "assistant", "content": word})
        if isinstance(answer, DropConnection):
            return
        if isinstance(answer, Hang):
            self.server.model._hang(self.connection)
        calls = self._calls(answer)
        if calls:
            send({"role": "assistant", "tool_calls": calls})
        send({}, "tool_calls" if calls else "stop")
        self._send_event({**envelope, "choices": [], "usage": usage_of(answer).wire})
        self.wfile.write(b"data: [DONE]\n\n")

    def _calls(self, answer: Spoken) -> list[Json]:
        return [
            {
                "index": index,
                "id": call.id or self.server.model._new_call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments))},
            }
            for index, call in enumerate(calls_of(answer))
        ]

    def _envelope(self, body: Json, kind: str) -> Json:
        return {
            "id": f"completion-{len(self.server.model.requests)}",
            "object": kind,
            "created": 1,
            "model": body["model"],
        }

    def _send_head(self, status: int, headers: Mapping[str, str], content_type: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": content_type, "connection": "close", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def _send_event(self, chunk: Json) -> None:
        self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.flush()


def calls_of(answer: Spoken) -> Iterator[CallTool]:
    if isinstance(answer, CallTool):
        yield answer
    elif isinstance(answer, CallTools):
        yield from answer.calls


def usage_of(answer: Spoken) -> Usage:
    return Usage() if isinstance(answer, Hang | DropConnection) else answer.usage
