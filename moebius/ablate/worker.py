"""A variant's process, and the pipe to it.

A request is a line of JSON, and so is its reply, so that nothing on the pipe could run code. If
the owner of a worker dies, the worker reads the end of its pipe and exits, whatever it is doing.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import tomllib
from tempfile import TemporaryFile
from typing import Any

from moebius.config import Config
from moebius.config.files import override, to_toml
from moebius.data.child import python_command
from moebius.errors import MoebiusError

Reply = dict[str, Any]
CODE = "from moebius.ablate.worker import serve; serve()"


class WorkerFailed(Exception):
    """Raised when a variant cannot continue. The message says why in one line."""

    def __init__(self, message: str, is_out_of_memory: bool = False):
        super().__init__(message)
        self.is_out_of_memory = is_out_of_memory


class Worker:
    """A configuration in its own process. Whoever creates it must call `end`."""

    def __init__(self, config: Config):
        self._errors = TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self.process = subprocess.Popen(
            python_command(CODE),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            process_group=0,  # signals from the terminal reach the owner alone, which decides
        )
        self._config = to_toml(config)

    def ask(self, task: str, **arguments: Any) -> Reply:
        """Return what the method `task` of the worker's `Contender` returns.

        Raises WorkerFailed if the method raises, or the process dies.
        """
        assert self.process.stdin and self.process.stdout
        try:
            request = {"task": task, "arguments": arguments, "config": self._config}
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise WorkerFailed(self._death())
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerFailed(reply["error"], reply["is_out_of_memory"])
        return reply

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        self.process.kill()
        self.process.communicate()
        self._errors.close()

    def _death(self) -> str:
        """Return in one line how the process ended."""
        code = self.process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            perhaps = ", perhaps because memory was full" if code == -signal.SIGKILL else ""
            return f"its process was killed by {signal.Signals(-code).name}{perhaps}"
        return f"its process ended with exit code {code}" + (f": {lines[-1]}" if lines else "")


def serve() -> None:
    """Run the worker's side: answer requests that come on stdin until stdin ends."""
    # Schedulers send SIGTERM to all processes, but only the owner decides what it does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # so that what libraries print is not taken for a reply
    requests: queue.SimpleQueue[Reply] = queue.SimpleQueue()

    def receive() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    contender = None
    while True:
        request = requests.get()
        reply: Reply
        try:
            if contender is None:
                from moebius.ablate.contender import Contender

                contender = Contender(override(Config(), tomllib.loads(request["config"])))
            reply = getattr(contender, request["task"])(**request["arguments"])
            contender.rest()
        except Exception as error:
            reply = _described(error)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _described(error: Exception) -> Reply:
    """Return an error as a reply in one line.

    The variant's row shows the error, which must not end the other variants.
    """
    import torch

    text = " ".join(str(error).split())
    is_full_gpu = isinstance(error, torch.OutOfMemoryError)
    if is_full_gpu or "can't allocate memory" in text:  # torch's message on a CPU
        return {"error": "out of memory", "is_out_of_memory": True}
    if isinstance(error, MoebiusError):
        return {"error": text, "is_out_of_memory": False}
    return {"error": f"{type(error).__name__}: {text[:300]}", "is_out_of_memory": False}
