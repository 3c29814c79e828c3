"""What a run shows: a step's metrics, alarms, metric sinks, the terminal."""
