"""Do `profile` and `plan` say the truth? What they say of some configurations, beside what this GPU does.

    python bench/profile_and_plan.py                     all of them, one to two minutes each
    python bench/profile_and_plan.py standard pr_moe     some
    python bench/profile_and_plan.py --json FOLDER       each one's components, as `moebius profile --json` prints them

`standard`, `dense` and `pr_moe` are what plan's constants were fitted to; the others are not.

covered: the components' sum over the step. prepared: a step of a model prepared to be cut into components, while it is not,
over one of a model that is not prepared, A B A B: median (lowest to highest). Memory and time: planned over measured. After
each profile its first finding's change is made and measured, in turns.
"""

import argparse
import gc
import statistics
from pathlib import Path

import torch

from moebius.config import Config
from moebius.memory import Share, memory
from moebius.profile import report
from moebius.profile.devices import device_named
from moebius.profile.findings import findings
from moebius.profile.measure import Steps
from moebius.profile.plan.estimate import ITEM, step_seconds
from moebius.profile.profile import profile, verify
from moebius.profile.wording import describe
from moebius.settings import read_config

ROUNDS, STEPS = 8, 3
CASES = {
    "standard": "standard --train.batch_size=16",
    "dense": "dense --train.batch_size=16",
    "pr_moe": "pr_moe --train.batch_size=16",
    "stability": "stability --train.batch_size=8",
    "switch, 12 layers of 1024": "switch --train.batch_size=32 --train.micro_batch_size=16 --model.num_layers=12 "
    "--model.num_experts=8 --model.dim=1024 --model.num_heads=16 --model.num_kv_heads=4",
    "top-2 of 8, 4096 tokens, recomputed": "standard --train.batch_size=8 --train.seq_len=4096 --model.num_layers=16 "
    "--model.num_heads=7 --model.num_kv_heads=7 --model.head_dim=128 --model.num_experts=8 --model.router_top_k=2 "
    "--model.moe_min_expansion=1.5 --model.moe_max_expansion=1.5 --model.vocab_size=32768 "
    "--parallel.activation_checkpointing=full",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {'; '.join(CASES)}")
    parser.add_argument("--json", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"no such case: {', '.join(unknown)}")
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
    """Prints the profile and what making its first finding's change does; its line of the summary."""
    device = torch.device("cuda")
    found, steps = profile(config, device, seconds=6.0)
    every = findings(found, steps)
    print("\n".join([*report.table(found), "", *describe(found, every)]), flush=True)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name.split(',')[0]}.json").write_text(report.as_json(found, every))
    peak, seconds = found.measured.gpu.peak_bytes, found.measured.seconds
    ratios = prepared_over_plain(config, steps)
    if every:
        print(verify(steps, every[0]), flush=True)
    bytes_planned = memory(config, ITEM, compiled=True, own_kernels=steps.backends.has_own_kernels).peak
    seconds_planned = sum(step_seconds(config, device_named("here"), Share.whole(config)).values())
    return (
        f"{found.measured.covered:7.1%}  {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})  "
        f"{bytes_planned / 1e9:6.2f} / {peak / 1e9:6.2f} ({bytes_planned / peak - 1:+.1%})  "
        f"{seconds_planned * 1e3:7.1f} / {seconds * 1e3:7.1f} ({seconds_planned / seconds - 1:+.1%})"
    )


def prepared_over_plain(config: Config, steps: Steps) -> list[float]:
    plain = Steps(config, steps.device)
    ratios = []
    for _ in range(ROUNDS):
        before = plain.run(STEPS)
        ratios.append(steps.run(STEPS) / before)
    return sorted(ratios)


if __name__ == "__main__":
    main()
