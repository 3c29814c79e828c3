"""The report of runs as a page that a browser on this machine shows, and that follows the runs.

It is made in memory: nothing is written into the runs' directories. A request that does not come
from this machine's own address is refused, also if a name leads there (DNS rebinding).
"""

import socketserver
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from moebius.config.printable import printable_line
from moebius.errors import ConfigError, StorageError
from moebius.report.report import report
from moebius.report.run import check_is_run, read_run
from moebius.report.verdict import verdict
from moebius.train.ownership import is_owned

ADDRESS = "127.0.0.1"
HOSTS = ("127.0.0.1", "localhost")
"""Names that a request may have been sent to, at any port, as that of an SSH tunnel may differ."""
PORT = 8642
"""The port that is taken if it is free and no other one is asked for."""
SHORTEST_SECONDS = 3.0
"""Time between two reports at least."""
SHARE = 0.1
"""Share of a core's time that making reports may take: a long run's takes ten seconds."""
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class FollowedReport:
    """The report of some runs, made anew when somebody asks for it and their files have grown."""

    def __init__(self, folders: Sequence[Path]):
        self._folders = list(folders)
        self._lock, self._known = threading.Lock(), threading.Lock()
        self._page, self._tag = b"", ""
        self._state: object = None
        self._next = 0.0

    def latest(self) -> tuple[bytes, str]:
        """Return the page and its tag, at first after it is made. Raises MoebiusError."""
        if not self._page:
            self._renew()
        else:
            threading.Thread(target=self._renew_quietly, daemon=True).start()
        with self._known:
            return self._page, self._tag

    def _renew_quietly(self) -> None:
        try:
            self._renew()
        except Exception as error:  # the page that is there stays
            print(f"moebius: {printable_line(str(error) or type(error).__name__)}", flush=True)

    def _renew(self) -> None:
        if not self._lock.acquire(blocking=not self._page):
            return
        try:
            if time.monotonic() < self._next:
                return
            state = [_state_of(folder) for folder in self._folders]
            if state == self._state:
                return
            start = time.monotonic()
            runs = [read_run(folder, len(self._folders)) for folder in self._folders]
            version = f"{time.time_ns():x}"
            page = report(runs, [verdict(run) for run in runs], version).encode()
            seconds = time.monotonic() - start
            with self._known:
                self._page, self._tag = page, f'"{version}"'
            self._state = state
            self._next = time.monotonic() + max(SHORTEST_SECONDS, seconds / SHARE)
        finally:
            self._lock.release()


def _state_of(folder: Path) -> list[tuple[str, int, int]]:
    """Return what tells whether the files of a run, or who trains it, have changed."""
    files = [*folder.glob("*"), *(folder / "evaluations").glob("*"), *folder.glob("checkpoints/*")]
    stats = [("owned", int(is_owned(folder)), 0)]
    for file in sorted(files):
        try:
            stat = file.stat()
        except OSError:  # deleted meanwhile
            continue
        stats.append((file.name, stat.st_size, stat.st_mtime_ns))
    return stats


def serve(folders: Sequence[Path], port: int | None, say: Callable[[str], None]) -> None:
    """Serve the report of some runs until a signal comes. `say` gets a line with the address.

    port: None is PORT or, if that is in use, any other; 0 is any. Raises ConfigError for a number
    that no port has, StorageError if the port cannot be taken, and CheckpointError for a folder
    that is no run.
    """
    for folder in folders:
        check_is_run(folder)
    followed = FollowedReport(folders)
    server = _server(port, followed)
    try:
        say("making the report; this takes some seconds for a long run")
        followed.latest()
        place = f"{ADDRESS}:{server.port}"
        say(f"http://{place}/ shows the report and follows the training")
        say(f"from another machine: ssh -L {server.port}:{place} HOST; Ctrl-C ends it")
        server.serve_forever(poll_interval=0.2)
    finally:
        server.server_close()


def _server(port: int | None, followed: FollowedReport) -> "_Server":
    try:
        return _Server(PORT if port is None else port, followed)
    except OverflowError:
        raise ConfigError(f"--port {port}: must be between 0 and 65535") from None
    except OSError as error:
        if port is None:
            return _Server(0, followed)
        reason = error.strerror or str(error)
        raise StorageError(f"--port {port}: {reason}; --port 0 takes one that is free") from None


class _Server(socketserver.ThreadingTCPServer):
    """A server that asks no name service, as that of http.server does."""

    daemon_threads = allow_reuse_address = True

    def __init__(self, port: int, followed: FollowedReport):
        self.followed = followed
        super().__init__((ADDRESS, port), _Handler)
        self.port: int = self.socket.getsockname()[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone away."""


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD for the one page there is."""

    server_version, sys_version = "moebius", ""
    timeout = 10  # of a connection on which nothing comes

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing about requests."""

    def _answer(self, has_body: bool) -> None:
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].partition(":")[0].lower() not in HOSTS:
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
        elif self.path != "/":
            self._refuse(HTTPStatus.NOT_FOUND)
        else:
            server = self.server
            assert isinstance(server, _Server)
            page, tag = server.followed.latest()
            self.send_response(HTTPStatus.OK)
            self._end("text/html; charset=utf-8", page, has_body, {"ETag": tag})

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response(status)
        self._end("text/plain", f"{status.phrase}\n".encode(), self.command != "HEAD", {})

    def _end(self, kind: str, body: bytes, has_body: bool, more: dict[str, str]) -> None:
        for name, value in {"Content-Type": kind, **HEADERS, **more}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body)
