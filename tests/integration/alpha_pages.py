"""Asks Datasette 1.0 for every page of the ledger argv[1], beside the other database argv[2], and prints the answers.

Run by test_datasette_alpha.py with the interpreter of an environment that has that Datasette. One line of JSON.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from datasette import __version__
from datasette.app import Datasette

from ttasks.datasette_plugin.queries import QUERIES
from ttasks.datasette_plugin.tables import TABLES

LEDGER, OTHER = Path(sys.argv[1]), Path(sys.argv[2])
TASK, GRAPH, AGENT = sys.argv[3:6]
SEARCH = "/-/ttasks/ledger/search"
PAGES = [
    *(
        "/",
        "/ledger",
        "/ledger/-/queries",
        "/other",
        "/other/tasks",
        "/-/ttasks",
        "/-/ttasks/ledger",
        "/-/ttasks/other",
    ),
    *(SEARCH, f"{SEARCH}?q=fetch&output=1&since=2020-01-01", f"{SEARCH}?q={TASK}"),
    *(f"/-/ttasks/ledger/{page}" for page in (f"task/{TASK}", f"task/{AGENT}", f"graph/{GRAPH}", "event/1")),
    *(f"/ledger/{name}" for name in TABLES),
    *(f"/ledger/{name}{ending}" for name in QUERIES for ending in ("", ".csv", ".json?_shape=array")),
    *(f"/ledger/tasks/{TASK}", f"/ledger/graphs/{GRAPH}", "/ledger/attempts?status=failed"),
]
ROW = {"id": "x", "title": "x"}
WRITES = [
    ("/ledger/tasks/-/insert", {"row": ROW}),
    ("/ledger/tasks/-/upsert", {"rows": [ROW]}),
    (f"/ledger/tasks/{TASK}/-/update", {"update": {"title": "changed"}}),
    (f"/ledger/tasks/{TASK}/-/delete", {}),
    ("/ledger/tasks/-/drop", {"confirm": True}),
    ("/ledger/tasks/-/alter", {"operations": [{"op": "add_column", "args": {"name": "x"}}]}),
    ("/ledger/-/create", {"table": "mine", "row": ROW}),
    ("/ledger/-/execute-write", {"sql": "delete from tasks"}),
]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def written(datasette: Any) -> dict[str, Any]:
    """Try to write by each way that there is, as root, and say what came of it."""
    actor = {"id": "root"}
    found = {}
    for address, body in WRITES:
        answer = await datasette.client.post(address, json=body, actor=actor)
        found[address.replace(TASK, "TASK")] = answer.status_code
    allowed = await datasette.client.post(
        "/other/tasks/-/insert", json={"row": {"id": 7, "title": "seven"}}, actor=actor
    )
    try:
        await datasette.databases["ledger"].execute_write("delete from tasks")
    except Exception as error:  # what it is called differs by version
        refused = str(error)
    else:
        refused = ""
    return {"writes": found, "elsewhere": allowed.status_code, "refused": refused}


async def seen_in_part() -> dict[str, Any]:
    """Ask for queries as somebody who may not see one of the tables."""
    config = {"databases": {"ledger": {"tables": {"events": {"allow": False}}, "queries": {"search": "select 42"}}}}
    datasette = Datasette([str(LEDGER)], config=config)
    found = {name: (await datasette.client.get(f"/ledger/{name}.json")).status_code for name in QUERIES}
    return {"seen_in_part": found, "listed_in_part": (await datasette.client.get("/ledger/-/queries")).text}


async def main() -> dict[str, Any]:
    config = {"databases": {"ledger": {"tables": {"tasks": {"permissions": {"insert-row": True, "update-row": True}}}}}}
    datasette = Datasette([str(LEDGER), str(OTHER)], config=config)
    datasette.root_enabled = True
    before = digest(LEDGER)
    pages = {}
    for address in PAGES:
        answer = await datasette.client.get(address)
        pages[address] = [answer.status_code, answer.text]
    row = await datasette.client.get(f"/ledger/tasks/{TASK}", actor={"id": "root"})
    return {
        "version": __version__,
        "pages": pages,
        "root_row": row.text,
        **await written(datasette),
        **await seen_in_part(),
        "is_unchanged": digest(LEDGER) == before,
    }


print(json.dumps(asyncio.run(main())))
