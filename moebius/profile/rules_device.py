"""Rules about how a step uses the device: its memory, its waiting time, its batch."""

from collections.abc import Iterator
from dataclasses import replace

from moebius.config.attention import ATTENTION
from moebius.config.files import override
from moebius.config.flags import parse_flags
from moebius.cost.layouts import FILLED
from moebius.cost.units import byte_size
from moebius.profile import trials
from moebius.profile.case import ROUTED, Case
from moebius.profile.finding import Finding

WAITING = 0.05  # share of the step's time
LOADING = 0.02  # share of the step's time
OPTIMIZING = 0.1  # share of the step's time
LOSS_CHUNKS = 8
LOGITS = 0.1  # share of the memory at the peak
BLOCK = {
    *("norms", "attention_projections", "rotary", "attention_core", "router", "base_mlp"),
    *ROUTED,
}
"""Components of a block, all of which full checkpointing computes again."""
KEPT = {"attention_projections", "attention_core", "expert_gemms", "base_mlp"}
"""Components whose results selective checkpointing keeps."""


def copied_heads(case: Case) -> Iterator[Finding]:
    """Report an attention backend that copies KV heads, and so moves more bytes than it has to.

    On a CPU, copying is faster nevertheless. The prediction comes from the attention core alone,
    measured with both backends, and leaves out what compilation gains elsewhere.
    """
    model, backends = case.model, case.steps.backends
    if not ATTENTION[backends.attention].copies_kv_heads or case.steps.device.type == "cpu":
        return
    copies = 2 * (model.num_heads - model.num_kv_heads) * model.head_width
    shape = (model.num_heads, model.num_kv_heads, model.head_width)
    flex = trials.attention(case.steps, *shape, backend="flex")
    ratio = trials.ratio(flex, trials.attention(case.steps, *shape), case.steps.device)
    yield case.finding(
        "KV heads copied",
        f"the attention backend expands {model.num_kv_heads} KV heads to {model.num_heads}: "
        f"{copies} more numbers per token and layer; flex was measured to take {ratio:.2f} of the "
        "time of the attention core",
        "--parallel.attention_backend=flex",
        "--parallel.compile=on",
        attention_core=ratio,
    )


def all_logits(case: Case) -> Iterator[Finding]:
    """Report that all logits of a micro-batch at once fill much of a GPU's memory.

    The cost of computing the loss in parts instead is measured.
    """
    config, peak = case.config, case.profile.measured.gpu.peak_bytes
    if config.parallel.loss_chunks > 1 or not peak:
        return
    in_parts = replace(config, parallel=replace(config.parallel, loss_chunks=LOSS_CHUNKS))
    saved = case.memory(config) - case.memory(in_parts)
    if saved < LOGITS * peak:
        return
    ratio = trials.ratio(
        trials.head(case.steps, LOSS_CHUNKS), trials.head(case.steps, 1), case.steps.device
    )
    finding = case.finding(
        "all logits at once, a choice",
        f"the logits are about {saved / peak:.0%} of the {byte_size(peak)} that a step needs; "
        f"in {LOSS_CHUNKS} parts the loss was measured to take {ratio:.2f} of its time",
        f"--parallel.loss_chunks={LOSS_CHUNKS}",
        lm_head=ratio,
    )
    yield replace(finding, kind="choice", bytes=saved)


def recomputation(case: Case) -> Iterator[Finding]:
    """Report activation checkpointing if there is enough memory without it."""
    parallel, device = case.config.parallel, case.steps.device
    if parallel.activation_checkpointing == "none" or device.type == "cpu":
        return
    without = replace(case.config, parallel=replace(parallel, activation_checkpointing="none"))
    needed, available = case.memory(without), case.steps.device_bytes
    if needed < FILLED * available:
        is_full = parallel.activation_checkpointing == "full"
        yield case.finding(
            "recomputation with memory to spare",
            f"checkpointing is {parallel.activation_checkpointing}, and a step without it needs "
            f"about {byte_size(needed, 0)} of {byte_size(available, 0)}",
            "--parallel.activation_checkpointing=none",
            **{
                name: case.without_recomputation(name)
                for name in (BLOCK if is_full else BLOCK - KEPT)
            },
        )


def waiting_device(case: Case) -> Iterator[Finding]:
    """Report a GPU that waits for the host, and propose a way to launch less per token.

    The prediction is the step without the time in which the GPU has nothing to do.
    """
    measured = case.profile.measured
    gpu, step, waiting = measured.gpu, measured.seconds, measured.waiting
    if waiting < WAITING * step:
        return
    flags = _less_launching(case)
    if not flags:
        return
    waits = f"; the host waits for it {gpu.host_waits} times" if gpu.host_waits else ""
    finding = case.finding(
        "the device waits for the host",
        f"it has nothing to do in {waiting / step:.0%} of the step, and launching a step takes "
        f"the host about {measured.host / step:.0%} of its time{waits}",
        *flags,
    )
    yield replace(finding, seconds=step - waiting)


def _less_launching(case: Case) -> list[str]:
    """Return flags with which the host launches less per token, or none if memory forbids it."""
    parallel, train = case.config.parallel, case.config.train
    flags = ["--parallel.compile=on"] if not case.steps.is_compiled else []
    if case.profile.measured.gpu.host_waits and parallel.expert_backend == "loop":
        flags.append("--parallel.expert_backend=grouped")
    if flags:
        return flags
    flags = [f"--train.micro_batch_size={2 * case.steps.micro_batch}"]
    if train.accumulation_steps % 2:
        flags.append(f"--train.batch_size={2 * train.batch_size}")
    needed = case.memory(override(case.config, parse_flags(flags)))
    return flags if needed <= FILLED * case.steps.device_bytes else []


def data_bound(case: Case) -> Iterator[Finding]:
    """Report that loading a batch takes a noticeable share of the step."""
    share = case.share("data")
    if share > LOADING:
        yield case.finding(
            "a data-bound step",
            f"{share:.0%} of the step is spent on loading its batch from "
            f"{case.config.data.cache}; put that on a local disk",
            "--data.cache=/local/moebius",
            data=0.0,
        )


def small_batch(case: Case) -> Iterator[Finding]:
    """Report a batch so small that the optimizer's constant time is a large share of the step."""
    batch_size, share = case.config.train.batch_size, case.share("optimizer")
    if share > OPTIMIZING:
        yield case.finding(
            "a batch too small for the device",
            f"{share:.0%} of the step is the optimizer's, which takes as long for a batch larger "
            f"than {batch_size}",
            f"--train.batch_size={2 * batch_size}",
        )
