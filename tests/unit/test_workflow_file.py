"""Workflow files: what they mean, and that a bad one is named by file, line and task, whatever is wrong with it."""

from __future__ import annotations

import hashlib
import os
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttasks import WorkflowError
from ttasks.cli import workflow
from ttasks.cli.workflow import Workflow, load_workflow


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "flow.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, text: str) -> Workflow:
    return load_workflow(write(folder, textwrap.dedent(text)))


def refusal(folder: Path, text: str | bytes) -> WorkflowError:
    path = write(folder, textwrap.dedent(text) if isinstance(text, str) else text)
    with pytest.raises(WorkflowError) as refused:
        load_workflow(path)
    assert all(line.startswith(str(path)) for line in str(refused.value).splitlines())
    return refused.value


def test_every_field_of_a_file_is_read(tmp_path: Path) -> None:
    flow = load(
        tmp_path,
        """
        title: Everything
        max_workers: 3
        tasks:
          build: {bash: make}
          clean:
            agent: tidy up
            title: Clean up
            description: afterwards
            after: [build, build]
            finally: true
            required: false
            timeout: 60
            cwd: sub
            env: {A: b, N: 1.10, O: 0755}
            retries: {max_attempts: 2, backoff: 0.5}
            on_interrupted: ask
        """,
    )
    assert (flow.title, flow.max_workers, list(flow.tasks)) == ("Everything", 3, ["build", "clean"])
    assert flow.sha256 == hashlib.sha256(flow.path.read_bytes()).hexdigest()
    build, clean = flow.tasks.values()
    assert (build.kind, build.payload, build.title, build.cwd, build.timeout) == ("bash", "make", "build", None, None)
    assert (build.after, build.finally_, build.required, build.max_attempts) == ((), False, True, 1)
    assert (clean.kind, clean.payload, clean.title, clean.description) == (
        "agent",
        "tidy up",
        "Clean up",
        "afterwards",
    )
    assert (clean.after, clean.finally_, clean.required, clean.timeout) == (("build",), True, False, 60)
    assert (clean.cwd, clean.on_interrupted) == (str(tmp_path / "sub"), "ask")
    assert clean.env == {"A": "b", "N": "1.10", "O": "0755"}
    assert (clean.max_attempts, clean.backoff) == (2, 0.5)


def test_block_scalars_and_any_script_come_through_verbatim(tmp_path: Path) -> None:
    flow = load(tmp_path, 'tasks:\n  é🙂:\n    bash: |\n      echo "ä"\n\n      echo 🙂 # not a comment\n')
    assert flow.tasks["é🙂"].payload == 'echo "ä"\n\necho 🙂 # not a comment\n'


def test_an_anchor_may_be_used_again(tmp_path: Path) -> None:
    flow = load(tmp_path, "tasks:\n  a: &a {bash: echo}\n  b: *a\n")
    assert flow.tasks["b"].payload == "echo"


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

