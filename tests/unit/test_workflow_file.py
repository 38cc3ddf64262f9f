"""Workflow files: what they mean, and that a bad one is named by file, line and task, whatever is wrong with it."""

from __future__ import annotations

import hashlib
import os
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ttasks import WorkflowError
from ttasks.cli import workflow
from ttasks.cli.workflow import Workflow, WorkflowTask, load_workflow


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "flow.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path, text: str) -> Workflow:
    return load_workflow(write(folder, textwrap.dedent(text)))


def task(folder: Path, fields: str) -> WorkflowTask:
    """Return the task `a` with these fields, written as in ``{…}``; it comes after a task `first`."""
    return load(folder, f"tasks:\n  first: {{bash: x}}\n  a: {{bash: x, {fields}}}\n").tasks["a"]


def refusal(folder: Path, text: str | bytes) -> WorkflowError:
    path = write(folder, textwrap.dedent(text) if isinstance(text, str) else text)
    with pytest.raises(WorkflowError) as refused:
        load_workflow(path)
    assert all(line.startswith(str(path)) for line in str(refused.value).splitlines())
    return refused.value


# --- what a good file means ------------------------------------------------------------------------------------------


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
            grace: 30
            wait_for_output: false
        """,
    )
    path = tmp_path / "flow.yaml"
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    build = WorkflowTask(
        name="build",
        title="build",
        kind="bash",
        payload="make",
        description="",
        after=(),
        finally_=False,
        required=True,
        timeout=None,
        cwd=None,
        env={},
        max_attempts=1,
        backoff=0.0,
        on_interrupted="rerun",
        grace=5.0,
        wait_for_output=True,
    )
    clean = WorkflowTask(
        name="clean",
        title="Clean up",
        kind="agent",
        payload="tidy up",
        description="afterwards",
        after=("build",),
        finally_=True,
        required=False,
        timeout=60,
        cwd=str(tmp_path / "sub"),
        env={"A": "b", "N": "1.10", "O": "0755"},
        max_attempts=2,
        backoff=0.5,
        on_interrupted="ask",
        grace=30,
        wait_for_output=False,
    )
    assert flow == Workflow(path, sha256, "Everything", 3, {"build": build, "clean": clean})


@pytest.mark.parametrize("kind", workflow.KINDS)
def test_a_task_has_the_kind_it_is_written_with(tmp_path: Path, kind: str) -> None:
    read = load(tmp_path, f"tasks:\n  a: {{{kind}: x}}\n").tasks["a"]
    assert (read.kind, read.payload) == (kind, "x")


def test_tasks_keep_the_order_of_the_file(tmp_path: Path) -> None:
    flow = load(tmp_path, "tasks: {z: {bash: x, after: [a]}, a: {bash: x}, m: {bash: x}}")
    assert list(flow.tasks) == ["z", "a", "m"]


def test_a_single_name_after_needs_no_list(tmp_path: Path) -> None:
    assert task(tmp_path, "after: first").after == ("first",)


def test_a_finally_task_without_after_comes_after_all_that_are_neither_finally_nor_after_it(tmp_path: Path) -> None:
    flow = load(
        tmp_path,
        """
        tasks:
          clean: {bash: x, finally: true}
          report: {bash: x, after: [clean]}
          send: {bash: x, after: [report, build]}
          build: {bash: x}
          test: {bash: x, after: [build]}
          notify: {bash: x, finally: true, after: [test]}
        """,
    )
    assert {name: task.after for name, task in flow.tasks.items()} == {
        "clean": ("build", "test"),
        "report": ("clean",),
        "send": ("report", "build"),
        "build": (),
        "test": ("build",),
        "notify": ("test",),
    }


def test_finally_tasks_alone_wait_for_nothing(tmp_path: Path) -> None:
    flow = load(tmp_path, "tasks: {a: {bash: x, finally: true}, b: {bash: x, finally: true}}")
    assert [task.after for task in flow.tasks.values()] == [(), ()]


def test_yes_is_a_boolean_as_in_yaml(tmp_path: Path) -> None:
    assert task(tmp_path, "finally: yes, required: no").required is False


def test_an_absolute_cwd_stays_as_it_is(tmp_path: Path) -> None:
    assert task(tmp_path, "cwd: /usr").cwd == "/usr"


def test_paths_are_absolute_when_the_file_is_named_by_a_relative_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "tasks:\n  a: {bash: x, cwd: sub}\n")
    monkeypatch.chdir(tmp_path)
    flow = load_workflow(Path("flow.yaml"))
    assert (flow.path, flow.tasks["a"].cwd) == (tmp_path / "flow.yaml", str(tmp_path / "sub"))


@pytest.mark.parametrize("number", ["1.10", "0755", "0x1F", "1_000", "1:30", "1e3", "-0", ".inf"])
def test_a_number_in_env_is_the_text_that_was_written(tmp_path: Path, number: str) -> None:
    assert task(tmp_path, f"env: {{N: {number}}}").env == {"N": number}


def test_block_scalars_and_any_script_come_through_verbatim(tmp_path: Path) -> None:
    flow = load(tmp_path, 'tasks:\n  é🙂:\n    bash: |\n      echo "ä"\n\n      echo 🙂 # not a comment\n')
    assert flow.tasks["é🙂"].payload == 'echo "ä"\n\necho 🙂 # not a comment\n'


def test_an_emoji_may_be_written_as_json_writes_it(tmp_path: Path) -> None:
    flow = load(tmp_path, r'{"tasks": {"a": {"bash": "echo \ud83d\ude42"}}}')
    assert flow.tasks["a"].payload == "echo 🙂"


def test_an_equals_sign_is_a_text(tmp_path: Path) -> None:
    assert task(tmp_path, "title: =").title == "="


def test_an_anchor_may_be_used_again(tmp_path: Path) -> None:
    flow = load(tmp_path, "tasks:\n  a: &a {bash: echo}\n  b: *a\n")
    assert flow.tasks["b"].payload == "echo"


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    assert load_workflow(write(tmp_path, b"\xef\xbb\xbftasks: {a: {bash: x}}")).tasks["a"].payload == "x"


def test_the_largest_values_are_allowed(tmp_path: Path) -> None:
    seconds, count = workflow.SECONDS_MAX, workflow.COUNT_MAX
    read = task(tmp_path, f"timeout: {seconds}, retries: {{max_attempts: {count}, backoff: {seconds}}}")
    assert (read.timeout, read.max_attempts, read.backoff) == (seconds, count, seconds)


# --- what is wrong with a bad one ------------------------------------------------------------------------------------

TENFOLD = [f"{name}: &{name} [{', '.join(['*' + before] * 10)}]\n" for before, name in pairwise("abcdefghi")]
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(TENFOLD)
LONG_TEXT_BOMB = f"a: &a {'x' * 9_999}\nb: [{'*a, ' * 999}]\n"
CHAIN = "a0: &a0 x\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 2_000))
CIRCLE = """
tasks:
  z: {bash: x, after: [b]}
  a: {bash: x, after: [c]}
  b: {bash: x, after: [a]}
  c: {bash: x, after: [b]}
