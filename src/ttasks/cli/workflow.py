"""Workflow files: YAML read without surprises, checked with pydantic, every complaint with its line."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import stat
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, field_validator

from ttasks.errors import WorkflowError

FILE_BYTES_MAX: Final = 1024 * 1024
NODES_MAX: Final = 100_000
"""How many values a file may come to once its aliases are written out: what stops an alias bomb."""
DEPTH_MAX: Final = 50
PROBLEMS_MAX: Final = 10

Kind = Literal["bash", "powershell", "prompt", "agent"]
KINDS: Final[tuple[Kind, ...]] = ("bash", "powershell", "prompt", "agent")
Place = tuple[str, ...]
Problem = tuple[int | None, str | None, str]


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
    on_interrupted: str


@dataclass(frozen=True)
class Workflow:
    """A workflow file: its absolute path, the SHA-256 (hex) of its bytes, and its tasks by name in file order."""

    path: Path
    sha256: str
    title: str | None
    max_workers: int | None
    tasks: dict[str, WorkflowTask]


# --- what a file may hold ------------------------------------------------------------------------------------------


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be finite")
    return value


Seconds = Annotated[float, Field(strict=True)]


class _Retries(BaseModel):
    model_config = ConfigDict(extra="forbid")

    max_attempts: Annotated[StrictInt, Field(ge=1)] = 1
    backoff: Annotated[Seconds, Field(ge=0)] = 0.0

    _is_finite = field_validator("backoff")(_finite)


class _TaskSpec(BaseModel):
    model_config = ConfigDict(extra="forbid")

    bash: Annotated[StrictStr, Field(min_length=1)] | None = None
    powershell: Annotated[StrictStr, Field(min_length=1)] | None = None
    prompt: Annotated[StrictStr, Field(min_length=1)] | None = None
    agent: Annotated[StrictStr, Field(min_length=1)] | None = None
    title: StrictStr | None = None
    description: StrictStr = ""
    after: list[StrictStr] = []
    finally_: StrictBool = Field(default=False, alias="finally")
    required: StrictBool = True
    timeout: Annotated[Seconds, Field(gt=0)] | None = None
    cwd: StrictStr | None = None
    env: dict[StrictStr, StrictStr] = {}
    retries: _Retries = _Retries()
    on_interrupted: Literal["rerun", "fail", "ask"] = "rerun"

    _is_finite = field_validator("timeout")(lambda value: value if value is None else _finite(value))


class _FileSpec(BaseModel):
    model_config = ConfigDict(extra="forbid")

    title: StrictStr | None = None
    max_workers: Annotated[StrictInt, Field(ge=1)] | None = None
    tasks: Annotated[dict[StrictStr, _TaskSpec], Field(min_length=1)]


# --- reading -------------------------------------------------------------------------------------------------------


def load_workflow(path: Path) -> Workflow:
    """Return the workflow in the file at `path`.

    Raises:
        WorkflowError: the file can't be read, is not YAML, or not a workflow; it names file, line and task. Nothing
            was run or written.
    """
    content = _read(path)
    root = _Tree(path, content)
    data = root.plain()
    try:
        spec = _FileSpec.model_validate(data)
    except ValidationError as error:
        raise _refused(path, root.problems_of(error)) from None
    path = path.absolute()
    tasks = {name: _task(name, task, path.parent) for name, task in spec.tasks.items()}
    problems = [*_kind_problems(spec, root), *_graph_problems(tasks, root)]
    if problems:
        raise _refused(path, problems)
    return Workflow(path, hashlib.sha256(content).hexdigest(), spec.title, spec.max_workers, tasks)


def _refused(path: Path, problems: list[Problem]) -> WorkflowError:
    problems.sort(key=lambda problem: problem[0] or 0)
    shown = problems[:PROBLEMS_MAX]
    if len(problems) > PROBLEMS_MAX:
        shown.append((None, None, f"… and {len(problems) - PROBLEMS_MAX} more"))
    return WorkflowError(path, shown)


def _read(path: Path) -> bytes:
    def refuse(text: str) -> WorkflowError:
        return WorkflowError(path, [(None, None, text)])

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except ValueError:
        raise refuse("no file can have this name: it holds NUL") from None
    except OSError as error:
        raise refuse(f"the workflow file can't be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refuse("a workflow file has to be a regular file")
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        content = file.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise refuse(f"the file is larger than {FILE_BYTES_MAX // 1024} KiB, which no workflow file needs to be")
    return content


class _Tree:
    """The YAML nodes of a file, as plain data, and the line of each value."""

    def __init__(self, path: Path, content: bytes) -> None:
        self._path = path
        self._lines: dict[Place, int] = {}
        self._problems: list[Problem] = []
        self._count = 0
        self._root = self._compose(content)

    def _compose(self, content: bytes) -> yaml.Node:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise self._refuse(None, f"the file is not UTF-8: byte {error.start} can't be read as text") from None
        try:
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise self._refuse(
                line, "the file is not text: it holds control characters that YAML does not allow"
            ) from None
        except yaml.MarkedYAMLError as error:
            raise self._syntax_error(error) from None
        except RecursionError:
            raise self._refuse(None, "the file is nested too deeply") from None
        if node is None:
            raise self._refuse(None, "the file is empty; expected a mapping with 'tasks'")
        return node

    def _syntax_error(self, error: yaml.MarkedYAMLError) -> WorkflowError:
        mark = error.problem_mark or error.context_mark
        text = ", ".join(part for part in (error.context, error.problem) if part)
        if "expected a single document" in text:
            text = "the file holds several documents; expected one"
        line = mark.line + 1 if mark is not None else None
        column = f" (column {mark.column + 1})" if mark is not None else ""
        return self._refuse(line, f"not YAML: {text}{column}")

    def _refuse(self, line: int | None, text: str) -> WorkflowError:
        return WorkflowError(self._path, [(line, None, text)])

    def plain(self) -> Any:
        """Return the file as mappings, lists, texts, numbers and booleans.

        Raises:
            WorkflowError: it holds what a workflow file may not.
        """
        data = self._plain(self._root, (), frozenset())
        if self._problems:
            raise _refused(self._path, self._problems)
        if not isinstance(data, dict):
            raise self._refuse(1, f"expected a mapping with 'tasks', got {_kind_of(data)}")
        return data

    def _note(self, node: yaml.Node, place: Place, text: str) -> None:
        self._problems.append((node.start_mark.line + 1, self._task_of(place), text))

    @staticmethod
    def _task_of(place: Place) -> str | None:
        return place[1] if len(place) > 1 and place[0] == "tasks" else None

    def _plain(self, node: yaml.Node, place: Place, above: frozenset[int]) -> Any:
        self._count += 1
        line = node.start_mark.line + 1
        if self._count > NODES_MAX:
            raise self._refuse(line, f"the file comes to more than {NODES_MAX} values once its aliases are written out")
        if id(node) in above:
            raise self._refuse(line, "an alias refers to what it is part of")
        if len(place) > DEPTH_MAX:
            raise self._refuse(line, f"the file is nested more than {DEPTH_MAX} deep")
        self._lines.setdefault(place, line)
        inside = above | {id(node)}
        if isinstance(node, yaml.MappingNode):
            if node.tag != "tag:yaml.org,2002:map":
                self._note(node, place, f"tags such as {node.tag} are not allowed here")
            return self._mapping(node, place, inside)
        if isinstance(node, yaml.SequenceNode):
            if node.tag != "tag:yaml.org,2002:seq":
                self._note(node, place, f"tags such as {node.tag} are not allowed here")
            return [self._plain(item, (*place, str(index)), inside) for index, item in enumerate(node.value)]
        return self._scalar(node, place)

    def _mapping(self, node: yaml.MappingNode, place: Place, inside: frozenset[int]) -> dict[Hashable, Any]:
        data: dict[Hashable, Any] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                what = (
                    f"'{key.value}' is read as {_NAMES.get(key.tag, key.tag)}"
                    if isinstance(key.value, str)
                    else "not a text"
                )
                self._note(key, place, f"a key has to be a text, but {what}: quote it")
                continue
            name = key.value
            if name in lines:
                self._note(key, (*place, name), f"'{name}' is here twice: the first is at line {lines[name]}")
                continue
            lines[name] = line
            self._lines[(*place, name)] = line
            data[name] = self._plain(value, (*place, name), inside)
        return data

    def _scalar(self, node: yaml.Node, place: Place) -> Any:
        text, tag = node.value, node.tag
        if len(place) == 4 and place[2] == "env" and tag in _NUMBERS:
            return text  # as it was written: 1.10 stays 1.10
        try:
            match tag:
                case "tag:yaml.org,2002:str":
                    return text
                case "tag:yaml.org,2002:null":
                    return None
                case "tag:yaml.org,2002:bool":
                    return yaml.SafeLoader.bool_values[text.lower()]
                case "tag:yaml.org,2002:int":
                    return int(text.replace("_", ""), 0 if text.lower().startswith(("0x", "0b")) else 10)
                case "tag:yaml.org,2002:float":
                    return float(
                        text.replace("_", "").replace(".inf", "inf").replace(".nan", "nan").replace(".NaN", "nan")
                    )
        except (ValueError, KeyError):
            self._note(node, place, f"'{text[:40]}' can't be used as a number here: quote it if it is a text")
            return None
        self._note(
            node, place, f"{_NAMES.get(tag, 'tags such as ' + tag)} can't be used here: quote it if it is a text"
        )
        return None

    def line(self, *place: str) -> int | None:
        """Return the line of a value, or of the nearest thing around it."""
        while place not in self._lines and place:
            place = place[:-1]
        return self._lines.get(place)

    def problems_of(self, error: ValidationError) -> list[Problem]:
        """Return what pydantic found, each with its line and task."""
        problems: list[Problem] = []
        for found in error.errors():
            place = tuple(str(part) for part in found["loc"])
            problems.append((self.line(*place), self._task_of(place), _sentence(found, place)))
        return problems


_NUMBERS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_NAMES: Final = {
    "tag:yaml.org,2002:bool": "a boolean",
    "tag:yaml.org,2002:int": "a number",
    "tag:yaml.org,2002:float": "a number",
    "tag:yaml.org,2002:null": "nothing",
    "tag:yaml.org,2002:timestamp": "a date",
    "tag:yaml.org,2002:merge": "a merge key",
}
_EXPECTED: Final = {
    "string_type": "a text",
    "string_too_short": "a text that is not empty",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "float_type": "a number",
    "list_type": "a list of task names",
    "greater_than": "a number greater than 0",
    "greater_than_equal": "a number of at least {ge}",
    "literal_error": "one of {expected}",
    "value_error": "a finite number",
    "too_short": "at least one task",
}


def _kind_of(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "nothing")


def _sentence(found: Any, place: Place) -> str:
    key = place[-1] if place else "the file"
    kind, value = found["type"], found["input"]
    if kind == "extra_forbidden":
        fields = _fields_at(place[:-1])
        near = difflib.get_close_matches(key, fields, 1)
        return f"unknown key '{key}'" + (f": did you mean '{near[0]}'?" if near else f"; known are {', '.join(fields)}")
    if kind == "missing":
        return f"'{key}' is missing"
    if kind in ("model_type", "dict_type", "model_attributes_type"):
        hint = f", such as {key}: {{bash: …}}" if len(place) == 2 else ""
        return f"'{key}' has to be a mapping{hint}, got {_kind_of(value)}"
    expected = _EXPECTED.get(kind, found["msg"]).format(**found.get("ctx", {}))
    shown = repr(value) if isinstance(value, str | int | float) and len(repr(value)) < 60 else _kind_of(value)
    return f"'{key}' has to be {expected}, got {shown}" + (": quote it" if kind == "string_type" else "")


def _fields_at(place: Place) -> list[str]:
    model: type[BaseModel] = _FileSpec if not place else _Retries if place[-1] == "retries" else _TaskSpec
    return [field.alias or name for name, field in model.model_fields.items()]


# --- what the parts mean together ----------------------------------------------------------------------------------


def _task(name: str, spec: _TaskSpec, folder: Path) -> WorkflowTask:
    given: list[Kind] = [kind for kind in KINDS if getattr(spec, kind) is not None]
    kind: Kind = given[0] if given else "bash"
    return WorkflowTask(
        name=name,
        title=spec.title if spec.title is not None else name,
        kind=kind,
        payload=getattr(spec, kind) or "",
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
    )


def _kind_problems(spec: _FileSpec, root: _Tree) -> Iterator[Problem]:
    for name, task in spec.tasks.items():
        given = [kind for kind in KINDS if getattr(task, kind) is not None]
        line = root.line("tasks", name)
        if name == "":
            yield line, None, "a task's name may not be empty"
        if not given:
            yield line, name, f"says not what to do; expected one of {', '.join(KINDS)}"
        elif len(given) > 1:
            yield root.line("tasks", name, given[1]), name, f"has {' and '.join(given)}; expected one of them"
        if not task.required and not task.finally_:
            yield root.line("tasks", name, "required"), name, "required: false is only valid with finally: true"
        for variable, value in task.env.items():
            if variable == "" or "=" in variable or "\0" in variable + value:
                text = f"env {variable!r} can't be set: no name may be empty or hold '=', nothing may hold NUL"
                yield root.line("tasks", name, "env", variable), name, text


def _graph_problems(tasks: dict[str, WorkflowTask], root: _Tree) -> Iterator[Problem]:
    unknown = False
    for name, task in tasks.items():
        for parent in task.after:
            if parent not in tasks:
                unknown = True
                near = difflib.get_close_matches(parent, tasks, 1)
                hint = f": did you mean '{near[0]}'?" if near else f"; the tasks are {', '.join(list(tasks)[:10])}"
                yield root.line("tasks", name, "after"), name, f"depends on '{parent}', which is no task{hint}"
    if unknown:
        return
    try:
        TopologicalSorter({name: task.after for name, task in tasks.items()}).prepare()
    except CycleError as error:
        cycle = list(reversed(error.args[1]))
        text = f"depends on itself: {' -> '.join(cycle)}"
        yield root.line("tasks", cycle[0], "after"), cycle[0], text
