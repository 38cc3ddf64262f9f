"""Asking Datasette for pages without a network: what a page says, and where it leads."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from datasette.app import Datasette

INLINE = {"a", "span", "code", "time", "strong", "em", "mark"}


@dataclass(frozen=True)
class Answer:
    """What came back: `text` is the body, `seen` what a reader sees of it."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def page(self) -> Seen:
        seen = Seen()
        seen.feed(self.text)
        seen.close()
        return seen

    @property
    def seen(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.page.parts)).strip()


class Seen(HTMLParser):
    """Collects the tags of a page with their attributes, and its visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.parts.append("" if tag in INLINE else " ")
        self._hidden += tag in ("script", "style", "title")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style", "title")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)

    @property
    def links(self) -> list[str]:
        return [attributes["href"] or "" for tag, attributes in self.tags if tag == "a" and "href" in attributes]


def get_all(paths: Sequence[str], *files: Path, **options: Any) -> list[Answer]:
    """Return what one Datasette, which serves `files`, answers to each path."""

    async def ask() -> list[Answer]:
        datasette = Datasette([str(file) for file in files], **options)
        answers = []
        for path in paths:
            response = await datasette.client.get(path)
            answers.append(Answer(response.status_code, dict(response.headers), response.text))
        for database in datasette.databases.values():
            database.close()
        return answers

    return asyncio.run(ask())


def get(path: str, *files: Path, **options: Any) -> Answer:
    """Return what Datasette, which serves `files`, answers to a path."""
    return get_all([path], *files, **options)[0]
