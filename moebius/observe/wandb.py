"""A run's metrics for Weights & Biases (W&B), written by the library in a process of its own.

The library starts a service, waits for servers, and joins it when Python exits. In a process of
its own it can do all of that without touching the training: this one sends it lines of JSON, and
ends it when it takes too long.
"""

import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from moebius.config import ObserveConfig
from moebius.config.files import read_toml
from moebius.config.printable import printable_line
from moebius.data.child import python_command
from moebius.errors import ConfigError, StorageError
from moebius.observe.apart import CLOSE_SECONDS, Report
from moebius.observe.json_lines import SAMPLES
from moebius.observe.line_file import read_lines
from moebius.observe.metrics import StepMetrics
from moebius.observe.sink import Event, Sample
from moebius.observe.tags import LAYERS_EVERY, Rarer, tags

FOLDER = "wandb"
ID = "moebius-run-id"
"""File in the folder with the run's id in W&B. A branch, which has none, is another run there."""
CODE = "from moebius.observe.wandb_process import serve; serve()"
INIT_SECONDS = 30.0
"""How long to wait for the server of W&B before the run is written offline."""
UPLOAD_SECONDS = CLOSE_SECONDS - 5.0
"""How long the end of a run waits for the last upload; the rest is left to `wandb sync`."""
FIRST_SAMPLES = 100
"""Number of earlier samples that a resumed run shows again."""


class WeightsAndBiases:
    """A sink that sends everything to a process that writes it with the library `wandb`.

    The tags are those of moebius/observe/tags.py, drawn over `step`. W&B cannot take anything
    back: after a roll-back, the steps that are trained again are there twice.
    """

    def __init__(self, config: ObserveConfig, report: Report):
        """`report` gets what the library has to say, such as a server that cannot be reached."""
        self._config, self._report = config, report
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, run: Path, step: int) -> None:
        """Start the process, which begins a run in W&B or goes on with this one's."""
        self._layers = Rarer(LAYERS_EVERY)
        self._folder = run / FOLDER
        try:
            self._folder.mkdir(exist_ok=True)
            identity = _identity(self._folder / ID)
            samples = read_lines(run / SAMPLES) if (run / SAMPLES).exists() else []
            # The file may be ahead of this thread.
            earlier = [sample for sample in samples if sample["step"] <= step]
        except OSError as error:
            raise StorageError(f"{error.filename or run}: {error.strerror}") from None
        values: dict[str, Any] = {}
        with suppress(ConfigError):  # a config.toml that cannot be read
            values = read_toml(run / "config.toml")
        self._errors = TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._process = subprocess.Popen(
            python_command(CODE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=run.absolute(),
            process_group=0,  # Ctrl-C reaches this process alone, which ends the other one
        )
        assert self._process.stdout is not None
        os.set_blocking(self._process.stdout.fileno(), False)
        self._send(
            begin={
                "mode": self._config.wandb,
                "project": self._config.wandb_project,
                "entity": self._config.wandb_entity,
                "id": identity,
                "name": run.absolute().name,
                "folder": str(run.absolute()),
                "process": os.getpid(),
                "patience": INIT_SECONDS,
                "config": values,
                "samples": earlier[-FIRST_SAMPLES:],
            }
        )

    def write(self, metrics: StepMetrics) -> None:
        """Send a logged step; the loads of the experts as a histogram for each layer."""
        step = metrics.step
        with_layers = not metrics.has_many_experts or self._layers.is_due(step)
        loads: dict[str, Sequence[int]] = {}
        if with_layers:
            loads = {
                f"expert_load/{number:02d}": layer.tokens_per_expert
                for number, layer in metrics.routed_layers
            }
        self._send(log={"step": step} | tags(metrics, with_layers), loads=loads)

    def event(self, event: Event) -> None:
        """Send an event; the process makes an alert of an alarm."""
        self._send(event=event.to_json(), line=str(event))

    def sample(self, sample: Sample) -> None:
        """Send a text of the model."""
        self._send(sample=sample.to_json())

    def rewind(self, step: int) -> None:
        """Send nothing, because W&B keeps what it has."""
        self._layers.rewind(step)

    def close(self) -> None:
        """Wait until everything is written and uploaded, but no longer than `UPLOAD_SECONDS`.

        Raises StorageError if that is too short, or the process has failed.
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        try:
            with suppress(OSError):
                process.stdin.write(b'{"end": true}\n')
                process.stdin.close()
            try:
                code = process.wait(UPLOAD_SECONDS)
            except subprocess.TimeoutExpired:
                raise StorageError(
                    f"the upload was not over {UPLOAD_SECONDS:.0f} s after the end; "
                    f"`wandb sync {self._folder}/*run-*` uploads the rest"
                ) from None
            self._pass_on(process)
            if code:
                raise StorageError(self._last_error())
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            self._errors.close()

    def _send(self, **message: Any) -> None:
        """Write a message to the process, and pass on what it has to say."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
        except OSError:
            process.wait(UPLOAD_SECONDS)
            self._pass_on(process)
            raise StorageError(self._last_error()) from None
        self._pass_on(process)

    def _pass_on(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None
        for line in (process.stdout.read() or b"").decode(errors="replace").splitlines():
            self._report(printable_line(line))

    def _last_error(self) -> str:
        """Return the last line of the process's stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        said = next((line for line in reversed(lines) if line.strip()), "it ended unexpectedly")
        return printable_line(said)


def _identity(path: Path) -> str:
    """Return the run's id in W&B, which is made and kept if there is none. Raises OSError."""
    if path.exists() and (known := path.read_text("utf-8").strip()):
        return known
    identity = uuid.uuid4().hex[:12]
    path.write_text(identity + "\n", "utf-8")
    return identity
