"""What a run shows: the metrics of a step, alarms, metric sinks, and the terminal."""
