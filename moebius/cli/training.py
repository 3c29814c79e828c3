"""The part that `moebius train` and `moebius resume` share: the loop, and the lines after it."""

import shlex
from typing import TYPE_CHECKING

from moebius.cli.sample import continuation, printable
from moebius.observe.terminal import Terminal
from moebius.train.loop import train

if TYPE_CHECKING:
    from moebius.train.session import Session

SAMPLE_TOKENS = 120


def train_to_end(session: "Session") -> None:
    """Train to the last step; then print the validation loss, a sample and the run directory."""
    config, directory = session.config, session.run
    terminal = Terminal(config.train.steps, config.observe.progress, session.process)
    evaluation = train(session, terminal)
    if not session.process.writes:
        return
    print("\n" + "\n".join(evaluation.lines()))
    prompt = "def " if config.data.source == "python-stdlib" else ""
    sample = prompt + "".join(continuation(directory, session.device, prompt, SAMPLE_TOKENS))
    print("\na sample:\n" + "\n".join(f"    {line}" for line in printable(sample).splitlines()))
    run = shlex.quote(str(directory.root))
    print(f"\nrun directory: {directory.root}")
    print(f"more text:     moebius generate {run} --prompt {shlex.quote(prompt or 'The ')}")
