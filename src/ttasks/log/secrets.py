"""What is withheld from the log: secret values of environment variables, of which only a digest is kept, and secrets
in texts, which are redacted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any, Final

from ttasks.events.agent_facts import AgentFact
from ttasks.events.codec import FACT_TYPES, to_json
from ttasks.events.facts import Fact, TaskCreated, TaskImported, TaskRevised, TaskStarted
from ttasks.log.fitting import fitted
from ttasks.log.redaction import MASK, Redaction
from ttasks.log.secret_names import is_secret

# Slow on purpose: whoever has the ledger could otherwise try short passwords by the million. It is cached, so that a
# process pays for each value once.
_ROUNDS: Final = 20_000

_NO_REDACTION: Final = Redaction()
STRUCTURE: Final = frozenset({
    "agent", "answer", "blocked_by", "boot_id", "call", "cli_version", "derived_from", "digest_key", "env",
    "env_digests", "error_code", "exception", "git_commit", "graph", "handler", "handlers", "host", "ledger", "mark",
    "parent", "platform", "process_start", "python_version", "reason", "redacted", "request", "sdk_version", "session",
    "signal", "tasks", "ttasks_version",
})  # fmt: skip
"""Fields of facts that hold a text, but not a person's: what is compared, or computed. All others are redacted."""


@lru_cache(maxsize=1024)
def digest(value: str, key: str) -> str:
    """Return what is recorded of a secret value: ``pbkdf2-sha256:20000:`` and 128 bits in hex.

    The same value under the same ledger's key gives the same digest, which is all it is for.
    """
    derived = hashlib.pbkdf2_hmac(
        "sha256", value.encode("utf-8", "surrogatepass"), bytes.fromhex(key), _ROUNDS, dklen=16
    )
    return f"pbkdf2-sha256:{_ROUNDS}:{derived.hex()}"


def is_withheld(name: str, value: str, redaction: Redaction | None) -> bool:
    """True when only a digest of this variable is recorded: its name looks secret, was named, or its value matches."""
    if redaction is None:
        return is_secret(name)
    return looks_secret(name, redaction) or redaction.is_secret(name) or redaction.finds(value)


def looks_secret(name: str, redaction: Redaction | None) -> bool:
    """True when a name looks secret, and was not said to be ordinary."""
    return is_secret(name) and not (redaction is not None and redaction.is_ordinary(name))


def redaction_of(base: Redaction | None, env: Mapping[str, str] | None) -> Redaction | None:
    """Return what is redacted of a task that was given `env`: what is redacted anyway, and what of `env` is withheld.

    Otherwise the log would hold what is withheld from it as soon as the task prints it.
    """
    return base if not env else _redaction_of(base, tuple(env.items()))


@lru_cache(maxsize=1024)
def _redaction_of(base: Redaction | None, env: tuple[tuple[str, str], ...]) -> Redaction | None:
    known = base or _NO_REDACTION
    secret = [(name, value) for name, value in env if is_withheld(name, value, base)]
    literals = [literal for name, value in secret for literal in known.literals_of(name, value)]
    return known.with_literals(literals) if literals else base


def split_env(
    env: Mapping[str, str] | None, key: str, redaction: Redaction | None = None
) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    """Return the variables that may be recorded, and the digests of the others; None for none."""
    if not env:
        return None, None
    secret = {name for name, value in env.items() if is_withheld(name, value, redaction)}
    plain = {name: value for name, value in env.items() if name not in secret}
    digests = {name: digest(value, key) for name, value in env.items() if name in secret}
    return plain or None, digests or None


def withhold(fact: Fact, key: str, redaction: Redaction | None = None) -> Fact:
    """Return `fact` as it may be recorded."""
    if isinstance(fact, TaskCreated | TaskStarted):
        if fact.env:
            plain, digests = split_env(fact.env, key, redaction)
            fact = replace(fact, env=plain, env_digests={**(fact.env_digests or {}), **(digests or {})} or None)
    elif isinstance(fact, TaskImported) and fact.state.get("env"):
        fact = replace(fact, state=_state_without_secret_values(fact.state, key, redaction))
    elif isinstance(fact, AgentFact):
        fact = fitted(fact)
    return fact if redaction is None else _redacted(fact, redaction)


def _state_without_secret_values(state: Mapping[str, Any], key: str, redaction: Redaction | None) -> dict[str, Any]:
    plain, digests = split_env(state["env"], key, redaction)
    others = {name: value for name, value in state.items() if name not in ("env", "env_digests")}
    kept = {**(state.get("env_digests") or {}), **(digests or {})}
    return {**others, **({"env": plain} if plain else {}), **({"env_digests": kept} if kept else {})}


