"""The connection of the processes, before there is any.

tests/cli/test_train_many.py connects them, and ends them in every way.
"""

import threading
from typing import Any

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from moebius.errors import ConfigError, PeerError
from moebius.parallel import group
from moebius.parallel.group import Peers, joined
from moebius.parallel.process import Process


def test_a_single_process_has_no_connection():
    with joined(Process(), timeout=1) as peers:
        peers.beat()
        peers.rest()
        assert peers.first_before_others(lambda: 3) == 3
    with pytest.raises(ConfigError, match=r"^lr$"), joined(Process(), 1) as peers:
        raise ConfigError("lr")


def test_processes_without_an_address_to_meet_at_are_told_of_torchrun(monkeypatch):
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(ConfigError, match=r"MASTER_ADDR.*torchrun"), joined(Process(1, 2), 1):
        raise AssertionError


def test_the_watch_can_use_the_store_while_the_first_process_prepares_the_text(monkeypatch):
    """A peer that dies meanwhile is written down by another thread, in the same store."""
    monkeypatch.setattr(group, "Watch", lambda *_: None)
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store = TCPStore("127.0.0.1", server.port, wait_for_workers=False)
    peers, prepared = Peers(Process(1, 2), store, timeout=1), []
    waiting = threading.Thread(
        target=lambda: prepared.append(peers.first_before_others(lambda: 3)), daemon=True
    )
    waiting.start()
    waiting.join(1)
    assert waiting.is_alive()
    threading.Thread(target=lambda: store.set("prepared", ""), daemon=True).start()
    waiting.join(10)
    assert prepared == [3]


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), RuntimeError("gloo")])
def test_processes_that_cannot_connect_with_each_other_are_named(monkeypatch, error):
    def refuses(*_: Any) -> None:
        raise error

    monkeypatch.setattr(group, "_connected", lambda process, timeout: object())
    monkeypatch.setattr(group, "Watch", refuses)
    with pytest.raises(PeerError, match=r"^rank 1 on .*no connection"), joined(Process(1, 2), 1):
        raise AssertionError
