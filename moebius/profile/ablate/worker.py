"""A variant's process and the pipe to it: a line of JSON there, a line of JSON back, because nothing that runs code should
travel on it. A worker whose owner is gone reads the end of its pipe and ends too, whatever it is doing."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from moebius.config import Config
from moebius.errors import MoebiusError
from moebius.settings import override, to_toml

Reply = dict[str, Any]


class WorkerFailed(Exception):
    """A variant that cannot go on; the message is one line."""

    def __init__(self, message: str, is_out_of_memory: bool = False):
        super().__init__(message)
        self.is_out_of_memory = is_out_of_memory


class Worker:
    """A configuration in a process of its own, to be ended by whoever made it."""

    def __init__(self, config: Config):
        root = str(Path(__file__).parents[3])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._errors = TemporaryFile()  # noqa: SIM115  (closed by `end`)
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from moebius.profile.ablate.worker import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONPATH": path},
        )
        self._config = to_toml(config)

    def ask(self, task: str, **arguments: Any) -> Reply:
        """What the worker's `Contender` says to a task. Raises WorkerFailed if it cannot do it, or dies."""
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
        self.process.kill()
        self.process.communicate()
        self._errors.close()

    def _death(self) -> str:
        code = self.process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        if code < 0:
            want = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
            return f"its process was killed by {signal.Signals(-code).name}{want}"
        return f"its process ended with {code}" + (f": {said[-1]}" if said else "")


def serve() -> None:
    """What a worker runs: requests from stdin, replies to stdout, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the owner decides
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply
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
                from moebius.profile.ablate.contender import Contender

                contender = Contender(override(Config(), tomllib.loads(request["config"])))
            reply = getattr(contender, request["task"])(**request["arguments"])
            contender.rest()
        except Exception as error:
            reply = _described(error)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _described(error: Exception) -> Reply:
    """Whatever a variant does wrong is its row's to say, in one line, and must not end the others."""
    import torch

    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:  # a GPU's, a CPU's
        return {"error": "out of memory", "is_out_of_memory": True}
    if isinstance(error, MoebiusError):
        return {"error": text, "is_out_of_memory": False}
    return {"error": f"{type(error).__name__}: {text[:300]}", "is_out_of_memory": False}
