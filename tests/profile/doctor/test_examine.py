"""What the doctor says about a machine, and that each of its trials can fail."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from moebius import cli
from moebius.config import Config, TrainConfig
from moebius.data.batches import Batches
from moebius.model import backends
from moebius.model.attention import attend_expanded
from moebius.model.experts import grouped
from moebius.profile.ceilings import Ceilings
from moebius.profile.doctor import examine as doctor
from moebius.profile.doctor import selftest, small_run
from moebius.profile.doctor.agreement import Failed, offers
from moebius.profile.doctor.collective import collective
from moebius.profile.doctor.machine import Gpu, Machine, machine, pitfalls
from moebius.profile.doctor.small_run import SmallRun
from moebius.train import checkpoint
from moebius.train.session import cut

CPU = torch.device("cpu")
CONFIG = Config(train=TrainConfig(device="cpu"))
FINE = Machine(
    python="3.12", system="Linux", torch="2.11.0", cuda="13.0", driver="580", triton="3.6.0",
    gpus=[Gpu("NVIDIA H100 80GB HBM3", 80 << 30, 79 << 30, (9, 0))], processor="CPU", cores=16, quota=16.0, threads=16,
    load=1.0, memory=128 << 30, free_disk={"data.cache": 10**12, "train.out": 10**12}, shared_memory=64 << 30, packages={},
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quick_ceilings(monkeypatch):
    monkeypatch.setattr(doctor, "ceilings", lambda device, dtype: Ceilings(1e11, 1e10))


@pytest.fixture
def examined(capsys, tmp_path, monkeypatch):
    """`moebius doctor` on the CPU: exit code, stdout, stderr. What it leaves is in tmp_path."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["doctor", "--train.device", "cpu", *arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def without_a_run(monkeypatch):
    monkeypatch.setattr(selftest, "_training", lambda small: [])


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> SmallRun:
    run = SmallRun(CONFIG, CPU, tmp_path_factory.mktemp("small"))
    run.learns()
    return run


def outcomes(out: str) -> dict[str, str]:
    """Each check's name and word."""
    return {name.strip(): word for word, name in re.findall(r"^(ok|FAILED) +(.{26})", out, re.MULTILINE)}


# the report


def test_a_sound_machine(examined, tmp_path):
    code, out, err = examined()
    assert code == 0 and not err
    found = outcomes(out)
    assert list(found) == [
        "loop experts, float32", "grouped experts, float32", "float8 experts, float32", "sdpa attention, float32", "training",
        "resume, bit by bit", "a flipped bit is noticed", "order of the data",
    ]  # fmt: skip
    assert set(found.values()) == {"ok"}
    assert out.splitlines()[-1].startswith("all is well: 8 of 8 checks passed")
    assert f"torch       {torch.__version__}"[:12].strip() in out and torch.__version__ in out
    assert re.search(r"^attention +flex, unavailable: .* needs a GPU", out, re.MULTILINE)
    assert re.search(r"^ceilings +100 GFLOP/s of float32 products, 10 GB/s of copies$", out, re.MULTILINE)
    assert not list(tmp_path.glob("moebius*"))


@pytest.mark.gpu
def test_a_sound_gpu(examined):
    code, out, err = examined("--train.device", "cuda")
    assert code == 0, out + err
    assert set(outcomes(out).values()) == {"ok"} and "flex attention, bfloat16" in outcomes(out)


@pytest.mark.usefixtures("without_a_run")
def test_json(examined):
    code, out, _ = examined("--json")
    found = json.loads(out)
    assert code == 0
    assert found["machine"]["torch"] == torch.__version__ and found["ceilings"] == {"flops": 1e11, "bytes": 1e10}
    assert [check["passed"] for check in found["checks"]] == [True] * 4
    assert {(each["kind"], each["name"]): each["state"] for each in found["backends"]}["experts", "loop"] == "used"
    assert found["verdict"].startswith("all is well")


@pytest.mark.usefixtures("without_a_run")
def test_flags_are_examined(examined):
    _, out, _ = examined("--parallel.expert_backend", "grouped", "--train.dtype", "bfloat16", "--model.activation", "relu2")
    assert re.search(r"^experts +grouped, used: asked for$", out, re.MULTILINE)
    assert "grouped experts, bfloat16" in outcomes(out) and "out and 4 gradients" in out
    assert "watch out" in out and "emulate bfloat16" in out


