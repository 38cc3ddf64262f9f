"""A script does the same whoever calls it: in every caller's shell, and in every locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import ItemsView, Iterator
from pathlib import Path

import pytest

from processes import PATIENCE_S
from ttasks import Task, TaskExecutionError, TaskExecutor, TaskResult

LOCALES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "C.utf8"},
]


@pytest.fixture(autouse=True)
def _outside_git(outside_git: Path) -> None:
    """No description of a git checkout comes between."""


def run(script: str, **fields: object) -> TaskResult:
    return TaskExecutor().execute(Task.bash(script, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "script", "says"),
    [
        ("SHELLOPTS", "noexec", "echo ran", "ran\n"),
        ("SHELLOPTS", "errexit", "false; echo ran", "ran\n"),
        ("BASHOPTS", "nullglob", "echo *.none", "*.none\n"),
        ("BASH_ENV", "{here}/rc", "echo ran", "ran\n"),
        ("ENV", "{here}/rc", "echo ran", "ran\n"),
        ("CDPATH", "/", "mkdir -p usr; cd usr; pwd | grep -c folder", "1\n"),
        ("GLOBIGNORE", "*", "touch a; echo *", "a here.txt rc\n"),
        ("POSIXLY_CORRECT", "1", "[[ :$SHELLOPTS: = *:posix:* ]] || echo ran", "ran\n"),
        ("BASH_FUNC_echo%%", "() { builtin echo noise; }", "echo ran", "ran\n"),
    ],
)
def test_what_would_change_a_script_in_its_callers_shell_is_not_inherited(
    name: str, value: str, script: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "here.txt").touch()
    (folder / "rc").write_text("echo noise\n")
    monkeypatch.setenv(name, value.replace("{here}", str(folder)))
    assert run(script, cwd=str(folder)).output == says


def test_what_a_tasks_own_environment_sets_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDPATH", "/nowhere")
    Path("rc").write_text("echo from the rc\n")
    env = {"BASH_ENV": f"{Path.cwd()}/rc", "BASH_FUNC_greet%%": "() { echo hello $1; }", "CDPATH": "/"}
    assert run("greet you; echo $CDPATH", env=env).output == "from the rc\nhello you\n/\n"


def test_python_scripts_print_at_once_unless_somebody_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    script = "echo ${PYTHONUNBUFFERED-unset}"
    assert run(script).output == "1\n"
    assert run(script, env={"PYTHONUNBUFFERED": ""}).output == "\n"
    monkeypatch.setenv("PYTHONUNBUFFERED", "")
    assert run(script).output == "\n"


IN_LOCALE = """
import json, os, sys
from ttasks import Task, TaskExecutor, TaskTimeoutError
said = json.loads(sys.stdin.buffer.read().decode())
result = TaskExecutor().execute(Task.bash(**said))
sys.stdout.buffer.write(json.dumps([result.output, result.error]).encode("ascii"))
"""


def in_locale(locale: dict[str, str], payload: str, **fields: object) -> list[str | None]:
    said = json.dumps({"payload": payload, **fields})
    done = subprocess.run(
        [sys.executable, "-c", IN_LOCALE],
        input=said.encode(),
        env={**os.environ, **locale},
        capture_output=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr
    found: list[str | None] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("locale", LOCALES, ids=lambda locale: str(locale["LC_ALL"]))
@pytest.mark.parametrize("padding", ["", ": " + "é" * 60_000 + "\n"], ids=["argument", "file"])
def test_a_script_reaches_its_shell_as_utf_8_in_every_locale(locale: dict[str, str], padding: str) -> None:
    folder = Path("données →")
    folder.mkdir()
    script = padding + "echo 'a → b' \"$ARROW\" ${PWD##*/}; echo é >&2"
    env = {"ARROW": "← 𝄞"}
    assert in_locale(locale, script, env=env, cwd=str(folder.absolute())) == ["a → b ← 𝄞 données →\n", "é\n"]


WITHOUT_STDIN = """
import os
from ttasks import Task, TaskExecutor
os.close(0)
print(TaskExecutor().execute(Task.bash(": " + "x" * 200_000 + "; cat; echo ran")).output)
"""


def test_a_long_script_runs_though_its_caller_has_no_stdin() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_STDIN], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.stdout == "ran\n\n", done.stderr


def test_what_can_not_be_written_as_utf_8_is_named() -> None:
    with pytest.raises(TaskExecutionError, match="the script can't be written as UTF-8: its character 6 is a lone"):
        run("echo \ud800")
    with pytest.raises(TaskExecutionError, match="the variable NAME can't be written as UTF-8"):
        run("true", env={"NAME": "\ud800"})


def test_bytes_of_the_callers_environment_reach_a_script_as_they_are() -> None:
    os.environb[b"TTASKS_TEST_BYTES"] = b"\xff\xfe"
    try:
        given = os.environ["TTASKS_TEST_BYTES"]
        script = 'printf %s "$TTASKS_TEST_BYTES" "$GIVEN" | od -An -tx1'
        assert run(script, env={"GIVEN": given}).output.split() == ["ff", "fe"] * 2
    finally:
        del os.environ["TTASKS_TEST_BYTES"]


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ttasks.handlers.shell._shell", lambda: "/nowhere/bash")
    with pytest.raises(TaskExecutionError, match="'/nowhere/bash'"):
        run("true")


def test_a_variable_that_another_thread_removes_meanwhile_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Changing(dict[bytes, bytes]):
        def __iter__(self) -> Iterator[bytes]:
            return iter([*super().__iter__(), b"REMOVED"])

        def items(self) -> ItemsView[bytes, bytes]:  # as os.environb has it
            return ItemsView(self)

    monkeypatch.setattr(os, "environb", Changing(os.environb))
    assert run("echo ran").output == "ran\n"


def test_a_folder_with_a_nul_character_is_named() -> None:
    with pytest.raises(TaskExecutionError, match=r"the folder '/tmp\\x00' \(cwd\) holds a NUL"):
        run("true", cwd="/tmp\0")
