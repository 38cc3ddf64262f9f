"""`ttasks browse`: real servers on ports that the system chooses, asked and stopped as people and browsers do it."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import sqlite3
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from commands import Command, Running
from processes import PATIENCE_S, until

GOOD = "title: good\ntasks:\n  hello: {bash: echo hello}\n"


@dataclass
class Browsed:
    """A server that listens at `port`; `home` is the path that it printed."""

    running: Running
    port: int
    home: str

    def get(self, path: str, host: str | None = None) -> tuple[int, str]:
        """Return status and text of one answer; `host` is the Host header where it is not the usual one."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)) as connection:
            connection.putrequest("GET", path, skip_host=host is not None)
            if host:
                connection.putheader("Host", host)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


@pytest.fixture
def ttasks(tmp_path: Path) -> Iterator[Command]:
    command = Command(tmp_path)
    command.write("good.yaml", GOOD)
    yield command
    command.clean_up()


def browsed(ttasks: Command, *arguments: str, **variables: str) -> Browsed:
    """Start a server on a port that the system chooses, and return once it listens."""
    running = ttasks.start("browse", "--port", "0", *arguments, **variables)
    url = urlsplit(running.until("http://").split()[0])
    assert url.hostname == "127.0.0.1" and url.port
    return Browsed(running, url.port, url.path)


@pytest.fixture
def served(ttasks: Command) -> Browsed:
    ttasks("run", "good.yaml")
    return browsed(ttasks)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browsed]:
    """Return a server that several tests only ask."""
    command = Command(tmp_path_factory.mktemp("shared"))
    command.write("good.yaml", GOOD)
    command("run", "good.yaml")
    yield browsed(command)
    command.clean_up()


def test_browse_prints_the_address_of_the_ledgers_home(shared: Browsed) -> None:
    assert shared.home == "/-/ttasks/ledger"
    status, text = shared.get(shared.home)
    assert status == 200 and "good" in text
    assert shared.get("/ledger/tasks")[0] == 200


def test_a_wrong_address_is_not_found_and_nothing_is_printed_about_it(served: Browsed) -> None:
    for path in ("/nothing", "/ledger/nothing", "/-/ttasks/nothing", "/a/b/c/d/e", f"{served.home}/no/such/page"):
        assert served.get(path)[0] == 404, path
    _, printed = served.running.end(signal.SIGINT)
    assert printed.count("\n") == 1


def test_several_ledgers_are_served_together_and_the_address_is_that_of_their_list(ttasks: Command) -> None:
    for name in ("one.db", "two.db"):
        ttasks("run", "good.yaml", "--ledger", name)
    server = browsed(ttasks, "one.db", "two.db")
    assert server.home == "/-/ttasks"
    status, text = server.get(server.home)
    assert status == 200 and "/-/ttasks/one" in text and "/-/ttasks/two" in text


def test_a_ledger_named_twice_is_served_once(ttasks: Command) -> None:
    ttasks("run", "good.yaml")
    server = browsed(ttasks, str(ttasks.ledger), "--ledger", str(ttasks.ledger))
    assert server.home == "/-/ttasks/ledger"
    found = json.loads(server.get("/-/databases.json")[1])
    listed = found["databases"] if isinstance(found, dict) else found  # the first is Datasette 1.0's way
    assert [each["name"] for each in listed] == ["ledger"]


def test_nothing_is_served_where_there_is_no_ledger(ttasks: Command) -> None:
    done = ttasks("browse", "--port", "0")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("ttasks: there is no ledger at .ttasks/ledger.db")


def test_nothing_is_served_where_a_file_is_something_else(ttasks: Command) -> None:
    ttasks("run", "good.yaml")
    done = ttasks("browse", "--port", "0", str(ttasks.ledger), "good.yaml")
    assert done.returncode == 2 and done.stdout == ""
    assert "good.yaml is not a ledger" in done.stderr


def test_a_taken_port_is_refused_with_what_to_do(ttasks: Command) -> None:
    ttasks("run", "good.yaml")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ttasks("browse", "--port", str(port))
    assert done.returncode == 1 and done.stdout == ""
    assert f"port {port} of 127.0.0.1 can't be had" in done.stderr
    assert "--port N" in done.stderr and "--port 0" in done.stderr