# --- texts in facts --------------------------------------------------------------------------------------------------

_Clean = Callable[[str], str]


def _clean_json(value: Any, clean: _Clean) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, Mapping):
        return {_clean_json(name, clean): _clean_json(item, clean) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean_json(item, clean) for item in value]
    if isinstance(value, int | float):  # a secret may be a number
        return value if clean(text := to_json(value)) == text else MASK
    return value


_CLEANERS: Final[Mapping[str, Callable[[Any, _Clean], Any]]] = {
    "str": lambda text, clean: clean(text),
    "tuple[str, ...]": lambda texts, clean: tuple(map(clean, texts)),
    "tuple[Chunk, ...]": lambda chunks, clean: tuple((stream, at, clean(text)) for stream, at, text in chunks),
    "Source": lambda source, clean: replace(source, path=clean(source.path)),
    "tuple[FileEdit, ...]": lambda edits, clean: tuple(replace(edit, path=clean(edit.path)) for edit in edits),
    "Json": lambda value, clean: _clean_json(value, clean),
    "Mapping[str, Any]": lambda changes, clean: {
        name: clean(value) if isinstance(value, str) else value for name, value in changes.items()
    },
    "Mapping[str, Mapping[str, str]]": lambda errors, clean: {
        task: {**error, "text": clean(error["text"])} for task, error in errors.items()
    },
}
TEXTS: Final = {
    fact_type: {
        field.name: _CLEANERS[kind]
        for field in fields(fact_type)
        if (kind := str(field.type).removesuffix(" | None")) in _CLEANERS and field.name not in STRUCTURE
    }
    for fact_type in FACT_TYPES
}
"""How each type of fact is redacted: the fields that hold a person's texts."""
_OWN: Final = frozenset({"name", "title", "payload", "description", "cwd"})
"""Fields of a task that only people set: of these it is recorded which were redacted, for they can't be restored."""


def given_out(fact: AgentFact, redaction: Redaction) -> AgentFact:
    """Return what an agent did with its texts redacted, before it is recorded."""
    changed = _redacted_texts(fact := fitted(fact), redaction.text)
    return replace(fact, **changed) if changed else fact


def _redacted(fact: Fact, redaction: Redaction) -> Fact:
    """Return `fact` with its texts redacted."""
    clean = redaction.text
    if isinstance(fact, TaskImported):
        return replace(fact, state=_redacted_state(fact.state, clean))
    changed = _redacted_texts(fact, clean)
    if isinstance(fact, TaskCreated | TaskStarted):
        own = (changed.keys() & _OWN) | set(fact.redacted or ())
        changed |= _renamed({"env": fact.env, "env_digests": fact.env_digests}, clean)
    elif isinstance(fact, TaskRevised) and changed:
        own = {name for name in fact.changes.keys() & _OWN if changed["changes"][name] != fact.changes[name]}
    else:
        own = set()
    if own:
        changed["redacted"] = tuple(sorted(own))
    return replace(fact, **changed) if changed else fact


def _redacted_texts(fact: Fact, clean: _Clean) -> dict[str, Any]:
    """Return those fields of a fact in which something is redacted, as they then are."""
    changed: dict[str, Any] = {}
    for name, cleaner in TEXTS[type(fact)].items():
        value = getattr(fact, name)
        if value is not None and (cleaned := cleaner(value, clean)) != value:
            changed[name] = cleaned
    return changed


def _redacted_state(state: Mapping[str, Any], clean: _Clean) -> dict[str, Any]:
    texts = {name: clean(state[name]) for name in (*_OWN, "error") if state.get(name) is not None}
    own = {name for name in texts.keys() & _OWN if texts[name] != state[name]} | set(state.get("redacted") or ())
    changed = {**texts, **_renamed({name: state.get(name) for name in ("env", "env_digests")}, clean)}
    if own:
        changed["redacted"] = sorted(own)
    result = state.get("result")
    if result is not None and result.get("error") is not None:
        changed["result"] = {**result, "error": clean(result["error"])}
    return {**state, **changed}


def _renamed(variables: Mapping[str, Mapping[str, str] | None], clean: _Clean) -> dict[str, dict[str, str]]:
    """Return those of these variables that are there, with their names redacted; what is withheld is not in values."""
    return {field: {clean(name): value for name, value in of.items()} for field, of in variables.items() if of}
