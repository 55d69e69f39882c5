"""The device that `auto` means, and accelerators that a machine lacks, without one of them."""

from types import SimpleNamespace

import pytest
import torch
from helpers import refused

from captioner import devices
from captioner.cli.options import resolve_device
from captioner.cli.predict import check_engine_device
from captioner.config import TrainerConfig
from captioner.devices import best_device, resolve_accelerator
from captioner.training.run import choose_precision, describe_trainer, resolve_trainer


@pytest.fixture
def cores(monkeypatch):
    """``cores(count)``: this process may use so many CPU cores."""
    return lambda count=4: monkeypatch.setattr(devices.os, "sched_getaffinity", lambda _: range(count), raising=False)


@pytest.fixture
def machine(monkeypatch):
    """``machine(gpus, mps)``: torch finds these devices, of compute capability `major`."""
    devices.warn_untested.cache_clear()

    def pretend(gpus: int = 0, mps: bool = False, major: int = 8) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.version, "cuda", "12.4")  # older versions of torch ask for it
        properties = type("properties", (), {"major": major})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)  # by emulation
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    pretend()
    return pretend


def test_auto_is_cuda_or_the_cpu(machine):
    for gpus, mps, expected in ((0, False, "cpu"), (0, True, "cpu"), (2, False, "cuda"), (1, True, "cuda")):
        machine(gpus, mps)
        assert best_device() == resolve_accelerator("auto") == expected


def test_gpu_is_cuda_and_never_mps(machine):
    machine(gpus=2, mps=True)
    assert resolve_accelerator("gpu", 2) == "cuda"
    machine(mps=True)
    refused(resolve_accelerator, "gpu", says=["trainer.accelerator is gpu", "no CUDA device", "use cpu"])


@pytest.mark.parametrize(
    ("gpus", "accelerator", "count", "says"),
    [
        (0, "gpu", 1, ["trainer.accelerator is gpu", "no CUDA device"]),
        (1, "auto", 2, ["trainer.devices is 2", "expected 1 to 1"]),
        (2, "gpu", 3, ["trainer.devices is 3", "expected 1 to 2"]),
        (0, "auto", 2, ["trainer.devices is 2", "no CUDA device", "--trainer.accelerator cpu"]),
        (0, "mps", 1, ["trainer.accelerator is mps", "no MPS device"]),
        (0, "cpu", 5, ["trainer.devices is 5: expected 1 to 4, for 4 CPU cores are here"]),
        (0, "auto", 64, ["trainer.devices is 64: expected 1 to 4"]),
    ],
)
def test_devices_that_are_missing(machine, cores, gpus, accelerator, count, says):
    machine(gpus)
    cores()
    refused(resolve_trainer, TrainerConfig(accelerator=accelerator, devices=count), says=says)


def test_processes_on_a_cpu(cores, machine, monkeypatch):
    """As many as there are cores; two can be tried everywhere."""
    machine(0)
    cores()
    assert resolve_accelerator("cpu", 4) == "cpu"
    cores(1)
    assert resolve_accelerator("cpu", 2) == "cpu"
    refused(resolve_accelerator, "cpu", 3, says=["expected 1 to 2, for 1 CPU core is here"])
    ddp = SimpleNamespace(engine="ddp", devices=64)
    refused(check_engine_device, ddp, "cpu", says=["--devices is 64: expected 1 to 2"])
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    check_engine_device(SimpleNamespace(engine="ray", devices=64), "cpu")


def test_what_the_trainer_lacks_is_told_before_anything_is_read(cli, machine, tmp_path):
    (tmp_path / "damaged.json").write_text("{")
    damaged = tmp_path / "damaged.json"
    data = (
        "--data.train",
        damaged,
        "--data.val",
        damaged,
        "--data.train_images",
        tmp_path,
        "--data.val_images",
        tmp_path,
    )
    for options in (("--trainer.accelerator", "gpu"), ("--trainer.devices", 2)):
        code, out, err = cli("train", *data, "--output", tmp_path / "run", *options)
        assert (code, out) == (2, "")
        assert err.startswith("captioner train: error: trainer.")
    assert [path.name for path in tmp_path.iterdir()] == ["damaged.json"]


def test_mps_is_used_if_named_and_said_once_to_be_untested(machine, capsys):
    machine(mps=True)
    assert [resolve_accelerator("mps") for _ in range(2)] == ["mps", "mps"]
    assert capsys.readouterr().err.splitlines() == [
        "captioner: warning: mps is untested: compare its results with cpu's"
    ]
    assert choose_precision("mps") == "32-true"


def test_a_device_of_another_kind_is_untested(machine, capsys):
    assert [resolve_device(name) for name in ("auto", "cpu", "meta", "meta:0")] == ["cpu", "cpu", "meta", "meta:0"]
    assert "meta is untested" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_one_short_line():
    """As mps on another machine than a Mac."""
    line = refused(resolve_device, "vulkan", says=["--device vulkan cannot be used", "choose auto or cpu"])
    assert len(line) < 200


@pytest.mark.parametrize(("major", "precision"), [(7, "16-mixed"), (8, "bf16-mixed"), (9, "bf16-mixed")])
def test_bf16_needs_units_that_compute_in_it(machine, major, precision):
    """7 is a V100 (7.0), T4 or RTX 20 (7.5), 8 an A100, RTX 30 or 40."""
    machine(1, major=major)
    assert choose_precision("cuda") == precision


def test_one_device_unless_asked(machine):
    machine(8)
    options = resolve_trainer(TrainerConfig())
    assert (options["accelerator"], options["devices"], options["precision"]) == ("cuda", 1, "bf16-mixed")
    assert describe_trainer(options, 256) == "training on cuda in bf16-mixed: batches of 256 captions"
    options = resolve_trainer(TrainerConfig(devices=4, num_nodes=2, accumulate_grad_batches=3))
    about = "training on 8 × cuda in bf16-mixed: batches of 250 captions, 3 a step, 32 on each"
    assert describe_trainer(options, 250) == about


@pytest.mark.parametrize(
    "environment", [{"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "8"}, {"SLURM_STEP_NUM_TASKS": "8"}]
)
def test_as_many_processes_as_were_started(monkeypatch, cores, environment):
    cores()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    cpu = {"accelerator": "cpu", "precision": "32-true"}
    refused(resolve_trainer, TrainerConfig(**cpu), says=["trainer.devices × trainer.num_nodes is 1", "8 processes"])
    assert resolve_trainer(TrainerConfig(devices=4, num_nodes=2, **cpu))["devices"] == 4


@pytest.mark.parametrize(
    ("unit", "precision"), [("amx_bf16", "bf16-mixed"), ("avx512_bf16", "bf16-mixed"), ("avx2", "32-true")]
)
def test_bf16_needs_a_cpu_that_computes_in_it(monkeypatch, unit, precision):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True, unit: True}, raising=False)
    assert choose_precision("cpu") == precision