def test_only_this_machine_can_connect(shared: Browsed) -> None:
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    addresses = [line[1] for line in listening if line[3] == "0A" and line[1].endswith(f":{shared.port:04X}")]
    assert addresses == [f"0100007F:{shared.port:04X}"]


def test_who_asks_for_this_machine_is_answered(shared: Browsed) -> None:
    for host in ("localhost", "LOCALHOST:{port}", "127.0.0.1:{port}", "[::1]:{port}", "localhost:9"):
        assert shared.get(shared.home, host.format(port=shared.port))[0] == 200, host


def test_who_asks_for_another_host_is_refused_everything(shared: Browsed) -> None:
    for host in ("evil.example", "evil.example:{port}", "127.0.0.1.evil", "localhost.evil", "127.0.0.1@evil", "[::2]"):
        for path in (shared.home, "/ledger/events.json", "/-/static/app.css"):
            status, text = shared.get(path, host.format(port=shared.port))
            assert status == 400, (host, path)
            assert text.startswith("This ledger is served to this machine only: ask for localhost or 127.0.0.1, not ")


@pytest.mark.parametrize("headers", ["", "Host: localhost\r\nHost: evil.example\r\n", "Host: \x1b[2Jevil\r\n"])
def test_who_does_not_say_one_host_is_refused(shared: Browsed, headers: str) -> None:
    with (
        socket.create_connection(("127.0.0.1", shared.port), timeout=PATIENCE_S) as connection,
        connection.makefile("rb") as file,
    ):
        connection.sendall(f"GET {shared.home} HTTP/1.0\r\n{headers}\r\n".encode())
        with connection.makefile("rb") as file:
            answer = file.read()
    assert answer.startswith(b"HTTP/1.1 400 ") and b"\x1b" not in answer and b"hello" not in answer


