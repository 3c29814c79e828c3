"""Wrong names of settings lead to the right ones, in flags and in files."""

from pathlib import Path
from typing import Any

import pytest

from moebius.config.files import read_config
from moebius.config.flags import parse_flags
from moebius.config.suggestions import nearest, value_suggestion
from moebius.errors import ConfigError

SYNONYMS = {
    "learning_rate": "train.lr",
    "max_lr": "train.lr",
    "hidden_size": "model.dim",
    "n_embd": "model.dim",
    "d_model": "model.dim",
    "embed_dim": "model.dim",
    "num_hidden_layers": "model.num_layers",
    "n_layers": "model.num_layers",
    "n_layer": "model.num_layers",
    "depth": "model.num_layers",
    "num_attention_heads": "model.num_heads",
    "n_head": "model.num_heads",
    "num_key_value_heads": "model.num_kv_heads",
    "n_kv_heads": "model.num_kv_heads",
    "n_experts": "model.num_experts",
    "num_local_experts": "model.num_experts",
    "n_routed_experts": "model.num_experts",
    "num_experts_per_tok": "model.router_top_k",
    "top_k": "model.router_top_k",
    "moe_router_topk": "model.router_top_k",
    "aux_loss_coef": "model.aux_loss_coeff",
    "router_aux_loss_coef": "model.aux_loss_coeff",
    "load_balancing_loss_weight": "model.aux_loss_coeff",
    "moe_aux_loss_coeff": "model.aux_loss_coeff",
    "router_z_loss": "model.router_z_loss_coeff",
    "z_loss_coeff": "model.router_z_loss_coeff",
    "rms_norm_eps": "model.norm_eps",
    "partial_rotary_factor": "model.rope_fraction",
    "max_steps": "train.steps",
    "num_steps": "train.steps",
    "max_iters": "train.steps",
    "train_iters": "train.steps",
    "total_steps": "train.steps",
    "global_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.micro_batch_size",
    "device_batch_size": "train.micro_batch_size",
    "micro_batch": "train.micro_batch_size",
    "seq_length": "train.seq_len",
    "sequence_length": "train.seq_len",
    "context_length": "train.seq_len",
    "block_size": "train.seq_len",
    "max_seq_len": "train.seq_len",
    "warmup": "train.warmup_steps",
    "warmup_iters": "train.warmup_steps",
    "clip_grad": "train.grad_clip",
    "max_grad_norm": "train.grad_clip",
    "gradient_clipping": "train.grad_clip",
    "adam_beta1": "train.beta1",
    "adam_beta2": "train.beta2",
    "output_dir": "train.out",
    "save_dir": "train.out",
    "out_dir": "train.out",
    "run_name": "train.name",
    "exp_name": "train.name",
    "save_interval": "train.checkpoint_every",
    "save_steps": "train.checkpoint_every",
    "checkpoint_interval": "train.checkpoint_every",
    "eval_interval": "train.eval_every",
    "eval_steps": "train.eval_every",
    "log_interval": "train.log_every",
    "logging_steps": "train.log_every",
    "precision": "train.dtype",
    "path": "data.source",
    "dataset": "data.source",
    "data_path": "data.source",
    "train_files": "data.source",
    "tokenizer_name": "data.tokenizer",
    "tokenizer_path": "data.tokenizer",
    "gradient_checkpointing": "parallel.activation_checkpointing",
    "recompute": "parallel.activation_checkpointing",
    "activation_recompute": "parallel.activation_checkpointing",
    "torch_compile": "parallel.compile",
    "wandb_mode": "observe.wandb",
    "wandb_team": "observe.wandb_entity",
}
REAL_NAMES = {  # without a section, or in the wrong one
    "lr": "train.lr",
    "steps": "train.steps",
    "device": "train.device",
    "dtype": "train.dtype",
    "num_experts": "model.num_experts",
    "tokenizer": "data.tokenizer",
    "compile": "parallel.compile",
    "tensorboard": "observe.tensorboard",
}
WITH_REMARK = {
    "gradient_accumulation_steps": "did you mean --train.micro_batch_size "
    "(train.batch_size divided by the number of accumulation steps)?",
    "intermediate_size": "did you mean --model.moe_min_expansion and --model.moe_max_expansion "
    "(a hidden width divided by model.dim)?",
    "ffn_hidden_size": "--model.moe_min_expansion and --model.moe_max_expansion (a hidden",
    "moe_intermediate_size": "--model.moe_min_expansion and --model.moe_max_expansion (a hidden",
    "total_batch_size": "did you mean --train.batch_size (in sequences)?",
    "report_to": "did you mean --observe.wandb (metrics.jsonl and TensorBoard's files",
    "tensor_model_parallel_size": "the layouts are parallel.replicate",
    "lr_min": "did you mean --train.min_lr_fraction (the last rate divided by train.lr)?",
    "betas": "did you mean --train.beta1 and --train.beta2?",
    "moe_layer_freq": "did you mean --model.num_experts (one number per layer, 0 for a dense",
    "fp16": "did you mean --train.dtype (bfloat16 or float32; there is no float16)?",
    "bf16": "did you mean --train.dtype bfloat16?",
    "vocab_size": "did you mean --model.vocab_size or --data.vocab_size?",
}


