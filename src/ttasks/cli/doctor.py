"""What can run here: bash, PowerShell, Copilot."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from rich.text import Text

from ttasks.cli.text import console
from ttasks.display import printable

LOOK_WAIT_S: Final = 20.0
PARTS: Final = ("bash", "pwsh", "copilot")
Found = tuple[bool, list[str]]
"""Whether it can run, and what to say of it, a line each."""


def doctor(parts: Sequence[str]) -> int:
    """Print what can run here; return the exit code: 1 when one of the parts that were asked for can't.

    Args:
        parts: of `PARTS`; none: all are looked at, and only bash has to be there.
    """
    out = console()
    looks = {"bash": _bash, "pwsh": _pwsh, "copilot": _copilot}
    is_fine = True
    for part in parts or PARTS:
        can_run, lines = looks[part]()
        is_fine = is_fine and (can_run or not (parts or part == "bash"))
        mark = Text("ok", style="green") if can_run else Text("no", style="bold red")
        out.print(Text.assemble(f"{part:<8} ", mark, "  ", printable(lines[0])))
        for line in lines[1:]:
            out.print(Text(f"{'':<12} {printable(line)}", style="dim"))
    return 0 if is_fine else 1


def _bash() -> Found:
    path = shutil.which("bash")
    if path is not None:
        return True, [path, _first_line([path, "--version"])]
    if os.access("/bin/sh", os.X_OK):
        return True, ["/bin/sh, because there is no bash on PATH: scripts have to be plain sh"]
    return False, ["there is neither bash on PATH nor /bin/sh"]


def _pwsh() -> Found:
    path = shutil.which("pwsh")
    if path is None:
        return False, ["pwsh is not on PATH; PowerShell tasks need PowerShell 7 or later (https://aka.ms/powershell)"]
    return True, [path, _first_line([path, "-NoProfile", "-Version"])]


def _first_line(command: list[str]) -> str:
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=LOOK_WAIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"could not be asked for its version: {error}"
    return (said.stdout or said.stderr).strip().partition("\n")[0]


def _copilot() -> Found:
    from ttasks.handlers.copilot.probe import probe

    try:
        found = probe()
    except ValueError as error:  # the environment says something that can't be used
        return False, [str(error)]
    lines = [found.cli_path] if found.cli_path is not None and found.error is None else []
    if found.error is not None:
        lines += [f"{found.error} ({found.error.code})", *([found.cli_path] if found.cli_path is not None else [])]
    if found.cli_version is not None:
        fits = found.made_for in (None, found.cli_version)
        lines.append(
            f"CLI {found.cli_version}, SDK {found.sdk_version}" + ("" if fits else f" (made for CLI {found.made_for})")
        )
    else:
        lines.append(f"SDK {found.sdk_version}")
    if found.provider is not None:
        lines.append(f"model endpoint {found.provider} (not asked)")
    elif found.account == "token":
        lines.append("signed in by a token from the environment, which was not checked")
    elif found.account is not None:
        lines.append(f"signed in: {found.account}")
    lines.append(f"agents may: {', '.join(found.permissions) or 'nothing'}")
    return found.error is None, lines
