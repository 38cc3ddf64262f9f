"""Check a ttasks ledger with Python's standard library alone: python3 verify_ledger.py LEDGER [HASH]

It checks that no event is missing, that each is the one that was hashed, and that each is the next of its stream and
names only earlier events; with HASH, that an event with this hash is there. What the events mean, and the other tables,
it leaves to `ttasks verify`. Exit code: 0 clean, 1 not clean, 2 no ledger of a format that it knows.
"""

import contextlib
import hashlib
import pathlib
import sqlite3
import sys

COLUMNS = "position, stream, version, type, type_version, recorded_at, runner, cause, data, hash"
TYPES = (int, str, int, str, int, str, int | None, int | None, str, bytes)
FORMATS = tuple([0x74746B73, version] for version in (1, 2, 3))  # application_id, user_version


def netstring(value):
    text = str(value).encode("utf-8", "surrogateescape")
    return b"-" if value is None else b"%d:%s," % (len(text), text)


def check(events, head, say):
    """Say (promise, position, text) of each problem; return how many events there are, and the last one's hash."""
    count, last, before, versions, runners, hashes = 0, 0, bytes(32), {}, set(), set()
    for row in events:
        count += 1
        if not all(map(isinstance, row, TYPES)):
            say("form", row[0], "a column does not have its type; what follows was not checked")
            break
        position, stream, version, type_, _, _, runner, cause, _, stored = row
        if position > last + 1:
            say("completeness", last + 1, f"it is missing, up to {position - 1}")
        elif position <= last:
            say("completeness", position, "it is out of place")
        elif hashlib.sha256(b"ttasks event 1\n" + before + b"".join(map(netstring, row[:-1]))).digest() != stored:
            say("integrity", position, "its hash does not fit what is stored: it, or what came before, was changed")
        if version != versions.get(stream, 0) + 1:
            say("order", position, f"it is version {version} of {stream}, after {versions.get(stream, 0)}")
        if type_ == "RunnerStarted":
            runners.add(position)
        if not (runner in runners or (runner is None and position == 1 and type_ == "LedgerCreated")):
            say("order", position, f"its runner is {runner}: no RunnerStarted before it is there")
        if not (cause is None or 1 <= cause < position):
            say("order", position, f"its cause is {cause}, which is no event before it")
        last, before, versions[stream] = max(position, last), stored, version
        hashes.add(stored.hex())
    if not count or (head is not None and head.lower() not in hashes):
        say("completeness", None, f"no event has the hash {head}" if count else "it has no events at all")
    return count, before.hex()


def connect(path):
    path = pathlib.Path(path).resolve()
    connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError:
        connection.close()
        if path.with_name(path.name + "-wal").exists():
            raise
        # SQLite can't read along with a writer where it can't write itself. Without a WAL there is none.
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return connection


def main(path, head=None):
    problems = []
    try:
        with contextlib.closing(connect(path)) as connection:
            ids = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            if ids not in FORMATS:
                print(f"{path} is no ledger of a format that this script knows", file=sys.stderr)
                return 2
            if connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'view' AND name LIKE 'events'").fetchone():
                raise sqlite3.DatabaseError("events is not a table, but a view, which may have no end")
            events = connection.execute(f"SELECT {COLUMNS} FROM events ORDER BY position")
            count, last_hash = check(events, head, lambda *problem: problems.append(problem))
    except (sqlite3.Error, UnicodeDecodeError) as error:
        problems.append(("file", None, f"it can't be read: {error}"))
    for promise, position, text in problems:
        print(f"{promise}: {'the ledger' if position is None else f'event {position}'}: {ascii(text)[1:-1]}")
    print("NOT clean" if problems else f"clean: {count} events, head {last_hash}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