def flag_error(*flags: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_flags(list(flags))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_error(text: str, path: Path) -> str:
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(str(path), [])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(("name", "setting"), (SYNONYMS | REAL_NAMES).items())
def test_another_trainers_name_leads_to_the_setting(name, setting, tmp_path):
    hint = f"; did you mean --{setting}?"
    for flag in (f"--{name}", f"--{name.replace('_', '-')}", f"--optim.{name}"):
        assert flag_error(flag, "3").endswith(hint)
        assert flag_error(f"{flag}=3").endswith(hint)
    hint = f"did you mean {setting}?"
    assert file_error(f"{name} = 3", tmp_path / "own.toml").endswith(hint)
    assert file_error(f"[optim]\n{name} = 3", tmp_path / "own.toml").endswith(hint)


@pytest.mark.parametrize(
    "name", ["router", "tokens", "momentum", "mlp_ratio", "expert_size", "model.name_or_path"]
)
def test_what_is_not_like_any_setting_leads_to_none(name):
    assert "did you mean" not in flag_error(f"--{name}", "3")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("[train]\nlearning-rate = 4", "did you mean train.lr?"),
        ("[train]\nLR = 4", "did you mean train.lr?"),
        ("[train]\nmoe-topk = 4", "did you mean model.router_top_k?"),
        ("[model.moe]\nnum_experts = 4", "did you mean model.num_experts?"),
        ("[train.sub.sub]\nlr = 4", "`moebius train --help` lists the settings of train"),
        ('[data]\nsource = ["a", "b"]', "with commas between them, such as 'a,b'"),
    ],
)
def test_a_file_may_write_a_name_in_its_own_way(text, hint, tmp_path):
    assert file_error(text, tmp_path / "own.toml").endswith(hint)


def test_a_switch_that_is_off_does_not_suggest_what_it_would_turn_on():
    assert flag_error("--bf16", "false").endswith("did you mean --train.dtype?")
    assert flag_error("--bf16", "true").endswith("did you mean --train.dtype bfloat16?")
    assert flag_error("--use_wandb", "false").endswith("did you mean --observe.wandb off?")


@pytest.mark.parametrize(
    ("flag", "value", "right"),
    [
        ("--report_to", "wandb", "online"),
        ("--report_to", "none", "off"),
        ("--use_wandb", "true", "online"),
        ("--wandb_log", "1", "online"),
        ("--enable-wandb", "yes", "online"),
        ("--wandb_mode", "disabled", "off"),
        ("--wandb", "true", "online"),
        ("--train.wandb", "false", "off"),
    ],
)
def test_what_turns_on_weights_and_biases_elsewhere_leads_to_the_setting(flag, value, right):
    assert f"did you mean --observe.wandb {right}" in flag_error(flag, value)


