"""Whatever the secrets are, and wherever a text is cut: none of them comes out, and everything else does."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import json_values, records_of, texts
from ttasks import InMemoryStore, Task, TaskContext, TaskExecutor, TaskType
from ttasks.events import facts as f
from ttasks.events.agent_facts import FileEdit, ToolCallStarted
from ttasks.events.codec import FACT_TYPES, encode
from ttasks.events.facts import Fact
from ttasks.log.redaction import MASK, LineRedactor, Redaction
from ttasks.log.secrets import STRUCTURE, TEXTS, withhold
from ttasks.log.verify import verify

pytestmark = pytest.mark.usefixtures("outside_git")
EXAMPLES = 600 if os.environ.get("TTASKS_CAMPAIGN") == "full" else 200
LINE_MAX = 24
PATTERNS = [re.compile(pattern) for pattern in (r"\d{2,}", r"(?<=c)b+", r"^a+d", r"x*", r"d$")]

# Few characters, so that secrets are often there, begin alike, overlap themselves and each other.
words = st.text("ab", min_size=1, max_size=12)
secrets = st.lists(words, min_size=1, max_size=4)


@st.composite
def texts_with(draw: st.DrawFn, known: list[str]) -> str:
    """Return a text of secrets, of what is like them, and of line ends."""
    parts = st.one_of(st.sampled_from(known), words, st.sampled_from(["\n", "\r\n", "\r", "c", "d", " ", "12", "ö"]))
    return "".join(draw(st.lists(parts, max_size=60)))


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    """Return `text` in pieces, empty ones among them."""
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=20)))
    return [text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True)]


def fed(redaction: Redaction, pieces: list[str]) -> str:
    redactor = LineRedactor(redaction)
    return "".join([*map(redactor.feed, pieces), redactor.finish()])


def masked_by_hand(text: str, known: list[str]) -> str:
    """Return `text` with every character that belongs to a secret replaced, and what was replaced made one mask."""
    hidden = {
        place + index
        for secret in known
        for place in range(len(text))
        if text.startswith(secret, place)
        for index in range(len(secret))
    }
    return re.sub("\0+", MASK, "".join("\0" if place in hidden else ch for place, ch in enumerate(text)))


def as_one(text: str) -> str:
    """Return `text` with masks that touch made one: in the parts of a long line there may be one for each."""
    return re.sub(r"(\*\*\*)+", MASK, text)


@settings(max_examples=EXAMPLES)
@given(st.data(), secrets)
def test_no_secret_comes_out_and_everything_else_does(data: st.DataObject, known: list[str]) -> None:
    text = data.draw(texts_with(known)) + "\n"
    shown = fed(Redaction(literals=known, line_characters_max=LINE_MAX), data.draw(cut(text)))
    assert [secret for secret in known if secret in shown] == []
    assert as_one(shown) == masked_by_hand(text, known)


@settings(max_examples=EXAMPLES)
@given(st.data(), secrets, st.lists(st.sampled_from(PATTERNS), unique=True))
def test_where_a_text_is_cut_into_pieces_makes_no_difference(
    data: st.DataObject, known: list[str], patterns: list[re.Pattern[str]]
) -> None:
    redaction = Redaction(literals=known, patterns=patterns, line_characters_max=LINE_MAX)
    text = data.draw(texts_with(known)) + "\n"
    assert fed(redaction, data.draw(cut(text))) == redaction.text(text)


@settings(max_examples=EXAMPLES)
@given(st.data(), secrets, st.lists(st.sampled_from(PATTERNS), unique=True))
def test_what_was_redacted_is_not_changed_by_redacting_it_again(
    data: st.DataObject, known: list[str], patterns: list[re.Pattern[str]]
) -> None:
    redaction = Redaction(literals=known, patterns=patterns)
    shown = redaction.text(data.draw(texts_with(known)))
    assert redaction.text(shown) == shown


@settings(max_examples=EXAMPLES)
@given(st.data(), secrets)
def test_the_lines_stay_the_same_in_number_and_in_their_ends(data: st.DataObject, known: list[str]) -> None:
    text = data.draw(texts_with(known))
    shown = Redaction(literals=known, patterns=PATTERNS).text(text)
    assert re.findall(r"[\r\n]", shown) == re.findall(r"[\r\n]", text)


@settings(max_examples=EXAMPLES)
@given(st.data(), st.text("abc", min_size=10, max_size=40))
def test_of_a_secret_that_breaks_off_at_most_seven_characters_come_out(data: st.DataObject, secret: str) -> None:
    length = data.draw(st.integers(0, len(secret) - 1))
    shown = fed(Redaction(literals=[secret]), ["> ", secret[:length]])
    assert shown == ("> " + secret[:length] if length < 8 else "> ***")


# --- handles -------------------------------------------------------------------------------------------------------

FIELDS = ("title", "payload", "description")
KNOWN = ["aa", "abab"]
STEPS = st.one_of(
    st.tuples(st.sampled_from(FIELDS), texts_with(KNOWN)),
    st.tuples(st.just("error"), texts_with(KNOWN)),
    st.tuples(st.just("save"), st.just("")),
    st.tuples(st.just("fail"), texts_with(KNOWN)),
    st.tuples(st.just("return"), texts_with(KNOWN)),
)


@settings(max_examples=EXAMPLES // 4)
@given(
    st.fixed_dictionaries(dict.fromkeys(FIELDS, texts_with(KNOWN))),
    st.lists(STEPS, max_size=8),
    st.none() | st.just({"API_KEY": "abababab"}),
)
def test_handle_row_and_replay_agree_but_for_what_is_withheld(
    first: dict[str, str], steps: list[tuple[str, str]], env: dict[str, str] | None
) -> None:
    patterns = [re.compile("aa"), re.compile("abab")]
    given_: list[str] = []

    def handler(context: TaskContext) -> str:
        given_.append(context.payload)
        if how == "fail":
            raise RuntimeError(text)
        return text

    with InMemoryStore(redact=patterns) as store:
        executor = TaskExecutor.empty(store)
        executor.register(TaskType.BASH, handler)
        task, expected = Task(**first, type=TaskType.BASH, env=env), first
        for how, text in [*steps, ("save", "")]:
            if how == "save":
                store.tasks.save(task)
            elif how in ("fail", "return") and not task.is_succeeded:
                with contextlib.suppress(RuntimeError):
                    executor.execute(task)
                assert given_[-1] == expected["payload"]
            elif not task.is_succeeded:
                setattr(task, how, text)
                expected = {**expected, how: text}
        redaction = store._redaction(task)
        assert redaction is not None
        state = store._readers.task(task.id)
        assert state is not None and state == store._readers.whole_task(task.id, state.version)
        again = store._load_task(state)
        for name in FIELDS:
            assert getattr(task, name) == expected[name]
            assert getattr(again, name) == redaction.text(expected[name])
            assert (name in (state.redacted or ())) == (getattr(again, name) != getattr(task, name))
        assert again.error == (redaction.text(task.error) if task.error is not None else None)
        result, loaded = task.result, again.result
        assert (result and (result.output, result.error)) == (loaded and (loaded.output, loaded.error))
        assert verify(store._readers).problems == []
        before = len(list(store._readers.events()))
        store.tasks.save(task)
        store.tasks.save(again)
        assert len(list(store._readers.events())) == before


# --- facts -----------------------------------------------------------------------------------------------------------

KEY, SECRET = "00" * 32, "correct-horse"
secretful = st.builds("{}{}{}".format, texts, st.just(SECRET), texts)
_SECRETFUL = {
    "str": secretful,
    # Deep in lists and objects, as their names too.
    "Json": st.recursive(
        secretful,
        lambda inner: (
            st.lists(inner | json_values, min_size=1, max_size=3)
            | st.dictionaries(texts | secretful, inner | json_values, min_size=1, max_size=3)
        ),
        max_leaves=6,
    ),
    "tuple[FileEdit, ...]": st.lists(st.builds(FileEdit, secretful, st.just("edit")), min_size=1, max_size=2).map(
        tuple
    ),
    "tuple[str, ...]": st.lists(secretful, min_size=1, max_size=2).map(tuple),
    "tuple[Chunk, ...]": st.lists(st.tuples(st.just("stdout"), st.just("at"), secretful), min_size=1).map(tuple),
    "Source": st.builds(f.Source, secretful, st.just("0" * 64)),
    "Mapping[str, Mapping[str, str]]": st.dictionaries(
        st.sampled_from("ab"), st.fixed_dictionaries({"type": st.just("E"), "text": secretful}), min_size=1
    ),
    "Mapping[str, Any]": st.fixed_dictionaries(
        {"title": secretful, "payload": secretful}, optional={"error": secretful, "timeout": st.just(1.5)}
    ),
}
_ENVIRONMENTS = st.none() | st.dictionaries(texts | secretful, texts | secretful, max_size=3)


def _kind(field: Any) -> str:
    return str(field.type).removesuffix(" | None")


@st.composite
def facts_with_secrets(draw: st.DrawFn) -> Fact:
    """Return a fact of any type with the secret in each of its texts, and somewhere in its variables."""
    fact_type = draw(st.sampled_from(sorted(FACT_TYPES, key=lambda item: item.__name__)))
    given_ = {field.name: _SECRETFUL[_kind(field)] for field in fields(fact_type) if field.name in TEXTS[fact_type]}
    if fact_type is f.TaskImported:
        names = ("name", "title", "payload", "description", "cwd", "error")
        given_["state"] = st.fixed_dictionaries(
            dict.fromkeys(names, secretful),
            optional={
                "env": _ENVIRONMENTS,
                "env_digests": _ENVIRONMENTS.map(lambda env: env and dict.fromkeys(env, "")),
            }
            | {"result": st.fixed_dictionaries({"error": secretful}), "timeout": json_values},
        )
    if "env" in {field.name for field in fields(fact_type)}:
        given_ |= {"env": _ENVIRONMENTS, "env_digests": st.none()}
    return draw(records_of(fact_type, **given_))


@settings(max_examples=EXAMPLES)
@given(facts_with_secrets())
def test_no_fact_of_any_type_is_recorded_with_a_secret_in_it(fact: Fact) -> None:
    recorded = withhold(fact, KEY, Redaction(literals=[SECRET]))
    assert SECRET not in encode(recorded)
    assert type(recorded) is type(fact)


def test_every_text_in_a_fact_is_redacted_or_known_to_be_no_person_s() -> None:
    textless = {"int", "float", "bool", "datetime", "TaskType", "OnInterrupted", "RunStatus", "RetrySpec"} | {
        "tuple[Member, ...]", "tuple[int, ...]", "tuple[tuple[int, int], ...]",
    }  # fmt: skip
    names = {(fact_type, field.name): _kind(field) for fact_type in FACT_TYPES for field in fields(fact_type)}
    undecided = {
        (fact_type.__name__, name)
        for (fact_type, name), kind in names.items()
        if kind not in textless and not kind.startswith("Literal[")
        if name not in STRUCTURE and name not in TEXTS[fact_type]
    }
    assert undecided == set()
    assert {name for _, name in names} >= STRUCTURE


def test_a_secret_that_is_a_number_is_redacted_too() -> None:
    arguments = {"pin": 47114711, "deep": [47114711.0, {"47114711": True}], "other": [1, 0.5, None, False]}
    call = ToolCallStarted(1, datetime.now(UTC), "c", "bash", arguments)

    recorded = withhold(call, KEY, Redaction(literals=["47114711"]))

    assert recorded == replace(
        call, arguments={"pin": MASK, "deep": [MASK, {MASK: True}], "other": [1, 0.5, None, False]}
    )


def test_a_fact_without_a_secret_is_recorded_as_it_is() -> None:
    created = f.TaskCreated(
        "n", "t", f.TaskType.BASH, "p", "d", datetime.now(UTC), f.OnInterrupted.RERUN, env={"A": "1"}
    )
    recorded = withhold(created, KEY, Redaction(literals=[SECRET]))
    assert recorded == created
    assert isinstance(recorded, f.TaskCreated)
    assert recorded.redacted is None


def test_a_fact_says_which_of_its_task_s_texts_were_redacted() -> None:
    redaction = Redaction(literals=[SECRET])
    revised = withhold(f.TaskRevised({"title": "t", "payload": SECRET, "error": SECRET}), KEY, redaction)
    assert revised == f.TaskRevised({"title": "t", "payload": MASK, "error": MASK}, redacted=("payload",))
    started = withhold(f.TaskStarted(1, "h", payload="p", cwd=f"/{SECRET}/x"), KEY, redaction)
    assert (started.cwd, started.redacted) == (f"/{MASK}/x", ("cwd",))  # type: ignore[attr-defined]
    imported = withhold(f.TaskImported({"title": SECRET, "redacted": ["cwd"]}), KEY, redaction)
    assert imported == f.TaskImported({"title": MASK, "redacted": ["cwd", "title"]})
