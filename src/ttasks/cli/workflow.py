"""Workflow files: YAML read without surprises, checked with pydantic, every complaint with its line.

The file is composed to nodes, which know their lines, and never constructed by PyYAML: no tag is ever acted on.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ttasks.cli.text import printable
from ttasks.errors import WorkflowError

FILE_BYTES_MAX: Final = 1024 * 1024
NODES_MAX: Final = 100_000
"""How many keys and values a file may come to once its aliases are written out: what stops an alias bomb."""
CHARS_MAX: Final = 4 * FILE_BYTES_MAX
"""How long all its texts may be together once its aliases are written out: one long text can be a bomb as well."""
DEPTH_MAX: Final = 50
PROBLEMS_MAX: Final = 10
SHOWN_MAX: Final = 60
"""How many characters of a name or value, or names of a list's, a message shows."""
NAMES_SHOWN_MAX: Final = 10
COUNT_MAX: Final = 1_000_000
SECONDS_MAX: Final = 10 * 365 * 86_400
"""Ten years: what any clock of any platform can still wait for."""

Kind = Literal["bash", "powershell", "prompt", "agent"]
KINDS: Final[tuple[Kind, ...]] = ("bash", "powershell", "prompt", "agent")
Place = tuple[str, ...]
"""Where a value is: the keys and indexes that lead to it, such as ``("tasks", "build", "after", "0")``."""


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


# --- what a file may hold: each description ends the sentence "… has to be …" ----------------------------------------

_Text = Annotated[str, Field(description="a text")]
_Filled = Annotated[str, Field(min_length=1, description="a text that is not empty")]
_Flag = Annotated[bool, Field(description="true or false")]
_Count = Annotated[int, Field(ge=1, le=COUNT_MAX, description=f"a whole number from 1 to {COUNT_MAX}")]
_Seconds = Annotated[float, Field(allow_inf_nan=False, le=SECONDS_MAX)]
_Names = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
_NOT_GIVEN: Final[Any] = None  # a default is not validated: nothing but leaving the key out gives None


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _RetriesSpec(_Spec):
    max_attempts: _Count = 1
    backoff: _Seconds = Field(default=0.0, ge=0, description=f"a number from 0 to {SECONDS_MAX} (seconds)")


class _TaskSpec(_Spec):
    bash: _Filled = ""
    powershell: _Filled = ""
    prompt: _Filled = ""
    agent: _Filled = ""
    title: _Text = _NOT_GIVEN
    description: _Text = ""
    after: _Names = Field(default=[], description="a task name or a list of task names")
    finally_: _Flag = Field(default=False, alias="finally")
    required: _Flag = True
    timeout: _Seconds = Field(
        default=_NOT_GIVEN, gt=0, description=f"a number greater than 0 (seconds, at most {SECONDS_MAX})"
    )
    cwd: _Filled = _NOT_GIVEN
    env: dict[str, str] = Field(default={}, description="a mapping of texts, such as env: {NAME: value}")
    retries: _RetriesSpec = Field(default=_RetriesSpec(), description="a mapping of max_attempts and backoff")
    on_interrupted: Literal["rerun", "fail", "ask"] = Field(default="rerun", description="rerun, fail or ask")


class _FileSpec(_Spec):
    title: _Text = _NOT_GIVEN
    max_workers: _Count = _NOT_GIVEN
    tasks: dict[str, Any] = Field(
        min_length=1, description="a mapping of at least one task, such as tasks: {build: {bash: make}}"
    )


_AnySpec = TypeVar("_AnySpec", bound=_Spec)
_INSIDE: Final = {"env": "a text or a number", "after": "a list of task names"}


def load_workflow(path: Path) -> Workflow:
    """Return the workflow in the file at `path`.

    Raises:
        WorkflowError: the file can't be read, is not YAML, or not a workflow; it names file, line and task. Nothing
            was run or written.
    """
    content = _read(path)
    file = _File(path, content)
    data = file.plain()
    spec = _checked(file, _FileSpec, data, ())
    named = data["tasks"] if isinstance(data.get("tasks"), dict) else {}
    specs = {name: _task_spec(file, name, raw) for name, raw in named.items()}
    _check_graph(file, specs)
    file.settle()
    assert spec is not None
    path = path.absolute()
    tasks = {name: _task(name, task, path.parent) for name, task in specs.items() if task is not None}
    return Workflow(path, hashlib.sha256(content).hexdigest(), spec.title, spec.max_workers, tasks)


def _read(path: Path) -> bytes:
    def refusal(text: str) -> WorkflowError:
        return WorkflowError(path, [(None, None, text)])

    try:
        # NONBLOCK: opening a pipe that nobody writes to would wait for ever
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb", 0) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise refusal("a workflow file has to be a regular file, not a pipe or device")
            content = b"".join(iter(lambda: file.read(FILE_BYTES_MAX), b""))
    except ValueError:
        raise refusal("no file can have this name: it holds NUL") from None
    return content