@pytest.mark.parametrize(("name", "setting"), SYNONYMS.items())
@pytest.mark.parametrize("section", ["model", "data", "train", "parallel", "observe"])
def test_so_it_does_in_every_section(name, setting, section, tmp_path):
    assert flag_error(f"--{section}.{name}", "3").endswith(f"; did you mean --{setting}?")
    error = file_error(f"[{section}]\n{name} = 3", tmp_path / "own.toml")
    assert error.endswith(f"{section}.{name}: no such setting; did you mean {setting}?")


@pytest.mark.parametrize(("name", "hint"), WITH_REMARK.items())
def test_the_error_says_how_a_value_is_converted(name, hint):
    assert hint in flag_error(f"--{name}", "4")
    assert hint in flag_error(f"--train.{name}", "4") or name == "vocab_size"


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--device", "gpu"], "did you mean --train.device cuda?"),
        (["--device=GPU"], "did you mean --train.device cuda?"),
        (["--device", "cuda"], "did you mean --train.device cuda?"),
        (["--gpu", "0"], "did you mean --train.device cuda?"),
        (["--cuda"], "did you mean --train.device cuda?"),
        (["--precision", "bf16"], "did you mean --train.dtype bfloat16?"),
        (["--gradient_checkpointing", "true"], "--parallel.activation_checkpointing full?"),
        (["--torch-compile", "True"], "did you mean --parallel.compile on?"),
        (["--lr"], "did you mean --train.lr?"),
        (["-lr", "3"], "did you mean --train.lr?"),
        (["--fp8", "true"], "did you mean --train.expert_dtype float8?"),
    ],
)
def test_the_value_is_translated_too(flags, hint):
    assert flag_error(*flags).endswith(hint)


def test_configurations_come_first_and_without_a_flag():
    for name in ("--config", "--config-file"):
        assert flag_error(name, "my.toml") == (
            f"'{name}': not understood; CONFIG, a preset or a TOML file, comes first, "
            "without a flag"
        )
    assert "moebius resume RUN" in flag_error("--resume_from_checkpoint", "runs/x")


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--train.device", "gpu"], "must be auto, cpu, cuda or cuda:N; did you mean cuda?"),
        (["--train.dtype", "bf16"], "did you mean bfloat16?"),
        (["--train.optimizer", "Adam"], "did you mean adamw?"),
        (["--parallel.compile", "true"], "did you mean on?"),
        (["--parallel.activation_checkpointing", "true"], "did you mean full?"),
    ],
)
def test_another_trainers_value_leads_to_the_right_one(flags, hint):
    with pytest.raises(ConfigError) as caught:
        read_config("tiny", flags)
    assert str(caught.value).endswith(hint)


def test_a_synonym_is_never_accepted():
    with pytest.raises(ConfigError):
        read_config("tiny", ["--train.learning_rate", "1"])


def test_the_setting_and_the_value_in_a_file(tmp_path):
    error = file_error('device = "gpu"', tmp_path / "own.toml")
    assert error.endswith('did you mean train.device = "cuda"?')
    error = file_error("[parallel]\ncompile = true", tmp_path / "own.toml")
    assert error.endswith("must be one of auto, on, off; did you mean on?")


@pytest.mark.parametrize("value", [3, None, 1.5, [], {}, "zzz"])
def test_a_value_without_a_synonym(value: Any):
    assert value_suggestion("train.device", value) == ""
    assert value_suggestion("model.dim", value) == ""


def test_the_nearest_name():
    names = ["router_top_k", "router_threshold", "dim"]
    assert nearest("router_topk", names) == "; did you mean router_top_k?"
    assert nearest("zzz", names) == ""
