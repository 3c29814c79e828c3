"""The connection of the processes, before there is any.

tests/cli/test_train_many.py connects them, and ends them in every way.
"""

from typing import Any

import pytest

from moebius.errors import ConfigError, PeerError
from moebius.parallel import group
from moebius.parallel.group import joined
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


@pytest.mark.parametrize("error", [ConnectionRefusedError(111, "refused"), RuntimeError("gloo")])
def test_processes_that_cannot_connect_with_each_other_are_named(monkeypatch, error):
    def refuses(*_: Any) -> None:
        raise error

    monkeypatch.setattr(group, "_connected", lambda process, timeout: object())
    monkeypatch.setattr(group, "Watch", refuses)
    with pytest.raises(PeerError, match=r"^rank 1 on .*no connection"), joined(Process(1, 2), 1):
        raise AssertionError
