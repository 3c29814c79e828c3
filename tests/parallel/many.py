"""Training steps of several processes and of one with the same micro-batches, in float64."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from moebius.config import Config, ModelConfig, ParallelConfig, TrainConfig
from moebius.hardware.backends import choose_backends
from moebius.model.transformer import lookahead, routed_layers, seeded
from moebius.parallel.layout import check_layout, lay_out, placement_of
from moebius.parallel.placement import Placement, local
from moebius.train import step
from moebius.train.optimizer_state import named_state
from moebius.train.state import TrainState, model_tensors
from moebius.train.step import train_step

S, STEPS = 12, 20
CPU = torch.device("cpu")
END = 0
MODEL = ModelConfig(
    vocab_size=59,
    dim=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    num_experts=4,
    router_top_k=2,
    base_expansion=1.0,
    router_bias_rate=0.01,
    router_z_loss_coeff=0.01,
    aux_loss_coeff=0.02,
)


@dataclass(frozen=True)
class Case:
    """A model and its training, which is computed in some layout and by one process."""

    model: ModelConfig = MODEL
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    optimizer: Any = "adamw"
    batch_size: int = 8
    micro_batch_size: int = 2
    idle: bool = False
    """Whether no token ever chooses the first expert of each layer."""

    @property
    def config(self) -> Config:
        """The configuration, whose clipping and learning rate make a difference."""
        train = TrainConfig(
            steps=STEPS,
            optimizer=self.optimizer,
            batch_size=self.batch_size,
            micro_batch_size=self.micro_batch_size,
            seq_len=S,
            lr=0.01,
            warmup_steps=0,
            grad_clip=0.5,
        )
        return Config(model=self.model, train=train, parallel=self.parallel)

    def tokens(self, number: int) -> Tensor:
        """Return the global batch of a step, with documents of various lengths."""
        generator = torch.Generator().manual_seed(number)
        shape = self.batch_size, S + lookahead(self.model)
        tokens_BL = torch.randint(self.model.vocab_size, shape, generator=generator)
        tokens_BL[0, ::2] = END  # short documents, with few targets for later offsets
        return tokens_BL


def with_layout(case: Case, replicate: int = 0, shard: int = 1, expert: int = 1) -> Case:
    """Return the case in another layout."""
    layout = {"replicate": replicate, "shard": shard, "expert": expert}
    return replace(case, parallel=replace(case.parallel, **layout))


def measured(case: Case, rank: int = 0, ranks: int = 1, alike: int = 0) -> dict[str, Any]:
    """Return what all steps of a case measure, and the weights that they end with.

    With `alike`, this one process takes the micro-batches of that many processes.
    """
    config = case.config
    check_layout(config, ranks)
    model = seeded(0, config.model, choose_backends(config.parallel)).double()
    if case.idle:
        for layer in routed_layers(model):
            layer.router.bias_E[0] = -100
    placement = placement_of(config.parallel, ranks) if ranks > 1 else Placement()
    lay_out(model, config.parallel, CPU, placement)
    state = TrainState.new(model, config, placement=placement)
    noted: dict[str, list[Any]] = {"loss": [], "norm": [], "counts": [], "balance": [], "mtp": []}
    gradients: list[dict[str, Tensor]] = []
    clip, split = placement.clip_gradients, step.micro_batches

    def batches(tokens_BL: Tensor, train: TrainConfig) -> Sequence[Tensor]:
        return alike_batches(tokens_BL, case, alike) if alike else split(tokens_BL, train)

    def note(model: Any, max_norm: float) -> Tensor:
        if not gradients:
            named = model.named_parameters()
            whole = {n: placement.whole(n, w.grad) for n, w in named if w.grad is not None}
            gradients.append({n: value.clone() for n, value in whole.items()})
        return clip(model, max_norm)

    with patch.object(placement, "clip_gradients", note):
        for number in range(STEPS):
            batch_BL = case.tokens(number)
            size = len(batch_BL)
            own_BL = batch_BL[size * rank // ranks : size * (rank + 1) // ranks]
            with patch.object(step, "micro_batches", batches):
                result = train_step(state, own_BL, END, config.train)
            noted["loss"].append(result.loss.item())
            noted["norm"].append(result.grad_norm.item())
            noted["counts"].append([layer.chosen_PE.tolist() for layer in result.stats])
            noted["balance"].append(result.balance_loss_M.tolist())  # pyright: ignore
            noted["mtp"].append([] if result.mtp_loss is None else [result.mtp_loss.item()])
    weights = {n: placement.whole(n, t).clone() for n, t in model_tensors(model).items()}
    check_parts(state, rank)
    return noted | {"gradients": gradients[0], "weights": weights}


def check_parts(state: TrainState, rank: int) -> None:
    """Check that a process gets its own parts of the wholes back, as from a checkpoint."""
    optimizer = named_state(state.optimizers, state.model)
    for own in (model_tensors(state.model), optimizer):
        wholes = {name: state.placement.whole(name, tensor) for name, tensor in own.items()}
        shapes = {name: state.placement.whole_shape(name, tensor) for name, tensor in own.items()}
        assert shapes == {name: tensor.shape for name, tensor in wholes.items()}
        parts = state.placement.parts(own, None if rank else wholes)
        assert own.keys() == parts.keys()
        assert all(torch.equal(parts[name], local(tensor)) for name, tensor in own.items())


def alike_batches(tokens_BL: Tensor, case: Case, ranks: int) -> list[Tensor]:
    """Return a batch as the micro-batches that several processes take.

    A batch that is balanced as a whole has the micro-batches that they take at the same time as
    one micro-batch, because the counts of all of them are known then.
    """
    size = len(tokens_BL)
    most = -(-size // ranks)
    passes = -(-most // (case.micro_batch_size or most))
    of_ranks = []
    for rank in range(ranks):
        own_BL = tokens_BL[size * rank // ranks : size * (rank + 1) // ranks]
        parts = own_BL.chunk(passes)
        of_ranks.append(parts if len(parts) == passes else own_BL.tensor_split(passes))
    turns = [[parts[turn] for parts in of_ranks] for turn in range(passes)]
    if case.model.aux_loss_scope == "global_batch":
        return [torch.cat(parts) for parts in turns]
    return [part for parts in turns for part in parts]


def work(rank: int, ranks: int, folder: str, cases: dict[str, Case]) -> None:
    """Measure all cases as one of several processes, and save the results in the folder."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks
    )
    for name, case in cases.items():
        torch.save(measured(case, rank, ranks), f"{folder}/{name}-{rank}.pt")
    torch.distributed.destroy_process_group()


def measured_by(ranks: int, folder: Path, cases: dict[str, Case]) -> dict[str, list[Any]]:
    """Return the measurements of each case by each of several processes."""
    spawn(work, (ranks, str(folder), cases), nprocs=ranks)
    return {
        name: [torch.load(folder / f"{name}-{rank}.pt") for rank in range(ranks)] for name in cases
    }
