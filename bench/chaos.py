"""Kill, interrupt and damage runs, and count what was lost. Runs on a CPU.

    python bench/chaos.py                                       all parts
    python bench/chaos.py --only corruptions --corruptions 20

kills        SIGKILL at random moments of training. No completed checkpoint may be lost, no repair
             may be needed, and the final weights must equal those of an undisturbed run. A run
             that was killed is always finished, which takes a few hundred kills.
faults       SIGKILL at every write, fsync, rename and unlink of a save (needs strace). No earlier
             checkpoint may be lost, and nothing unfinished left behind.
corruptions  Random flips, truncations and missing files. They must be noticed before a tensor is
             used, and an older checkpoint must be loaded instead.
signals      SIGTERM at random moments. A valid checkpoint and exit code 143 must follow.
owners       Two processes at one run. One must train, the other must be refused, and the lock must
             die with its process.
terminals    SIGHUP and closed pipes at random moments. The state must be saved.
sizes        Resumes with another batch size at random steps. The sequences that are read must be
             those of an uninterrupted run.
inputs       Malformed configurations, flags, texts and tokenizers. Each must end with one line and
             the right exit code.

Every run is a forked process of this one, which has torch loaded: importing torch again would take
most of the time.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch._dynamo  # every optimizer would import it, in seconds, so it is loaded before forking
from chaos_inputs import make_case
from chaos_resumes import Result, changed_sizes, exit_code_of, lost_terminals, two_owners

from moebius import cli
from moebius.errors import CheckpointError
from moebius.train import checkpoint, checkpoint_store
from moebius.train import session as _session  # noqa: F401  (loaded before forking, too)

FLAGS = {
    "data.vocab_size": 512,
    "model.vocab_size": 512,
    "train.batch_size": 2,
    "train.seq_len": 64,
    "train.steps": 120,
    "train.warmup_steps": 5,
    "train.eval_every": 50,
    "train.eval_tokens": 2000,
    "train.checkpoint_every": 2,
    "train.log_every": 5,
    "train.device": "cpu",
    "observe.tensorboard": "false",
}
UNTOUCHED = "untouched"
"""Name of the run that is left alone."""


def main() -> None:
    options = _options()
    torch.set_num_threads(1)  # one thread is bit-exact, and a process with more cannot be forked
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    chance = random.Random(options.seed)
    parts: dict[str, Callable[[Path], bool]] = {
        "kills": lambda folder: kills(folder, options.kills, chance),
        "faults": faults,
        "corruptions": lambda folder: corruptions(folder, options.corruptions, chance),
        "signals": lambda folder: signals(folder, options.signals, chance),
        "owners": lambda folder: resumes("owners", two_owners, folder, options.owners, chance),
        "terminals": lambda folder: resumes(
            "terminals", lost_terminals, folder, options.terminals, chance
        ),
        "sizes": lambda folder: resumes("sizes", changed_sizes, folder, options.sizes, chance),
        "inputs": lambda folder: inputs(folder, options.inputs, chance),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if set(options.only) - {"faults", "inputs"}:
            code = exit_code_of(spawn(train_arguments(folder, UNTOUCHED)))
            if code:
                sys.exit(f"the untouched run ended with exit code {code}")
        results = [part(folder) for name, part in parts.items() if name in options.only]
    sys.exit(not all(results))


def train_arguments(folder: Path, name: str) -> list[str]:
    """Return the command that begins a run in the folder or, if it is there, resumes it."""
    if (folder / name).exists():
        return ["resume", str(folder / name)]
    flags = FLAGS | {"train.out": folder, "train.name": name, "data.cache": folder / "cache"}
    return ["train", "tiny", *(f"--{key}={value}" for key, value in flags.items())]


def kills(folder: Path, num_kills: int, chance: random.Random) -> bool:
    """Kill runs again and again until they are done, and return whether nothing was lost."""
    killed = lost = repairs = different = finished = 0
    expected = _weights(folder / UNTOUCHED)
    start = time.perf_counter()
    while killed < num_kills:
        run = folder / f"killed-{finished}"
        newest = -1  # no checkpoint yet, which a run that is killed early need not have
        while True:
            process = spawn(train_arguments(folder, run.name))
            time.sleep(chance.uniform(0, 3))
            os.kill(process, signal.SIGKILL)
            code = exit_code_of(process)
            killed += code == -signal.SIGKILL
            repairs += code not in (0, -signal.SIGKILL)
            step = _newest_intact(run / "checkpoints")
            lost += step < newest
            newest = max(newest, step)
            if code != -signal.SIGKILL:
                break
        finished += 1
        weights = _weights(run)
        different += any(not torch.equal(expected[name], weights[name]) for name in expected)
        shutil.rmtree(run)
    _say(
        "kills",
        f"{killed} in {finished} runs, {time.perf_counter() - start:.0f} s: {lost} completed "
        f"checkpoints lost, {repairs} repairs needed, {different} runs ended with other weights",
    )
    return not (lost or repairs or different)


SYSTEM_CALLS = ("write", "fsync", "rename", "unlink,unlinkat,rmdir")
SAVES = """
import sys, torch
from pathlib import Path
from moebius.train import checkpoint, checkpoint_store
folder = Path(sys.argv[1])
checkpoint_store.tidy(folder)
torch.manual_seed(0)
weight, moment = torch.randn(300, 100), torch.randn(300, 100)
tensors = {"model": {"weight": weight}, "optimizer": {"moment": moment}}
for step in (3, 4, 4):  # two new checkpoints, which push out the oldest, and one that replaces
    print("saving", step, file=sys.stderr)
    checkpoint.write(folder / f"step-{step:08d}", tensors, {"step": step})
    checkpoint_store.prune(folder, 2, 0, folder / f"step-{step:08d}")
