"""Compare what `moebius profile` and `moebius plan` say with what this GPU does.

    python bench/profile_and_plan.py                     all cases, one to two minutes each
    python bench/profile_and_plan.py standard pr_moe     only these cases
    python bench/profile_and_plan.py --json FOLDER       also write each case's profile as JSON

The constants of the plan were fitted to `standard`, `dense` and `pr_moe`, and not to the others.

The columns of the summary: `covered` is the sum of the components over the step. `prepared` is the
time of a step of a model that is prepared to be cut into components, while it is not being cut,
over that of a model that is not prepared; both run in turns (A B A B), and the column shows median
(lowest to highest). Memory and time are planned / measured. After each profile the change that its
first finding proposes is made and measured, also in turns.
"""

import argparse
import gc
import statistics
from pathlib import Path

import torch

from moebius.config import Config
from moebius.config.files import read_config
from moebius.cost.memory import Share, memory
from moebius.cost.sizes import BFLOAT16
from moebius.cost.step_time import step_seconds
from moebius.hardware.devices import device_named
from moebius.profile.findings import findings
from moebius.profile.json_text import as_json
from moebius.profile.profile import profile
from moebius.profile.steps import Steps
from moebius.profile.table import table
from moebius.profile.verify import verify
from moebius.profile.wording import describe

ROUNDS, STEPS = 8, 3
CASES = {
    "standard": "standard --train.batch_size=16",
    "dense": "dense --train.batch_size=16",
    "pr_moe": "pr_moe --train.batch_size=16",
    "stability": "stability --train.batch_size=8",
    "switch, 12 layers of 1024": "switch --train.batch_size=32 --train.micro_batch_size=16 "
    "--model.num_layers=12 --model.num_experts=8 --model.dim=1024 --model.num_heads=16 "
    "--model.num_kv_heads=4",
    "top-2 of 8, 4096 tokens, recomputed": "standard --train.batch_size=8 --train.seq_len=4096 "
    "--model.num_layers=16 --model.num_heads=7 --model.num_kv_heads=7 --model.head_dim=128 "
    "--model.num_experts=8 --model.router_top_k=2 --model.moe_min_expansion=1.5 "
    "--model.moe_max_expansion=1.5 --model.vocab_size=32768 "
    "--parallel.activation_checkpointing=full",
}


def main() -> None:
    """Profile the cases, and print a summary with one line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"any of: {'; '.join(CASES)}")
    parser.add_argument(
        "--json", type=Path, metavar="FOLDER", help="folder for the profiles as JSON"
    )
    options = parser.parse_args()
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"unknown case: {', '.join(unknown)}; the cases are {'; '.join(CASES)}")
    summary = []
    for name in options.cases or CASES:
        preset, *flags = CASES[name].split()
        if not any("micro_batch_size" in flag for flag in flags):
            flags.append("--train.micro_batch_size=0")
        print(f"\n# {name}: {CASES[name]}\n", flush=True)
        summary.append(f"{name:<38}{compare(read_config(preset, flags), name, options.json)}")
        gc.collect()
        torch.cuda.empty_cache()
        torch._dynamo.reset()
    print(f"\n{'':<38}covered  prepared                memory, GB             step, ms")
    print("\n".join(summary))


def compare(config: Config, name: str, folder: Path | None) -> str:
    """Print a case's profile and what its first finding's change does.

    Return the case's line of the summary, without its name. The profile is also written into the
    folder, if there is one.
    """
    profiled, steps = profile(config, torch.device("cuda"), seconds=6.0)
    problems = findings(profiled, steps)
    print("\n".join([*table(profiled), "", *describe(profiled, problems)]), flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name.split(',')[0]}.json").write_text(as_json(profiled, problems))
    measured = profiled.measured
    ratios = prepared_over_plain(config, steps)
    if problems:
        print(verify(profiled, steps, problems[0]), flush=True)
    peak = memory(config, BFLOAT16, compiled=True, experts=steps.backends.experts).peak
    seconds = sum(step_seconds(config, device_named("here"), Share.whole(config)).values())
    return (
        f"{measured.covered:7.1%}  "
        f"{statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})  "
        f"{beside(peak / 1e9, measured.gpu.peak_bytes / 1e9, '6.2f')}  "
        f"{beside(seconds * 1e3, measured.seconds * 1e3, '7.1f')}"
    )


def beside(planned: float, measured: float, form: str) -> str:
    """Return "planned / measured (difference)", with both numbers formatted as `form` says."""
    return f"{planned:{form}} / {measured:{form}} ({planned / measured - 1:+.1%})"


def prepared_over_plain(config: Config, steps: Steps) -> list[float]:
    """Return the prepared model's time of a step over an ordinary model's, round by round.

    The ratios are sorted. `steps` runs the prepared model.
    """
    plain = Steps(config, steps.device)
    ratios = []
    for _ in range(ROUNDS):
        plain_seconds = plain.run(STEPS)
        ratios.append(steps.run(STEPS) / plain_seconds)
    return sorted(ratios)


if __name__ == "__main__":
    main()
