"""What other trainers call these settings.

None of these names is accepted in place of the real one: an error suggests the real name, so that
a run's files and its command line always use the same name for a setting. The names come from
Hugging Face (configurations and TrainingArguments), Megatron-LM, torchtitan, nanoGPT, nanochat,
Lightning and DeepSpeed.
"""

from typing import NamedTuple


class Synonym(NamedTuple):
    """A setting that is known by another name elsewhere."""

    settings: tuple[str, ...]
    """Dotted names of the settings to use instead; empty if the answer is `remark` alone."""
    remark: str = ""
    """How to convert the value, or anything else to know before using the setting."""
    value: str = ""
    """The value to give, if the other name alone determines it."""


def _table(rows: dict[str, str], remark: str = "") -> dict[str, Synonym]:
    """Return {other name: Synonym} for rows of {our names: their names}, separated by spaces."""
    return {
        name: Synonym(tuple(settings.split()), remark)
        for settings, names in rows.items()
        for name in names.split()
    }


SYNONYMS: dict[str, Synonym] = {
    # the architecture
    **_table(
        {
            "model.dim": "hidden_size hidden_dim n_embd n_embed d_model embed_dim embedding_dim "
            "model_dim",
            "model.num_layers": "num_hidden_layers n_layers n_layer depth num_blocks",
            "model.num_heads": "num_attention_heads n_heads n_head",
            "model.num_kv_heads": "num_key_value_heads n_kv_heads n_kv_head num_query_groups",
            "model.head_dim": "head_size d_head dim_head kv_channels",
            "model.vocab_size": "padded_vocab_size n_vocab",
            "model.rope_theta": "rope_base rotary_base",
            "model.rope_fraction": "partial_rotary_factor rotary_percent rotary_pct",
            "model.qk_norm": "qk_layernorm use_qk_norm",
            "model.activation": "hidden_act hidden_activation activation_function act_fn",
            "model.norm_eps": "rms_norm_eps layer_norm_eps layernorm_epsilon norm_epsilon",
            "model.tie_embeddings": "tie_word_embeddings tie_weights weight_tying",
            "model.num_experts": "n_experts num_local_experts n_routed_experts moe_num_experts",
            "model.router_top_k": "num_experts_per_tok num_experts_per_token top_k topk "
            "moe_router_topk moe_top_k moe_topk moe_k n_experts_per_token num_selected_experts",
            "model.router_score": "score_func scoring_func score_function "
            "moe_router_score_function",
            "model.renormalize_gates": "norm_topk_prob route_norm normalize_expert_weights",
            "model.gate_scale": "routed_scaling_factor route_scale moe_router_topk_scaling_factor",
            "model.capacity_factor": "expert_capacity_factor moe_expert_capacity_factor",
            "model.router_jitter": "router_jitter_noise moe_input_jitter_eps moe_jitter_eps",
            "model.expert_dropout": "moe_dropout expert_dropout_rate",
            "model.aux_loss_coeff": "aux_loss aux_loss_coef router_aux_loss_coef aux_loss_weight "
            "load_balancing_loss_weight moe_aux_loss_coeff "
            "moe_loss_weight aux_loss_alpha",
            "model.router_z_loss_coeff": "router_z_loss z_loss z_loss_coeff z_loss_coef "
            "router_z_loss_coef moe_z_loss_coeff z_loss_weight",
            "model.router_bias_rate": "moe_router_bias_update_rate bias_update_speed "
            "bias_update_rate router_bias_update_rate load_balance_coeff",
            "model.use_mtp": "mtp num_nextn_predict_layers mtp_num_layers",
            "model.mtp_loss_coeff": "mtp_loss_weight mtp_loss_scaling_factor mtp_loss_coef",
        }
    ),
    **_table(
        {
            "model.moe_min_expansion model.moe_max_expansion": "intermediate_size "
            "ffn_hidden_size moe_intermediate_size moe_ffn_hidden_size ffn_dim d_ff mlp_dim "
            "expert_dim",
        },
        "a hidden width divided by model.dim",
    ),
    **_table(
        {
            "model.base_expansion": "shared_expert_intermediate_size n_shared_experts "
            "num_shared_experts moe_shared_expert_intermediate_size"
        },
        "the total hidden width of the shared experts divided by model.dim",
    ),
    **_table(
        {
            "model.num_experts": "moe_layer_freq moe_layer_interval decoder_sparse_step "
            "mlp_only_layers first_k_dense_replace"
        },
        "one number per layer, 0 for a dense layer: 0,8,8,8",
    ),
    # the text
    **_table(
        {
            "data.source": "path data_path data_dir dataset datasets dataset_path train_file "
            "train_files train_data train_data_path",
            "data.tokenizer": "tokenizer_name tokenizer_path tokenizer_model tokenizer_file "
            "tokenizer_type tokenizer_name_or_path",
            "data.text_field": "text_column text_key text_column_name dataset_text_field "
            "json_keys",
            "data.weights": "data_weights mixture_weights dataset_weights interleave_probs",
            "data.val_fraction": "val_split validation_split val_size validation_split_percentage",
            "data.cache": "cache_dir data_cache_path",
            "data.workers": "num_workers num_proc dataloader_num_workers "
            "preprocessing_num_workers",
            "data.document_masking": "reset_attention_mask doc_masking",
        }
    ),
    **_table({"data.source": "dataset_name hf_dataset"}, "hf:NAME[:SUBSET]"),
    # the course of training
    **_table(
        {
            "train.steps": "max_steps num_steps max_iters train_iters total_steps num_iterations "
            "training_steps num_train_steps max_train_steps n_steps",
            "train.batch_size": "global_batch_size train_batch_size batch gbs",
            "train.micro_batch_size": "per_device_train_batch_size device_batch_size micro_batch "
            "local_batch_size train_micro_batch_size_per_gpu microbatch_size mbs",
            "train.seq_len": "seq_length sequence_length context_length block_size max_seq_len "
            "max_seq_length max_length context_size n_ctx max_position_embeddings",
            "train.seed": "random_seed manual_seed",
            "train.optimizer": "optim optimizer_type optimizer_name",
            "train.lr": "learning_rate max_lr peak_lr base_lr",
            "train.weight_decay": "wd adam_weight_decay",
            "train.beta1": "adam_beta1",
            "train.beta2": "adam_beta2",
            "train.beta1 train.beta2": "betas adam_betas",
            "train.grad_clip": "clip_grad max_grad_norm gradient_clipping gradient_clip_val "
            "max_norm clip_grad_norm grad_clip_norm",
            "train.schedule": "lr_scheduler lr_scheduler_type lr_schedule lr_decay_style "
            "scheduler",
            "train.warmup_steps": "warmup warmup_iters lr_warmup_iters lr_warmup_steps "
            "num_warmup_steps",
            "train.decay_fraction": "decay_ratio warmdown_ratio cooldown_fraction cooldown_frac",
            "train.min_lr_fraction": "min_lr_ratio final_lr_frac min_lr_factor",
            "train.eval_every": "eval_interval eval_steps eval_freq val_check_interval",
            "train.checkpoint_every": "save_interval save_steps save_every save_freq "
            "checkpoint_interval",
            "train.keep_last": "save_total_limit keep_latest_k keep_last_n",
            "train.log_every": "log_interval logging_steps log_freq log_every_n_steps",
            "train.out": "output_dir output save_dir save_path out_dir checkpoint_dir logdir "
            "log_dir",
            "train.name": "model_name run_name exp_name experiment_name wandb_run_name",
            "train.device": "device_type accelerator",
            "train.dtype": "precision mixed_precision torch_dtype param_dtype",
        }
    ),
    **_table(
        {
            "train.steps": "epochs num_epochs num_train_epochs epoch max_tokens train_tokens "
            "total_tokens"
        },
        "a number of steps, each of batch_size * seq_len tokens",
    ),
    **_table(
        {
            "train.micro_batch_size": "gradient_accumulation_steps grad_accum_steps "
            "accumulate_grad_batches grad_accum accumulation_steps"
        },
        "train.batch_size divided by the number of accumulation steps",
    ),
    **_table({"train.batch_size": "total_batch_size batch_size_tokens"}, "in sequences"),
    **_table({"train.warmup_steps": "warmup_ratio lr_warmup_fraction"}, "a number of steps"),
    **_table(
        {"train.min_lr_fraction": "min_lr lr_min end_lr"}, "the last rate divided by train.lr"
    ),
    **_table({"train.eval_tokens": "eval_iters eval_batches limit_val_batches"}, "in tokens"),
    **_table({"train.dtype": "fp16 float16 half"}, "bfloat16 or float32; there is no float16"),
    "bf16": Synonym(("train.dtype",), value="bfloat16"),
    "fp32": Synonym(("train.dtype",), value="float32"),
    "fp8": Synonym(("train.expert_dtype",), value="float8"),
    # the hardware
    **_table(
        {
            "parallel.activation_checkpointing": "gradient_checkpointing grad_checkpointing "
            "recompute recompute_granularity activation_recompute recompute_activations "
            "activation_checkpoint checkpoint_activations",
            "parallel.compile": "torch_compile use_compile compile_model",
            "parallel.attention_backend": "attn_implementation attention_impl attn_impl "
            "attention_implementation",
            "parallel.expert_backend": "experts_implementation moe_impl moe_implementation "
            "moe_backend",
            "parallel.loss_chunks": "chunked_cross_entropy ce_chunks",
            "parallel.replicate": "data_parallel_replicate_degree dp_replicate ddp num_replicas",
            "parallel.shard": "data_parallel_shard_degree dp_shard fsdp fsdp_size zero_stage",
            "parallel.expert": "ep expert_parallel expert_parallel_size expert_parallel_degree "
            "expert_model_parallel_size",
            "observe.tensorboard": "enable_tensorboard use_tensorboard tensorboard_dir",
            "observe.wandb": "wandb_mode",
            "observe.wandb_project": "wandb_project_name",
            "observe.wandb_entity": "wandb_team wandb_user",
        }
    ),
    "report_to": Synonym(
        ("observe.wandb",),
        "metrics.jsonl and TensorBoard's files are written unasked; "
        "observe.tensorboard leaves out the latter",
    ),
    **dict.fromkeys(
        ("use_wandb", "wandb_log", "enable_wandb", "wandb_enabled", "log_to_wandb", "with_wandb"),
        Synonym(("observe.wandb",), value="online"),
    ),
    "gpu": Synonym(("train.device",), value="cuda"),
    "cuda": Synonym(("train.device",), value="cuda"),
    "use_cpu": Synonym(("train.device",), value="cpu"),
    # what is not a setting here
    **dict.fromkeys(
        ("config", "config_file", "job_config", "config_path", "preset"),
        Synonym((), "CONFIG, a preset or a TOML file, comes first, without a flag"),
    ),
    **dict.fromkeys(
        (
            "resume",
            "resume_from",
            "resume_path",
            "resume_from_checkpoint",
            "load",
            "load_checkpoint",
            "init_from",
        ),
        Synonym((), "`moebius resume RUN` continues a run"),
    ),
    **dict.fromkeys(
        (
            "gpus",
            "num_gpus",
            "n_gpus",
            "nproc_per_node",
            "num_nodes",
        ),
        Synonym((), "`torchrun --nproc-per-node N -m moebius train ...` trains on N GPUs"),
    ),
    **dict.fromkeys(
        (
            "deepspeed",
            "tp",
            "pp",
            "tensor_parallel",
            "tensor_parallel_size",
            "tensor_parallel_degree",
            "tensor_model_parallel_size",
            "pipeline_parallel_degree",
            "pipeline_model_parallel_size",
        ),
        Synonym((), "the layouts are parallel.replicate, parallel.shard and parallel.expert"),
    ),
}

