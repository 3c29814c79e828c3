"""The configuration tree: frozen dataclasses that cannot hold an invalid run. No torch here.

Every class checks itself when it is made, so a `Config` that exists is one that can run. The names of the model's fields
are those of the founding document; the rest are the field's standard terms.
"""

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from moebius.errors import ConfigError
from moebius.fields import above, at_least, between, check_fields, nearest
from moebius.hardware import ParallelConfig
from moebius.rules import ObserveConfig

WIDTH_MULTIPLE = 64  # hidden widths are rounded to it: tensor cores want whole tiles
MTP_OFFSETS = (2, 3, 4)  # multi-token prediction: the hidden state of token t also predicts t+2, t+3, t+4
RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

RouterType = Literal["sigmoid", "softmax_topk", "switch"]
Activation = Literal["swiglu", "relu2", "gelu"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The architecture. The defaults are the founding document's recommendation: no base MLP, top-1 of four experts.

    Raises ConfigError, naming the field, for a combination that cannot be built.
    """

    vocab_size: int = 50_304
    """Rows of the embedding and of the LM head."""
    dim: int = 896
    """Width of the residual stream (D)."""
    num_layers: int = 24
    """Transformer blocks."""

    num_heads: int = 28
    """Query heads (N)."""
    num_kv_heads: int = 7
    """Key-value heads (G), each shared by num_heads / num_kv_heads query heads."""
    head_dim: int = 0
    """Width of a head (H); 0: dim / num_heads."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head, before the rotation."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rope_fraction: float = 0.75
    """Share that is rotated, of each head's dimensions or of the heads (rope_scope)."""
    rope_scope: Literal["dims", "heads"] = "dims"
    """dims: rotate the first part of every head; heads: rotate whole KV groups, rounded."""

    activation: Activation = "swiglu"
    """swiglu has three matrices, relu2 and gelu two."""
    base_expansion: float = 0.0
    """Hidden width of the always-on base MLP, in units of dim; 0 removes it."""
    residual_mix: Literal["add", "learned"] = "add"
    """add: base + routed; learned: PR-MoE's two-way softmax per token between them."""
    moe_min_expansion: float = 3.0
    """Width of the first layer's experts, in units of dim; grows linearly to the last layer's."""
    moe_max_expansion: float = 4.0
    """Width of the last layer's experts, in units of dim."""
    num_experts: int | tuple[int, ...] = 4
    """Experts of every layer, or one number per layer; 0 makes a layer dense (base MLP alone)."""
    expert_dropout: float = 0.0
    """Dropout inside the experts, on the hidden activations (Switch Transformer, section 2.4)."""

    router_type: RouterType = "softmax_topk"
    """softmax_topk: exactly k experts; switch: top-1 with capacity; sigmoid: all above the threshold."""
    router_top_k: int = 1
    """Experts per token of softmax_topk."""
    router_threshold: float = 0.5
    """sigmoid: probability above which an expert is active."""
    router_score: Literal["softmax", "sigmoid"] = "softmax"
    """softmax_topk: what ranks the experts and gates them; sigmoid: each expert's own, as in DeepSeek-V3."""
    renormalize_gates: bool = True
    """Let a token's gates sum to 1. Never done at k = 1, where it would leave the router without a gradient."""
    gate_scale: float = 1.0
    """Factor on every gate (DeepSeek's routed_scaling_factor); 0: what lets the gate start near 1 at k = 1."""
    capacity_factor: float = 1.25
    """switch: an expert takes at most this many times its even share of the tokens."""
    eval_capacity_factor: float = 0.0
    """switch: the same outside training; 0: as in training."""
    capacity_drop: Literal["last", "lowest_gate"] = "last"
    """switch: who is dropped of a full expert's tokens. lowest_gate lets a token's fate depend on later ones."""
    router_jitter: float = 0.0
    """In training the router's input is multiplied by 1 +- up to this (Switch Transformer: 0.01)."""

    aux_loss_coeff: float = 0.01
    """Weight of each layer's load-balancing loss."""
    aux_loss_scope: Literal["sequence", "micro_batch", "global_batch"] = "micro_batch"
    """Over what the load is to be even; global_batch counts all ranks and the step's micro-batches so far."""
    router_z_loss_coeff: float = 0.0
    """Weight of each layer's router z-loss (ST-MoE)."""
    router_bias_rate: float = 0.0
    """Step of the loss-free balancing bias (DeepSeek-V3: 0.001); 0: none."""

    use_mtp: bool = False
    """Also predict tokens t+2, t+3 and t+4; off costs nothing."""
    mtp_loss_coeff: float = 0.3
    """Weight of the mean of the three extra losses."""
    tie_embeddings: bool = False
    """Use the embedding as the LM head."""
    norm_eps: float = 1e-5
    """Epsilon of every RMSNorm."""

    def __post_init__(self) -> None:
        check_fields("model", self)
        for name in ("vocab_size", "dim", "num_layers", "num_heads", "num_kv_heads", "router_top_k"):
            at_least("model", self, name, 1)
        for name in ("head_dim", "base_expansion", "gate_scale", "eval_capacity_factor"):
            at_least("model", self, name, 0)
        for name in ("aux_loss_coeff", "router_z_loss_coeff", "router_bias_rate", "mtp_loss_coeff"):
            at_least("model", self, name, 0)
        for name in ("rope_theta", "norm_eps", "capacity_factor", "moe_min_expansion", "moe_max_expansion"):
            above("model", self, name, 0)
        for name in ("rope_fraction", "router_threshold"):
            between("model", self, name, 0, 1)
        for name in ("expert_dropout", "router_jitter"):
            between("model", self, name, 0, 0.99)
        self._check_heads()
        self._check_experts()

    def _check_heads(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_kv_heads={self.num_kv_heads}: must divide num_heads ({self.num_heads}); "
                f"one of {_divisors(self.num_heads)}"
            )
        if not self.head_dim and self.dim % self.num_heads:
            raise ConfigError(
                f"model.num_heads={self.num_heads}: must divide dim ({self.dim}), or set --model.head_dim; "
                f"one of {_divisors(self.dim, self.num_kv_heads)}"
            )
        if self.head_width % 2:
            raise ConfigError(f"model.head_dim={self.head_width}: must be even, rotary embedding turns pairs")

    def _check_experts(self) -> None:
        count = list(self.num_experts) if isinstance(self.num_experts, tuple) else self.num_experts
        if isinstance(self.num_experts, tuple) and len(self.num_experts) != self.num_layers:
            raise ConfigError(
                f"model.num_experts={count}: {len(self.num_experts)} numbers for {self.num_layers} layers; "
                "give one number, or one per layer"
            )
        if min(self.experts_per_layer) < 0:
            raise ConfigError(f"model.num_experts={count}: at least 0")
        if self.base_expansion == 0 and 0 in self.experts_per_layer:
            raise ConfigError(
                f"model.num_experts={count}: a layer without experts needs a base MLP; set --model.base_expansion above 0"
            )
        if not any(self.experts_per_layer):
            return
        if self.router_type == "sigmoid" and self.base_expansion == 0:
            raise ConfigError(
                "model.base_expansion=0: the sigmoid router may leave a token without any expert and needs a base MLP; "
                "set --model.base_expansion above 0, or --model.router_type softmax_topk"
            )
        fewest = min(count for count in self.experts_per_layer if count)
        if self.router_type == "softmax_topk" and self.router_top_k > fewest:
            raise ConfigError(f"model.router_top_k={self.router_top_k}: at most num_experts ({fewest})")
        if self.router_type == "switch" and self.router_top_k != 1:
            raise ConfigError(f"model.router_top_k={self.router_top_k}: the switch router is top-1; use softmax_topk for more")

    @property
    def head_width(self) -> int:
        """Dimensions of one head: head_dim, or dim / num_heads."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def experts_per_layer(self) -> tuple[int, ...]:
        """Number of experts of each layer; 0 for a dense one."""
        return self.num_experts if isinstance(self.num_experts, tuple) else (self.num_experts,) * self.num_layers

    @property
    def expert_widths(self) -> tuple[int, ...]:
        """Hidden width of each layer's experts: the pyramid, linear in depth, rounded to 64."""
        steps = max(self.num_layers - 1, 1)
        slope = (self.moe_max_expansion - self.moe_min_expansion) / steps
        return tuple(hidden_width(self.moe_min_expansion + slope * layer, self.dim) for layer in range(self.num_layers))

    @property
    def base_width(self) -> int:
        """Hidden width of the base MLP; 0 without one."""
        return hidden_width(self.base_expansion, self.dim) if self.base_expansion else 0

    @property
    def matrices_per_mlp(self) -> int:
        """3 with a gate matrix (swiglu), else 2."""
        return 3 if self.activation == "swiglu" else 2

    @property
    def rotary_dims(self) -> int:
        """Dimensions of a rotated head that are rotated: even."""
        return 2 * round(self.rope_fraction * self.head_width / 2) if self.rope_scope == "dims" else self.head_width

    @property
    def rotary_kv_heads(self) -> int:
        """KV heads (with their query heads) that are rotated."""
        return self.num_kv_heads if self.rope_scope == "dims" else round(self.rope_fraction * self.num_kv_heads)

    def gate_factor(self, num_experts: int) -> float:
        """gate_scale resolved for a layer of that many experts."""
        if self.gate_scale:
            return self.gate_scale
        if self.experts_per_token(num_experts) > 1 or self.router_type == "sigmoid":
            return 1.0
        # an undecided router's gate is 1 / E, or sigmoid(0)
        return 2.0 if self.router_type == "softmax_topk" and self.router_score == "sigmoid" else float(num_experts)

    def experts_per_token(self, num_experts: int) -> int:
        """Experts a token can have at most in a layer of that many experts (K); sigmoid may use all."""
        return min(num_experts, num_experts if self.router_type == "sigmoid" else self.router_top_k)


def hidden_width(expansion: float, dim: int) -> int:
    """`expansion * dim` rounded to the nearest multiple of 64, at least 64."""
    return max(WIDTH_MULTIPLE, WIDTH_MULTIPLE * math.floor(expansion * dim / WIDTH_MULTIPLE + 0.5))


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the text comes from and how it becomes tokens."""

    source: str = "python-stdlib"
    """A file, folder, glob or URL (text, .jsonl, .parquet), `hf:NAME[:SUBSET]`, or `python-stdlib`; several with commas."""
    weights: float | tuple[float, ...] = 1.0
    """Each source's share of the training sequences (normalised); one number: equal shares."""
    text_field: str = "text"
    """Column of the text in JSON lines, Parquet and Hugging Face data."""
    errors: Literal["stop", "skip"] = "stop"
    """What a document that cannot be read does: stop with its place, or be counted and left out."""
    tokenizer: str = "bpe"
    """`bpe` (byte-level, trained on the source), `bytes`, or a path to a tokenizer.json."""
    vocab_size: int = 0
    """Tokens the BPE learns; 0: as many as model.vocab_size."""
    val_fraction: float = 0.01
    """Share of the documents held out, chosen by a hash of each document."""
    document_masking: bool = True
    """Keep attention inside a document where several are packed into one sequence."""
    cache: str = "~/.cache/moebius"
    """Folder of prepared tokenizers and token shards, and of what URLs were downloaded."""
    workers: int = 0
    """Processes that tokenise; the result is the same for any number. 0: all cores."""

    def __post_init__(self) -> None:
        check_fields("data", self)
        for name in ("source", "text_field", "tokenizer", "cache"):
            if not getattr(self, name).strip():
                raise ConfigError(f"data.{name}={getattr(self, name)!r}: must not be empty")
        for name in ("vocab_size", "workers"):
            at_least("data", self, name, 0)
        if re.search(r"://([^/,]*@|[^,]*\?)", self.source):
            raise ConfigError(
                "data.source: a URL with a password or a query, which config.toml would keep; use the environment"
            )
        sources = self.source.split(",")
        weights = self.weights if isinstance(self.weights, tuple) else (self.weights,) * len(sources)
        if len(weights) != len(sources) or min(weights) < 0 or not any(weights):
            raise ConfigError(f"data.weights={self.weights}: {len(sources)} (one a source) are wanted, at least 0, not all 0")
        if not 0 < self.val_fraction < 1:
            raise ConfigError(f"data.val_fraction={self.val_fraction}: above 0 and below 1")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, with what optimizer, and where the run is kept."""

    steps: int = 10_000
    """Optimizer steps."""
    batch_size: int = 16
    """Sequences in a step, over all devices."""
    micro_batch_size: int = 0
    """Sequences in one forward pass; batch_size / micro_batch_size gradients are accumulated. 0: batch_size."""
    seq_len: int = 2048
    """Tokens of a sequence (S)."""
    seed: int = 0
    """Initialisation and order of the data."""

    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: Muon for the hidden matrices (each expert's on its own), AdamW for the rest."""
    lr: float = 6e-4
    """Peak learning rate. Muon's updates are scaled to AdamW's size, so one rate serves both."""
    weight_decay: float = 0.1
    """Decoupled decay of matrices; the embedding, norms and biases are left alone."""
    beta1: float = 0.9
    """AdamW's decay of the first moment."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    grad_clip: float = 1.0
    """Largest global gradient norm; 0: no clipping."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """cosine: warm-up and cosine; wsd: warm-up, stable, linear decay."""
    warmup_steps: int = 100
    """Steps over which the rate rises linearly."""
    decay_fraction: float = 0.2
    """wsd: last part of the run in which the rate falls."""
    min_lr_fraction: float = 0.1
    """Rate at the end, as a share of lr."""
    common_start: float = 0.0
    """First part of the run in which a layer's experts start equal and share their gradients (docs/log.md says why)."""

    eval_every: int = 500
    """Steps between evaluations; 0: only at the end."""
    eval_tokens: int = 1_000_000
    """Held-out tokens an evaluation reads at most."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; 0: only at the end."""
    keep_last: int = 3
    """Newest checkpoints that are kept; 0: all."""
    keep_every: int = 0
    """Checkpoints of steps that this divides are kept for good; 0: none."""
    max_skipped: int = 10
    """Updates in a row that may be skipped for a loss or gradient that is not finite; one more ends the run."""
    max_rollbacks: int = 3
    """Times that a loss_spike alarm may roll the run back."""
    log_every: int = 10
    """Steps between lines in metrics.jsonl; nothing waits for the device in between."""
    out: str = "runs"
    """Folder of the runs."""
    name: str = ""
    """Name of the run, a folder of its own under out; empty: preset, date and time."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Arithmetic of matrix products (autocast); weights stay float32. auto: bfloat16 on a GPU, else float32."""
    expert_dtype: Literal["auto", "float8"] = "auto"
    """Of the experts' products. auto: dtype; float8: e4m3 (a Hopper GPU's, elsewhere emulated), weight gradients bfloat16."""

    def __post_init__(self) -> None:
        check_fields("train", self)
        for name in ("steps", "batch_size", "seq_len", "log_every"):
            at_least("train", self, name, 1)
        for name in ("micro_batch_size", "seed", "weight_decay", "grad_clip", "warmup_steps", "eval_every", "checkpoint_every"):
            at_least("train", self, name, 0)
        for name in ("keep_last", "keep_every", "max_skipped", "max_rollbacks"):
            at_least("train", self, name, 0)
        at_least("train", self, "eval_tokens", 1)
        above("train", self, "lr", 0)
        for name in ("decay_fraction", "min_lr_fraction", "common_start"):
            between("train", self, name, 0, 1)
        for name in ("beta1", "beta2"):
            between("train", self, name, 0, 0.99999)
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"train.micro_batch_size={self.micro_batch_size}: must divide batch_size ({self.batch_size}); "
                f"one of {_divisors(self.batch_size)}"
            )
        if self.name and (not RUN_NAME.fullmatch(self.name) or set(self.name) == {"."}):
            raise ConfigError(
                f"train.name={self.name!r}: 1 to 64 letters, digits, '.', '_' or '-'; it names a folder inside train.out"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(
                f"train.device={self.device!r}: auto, cpu, cuda or cuda:N{nearest(self.device, ('auto', 'cpu', 'cuda'))}"
            )

    @property
    def accumulation_steps(self) -> int:
        """Forward and backward passes per optimizer step."""
        return self.batch_size // (self.micro_batch_size or self.batch_size)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run. `moebius.presets` has ready ones, `moebius.settings` reads files and flags into it."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)

    def __post_init__(self) -> None:
        check_fields("config", self)
        if self.train.expert_dtype == "float8" and any(self.model.experts_per_layer) and self.model.dim % 16:
            raise ConfigError(f"train.expert_dtype='float8': its products want model.dim ({self.model.dim}) a multiple of 16")
        if self.data.vocab_size > self.model.vocab_size:
            raise ConfigError(
                f"data.vocab_size={self.data.vocab_size}: at most model.vocab_size ({self.model.vocab_size}); "
                f"set --model.vocab_size {self.data.vocab_size}"
            )


def _divisors(number: int, multiple_of: int = 1) -> str:
    found = [str(d) for d in range(1, number + 1) if number % d == 0 and d % multiple_of == 0]
    return ", ".join(found[:12]) if found else "none; change num_kv_heads too"
