"""Asking Datasette for pages within this process: what a page says, and where it leads."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from datasette.app import Datasette

INLINE = {"a", "b", "code", "em", "i", "mark", "small", "span", "strong", "time"}


@dataclass(frozen=True)
class Answer:
    """What came back: `text` is the body as it was sent."""

    status: int
    headers: Mapping[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)

    @cached_property
    def page(self) -> Page:
        page = Page()
        page.feed(self.text)
        page.close()
        return page

    @property
    def seen(self) -> str:
        """What a reader sees of the content, without navigation and footer, with single spaces."""
        return re.sub(r"\s+", " ", "".join(self.page.parts)).strip()


class Page(HTMLParser):
    """Collects the tags of a page with their attributes, and its visible text: that of ``main``, if it has one."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self._hidden = 0
        self._is_over = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "main":
            self.parts.clear()
        self._hidden += tag in ("script", "style", "title")
        self.handle_data("" if tag in INLINE else " ")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "title")
        self.handle_data("" if tag in INLINE else " ")
        self._is_over |= tag == "main"

    def handle_data(self, data: str) -> None:
        if not self._hidden and not self._is_over:
            self.parts.append(data)

    @property
    def links(self) -> list[str]:
        return [attributes["href"] or "" for tag, attributes in self.tags if tag == "a" and "href" in attributes]


@contextlib.asynccontextmanager
async def serving(files: Path | Sequence[Path], **options: Any) -> AsyncIterator[Datasette]:
    """Start a Datasette that serves `files`, and close their databases after use."""
    files = [files] if isinstance(files, Path) else files
    datasette = Datasette([str(file) for file in files], **options)
    try:
        await datasette.invoke_startup()
        yield datasette
    finally:
        for database in datasette.databases.values():
            database.close()


def get_all(files: Path | Sequence[Path], *addresses: str, **options: Any) -> list[Answer]:
    """Return what one Datasette, which serves `files`, answers to each address; redirects are not followed.

    Args:
        files: one database, or several.
        addresses: those without a slash at the beginning are below the home of the (first) file.
        options: further arguments of Datasette.
    """
    files = [files] if isinstance(files, Path) else files
    home = f"/-/ttasks/{files[0].stem}/"

    async def ask() -> list[Answer]:
        answers = []
        async with serving(files, **options) as datasette:
            for address in addresses:
                response = await datasette.client.get(address if address.startswith("/") else home + address)
                answers.append(Answer(response.status_code, dict(response.headers), response.text))
        return answers

    return asyncio.run(ask())


def get(files: Path | Sequence[Path], address: str, **options: Any) -> Answer:
    """Return what Datasette, which serves `files`, answers to an address (see `get_all`)."""
    return get_all(files, address, **options)[0]
