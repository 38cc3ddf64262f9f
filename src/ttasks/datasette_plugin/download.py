"""Files that are sent as they are read: little of them is in memory at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from datasette.utils.asgi import AsgiStream

Receive: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]

CONTENT_TYPE: Final = "text/plain; charset=utf-8"
BLOCK_CHARACTERS: Final = 256 * 1024
"""How much is read and sent at a time, where a text does not have more: each takes a turn of a thread."""


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
                text = await asyncio.to_thread(_block, download.texts)
                if not text:
                    return
                await writer.write(text.encode("utf-8", "backslashreplace").decode())
        finally:
            gone.cancel()

    disposition = {"Content-Disposition": f'attachment; filename="{download.name}"'}
    return AsgiStream(send, headers={**headers, **disposition}, content_type=CONTENT_TYPE)


def _block(texts: Iterator[str]) -> str:
    """Return what comes next; nothing at the end."""
    block, length = list[str](), 0
    for text in texts:
        block.append(text)
        length += len(text)
        if length >= BLOCK_CHARACTERS:
            break
    return "".join(block)


async def _gone(receive: Receive) -> None:
    """Return when the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
