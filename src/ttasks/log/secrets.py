"""What is withheld from the log: values of secret-looking environment variables, of which only a digest is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Final

from ttasks.events.facts import Fact, TaskCreated, TaskImported, TaskStarted

SECRET_NAMES: Final = ("*TOKEN*", "*SECRET*", "*PASSWORD*", "*KEY*")
# Slow on purpose: whoever has the ledger could otherwise try short passwords by the million. It is cached, so that a
# process pays for each value once.
_ROUNDS: Final = 20_000


def is_secret(name: str) -> bool:
    """True when the value of an environment variable of this name is not to be recorded (SPEC §8)."""
    return any(fnmatchcase(name.upper(), pattern) for pattern in SECRET_NAMES)


@lru_cache(maxsize=1024)
def digest(value: str, key: str) -> str:
    """Return what is recorded of a secret value: ``pbkdf2-sha256:20000:`` and 128 bits in hex.

    The same value under the same ledger's key gives the same digest, which is all it is for.
    """
    derived = hashlib.pbkdf2_hmac(
        "sha256", value.encode("utf-8", "surrogatepass"), bytes.fromhex(key), _ROUNDS, dklen=16
    )
    return f"pbkdf2-sha256:{_ROUNDS}:{derived.hex()}"


def split_env(env: Mapping[str, str] | None, key: str) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    """Return the variables that may be recorded, and the digests of the others; None for none."""
    if not env:
        return None, None
    plain = {name: value for name, value in env.items() if not is_secret(name)}
    digests = {name: digest(value, key) for name, value in env.items() if is_secret(name)}
    return plain or None, digests or None


def withhold(fact: Fact, key: str) -> Fact:
    """Return `fact` as it may be recorded."""
    if isinstance(fact, TaskCreated | TaskStarted):
        if not fact.env:
            return fact
        plain, digests = split_env(fact.env, key)
        return replace(fact, env=plain, env_digests={**(fact.env_digests or {}), **(digests or {})} or None)
    if isinstance(fact, TaskImported) and fact.state.get("env"):
        plain, digests = split_env(fact.state["env"], key)
        state = {name: value for name, value in fact.state.items() if name not in ("env", "env_digests")}
        kept = {**(fact.state.get("env_digests") or {}), **(digests or {})}
        return replace(
            fact, state={**state, **({"env": plain} if plain else {}), **({"env_digests": kept} if kept else {})}
        )
    return fact
