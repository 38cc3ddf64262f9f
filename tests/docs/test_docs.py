"""The README and the pages in docs/ are true: every block of code in them runs, every table in them is the source's."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path

import pytest
from copilot_pages import cli_of_the_pages

import ttasks
from strategies import created
from ttasks import SQLiteStore
from ttasks.cli.app import command as ttasks_command
from ttasks.cli.workflow import load_workflow
from ttasks.events.agent_facts import FileEdit
from ttasks.events.codec import FACT_TYPES
from ttasks.events.facts import Member, RetrySpec, Source
from ttasks.log.migrate import APPLICATION_ID, SCHEMA_VERSION
from ttasks.log.secrets import digest
from ttasks.state import task as task_rules
from ttasks.state.task import ResultState, TaskState
from ttasks.state.transitions import TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
FORMAT = ROOT / "docs" / "reference" / "format.md"
PAGES = [README, *sorted((ROOT / "docs").glob("**/*.md"))]
LANGUAGES = {"bash", "console", "python", "sql", "text", "yaml"}
SETUP_COMMANDS = ("Run it", "Test it")
"""The README's sections that install things: .ci/run runs them as they stand, in a fresh clone."""
BLOCK_TIMEOUT_S = 60


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, the heading it is under, its language and what it holds."""

    page: Path
    line: int
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    heading, start, language, lines = "", 0, "", list[str]()
    for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
        if start and line == "```":
            yield Block(page, start, heading, language, "\n".join(lines) + "\n")
            start, lines = 0, []
        elif start:
            lines.append(line)
        elif line.startswith("```"):
            start, language = number, line.removeprefix("```")
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()
    assert not start, f"{page}:{start}: the block has no end"


# --- every block runs ----------------------------------------------------------------------------------------------


class Reader:
    """Somebody who types in what a page says, block by block, in a folder that was empty before."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "page"
        self.output: str | None = None
        self.folder.mkdir()
        programs = folder / "bin"
        programs.mkdir()
        _write_program(programs / "python")
        _write_program(programs / "ttasks", "-c", "from ttasks.cli import main; main()")
        _write_program(programs / "sqlite-utils", "-m", "sqlite_utils")
        _write_program(programs / "datasette", "-m", "datasette")
        for script in (ROOT / "docs").glob("*.py"):
            shutil.copy(script, self.folder)
        mine = {name: value for name, value in os.environ.items() if not name.startswith("TTASKS_")}
        self.environment = {
            **mine,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(Path(ttasks.__file__).resolve().parents[1]),
            "COLUMNS": "400",
            "HOME": str(folder),
            "COPILOT_CLI_PATH": str(cli_of_the_pages(folder / "stand-in")),
        }

    def read(self, block: Block) -> None:
        """Do what one block says; AssertionError: it isn't so."""
        getattr(self, f"_{block.language}")(block)

    def _run(self, block: Block, *arguments: str) -> None:
        done = subprocess.run(
            arguments,
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BLOCK_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{block} ended with {done.returncode}:\n{done.stdout}"
        self.output = done.stdout

    def _python(self, block: Block) -> None:
        script = self.folder / f"line_{block.line}.py"
        script.write_text(block.text, "utf-8")
        self._run(block, sys.executable, "-W", "error", script.name)

    def _bash(self, block: Block) -> None:
        self._run(block, "bash", "-euo", "pipefail", "-c", block.text)

    def _yaml(self, block: Block) -> None:
        name = re.match(r"# (\S+\.yaml)\n", block.text)
        assert name is not None, f"{block} does not name its file in its first line"
        file = self.folder / name[1]
        file.write_text(block.text, "utf-8")
        assert load_workflow(file).tasks

    def _sql(self, block: Block) -> None:
        """Ask the ledger that an earlier block made; a last comment ``-- value`` says what the answer is."""
        with contextlib.chdir(self.folder), contextlib.closing(sqlite3.connect(".ttasks/ledger.db")) as ledger:
            answer = ledger.execute(block.text).fetchall()
        expected = re.search(r"; +-- (.+)\n$", block.text)
        if expected is not None:
            assert str(answer[0][0]) == expected[1], f"{block} gives {answer}"
        is_question = not block.text.startswith(("VACUUM", "-- may be empty"))
        assert answer or not is_question, f"{block} finds nothing"

    def _console(self, block: Block) -> None:
        """Compare with what the last block printed: ``…`` stands for anything in a line, alone for any lines."""
        assert self.output is not None, f"{block}: nothing was run yet"
        printed = "".join(line.rstrip() + "\n" for line in self.output.splitlines())
        assert re.fullmatch(_pattern(block.text), printed), f"{block}: it printed\n{printed}"

    def _text(self, block: Block) -> None:
        """Nothing: a picture."""


def _write_program(path: Path, *arguments: str) -> None:
    path.write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, *arguments])} "$@"\n', "utf-8")
    path.chmod(0o755)


