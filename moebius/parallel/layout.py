"""Lay a model out on the hardware by changing the finished model, whose code is unaware of it."""

import torch

from moebius.config import Config, ParallelConfig, TrainConfig
from moebius.config.in_phases import all_phases
from moebius.errors import ConfigError
from moebius.hardware.backends import is_compiled
from moebius.model.transformer import Transformer
from moebius.parallel.compile import compile_parts
from moebius.parallel.placement import Grid, Placement
from moebius.parallel.recompute import recompute_in_backward


def check_layout(config: Config, world_size: int) -> None:
    """Raise ConfigError unless that many processes can train a configuration as it says.

    It names the setting, what is allowed, and what is not supported together.
    """
    parallel = config.parallel
    copies = parallel.replicate or max(1, world_size // parallel.shard)
    if copies * parallel.shard != world_size:
        raise ConfigError(
            f"parallel.replicate={parallel.replicate} and parallel.shard={parallel.shard}: their "
            f"product must be the number of processes ({world_size}); start "
            f"{copies * parallel.shard} with torchrun --nproc-per-node, or change them"
        )
    _check_experts(config, world_size)
    if config.train.common_start and (parallel.shard > 1 or parallel.expert > 1):
        raise ConfigError(
            "train.common_start: the experts' shared gradients are not supported with "
            "parallel.shard or parallel.expert; use parallel.replicate alone"
        )
    acting = [name for name, rule in config.observe.rules().items() if rule.action == "revive"]
    if acting and (parallel.shard > 1 or parallel.expert > 1):
        raise ConfigError(
            f"observe.{acting[0]}.action='revive': is not supported with parallel.shard or "
            "parallel.expert; use another action, or parallel.replicate alone"
        )
    for plain in all_phases(config):
        _check_batch(plain.train, world_size)


def _check_experts(config: Config, world_size: int) -> None:
    """Raise ConfigError unless the experts of every layer can be split as the layout says."""
    parallel = config.parallel
    if parallel.expert == 1:
        return
    counts = [count for count in config.model.experts_per_layer if count]
    if not counts:
        raise ConfigError(f"parallel.expert={parallel.expert}: the model has no experts")
    for count in counts:
        if count % parallel.expert:
            raise ConfigError(
                f"parallel.expert={parallel.expert}: must divide the number of experts of every "
                f"layer, and a layer has {count}"
            )
    if world_size % parallel.expert:
        raise ConfigError(
            f"parallel.expert={parallel.expert}: must divide the number of processes "
            f"({world_size})"
        )
    if parallel.shard % parallel.expert and parallel.expert % parallel.shard:
        raise ConfigError(
            f"parallel.expert={parallel.expert} and parallel.shard={parallel.shard}: one must "
            "be a multiple of the other"
        )


def _check_batch(train: TrainConfig, world_size: int) -> None:
    """Raise ConfigError unless every process gets a sequence in each of its passes."""
    if train.batch_size < world_size:
        raise ConfigError(
            f"train.batch_size={train.batch_size}: must be at least the number of processes "
            f"({world_size}), so that each has a sequence"
        )
    if train.micro_batch_size == 1 and train.batch_size % world_size:
        raise ConfigError(
            f"train.micro_batch_size=1: with train.batch_size={train.batch_size} and {world_size} "
            "processes, some would have a pass without a sequence; use 2, or a batch size that "
            f"is a multiple of {world_size}"
        )


def lay_out(
    model: Transformer,
    parallel: ParallelConfig,
    device: torch.device,
    placement: Placement | None = None,
) -> list[str]:
    """Apply the layout to the model in place, and return one line for each choice.

    placement: where the weights go; without it, this process keeps all of them. The model is on
    the device afterwards if it has one.

    The order matters: what runs the experts is exchanged before anything is wrapped around it;
    checkpointing comes before compilation, so that the compiler sees what backward computes again;
    and weights are sharded last, so that FSDP gathers them around all of that.
    """
    lines = []
    if placement is not None:
        placement.split_experts(model)
        if not placement.has_parts:
            model.to(device)
        lines = _placement_lines(placement)
    recompute_in_backward(model, parallel.activation_checkpointing)
    lines.append(f"checkpointing: {parallel.activation_checkpointing}")
    if is_compiled(parallel, device):
        compile_parts(model)
        reason = "a GPU" if parallel.compile == "auto" else "asked for"
        lines.append(f"compile: each block and the loss head ({reason})")
    else:
        is_automatic = parallel.compile == "auto"
        reason = "a CPU gains less than compiling costs" if is_automatic else "asked for"
        lines.append(f"compile: off ({reason})")
    if placement is not None:
        placement.shard(model)
        model.to(device)  # what is not sharded; FSDP has moved the rest
        placement.watch_gradients(model)
    return lines


def placement_of(
    config: ParallelConfig, world_size: int, device: torch.device | None = None
) -> Placement:
    """Return where the weights go in a layout that `check_layout` has accepted."""
    return Placement(grid_of(config, world_size), device)


def grid_of(config: ParallelConfig, world_size: int) -> Grid:
    """Return how many processes do what in a layout that `check_layout` has accepted."""
    copies = config.replicate or world_size // config.shard
    return Grid(copies, config.shard, config.expert)


def _placement_lines(placement: Placement) -> list[str]:
    """Return a line about the processes, if there are several."""
    replicate, shard, expert = placement.grid
    if replicate * shard == 1:
        return []
    copies = f"{replicate} copies of the weights" if replicate > 1 else "one copy of the weights"
    parts = f", each in {shard} parts" if shard > 1 else ""
    experts = f"; experts split over {expert}" if expert > 1 else ""
    return [f"processes: {replicate * shard}, {copies}{parts}{experts}"]