VALUES: dict[str, dict[str, str]] = {
    "model.activation": {"silu": "swiglu", "swish": "swiglu", "relu_squared": "relu2"},
    "model.router_type": {
        "softmax": "softmax_topk",
        "topk": "softmax_topk",
        "top_k": "softmax_topk",
        "threshold": "sigmoid",
    },
    "train.optimizer": {"adam": "adamw"},
    "train.schedule": {
        "warmup_stable_decay": "wsd",
        "trapezoidal": "wsd",
    },
    "train.device": {"gpu": "cuda", "nvidia": "cuda", "gpu:0": "cuda:0"},
    "train.dtype": {
        "bf16": "bfloat16",
        "bf16-mixed": "bfloat16",
        "fp16": "bfloat16",
        "float16": "bfloat16",
        "half": "bfloat16",
        "fp32": "float32",
        "float": "float32",
        "32": "float32",
    },
    "train.expert_dtype": {"fp8": "float8", "e4m3": "float8", "true": "float8"},
    "parallel.activation_checkpointing": {
        "true": "full",
        "on": "full",
        "block": "full",
        "false": "none",
        "off": "none",
        "sac": "selective",
    },
    "parallel.attention_backend": {
        "flash": "sdpa",
        "flash_attention_2": "sdpa",
        "flex_attention": "flex",
        "eager": "sdpa",
    },
    "parallel.compile": {"true": "on", "false": "off", "none": "off"},
    "observe.wandb": {
        "wandb": "online",
        "all": "online",
        **dict.fromkeys(("true", "on", "yes", "1", "enabled"), "online"),
        "dryrun": "offline",
        **dict.fromkeys(("false", "no", "0", "none", "disabled"), "off"),
    },
}
"""For each setting, the allowed value by the value that other trainers use, in lower case."""
