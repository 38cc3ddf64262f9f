"""Pages that show a ledger in Datasette. Everything here only reads; databases that are no ledgers are left alone."""

from __future__ import annotations

from typing import Any

from datasette import handle_exception, hookimpl

from ttasks.datasette_plugin import routes

# Where rich is installed, as it is beside ttasks, Datasette prints each 403 and 404 with all local variables, and
# answers an address that it doesn't know with 500, because there is no exception to print.
handle_exception.rich = None


@hookimpl
def register_routes() -> list[tuple[str, Any]]:
    """Add the pages."""
    return routes.ROUTES


@hookimpl
def menu_links(datasette: Any, actor: Any) -> Any:
    """Add each ledger's home to the menu."""

    async def links() -> list[dict[str, str]]:
        allowed = await routes.allowed_ledgers(datasette, actor)
        return [{"href": ledger.links.home(), "label": f"Runs of {ledger.name}"} for ledger in allowed]

    return links
