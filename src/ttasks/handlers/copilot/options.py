"""What a Copilot handler or session is told: options, and the environment where those are silent."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from ttasks.handlers.copilot.permissions import Permissions, Policy, parse_permissions
from ttasks.model.checks import check_env, check_timeout


class DefaultModel(str):
    """A model that nobody asked for: $COPILOT_MODEL takes its place."""

    __slots__ = ()


PROMPT_MODEL: Final[str] = DefaultModel("gpt-5.4-mini")
AGENT_MODEL: Final[str] = DefaultModel("gpt-5.5")
PERMISSIONS: Final = "TTASKS_COPILOT_PERMISSIONS"
"""The environment variable that says what agents may do, where the code does not."""
TOKENS: Final = ("COPILOT_GITHUB_TOKEN", "GH_TOKEN", "GITHUB_TOKEN")
"""The variables that may hold who is signed in, the first one first (GitHub Copilot CLI's own order)."""
_PROXIES: Final = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
# What the agent's shell gets of our environment: what programs need to run at all, and no secrets but a proxy's.
_PASSED_ON: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "TZ", "TMPDIR", "LANG", "LANGUAGE", "COPILOT_HOME",
    "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "NODE_EXTRA_CA_CERTS", "NO_PROXY", "no_proxy", *_PROXIES,
    "TTASKS_LEDGER", "TTASKS_REDACT", PERMISSIONS,
})  # fmt: skip
_KEPT_BACK: Final = (*TOKENS, "COPILOT_PROVIDER_API_KEY", "COPILOT_PROVIDER_BEARER_TOKEN")
_OURS: Final = frozenset({
    "session_id", "on_event", "on_permission_request", "github_token", "github_token_provider", "continue_pending_work",
    "suppress_resume_event", "allow_transcript_recovery",
})  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What was asked for, checked. Durations are in seconds; `session` goes to the SDK as it is."""

    model: str
    timeout: float | None = None
    provider: Mapping[str, Any] | None = None
    cli_path: str | None = None
    reasoning_effort: str | None = None
    working_directory: str | None = None
    available_tools: Sequence[str] | None = None
    excluded_tools: Sequence[str] | None = None
    permissions: Permissions | None = None
    env: Mapping[str, str] | None = None
    session: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str):
            raise TypeError(f"model must be a str, got {type(self.model).__name__}")
        if not self.model.strip():
            raise ValueError("model must not be empty")
        check_timeout(self.timeout)
        for name in ("cli_path", "working_directory"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _path(name, value))
        if self.reasoning_effort is not None and not isinstance(self.reasoning_effort, str):
            raise TypeError(f"reasoning_effort must be a str, got {type(self.reasoning_effort).__name__}")
        for name in ("available_tools", "excluded_tools"):
            tools = getattr(self, name)
            if tools is not None and (isinstance(tools, str) or not all(isinstance(tool, str) for tool in tools)):
                raise TypeError(f"{name} must be a list of str")
        _check_mapping(self.provider, "provider")
        if self.provider is not None:
            if not self.provider.get("base_url"):
                raise ValueError("provider needs a base_url, the address of the model endpoint")
            _check_address("provider['base_url']", self.provider["base_url"])
        check_env(self.env)
        if self.permissions is not None:
            Policy(self.permissions)
        refused = sorted(_OURS & self.session.keys())
        if refused:
            raise TypeError(f"{', '.join(refused)}: set by ttasks itself, and can't be given")

    def settled(self, given: Mapping[str, str], cwd: str | None) -> Settled:
        """Return what counts where a task was given these variables, and this folder (None: this process's).

        Raises:
            ValueError: an environment variable says something that can't be used.
        """
        asked = {**os.environ, **given, **(self.env or {})}
        model = self.model
        if isinstance(model, DefaultModel):
            model = asked.get("COPILOT_MODEL", "").strip() or str(model)
        token = next((asked[name] for name in TOKENS if asked.get(name)), None)
        provider = self.provider if self.provider is not None else _provider(asked)
        permissions = self.permissions
        if permissions is None:
            permissions = parse_permissions(asked.get(PERMISSIONS, "approve_all") or "approve_all")
        return Settled(
            model=model,
            provider=provider,
            token=token if provider is None else None,
            cli_path=self.cli_path or asked.get("COPILOT_CLI_PATH") or None,
            working_directory=os.path.abspath(self.working_directory or cwd or os.getcwd()),  # noqa: PTH100, PTH109
            policy=Policy(permissions),
            env=_child_env({**given, **(self.env or {})}),
            secrets=_secrets(asked, {**given, **(self.env or {})}, token, provider),
        )


@dataclass(frozen=True)
class Settled:
    """What counts, options and environment taken together.

    `env` is all that the agent's processes get. `secrets` are variables to withhold, some under names made up here.
    """

    model: str
    provider: Mapping[str, Any] | None
    token: str | None = field(repr=False)
    cli_path: str | None
    working_directory: str
    policy: Policy
    env: Mapping[str, str] = field(repr=False)
    secrets: Mapping[str, str] = field(repr=False)

    @property
    def address(self) -> str | None:
        """The address of the model endpoint, without what may be secret in it; None: GitHub Copilot."""
        if self.provider is None:
            return None
        parts = urlsplit(str(self.provider["base_url"]))
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _path(name: str, value: object) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} must be a path, got {type(value).__name__}")
    return os.fsdecode(value)


def _check_mapping(value: object, name: str) -> None:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {type(value).__name__}")


def _check_address(name: str, address: object) -> None:
    try:
        parts = urlsplit(str(address))
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port >= 0)
    except ValueError:  # of the port, or of brackets
        is_one = False
    if not is_one:
        raise ValueError(f"{name} is no address of a model endpoint, such as http://127.0.0.1:11434/v1")


def _provider(asked: Mapping[str, str]) -> Mapping[str, Any] | None:
    """Return the model endpoint that the CLI's own variables name; None where they name none."""
    address = asked.get("COPILOT_PROVIDER_BASE_URL")
    if not address:
        return None
    _check_address("COPILOT_PROVIDER_BASE_URL", address)
    wanted = {
        "type": asked.get("COPILOT_PROVIDER_TYPE") or "openai",
        "wire_api": asked.get("COPILOT_PROVIDER_WIRE_API") or "completions",
        "base_url": address,
        "api_key": asked.get("COPILOT_PROVIDER_API_KEY"),
        "bearer_token": asked.get("COPILOT_PROVIDER_BEARER_TOKEN"),
    }
    return {name: value for name, value in wanted.items() if value}


def _secrets(
    asked: Mapping[str, str], given: Mapping[str, str], token: str | None, provider: Mapping[str, Any] | None
) -> dict[str, str]:
    """Return what an agent, or its CLI, might print, and must not be recorded: variables, as those of a task."""
    secrets = dict(given)
    known = {
        "TOKEN": token,
        "KEY": (provider or {}).get("api_key"),
        "BEARER_TOKEN": (provider or {}).get("bearer_token"),
    }
    known |= {f"{name} KEY": value for name, value in ((provider or {}).get("headers") or {}).items()}
    addresses = {name: asked.get(name, "") for name in _PROXIES} | {"BASE_URL": (provider or {}).get("base_url", "")}
    for name, address in addresses.items():
        _, _, password = str(address).partition("://")[2].rpartition("@")[0].partition(":")
        known |= {f"{name} PASSWORD": password, f"{name} PASSWORD unquoted": unquote(password)}
    return secrets | {f"copilot {name}": value for name, value in known.items() if isinstance(value, str) and value}


def _child_env(given: Mapping[str, str]) -> dict[str, str]:
    passed_on = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("LC_")}
    return {name: value for name, value in {**passed_on, **given}.items() if name not in _KEPT_BACK}


Subscriber = Callable[[Any], object]
