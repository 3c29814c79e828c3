"""`moebius doctor` in this process, without its slow parts."""

import re
from collections.abc import Callable
from typing import NamedTuple

import pytest

from moebius import cli
from moebius.doctor import examine, selftest
from moebius.hardware.ceilings import Ceilings


class Examined(NamedTuple):
    """The exit code and the output of `moebius doctor`."""

    code: int
    out: str
    err: str

    @property
    def outcomes(self) -> dict[str, str]:
        """The reported result of each check, `ok` or `FAILED`, by the check's name."""
        checks = re.findall(r"^(ok|FAILED) +(.{26})", self.out, re.MULTILINE)
        return {name.strip(): word for word, name in checks}


Doctor = Callable[..., Examined]


@pytest.fixture
def doctor(capsys, tmp_path, monkeypatch) -> Doctor:
    """`moebius doctor`, on the CPU unless a device is given.

    What it leaves in its temporary folder is in tmp_path.
    """
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(examine, "ceilings", lambda device, dtype: Ceilings(1e11, 1e10))

    def call(*arguments: str) -> Examined:
        with pytest.raises(SystemExit) as ended:
            device = [] if "--train.device" in arguments else ["--train.device", "cpu"]
            cli.main(["doctor", *device, *arguments])
        return Examined(int(ended.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def without_a_run(monkeypatch) -> None:
    """Leave out the trials that train, which take most of the time."""
    monkeypatch.setattr(selftest, "_training", lambda small_run: [])