BAD = {
    "unknown key": ("tasks:\n  a: {bash: x, tiemout: 3}\n", 2, "a", "unknown key 'tiemout': did you mean 'timeout'?"),
    "unknown key at the top": ("taks:\n  a: {bash: x}\n", 1, None, "unknown key 'taks': did you mean 'tasks'?"),
    "unknown key in retries": (
        "tasks:\n  a:\n    bash: x\n    retries: {max: 3}\n",
        4,
        "a",
        "known are max_attempts, backoff",
    ),
    "no kind": ("tasks:\n  a: {timeout: 3}\n", 2, "a", "expected one of bash, powershell, prompt, agent"),
    "two kinds": ("tasks:\n  a:\n    bash: x\n    prompt: y\n", 4, "a", "has bash and prompt; expected one"),
    "an empty script": ("tasks:\n  a: {bash: ''}\n", 2, "a", "'bash' has to be a text that is not empty"),
    "an unknown dependency": ("tasks:\n  abc: {bash: x}\n  b: {bash: x, after: [abd]}\n", 3, "b", "mean 'abc'?"),
    "a task after itself": ("tasks:\n  a: {bash: x, after: [a]}\n", 2, "a", "depends on itself: a -> a"),
    "a cycle": (
        "tasks:\n  a: {bash: x, after: [c]}\n  b: {bash: x, after: [a]}\n  c: {bash: x, after: [b]}\n",
        2,
        "a",
        " -> ",
    ),
    "a task twice": ("tasks:\n  a: {bash: x}\n  a: {bash: y}\n", 3, "a", "here twice: the first is at line 2"),
    "a key twice": ("tasks:\n  a:\n    bash: x\n    bash: y\n", 4, "a", "'bash' is here twice"),
    "after is a number": ("tasks:\n  a: {bash: x, after: 3}\n", 2, "a", "has to be a list of task names, got 3"),
    "a text as time-out": ("tasks:\n  a: {bash: x, timeout: '60'}\n", 2, "a", "has to be a number, got '60'"),
    "no time": ("tasks:\n  a: {bash: x, timeout: 0}\n", 2, "a", "has to be a number greater than 0, got 0"),
    "endless": ("tasks:\n  a: {bash: x, timeout: .inf}\n", 2, "a", "has to be a finite number"),
    "no number": ("tasks:\n  a: {bash: x, timeout: .nan}\n", 2, "a", "'timeout' has to be"),
    "a boolean as count": ("max_workers: true\ntasks:\n  a: {bash: x}\n", 1, None, "has to be a whole number"),
    "no workers": ("max_workers: 0\ntasks:\n  a: {bash: x}\n", 1, None, "a number of at least 1, got 0"),
    "a number as script": ("tasks:\n  a: {bash: 3}\n", 2, "a", "'bash' has to be a text, got 3: quote it"),
    "a date as title": ("title: 2026-01-01\ntasks:\n  a: {bash: x}\n", 1, None, "a date can't be used here: quote it"),
    "a boolean in env": ("tasks:\n  a: {bash: x, env: {A: yes}}\n", 2, "a", "has to be a text, got True: quote it"),
    "nothing in env": ("tasks:\n  a: {bash: x, env: {A: }}\n", 2, "a", "has to be a text"),
    "an impossible variable": ("tasks:\n  a: {bash: x, env: {'A=B': c}}\n", 2, "a", "no name may be empty or hold '='"),
    "a required one": ("tasks:\n  a: {bash: x, required: false}\n", 2, "a", "only valid with finally: true"),
    "a text as task": ("tasks:\n  a: make\n", 2, "a", "has to be a mapping, such as a: {bash: …}, got a text"),
    "nothing as task": ("tasks:\n  a:\n", 2, "a", "has to be a mapping"),
    "a list of tasks": ("tasks:\n  - bash: x\n", 1, None, "'tasks' has to be a mapping, got a list"),
    "no task": ("tasks: {}\n", 1, None, "at least one task"),
    "no tasks": ("title: x\n", 1, None, "'tasks' is missing"),
    "an empty name": ("tasks:\n  '': {bash: x}\n", 2, None, "a task's name may not be empty"),
    "a key that is a boolean": ("tasks:\n  on: {bash: x}\n", 2, None, "'on' is read as a boolean: quote it"),
    "a key that is a number": ("tasks:\n  1: {bash: x}\n", 2, None, "'1' is read as a number: quote it"),
    "a merge key": ("tasks:\n  a: &a {bash: x}\n  b: {<<: *a}\n", 3, "b", "a merge key: quote it"),
    "a tag": ("tasks:\n  a: {bash: !!python/object/apply:os.system [x]}\n", 2, "a", "are not allowed here"),
    "a tag of its own": ("tasks:\n  a: {bash: !mine x}\n", 2, "a", "tags such as !mine can't be used here"),
    "an answer": ("tasks:\n  a: {bash: x, on_interrupted: maybe}\n", 2, "a", "'rerun', 'fail' or 'ask'"),
    "a list": ("- a\n", 1, None, "expected a mapping with 'tasks', got a list"),
    "a text": ("hello\n", 1, None, "expected a mapping with 'tasks', got a text"),
    "several documents": ("tasks: {a: {bash: x}}\n---\nb\n", 2, None, "several documents; expected one"),
    "not YAML": ("tasks: {a: [\n", 2, None, "not YAML"),
    "a tab": ("tasks:\n\ta: x\n", 2, None, "not YAML"),
    "an alias bomb": (BOMB + "tasks: *i\n", 1, None, "once its aliases are written out"),
    "an alias of itself": ("tasks: &t\n  a: *t\n", 1, None, "an alias refers to what it is part of"),
    "an unknown alias": ("tasks: *nobody\n", 1, None, "undefined alias"),
    "empty": ("", None, None, "the file is empty"),
    "only comments": ("# nothing\n\n", None, None, "the file is empty"),
    "binary": (b"\x7fELF\x00\x01\xff\xfe" * 10, None, None, "the file is not UTF-8: byte 6"),
    "NUL": (b"tasks:\n  a: {bash: x\x00y}\n", 2, None, "control characters"),
    "very deep": ("[" * 10_000, None, None, "nested"),
    "rather deep": ("tasks: " + "[" * 60 + "]" * 60, 1, None, "nested more than 50 deep"),
}


