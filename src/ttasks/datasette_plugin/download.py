"""Files that are sent as they are read: little of them is in memory at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from datasette.utils.asgi import AsgiStream

Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]

CONTENT_TYPE: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Download:
    """A text file of this name: `texts` are read in threads, one at a time."""

    name: str
    texts: Iterator[str]


def response(download: Download, receive: Receive, headers: Mapping[str, str]) -> Any:
    """Return what sends the file. It ends when the client goes away: a server need not tell who writes to it."""

    async def send(writer: Any) -> None:
        gone = asyncio.create_task(_gone(receive))
        try:
            while not gone.done():
                text = await asyncio.to_thread(next, download.texts, None)
                if text is None:
                    return
                await writer.write(text.encode("utf-8", "backslashreplace").decode())
        finally:
            gone.cancel()

    disposition = {"Content-Disposition": f'attachment; filename="{download.name}"'}
    return AsgiStream(send, headers={**headers, **disposition}, content_type=CONTENT_TYPE)


async def _gone(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
