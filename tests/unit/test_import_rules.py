"""Who imports whom, what is loaded when, and what `ttasks` shows of itself."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ForwardRef, get_type_hints

import pytest

import ttasks

ROOT = Path(__file__).parents[2]
LATE = ("pydantic", "copilot", "datasette", "sqlite_utils", "rich", "click", "yaml", "psutil")
SHOW = f"import sys; print(sorted({{name.split('.')[0] for name in sys.modules}} & {set(LATE)}))"


def python(*lines: str, at: Path) -> str:
    """Return what these lines print in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=at, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_room_imports_only_what_it_may() -> None:
    lint = "from importlinter.cli import lint_imports_command; lint_imports_command()"

    done = subprocess.run(
        [sys.executable, "-c", lint, "--no-cache", "--no-logo"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_ttasks_loads_nothing_that_is_slow_to_load(tmp_path: Path) -> None:
    assert python("import ttasks", SHOW, at=tmp_path) == "[]"


def test_using_every_name_loads_nothing_that_is_slow_to_load(tmp_path: Path) -> None:
    assert python("from ttasks import *", SHOW, at=tmp_path) == "[]"


def test_a_bash_task_in_an_existing_ledger_loads_nothing_that_is_slow_to_load(tmp_path: Path) -> None:
    run = (
        "from ttasks import SQLiteStore, Task, TaskExecutor",
        "with SQLiteStore('ledger.db') as store, TaskExecutor(store) as executor:",
        "    print(executor.execute(Task.bash('echo hello')).output.strip())",
    )
    python(*run, at=tmp_path)

    assert python(*run, SHOW, at=tmp_path).splitlines() == ["hello", "[]"]


@pytest.mark.parametrize("name", ttasks.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(ttasks, name) is not None


CLASSES = [name for name in ttasks.__all__ if inspect.isclass(getattr(ttasks, name))]


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_shows_the_name_that_it_is_imported_by(name: str) -> None:
    shown = getattr(ttasks, name)

    assert (shown.__module__, shown.__qualname__) == ("ttasks", name)


@pytest.mark.parametrize("name", CLASSES)
def test_a_public_class_can_be_pickled_by_its_name(name: str) -> None:
    assert pickle.loads(pickle.dumps(getattr(ttasks, name))) is getattr(ttasks, name)


def public_functions(name: str) -> Iterator[Any]:
    """Yield the public functions of a public class, those of its properties too, or the function of that name."""
    thing = getattr(ttasks, name)
    yield from [thing] if inspect.isfunction(thing) else []
    for member, found in inspect.getmembers_static(thing) if inspect.isclass(thing) else []:
        functions = [found.fget, found.fset] if isinstance(found, property) else [getattr(found, "__func__", found)]
        if not member.startswith("_") or member == "__init__":
            yield from filter(inspect.isfunction, functions)


@pytest.mark.parametrize("name", ttasks.__all__)
def test_the_type_hints_of_a_public_name_are_types(name: str) -> None:
    hints = [get_type_hints(each) for each in public_functions(name)]
    hints += [get_type_hints(getattr(ttasks, name))] if name in CLASSES else []

    assert not [hint for each in hints for hint in each.values() if isinstance(hint, str | ForwardRef)]


def test_the_type_hints_of_a_dataclass_name_each_field_and_its_type() -> None:
    hints = get_type_hints(ttasks.TaskResult)

    assert list(hints) == list(ttasks.TaskResult.__dataclass_fields__)
    assert (hints["status"], hints["error"]) == (ttasks.TaskStatus, str | None)
    assert get_type_hints(ttasks.TaskEvent)["task"] is ttasks.Task
    assert get_type_hints(ttasks.TaskGraph.run)["executor"] is ttasks.TaskExecutor


def test_type_hints_are_there_also_where_nobody_used_the_public_name(tmp_path: Path) -> None:
    said = python(
        "from typing import get_type_hints",
        "from ttasks import InMemoryStore, Task, TaskExecutor",
        "with InMemoryStore() as store, TaskExecutor(store) as executor:",
        "    result = executor.execute(Task.bash('true'))",
        "print(get_type_hints(type(result))['started_at'])",
        at=tmp_path,
    )

    assert said == "<class 'datetime.datetime'>"


def test_all_holds_what_the_contract_names() -> None:
    promised = """
        CopilotAgentSession EventBus InMemoryStore RetryPolicy SQLiteStore Store Task TaskCancelled TaskContext
        TaskEvent TaskEventType TaskExecutionError TaskExecutor TaskGraph TaskResult TaskStatus TaskTimeoutError
        TaskType make_copilot_agent_handler make_copilot_prompt_handler
    """

    assert set(promised.split()) <= set(ttasks.__all__)
    assert len(ttasks.__all__) == len(set(ttasks.__all__))


def test_dir_shows_every_public_name_before_it_is_used(tmp_path: Path) -> None:
    assert python("import ttasks", "print(set(ttasks.__all__) - set(dir(ttasks)))", at=tmp_path) == "set()"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ttasks' has no attribute 'Tusk'"):
        _ = ttasks.Tusk  # type: ignore[attr-defined]


def test_where_there_is_no_fcntl_the_import_fails_with_one_sentence_that_says_so(tmp_path: Path) -> None:
    said = python(
        "import sys",
        "sys.modules['fcntl'] = None",
        "try:",
        "    import ttasks",
        "except ImportError as error:",
        "    print(error)",
        at=tmp_path,
    )

    assert said == f"ttasks runs on Linux and macOS: {sys.platform} has no fcntl and no process groups"


def test_the_version_can_be_read() -> None:
    assert ttasks.__version__.split(".")[0].isdigit()
