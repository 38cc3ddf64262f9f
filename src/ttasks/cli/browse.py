"""Showing ledgers in a browser: Datasette on this machine's own address, as long as nobody stops it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import socket
import webbrowser
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final

import uvicorn
from datasette.app import Datasette
from datasette.utils import tilde_encode

from ttasks.cli.text import console
from ttasks.display import printable
from ttasks.errors import TtasksError
from ttasks.log.reading import Readers

HOST: Final = "127.0.0.1"
PORT: Final = 8001
END_WITHIN_S: Final = 2
"""How long requests that are being answered may hold up the end."""
SETTINGS: Final = {"default_cache_ttl": 0, "suggest_facets": False}
"""What a browser keeps is out of date: a ledger grows while it is looked at. To suggest facets, Datasette tries every
column of a table, which takes seconds for 100,000 tasks; those that somebody asks for are shown all the same."""
_HERE: Final = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)

App = Callable[[Any, Any, Any], Awaitable[None]]


def browse(paths: Sequence[Path], port: int, *, opens: bool) -> int:
    """Serve ledgers until a signal comes; return the exit code for it.

    Raises:
        NotALedgerError: one of them is none. Nothing is served.
        TtasksError: the port can't be had. Nothing is served.
    """
    for path in paths:
        Readers.open(path).close()
    with _listener(port) as listener:
        datasette = datasette_of(paths)
        url = f"http://{HOST}:{listener.getsockname()[1]}{_home(datasette)}"
        server = _Server(_config(only_here(datasette.app())), url, opens=opens)
        with _stopping(server) as heard:
            asyncio.run(server.serve(sockets=[listener]))
    return 128 + heard[0]


def datasette_of(paths: Sequence[Path]) -> Datasette:
    """Return what shows these ledgers."""
    return Datasette([str(path) for path in dict.fromkeys(paths)], settings=dict(SETTINGS))


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise TtasksError(
            f"port {port} of {HOST} can't be had: {error.strerror}. Nothing is served; choose another one with "
            "--port N, or let the system choose with --port 0"
        ) from error
    return listener


def _home(datasette: Datasette) -> str:
    """Return the address of the only ledger's home, or of the list of ledgers."""
    served = [each for name, each in datasette.databases.items() if name != "_internal"]
    name = f"/{tilde_encode(served[0].route or served[0].name)}" if len(served) == 1 else ""
    return str(datasette.urls.path(f"/-/ttasks{name}"))


def _config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="on",  # it is then that Datasette starts what its plugins start, in each of its versions
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=END_WITHIN_S,
    )


class _Server(uvicorn.Server):
    """Says where it is, once it is there, and leaves signals to whoever has them."""

    def __init__(self, config: uvicorn.Config, url: str, *, opens: bool) -> None:
        super().__init__(config)
        self._url = url
        self._opens = opens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        console().print(f"{self._url} (Ctrl-C ends it)")
        if self._opens and not await asyncio.to_thread(webbrowser.open, self._url):
            console(stderr=True).print("no browser could be opened: open the address above in one")

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        # uvicorn would also hear those that are ignored, and not SIGHUP.
        return contextlib.nullcontext()


@contextlib.contextmanager
def _stopping(server: uvicorn.Server) -> Iterator[list[int]]:
    """Let signals end the server, in an orderly way, a second one at once; lend the list of those that came."""
    heard: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        server.force_exit = server.should_exit
        server.should_exit = True
        heard.append(number)

    wanted = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in wanted}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # that is what ``nohup`` is for
            signal.signal(number, hear)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def only_here(app: App) -> App:
    """Return `app`, which answers only those who asked for this machine by its own name for itself.

    A page from elsewhere whose host name is made to lead to 127.0.0.1 (DNS rebinding) could read everything otherwise:
    to the browser it would be the same site. Any port is right, because a tunnel may end at another one.
    """

    async def asked(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) == 1 and _HERE.fullmatch(hosts[0]):
            await app(scope, receive, send)
            return
        given = printable(b", ".join(hosts)[:100].decode("latin-1")) or "no host at all"
        text = f"This ledger is served to this machine only: ask for localhost or {HOST}, not for {given}.\n"
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"x-content-type-options", b"nosniff")]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})

    return asked
