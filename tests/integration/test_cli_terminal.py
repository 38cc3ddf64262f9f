"""What a person sees of the command on a terminal, while tasks run and after."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import TTASKS, Command

TOKEN = re.compile(r"\x1b\[([0-9;]*)([A-Za-z])|(.)", re.DOTALL)


class Screen:
    """A command on a terminal of its own, 60 columns wide, and what that shows."""

    def __init__(self, ttasks: Command, *words: str, **variables: str) -> None:
        self._ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 60, 0, 0))
        self.process = subprocess.Popen(
            [*TTASKS, *words],
            cwd=ttasks.folder,
            env=ttasks.environment(**{"TERM": "xterm-256color", "COLORTERM": "", "COLUMNS": "200", **variables}),
            stdin=subprocess.DEVNULL,
            stdout=its,
            stderr=its,
        )
        os.close(its)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.raw = ""

    def until(self, text: str) -> list[str]:
        """Return the lines of the screen once it was told to show `text`, from here on."""
        seen = len(self.raw)
        while text not in self.raw[seen:]:
            self.raw += self._decoder.decode(os.read(self._ours, 65_536))
        return self.lines()

    def end(self) -> list[str]:
        """Return the lines of the screen once the command has ended."""
        while True:
            try:
                data = os.read(self._ours, 65_536)
            except OSError:  # Linux, of a terminal that nobody has any more
                break
            if not data:
                break
            self.raw += self._decoder.decode(data)
        os.close(self._ours)
        assert self.process.wait(60) == 0
        return self.lines()

    def lines(self) -> list[str]:
        """Draw what was printed: of escape sequences only those that the command may print do something."""
        lines, row, column = [""], 0, 0
        for numbers, name, character in TOKEN.findall(self.raw):
            if character == "\r":
                column = 0
            elif character == "\n":
                row += 1
                lines += [""] * (row == len(lines))
            elif character:
                lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
                column += 1
            elif name == "A":
                row -= int(numbers)
            elif name == "J":
                lines[row:] = [lines[row][:column]]
            else:
                assert name == "m"
        return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in lines]


@pytest.fixture
def ttasks(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    yield command
    command.clean_up()


def wait_for(name: str) -> str:
    return f"until [ -e {name} ]; do sleep 0.02; done"


def test_bars_are_shown_as_their_latest_states_below_whole_lines_and_stay_as_their_last(ttasks: Command) -> None:
    ttasks.write(
        "a.yaml",
        f"""
        tasks:
          before: {{bash: "printf '\\r10%%'; {wait_for("a")}; printf '\\r20%%'; {wait_for("b")}; printf '\\r100%%\\n'"}}
          behind: {{bash: "printf '10 of 20\\r' >&2; {wait_for("a")}; printf '20 of 20\\r' >&2; {wait_for("b")}"}}
          talks: {{bash: "printf 'half a line'; {wait_for("a")}; echo ' and a half'; {wait_for("b")}; echo end"}}
        """,
    )
    screen = Screen(ttasks, "run", "a.yaml")
    while sorted(screen.lines()[-3:]) != ["before | 10%", "behind | 10 of 20", "talks  | half a line"]:
        screen.until("|")
    ttasks.write("a", "")
    while sorted(screen.lines()[-2:]) != ["before | 20%", "behind | 20 of 20"]:
        screen.until("|")
    assert "talks  | half a line and a half" in screen.lines()
    ttasks.write("b", "")
    lines = screen.end()
    kept = [line for line in lines if " | " in line]
    assert sorted(kept) == [
        "before | 100%",
        "behind | 20 of 20",
        "talks  | end",
        "talks  | half a line and a half",
    ]
    assert lines[-4:-2] == ["", lines[-3]] and lines[-3].startswith("OK: 3 succeeded")


def test_what_does_not_fit_is_cut_off_and_counted(ttasks: Command) -> None:
    script = f"printf 'x%.0s' {{1..200}}; {wait_for('a')}"
    tasks = "".join(f'  t{number:02}: {{bash: "{script}"}}\n' for number in range(12))
    ttasks.write("a.yaml", f"tasks:\n{tasks}")
    screen = Screen(ttasks, "run", "--jobs", "12", "a.yaml")
    shown: list[str] = []
    while len(shown) != 8 or any(len(row) != 50 or not row.endswith("xx") for row in shown[:-1]):
        lines = screen.until("\r")
        shown = [line for line in lines if " | " in line] + [line for line in lines if line == "… and 5 more"]
    ttasks.write("a", "")
    assert sum(line.endswith("| " + "x" * 200) for line in screen.end()) == 12


COLOURS = """
tasks:
  a: {bash: "printf '\\\\e[32mgreen\\\\nstill\\\\e[0m\\\\nplain\\\\n\\\\e[2J\\\\e]0;title\\\\a\\\\n'; exit 1"}
  b: {bash: "echo b", after: [a], finally: true}
"""


def test_colours_of_scripts_reach_a_terminal_and_nothing_else_that_steers_it(ttasks: Command) -> None:
    ttasks.write("a.yaml", COLOURS.replace("; exit 1", ""))
    run = Screen(ttasks, "run", "a.yaml")
    run.end()
    assert "\x1b[32mgreen\x1b[0m" in run.raw and "\x1b[32mstill\x1b[0m\x1b[0m" in run.raw
    assert "| plain\x1b[0m" in run.raw and "\\x1b[2J\\x1b]0;title\\x07" in run.raw
    task = ttasks.task_id("a")
    for words in (["show", task], ["show", task, "--output"]):
        show = Screen(ttasks, *words)
        show.end()
        assert "\x1b[32mgreen\x1b[0m\r\n" in show.raw and "plain\r\n" in show.raw
        assert "green" in ttasks(*words).stdout and "\x1b" not in ttasks(*words).stdout


def test_an_error_that_a_script_printed_in_colours_is_told_without_them(ttasks: Command) -> None:
    script = "printf '1%%\\\\r\\\\e[31mboom\\\\e[0m\\\\n' >&2; exit 3"
    ttasks.write("a.yaml", f'tasks:\n  a: {{bash: "{script}"}}\n')
    run = ttasks("run", "a.yaml")
    assert run.returncode == 1 and re.search("^a: failed: .*boom$", run.stdout, re.MULTILINE)
    for printed in (run, ttasks("show"), ttasks("show", ttasks.task_id("a"))):
        assert "boom" in printed.stdout and "x1b" not in printed.stdout and "\x1b" not in printed.stdout


@pytest.mark.parametrize("variables", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_where_no_colours_are_wanted_a_terminal_gets_none(ttasks: Command, variables: dict[str, str]) -> None:
    ttasks.write("a.yaml", COLOURS.replace("; exit 1", "; printf '1%%\\\\r2%%\\\\n'"))
    run = Screen(ttasks, "run", "a.yaml", **variables)
    run.end()
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", run.raw) and "| green" in run.raw and "| 2%" in run.raw
    if variables == {"TERM": "dumb"}:
        assert "\x1b" not in run.raw
