"""Asking Datasette for the pages of a ledger, in this process."""

from __future__ import annotations

import asyncio
import re
from html import unescape
from pathlib import Path
from typing import Any

from datasette.app import Datasette


def get(ledger: Path, *addresses: str, datasette: Datasette | None = None) -> list[Any]:
    """Return the answers for these addresses, each below that of the ledger's home."""

    async def ask() -> list[Any]:
        served = datasette or Datasette([str(ledger)])
        await served.invoke_startup()
        try:
            return [await served.client.get(f"/-/ttasks/{ledger.stem}/{address}") for address in addresses]
        finally:
            for database in served.databases.values():
                database.close()

    return asyncio.run(ask())


def text_of(html: str) -> str:
    """Return what somebody reads of a page, with single spaces: what is in `main`."""
    main = html.split("<main", 1)[-1].split("</main>")[0]
    apart = re.sub(r"</?(p|div|d[dlt]|t[dhr]|li|h\d|pre|summary|section|br)\b[^<>]*>", " ", main.split(">", 1)[-1])
    return " ".join(unescape(re.sub(r"<[^<>]*>", "", apart)).split())
