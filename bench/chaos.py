"""Does a run lose anything when it is killed, interrupted, corrupted or given nonsense? On a CPU.

    python bench/chaos.py                     all of it
    python bench/chaos.py --only kills --kills 20

kills        SIGKILL at random moments of training: no completed checkpoint is lost, no repair is needed, and the final weights
             are those of a run that nobody touched
faults       SIGKILL at every write, fsync, rename and unlink of a save (needs strace)
corruptions  random flips, truncations and missing files: noticed before a tensor is used, an older checkpoint is taken
signals      SIGTERM at random moments: a valid checkpoint and exit code 143
inputs       malformed configurations, flags, texts and tokenizers: one line and the right exit code

Every run is a forked process of this one, which has torch loaded: otherwise most of the time would go into importing it.
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
import torch._dynamo  # by each optimizer, in seconds: loaded before forking

from moebius import cli
from moebius.errors import CheckpointError
from moebius.train import checkpoint
from moebius.train import session as _session  # noqa: F401  (so is this)

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


def main() -> None:
    options = _options()
    torch.set_num_threads(1)  # one thread is bit-exact, and a process with more cannot be forked
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    chance = random.Random(options.seed)
    needs_run = {"kills", "corruptions", "signals"} & set(options.only)
    parts: dict[str, Callable[[], bool]] = {
        "kills": lambda: kills(folder, options.kills, chance),
        "faults": lambda: faults(folder),
        "corruptions": lambda: corruptions(folder, options.corruptions, chance),
        "signals": lambda: signals(folder, options.signals, chance),
        "inputs": lambda: inputs(folder, options.inputs, chance),
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if needs_run:
            _finish(_spawn(train_arguments(folder, "untouched")))
        results = [part() for name, part in parts.items() if name in options.only]
    sys.exit(not all(results))


def train_arguments(folder: Path, name: str) -> list[str]:
    """A new run in the folder, or the one that is there, gone on with."""
    if (folder / name).exists():
        return ["resume", str(folder / name)]
    flags = FLAGS | {"train.out": folder, "train.name": name, "data.cache": folder / "cache"}
    return ["train", "tiny", *(f"--{key}={value}" for key, value in flags.items())]


def kills(folder: Path, wanted: int, chance: random.Random) -> bool:
    """Runs that are killed again and again until they are done."""
    killed = lost = repairs = different = finished = 0
    expected = _weights(folder / "untouched")
    start = time.perf_counter()
    while killed < wanted:
        name = f"killed-{finished}"
        run = folder / name
        newest = 0
        while True:
            process = _spawn(train_arguments(folder, name))
            time.sleep(chance.uniform(0, 3))
            os.kill(process, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
            killed += code == -signal.SIGKILL
            repairs += code not in (0, -signal.SIGKILL)
            step = _newest_intact(run)
            lost += step < newest
            newest = max(newest, step)
            if code != -signal.SIGKILL:
                break
        finished += 1
        different += any(not torch.equal(expected[key], value) for key, value in _weights(run).items())
        shutil.rmtree(run)
    print(
        f"kills        {killed} in {finished} runs, {time.perf_counter() - start:.0f} s: {lost} completed checkpoints lost, "
        f"{repairs} repairs needed, {different} runs ended with other weights",
        flush=True,
    )
    return not (lost or repairs or different)


CALLS = ("write", "fsync", "rename", "unlink,unlinkat,rmdir")
SAVE = """
import sys, torch
from pathlib import Path
from moebius.train import checkpoint
place = Path(sys.argv[1])
checkpoint.tidy(place)
torch.manual_seed(0)
tensors = {"model": {"weight": torch.randn(300, 100)}, "optimizer": {"moment": torch.randn(300, 100)}}
for step in (3, 4, 4):  # a new one, which lets the oldest go, and one in another's place
    print("saving", step, file=sys.stderr)
    checkpoint.write(place / f"step-{step:08d}", tensors, {"step": step})
    checkpoint.prune(place, keep_last=2, keep_every=0)
