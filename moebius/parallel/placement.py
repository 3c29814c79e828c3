"""Where the weights of a model are among the processes, and what follows from that.

A weight is replicated, or sharded by FSDP (a DTensor), or it is the part of a layer's experts that
this process has. All sums are over what each process contributes to the step, so no gradient is
ever divided by a number of processes.
"""

import warnings
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from moebius.config import Config
from moebius.config.in_phases import largest_phase
from moebius.cost.memory import Share
from moebius.model.transformer import Transformer, routed_layers
from moebius.parallel.exchange import Exchange
from moebius.parallel.gradients import GradientSums
from moebius.parallel.ranks import has_peers, num_ranks
from moebius.parallel.whole_matrices import part_ends, split_dimension, split_group


class Grid(NamedTuple):
    """How many processes do what. Their product without the experts is the number of processes."""

    replicate: int
    """Copies of the weights that are no experts."""
    shard: int
    """Processes that each copy is stored on, in parts."""
    expert: int
    """Processes that split the experts of a layer."""

    @property
    def expert_shard(self) -> int:
        """Processes that the same experts are stored on, in parts.

        The processes that split the experts are among those that share a copy, as in torchtitan,
        or, if there are more of them, comprise several copies.
        """
        return max(1, self.shard // self.expert)

    @property
    def expert_copies(self) -> int:
        """Copies of each expert."""
        return self.replicate * self.shard // (self.expert_shard * self.expert)

    def share(self, config: Config) -> Share:
        """Return what one process holds of the run, in its largest phase."""
        train = largest_phase(config).train
        most = -(-train.batch_size // (self.replicate * self.shard))
        sequences = min(most, train.micro_batch_size or most)
        return Share(
            sequences=sequences,
            passes=-(-most // sequences),
            shared=1 / self.shard,
            experts=1 / (self.expert * self.expert_shard),
            expert_parallel=self.expert,
        )


class Placement:
    """The weights of one model, spread over the processes of a run.

    Without other processes, every method does what it would do to the model alone.
    """

    def __init__(self, grid: Grid | None = None, device: torch.device | None = None):
        """device: the kind of device whose memory the weights are in."""
        self.grid = grid or Grid(num_ranks(), 1, 1)
        self._sums = GradientSums()
        self._experts: set[str] = set()
        """Names of the weights of experts that are split between processes."""
        replicate, shard, expert = self.grid
        kind = device.type if device else "cpu"
        if shard > 1:
            mesh = init_device_mesh(kind, (replicate, shard), mesh_dim_names=("copy", "shard"))
            self._mesh = mesh if replicate > 1 else mesh["shard"]
        if expert > 1:
            shape = (self.grid.expert_copies, self.grid.expert_shard, expert)
            self._expert_mesh = init_device_mesh(
                kind, shape, mesh_dim_names=("copy", "shard", "expert")
            )

    @property
    def has_parts(self) -> bool:
        """Whether no process has all of the weights."""
        return self.grid.shard > 1 or self.grid.expert > 1

    def split_experts(self, model: Transformer) -> None:
        """Keep this process's experts of each layer alone, and exchange tokens with the others."""
        if self.grid.expert == 1:
            return
        group = self._expert_mesh.get_group("expert")
        rank = self._expert_mesh.get_local_rank("expert")
        for layer in routed_layers(model):
            experts = layer.experts
            experts.run = Exchange(experts.run, group, layer.router.num_experts)
            for name, weight in list(experts.named_parameters()):
                own = weight.detach().chunk(self.grid.expert)[rank]
                setattr(experts, name, nn.Parameter(own.clone()))
        own_weights = {w for layer in routed_layers(model) for w in layer.experts.parameters()}
        self._experts = {name for name, w in model.named_parameters() if w in own_weights}

    def shard(self, model: Transformer) -> None:
        """Store each block in parts, which FSDP gathers when it computes the block.

        The layer of multi-token prediction, which is computed several times in a row, belongs to
        the rest of the model.
        """
        if self.grid.shard == 1:
            return
        from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

        # It is about changes in place, of which there are none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        ignored: set[nn.Parameter] = set()
        if self._experts and self.grid.expert_shard > 1:
            for layer in routed_layers(model):
                fully_shard(
                    layer.experts,
                    mesh=self._mesh_of_experts(),
                    shard_placement_fn=self._split_of_experts,
                )
        elif self._experts:
            ignored = {w for name, w in model.named_parameters() if name in self._experts}
        for block in model.layers:
            fully_shard(block, mesh=self._mesh, ignored_params=ignored)
        # Outside of the passes, its weights are in parts like all others.
        fully_shard(model, mesh=self._mesh, ignored_params=ignored, reshard_after_forward=True)
        for method in ("loss", "token_losses"):
            register_fsdp_forward_method(model, method)
        for module in model.modules():
            if isinstance(module, FSDPModule):
                # Each process's gradient is its part of the step's. A mean would make those of
                # the experts, which fewer processes have, too large (pytorch#160285).
                module.set_gradient_divide_factor(1.0)
                module.set_force_sum_reduction_for_comms(True)

    def watch_gradients(self, model: nn.Module) -> None:
        """Let the sums of gradients travel while the last backward pass of a step goes on."""
        if has_peers():
            for name, weight in model.named_parameters():
                if self._is_summed_here(name, weight):
                    self._sums.watch(weight, self._group_of(name))

    def begin_sums(self) -> None:
        """Note that the next backward pass is the last one of the step."""
        if has_peers():
            self._sums.begin()

    def sum_gradients(self, model: nn.Module) -> None:
        """Replace every gradient by its sum over the processes that have the same weights.

        FSDP has done so during the backward pass for the weights that it stores.
        """
        if not has_peers():
            return
        for name, weight in model.named_parameters():
            if self._is_summed_here(name, weight):
                self._sums.add(weight, self._group_of(name))
        self._sums.end()

    def clip_gradients(self, model: nn.Module, max_norm: float) -> Tensor:
        """Scale the gradients so that their norm is at most max_norm; return the norm before."""
        if not self.has_parts:
            return nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        named = [(n, weight.grad) for n, weight in model.named_parameters()]
        present = [(name, gradient) for name, gradient in named if gradient is not None]
        norm = self.norms(present).norm()
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as clip_grad_norm_
        torch._foreach_mul_([local(gradient) for _, gradient in present], scale)  # pyright: ignore
        return norm

    def norms(self, named: list[tuple[str, Tensor]]) -> Tensor:
        """Return the norm of each whole gradient, given the names of the weights.

        All processes have to ask for the same ones in the same order.
        """
        parts = [local(gradient) for _, gradient in named]
        norms = torch.stack(torch._foreach_norm(parts))  # pyright: ignore
        if not self.has_parts:
            return norms
        copies = torch.tensor([self._copies(name) for name, _ in named], dtype=norms.dtype)
        squared = norms.square() / copies.to(norms.device, non_blocking=True)
        torch.distributed.all_reduce(squared)
        return squared.sqrt()

    def whole(self, name: str, tensor: Tensor) -> Tensor:
        """Return the whole of a weight, its gradient or its optimizer state, on all processes.

        All processes have to ask for the same ones in the same order. name: that of the weight,
        which "/" and the name of an entry may follow.
        """
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if not self._is_of_experts(name, whole):
            return whole
        parts = [torch.empty_like(whole) for _ in range(self.grid.expert)]
        group = self._expert_mesh.get_group("expert")
        torch.distributed.all_gather(parts, whole.contiguous(), group=group)
        return torch.cat(parts)

    def whole_shape(self, name: str, tensor: Tensor) -> torch.Size:
        """Return the shape of what `whole` returns."""
        if not self._is_of_experts(name, tensor):
            return tensor.shape
        return torch.Size([self.grid.expert * tensor.shape[0], *tensor.shape[1:]])

    def give_parts(self, tensors: Iterable[dict[str, Tensor]]) -> None:
        """Give the first process this one's parts of tensors that it asks for the wholes of."""
        if self.has_parts:
            for named in tensors:
                for name, tensor in named.items():
                    self.whole(name, tensor)

    def parts(self, own: dict[str, Tensor], whole: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Return this process's part of each tensor, given the whole tensors on the first rank.

        own: the tensors of the same names that this process has.
        """
        if not has_peers():
            return whole or {}
        return {
            name: self._part(name, own[name], whole[name] if whole else None)
            for name in sorted(own)
        }

    def _part(self, name: str, own: Tensor, whole: Tensor | None) -> Tensor:
        like = local(own)
        shape = self.whole_shape(name, own)
        tensor = like.new_empty(shape) if whole is None else whole.to(like.device)
        torch.distributed.broadcast(tensor, 0)
        if self._is_of_experts(name, own):
            rank = self._expert_mesh.get_local_rank("expert")
            tensor = tensor.chunk(self.grid.expert)[rank]
        split = split_dimension(own)
        if isinstance(own, DTensor) and split is not None:
            group = split_group(own)
            size, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
            start = part_ends(own.shape[split], size)[rank]
            tensor = tensor.narrow(split, start, like.shape[split])
        return tensor

    def _is_of_experts(self, name: str, tensor: Tensor) -> bool:
        return tensor.ndim > 0 and name.partition("/")[0] in self._experts

    def _is_summed_here(self, name: str, weight: nn.Parameter) -> bool:
        if isinstance(weight, DTensor):
            return False
        return name not in self._experts or self.grid.expert_copies > 1

    def _group_of(self, name: str) -> ProcessGroup | None:
        """Return the processes that have the same weight; None means all."""
        return self._expert_mesh.get_group("copy") if name in self._experts else None

    def _copies(self, name: str) -> int:
        """Return how many processes have the same part of a weight."""
        return self.grid.expert_copies if name in self._experts else self.grid.replicate

    def _mesh_of_experts(self) -> DeviceMesh:
        names = ("copy", "shard") if self.grid.expert_copies > 1 else ("shard",)
        return self._expert_mesh[names]

    def _split_of_experts(self, weight: nn.Parameter):
        """Split the experts or, where they are too few, the rows of their matrices."""
        from torch.distributed.tensor import Shard

        size = self.grid.expert_shard
        is_even = [length % size == 0 for length in weight.shape[:2]]
        return Shard(1) if is_even == [False, True] else Shard(0)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process has."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