def _pattern(expected: str) -> str:
    return "".join(
        "(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n"
        for line in expected.splitlines()
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_a_page_runs_from_top_to_bottom(page: Path, tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    for block in blocks_of(page):
        if not (page == README and block.heading in SETUP_COMMANDS):
            reader.read(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_is_in_a_language_that_is_run(page: Path) -> None:
    assert {str(block): block.language for block in blocks_of(page) if block.language not in LANGUAGES} == {}


@pytest.mark.parametrize(("heading", "job"), [("Run it", "ttasks run examples/check.yaml"), ("Test it", "pytest")])
def test_the_readme_has_one_command_that_runs_and_one_that_tests_a_fresh_clone(heading: str, job: str) -> None:
    assert README.read_text("utf-8").splitlines().count(f"## {heading}") == 1
    (block,) = [block for block in blocks_of(README) if block.heading == heading]
    assert block.language == "bash"
    assert block.text.startswith("python3 -m venv ")
    assert job in block.text
    subprocess.run(["bash", "-n", "-c", block.text], check=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_inside_the_repository_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{page.name} links to {target}"


def test_every_command_is_shown_in_the_readme_or_the_docs() -> None:
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert [name for name in ttasks_command.commands if f"ttasks {name}" not in text] == []


# --- docs/reference/format.md is the format ------------------------------------------------------------------------


def sections(page: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Yield the names in backticks of each heading, with the rows of the tables below it, their heads left out."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in body.splitlines()
            if line.startswith("|")
        ]
        yield re.findall(r"`([^`]+)`", heading) or [heading], rows[2:]


FIELD_TYPES = {
    "str": "text", "TaskType": "text", "OnInterrupted": "text", "RunStatus": "text", "TaskStatus": "text",
    "int": "integer", "float": "number", "bool": "boolean", "datetime": "time",
    "RetrySpec": "object", "Source": "object", "ResultState": "object",
    "Mapping[str, Any]": "object",
    "Mapping[str, str]": "object of texts",
    "Mapping[str, Mapping[str, str]]": "object of objects",
    "Json": "any",
    "tuple[Chunk, ...]": "array of arrays",
    "tuple[FileEdit, ...]": "array of objects",
    "tuple[Member, ...]": "array of objects",
    "tuple[int, ...]": "array of integers",
    "tuple[str, ...]": "array of texts",
    "tuple[tuple[int, int], ...]": "array of arrays",
}  # fmt: skip
"""What a declared type is in JSON, in the words of the page."""


def _fields_in(rows: list[list[str]]) -> dict[str, tuple[bool, str]]:
    """Return the fields of a table with whether each may be None, which is the question mark, and its type."""
    found = {row[0].rstrip("?").strip("`"): (row[0].endswith("?"), row[1]) for row in rows}
    assert len(found) == len(rows)
    return found


def _declared(record: type, *left_out: str) -> dict[str, tuple[bool, str]]:
    """Return the fields that a record is written with, as the page has to have them."""
    kinds = {field.name: str(field.type).removesuffix(" | None") for field in fields(record)}
    return {
        field.name: (
            _may_be_none(field),
            "text" if kinds[field.name].startswith("Literal[") else FIELD_TYPES[kinds[field.name]],
        )
        for field in fields(record)
        if field.name not in left_out
    }


def _may_be_none(field: Field[object]) -> bool:
    return field.default is None and field.default_factory is MISSING


@pytest.mark.parametrize(
    "fact_type", sorted(FACT_TYPES, key=lambda each: each.__name__), ids=lambda each: each.__name__
)
def test_the_format_page_has_every_field_of_every_type_of_event(fact_type: type) -> None:
    (rows,) = [rows for names, rows in sections(FORMAT) if fact_type.__name__ in names]
    assert _fields_in(rows) == _declared(fact_type)


OBJECTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "retry_policy": (RetrySpec, ()),
    "members": (Member, ()),
    "source": (Source, ()),
    "files": (FileEdit, ()),
    "state": (TaskState, ("version",)),
    "result": (ResultState, ()),
}
"""What fields hold that are objects: the record, and which fields of it are not written (see `snapshot`)."""


@pytest.mark.parametrize("name", OBJECTS)
def test_the_format_page_has_every_field_of_what_fields_hold(name: str) -> None:
    (rows,) = [rows for names, rows in sections(FORMAT) if names == [name]]
    record, left_out = OBJECTS[name]
    # A state says in its types, not by its defaults, what may be None.
    nullable = {field.name for field in fields(record) if str(field.type).endswith("| None")}
    expected = {field: (field in nullable, kind) for field, (_, kind) in _declared(record, *left_out).items()}
    assert _fields_in(rows) == expected


def test_the_fields_of_a_state_that_the_format_page_leaves_out_are_not_written() -> None:
    whole = task_rules.apply(None, created(), task_id="t", version=1)
    assert set(OBJECTS["state"][1]) & set(task_rules.snapshot(whole)) == set()


def test_the_format_page_names_the_rounds_and_the_form_of_a_digest() -> None:
    text = FORMAT.read_text("utf-8")
    algorithm, rounds, digits = digest("a secret", "00" * 32).split(":")
    assert f"`{algorithm}:{rounds}:` and {len(digits)} hexadecimal" in " ".join(text.split())
    assert f"{int(rounds):,} rounds" in text


def test_the_format_page_has_no_type_of_event_that_does_not_exist() -> None:
    known = {fact_type.__name__ for fact_type in FACT_TYPES}
    named = re.findall(
        r"`((?:Task|Graph|Runner|Process|Ledger|Agent|ToolCall|Permission|Model)[A-Z]\w+)`", FORMAT.read_text("utf-8")
    )
    assert sorted(set(named) - known) == []


@pytest.fixture
def schema(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """Give a new ledger."""
    SQLiteStore(tmp_path / "ledger.db").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        yield connection


def test_the_format_page_has_every_column_of_every_table_in_its_order(schema: sqlite3.Connection) -> None:
    tables = "SELECT name, type FROM sqlite_schema WHERE type IN ('table', 'view') AND substr(name, 1, 1) <> '_'"
    described = {names[0]: rows for names, rows in sections(FORMAT)}
    for table, kind in schema.execute(tables).fetchall():
        columns = [[f"`{name}`", type_] for _, name, type_, *_ in schema.execute(f"PRAGMA table_xinfo({table})")]
        shown = 2 if kind == "table" else 1  # what type a view's column has depends on the version of SQLite
        assert [row[:shown] for row in described[table]] == [column[:shown] for column in columns], table


def test_the_format_page_says_how_to_tell_a_ledger(schema: sqlite3.Connection) -> None:
    (rows,) = [rows for names, rows in sections(FORMAT) if names == ["The file"]]
    said = {row[0].strip("`"): row[1] for row in rows}
    assert schema.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert said["PRAGMA application_id"].startswith(f"{APPLICATION_ID} ")
    assert said["PRAGMA user_version"].startswith(f"{SCHEMA_VERSION},")


def test_the_table_of_transitions_is_the_one_in_the_source() -> None:
    (rows,) = [rows for names, rows in sections(FORMAT) if names == ["Where a task can go"]]
    drawn = [tuple(cell.strip("`") for cell in row) for row in rows]
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) == {(before.value, after.value, fact.__name__) for (before, fact), after in TRANSITIONS.items()}


# --- words and reasons ---------------------------------------------------------------------------------------------

HOUSE_WORDS = {
    "apply", "attempt", "checkpoint", "command", "event", "fold", "handler", "output", "payload", "position",
    "projection", "projector", "rebuild", "reconcile", "replay", "result", "resume", "run", "stream", "subscriber",
    "upcaster", "version", "view",
}  # fmt: skip


def test_the_glossary_has_every_word_once_and_in_order() -> None:
    words = re.findall(r"^- \*\*(.+?)\*\*: ", (ROOT / "docs" / "glossary.md").read_text("utf-8"), flags=re.MULTILINE)
    assert len(set(words)) == len(words)
    assert words == sorted(words, key=lambda word: word.replace(" facts", ""))
    assert HOUSE_WORDS - set(words) == set()


def test_every_dependency_has_its_reason_in_the_decisions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    reasons = (ROOT / "docs" / "decisions.md").read_text("utf-8").partition("## Dependencies")[2]
    for wanted in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.split(r"[<>=!~ ;\[]", wanted)[0]
        assert f"`{name}`" in reasons, f"docs/decisions.md does not say why there is {name}"
