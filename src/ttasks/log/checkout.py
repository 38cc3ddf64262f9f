"""The git checkout that a runner works in: its commit, branch and state, found without running a program of its own.

A checkout's configuration and attributes come from whoever made it, and git runs programs that they name: filters, file
system monitors, hooks, helpers that fetch what is missing. So each of them is turned off for every call.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ttasks import clock
from ttasks.events.facts import RunnerDescribed

GIT_WAIT_S: Final = 20.0
"""How long git may take for all that it is asked: a huge checkout, or one on a slow disk, lacks the rest."""
_OFF: Final = (("clean", ""), ("smudge", ""), ("process", ""), ("required", "false"))
"""What turns a filter off. `clean` and `process` are programs that `git status` runs where a file looks touched."""


def git_root() -> Path | None:
    """Return the folder of the git checkout that the working directory is in, without asking git."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        return None
    return next((folder for folder in (here, *here.parents) if (folder / ".git").exists()), None)


def describe_git(root: Path) -> RunnerDescribed:
    """Return the commit, branch and state of the checkout at `root`; what git can't say is None."""
    git = _Git(root)
    return RunnerDescribed(
        git_root=str(root),
        git_commit=git.say("rev-parse", "--verify", "HEAD") or None,
        git_branch=git.say("symbolic-ref", "--short", "HEAD") or None,
        git_dirty=_is_dirty(git),
    )


def _is_dirty(git: _Git) -> bool | None:
    """Return whether the checkout has changes; None: git can't say, or could only say so by running a filter.

    Without its filter, a file that was only touched looks changed. So a change counts where no filter has a say in it.
    """
    keys = git.say("config", "--list", "--name-only", "-z")
    if keys is None:
        return None
    filters = {key.rpartition(".")[0] for key in keys.split("\0") if key.startswith("filter.")}
    if any("=" in name for name in filters):  # `-c` can't name it, so it can't be turned off
        return None
    off = [word for name in sorted(filters) for key, value in _OFF for word in ("-c", f"{name}.{key}={value}")]
    # A submodule has a configuration of its own, so git would have to be asked anew in each: only its commit counts.
    look = ("status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal", "--ignore-submodules=dirty")
    changes = git.say(*look, first=off)
    if changes is None:
        return None
    entries = changes.rstrip("\0").split("\0") if changes else []
    touched = [entry[3:] for entry in entries if entry.startswith(" M")]
    if len(touched) < len(entries) or not filters:
        return bool(entries)
    return None if touched and not _any_unfiltered(git, touched, filters) else bool(touched)


def _any_unfiltered(git: _Git, paths: Iterable[str], filters: Iterable[str]) -> bool:
    said = git.say("check-attr", "--stdin", "-z", "filter", input="\0".join(paths)) or ""
    return any(f"filter.{name}" not in filters for name in said.split("\0")[2::3])


class _Git:
    """Asks git about one checkout, all in all for `GIT_WAIT_S` seconds."""

    def __init__(self, root: Path) -> None:
        self._deadline_s = clock.monotonic_s() + GIT_WAIT_S
        # `GIT_DIR` and the like, which a hook of git has, would lead elsewhere; what trusts folders stays.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or "CONFIG_" in name}
        self._env = {
            **kept,
            "GIT_CEILING_DIRECTORIES": str(root.parent),  # where this checkout is broken, the one around it is another
            "GIT_ALLOW_PROTOCOL": "",  # what is missing in a partial clone is not fetched, by no helper
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_OPTIONAL_LOCKS": "0",
            "GIT_TERMINAL_PROMPT": "0",
        }
        program = shutil.which("git")
        # One that is found by a relative path belongs to the folder that this process is in.
        self._program = program if program is not None and os.path.isabs(program) else None  # noqa: PTH117 - a text
        self._root = root

    def say(self, *arguments: str, first: Iterable[str] = (), input: str = "") -> str | None:
        """Return what git prints; None where it fails, takes too long, or is not there."""
        if self._program is None:
            return None
        command = [self._program, "--no-pager", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
        try:
            done = subprocess.run(
                [*command, *first, "-C", str(self._root), *arguments],
                input=input.encode(errors="surrogateescape"),
                capture_output=True,
                timeout=max(self._deadline_s - clock.monotonic_s(), 0),
                check=False,
                env=self._env,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        text = done.stdout.decode(errors="surrogateescape")
        return text.removesuffix("\n") if done.returncode == 0 else None
