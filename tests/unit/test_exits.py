"""What exit codes mean, in words, and how they stand beside what a script said last."""

from __future__ import annotations

import signal

import pytest

from ttasks.state.exits import BYTES_MAX, LINES_MAX, error_text, exit_text, why
from ttasks.state.rows import tail

KILLED = "killed by SIGKILL (probably out of memory, or kill -9)"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "exited with code 0"),
        (7, "exited with code 7"),
        (126, "exited with code 126 (a command was found, but could not be executed)"),
        (127, "exited with code 127 (a command was not found)"),
        (128, "exited with code 128"),
        (137, "exited with code 137 (a command was killed by SIGKILL, probably out of memory, or kill -9)"),
        (143, "exited with code 143 (a command was killed by SIGTERM, asked to end, by kill or a shutdown)"),
        (145, "exited with code 145"),  # SIGCHLD ends nothing
        (200, "exited with code 200"),
        (255, "exited with code 255"),
        (-9, KILLED),
        (-signal.SIGUSR1, "killed by SIGUSR1"),
        (-35, "killed by signal 35"),
        (-99, "killed by signal 99"),
    ],
)
def test_a_code_is_named_with_what_it_means(code: int, text: str) -> None:
    assert exit_text(code) == text


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGXCPU", "SIGPIPE", "SIGINT", "SIGHUP"])
def test_a_signal_is_named_and_explained_whoever_it_ended(name: str) -> None:
    number = signal.Signals[name]
    assert exit_text(-number).startswith(f"killed by {name} (")
    assert f"a command was killed by {name}, " in exit_text(128 + number)


@pytest.mark.parametrize(
    ("code", "text"), [(-15, "killed by SIGTERM"), (-9, "killed by SIGKILL"), (143, "exited with code 143")]
)
@pytest.mark.parametrize("reason", ["timeout", "cancelled", None])
def test_no_cause_is_guessed_of_a_signal_that_ttasks_sent(code: int, text: str, reason: str | None) -> None:
    assert exit_text(code, reason) == text


@pytest.mark.parametrize("code", [1, 7, 126, 127, 137, 255])
def test_the_error_of_a_plain_code_is_stderr_word_for_word_or_the_code(code: int) -> None:
    assert error_text(code, "no such\nthing\n") == "no such\nthing\n"
    assert error_text(code, "") == f"exited with code {code}"


def test_the_error_of_a_signal_has_it_first_and_then_the_last_lines_of_stderr() -> None:
    assert error_text(-9, "") == error_text(-9, "\n") == KILLED
    assert error_text(-9, "a\nb\n") == f"{KILLED}\na\nb"
    lines = [f"line {number}" for number in range(100)]
    assert error_text(-9, "\n".join(lines)).split("\n") == [KILLED, *lines[-LINES_MAX:]]


@pytest.mark.parametrize("letter", ["x", "é", "🙂", "\ud800"])
def test_the_row_of_a_signal_keeps_it_however_long_stderr_is(letter: str) -> None:
    text = error_text(-9, letter * 100_000)
    assert text.startswith(KILLED)
    assert len(text.encode("utf-8", "surrogatepass")) <= BYTES_MAX + len(KILLED) + 1
    assert tail(text) == text


@pytest.mark.parametrize(
    ("error", "code", "reason", "line"),
    [
        ("a\nno space left\n", 7, "exit_code", "exited with code 7: no space left"),
        ("exited with code 7", 7, "exit_code", "exited with code 7"),
        ("exited with code 127", 127, "exit_code", "exited with code 127 (a command was not found)"),
        (KILLED, -9, "exit_code", KILLED),
        (f"{KILLED}\nwarning: cache is cold", -9, "exit_code", f"{KILLED}: warning: cache is cold"),
        (None, 7, "exit_code", "exited with code 7"),
        ("Task timed out after 2 seconds", -15, "timeout", "Task timed out after 2 seconds"),
        ("ValueError: 3\nby hand", None, "handler", "by hand"),
        ("odd", 0, "exit_code", "odd"),
        (None, None, None, ""),
    ],
)
def test_one_line_says_why(error: str | None, code: int | None, reason: str | None, line: str) -> None:
    assert why(error, code, reason) == line
