"""Workflow files: YAML read without surprises, checked with pydantic, every complaint with its line.

PyYAML composes the file to nodes, which know their lines, and constructs nothing: no tag is ever acted on.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ttasks.display import printable
from ttasks.errors import WorkflowError
from ttasks.state.task import GRACE_S

FILE_BYTES_MAX: Final = 1024 * 1024
NODES_MAX: Final = 100_000
"""How many keys and values a file may come to, also once its aliases are written out: what stops an alias bomb."""
CHARS_MAX: Final = 4 * FILE_BYTES_MAX
"""How long its texts may be together once its aliases are written out: one long text is a bomb as well."""
DEPTH_MAX: Final = 50
COUNT_MAX: Final = 1_000_000
SECONDS_MAX: Final = 10 * 365 * 86_400
"""Ten years: more than the timers of some platforms can wait for is refused here, not in the middle of a run."""
PROBLEMS_MAX: Final = 10
NAMES_SHOWN_MAX: Final = 10
CHARS_SHOWN_MAX: Final = 60
"""How much of a name or value a message shows. Longer ones are not searched for when a name is misspelt."""

Kind = Literal["bash", "powershell", "prompt", "agent"]
KINDS: Final[tuple[Kind, ...]] = ("bash", "powershell", "prompt", "agent")
Names = Collection[str]
Place = tuple[str, ...]
"""The keys and indexes that lead to a value, such as ``("tasks", "build", "after", "0")``."""


@dataclass(frozen=True)
class WorkflowTask:
    """One task of a workflow file. `cwd` is absolute (None: the runner's), `timeout` and `backoff` are seconds."""

    name: str
    title: str
    kind: Kind
    payload: str
    description: str
    after: tuple[str, ...]
    finally_: bool
    required: bool
    timeout: float | None
    cwd: str | None
    env: dict[str, str]
    max_attempts: int
    backoff: float
    on_interrupted: Literal["rerun", "fail", "ask"]
    grace: float
    wait_for_output: bool


@dataclass(frozen=True)
class Workflow:
    """A workflow file: its absolute path, the SHA-256 (hex) of its bytes, and its tasks by name in file order."""

    path: Path
    sha256: str
    title: str | None
    max_workers: int | None
    tasks: dict[str, WorkflowTask]


# --- what a file may hold: a field's description ends the sentence "… has to be …" -----------------------------------

_Text = Annotated[str, Field(description="a text")]
_Filled = Annotated[str, Field(min_length=1, description="a text that is not empty")]
_Flag = Annotated[bool, Field(description="true or false")]
_Count = Annotated[int, Field(ge=1, le=COUNT_MAX, description=f"a whole number from 1 to {COUNT_MAX}")]
_Seconds = Annotated[float, Field(allow_inf_nan=False, le=SECONDS_MAX)]
_Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
_NOT_GIVEN: Final[Any] = None  # defaults are not validated: only a key that is left out gives None


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _RetriesSpec(_Spec):
    max_attempts: _Count = 1
    backoff: _Seconds = Field(default=0.0, ge=0, description=f"a number of seconds from 0 to {SECONDS_MAX}")


class _TaskSpec(_Spec):
    bash: _Filled = ""
    powershell: _Filled = ""
    prompt: _Filled = ""
    agent: _Filled = ""
    title: _Text = _NOT_GIVEN
    description: _Text = ""
    after: _Names = Field(default=[], description="a list of task names")
    finally_: _Flag = Field(default=False, alias="finally")
    required: _Flag = True
    timeout: _Seconds = Field(
        default=_NOT_GIVEN,
        gt=0,
        description=f"a number greater than 0 (seconds, at most {SECONDS_MAX})",
    )
    cwd: _Filled = _NOT_GIVEN
    env: dict[str, str] = Field(default={}, description="a mapping such as {NAME: value}")
    retries: _RetriesSpec = Field(default=_RetriesSpec(), description="a mapping of max_attempts and backoff")
    on_interrupted: Literal["rerun", "fail", "ask"] = Field(default="rerun", description="rerun, fail or ask")
    grace: _Seconds = Field(default=GRACE_S, ge=0, description=f"a number of seconds from 0 to {SECONDS_MAX}")
    wait_for_output: _Flag = True


class _FileSpec(_Spec):
    title: _Text = _NOT_GIVEN
    max_workers: _Count = _NOT_GIVEN
    tasks: dict[str, Any] = Field(min_length=1, description="a mapping such as {build: {bash: make}}")


_AnySpec = TypeVar("_AnySpec", bound=_Spec)


def load_workflow(path: Path) -> Workflow:
    """Return the workflow in the file at `path`.

    Raises:
        WorkflowError: the file can't be read, is not YAML, or not a workflow; it names file, line and task, and holds
            all problems of the latter kind, by line, up to `PROBLEMS_MAX`. Nothing was run or written.
    """
    content = _read(path)
    file = _File(path, content)
    data = file.plain()
    whole = _checked(file, _FileSpec, data, ())
    named = data["tasks"] if isinstance(data.get("tasks"), dict) else {}
    specs = {name: _task_spec(file, name, raw) for name, raw in named.items()}
    _check_graph(file, {name: spec.after if spec is not None else [] for name, spec in specs.items()})
    file.settle()
    assert whole is not None
    path = path.absolute()
    tasks = {name: _task(name, spec, path.parent) for name, spec in specs.items() if spec is not None}
    return Workflow(path, hashlib.sha256(content).hexdigest(), whole.title, whole.max_workers, _cleanups_last(tasks))


# --- from bytes to nodes ---------------------------------------------------------------------------------------------


def _refusal(path: Path, line: int | None, text: str) -> WorkflowError:
    return WorkflowError(path, [(line, None, text)])


def _read(path: Path) -> bytes:
    try:
        # NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                what = "a workflow file has to be a regular file, not a folder, pipe or device"
                raise _refusal(path, None, what)
            with open(descriptor, "rb", closefd=False) as file:
                # None: some files of /proc have nothing to say yet.
                content = file.read(FILE_BYTES_MAX + 1) or b""
        finally:
            os.close(descriptor)
    except WorkflowError:
        raise
    except OSError as error:
        raise _refusal(path, None, f"the workflow file can't be read: {error.strerror}") from None
    except ValueError:
        raise _refusal(path, None, "no file can have this name: it holds NUL, or is no text") from None
    if len(content) > FILE_BYTES_MAX:
        text = f"the file is larger than {FILE_BYTES_MAX // 1024} KiB, which no workflow file needs to be"
        raise _refusal(path, None, text)
    return content


class _Composer(yaml.SafeLoader):
    """PyYAML's composer, made to stop at our limits and to remember the tags that were written (`tags`, by node id)."""

    def __init__(self, path: Path, text: str) -> None:
        super().__init__(text)
        self.tags: dict[int, str] = {}
        self._path = path
        self._depth = self._count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        line = event.start_mark.line + 1
        self._depth += 1
        self._count += 1
        if self._depth > DEPTH_MAX:
            raise _refusal(self._path, line, f"the file is nested more than {DEPTH_MAX} deep")
        if self._count > NODES_MAX:
            raise _refusal(self._path, line, f"the file holds more than {NODES_MAX} keys and values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if getattr(event, "tag", None) is not None:
            self.tags[id(node)] = event.tag.replace("tag:yaml.org,2002:", "!!")
        return node


def _composed(path: Path, content: bytes) -> tuple[yaml.Node, dict[int, str]]:
    """Return the root node, and the tags that were written, by the id of their node."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        what = f"the file is not UTF-8: byte {error.start} can't be read as text"
        raise _refusal(path, None, what) from None
    try:
        composer = _Composer(path, text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        what = f"the file is not text: YAML does not allow the control character U+{ord(text[error.position]):04X}"
        raise _refusal(path, line, what) from None
    try:
        node = composer.get_single_node()
    except WorkflowError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark or composer.get_mark()
        what = ", ".join(part for part in (error.context, error.problem) if part)
        if "expected a single document" in what:
            raise _refusal(path, mark.line + 1, "the file holds several documents; expected one") from None
        what = f"not YAML: {printable(what)} (column {mark.column + 1})"
        raise _refusal(path, mark.line + 1, what) from None
    except (ValueError, OverflowError):  # "\UFFFFFFFF": PyYAML 6 gives any number to chr() or int()
        mark = composer.get_mark()
        what = f"not YAML: an escape or version that is out of range (column {mark.column + 1})"
        raise _refusal(path, mark.line + 1, what) from None
    if node is None or node.tag == _NULL:
        raise _refusal(path, None, "the file is empty: expected a mapping with 'tasks'")
    return node, composer.tags


# --- from nodes to data ----------------------------------------------------------------------------------------------

_STR, _NULL, _BOOL, _INT, _FLOAT, _DATE, _MERGE = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "null", "bool", "int", "float", "timestamp", "merge")
)
_READ_AS: Final = {_NULL: "null", _BOOL: "a boolean", _INT: "a number", _FLOAT: "a number", _DATE: "a date"}
_NO_TEXT: Final = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class _Problem:
    """A problem; a hint which of the names `known` was meant by `word` is looked for when it is told, if it ever is."""

    line: int
    task: str | None
    text: str
    word: str = ""
    known: Names = ()

    def told(self) -> tuple[int, str | None, str]:
        """Return it as `WorkflowError` takes it."""
        task = _short(self.task) if self.task is not None else None
        if not self.known:
            return self.line, task, self.text
        candidates = [name for name in self.known if len(name) <= CHARS_SHOWN_MAX]
        near = difflib.get_close_matches(self.word[:CHARS_SHOWN_MAX], candidates, 1)
        if near:
            return self.line, task, f"{self.text}: did you mean '{printable(near[0])}'?"
        return self.line, task, f"{self.text}: expected one of {_listed(self.known, ', ')}"


def _short(text: str) -> str:
    return printable(text[:CHARS_SHOWN_MAX]) + ("…" if len(text) > CHARS_SHOWN_MAX else "")


def _listed(names: Names, separator: str) -> str:
    shown = separator.join(_short(name) for name in islice(names, NAMES_SHOWN_MAX))
    more = len(names) - NAMES_SHOWN_MAX
    return shown if more <= 0 else f"{shown} … and {more} more"


class _File:
    """A file as plain data, where each value of it stands, and what is wrong with it so far."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        self._root, self._tags = _composed(path, content)
        self._nodes: dict[Place, tuple[int, yaml.Node]] = {}
        self._problems: list[_Problem] = []
        self._count = self._chars = 0

    def note(self, place: Place, text: str, line: int = 0, word: str = "", known: Names = ()) -> None:
        """Remember a problem at `place`, or in it at `line`; `word` and `known` are those of `_Problem`."""
        task = place[1] or None if len(place) > 1 and place[0] == "tasks" else None
        at = place
        while at not in self._nodes:
            at = at[:-1]
        self._problems.append(_Problem(line or self._nodes[at][0], task, text, word, known))

    def settle(self) -> None:
        """Raise WorkflowError if there are problems."""
        if not self._problems:
            return
        self._problems.sort(key=lambda problem: problem.line)
        told = [problem.told() for problem in self._problems[:PROBLEMS_MAX]]
        more = len(self._problems) - len(told)
        rest = [(None, None, f"… and {more} more")] if more else []
        raise WorkflowError(self._path, [*told, *rest])

    def plain(self) -> dict[str, Any]:
        """Return the file as mappings, lists, texts, numbers and booleans; refuse what YAML has beyond them."""
        data = self._plain(self._root, (), frozenset())
        if not self._problems and not isinstance(data, dict):
            self.note((), f"expected a mapping with 'tasks', got {self.shown(())}")
        self.settle()
        assert isinstance(data, dict)
        return data

    def shown(self, place: Place) -> str:
        """Return what was written at `place`, or what kind of thing."""
        node = self._nodes[place][1]
        if not node.value:
            return "nothing"
        if isinstance(node, yaml.ScalarNode):
            return f"'{_short(node.value)}'" if node.tag == _STR else _short(node.value)
        return "a mapping" if isinstance(node, yaml.MappingNode) else "a list"

    def is_quotable(self, place: Place) -> bool:
        """True when what was written at `place` is a boolean or number: what would be a text with quotes."""
        return self._nodes[place][1].tag in (_BOOL, _INT, _FLOAT)

    def _plain(self, node: yaml.Node, place: Place, above: frozenset[int]) -> Any:
        line = node.start_mark.line + 1
        self._count += 1
        if self._count > NODES_MAX:
            text = f"the file comes to more than {NODES_MAX} values once its aliases are written out"
            raise _refusal(self._path, line, text)
        if id(node) in above:
            raise _refusal(self._path, line, "an alias refers to what it is part of")
        if len(place) >= DEPTH_MAX:
            raise _refusal(self._path, line, f"the file is nested more than {DEPTH_MAX} deep")
        self._nodes.setdefault(place, (line, node))
        if id(node) in self._tags:
            self.note(place, f"{_short(self._tags[id(node)])}: tags are not allowed in a workflow file", line)
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place, above | {id(node)})
        if isinstance(node, yaml.SequenceNode):
            inside = above | {id(node)}
            return [self._plain(item, (*place, str(index)), inside) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, place, line)

    def _mapping(self, node: yaml.MappingNode, place: Place, above: frozenset[int]) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = self._key(key, place, line)
            if name is None:
                continue
            at = (*place, name)
            if name in data:
                first = self._nodes[at][0]
                self.note(at, f"'{_short(name)}' is here twice: the first is at line {first}", line)
                continue
            self._nodes[at] = (line, value)
            data[name] = self._plain(value, at, above)
        return data

    def _key(self, key: yaml.Node, place: Place, line: int) -> str | None:
        if id(key) in self._tags:
            self.note(place, f"{_short(self._tags[id(key)])}: tags are not allowed in a workflow file", line)
        elif not isinstance(key, yaml.ScalarNode):
            self.note(place, "a key has to be a text, but here it is a list or a mapping", line)
        elif key.tag == _MERGE:
            self.note(place, "'<<': merge keys are not allowed in a workflow file, write the keys out", line)
        elif key.tag in _READ_AS:
            what = f"'{_short(key.value)}' is read as {_READ_AS[key.tag]}"
            self.note(place, f"a key has to be a text, but {what}: quote it", line)
        else:
            return self._text(key.value, place, line)
        return None

    def _scalar(self, node: yaml.ScalarNode, place: Place, line: int) -> Any:
        text, tag = node.value, node.tag
        if tag == _BOOL:
            return yaml.SafeLoader.bool_values[text.lower()]
        if tag == _NULL:
            return None
        if tag == _DATE:
            self.note(place, f"{_short(text)} is read as a date: quote it if it is a text", line)
            return None
        is_env = len(place) == 4 and place[0] == "tasks" and place[2] == "env"
        if tag not in (_INT, _FLOAT) or is_env:  # in env a number stays as it was written: 1.10, 0755
            return self._text(text, place, line)
        try:
            return _number(text, tag)
        except ValueError:
            what = "has to be a plain number such as 60 or 0.5, or quoted if it is a text"
            self.note(place, f"{_short(text)} {what}", line)
            return None

    def _text(self, text: str, place: Place, line: int) -> str | None:
        self._chars += len(text)
        if self._chars > CHARS_MAX:
            what = f"the file comes to more than {CHARS_MAX} characters once its aliases are written out"
            raise _refusal(self._path, line, what)
        # JSON writes an emoji as two escapes, a surrogate pair: PyYAML leaves it one.
        joined = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if wrong := _NO_TEXT.search(joined):
            self.note(place, f"a text may not hold U+{ord(wrong[0]):04X}, which is no character", line)
            return None
        return joined


def _number(text: str, tag: str) -> float:
    """Return a decimal number. Not YAML 1.1's octal 010 and base-60 1:30: few who write them mean 8 and 90."""
    if tag == _FLOAT:
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    if re.match(r"[-+]?0[0-9_]", text):
        raise ValueError(text)
    return int(text)


# --- from data to a workflow -----------------------------------------------------------------------------------------


def _expected(spec: type[_Spec]) -> dict[str, str]:
    """Return what each key of a mapping has to be."""
    return {field.alias or name: field.description or "" for name, field in spec.model_fields.items()}


def _checked(file: _File, model: type[_AnySpec], data: dict[str, Any], place: Place) -> _AnySpec | None:
    """Return `data` as a `model`; None when it isn't one, and why is noted."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        for found in error.errors(include_url=False, include_input=False):
            _note_invalid(file, model, found["type"], place, tuple(str(part) for part in found["loc"]))
    return None


def _note_invalid(file: _File, model: type[_Spec], error: str, place: Place, inside: Place) -> None:
    at, key = (*place, *inside), inside[-1]
    is_entry = len(inside) > 1 and inside[0] in ("env", "after")
    expected = _expected(_RetriesSpec if inside[0] == "retries" and len(inside) > 1 else model)
    if error == "extra_forbidden":
        file.note(at, f"unknown key '{_short(key)}'", word=key, known=expected)
    elif error == "missing":
        file.note(at, f"'{key}' is missing: expected {expected[key]}")
    elif is_entry and inside[0] == "env":
        file.note(at, f"env '{_short(key)}' has to be a text or a number, got {file.shown(at)}: quote it")
    else:
        what = "a task name" if is_entry else expected[key]
        name = f"each of '{inside[0]}'" if is_entry else f"'{key}'"
        hint = ": quote it" if what.startswith(("a text", "a task name")) and file.is_quotable(at) else ""
        file.note(at, f"{name} has to be {what}, got {file.shown(at)}{hint}")


def _task_spec(file: _File, name: str, raw: object) -> _TaskSpec | None:
    """Return the task `name`, or None; what is wrong with it is noted."""
    place = ("tasks", name)
    if name == "":
        file.note(place, "a task's name may not be empty")
    if not isinstance(raw, dict):
        example = f"such as {_short(name)}: {{bash: make}}"
        file.note(place, f"a task has to be a mapping, {example}, got {file.shown(place)}")
        return None
    given = [key for key in raw if key in KINDS]
    if len(given) > 1:
        file.note((*place, given[1]), f"has {' and '.join(given)}: expected one of them")
    elif not given and raw.keys() <= _expected(_TaskSpec).keys():  # else the kind may be what is misspelt
        file.note(place, f"does not say what to do: expected one of {', '.join(KINDS)}")
    if raw.get("required") is False and raw.get("finally", False) is False:
        file.note((*place, "required"), "required: false is only valid with finally: true")
    spec = _checked(file, _TaskSpec, raw, place)
    for variable in spec.env if spec is not None else ():
        if variable == "" or "=" in variable:
            text = f"env '{_short(variable)}' can't be set: no name may be empty or hold '='"
            file.note((*place, "env", variable), text)
    return spec


def _check_graph(file: _File, after: Mapping[str, list[str]]) -> None:
    """Note dependencies that are no task, and a circle of those that are."""
    parents: dict[str, list[str]] = {}
    for name, wanted in after.items():
        parents[name] = [parent for parent in wanted if parent in after and parent != name]
        for index, parent in enumerate(wanted):
            place = ("tasks", name, "after", str(index))
            if parent == name:
                file.note(place, "depends on itself")
            elif parent not in after:
                file.note(place, f"depends on '{_short(parent)}', which is no task", word=parent, known=after)
    try:
        TopologicalSorter(parents).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1][:0:-1]  # each is after the next one, and the last after the first
        members = set(circle)
        start = circle.index(next(name for name in after if name in members))
        circle = circle[start:] + circle[:start]
        names = _listed(circle, " after ")
        file.note(("tasks", circle[0], "after"), f"circular dependency: {names} after {_short(circle[0])}")


def _cleanups_last(tasks: Mapping[str, WorkflowTask]) -> dict[str, WorkflowTask]:
    """Let each finally task without `after` come after all that are not finally and do not come after it."""
    children: dict[str, list[str]] = {}
    for name, task in tasks.items():
        for parent in task.after:
            children.setdefault(parent, []).append(name)
    placed = dict(tasks)
    for name, task in tasks.items():
        if not task.finally_ or task.after:
            continue
        behind, left = {name}, [name]
        while left:
            new = [child for child in children.get(left.pop(), ()) if child not in behind]
            behind.update(new)
            left += new
        before = (other for other, one in tasks.items() if not one.finally_ and other not in behind)
        placed[name] = replace(task, after=tuple(before))
    return placed


def _task(name: str, spec: _TaskSpec, folder: Path) -> WorkflowTask:
    kind = next(kind for kind in KINDS if getattr(spec, kind))
    return WorkflowTask(
        name=name,
        title=spec.title if spec.title is not None else name,
        kind=kind,
        payload=getattr(spec, kind),
        description=spec.description,
        after=tuple(dict.fromkeys(spec.after)),
        finally_=spec.finally_,
        required=spec.required,
        timeout=spec.timeout,
        cwd=str(folder / spec.cwd) if spec.cwd is not None else None,
        env=spec.env,
        max_attempts=spec.retries.max_attempts,
        backoff=spec.retries.backoff,
        on_interrupted=spec.on_interrupted,
        grace=spec.grace,
        wait_for_output=spec.wait_for_output,
    )
