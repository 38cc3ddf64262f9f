"""Datasette, asked within this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasette.app import Datasette


def answers(paths: Sequence[Path], *addresses: str, **options: Any) -> list[Any]:
    """Return what Datasette, serving `paths`, answers for each address. Redirects are not followed."""

    async def ask() -> list[Any]:
        datasette = Datasette([str(path) for path in paths], **options)
        return [await datasette.client.get(address) for address in addresses]

    return asyncio.run(ask())