"""
"""Three saves into a folder that has the checkpoints of steps 1 and 2."""


def faults(folder: Path) -> bool:
    """Kill a process that saves at its n-th system call, for every n and every kind of call."""
    if shutil.which("strace") is None:
        _say("faults", "not run: strace is not installed")
        return False
    zeros = torch.zeros(300, 100)
    tensors: checkpoint.Groups = {"model": {"weight": zeros}, "optimizer": {"moment": zeros}}
    checkpoints = folder / "faults"
    died = lost = debris = 0
    for calls in SYSTEM_CALLS:
        number = 0
        while True:
            shutil.rmtree(checkpoints, ignore_errors=True)
            for step in (1, 2):
                checkpoint.save(checkpoints / f"step-{step:08d}", tensors, {"step": step})
            number += 1
            done = _save_until(calls, number, checkpoints)
            if done.returncode == 0:
                break
            died += 1
            checkpoint_store.tidy(checkpoints)
            oldest_allowed = 2 if "saving 4" not in done.stderr else 3
            lost += _newest_intact(checkpoints) < oldest_allowed
            debris += any(not path.name.startswith("step-") for path in checkpoints.iterdir())
    _say(
        "faults",
        f"killed at {died} writes, fsyncs, renames and unlinks of a save: {lost} checkpoints "
        f"lost, {debris} with debris",
    )
    return died > 0 and not (lost or debris)


def _save_until(calls: str, number: int, checkpoints: Path) -> subprocess.CompletedProcess[str]:
    """Run the saves and kill them at a system call; return 0 as exit code if it never came."""
    strace = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}"]
    inject = ["-e", f"inject={calls}:signal=KILL:when={number}"]
    command = [*strace, *inject, sys.executable, "-c", SAVES, str(checkpoints)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def corruptions(folder: Path, num_corruptions: int, chance: random.Random) -> bool:
    """Damage the newest checkpoint in one place, and return whether it was noticed every time."""
    intact, damaged = folder / UNTOUCHED / "checkpoints", folder / "damaged"
    noticed = fell_back = 0
    newest, second, *_ = checkpoint_store.complete(intact)
    for _ in range(num_corruptions):
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(intact, damaged)
        _damage(chance.choice(sorted((damaged / newest.name).iterdir())), chance)
        try:
            checkpoint.load(damaged / newest.name)
        except CheckpointError:
            noticed += 1
        fell_back += checkpoint_store.latest(damaged, lambda line: None).name == second.name
    _say(
        "corruptions",
        f"{num_corruptions}: {noticed} noticed before a tensor was used, {fell_back} fell back to "
        "an older checkpoint",
    )
    return noticed == fell_back == num_corruptions


def _damage(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "flip", "flip", "truncate", "lengthen", "remove"])
    if kind == "remove":
        path.unlink()
        return
    if kind == "flip":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif kind == "truncate":
        del data[chance.randrange(len(data)) :]
    else:
        data += chance.randbytes(chance.randint(1, 100))
    path.write_bytes(data)


def signals(folder: Path, num_signals: int, chance: random.Random) -> bool:
    """Send SIGTERM once training has begun, and return whether every run ended as it should."""
    valid = codes = 0
    slowest = 0.0
    for number in range(num_signals):
        run = folder / f"signaled-{number}"
        process = spawn(train_arguments(folder, run.name))
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 2))
        sent = time.perf_counter()
        os.kill(process, signal.SIGTERM)
        codes += exit_code_of(process) == 128 + signal.SIGTERM
        slowest = max(slowest, time.perf_counter() - sent)
        valid += _newest_intact(run / "checkpoints") >= 0
        shutil.rmtree(run)
    _say(
        "signals",
        f"{num_signals} SIGTERMs: {valid} valid checkpoints, {codes} exits with 143, "
        f"{slowest:.1f} s at most",
    )
    return valid == codes == num_signals


def resumes(
    name: str,
    part: Callable[..., Result],
    folder: Path,
    number: int,
    chance: random.Random,
) -> bool:
    """Run a part of chaos_resumes.py, and return whether its result is right."""
    start = time.perf_counter()
    result, is_right = part(folder, number, chance, spawn, train_arguments)
    _say(name, f"{result} ({time.perf_counter() - start:.0f} s)")
    return is_right


def inputs(folder: Path, num_inputs: int, chance: random.Random) -> bool:
    """Run malformed commands, and return whether each ended with one line and the right code."""
    right = 0
    slowest = 0.0
    for number in range(num_inputs):
        place = folder / f"input-{number}"
        place.mkdir()
        case = make_case(number, place, chance)
        start = time.perf_counter()
        code = exit_code_of(spawn(case.arguments, place / "stderr"))
        slowest = max(slowest, time.perf_counter() - start)
        shown = (place / "stderr").read_text(errors="replace")
        is_one_line = shown.startswith("moebius: ") and shown.count("\n") == 1
        if is_one_line and code == case.exit_code:
            right += 1
        else:
            print(f"  {case.arguments}: exit {code}, {shown!r}", flush=True)
        shutil.rmtree(place)
    _say(
        "inputs",
        f"{num_inputs} malformed: {right} single lines with the right exit code, "
        f"{slowest:.1f} s at most",
    )
    return right == num_inputs


def spawn(
    arguments: list[str],
    stderr: Path | None = None,
    stdout: int | None = None,
    before: Callable[[], None] = lambda: None,
) -> int:
    """Fork a process that runs a command, and return its process id.

    Its stderr goes into a file, and its stdout to a file descriptor, or else nowhere. `before` is
    called in the new process first.
    """
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with (stderr or Path(os.devnull)).open("w") as errors:
            before()
            os.dup2(os.open(os.devnull, os.O_WRONLY) if stdout is None else stdout, 1)
            os.dup2(errors.fileno(), 2)
            sys.stdout = os.fdopen(1, "w", closefd=False) if stdout else io.StringIO()
            sys.stderr = os.fdopen(2, "w", closefd=False)
            if stdout is not None:
                os.close(stdout)
            try:
                cli.main(arguments)
            except SystemExit as ending:
                code = int(ending.code or 0)
            sys.stderr.flush()
    finally:
        os._exit(code)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a run's newest checkpoint: weights, moments and random generators."""
    groups, _ = checkpoint.load(checkpoint_store.latest(run / "checkpoints", lambda line: None))
    return {
        f"{group}/{name}": tensor
        for group, tensors in groups.items()
        for name, tensor in tensors.items()
    }


def _newest_intact(checkpoints: Path) -> int:
    """Return the step of the newest intact checkpoint; -1 if there is none."""
    with contextlib.suppress(CheckpointError):
        return checkpoint_store.step_of(checkpoint_store.latest(checkpoints, lambda line: None))
    return -1


def _say(part: str, result: str) -> None:
    print(f"{part:<12} {result}", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["kills", "faults", "corruptions", "signals", "owners", "terminals", "sizes", "inputs"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--corruptions", type=int, default=500)
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--owners", type=int, default=100)
    parser.add_argument("--terminals", type=int, default=50)
    parser.add_argument("--sizes", type=int, default=50)
    parser.add_argument("--inputs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
