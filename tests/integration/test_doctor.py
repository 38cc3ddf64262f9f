"""`ttasks doctor`: what can run here, and what to do where it can't."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from commands import Command
from copilots import VARIABLES, Bench
from doubles.real import RealCli
from doubles.scripted import requests_in
from processes import until


@pytest.fixture
def doctor(bench: Bench) -> Command:
    return Command(bench.folder)


def ask(doctor: Command, *parts: str, **variables: str) -> tuple[int, list[str]]:
    done: subprocess.CompletedProcess[str] = doctor("doctor", *parts, COLUMNS="400", **variables)
    assert "Traceback" not in done.stderr and done.stderr == ""
    return done.returncode, [line.strip() for line in done.stdout.splitlines()]


def test_all_parts_are_looked_at_and_only_bash_has_to_be_there(doctor: Command, bench: Bench) -> None:
    code, lines = ask(doctor, COPILOT_CLI_PATH="/nope")
    assert code == 0
    assert [line.split()[0] for line in lines if line.split()[1:2] in (["ok"], ["no"])] == ["bash", "pwsh", "copilot"]
    assert lines[0].startswith("bash     ok  /")
    assert "GNU bash" in lines[1]


def test_a_part_that_is_asked_for_has_to_be_there(doctor: Command) -> None:
    code, lines = ask(doctor, "copilot", COPILOT_CLI_PATH="/nope/copilot")
    assert code == 1
    assert lines[0].startswith("copilot  no  no Copilot CLI was found (/nope/copilot does not exist). Install it with ")
    assert lines[0].endswith("(cli_missing)")
    assert lines[1].startswith("SDK 1.")
    assert lines[-1] == "agents may: approve_all"


def test_a_part_that_is_none_is_refused(doctor: Command) -> None:
    done = doctor("doctor", "cobol")
    assert done.returncode == 2
    assert "cobol" in done.stderr


def test_a_copilot_that_works_says_where_it_is_and_who_is_signed_in(doctor: Command, bench: Bench) -> None:
    code, lines = ask(
        doctor, "copilot", COPILOT_CLI_PATH=str(bench.cli_path), TTASKS_COPILOT_PERMISSIONS="read, url(x)"
    )
    assert code == 0
    assert lines[0] == f"copilot  ok  {bench.cli_path}"
    assert lines[1].startswith("CLI 1.0.102, SDK 1.")
    assert lines[2:] == ["signed in: user:octocat", "agents may: read, url(x)"]
    until(lambda: not bench.processes())


def test_no_model_is_asked_and_no_conversation_is_begun(doctor: Command, bench: Bench) -> None:
    ask(doctor, "copilot", COPILOT_CLI_PATH=str(bench.cli_path))
    methods = {str(request.get("method")) for request in requests_in(bench.home)}
    assert methods <= {"connect", "ping", "status.get", "auth.getStatus", "runtime.shutdown"}


def test_a_cli_that_the_sdk_was_not_made_for_is_told_of(doctor: Command, bench: Bench) -> None:
    bench.cli(version="1.0.1")
    _, lines = ask(doctor, "copilot", COPILOT_CLI_PATH=str(bench.cli_path))
    assert lines[1].startswith("CLI 1.0.1, SDK 1.") and " (made for CLI 1.0." in lines[1]


def test_an_endpoint_of_ones_own_is_named_without_secrets(doctor: Command, bench: Bench) -> None:
    bench.cli(login=None)
    code, lines = ask(
        doctor,
        "copilot",
        COPILOT_CLI_PATH=str(bench.cli_path),
        COPILOT_PROVIDER_BASE_URL="http://me:hunter2@127.0.0.1:9/v1?key=hunter2",
        COPILOT_PROVIDER_API_KEY="hunter2",
    )
    assert code == 0
    assert "model endpoint http://127.0.0.1:9/v1 (not asked)" in lines
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize(
    "address", ["nonsense", "127.0.0.1:9/v1", "ftp://a/v1", "http://", "http://a:port/v1", "http://[a"]
)
def test_what_is_no_address_of_an_endpoint_is_said(address: str, doctor: Command, bench: Bench) -> None:
    given = {"COPILOT_CLI_PATH": str(bench.cli_path), "COPILOT_PROVIDER_BASE_URL": address}
    code, lines = ask(doctor, "copilot", **given)
    assert code == 1
    assert "COPILOT_PROVIDER_BASE_URL is no address of a model endpoint, such as http://" in lines[0]


def test_a_token_is_not_shown(doctor: Command, bench: Bench) -> None:
    code, lines = ask(doctor, "copilot", COPILOT_CLI_PATH=str(bench.cli_path), GH_TOKEN="ghp_hunter2")
    assert code == 0
    assert "signed in by a token from the environment, which was not checked" in lines
    assert "hunter2" not in "".join(lines)


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ({"login": None}, "Copilot is not signed in. Sign in with 'copilot login'"),
        ({"start": "exit", "stderr": "glibc too old\n"}, "glibc too old"),
        ({"protocol_version": 9}, "this Copilot CLI and this SDK don't fit together"),
    ],
    ids=["nobody", "exit", "protocol"],
)
def test_what_is_wrong_is_said_with_what_to_do(
    behaviour: dict[str, object], said: str, doctor: Command, bench: Bench
) -> None:
    bench.cli(**behaviour)
    code, lines = ask(doctor, "copilot", COPILOT_CLI_PATH=str(bench.cli_path))
    assert code == 1
    assert said in lines[0]
    assert lines[1] == str(bench.cli_path)
    until(lambda: not bench.processes())


def test_permissions_that_can_not_be_read_are_said_and_not_thrown(doctor: Command, bench: Bench) -> None:
    code, lines = ask(
        doctor, "copilot", COPILOT_CLI_PATH=str(bench.cli_path), TTASKS_COPILOT_PERMISSIONS="approve_evrything"
    )
    assert code == 1
    assert "'approve_evrything' is no kind of request" in lines[0]


def test_without_bash_a_shell_is_enough(doctor: Command, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    code, lines = ask(doctor, "bash", PATH=str(empty))
    assert (code, lines) == (0, ["bash     ok  /bin/sh, because there is no bash on PATH: scripts have to be plain sh"])


def test_the_real_cli_is_found_fit(real_cli: RealCli, doctor: Command) -> None:
    clean = dict.fromkeys(VARIABLES, "")
    variables = {**clean, **real_cli.environment, "COPILOT_PROVIDER_BASE_URL": "http://127.0.0.1:9/v1"}
    code, lines = ask(doctor, "copilot", **{**variables, "COPILOT_CLI_PATH": str(real_cli.path)})
    assert code == 0, lines
    assert lines[0] == f"copilot  ok  {real_cli.path}"
    assert lines[1].startswith("CLI 1.")