@pytest.mark.parametrize(("text", "line", "task", "part"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_with_line_task_and_what_is_expected(
    tmp_path: Path, text: str | bytes, line: int | None, task: str | None, part: str
) -> None:
    refused = refusal(tmp_path, text)
    assert (refused.problems[0][:2], part in str(refused)) == ((line, task), True), str(refused)


def test_all_problems_of_a_file_are_told_at_once_in_line_order(tmp_path: Path) -> None:
    refused = refusal(tmp_path, "tasks:\n  a: {bash: 1}\n  b: {bsh: x}\n  c: {bash: x, timeout: no}\n")
    assert [problem[0] for problem in refused.problems] == [2, 3, 4]


def test_no_more_than_ten_problems_are_told(tmp_path: Path) -> None:
    refused = refusal(tmp_path, "tasks:\n" + "".join(f"  t{index}: {{bash: 1}}\n" for index in range(25)))
    assert len(refused.problems) == 11
    assert refused.problems[-1][2] == "… and 15 more"


def test_a_file_larger_than_any_workflow_is_refused(tmp_path: Path) -> None:
    refused = refusal(tmp_path, b"#" * (workflow.FILE_BYTES_MAX + 1))
    assert "larger than 1024 KiB" in str(refused)


def test_a_missing_file_a_folder_and_a_fifo_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, part in (("none", "No such file"), (".", "a regular file"), ("fifo", "a regular file")):
        with pytest.raises(WorkflowError, match=part):
            load_workflow(tmp_path / path)
    with pytest.raises(WorkflowError, match="regular file"):
        load_workflow(Path("/dev/zero"))
    with pytest.raises(WorkflowError, match="NUL"):
        load_workflow(Path("a\0b"))


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "tasks: {}")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may read everything, nobody may not
    try:
        with pytest.raises(WorkflowError, match="Permission denied"):
            load_workflow(path)
    finally:
        os.seteuid(user)


PIECES = st.sampled_from(
    [
        "tasks",
        ":",
        " ",
        "\n",
        "  ",
        "{",
        "}",
        "[",
        "]",
        "bash",
        "after",
        "a",
        "b",
        "&a",
        "*a",
        "!t",
        "|",
        "- ",
        "'",
        '"',
        "1",
        "\t",
    ]
)


@settings(max_examples=300, deadline=None)
@given(
    content=st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=25).map(lambda parts: "".join(parts).encode()))
)
def test_whatever_a_file_holds_it_is_a_workflow_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp(), content)
    try:
        assert load_workflow(path).tasks
    except WorkflowError as refused:
        assert refused.problems
