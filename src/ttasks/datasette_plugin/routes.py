"""Which page is at which address, and what is asked and said around every page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from datasette import Response
from datasette.utils import tilde_decode

from ttasks import display
from ttasks.datasette_plugin import download, event, home, run, search, task
from ttasks.datasette_plugin.download import Download
from ttasks.datasette_plugin.ledgers import Ledger, is_ledger, ledger_of, links_of, may_see
from ttasks.datasette_plugin.page import Asked, Page
from ttasks.errors import DamagedLedgerError, NotFoundError, TtasksError
from ttasks.events.codec import iso
from ttasks.events.status import TaskStatus
from ttasks.log.reading import UNREADABLE
from ttasks.state.reconcile import WAITING

POLICY: Final = "; ".join(
    [
        "default-src 'none'",
        "style-src 'self'",
        "script-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
"""What a browser lets own pages do (w3.org/TR/CSP3): nothing that was smuggled into them can run."""
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LOGGER: Final = logging.getLogger(__name__)
VERIFY: Final = "`ttasks verify` says whether it is damaged, and `ttasks rebuild` makes all rows again"
LIVE: Final = "_live"
"""The parameter that asks only for what changes when a page does."""


class ForbiddenError(TtasksError):
    """Whoever asks may not see the ledger."""


@dataclass(frozen=True)
class View:
    """How one kind of page is made. `token` (None: it is never live) returns what changes when the page does, cheaply;
    it returns None once nothing can change any more."""

    page: Callable[[Ledger, Asked], Page | Download]
    token: Callable[[Ledger, Asked], str | None] | None = None


async def allowed_ledgers(datasette: Any, actor: Any) -> list[Ledger]:
    """Return the ledgers that `actor` may see and that can be read."""
    found = []
    for name in list(datasette.databases):
        try:
            ledger = await asyncio.to_thread(ledger_of, datasette, name)
        except (TtasksError, OSError):
            continue  # its own page says why
        if ledger is not None and await may_see(datasette, actor, name):
            found.append(ledger)
    return found


async def links_to_pages(datasette: Any, actor: Any, name: str) -> list[dict[str, str]]:
    """Return the entries for Datasette's own menus that lead to the pages of a ledger; none where it is no ledger."""
    if not is_ledger(datasette, name) or not await may_see(datasette, actor, name):
        return []
    links = links_of(datasette, name)
    return [
        {"href": links.home(), "label": "What ran in this ledger"},
        {"href": links.search(), "label": "Search this ledger"},
    ]


async def asked_ledger(datasette: Any, request: Any) -> Ledger:
    """Return the ledger that an address is about.

    Raises:
        NotFoundError: Datasette serves no ledger of that name.
        ForbiddenError: whoever asks may not see it.
    """
    route = tilde_decode(request.url_vars["database"])
    name = next((name for name, each in datasette.databases.items() if (each.route or name) == route), None)
    if name is not None and not await may_see(datasette, request.actor, name):
        raise ForbiddenError("you may not see this ledger: that takes view-table of every table in it")
    ledger = await asyncio.to_thread(ledger_of, datasette, name) if name is not None else None
    if ledger is None:
        raise NotFoundError(f"{route[:80]} is no ledger that is served here")
    return ledger


async def rendered(datasette: Any, request: Any, page: Page, ledger: Ledger | None) -> Response:
    """Return a page as HTML."""
    context = {
        "title": page.title,
        "ledger": ledger,
        "links": ledger.links if ledger is not None else None,
        "token": page.token,
        "live_url": _live_url(request.query_string),
        "show": display,
        "iso": iso,
        "states": [*(str(status) for status in TaskStatus), WAITING],
        "static": lambda name: datasette.urls.static_plugins("ttasks", name),
        **page.context,
    }
    body = await datasette.render_template(f"ttasks/{page.template}", context, request=request)
    return Response.html(body, status=page.status, headers=dict(HEADERS))


def _live_url(query: str) -> str:
    """Return where a page asks whether it has changed, relative to itself: Datasette may be behind a proxy's prefix."""
    return f"?{query}&{LIVE}=1" if query else f"?{LIVE}=1"


def shown(view: View) -> Callable[..., Awaitable[Any]]:
    """Return what Datasette calls for an address: it asks who may see it, and makes the page in a thread."""

    async def respond(datasette: Any, request: Any) -> Any:
        ledger: Ledger | None = None
        try:
            ledger = await asked_ledger(datasette, request)
            asked = Asked(_decoded(request.url_vars), {name: request.args[name] for name in request.args})
            if LIVE in request.args:
                token = await asyncio.to_thread(view.token, ledger, asked) if view.token is not None else None
                return Response.json({"token": token}, headers=dict(HEADERS))
            page = await asyncio.to_thread(view.page, ledger, asked)
            if isinstance(page, Download):
                return download.response(page, request.receive, HEADERS)
            if page.location is not None:
                return Response.redirect(page.location, headers=dict(HEADERS))
        except TtasksError as error:
            page = _refusal(error)
        except (OSError, *UNREADABLE) as error:
            LOGGER.exception("the page %s can't be made", request.path)
            page = _refusal(DamagedLedgerError(f"something of this ledger can't be read ({error!r:.200}); {VERIFY}"))
        return await rendered(datasette, request, page, ledger)

    return respond


def _refusal(error: TtasksError) -> Page:
    if isinstance(error, NotFoundError):
        return Page("error.html", "Not found", {"text": str(error)}, status=404)
    if isinstance(error, ForbiddenError):
        return Page("error.html", "Not for you", {"text": str(error)}, status=403)
    return Page("error.html", "Can't be shown", {"text": str(error)}, status=500)


def _decoded(found: Mapping[str, str]) -> dict[str, str]:
    return {name: tilde_decode(value) for name, value in found.items()}


async def every_ledger(datasette: Any, request: Any) -> Response:
    """Lead to the only ledger, or list them."""
    allowed = await allowed_ledgers(datasette, request.actor)
    if len(allowed) == 1:
        return Response.redirect(allowed[0].links.home(), headers=dict(HEADERS))
    return await rendered(datasette, request, Page("ledgers.html", "Ledgers", {"ledgers": allowed}), None)


_AT: Final = r"^/-/ttasks/(?P<database>[^/]+)"
_PAGES: Final[dict[str, View]] = {
    "": View(home.page, home.token),
    "/graph/(?P<id>[^/]+)": View(run.page, run.token),
    "/graph/(?P<id>[^/]+)/run/(?P<run>[0-9]+)": View(run.page, run.token),
    "/task/(?P<id>[^/]+)": View(task.page, task.token),
    "/task/(?P<id>[^/]+)/attempt/(?P<attempt>[0-9]+)/output.txt": View(task.output),
    "/event/(?P<position>[0-9]+)": View(event.page),
    "/search": View(search.page),
}
ROUTES: Final[list[tuple[str, Any]]] = [
    (r"^/-/ttasks/?$", every_ledger),
    *((f"{_AT}{address}$", shown(view)) for address, view in _PAGES.items()),
]
