"""What is asked of a page, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ttasks.errors import NotFoundError


@dataclass(frozen=True)
class Asked:
    """What an address says: `parts` are its own, such as ``id``, `given` what follows the question mark."""

    parts: Mapping[str, str]
    given: Mapping[str, str]

    def number(self, name: str) -> int | None:
        """Return a number out of the address; None: it is not given.

        Raises:
            NotFoundError: it is no number.
        """
        text = self.parts.get(name) or self.given.get(name)
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise NotFoundError(f"{name}={text[:40]!r} is no number")
        return int(text)


@dataclass(frozen=True)
class Page:
    """One page: its template, title and what the template shows. While `token` is not None the page is live.

    With a `location`, that address is what is answered with, and nothing is shown.
    """

    template: str
    title: str
    context: Mapping[str, Any]
    token: str | None = None
    status: int = 200
    location: str | None = None
