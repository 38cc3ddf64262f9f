"""A ledger of an older ttasks in Datasette: each page shows it as it is, and says what brings it up to date."""

from __future__ import annotations

import shlex
import shutil
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from pages import get, get_all
from ttasks.cli.app import command
from ttasks.datasette_plugin.queries import QUERIES
from ttasks.log import migrate
from ttasks.log.reading import Readers

GOLDEN = Path(__file__).parents[1] / "golden"
HOME = "/-/ttasks/ledger"
OLD = range(1, migrate.SCHEMA_VERSION)


@pytest.fixture(params=OLD, ids=[f"schema {version}" for version in OLD])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(GOLDEN / f"schema-{request.param}" / "ledger.db", tmp_path / "ledger.db"))


def own_pages(path: Path) -> list[str]:
    with closing(Readers.open(path)) as readers:
        tasks = [f"{HOME}/task/{task.id}" for task in readers.tasks()]
        graphs = [f"{HOME}/graph/{graph.id}" for graph, _ in readers.graphs()]
    return [HOME, f"{HOME}/search?q=lost&output=1", f"{HOME}/event/5", *tasks, *graphs]


def test_each_page_of_an_older_ledger_says_what_brings_it_up_to_date_and_that_does(old: Path) -> None:
    before = old.read_bytes()
    lifts = f"ttasks rebuild --ledger {shlex.quote(str(old))}"

    for answer in get_all(old, *own_pages(old)):
        if answer.status == 302:  # what is searched for is the id of a task
            continue
        assert answer.status == 200
        assert "An older ttasks made this ledger" in answer.seen and lifts in answer.seen
    assert old.read_bytes() == before

    done = CliRunner().invoke(command, shlex.split(lifts)[1:])
    assert done.exit_code == 0, done.output
    assert "An older ttasks" not in get(old, HOME).seen


def test_of_an_older_ledger_only_queries_that_it_can_answer_are_offered(old: Path) -> None:
    page = get(old, "/ledger")
    assert "An older ttasks made this ledger" in page.seen
    offered = [name for name in QUERIES if f"/ledger/{name}" in page.page.links]
    assert "failures_since" in offered

    assert [answer.status for answer in get_all(old, *(f"/ledger/{name}" for name in offered))] == [200] * len(offered)

    CliRunner().invoke(command, ["rebuild", "--ledger", str(old)])
    assert [name for name in QUERIES if f"/ledger/{name}" in get(old, "/ledger").page.links] == list(QUERIES)
