"""The sinks of a run. A new sink needs a class in its own file and a line here."""

from collections.abc import Callable
from importlib.util import find_spec

from moebius.config import ObserveConfig
from moebius.errors import ConfigError
from moebius.observe.apart import Apart, Report
from moebius.observe.expert_counts import ExpertCounts
from moebius.observe.json_lines import JsonLines
from moebius.observe.sink import Sink
from moebius.parallel.process import Process

Make = Callable[[Report], Sink]


def sinks_for(config: ObserveConfig, process: Process) -> list[Sink]:
    """Return the sinks of a configuration; none in a process that does not write.

    The first ones are the record of the run, which ends if they cannot be written. The others
    work apart, and the run goes on without one that fails.
    """
    if not process.writes:
        return []
    apart: dict[str, Make] = {}
    # Their modules are imported here, because Python may deadlock when threads import the same.
    if config.tensorboard:
        from moebius.observe.tensorboard import TensorBoard

        apart["TensorBoard"] = lambda report: TensorBoard()
    if config.wandb != "off":
        from moebius.observe.wandb import WeightsAndBiases

        apart["Weights & Biases"] = lambda report: WeightsAndBiases(config, report)
    return [JsonLines(), ExpertCounts(), *(Apart(name, make) for name, make in apart.items())]


def check_sinks(config: ObserveConfig) -> None:
    """Raise ConfigError if a library is missing that a sink needs."""
    if config.wandb != "off" and find_spec("wandb") is None:
        raise ConfigError(
            f"observe.wandb={config.wandb!r}: the library wandb is missing; "
            "`pip install 'moebius[wandb]'` installs it, and `--observe.wandb off` does without"
        )