def test_it_takes_no_preset(examined):
    code, _, err = examined("tiny")
    assert code == 2 and "'tiny'" in err


@pytest.mark.parametrize(("device", "used", "unavailable"), [("cpu", {"loop", "sdpa"}, {"flex"}), ("cuda", {"flex"}, set())])
def test_every_backend_is_listed(device, used, unavailable, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    found = {offer.name: offer.state for offer in offers(Config(), torch.device(device))}
    assert found.keys() >= {"loop", "grouped", "float8", "sdpa", "flex"}
    assert used <= {name for name, state in found.items() if state == "used"}
    assert unavailable <= {name for name, state in found.items() if state == "unavailable"}
    assert list(found.values()).count("used") == 2


# backends that are wrong


def _scaled(x, routing, weights):
    return grouped(x, routing, weights) * 1.001


def _gate_gradient_lost(x, routing, weights):
    return grouped(x, routing._replace(gate_TK=routing.gate_TK.detach()), weights)


def _sentinels_to_the_first(x, routing, weights):
    return grouped(x, routing._replace(expert_TK=routing.expert_TK % len(weights.w_up_EDF)), weights)


def _not_a_number(x, routing, weights):
    return grouped(x, routing, weights) * torch.nan


def _raising(x, routing, weights):
    raise RuntimeError("no kernel image\nis available")


@pytest.mark.usefixtures("without_a_run")
@pytest.mark.parametrize("wrong", [_scaled, _gate_gradient_lost, _sentinels_to_the_first, _not_a_number, _raising])
def test_a_wrong_experts_backend_fails(examined, monkeypatch, wrong):
    monkeypatch.setattr(backends, "grouped", wrong)
    code, out, err = examined()
    assert code == 5
    assert outcomes(out) == {
        "loop experts, float32": "ok",
        "grouped experts, float32": "FAILED",
        "float8 experts, float32": "ok",
        "sdpa attention, float32": "ok",
    }
    assert err.count("\n") == 1 and "--parallel.expert_backend loop" in err
    if wrong is _raising:
        assert "RuntimeError: no kernel image is available" in out


@pytest.mark.usefixtures("without_a_run")
@pytest.mark.parametrize("wrong", [_gate_gradient_lost, _sentinels_to_the_first, _not_a_number])
def test_wrong_float8_fails(examined, monkeypatch, wrong):
    monkeypatch.setattr(backends, "float8", wrong)
    code, out, err = examined()
    assert code == 5 and err.count("\n") == 1 and "--train.expert_dtype auto" in err
    assert outcomes(out)["float8 experts, float32"] == "FAILED"


@pytest.mark.usefixtures("without_a_run")
def test_attention_across_documents_fails(examined, monkeypatch):
    monkeypatch.setattr(backends, "attend_expanded", lambda q, k, v, mask: attend_expanded(q, k, v, None))
    code, out, _ = examined()
    assert code == 5 and outcomes(out)["sdpa attention, float32"] == "FAILED"


# runs that go wrong


def test_a_run_that_learns_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr("moebius.train.step.learning_rate", lambda step, config: 0.0)
    with pytest.raises(Failed, match="a fall of"):
        SmallRun(CONFIG, CPU, tmp_path).learns()


def test_without_training_the_rest_fails_too(examined, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ValueError("no compiler")

    monkeypatch.setattr(small_run, "start", broken)
    code, out, _ = examined()
    found = outcomes(out)
    assert code == 5 and "ValueError: no compiler" in out
    assert [found[name] for name in ("training", "resume, bit by bit", "a flipped bit is noticed")] == ["FAILED"] * 3
    assert found["order of the data"] == "ok"


@pytest.mark.parametrize(
    ("forgotten", "instead"),
    [
        ("moebius.train.state.load_model", lambda *_: None),
        ("moebius.train.state.load_named_state", lambda *_: None),
        ("moebius.train.checkpoint.set_random_state", lambda *_: None),
        ("moebius.train.session.cut", lambda config, corpus: cut(replace(config, train=replace(config.train, seed=1)), corpus)),
    ],
    ids=["weights", "optimizer", "random generators", "order of the data"],
)
def test_a_resume_that_forgets_fails(small, monkeypatch, forgotten, instead):
    with monkeypatch.context() as patch, pytest.raises(Failed, match="differs by"):
        patch.setattr(forgotten, instead)
        try:
            small.resumes()
        finally:
            shutil.rmtree(small.whole.root.with_name("resumed"))


def test_a_checkpoint_that_is_not_verified_fails(small, monkeypatch):
    def unverified(folder: Path):
        yield from ((name, (folder / name).read_bytes()) for name in checkpoint._manifest(folder))

    monkeypatch.setattr(checkpoint, "_verified", unverified)
    with pytest.raises(Failed, match="went unnoticed"):
        small.notices_damage()
    shutil.rmtree(small.whole.root.with_name("damaged"))


def test_not_a_number_is_a_difference(small):
    run = small._copy("spoiled")
    newest = checkpoint.complete(run.checkpoints)[0]
    tensors, state = checkpoint.load(newest)
    tensors["model"]["norm.weight"].fill_(torch.nan)
    checkpoint.save(newest, tensors, state)
    assert small._difference("spoiled") == (float("inf"), "model norm.weight")


def test_batches_in_no_order_fail(small, monkeypatch):
    starts = Batches._starts
    monkeypatch.setattr(Batches, "_starts", lambda self, numbers: np.random.default_rng().permutation(starts(self, numbers)))
    with pytest.raises(Failed, match="differs"):
        small.repeats_its_data()


def test_a_sum_over_processes(tmp_path):
    assert collective(tmp_path, "gloo", 2).startswith("right on 2 gloo processes")


def test_a_process_that_fails_is_named(tmp_path):
    with pytest.raises(Failed, match="rank 0 of 1"):
        collective(tmp_path, "carrier-pigeon", 1)


# pitfalls


def said(found: Machine, config: Config = CONFIG, device: str = "cuda", **environment: str) -> str:
    config = replace(config, train=replace(config.train, dtype="auto"))
    return "\n".join(pitfalls(found, config, torch.device(device), environment))


def with_gpu(**changes) -> Machine:
    return replace(FINE, gpus=[Gpu(**{**vars(FINE.gpus[0]), **changes})])


def test_a_machine_without_pitfalls():
    assert said(FINE, OMP_NUM_THREADS="16", CUDA_LAUNCH_BLOCKING="0") == ""


@pytest.mark.parametrize(
    ("found", "environment", "expected"),
    [
        (FINE, {"OMP_NUM_THREADS": "17"}, "export OMP_NUM_THREADS=16"),
        (replace(FINE, quota=2.0), {}, "16 threads on 2 cores"),
        (replace(FINE, load=40.0), {}, "times will be too long"),
        (FINE, {"CUDA_LAUNCH_BLOCKING": "1"}, "CUDA_LAUNCH_BLOCKING=1 makes the host wait"),
        (FINE, {"TORCH_COMPILE_DISABLE": "1"}, "turns compilation off"),
        (with_gpu(capability=(7, 5)), {}, "no bfloat16 arithmetic: --train.dtype float32"),
        (with_gpu(free=40 << 30), {}, "nvidia-smi"),
        (replace(FINE, triton=""), {}, "triton is not installed"),
        (replace(FINE, gpus=FINE.gpus * 2, shared_memory=64 << 20), {}, "--shm-size"),
        (replace(FINE, free_disk={"train.out": 10**9}), {}, "1.0 GB free for train.out"),
        (replace(FINE, packages={"packages": {"numpy": "2.4", "tyro": ""}}), {}, "missing: tyro"),
    ],
)
def test_a_pitfall_says_what_to_do(found, environment, expected):
    assert expected in said(found, **environment) and "\n" not in said(found, **environment)


def test_pitfalls_of_a_gpu_that_is_not_used():
    without = replace(FINE, gpus=[])
    assert "install a CUDA build" in said(without, device="cpu")
    assert "unset it" in said(without, device="cpu", CUDA_VISIBLE_DEVICES="")
    assert said(replace(without, driver=""), device="cpu") == ""


def test_this_machine():
    found = machine(replace(CONFIG, train=replace(CONFIG.train, out="no/such/folder/yet")))
    assert found.torch == torch.__version__ and found.cores >= 1 and found.memory > 1e8
    assert min(found.free_disk.values()) > 0
    assert all("\n" not in value for _, value in found.rows())
