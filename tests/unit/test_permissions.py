"""What an agent may do: by a policy, by rules, by a function. What nothing clearly allows is denied."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ttasks.handlers.copilot.permissions import Decision, PermissionRequest, Permissions, Policy, parse_permissions

HERE = "/home/kim/project"


def request(kind: str, subject: str, folder: str | Path = HERE, paths: tuple[str, ...] = ()) -> PermissionRequest:
    return PermissionRequest("task-1", kind, subject, str(folder), paths=paths)


def decide(permissions: Permissions, kind: str, subject: str, folder: str | Path = HERE) -> Decision:
    return Policy(permissions).decide(request(kind, subject, folder))


def allows(permissions: Permissions, kind: str, subject: str, folder: str | Path = HERE) -> bool:
    return decide(permissions, kind, subject, folder).is_approved


# Policies by name.


def test_each_policy_says_what_it_decided() -> None:
    assert decide("approve_all", "shell", "rm -rf / && $(x)") == Decision(True, "approve_all")
    denied = decide("deny_all", "read", f"{HERE}/a")
    assert (denied.word, denied.by) == ("denied", "deny_all")
    assert denied.feedback == "This is not permitted here: nothing allows it (deny_all)."
    assert decide("read_only", "read", f"{HERE}/a") == Decision(True, "read_only")
    assert decide("read_only", "read", "/etc/passwd").by == "read_only"


@pytest.mark.parametrize("kind", ["shell", "write", "url", "mcp", "custom-tool", "memory", "of-tomorrow"])
def test_read_only_allows_nothing_but_reads(kind: str) -> None:
    assert not allows("read_only", kind, f"{HERE}/a")


@pytest.mark.parametrize("wrong", ["approve-all", "", "read", "*"])
def test_a_policy_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="permissions must be one of 'approve_all', 'deny_all', 'read_only'"):
        Policy(wrong)


@pytest.mark.parametrize("wrong", [None, 3, [1], {"read": True}.items(), b"read"])
def test_what_is_no_permissions_at_all_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="permissions must be a str, rules or callable"):
        Policy(wrong)


# Rules.


@pytest.mark.parametrize(
    "text",
    ["", " ", "deny", "deny ", "Read", "read()", "read(a", "read)", "shell (ls)", "deny deny read",
     "denyread(a)b", "read(a) b", "-read", "deny(rm)", "deny\nDENY read"],
)  # fmt: skip
def test_a_rule_that_can_not_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"permissions: {text!r} is no rule; write a kind")):
        Policy([text])


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("deny shel(rm *)", "'shel' in 'deny shel(rm *)' is no kind of request; did you mean 'shell'?"),
        ("custom_tool(push)", "did you mean 'custom-tool'?"),
        ("of-tomorrow", "expected one of *, custom-tool, extension-env-access"),
        ("read_only", "a policy stands alone, without rules"),
    ],
)
def test_a_rule_about_a_kind_that_there_is_not_is_refused(text: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        Policy(["*", text])


def test_what_no_rule_speaks_of_is_denied() -> None:
    assert decide([], "read", f"{HERE}/a").by == "no rule"
    assert decide(["read"], "mcp", "server/tool").feedback == "This is not permitted here: nothing allows it (no rule)."


def test_the_rule_that_decided_is_named_as_it_was_given() -> None:
    rules = ["read", " write(src/*) ", "deny write(src/keys/*)"]
    assert Policy(rules).names == ("read", "write(src/*)", "deny write(src/keys/*)")
    assert decide(rules, "write", f"{HERE}/src/a.py") == Decision(True, "write(src/*)")
    denied = decide(rules, "write", f"{HERE}/src/keys/a")
    assert denied.by == "deny write(src/keys/*)"
    assert denied.feedback == "This is not permitted here: the rule 'deny write(src/keys/*)' forbids it."


@pytest.mark.parametrize(
    "rules", [["shell(git *)", "deny shell(git push*)"], ["deny shell(git push*)", "shell(git *)"]]
)
def test_a_denial_comes_before_an_approval_wherever_it_stands(rules: list[str]) -> None:
    assert allows(rules, "shell", "git status")
    assert not allows(rules, "shell", "git push --force")


def test_a_kind_without_a_pattern_is_all_of_that_kind_and_nothing_else() -> None:
    assert allows(["mcp"], "mcp", "server/tool")
    assert allows(["mcp(server/*)"], "mcp", "server/tool")
    assert not allows(["mcp(server/*)"], "mcp", "other/tool")
    assert not allows(["mcp"], "custom-tool", "tool")
    assert allows(["*"], "of-tomorrow", "")
    assert not allows(["*", "deny custom-tool(push)"], "custom-tool", "push")


# Commands.

GIT = ["shell(git status*)", "shell(git log*)"]


@pytest.mark.parametrize(
    "command",
    ["git status", "  git status -s  ", "git status && git log", "git status; git log -3", "git log | git status",
     "git status &", "git log --format=%h || git status", "\n git status\n", "git status;\ngit log"],
)  # fmt: skip
def test_a_command_all_parts_of_which_are_approved_is_approved(command: str) -> None:
    assert allows(GIT, "shell", command)


def test_the_rules_that_approved_parts_are_all_named() -> None:
    assert decide(GIT, "shell", "git log && git status").by == "shell(git log*), shell(git status*)"


@pytest.mark.parametrize(
    "command",
    [
        "", " ", ";", "&&", "rm x",
        "git status; rm x", "git status && rm x", "git status || rm x", "git status | sh", "git status & rm x",
        "rm x; git status", "git status;rm x", "git status\nrm x", "git status\r\nrm x", "git status \\\n; rm x",
        "git status $(rm x)", "git status `rm x`", 'git status "$(rm x)"', "git status <(rm x)", "git status >(rm x)",
        "git status > /etc/passwd", "git status >> x", "git status < x", "git status 2>&1", "git status <<< x",
        "(git status)", "git status; (rm x)", "X=1 git status", "git status\\; rm x", "'git' status",
        "git status 'a; rm x'", "git status $'a\\nrm x'", "{ git status; }", "! git status", "git\tstatus",
        "sudo git status", "git stat", "git status\r", "\xa0git status", "git status;\x0bgit status",
    ],
)  # fmt: skip
def test_a_command_that_may_be_more_than_what_is_approved_is_denied(command: str) -> None:
    assert decide(GIT, "shell", command).by == "no rule"


def test_a_command_that_is_given_word_for_word_may_hold_anything() -> None:
    command = "make > log 2>&1 && echo $(date)"
    assert allows([f"shell({command})"], "shell", f" {command} ")
    assert not allows([f"shell({command})"], "shell", f"{command}; rm x")


@pytest.mark.parametrize("command", ["git status; rm x", "git status $(rm x)", "git status > x"])
def test_a_pattern_for_every_kind_is_no_way_around_the_rules_for_commands(command: str) -> None:
    assert allows(["*(git *)"], "shell", "git status")
    assert not allows(["*(git *)"], "shell", command)


@pytest.mark.parametrize(
    "command",
    ["rm x", " rm  x", "rm\tx", "ls; rm x", "ls && rm x", "ls|rm x", "ls & rm x", "ls\nrm x", "echo $(rm x)",
     "echo `rm x`", "(rm x)", "{ rm x; }", "if true; then rm x; fi", "while ! rm x; do :; done", "time rm x",
     "X=1 Y=2 rm x", "/bin/rm x", "'rm' x", 'r""m x', "\\rm x", "r\\\nm x", 'sh <(rm x)', "ls >(rm x)"],
)  # fmt: skip
def test_a_denied_command_is_found_wherever_a_shell_would_begin_it(command: str) -> None:
    assert decide(["*", "deny shell(rm *)"], "shell", command).by == "deny shell(rm *)"


def test_a_long_command_is_looked_through_in_no_time() -> None:
    assert allows(["shell", "deny shell(rm *)"], "shell", f"echo {'ab' * 200_000}")
    assert not allows(["shell", "deny shell(rm *)"], "shell", f"A={'ab' * 200_000} rm x")


@pytest.mark.parametrize("rules", [["shell"], ["shell(ls)"], ["shell(l*)", "read"], ["*(ls)"]])
def test_what_leaves_the_sandbox_is_approved_by_a_rule_for_everything_only(rules: list[str]) -> None:
    inside = request("shell", "ls")
    outside = replace(inside, leaves_sandbox=True)
    assert Policy(rules).decide(inside).is_approved
    assert not Policy(rules).decide(outside).is_approved
    assert Policy([*rules, "*"]).decide(outside).is_approved
    assert Policy("approve_all").decide(outside).is_approved
    assert not Policy(["*", "deny shell(ls)"]).decide(outside).is_approved


@pytest.mark.parametrize("command", ["ls rm", "grep rm x", "echo rmx x", "git rm x", "form x"])
def test_a_denied_word_that_is_no_command_denies_nothing(command: str) -> None:
    assert allows(["*", "deny shell(rm *)"], "shell", command)


WORDS = st.sampled_from(["git", "status", "log", "rm", "x", "-rf", "$X", "'", '"', "\\", "#", "{", "}", "!", " ", "*"])
JOINS = st.sampled_from([";", "&&", "||", "|", "&", "\n", "\r", "$(", "`", "<(", ">(", ")", ">", "<", "\\\n"])


@given(st.lists(st.one_of(WORDS, WORDS, JOINS), max_size=12), st.sampled_from([" ", ""]))
def test_a_wildcard_never_approves_what_is_joined_or_substituted_and_approved_by_no_rule(
    words: list[str], between: str
) -> None:
    command = between.join(words)
    if allows(["shell(git *)", "shell(ls)"], "shell", command):
        parts = [part.strip(" \t\n") for part in re.split(r"[;|&]", command)]
        assert all(part == "" or part == "ls" or part.startswith("git ") for part in parts)
        assert not any(re.search(r"[`()<>\n\r\\]", part) for part in parts)


@given(st.text(alphabet="git rmls;&|$(`)<>\n'\"\\{}", max_size=30))
def test_a_denied_command_is_never_approved_where_it_stands_alone_or_after_a_join(before: str) -> None:
    for join in (";", "&&", "||", "|", "&", "\n"):
        assert not allows(["*", "deny shell(rm *)"], "shell", f"{before}{join} rm x")


# Paths.


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "src" / "deep").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (folder / "away").symlink_to(tmp_path / "outside")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "inner").symlink_to(folder / "src")
    return folder


@pytest.mark.parametrize("path", ["src/a", "src/deep/a", "./src/a", "src/../src/a", "inner/a", "src"])
def test_what_is_in_the_folder_may_be_read(path: str, project: Path) -> None:
    assert allows(["read"], "read", str(project / path), project)
    assert allows(["read"], "read", path, project)


@pytest.mark.parametrize("path", ["../outside/a", "src/../../outside/a", "away/a", "away", "/etc/passwd", "..", "a\0b"])
@pytest.mark.parametrize("kind", ["read", "write"])
def test_what_leads_out_of_the_folder_may_not(kind: str, path: str, project: Path) -> None:
    assert not allows([kind], kind, os.path.join(project, path), project)
    assert not allows([kind], kind, path, project)
    assert not allows([f"{kind}(*)"], kind, path, project)
    assert not allows([f"*({kind}*)"], kind, path, project)


def test_a_folder_beside_with_a_longer_name_is_outside(project: Path) -> None:
    assert not allows(["read"], "read", f"{project}-2/a", project)


def test_a_link_that_is_a_loop_is_where_it_is(project: Path) -> None:
    assert allows(["read"], "read", str(project / "loop"), project)


def test_a_relative_pattern_is_of_the_folder(project: Path) -> None:
    for rule in ("write(src/*)", "write(./src/*)", "*(src/*)"):
        assert allows([rule], "write", str(project / "src" / "deep" / "a"), project)
        assert not allows([rule], "write", str(project / "a"), project)
        assert not allows([rule], "write", str(project / "src" / ".." / "a"), project)
    assert not allows(["write(../outside/*)"], "write", str(project.parent / "outside" / "a"), project)


def test_an_absolute_pattern_may_be_outside_and_is_compared_without_links(project: Path) -> None:
    outside = project.parent / "outside"
    assert allows([f"write({outside}/*)"], "write", str(project / "away" / "a"), project)
    assert not allows([f"write({outside}/*)"], "write", f"{outside}/../b", project)
    assert not allows([f"write({project}/*)"], "write", str(project / "away" / "a"), project)


def test_a_pattern_that_names_a_link_means_where_it_led_when_the_rule_was_made(project: Path) -> None:
    policy = Policy([f"write({project}/away/*)"])
    asked = request("write", str(project.parent / "outside" / "a"), project)
    assert policy.decide(asked).is_approved
    (project / "away").unlink()
    (project / "away").symlink_to("/etc")
    assert policy.decide(asked).is_approved
    assert not policy.decide(request("write", str(project / "away" / "passwd"), project)).is_approved


def test_home_may_be_written_as_a_tilde(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(project.parent / "outside"))
    secret = str(project.parent / "outside" / ".ssh" / "id")
    assert allows(["read(~/.ssh/*)"], "read", secret, project)
    assert not allows(["*", "deny read(~/.ssh/*)"], "read", secret, project)


@pytest.mark.parametrize("rule", ["deny write(src/*)", "deny write(./src/*)", "deny write(away/*)", "deny write",
                                  "deny write(../outside/*)"])  # fmt: skip
def test_a_denial_holds_by_the_name_and_by_where_links_lead(rule: str, project: Path) -> None:
    path = "inner/a" if "src" in rule else "away/a"
    decision = decide(["*", rule], "write", str(project / path), project)
    assert decision.by == rule


def test_of_several_paths_all_have_to_be_approved_and_one_is_enough_to_deny(project: Path) -> None:
    both = request("write", str(project / "src" / "a"), project, (str(project / "src" / "a"), str(project / "b")))
    assert not Policy(["write(src/*)"]).decide(both).is_approved
    assert Policy(["write(src/*)", "write"]).decide(both).is_approved
    assert not Policy(["write", "deny write(b)"]).decide(both).is_approved


# Addresses.


@pytest.mark.parametrize(
    ("rule", "address"),
    [
        ("url", "ftp://anything"),
        ("url(*)", "https://x.test/a?b#c"),
        ("url(docs.test)", "https://docs.test/a"),
        ("url(docs.test)", "http://DOCS.test:8080"),
        ("url(Docs.Test)", "https://docs.test."),
        ("url(docs.test/api/*)", "https://docs.test/api/v1"),
        ("url(*.docs.test)", "https://en.docs.test/a"),
        ("url(https://docs.test/*)", "HTTPS://Docs.Test/a?b=c"),
        ("url(https://docs.test/*)", "https://docs.test:443/a"),
        ("url(https://docs.test/*)", "https://me:secret@docs.test/a"),
        ("url(https://docs.test:8443/*)", "https://docs.test:8443/a"),
        ("url(https://docs.test)", "https://docs.test/"),
        ("url(https://*)", "https://docs.test/a"),
    ],
)
def test_an_address_that_a_rule_means_is_approved(rule: str, address: str) -> None:
    assert allows([rule], "url", address)


@pytest.mark.parametrize(
    ("rule", "address"),
    [
        ("url(docs.test)", "https://evil.test/docs.test"),
        ("url(docs.test)", "https://docs.test@evil.test/"),
        ("url(docs.test)", "https://docs.test:x@evil.test/"),
        ("url(docs.test)", "https://docs.test.evil.test/"),
        ("url(docs.test)", "https://evil.test\\@docs.test/"),
        ("url(docs.test)", "https://evil.test#@docs.test/"),
        ("url(docs.test)", "https://evil.test?@docs.test/"),
        ("url(docs.test)", "docs.test"),
        ("url(docs.test)", "file://docs.test/etc/passwd"),
        ("url(*)", "ftp://docs.test/a"),
        ("url(docs.test)", "https://docs.test\n.evil.test/"),
        ("url(docs.test)", "https://[docs.test/"),
        ("url(docs.test)", "https://docs.test:port/"),
        ("url(https://docs.test/*)", "http://docs.test/a"),
        ("url(https://docs.test/*)", "https://docs.test:8443/a"),
        ("url(https://docs.test/*)", "https://docs.test@evil.test/a"),
        ("url(https://*.docs.test/*)", "https://evil.test/x.docs.test/a"),
        ("url(https://*.docs.test/*)", "https://evil.test?x.docs.test/a"),
        ("url(https://docs.test/api/*)", "https://docs.test/api/../admin"),
        ("url(https://docs.test/api/*)", "https://docs.test/api/%2E%2e/admin"),
        ("url(https://docs.test)", "https://docs.test/a"),
        ("*(https://docs.test/*)", "https://evil.test?https://docs.test/a"),
    ],
)
def test_an_address_that_only_looks_like_it_is_not(rule: str, address: str) -> None:
    assert not allows([rule], "url", address)


@pytest.mark.parametrize(
    "address",
    ["https://evil.test/", "HTTP://EVIL.test:99/a", "https://me@evil.test", "https://evil.test.", "https://ev%69l.test/",
     "https://evil.test\\@docs.test/", "https://[evil"],
)  # fmt: skip
@pytest.mark.parametrize("rule", ["deny url(evil.test)", "deny url(*evil.test)"])
def test_a_denied_address_is_denied_however_it_is_written(rule: str, address: str) -> None:
    assert decide(["*", rule], "url", address).by == rule


# Functions.


def say_yes(asked: PermissionRequest) -> bool:
    return asked.kind == "read"


def test_a_function_decides_by_its_name() -> None:
    name = f"{__name__}.say_yes"
    assert Policy(say_yes).names == (name,)
    assert decide(say_yes, "read", "a") == Decision(True, name)
    assert decide(say_yes, "write", "a") == Decision(False, name, "This is not permitted here.")


def test_a_function_may_say_why_not() -> None:
    assert decide(lambda asked: f"not {asked.subject}", "read", "a").feedback == "not a"
    assert decide(lambda asked: "", "read", "a").is_approved is False


def test_a_function_gets_the_request() -> None:
    asked: list[PermissionRequest] = []
    Policy(lambda one: bool(asked.append(one))).decide(request("shell", "ls"))
    assert asked == [request("shell", "ls")]


@pytest.mark.parametrize("answer", [None, 1, 0, [], ["yes"], object, {"kind": "approve-once"}])
def test_a_function_that_answers_something_else_denies(answer: object) -> None:
    decision = decide(lambda asked: answer, "read", "a")
    assert not decision.is_approved
    assert decision.by.endswith(f": returned {type(answer).__name__}, not a bool or str")


@pytest.mark.parametrize("error", [ValueError("no idea"), KeyboardInterrupt(), SystemExit(3)])
def test_a_function_that_raises_denies_and_the_record_says_so(error: BaseException) -> None:
    def ask(asked: PermissionRequest) -> bool:
        raise error

    decision = decide(ask, "read", "a")
    assert not decision.is_approved
    assert decision.by.endswith(f"ask: raised {type(error).__name__}: {error}")


async def ask_later(asked: PermissionRequest) -> bool:
    return True


def test_a_function_that_is_async_denies_and_leaves_nothing_unawaited(recwarn: pytest.WarningsRecorder) -> None:
    decision = decide(lambda asked: ask_later(asked), "read", "a")  # type: ignore[arg-type,return-value]
    assert not decision.is_approved
    assert decision.by.endswith("<lambda>: returned an awaitable, not a bool or str")
    assert list(recwarn) == []
    with pytest.raises(TypeError, match="permissions must do its work when it is called"):
        decide(ask_later, "read", "a")  # type: ignore[arg-type]


# As they stand in an environment variable.


@pytest.mark.parametrize(
    ("text", "permissions"),
    [
        (" read_only ", "read_only"),
        ("read", ["read"]),
        ("read, write(src/*),\nshell(git *)", ["read", "write(src/*)", "shell(git *)"]),
        ("shell(echo a, b), deny shell(rm *)", ["shell(echo a, b)", "deny shell(rm *)"]),
        ("read,,\n,", ["read"]),
        ("", []),
    ],
)
def test_permissions_in_an_environment_variable_are_a_policy_or_rules(text: str, permissions: Permissions) -> None:
    assert parse_permissions(text) == permissions


def test_what_can_not_be_read_there_is_refused_like_any_rule() -> None:
    with pytest.raises(ValueError, match="'approve_evrything' is no kind of request"):
        Policy(parse_permissions("approve_evrything"))
