"""The page of an event: what it holds, where it stands, what led to it, and whether it is what was recorded."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path

import pytest

from browsed import HOSTILE, Browsed
from ledgers import forge, lawless, make_ledger, tampering
from pages import Answer, get, get_all
from ttasks import SQLiteStore, Task, TaskExecutor
from ttasks.datasette_plugin import event as event_page
from ttasks.events.envelope import RecordedEvent


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store, TaskExecutor(store) as executor:
        executor.execute(Task.bash("echo out; echo err >&2", title="prints"))
    return path


def events(path: Path, type: str | None = None) -> list[RecordedEvent]:
    with SQLiteStore(path, read_only=True) as store:
        return list(store.events(type=type) if type is not None else store.events)


def page(path: Path, position: int) -> Answer:
    answer = get(path, f"event/{position}")
    assert answer.status == 200
    return answer


def test_every_event_of_every_type_is_shown_and_its_hash_matches(tmp_path: Path) -> None:
    path = tmp_path / "made.db"
    make_ledger(path)
    recorded = events(path)
    answers = get_all(path, *(f"event/{event.position}" for event in recorded))
    for event, answer in zip(recorded, answers, strict=True):
        text = answer.seen
        assert answer.status == 200
        assert text.startswith(f"Event {event.position}: {event.type}")
        assert event.hash.hex() in text
        assert "matches what is stored here" in text
        assert all(f"<dt>{name}</dt>" in answer.text for name in event.data if name != "chunks")


def test_an_event_leads_to_those_before_and_after_and_to_its_cause_and_effects(browsed: Browsed) -> None:
    started = next(event for event in events(browsed.path, "TaskStarted") if event.cause is not None)
    caused = [event for event in events(browsed.path) if event.cause == started.position]
    answer = page(browsed.path, started.position)
    for position in (started.position - 1, started.position + 1, started.cause, *(event.position for event in caused)):
        assert f'href="/-/ttasks/ledger/event/{position}"' in answer.text
    assert {"ProcessSpawned", "TaskSucceeded"} <= {event.type for event in caused}
    assert f'href="/-/ttasks/ledger/{started.stream.replace("-", "/", 1)}"' in answer.text


def test_the_first_event_has_nothing_before_it(ledger: Path) -> None:
    text = page(ledger, 1).seen
    assert "nobody: it is the ledger's first" in text
    assert "where a chain begins" in text
    assert "Previous" not in text
    assert "Next: 2 RunnerStarted" in text


def test_effects_are_looked_for_only_so_far(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_page, "EFFECTS_LOOKED_THROUGH", 1)
    (started,) = events(ledger, "TaskStarted")
    text = page(ledger, started.position).seen
    assert f"Looked for up to event {started.position + 1}." in text


def test_output_is_drawn_and_kept_as_it_is_stored(browsed: Browsed) -> None:
    printed = next(each for each in events(browsed.path, "TaskOutput") if "alert(3)" in str(each))
    answer = page(browsed.path, printed.position)
    lines = re.findall(r'<div class="line">(.*?)</div>', answer.text)
    assert [unescape(re.sub("<[^>]*>", "", line)) for line in lines] == [
        "<script>alert(3)</script>", "click", r"\x1b[2Jgone", "\ufffd\ufffd"
    ]  # fmt: skip
    assert "<script>alert" not in answer.text
    assert "javascript:alert" in unescape(answer.text)  # in the text of what is stored


def test_hostile_texts_are_only_texts(browsed: Browsed) -> None:
    created = next(each for each in events(browsed.path, "TaskCreated") if HOSTILE in str(each.data.get("title")))
    answer = page(browsed.path, created.position)
    assert "<script>alert" not in answer.text
    assert "<img" not in answer.text
    assert "\x1b" not in answer.text
    assert "\u202e" not in answer.text
    assert HOSTILE[:40] in unescape(answer.text)


def test_an_event_of_the_future_is_shown_as_it_is_stored(ledger: Path) -> None:
    (created,) = events(ledger, "TaskCreated")
    with tampering(ledger) as connection:
        position = forge(connection, created.stream, "TaskSang", '{"ignorable":true,"song":"<b>la</b>"}', 7)
    text = page(ledger, position).seen
    assert f"Event {position}: TaskSang" in text
    assert "version 7 of its type, which this ttasks does not know and may pass over" in text
    assert '"song": "<b>la</b>"' in text
    assert "matches what is stored here" in text


def test_an_event_that_was_changed_does_not_match(ledger: Path) -> None:
    (created,) = events(ledger, "TaskCreated")
    with tampering(ledger) as connection:
        connection.execute(
            "UPDATE events SET data = json_set(data, '$.title', 'changed') WHERE position = ?", (created.position,)
        )
    changed, after = get_all(ledger, f"event/{created.position}", f"event/{created.position + 1}")
    assert "does NOT match: this event or the one before it was changed. Run ttasks verify" in changed.seen
    assert "matches what is stored here" in after.seen  # whose hash covers the hash before it, not its data


@pytest.mark.parametrize(
    "data",
    [
        '{"title":3}',
        "[]",
        "{",
        '{"chunks":1,"attempt":1}',
        '{"attempt":1,"chunks":[["stdout"]]}',
        '{"attempt":1,"chunks":[["stdout","",5]]}',
    ],
)
def test_an_event_that_cannot_be_read_is_shown_as_it_is_stored(ledger: Path, data: str) -> None:
    (printed, *_) = events(ledger, "TaskOutput")
    with lawless(ledger) as connection:
        connection.execute("UPDATE events SET data = ? WHERE position = ?", (data, printed.position))
    text = page(ledger, printed.position).seen
    assert f"event {printed.position} (TaskOutput) can't be read" in text
    assert data.replace(" ", "") in text.replace(" ", "")
    assert "does NOT match" in text


def test_huge_data_is_folded_and_cut(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with SQLiteStore(path) as store:
        store.tasks.save(Task.bash("#" * 1_000_000, title="huge"))
    (created,) = events(path, "TaskCreated")
    answer = page(path, created.position)
    assert len(answer.text) < 300_000
    assert "936,000 characters left out here" in answer.text


def test_an_event_that_is_not_there_is_not_found(ledger: Path) -> None:
    head = len(events(ledger))
    for answer in get_all(ledger, f"event/{head + 1}", f"event/{10**17}", "event/0"):
        assert answer.status == 404
        assert f"in this ledger: its latest is {head}" in answer.seen
    far = get(ledger, f"event/{10**30}")
    assert far.status == 404
