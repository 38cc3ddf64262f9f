"""What a task or graph is called where people read of it."""

from __future__ import annotations


def named(kind: str, title: str, id_: str) -> str:
    """Return ``task 'deploy' (3f2a…)``, or ``task 3f2a…`` for one without a title; `kind` is the first word."""
    return f"{kind} '{title}' ({id_})" if title.strip() else f"{kind} {id_}"
