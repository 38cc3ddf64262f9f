"""Every page and hook on Datasette 1.0, in an environment of its own: TTASKS_DATASETTE_ALPHA names its interpreter."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from browsed import Browsed
from needs import demand
from ttasks.datasette_plugin.queries import QUERIES
from ttasks.datasette_plugin.tables import COLUMNS, TABLES


@dataclass(frozen=True)
class Answered:
    browsed: Browsed
    said: dict[str, Any]

    def text(self, address: str) -> str:
        text: str = self.said["pages"][address][1]
        return text


@pytest.fixture(scope="session")
def python() -> str:
    """Return the interpreter that has Datasette 1.0."""
    named = os.environ.get("TTASKS_DATASETTE_ALPHA", "")
    is_there = shutil.which(named) is not None
    demand(None if is_there else "TTASKS_DATASETTE_ALPHA names no interpreter that has Datasette 1.0 and ttasks")
    return named


@pytest.fixture(scope="module")
def answered(python: str, browsed: Browsed, tmp_path_factory: pytest.TempPathFactory) -> Answered:
    folder = tmp_path_factory.mktemp("alpha")
    ledger = shutil.copy(browsed.path, folder / "ledger.db")
    other = folder / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE tasks (id INTEGER PRIMARY KEY, title TEXT, status TEXT)")
        connection.execute("INSERT INTO tasks VALUES (1, 'theirs', 'failed')")
        connection.commit()
    script = Path(__file__).with_name("alpha_pages.py")
    command = [python, str(script), str(ledger), str(other), browsed.solo, browsed.ok, browsed.agent]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return Answered(browsed, json.loads(done.stdout.splitlines()[-1]))


def test_it_is_datasette_1(answered: Answered) -> None:
    assert answered.said["version"].startswith("1.")


def test_every_page_is_answered(answered: Answered) -> None:
    statuses = {address: status for address, (status, _) in answered.said["pages"].items()}
    elsewhere = {"/-/ttasks": 302, f"/-/ttasks/ledger/search?q={answered.browsed.solo}": 302, "/-/ttasks/other": 404}
    assert {address: status for address, status in statuses.items() if status != 200} == elsewhere


def test_what_an_agent_did_is_shown(answered: Answered) -> None:
    text = answered.text(f"/-/ttasks/ledger/task/{answered.browsed.agent}")
    assert text.count('<li class="step') == 14


def test_tables_are_described_and_listed(answered: Answered) -> None:
    for name, description in TABLES.items():
        text = answered.text(f"/ledger/{name}")
        assert description.split(":")[0] in text
        if name != "_sqlite_migrations":
            assert next(iter(COLUMNS[name].values())).split("'")[0].replace("<", "&lt;").replace(">", "&gt;") in text
    assert "sorted by id descending" in answered.text("/ledger/tasks")
    assert re.search(r"status\s*<span", answered.text("/ledger/tasks"))


def test_values_are_shown_and_escaped(answered: Answered) -> None:
    text = answered.text("/ledger/attempts?status=failed")
    assert '<span class="ttasks-state ttasks-failed">' in text
    task = answered.browsed.hostile_task
    assert f'<a href="/-/ttasks/ledger/task/{task}" title="{task}">&lt;script' in text
    for address, (_, shown) in answered.said["pages"].items():
        if ".csv" not in address and ".json" not in address:
            assert "<img src=x" not in shown, address
            assert "<script>alert" not in shown, address


def test_queries_are_there(answered: Answered) -> None:
    for name, query in QUERIES.items():
        assert query.title in answered.text("/ledger/-/queries")
        assert query.title in answered.text(f"/ledger/{name}")
        rows = json.loads(answered.text(f"/ledger/{name}.json?_shape=array"))
        assert rows, name
        assert answered.text(f"/ledger/{name}.csv").splitlines()[0].split(",") == list(rows[0])


def test_pages_are_linked_and_others_left_alone(answered: Answered) -> None:
    assert answered.text("/").count("What ran in this ledger →") == 1
    assert "What ran in this ledger →" in answered.text("/ledger")
    for address in ("/ledger/tasks", "/ledger/task_output"):
        assert "Search this ledger" in answered.text(address)
    for address in ("/other", "/other/tasks"):
        text = answered.text(address)
        assert "What ran in" not in text
        assert "ttasks-" not in text
        assert "cells.css" not in text
        assert "Failures since" not in text


def test_not_even_root_can_write_to_a_ledger(answered: Answered) -> None:
    assert {address: status for address, status in answered.said["writes"].items() if status != 403} == {}
    assert answered.said["elsewhere"] == 201, "elsewhere root may, as ever"
    assert "readonly" in answered.said["refused"]
    assert answered.said["is_unchanged"]
    assert "Delete row" not in answered.said["root_row"]


def test_queries_are_not_for_those_who_may_not_see_what_they_read(answered: Answered) -> None:
    expected = dict.fromkeys(QUERIES, 403) | {"search": 200}
    assert answered.said["seen_in_part"] == expected, "but for the configuration's own query of that name"
    assert "Failures since" not in answered.said["listed_in_part"]
