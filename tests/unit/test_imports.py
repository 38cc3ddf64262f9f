"""What importing costs, what may import what, and which names are public."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ttasks

ROOT = Path(__file__).parents[2]
HEAVY = {"pydantic", "copilot", "asyncio", "datasette", "sqlite_utils", "rich", "click", "yaml", "psutil"}


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Return which of the heavy packages a program of its own loads."""
    program += "\nimport sys\nprint(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.splitlines()[-1].split())


def test_importing_ttasks_loads_nothing_heavy() -> None:
    assert loaded_by("import ttasks") == set()


def test_running_a_bash_task_into_an_existing_ledger_loads_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from ttasks import SQLiteStore, Task, TaskExecutor\n"
        "with SQLiteStore(sys.argv[1]) as store, TaskExecutor(store) as executor:\n"
        "    assert executor.execute(Task.bash('echo hi')).output == 'hi\\n'\n"
    )
    assert "sqlite_utils" in loaded_by(program, str(tmp_path / "ledger.db"))
    assert loaded_by(program, str(tmp_path / "ledger.db")) == set()


def test_the_command_loads_datasette_only_to_browse() -> None:
    assert (
        loaded_by("import ttasks.cli.app, ttasks.cli.check, ttasks.cli.look, ttasks.cli.run") & {"datasette"} == set()
    )
    assert "datasette" in loaded_by("import ttasks.cli.browse")


def test_rooms_import_only_what_the_design_lets_them() -> None:
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ttasks.__all__)
def test_every_public_name_is_there_and_says_where_it_belongs(name: str) -> None:
    thing = getattr(ttasks, name)
    assert name == "__version__" or thing.__module__ == "ttasks"


def test_the_names_of_the_contract_are_public() -> None:
    contract = (
        "CopilotAgentSession EventBus InMemoryStore RetryPolicy SQLiteStore Store Task TaskCancelled TaskContext"
        " TaskEvent TaskEventType TaskExecutionError TaskExecutor TaskGraph TaskResult TaskStatus TaskTimeoutError"
        " TaskType make_copilot_agent_handler make_copilot_prompt_handler"
    )
    assert set(contract.split()) <= set(ttasks.__all__) <= set(dir(ttasks))


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = ttasks.nothing
