"""Which names of environment variables look secret. docs/secrets.md has the same lists."""

from __future__ import annotations

import re
from functools import lru_cache
from string import digits
from typing import Final

ANYWHERE: Final = re.compile("PASSWORD|PASSWD|PASSPHRASE|SECRET(?!ARY)|TOKEN(?!IZER)|CREDENTIAL|APIKEY")
"""Words that make a name secret wherever they are in it, in either case: PGPASSWORD, NPMTOKEN."""
ORDINARY_KEYS: Final = frozenset({"CACHE", "PRIMARY", "FOREIGN", "PUBLIC", "SORT", "PARTITION", "HOST"})
"""A KEY after one of these words is no secret."""
_KEYS: Final = frozenset({"KEY", "KEYS"})
_NOT_CAMEL: Final = frozenset({"HOT", "MON"})
"""hotKey and monKey are HOTKEY and MONKEY, in which there is no word KEY."""
_PARTS: Final = re.compile(r"[^\W_]+")
_WORDS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")


@lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """True when the value of an environment variable of this name is not to be recorded (SPEC §8).

    KEY counts as a word of its own (``API_KEY``, ``KEY_2``, ``ACCESS_KEY_ID``) and at the end of a camel-case name
    (``accessKey``), but not after one of `ORDINARY_KEYS`.
    """
    return ANYWHERE.search(name.upper()) is not None or _has_secret_key(name)


def _has_secret_key(name: str) -> bool:
    before = ""  # the word before, without numbers
    for part in _PARTS.findall(name):
        if part.strip(digits).upper() in _KEYS:
            if before not in ORDINARY_KEYS:
                return True
            before = "KEY"
        elif words := [word.upper() for word in _WORDS.findall(part)]:
            if words[-1] in _KEYS and [before, *words][-2] not in ORDINARY_KEYS | _NOT_CAMEL:
                return True
            before = words[-1]
    return False
