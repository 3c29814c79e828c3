"""The sinks of a run. A new sink needs a class in its own file and a line here."""

from moebius.config import ObserveConfig
from moebius.observe.expert_counts import ExpertCounts
from moebius.observe.json_lines import JsonLines
from moebius.observe.sink import Sink
from moebius.parallel.process import Process


def sinks_for(config: ObserveConfig, process: Process) -> list[Sink]:
    """Return the sinks of a configuration; none in a process that does not write."""
    if not process.writes:
        return []
    sinks: list[Sink] = [JsonLines(), ExpertCounts()]
    if config.tensorboard:
        from moebius.observe.tensorboard import TensorBoard

        sinks.append(TensorBoard())
    return sinks
