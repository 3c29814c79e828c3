"""Notice in time that another process of the run has ended, or does not answer.

A process that waits for the result of a peer on a GPU would wait until NCCL's own timeout, which
aborts it without a word. Here, a thread keeps a connection to the next rank, which breaks in the
moment in which that process ends. The ranks form a ring, so each of them notices, and the first
one to notice writes down which rank was lost.
"""

import os
import platform
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import NoReturn

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from moebius.config.printable import complain
from moebius.errors import PeerError
from moebius.parallel.ranks import of_all

LOST = "lost"  # key of the rank that was lost first
REASON = "reason/"  # begins the key of the error that ended a rank
GOODBYE = b"."
TURN_SECONDS = 0.5  # between two looks at the clock
SPEAKING_SECONDS = 1.0  # for the main thread to say what is wrong
ALIVE = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""Seconds and tries after which a machine that has vanished counts as lost: eight seconds."""


class Watch:
    """A thread that ends this process with exit code 7 if a peer has ended or hangs."""

    def __init__(self, rank: int, store: Store, timeout: float):
        """timeout: seconds between two beats after which the other processes seem to hang."""
        self._rank, self._store, self._timeout = rank, store, timeout
        self._last_beat: float | None = None
        self._lost_rank, self._reason = 0, ""
        self._is_over, self._is_lost = threading.Event(), threading.Event()
        with _listener() as listener:
            address, token = listener.getsockname()[:2], secrets.token_hex(8)
            ranks = of_all([platform.node(), *address, token])
            self.hosts: list[str] = [host for host, *_ in ranks]
            """The name of each rank's machine."""
            self._next = (rank + 1) % len(ranks)
            _, place, port, expected = ranks[self._next]
            self._to_next = socket.create_connection((place, port), timeout)
            self._to_next.sendall(expected.encode())
            self._to_previous = _accepted(listener, token, timeout)
        _keep_alive(self._to_next)
        self._to_next.settimeout(TURN_SECONDS)
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Note that the processes have just agreed on something, so that none of them hangs."""
        self._last_beat = time.monotonic()

    def rest(self) -> None:
        """Stop the clock until the next beat."""
        self._last_beat = None

    def stop(self) -> None:
        """Let the process end in its own way from now on."""
        self._is_over.set()

    def close(self, in_order: bool) -> None:
        """End the watch. in_order: tell the others that this process ends as it should."""
        self.stop()
        if in_order:
            with suppress(OSError):  # the rank before may have ended already
                self._to_previous.sendall(GOODBYE)
        self._thread.join()
        self._to_next.close()
        self._to_previous.close()

    def lost(self, seconds: float) -> str:
        """Return in words which rank was lost, if that is noticed in this time, or else ""."""
        return self._name_of_lost() if self._is_lost.wait(seconds) else ""

    def _watch(self) -> None:
        while not self._is_over.is_set():
            try:
                if self._to_next.recv(1) == GOODBYE:
                    break
            except TimeoutError:
                self._check_beat()
                continue
            except OSError:
                pass
            return self._lose()
        while not self._is_over.wait(TURN_SECONDS):  # the next rank has ended in order
            self._check_beat()

    def _check_beat(self) -> None:
        last = self._last_beat
        if last and time.monotonic() - last > self._timeout:
            self._leave(hanging(self._timeout))

    def _lose(self) -> None:
        try:
            self._store.compare_set(LOST, "", str(self._next))
            self._lost_rank = int(self._store.get(LOST))
            key = f"{REASON}{self._lost_rank}"
            if self._store.check([key]):
                self._reason = f": {self._store.get(key).decode()}"
        except RuntimeError:  # the store ended with the process that kept it, which is rank 0
            self._lost_rank = 0
        self._is_lost.set()
        self._leave(self._name_of_lost())

    def _name_of_lost(self) -> str:
        return f"rank {self._lost_rank} on {self.hosts[self._lost_rank]} has ended{self._reason}"

    def _leave(self, reason: str) -> None:
        """End the process, whatever its main thread waits for, unless that is ending it, too."""
        if not self._is_over.wait(SPEAKING_SECONDS):
            leave(f"rank {self._rank} on {self.hosts[self._rank]}: {reason}")


def hanging(timeout: float) -> str:
    """Return in words that the other processes do not answer."""
    return (
        f"no answer from the other processes for {timeout:g} s (parallel.timeout); one of them "
        "hangs, or is much slower"
    )


def leave(line: str) -> NoReturn:
    """End the process at once with a line."""
    complain(line)
    os._exit(PeerError.exit_code)


def _listener() -> socket.socket:
    """Return a socket that listens on the address at which the other machines see this one.

    With all processes on one machine, that is 127.0.0.1, and nobody else can connect.
    """
    master = os.environ.get("MASTER_ADDR", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master, 1))  # sends nothing; the system chooses the address to send from
        own = probe.getsockname()[0]
    is_local = {platform.node()} == set(of_all(platform.node()))
    return socket.create_server(("127.0.0.1" if is_local else own, 0))


def _accepted(listener: socket.socket, token: str, timeout: float) -> socket.socket:
    """Return the connection of the rank before, which knows the token."""
    listener.settimeout(timeout)
    while True:
        connection, _ = listener.accept()
        connection.settimeout(timeout)
        with suppress(OSError):
            if connection.recv(len(token), socket.MSG_WAITALL) == token.encode():
                return connection
        connection.close()


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in ALIVE.items():
        if hasattr(socket, name):  # macOS calls the first one differently
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
