"""Rows that were deleted by hand: a command or page says what is missing and what makes it again, or goes on."""

from __future__ import annotations

import asyncio
import logging
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from datasette.app import Datasette

from ttasks.cli.app import command
from ttasks.log.event_log import EventLog
from ttasks.log.projection import TABLES, key_columns
from ttasks.log.reading import Readers
from ttasks.log.verify import verify

pytestmark = pytest.mark.usefixtures("outside_git")
GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    newest = sorted(GOLDEN.glob("schema-*"))[-1]
    path = Path(shutil.copyfile(newest / "ledger.db", tmp_path_factory.mktemp("whole") / "ledger.db"))
    EventLog.open(path).close()
    return path


def ids(path: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute(f"SELECT id FROM {table} ORDER BY id")]


def ttasks(path: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, [*words, "--ledger", str(path)])
    assert done.exception is None or isinstance(done.exception, SystemExit), (words, done.exc_info)
    return done.exit_code, done.output


def pages(path: Path, addresses: list[str]) -> list[tuple[int, str]]:
    async def ask() -> list[tuple[int, str]]:
        datasette = Datasette([str(path)])
        await datasette.invoke_startup()
        found = [await datasette.client.get(address) for address in addresses]
        return [(answer.status_code, answer.text) for answer in found]

    return asyncio.run(ask())


@pytest.mark.parametrize("rows", ["all", "the second"])
@pytest.mark.parametrize("table", TABLES)
def test_no_command_or_page_fails_with_a_traceback(whole: Path, tmp_path: Path, table: str, rows: str) -> None:
    logging.getLogger("ttasks").setLevel(logging.CRITICAL)
    path = Path(shutil.copyfile(whole, tmp_path / "ledger.db"))
    graphs, tasks = ids(whole, "graphs"), ids(whole, "tasks")
    keys = ", ".join(key_columns(table))
    offset = {"all": "-1 OFFSET 0", "the second": "1 OFFSET 1"}[rows]
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DELETE FROM {table} WHERE ({keys}) IN (SELECT {keys} FROM {table} LIMIT {offset})")
        connection.commit()

    looks = [["ls"], ["ls", "--tasks"], ["show"], ["resume", "--list"], *(["show", id_] for id_ in graphs + tasks[::8])]
    acts = [["retry"], ["resume"], ["cancel", graphs[0]], ["cancel", tasks[-1]], ["resolve", tasks[9], "--failed"]]
    for words in looks:
        check(ttasks(path, *words))
    for words in acts if rows == "all" else ():
        check(ttasks(Path(shutil.copyfile(path, tmp_path / "acted.db")), *words))
    addresses = [f"/-/ttasks/ledger/graph/{id_}" for id_ in graphs] + [
        f"/-/ttasks/ledger/task/{id_}" for id_ in tasks[::8]
    ]
    for status, text in pages(path, ["/-/ttasks/ledger", *addresses]):
        assert status < 500 or "ttasks rebuild" in text

    assert ttasks(path, "rebuild")[0] == 0
    assert verify(Readers.open(path)).problems == []


def check(said: tuple[int, str]) -> None:
    """A command may not notice; where it can't go on it says what there is not, or which command mends that."""
    code, text = said
    told = ("ttasks rebuild", "has no graph", "but", "was deleted", "is not one id", "not running", "can't be resumed")
    assert code == 0 or any(words in text for words in told) or "NOT OK" in text or "nothing" in text, text


@pytest.mark.parametrize("words", [["ls"], ["show"]])
def test_without_the_rows_of_runs_it_is_said_what_is_missing_and_what_mends_it(
    whole: Path, tmp_path: Path, words: list[str]
) -> None:
    path = Path(shutil.copyfile(whole, tmp_path / "ledger.db"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM runs")
        connection.commit()

    code, said = ttasks(path, *words)

    assert code == 1
    assert f"{path} lacks the runs of graph " in said
    assert said.endswith("`ttasks verify` says which rows are missing, and `ttasks rebuild` makes all rows again\n")
