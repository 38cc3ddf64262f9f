"""What the stand-in for the Copilot CLI answers on the pages in docs/ and in the examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from doubles.scripted import Step, scripted_cli

_ADVICE: Final = (
    "Look at the latest run with `ttasks show`. If a check failed, say in three sentences why, and what to do next.\n"
)
PROMPTS: Final[dict[str, list[Step]]] = {
    "Say good morning in French.": [{"say": "Bonjour !"}],
    "Find out why the tests fail, and mend it.": [
        {
            "tool": "bash",
            "arguments": {"command": "python -m pytest -q", "description": "Run the tests"},
            "output": "1 failed, 11 passed",
            "exit_code": 1,
        },
        {
            "tool": "edit",
            "arguments": {"path": "parse.py", "old_str": "line", "new_str": "line.rstrip()"},
            "output": "File parse.py updated with changes.",
            "files": {"parse.py": "edit"},
        },
        {"say": "The parser kept the line end. I mended it in parse.py."},
    ],
    "Publish the branch.": [
        {"tool": "bash", "arguments": {"command": "git push", "description": "Push"}, "output": ""},
        {"say": "I may not push. I would push two commits."},
    ],
    "Read the parser.": [
        {"tool": "view", "arguments": {"path": "parse.py"}, "output": "…"},
        {"say": "I have read it."},
    ],
    "Is it sound?": [{"say": "Yes, but for empty lines."}],
    "In one word?": [{"say": "Mostly."}],
    _ADVICE: [
        {"tool": "bash", "arguments": {"command": "ttasks show", "description": "Look"}, "output": "NOT OK"},
        {"say": "test_parse fails, because the parser keeps the line end. Strip it. Then run the tests again.\n"},
    ],
}


def cli_of_the_pages(folder: Path, **behaviour: Any) -> Path:
    """Write the stand-in into `folder`, and return its path."""
    return scripted_cli(folder, prompts=PROMPTS, **behaviour)
