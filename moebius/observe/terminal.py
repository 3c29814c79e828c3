"""The run on the terminal: a summary before, a progress bar while, one line per logged step where there is no terminal."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


class Terminal:
    """Everything a run prints. Use as a context manager around the training loop."""

    def __init__(self, total_steps: int, first_step: int = 0, progress: bool = True):
        self.console = Console(highlight=False, soft_wrap=True)
        self.is_live = progress and self.console.is_terminal
        self.progress = Progress(
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=None),
            _Metrics(),
            TimeRemainingColumn(compact=True),
            console=self.console,
            expand=True,
            disable=not self.is_live,
        )
        self.total_steps = total_steps
        self.task = self.progress.add_task("train", total=total_steps, completed=first_step, metrics={})

    def __enter__(self) -> "Terminal":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def say(self, *lines: str) -> None:
        """Print lines above the bar."""
        for line in lines:
            self.console.print(line, markup=False)

    def step(self, step: int) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=step)

    def metrics(self, metrics: dict[str, Any]) -> None:
        """Show a logged step."""
        self.progress.update(self.task, metrics=metrics)
        if not self.is_live:
            self.say(f"step {metrics['step']}/{self.total_steps}  {describe(metrics)}")


def describe(metrics: dict[str, Any]) -> str:
    """loss, speed, the worst layer's CV, dead experts, its lost tokens, and the validation loss where there is one."""
    parts = [f"loss {metrics['loss']:.3f}", f"{_short(metrics['tokens_per_second'])} tok/s"]
    layers = [layer for layer, counts in enumerate(metrics["tokens_per_expert"]) if counts]
    if layers:
        worst = max(layers, key=lambda layer: metrics["cv"][layer])
        parts += [f"cv {metrics['cv'][worst]:.2f} (layer {worst})", f"dead {sum(metrics['dead_experts'])}"]
        for what in ("dropped", "unrouted"):
            if share := max(metrics[f"{what}_share"]):
                parts.append(f"{what} {share:.0%}")
    if "val_loss" in metrics:
        parts.append(f"val {metrics['val_loss']:.3f} ({metrics['val_bpb']:.3f} bpb)")
    return "  ".join(parts)


def table(rows: Iterable[tuple[str, str]]) -> list[str]:
    """Two aligned columns."""
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]


class _Metrics(ProgressColumn):
    def render(self, task: Task) -> Text:
        metrics = task.fields["metrics"]
        return Text(describe(metrics) if metrics else "starting")


def _short(number: float) -> str:
    return f"{number / 1e3:.1f}k" if number < 1e6 else f"{number / 1e6:.2f}M"
