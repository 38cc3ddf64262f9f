"""Every code block of the README and of docs/ runs, and what they list is what there is."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from ttasks import SQLiteStore
from ttasks.cli.workflow import load_workflow
from ttasks.events.codec import FACT_TYPES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = ("Run it", "Test it")
TTASKS = [sys.executable, "-c", "from ttasks.cli import main; main()"]


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Return (heading, language, text) of each fenced block."""
    found, heading = [], ""
    for match in re.finditer(r"^#+ ([^\n]*)$|^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
        if match[1] is not None:
            heading = match[1]
        else:
            found.append((heading, match[2], match[3]))
    return found


ALL = [(page.relative_to(ROOT).as_posix(), index, *block) for page in PAGES for index, block in enumerate(blocks(page))]


def of_language(language: str) -> list[object]:
    return [pytest.param(text, id=f"{page}-{index}") for page, index, _, found, text in ALL if found == language]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TTASKS_LEDGER"}
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)


@pytest.mark.parametrize("text", of_language("python"))
def test_a_python_block_runs(tmp_path: Path, text: str) -> None:
    done = run(tmp_path, sys.executable, "-W", "error", "-c", text)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", of_language("yaml"))
def test_a_yaml_block_is_a_workflow_that_runs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "flow.yaml"
    path.write_text(text)
    flow = load_workflow(path)
    done = run(tmp_path, *TTASKS, "run", "flow.yaml")
    assert done.returncode in (0, 1), done.stderr
    assert all(f" {name}" in done.stdout or f"{name}:" in done.stdout for name in flow.tasks)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ledger")
    assert run(folder, *TTASKS, "run", str(ROOT / "examples" / "failing.yaml")).returncode == 1
    return folder / ".ttasks" / "ledger.db"


@pytest.mark.parametrize("text", of_language("sql"))
def test_an_sql_block_answers_on_a_real_ledger(ledger: Path, text: str) -> None:
    with contextlib.closing(sqlite3.connect(ledger)) as connection:
        assert connection.execute(text).fetchall()


def test_no_block_is_of_a_language_that_nothing_runs() -> None:
    runs = {"python", "yaml", "sql", "text"}
    assert [(page, heading) for page, _, heading, language, _ in ALL if language not in runs] == [
        ("README.md", heading) for heading in COMMANDS
    ]


def test_the_readme_has_one_command_to_run_it_and_one_to_test_it() -> None:
    found = [(heading, language) for heading, language, _ in blocks(ROOT / "README.md") if heading in COMMANDS]
    assert found == [(heading, "bash") for heading in COMMANDS]


def test_every_link_to_a_page_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_types_of_events_are_listed_with_their_fields() -> None:
    listed = dict(re.findall(r"^\| `([A-Z]\w+)` \| (.*) \|$", (ROOT / "docs/ledger.md").read_text("utf-8"), re.M))
    assert listed == {
        fact.__name__: ", ".join(
            f"`{field.name}{'?' if '| None' in str(field.type) else ''}`" for field in fields(fact)
        )
        for fact in FACT_TYPES
    }


def test_the_columns_of_events_and_all_tables_are_listed(tmp_path: Path) -> None:
    with SQLiteStore(tmp_path / "ledger.db"):
        pass
    text = (ROOT / "docs/ledger.md").read_text("utf-8")
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_xinfo(events)")]
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert all(f"`{column}`" in text.split("### The chain")[0] for column in columns)
    own = {name for name in tables if not name.startswith(("sqlite_", "_"))}
    assert own - {"events"} == set(re.findall(r"^\| `(\w+)` \| an? ", text, re.M))


def test_every_word_of_the_glossary_is_there_once_and_in_order() -> None:
    words = re.findall(r"^- \*\*(.*?)\*\*", (ROOT / "docs/glossary.md").read_text("utf-8"), re.M)
    assert words == sorted(set(words))


def test_the_failing_examples_end_as_they_say(tmp_path: Path) -> None:
    done = run(tmp_path, sys.executable, str(ROOT / "examples" / "failing.py"))
    assert done.returncode == 1
    statuses = dict(line.split()[:2] for line in done.stdout.splitlines() if line)
    expected = {
        "fetch": "succeeded",
        "convert": "failed",
        "publish": "blocked",
        "clean": "succeeded",
        "tell": "failed",
    }
    assert expected.items() <= statuses.items()


def test_the_example_that_checks_this_repository_is_a_workflow() -> None:
    assert {"lint", "types", "tests", "build", "report"} <= load_workflow(ROOT / "examples" / "check.yaml").tasks.keys()
