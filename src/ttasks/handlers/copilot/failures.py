"""What can go wrong with Copilot, in a word for programs and a sentence for people that says what to do."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from ttasks.errors import CopilotError, words

CRASHED: Final = "cli_crashed"
UNRESPONSIVE: Final = "cli_unresponsive"
INSTALL: Final = (
    "Install it with 'npm install -g @github/copilot' or 'python -m copilot download-runtime', or name it in "
    "COPILOT_CLI_PATH or cli_path="
)
SIGN_IN: Final = (
    "Sign in with 'copilot login', set COPILOT_GITHUB_TOKEN, or name a model endpoint of your own in "
    "COPILOT_PROVIDER_BASE_URL or provider="
)

_BY_TEXT: Final = (
    # The order matters: the first that is found is it.
    (r"CLI not found at", "cli_missing", f"the Copilot CLI was not found: {{text}}. {INSTALL}"),
    (r"Exec format error|Permission denied|cannot execute", "cli_not_runnable",
     "the Copilot CLI can't be run here: {text}. Install the one for this system"),
    (r"protocol version mismatch|Unsupported protocol|Method not found: connect", "cli_incompatible",
     "this Copilot CLI and this SDK don't fit together: {text}. Install the CLI version that the SDK names "
     "('ttasks doctor' says which)"),
    (r"No GitHub OAuth token|Not authenticated|token validation failed|validate SDK token", "not_authenticated",
     f"Copilot is not signed in: {{text}}. {SIGN_IN}"),
    (r"Session not found", "session_not_found", "the Copilot session to go on with is gone: {text}"),
    (r"Directory does not exist|working ?directory", "bad_working_directory",
     "the working directory can't be used: {text}"),
    (r"[Mm]odel .* is not available|model_not_found|[Uu]nknown model", "model_unavailable",
     "the model can't be had: {text}. Name another one in model= or COPILOT_MODEL"),
    (r"exited (with code|unexpectedly)|ProcessExited|Broken pipe|Connection lost", CRASHED,
     "the Copilot CLI ended in the middle: {text}. The task can be run again; see the CLI's log in COPILOT_HOME/logs"),
    (r"Could not connect|ECONN|ENOTFOUND|fetch failed|[Cc]onnection (error|refused|failed)|getaddrinfo|DNS",
     "provider_unreachable",
     "the model endpoint can't be reached: {text}. Check that it runs, and its address"),
)  # fmt: skip
# A turn is refused in the words of others: what they say of directories, or of permissions, is not about ours.
_OF_TURNS: Final = frozenset({"not_authenticated", "model_unavailable", "provider_unreachable"})


def failure(error: BaseException) -> CopilotError:
    """Return what the SDK raised as one of ours."""
    if isinstance(error, CopilotError):
        return error
    if isinstance(error, BaseExceptionGroup):  # one that says how many there are, and not what they are
        return failure(error.exceptions[0])
    text = _one_line(words(error) or type(error).__name__)
    if type(error).__name__ == "ProcessExitedError":
        return crashed(text)
    if isinstance(error, PermissionError):
        return CopilotError(f"the Copilot CLI can't be run here: {text}. {INSTALL}", code="cli_not_runnable")
    return _by_text(text)


def crashed(text: str) -> CopilotError:
    """Return that the CLI ended, or answers no more, while it was needed."""
    sentence = next(sentence for _, code, sentence in _BY_TEXT if code == CRASHED)
    return CopilotError(sentence.format(text=_one_line(text)), code=CRASHED)


def died_before(error: CopilotError) -> CopilotError:
    """Return that a session can't be used any more, because of what broke it."""
    text = f"this Copilot session has ended, and can't be gone on with: open a new one. What ended it: {error}"
    return CopilotError(text, code="session_ended")


def unresponsive(waited_s: float) -> CopilotError:
    """Return that the CLI lives, as far as anybody can tell, and does not answer."""
    return CopilotError(
        f"the Copilot CLI did not answer within {waited_s:g} seconds. Look whether the network, a proxy or a tool "
        "server keeps it waiting, and at the CLI's log in COPILOT_HOME/logs; the task can be run again",
        code=UNRESPONSIVE,
    )


def missing(looked_at: str) -> CopilotError:
    """Return that no CLI was found."""
    return CopilotError(f"no Copilot CLI was found ({looked_at}). {INSTALL}", code="cli_missing")


def not_runnable(text: str) -> CopilotError:
    """Return that what was found can't be run."""
    return CopilotError(f"the Copilot CLI can't be run here: {_one_line(text)}. {INSTALL}", code="cli_not_runnable")


def not_signed_in() -> CopilotError:
    """Return that nobody is signed in, and no model endpoint of one's own was named."""
    return CopilotError(f"Copilot is not signed in. {SIGN_IN}", code="not_authenticated")


def refused(kind: str, message: str, status: int | None, provider: str | None) -> CopilotError:
    """Return what the agent reported as the end of its turn: a session.error of this kind."""
    text = _one_line(message)
    at = f"the model endpoint {provider}" if provider is not None else "GitHub Copilot"
    said = text if provider is not None and provider in text else f"{at} said: {text}"
    code, what, advice = _refusal(kind, status, has_provider=provider is not None)
    if code is None:
        return _by_text(text, _OF_TURNS)
    return CopilotError(f"{what}: {said}. {advice}", code=code)


def _refusal(kind: str, status: int | None, *, has_provider: bool) -> tuple[str | None, str, str]:
    """Return the code, what happened, and what to do; no code where only the text can tell."""
    if kind == "quota" or status == 402:
        return "quota_exceeded", "the quota is used up", "Wait for the next period, or raise it"
    if kind == "rate_limit" or status == 429:
        return "rate_limited", "these are too many requests", "Try again later, with fewer at once"
    if has_provider and status in (401, 403):
        return "provider_refused", "the key was refused", "Check COPILOT_PROVIDER_API_KEY or provider="
    if kind in ("authentication", "authorization") or status == 401:
        return "not_authenticated", "nobody is signed in who may do this", SIGN_IN
    if status == 404:
        return "model_unavailable", "the model can't be had", "Check its name, and the address of the endpoint"
    if kind == "context_limit":
        return "context_limit", "the conversation is too long for the model", "Ask for less at once"
    if status is not None and status >= 500:
        return "provider_failed", "the model failed", "Try again later"
    return None, "", ""


def _by_text(text: str, codes: Collection[str] | None = None) -> CopilotError:
    """Return what a text says; where `codes` are given, it is one of these, or else just an error."""
    for pattern, code, sentence in _BY_TEXT:
        if (codes is None or code in codes) and re.search(pattern, text):
            return CopilotError(sentence.format(text=text), code=code)
    return CopilotError(f"Copilot failed: {text}", code="copilot_error")


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