"""


def faults(folder: Path) -> bool:
    """A process that saves dies at its n-th call, for every n."""
    if shutil.which("strace") is None:
        print("faults       not run: strace is not installed", flush=True)
        return False
    tensors: checkpoint.Groups = {"model": {"weight": torch.zeros(300, 100)}, "optimizer": {"moment": torch.zeros(300, 100)}}
    died = lost = debris = 0
    for calls in CALLS:
        count = 0
        while True:
            place = folder / "faults"
            shutil.rmtree(place, ignore_errors=True)
            for step in (1, 2):
                checkpoint.save(place / f"step-{step:08d}", tensors, {"step": step})
            count += 1
            inject = f"inject={calls}:signal=KILL:when={count}"
            command = ["strace", "-f", "-qq", "-e", f"trace={calls}", "-e", inject, "-o", os.devnull]
            done = subprocess.run(
                [*command, sys.executable, "-c", SAVE, str(place)], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                break
            died += 1
            checkpoint.tidy(place)
            lost += _newest_intact_in(place) < (2 if "saving 4" not in done.stderr else 3)
            debris += any(not path.name.startswith("step-") for path in place.iterdir())
    print(
        f"faults       killed at {died} writes, fsyncs, renames and unlinks of a save: {lost} checkpoints lost, "
        f"{debris} with debris",
        flush=True,
    )
    return died > 0 and not (lost or debris)


def corruptions(folder: Path, wanted: int, chance: random.Random) -> bool:
    """The newest checkpoint is damaged in one place."""
    original, run = folder / "untouched" / "checkpoints", folder / "corrupted"
    noticed = fell_back = 0
    newest, *older = checkpoint.complete(original)
    for _ in range(wanted):
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(original, run)
        _damage(chance.choice(sorted((run / newest.name).iterdir())), chance)
        try:
            checkpoint.load(run / newest.name)
        except CheckpointError:
            noticed += 1
        fell_back += checkpoint.latest(run, lambda line: None).name == older[0].name
    print(
        f"corruptions  {wanted}: {noticed} noticed before a tensor was used, {fell_back} fell back to an older checkpoint",
        flush=True,
    )
    return noticed == fell_back == wanted


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


def signals(folder: Path, wanted: int, chance: random.Random) -> bool:
    """SIGTERM once training has begun."""
    valid = codes = 0
    slowest = 0.0
    for number in range(wanted):
        run = folder / f"signalled-{number}"
        process = _spawn(train_arguments(folder, run.name))
        while not (run / "metrics.jsonl").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 2))
        sent = time.perf_counter()
        os.kill(process, signal.SIGTERM)
        codes += os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143
        slowest = max(slowest, time.perf_counter() - sent)
        valid += _newest_intact(run) >= 0
        shutil.rmtree(run)
    print(
        f"signals      {wanted} SIGTERMs: {valid} valid checkpoints, {codes} exits with 143, {slowest:.1f} s at most",
        flush=True,
    )
    return valid == codes == wanted


def inputs(folder: Path, wanted: int, chance: random.Random) -> bool:
    """Nonsense on the command line, in files and in texts."""
    right = 0
    makers = [_bad_flag, _bad_toml, _bad_text, _bad_lines, _bad_tokenizer, _bad_name]
    slowest = 0.0
    for number in range(wanted):
        place = folder / f"input-{number}"
        place.mkdir()
        arguments, allowed = makers[number % len(makers)](place, chance)
        start = time.perf_counter()
        code, shown = _captured(arguments, place)
        slowest = max(slowest, time.perf_counter() - start)
        is_one_line = shown.startswith("moebius: ") and shown.count("\n") == 1 and "Traceback" not in shown
        if is_one_line and code in allowed:
            right += 1
        else:
            print(f"  {arguments}: exit {code}, {shown!r}", flush=True)
        shutil.rmtree(place)
    print(
        f"inputs       {wanted} malformed: {right} single lines with the right exit code, {slowest:.1f} s at most", flush=True
    )
    return right == wanted


Case = tuple[list[str], set[int]]


def _bad_flag(place: Path, chance: random.Random) -> Case:
    flag = chance.choice(
        [
            "model.dim=-1", "model.dim=1e3", "model.num_heads=7", "model.router_type=topk", "model.dmi=3",
            "model.num_experts=4,,4", "train.lr=nan", "train.steps=0", "train.device=tpu", "train.name=../x",
            "data.val_fraction=1", "data.vocab_size=99999999", "observe.cv.action=panic", "observe.cv=3",
        ]
    )  # fmt: skip
    return ["train", "tiny", f"--{flag}"], {2}


def _bad_toml(place: Path, chance: random.Random) -> Case:
    text = b'base = "tiny"\n[model]\ndim = 128\n[train]\nsteps = 10\nlr = 0.01\n'
    cut = chance.randrange(1, len(text))
    broken = chance.choice([
        text[:cut] + b"\xff" + text[cut:],
        text.replace(b"]", b"", 1),
        text.replace(b"= 10", b'= "ten"'),
        text.replace(b"dim", b"dmi"),
        text.replace(b"tiny", b"tinny"),
        text + b"steps = 3\n",
        text.replace(b"128", b"[1"),
    ])  # fmt: skip
    (place / "own.toml").write_bytes(broken)
    return ["train", str(place / "own.toml")], {2}


def _bad_text(place: Path, chance: random.Random) -> Case:
    text = bytearray(b"some words and a line\n" * 500)
    kind = chance.choice(["bytes", "empty", "short", "missing", "folder"])
    if kind == "bytes":
        text[chance.randrange(len(text))] = chance.randrange(0x80, 0x100)
    elif kind in ("empty", "short"):
        del text[0 if kind == "empty" else 5 :]
    if kind == "folder":
        (place / "text.txt").mkdir()
    elif kind != "missing":
        (place / "text.txt").write_bytes(text)
    return _on(place / "text.txt", place), {3}


def _bad_lines(place: Path, chance: random.Random) -> Case:
    lines = [b'{"text": "line %d of a text"}\n' % number for number in range(300)]
    broken = chance.randrange(300)
    lines[broken] = chance.choice([b'{"text": \n', b'{"txet": "x"}\n', b"[1, 2]\n", b'{"text": 3}\n', b'{"text": "\xff"}\n'])
    (place / "text.jsonl").write_bytes(b"".join(lines))
    return _on(place / "text.jsonl", place), {3}


def _bad_tokenizer(place: Path, chance: random.Random) -> Case:
    (place / "text.txt").write_text("".join(f"line {number} of a text\n" for number in range(500)))
    (place / "second.txt").write_text("another document\n" * 50)
    content = chance.choice([b"{", b"[]", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"}}', chance.randbytes(100), b""])
    (place / "own.json").write_bytes(content)
    return [*_on(place / "*.txt", place), f"--data.tokenizer={place / 'own.json'}"], {3}


def _bad_name(place: Path, chance: random.Random) -> Case:
    name = chance.choice(["..", ".", "a/b", "/tmp/x", "x" * 65, " ", "a b", "a\nb", "-" * 70, "ü"])
    return ["train", "tiny", f"--train.name={name}"], {2}


def _on(source: Path, place: Path) -> list[str]:
    return ["train", "tiny", f"--data.source={source}", f"--data.cache={place / 'cache'}", f"--train.out={place / 'runs'}"]


def _captured(arguments: list[str], place: Path) -> tuple[int, str]:
    process = _spawn(arguments, place / "stderr")
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, (place / "stderr").read_text(errors="replace")


def _spawn(arguments: list[str], stderr: Path | None = None) -> int:
    """A forked process that runs a command; its number."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        with (stderr or Path(os.devnull)).open("w") as errors:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(errors.fileno(), 2)
            sys.stdout, sys.stderr = io.StringIO(), os.fdopen(2, "w", closefd=False)
            try:
                cli.main(arguments)
            except SystemExit as ended:
                code = int(ended.code or 0)
            sys.stderr.flush()
    finally:
        os._exit(code)


def _finish(process: int) -> None:
    if code := os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        sys.exit(f"the untouched run ended with exit code {code}")


def _weights(run: Path) -> dict[str, torch.Tensor]:
    tensors, _ = checkpoint.load(checkpoint.latest(run / "checkpoints", lambda line: None))
    return {f"{group}/{name}": tensor for group, named in tensors.items() for name, tensor in named.items()}


def _newest_intact(run: Path) -> int:
    return _newest_intact_in(run / "checkpoints")


def _newest_intact_in(checkpoints: Path) -> int:
    with contextlib.suppress(CheckpointError):
        return checkpoint.step_of(checkpoint.latest(checkpoints, lambda line: None))
    return -1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["kills", "faults", "corruptions", "signals", "inputs"]
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--corruptions", type=int, default=500)
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--inputs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
