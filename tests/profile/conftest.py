"""Made-up results of timing other shapes on the device."""

import pytest

from moebius.profile import trials


@pytest.fixture
def half(monkeypatch) -> None:
    """Every other shape takes half the time of the present one."""
    monkeypatch.setattr(trials, "ratio", lambda *_: 0.5)
    for name in ("attention", "product", "experts", "head"):
        monkeypatch.setattr(trials, name, lambda *_, **__: None)


@pytest.fixture
def same(half, monkeypatch) -> None:
    """Every other shape takes as long as the present one."""
    monkeypatch.setattr(trials, "ratio", lambda *_: 1.0)
