"""The page that follows runs: only on this machine, only that page, and renewed as they grow."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from moebius.errors import StorageError
from moebius.watch import page as module
from moebius.watch.page import FollowedReport, _Server, serve
from tests.report.made_up_run import metrics_lines, write_run


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run of ten steps."""
    return write_run(tmp_path / "run", metrics_lines(range(1, 11)))


@pytest.fixture
def server(folder) -> Iterator[_Server]:
    """A server of that run."""
    server = _Server(0, FollowedReport([folder]))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(server: _Server, method: str, path: str, host: str | None = None) -> tuple[int, str, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, body, dict(answer.getheaders())


def test_the_page(server):
    status, body, headers = ask(server, "GET", "/")
    assert status == 200 and "<h1>Run run</h1>" in body
    assert "connect-src 'self'" in body and headers["ETag"].strip('"') in body
    assert headers["X-Frame-Options"] == "DENY" and headers["Cache-Control"] == "no-store"
    assert ask(server, "HEAD", "/")[1] == ""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_other_names_are_refused(server, host):
    status, body, _ = ask(server, "GET", "/", host)
    assert status == 421 and "Run" not in body


@pytest.mark.parametrize("host", ["localhost:9999", "LOCALHOST", "127.0.0.1"])
def test_a_tunnel_may_have_another_port(server, host):
    assert ask(server, "GET", "/", host)[0] == 200


@pytest.mark.parametrize(
    "path", ["/config.toml", "/../run/config.toml", "/.", "/?x", "/metrics.jsonl", "*"]
)
def test_nothing_else_is_served(server, path):
    assert ask(server, "GET", path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent(server, method):
    assert ask(server, method, "/")[0] == 501


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(OSError), socket.create_connection(("127.0.0.2", server.port), 5):
        pass


def test_it_is_made_anew_only_if_the_files_have_grown(folder, monkeypatch):
    monkeypatch.setattr(module, "SHORTEST_SECONDS", 0.0)
    monkeypatch.setattr(module, "SHARE", 1e9)
    followed = FollowedReport([folder])
    _, first = followed.latest()
    followed._renew()
    assert followed._tag == first
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_lines([11])[0]) + "\n")
    followed._next = float("inf")
    followed._renew()
    assert followed._tag == first  # not yet
    followed._next = 0.0
    followed._renew()
    assert followed._tag != first and b"step 11" in followed._page


def test_a_port_that_is_in_use_is_said_before_the_page_is_made(server, folder, monkeypatch):
    monkeypatch.setattr(FollowedReport, "latest", pytest.fail)
    with pytest.raises(StorageError, match=f"--port {server.port}: .*; --port 0 takes one"):
        serve([folder], server.port, pytest.fail)


def test_it_says_what_it_does_before_the_page_is_made(folder, monkeypatch):
    said: list[str] = []

    def made(followed: FollowedReport) -> None:
        assert said == ["making the report; this takes some seconds for a long run"]
        raise KeyboardInterrupt

    monkeypatch.setattr(FollowedReport, "latest", made)
    with pytest.raises(KeyboardInterrupt):
        serve([folder], 0, said.append)
    assert len(said) == 1
