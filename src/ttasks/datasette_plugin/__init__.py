"""Pages that show a ledger in Datasette. Everything here only reads; databases that are no ledgers are left alone."""

from __future__ import annotations

from typing import Any

from datasette import hookimpl

from ttasks.datasette_plugin import cells, queries, routes, safety, tables
from ttasks.datasette_plugin.ledgers import is_ledger, ledger_names, may_see


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


@hookimpl
def database_actions(datasette: Any, actor: Any, database: str) -> Any:
    """Add a ledger's pages to the menu of its database."""

    async def links() -> list[dict[str, str]]:
        return await routes.links_to_pages(datasette, actor, database)

    return links


@hookimpl
def table_actions(datasette: Any, actor: Any, database: str) -> Any:
    """Add a ledger's pages to the menu of its tables."""

    async def links() -> list[dict[str, str]]:
        return await routes.links_to_pages(datasette, actor, database)

    return links


@hookimpl(optionalhook=True)
def view_actions(datasette: Any, actor: Any, database: str) -> Any:
    """Add a ledger's pages to the menu of its view (Datasette 1.0)."""
    return table_actions(datasette, actor, database)


@hookimpl
def extra_template_vars(datasette: Any, database: str | None, view_name: str, request: Any) -> Any:
    """Say which ledgers Datasette's own first pages lead to."""
    if view_name not in {"index", "database"} or not (database is None or is_ledger(datasette, database)):
        return {}

    async def cards() -> dict[str, Any]:
        allowed = await routes.allowed_ledgers(datasette, request.actor if request is not None else None)
        shown = [ledger for ledger in allowed if database in (None, ledger.name)]
        return {"ttasks_cards": shown} if shown else {}

    return cards


@hookimpl
def extra_css_urls(datasette: Any, database: str | None) -> list[str]:
    """Add the looks of cells to the pages of ledgers."""
    return [datasette.urls.static_plugins("ttasks", "cells.css")] if is_ledger(datasette, database) else []


@hookimpl
def render_cell(row: Any, value: Any, column: str, database: str | None, datasette: Any) -> Any:
    """Show what a ledger holds as people say it."""
    return cells.cell(datasette, database, row, column, value)


@hookimpl(optionalhook=True)
def get_metadata(datasette: Any, database: str | None) -> dict[str, Any]:
    """Describe ledgers (Datasette 0.65)."""
    return tables.metadata(datasette, database)


@hookimpl(optionalhook=True)
def canned_queries(datasette: Any, database: str, actor: Any) -> Any:
    """Add the queries to ledgers, for those who may see all that they read (Datasette 0.65)."""

    async def canned() -> dict[str, Any]:
        if not is_ledger(datasette, database) or not await may_see(datasette, actor, database):
            return {}
        return await queries.canned(datasette, database)

    return canned


@hookimpl
def startup(datasette: Any) -> Any:
    """Keep ledgers from being written to, and describe them (Datasette 1.0)."""
    safety.protect(datasette)
    safety.print_no_variables()

    async def describe() -> None:
        if not hasattr(datasette, "add_query"):
            return
        for name in ledger_names(datasette):
            await tables.describe(datasette, name)
            await queries.add(datasette, name)

    return describe


@hookimpl
def prepare_connection(conn: Any, database: str, datasette: Any) -> None:
    """Have connections to ledgers refuse to write."""
    safety.refuse_writes(datasette, database, conn)


@hookimpl(optionalhook=True)
def permission_resources_sql(datasette: Any, actor: Any, action: str) -> Any:
    """Refuse everybody to write to ledgers, and queries to those who may not see what they read (Datasette 1.0)."""
    return safety.refused_queries(datasette, actor) if action == "view-query" else safety.refused(datasette, action)