def test_nothing_can_be_written(ttasks: Command, served: Browsed) -> None:
    before = ttasks.files()
    for query in ("/ledger?sql=", "/ledger/-/query?sql="):  # one of them leads to the other, in Datasette 1.0
        assert served.get(f"{query}delete+from+tasks")[0] != 200
    for path, data in (
        ("/ledger/tasks/-/insert", {"row": {"id": "x"}}),
        ("/ledger/-/create", {"table": "mine", "row": {"id": 1}}),
    ):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)) as connection:
            connection.request("POST", path, json.dumps(data), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            assert answer.status >= 400, path
    assert ttasks.files() == before


STOPS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


@pytest.mark.parametrize(("number", "code"), STOPS)
def test_one_signal_ends_it_cleanly_though_connections_are_held_open(
    served: Browsed, number: signal.Signals, code: int
) -> None:
    polling = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    polling.request("GET", f"{served.home}?_live=1")
    assert polling.getresponse().read().startswith(b'{"token": ')
    with contextlib.closing(polling), socket.create_connection(("127.0.0.1", served.port)) as silent:
        silent.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        ended, printed = served.running.end(number)
        assert (ended, printed) == (code, f"http://127.0.0.1:{served.port}{served.home} (Ctrl-C ends it)\n")


def test_after_its_end_the_port_is_free_at_once(ttasks: Command, served: Browsed) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", served.port, timeout=PATIENCE_S)
    with contextlib.closing(kept):
        kept.request("GET", served.home)
        kept.getresponse().read()
        served.running.end(signal.SIGINT)
        again = ttasks.start("browse", "--port", str(served.port))
        assert str(served.port) in again.until("http://")


def test_what_another_process_writes_meanwhile_is_seen_at_once(ttasks: Command, served: Browsed) -> None:
    ttasks.write(
        "slow.yaml", 'title: slow\ntasks:\n  wait: {bash: "touch begun; while [ ! -e go ]; do sleep 0.05; done"}\n'
    )
    before = served.get(f"{served.home}?_live=1")
    writer = ttasks.start("run", "slow.yaml")
    ttasks.await_file("begun")
    until(lambda: ">slow</a>" in served.get(served.home)[1])
    assert served.get(f"{served.home}?_live=1") != before
    ttasks.write("go", "")
    assert writer.end()[0] == 0
    assert served.get(served.home)[1].count(">slow</a>") == 1
    assert ttasks("verify").returncode == 0


def test_writers_that_come_and_go_are_seen_in_the_tables_as_on_the_home(ttasks: Command, served: Browsed) -> None:
    for number in (2, 3, 4):
        assert served.get(served.home)[0] == 200
        ttasks("run", "good.yaml")
        status, text = served.get("/ledger/runs.json?_shape=array&_size=max")
        assert (status, len(json.loads(text))) == (200, number)
        assert served.get(served.home)[1].count(">good</a>") == number


def test_open_opens_the_address_in_a_browser(ttasks: Command) -> None:
    ttasks("run", "good.yaml")
    browser = ttasks.write("browser", '#!/bin/sh\necho "$1" > opened.part && mv opened.part opened\n')
    browser.chmod(browser.stat().st_mode | stat.S_IXUSR)
    server = browsed(ttasks, "--open", BROWSER=f"{browser} %s")
    opened = ttasks.await_file("opened").read_text().strip()
    assert opened == f"http://127.0.0.1:{server.port}{server.home}"


def test_it_says_so_where_no_browser_can_be_opened(ttasks: Command) -> None:
    ttasks("run", "good.yaml")
    server = browsed(ttasks, "--open", BROWSER="/bin/false %s")
    assert "no browser could be opened" in server.running.until("no browser")
    assert server.get(server.home)[0] == 200


# --- the last check, as the home tells it ----------------------------------------------------------------------------


def last_check(server: Browsed) -> str:
    """Return what the home says of the last check, as words."""
    text = server.get(server.home)[1].partition("<dt>Last check</dt>")[2].partition("</dd>")[0]
    words = "".join(part.partition(">")[2] for part in text.split("<"))
    return " ".join(words.split())


def test_the_home_tells_when_a_ledger_was_never_checked_and_when_it_was(ttasks: Command, served: Browsed) -> None:
    assert last_check(served).startswith("Never, as far as is known here: ttasks verify --ledger ")
    assert ttasks("verify").returncode == 0
    (last,) = ttasks.sql("SELECT max(position) FROM events")[0]
    assert last_check(served).startswith(f"Clean up to event {last}, 0 events since; checked ")
    ttasks("run", "good.yaml")
    (now,) = ttasks.sql("SELECT max(position) FROM events")[0]
    assert f"Clean up to event {last}, {now - last} events since" in last_check(served)


def test_the_home_tells_where_a_ledger_was_not_clean(ttasks: Command, served: Browsed) -> None:
    with contextlib.closing(sqlite3.connect(ttasks.ledger)) as connection:
        connection.execute("DROP TRIGGER events_are_never_changed")
        connection.execute(
            "UPDATE events SET data = replace(data, 'echo hello', 'echo HELLO') WHERE type = 'TaskCreated'"
        )
        ((position,),) = connection.execute("SELECT position FROM events WHERE type = 'TaskCreated'").fetchall()
        connection.commit()
    assert ttasks("verify").returncode == 1
    said = last_check(served)
    assert said.startswith("Not clean: ") and f"the first (integrity) at event {position}; found " in said
    assert "ttasks verify --ledger" in said


def test_the_home_tells_when_the_checked_events_are_no_longer_there(ttasks: Command, served: Browsed) -> None:
    assert ttasks("verify").returncode == 0
    (last,) = ttasks.sql("SELECT max(position) FROM events")[0]
    with contextlib.closing(sqlite3.connect(ttasks.ledger)) as connection:
        connection.execute("DROP TRIGGER events_are_never_removed")
        connection.execute("DELETE FROM events WHERE position = (SELECT max(position) FROM events)")
        connection.commit()
    said = last_check(served)
    assert said.startswith(f"To be checked again: the events up to {last} are not those that were checked and clean")
    assert "ttasks verify --ledger" in said