"""
LONG_CIRCLE = "tasks:\n" + "".join(f"  t{n}: {{bash: x, after: t{(n + 1) % 500}}}\n" for n in range(500))


def a(*fields: str) -> str:
    """Return a file whose task `a` has these fields; the first is in line 3."""
    return "tasks:\n  a:\n" + "".join(f"    {field}\n" for field in fields)


# fmt: off
BAD: dict[str, tuple[str | bytes, int | None, str | None, str]] = {
    "unknown key": (a("bash: x", "tiemout: 3"), 4, "a", "unknown key 'tiemout': did you mean 'timeout'?"),
    "misspelt kind": (a("bsh: x"), 3, "a", "unknown key 'bsh': did you mean 'bash'?"),
    "unlike any key": (a("bash: x", "qqq: 3"), 4, "a", "'qqq': expected one of bash, powershell, prompt"),
    "unknown key at the top": ("taks:\n  a: 1\n", 1, None, "unknown key 'taks': did you mean 'tasks'?"),
    "unknown key in retries": (
        a("bash: x", "retries:", "  max: 3"),
        5,
        "a",
        "unknown key 'max': expected one of max_attempts, backoff",
    ),
    "no kind": (a("timeout: 3"), 2, "a", "expected one of bash, powershell, prompt, agent"),
    "two kinds": (a("prompt: y", "bash: x"), 4, "a", "has prompt and bash: expected one of them"),
    "an empty script": (a("bash: ''"), 3, "a", "'bash' has to be a text that is not empty, got nothing"),
    "nothing as script": (a("bash:"), 3, "a", "'bash' has to be a text that is not empty, got nothing"),
    "a number as script": (a("bash: 3"), 3, "a", "a text that is not empty, got 3: quote it"),
    "a list as script": (a("bash: [x]"), 3, "a", "'bash' has to be a text that is not empty, got a list"),
    "a number as title": (a("bash: x", "title: 010.5"), 4, "a", "'title' has to be a text, got 010.5: quote it"),
    "a date as title": ("title: 2026-01-01\n", 1, None, "2026-01-01 is read as a date: quote it"),
    # after
    "an unknown dependency": (
        "tasks:\n  abc: {bash: x}\n  b:\n    bash: x\n    after:\n      - abc\n      - abd\n",
        7,
        "b",
        "depends on 'abd', which is no task: did you mean 'abc'?",
    ),
    "a dependency unlike any task": (a("bash: x", "after: zzz"), 4, "a", "'zzz', which is no task: expected one of a"),
    "a task after itself": (a("bash: x", "after: [a]"), 4, "a", "depends on itself"),
    "a circle": (CIRCLE, 4, "a", "circular dependency: a after c after b after a"),
    "a long circle": (LONG_CIRCLE, 2, "t0", "t0 after t1 after t2 after t3 after t4"),
    "after is a number": (a("bash: x", "after: 3"), 4, "a", "'after' has to be a list of task names, got 3"),
    "after has a number": (a("bash: x", "after: [3]"), 4, "a", "each of 'after' has to be a task name, got 3: quote"),
    "after is nothing": (a("bash: x", "after:"), 4, "a", "'after' has to be a list of task names, got nothing"),
    # what is here twice
    "a task twice": ("tasks:\n  a: {bash: x}\n  a: {bash: y}\n", 3, "a", "'a' is here twice: the first is at line 2"),
    "a key twice": (a("bash: x", "bash: y"), 4, "a", "'bash' is here twice: the first is at line 3"),
    "a top key twice": ("title: x\ntitle: y\n", 2, None, "'title' is here twice: the first is at line 1"),
    "a variable twice": (a("bash: x", "env:", "  A: b", "  A: c"), 6, "a", "'A' is here twice: the first is at line 5"),
    # numbers and booleans
    "a text as time-out": (a("bash: x", "timeout: '60'"), 4, "a", "'timeout' has to be a number greater than 0"),
    "shown as written": (a("bash: x", "timeout: abc"), 4, "a", "got 'abc'"),
    "no time": (a("bash: x", "timeout: 0"), 4, "a", "got 0"),
    "a boolean as time": (a("bash: x", "timeout: yes"), 4, "a", "got yes"),
    "endless": (a("bash: x", "timeout: .inf"), 4, "a", "got .inf"),
    "endless in capitals": (a("bash: x", "timeout: -.INF"), 4, "a", "got -.INF"),
    "no number": (a("bash: x", "timeout: .nan"), 4, "a", "got .nan"),
    "eleven years": (a("bash: x", "timeout: 346896000"), 4, "a", "at most 315360000"),
    "a huge time-out": (a("bash: x", f"timeout: {'9' * 400}"), 4, "a", "'timeout' has to be a number greater than 0"),
    "an octal number": (a("bash: x", "timeout: 010"), 4, "a", "010 has to be a plain number such as 60 or 0.5"),
    "a base-60 number": (a("bash: x", "timeout: 1:30"), 4, "a", "1:30 has to be a plain number such as 60 or 0.5"),
    "a boolean as count": ("max_workers: true\n", 1, None, "'max_workers' has to be a whole number from 1"),
    "no workers": ("max_workers: 0\n", 1, None, "a whole number from 1 to 1000000, got 0"),
    "half a worker": ("max_workers: 1.5\n", 1, None, "'max_workers' has to be a whole number from 1"),
    "workers beyond SQLite": (f"max_workers: {2**63}\n", 1, None, "a whole number from 1 to 1000000"),
    "a number beyond Python": (f"max_workers: {'9' * 5_000}\n", 1, None, "has to be a plain number"),
    "no attempt": (a("bash: x", "retries: {max_attempts: 0}"), 4, "a", "'max_attempts' has to be a whole number"),
    "a boolean of attempts": (a("bash: x", "retries: {max_attempts: true}"), 4, "a", "has to be a whole number"),
    "a wait before now": (a("bash: x", "retries: {backoff: -1}"), 4, "a", "'backoff' has to be a number of seconds"),
    "an endless wait": (a("bash: x", "retries: {backoff: .inf}"), 4, "a", "'backoff' has to be a number"),
    "a number of retries": (a("bash: x", "retries: 3"), 4, "a", "a mapping of max_attempts and backoff, got 3"),
    "a text as boolean": (a("bash: x", "finally: 'yes'"), 4, "a", "'finally' has to be true or false, got 'yes'"),
    "a number as boolean": (a("bash: x", "finally: 1"), 4, "a", "'finally' has to be true or false, got 1"),
    "an optional task": (a("bash: x", "required: no"), 4, "a", "required: false is only valid with finally: true"),
    "no grace": (a("bash: x", "grace: -1"), 4, "a", "has to be a number of seconds from 0 to"),
    "no flag": (a("bash: x", "wait_for_output: maybe"), 4, "a", "has to be true or false, got 'maybe'"),
    "an answer": (a("bash: x", "on_interrupted: maybe"), 4, "a", "has to be rerun, fail or ask, got 'maybe'"),
    # cwd and env
    "an empty cwd": (a("bash: x", "cwd: ''"), 4, "a", "'cwd' has to be a text that is not empty"),
    "a list as env": (a("bash: x", "env: [A]"), 4, "a", "a mapping such as {NAME: value}, got a list"),
    "a boolean in env": (a("bash: x", "env: {A: yes}"), 4, "a", "env 'A' has to be a text or a number, got yes: quote"),
    "nothing in env": (a("bash: x", "env:", "  B: c", "  A:"), 6, "a", "a text or a number, got nothing: quote it"),
    "a list in env": (a("bash: x", "env: {A: [b]}"), 4, "a", "a text or a number, got a list: quote it"),
    "a date in env": (a("bash: x", "env: {A: 2020-01-01}"), 4, "a", "2020-01-01 is read as a date: quote it"),
    "an impossible variable": (a("bash: x", "env: {'A=B': c}"), 4, "a", "no name may be empty or hold '='"),
    "no variable": (a("bash: x", "env: {'': c}"), 4, "a", "no name may be empty or hold '='"),
    # tasks
    "a text as task": ("tasks:\n  a: make\n", 2, "a", "has to be a mapping, such as a: {bash: make}, got 'make'"),
    "nothing as task": ("tasks:\n  a:\n", 2, "a", "such as a: {bash: make}, got nothing"),
    "a list as task": ("tasks:\n  a: [x]\n", 2, "a", "such as a: {bash: make}, got a list"),
    "a list of tasks": ("tasks:\n  - x\n", 1, None, "'tasks' has to be a mapping such as {build: {bash: make}}, got"),
    "no task": ("tasks: {}\n", 1, None, "such as {build: {bash: make}}, got nothing"),
    "nothing as tasks": ("tasks:\n", 1, None, "such as {build: {bash: make}}, got nothing"),
    "no tasks": ("title: x\n", 1, None, "'tasks' is missing: expected a mapping"),
    "an empty name": ("tasks:\n  '': {bash: x}\n", 2, None, "a task's name may not be empty"),
    # keys and values that YAML reads as something else
    "a key that is a boolean": ("tasks:\n  on: {bash: x}\n", 2, None, "'on' is read as a boolean: quote it"),
    "a key that is a number": ("tasks:\n  1: {bash: x}\n", 2, None, "'1' is read as a number: quote it"),
    "a key that is a date": (a("2020-01-01: x"), 3, "a", "'2020-01-01' is read as a date: quote it"),
    "a key that is null": (a("~: x"), 3, "a", "'~' is read as null: quote it"),
    "a key that is a list": (a("? [x]", ": y"), 3, "a", "a key has to be a text, but here it is a list or a mapping"),
    "a merge key": ("tasks:\n  a: &a {bash: x}\n  b: {<<: *a}\n", 3, "b", "merge keys are not allowed"),
    "a tag that runs things": (a("bash: !!python/object/apply:os.system [x]"), 3, "a", "!!python/object/apply:os.s"),
    "a tag of its own": (a("bash: !mine x"), 3, "a", "!mine: tags are not allowed in a workflow file"),
    "a harmless tag": (a("bash: !!str 12"), 3, "a", "!!str: tags are not allowed in a workflow file"),
    "no tag but its sign": (a("bash: ! 12"), 3, "a", "!: tags are not allowed in a workflow file"),
    "a tag before a key": (a("!!str bash: x"), 3, "a", "!!str: tags are not allowed in a workflow file"),
    "a tag before a mapping": ("tasks: !!set {a}\n", 1, None, "!!set: tags are not allowed in a workflow file"),
    "an escaped NUL": (a(r'bash: "x\0y"'), 3, "a", "a text may not hold U+0000, which is no character"),
    "half a surrogate pair": (a(r'bash: "x\ud83dy"'), 3, "a", "a text may not hold U+D83D, which is no character"),
    "half a pair as name": ('tasks:\n  "\\ud83d": {bash: x}\n', 2, None, "a text may not hold U+D83D"),
    # not the YAML that a workflow is
    "a list": ("- a\n", 1, None, "expected a mapping with 'tasks', got a list"),
    "a text": ("hello\n", 1, None, "expected a mapping with 'tasks', got 'hello'"),
    "several documents": ("tasks: {a: {bash: x}}\n---\nb\n", 2, None, "several documents; expected one"),
    "not YAML": ("tasks: {a: [\n", 2, None, "not YAML: "),
    "a tab": ("tasks:\n\ta: x\n", 2, None, "cannot start any token (column 1)"),
    "an escape of nothing": (a(r'bash: "\UFFFFFFFF"'), 3, None, "not YAML: an escape"),
    "a version of nothing": ("%YAML 2.0\n---\na\n", 1, None, "not YAML: found incompatible YAML document"),
    "an endless version": (f"%YAML 1.{'1' * 5_000}\n---\na\n", 1, None, "not YAML: "),
    "an unknown alias": ("tasks: *nobody\n", 1, None, "undefined alias"),
    "an alias of itself": ("tasks: &t\n  a: *t\n", 1, None, "an alias refers to what it is part of"),
    "an alias bomb": (BOMB + "tasks: *i\n", 1, None, "more than 100000 values once its aliases are written out"),
    "a bomb of one long text": (LONG_TEXT_BOMB, 1, None, "more than 4194304 characters once its aliases are"),
    "a chain of aliases": (CHAIN, 1, None, "nested more than 50 deep"),
    "too many values": (f"tasks: [{'1,' * 100_001}]", 1, None, "more than 100000 keys and values"),
    "empty": ("", None, None, "the file is empty: expected a mapping with 'tasks'"),
    "only comments": ("# nothing\n\n", None, None, "the file is empty: expected a mapping with 'tasks'"),
    "only the start of a document": ("---\n", None, None, "the file is empty: expected a mapping with 'tasks'"),
    "binary": (b"\x7fELF\x00\x01\xff\xfe" * 10, None, None, "the file is not UTF-8: byte 6 can't be read"),
    "UTF-16": ("tasks: {}".encode("utf-16"), None, None, "the file is not UTF-8: byte 0 can't be read"),
    "NUL": (b"tasks:\n  a: {bash: x\x00y}\n", 2, None, "does not allow the control character U+0000"),
    "an escape code": ("tasks:\n  a: {bash: \x1b[2J}\n", 2, None, "does not allow the control character U+001B"),
    "very deep": ("[" * 10_000, 1, None, "nested more than 50 deep"),
    "very deep in blocks": ("- " * 10_000, 1, None, "nested more than 50 deep"),
    "rather deep": ("tasks: " + "[" * 60 + "]" * 60, 1, None, "nested more than 50 deep"),
}
# fmt: on


@pytest.mark.parametrize(("text", "line", "name", "part"), BAD.values(), ids=BAD.keys())
def test_a_bad_file_is_refused_with_line_task_and_what_is_expected(
    tmp_path: Path, text: str | bytes, line: int | None, name: str | None, part: str
) -> None:
    refused = refusal(tmp_path, text)
    found = [problem[:2] == (line, name) and part in problem[2] for problem in refused.problems]
    assert any(found), str(refused)


@pytest.mark.parametrize("text", ["tasks:\n  a: {bsh: x}\n", CIRCLE, "tasks:\n  a: make\n", a("bash:")])
def test_one_mistake_is_one_problem(tmp_path: Path, text: str) -> None:
    assert len(refusal(tmp_path, text).problems) == 1


def test_all_problems_of_a_file_are_told_at_once_in_line_order(tmp_path: Path) -> None:
    refused = refusal(
        tmp_path,
        """\
        tasks:
          a: {bash: 1}
          b: {bsh: x}
          c: {bash: x, timeout: no}
          d: {bash: x, after: [b, nobody]}
          e: {bash: x, prompt: y}
          f: {bash: x, after: f}
          g: {after: []}
        max_workers: 0
        """,
    )
    assert [problem[0] for problem in refused.problems] == [2, 3, 4, 5, 6, 7, 8, 9]


def test_no_more_than_ten_problems_are_told(tmp_path: Path) -> None:
    refused = refusal(tmp_path, "tasks:\n" + "".join(f"  t{n}: {{bash: 1}}\n" for n in range(25)))
    assert len(refused.problems) == 11
    assert refused.problems[-1] == (None, None, "… and 15 more")


@pytest.mark.parametrize(
    "text",
    [
        'tasks:\n  "a\\nb": {bash: x, after: "c\\nd"}\n',
        'tasks:\n  a: {bash: x, "k\\r": 1, "k\\u2028": 1}\n',
        'tasks:\n  a: {bash: x, env: {"E\\n=": b}}\n',
        'tasks:\n  "a\\n": make\n  "b\\e[2J": {}\n',
        '"a\\n": &"\n',
        f"tasks:\n  {'n' * 120}: {{bash: x, {'k' * 120}: 1, timeout: {'v' * 10_000}}}\n",
    ],
)
def test_a_problem_is_one_short_printable_line_whatever_the_names(tmp_path: Path, text: str) -> None:
    refused = refusal(tmp_path, text)
    lines = str(refused).splitlines()
    assert len(lines) == len(refused.problems)
    assert all(line.isprintable() and len(line) < len(str(tmp_path)) + 400 for line in lines)


# --- what is no file -------------------------------------------------------------------------------------------------


def test_a_file_larger_than_any_workflow_is_refused(tmp_path: Path) -> None:
    refused = refusal(tmp_path, b"#" * (workflow.FILE_BYTES_MAX + 1))
    assert "larger than 1024 KiB" in str(refused)


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    text = b"tasks: {a: {bash: x}}\n#"
    path = write(tmp_path, text + b"#" * (workflow.FILE_BYTES_MAX - len(text)))
    assert load_workflow(path).tasks["a"].payload == "x"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WorkflowError, match=r"none\.yaml: the workflow file can't be read: No such file"):
        load_workflow(tmp_path / "none.yaml")


@pytest.mark.parametrize("name", [".", "/dev/zero", "/dev/null", "fifo"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(WorkflowError, match="has to be a regular file"):
        load_workflow(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    with pytest.raises(WorkflowError, match="no file can have this name"):
        load_workflow(Path(name))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="only Linux has a file that can't be read")
def test_a_file_that_fails_while_it_is_read_is_refused() -> None:
    with pytest.raises(WorkflowError, match="the workflow file can't be read: Input/output error"):
        load_workflow(Path("/proc/self/mem"))


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


def test_a_refused_file_leaves_no_descriptor_open(tmp_path: Path) -> None:
    def descriptors() -> set[str]:
        return set(os.listdir("/dev/fd"))

    before = descriptors()
    for path in (tmp_path, write(tmp_path, "tasks: ["), write(tmp_path, b"\xff")):
        with pytest.raises(WorkflowError):
            load_workflow(path)
    assert descriptors() == before


# --- whatever comes --------------------------------------------------------------------------------------------------

# fmt: off
PIECES = [
    *("tasks:", "title:", "bash:", "after:", "env:", "timeout:", "retries:", "finally:", "required:", "cwd:"),
    *("?", ":", "-", "|", ">", "&", "*", "!", "%", "@", "#", ",", "{", "}", "[", "]", "'", '"', "<<", "=", "~"),
    *("&a", "*a", "!t", "!!str", "yes", "1", "1.5", ".nan", "0x1", "1:30", "2020-01-01", "---", "...", "%YAML"),
    *("\\x", "\\ud800", "\\UFFFFFFFF", "é", "🙂", " ", "  ", "\n", "\n  ", "\t", "a", "b"),
]
# fmt: on
SOUP = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)
NUMBERS = st.integers() | st.floats()
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5) | st.sampled_from("ab")
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = ("bash", "prompt", "after", "finally", "required", "timeout", "cwd", "env", "retries", "title")
TASKS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5) | VALUES
FILES = st.fixed_dictionaries({"tasks": st.dictionaries(st.sampled_from("abc"), TASKS, max_size=3)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for all examples of a property: each writes its file again."""
    return tmp_path_factory.mktemp("any")


def holds_or_is_refused(folder: Path, content: bytes) -> None:
    path = write(folder, content)
    try:
        flow = load_workflow(path)
    except WorkflowError as refused:
        assert refused.path == path
        assert 0 < len(refused.problems) <= workflow.PROBLEMS_MAX + 1
        assert all(line.startswith(str(path)) for line in str(refused).splitlines())
    else:
        assert flow.tasks
        assert all(parent in flow.tasks for read in flow.tasks.values() for parent in read.after)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_a_workflow_or_refused(folder: Path, content: bytes) -> None:
    holds_or_is_refused(folder, content)


@settings(max_examples=400, deadline=None)
@given(content=SOUP)
@example(content='"\\UFFFFFFFF"')
@example(content="? &a [*a]\n: x")
def test_any_pieces_of_yaml_are_a_workflow_or_refused(folder: Path, content: str) -> None:
    holds_or_is_refused(folder, content.encode())


@settings(max_examples=300, deadline=None)
@given(data=FILES)
def test_any_values_in_a_task_are_a_workflow_or_refused(folder: Path, data: dict[str, object]) -> None:
    content = yaml.safe_dump(data, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
    holds_or_is_refused(folder, content)
