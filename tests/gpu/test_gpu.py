"""What only a CUDA device can show: training, decoding, memory and synchronisation there (``make gpu``).

Without one every test is skipped. They take less than ten minutes on one GPU.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import NO_DROPOUT, ROOT, arguments, captions_of, write_set
from PIL import Image
from pytorch_lightning.callbacks import Callback

from captioner.__main__ import main
from captioner.models.captioner import Captioner
from captioner.training import callbacks as training_callbacks

DEVICE = "cuda"
GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(GPUS == 0, reason="no CUDA device here"),
]
ATTENTION = ("--model.grid", "2", "--model.image_size", "64")
DECODERS = {
    "rnn": ("--model.cell", "rnn"),
    "gru": ("--model.cell", "gru"),
    "lstm": (),
    "three layers": ("--model.layers", "3"),
    "first word": ("--model.image_as", "first_word"),
    "initial state": ("--model.image_as", "initial_state"),
    "soft": ("--model.attention", "soft", *ATTENTION),
    "adaptive": ("--model.attention", "adaptive", *ATTENTION),
    "updown": ("--model.attention", "updown", *ATTENTION),
    "clips": ("--model.frames", "2"),
    "trained encoder": ("--model.trainable_layers", "1", "--data.augment"),
    "cached maps": ("--model.trainable_layers", "1"),
}
PRECISIONS = {"32-true": 0.02, "16-mixed": 0.05, "bf16-mixed": 0.2}  # tolerance of a mean log-probability, in nats
STILL = [word for name in NO_DROPOUT for word in (f"--model.{name}", "0")]
STILL += ["--model.hidden_size", "64", "--train.label_smoothing", "0", "--train.patience", "0"]


@pytest.fixture(scope="session", autouse=True)
def shared_networks():
    """In place of that of all tests: an encoder on the GPU and one on the CPU cannot share a network."""


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """24 + 12 images. Read only."""
    return write_set(tmp_path_factory.mktemp("squares") / "set", 24, 12, lambda number: captions_of(number, 5))


def gpu_train(coco, out, *options):
    """``captioner train`` of the smallest model on the device, in this process; its losses, step by step."""
    losses = Losses()
    with pytest.MonkeyPatch.context() as patch:
        make = training_callbacks.make_callbacks
        patch.setattr(training_callbacks, "make_callbacks", lambda *given: [*make(*given), losses])
        given = ("--trainer.accelerator", "gpu", "--train.lr", "0.01", *STILL, *options)
        assert main(arguments(coco, out, *given)) == 0
    return losses


class Losses(Callback):
    """The loss of each step, and facts about where things are."""

    def __init__(self):
        self.values, self.devices, self.averages = [], set(), set()

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))
        self.devices |= {tensor.device.type for tensor in (*task.parameters(), batch.images, batch.words)}
        for callback in trainer.callbacks:
            if isinstance(callback, training_callbacks.WeightAveraging):
                self.averages |= {tensor.device.type for tensor in callback._average_model.parameters()}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_a_decoder_trains(squares, tmp_path, decoder, precision):
    options = ("--trainer.precision", precision, "--train.epochs", "6", *DECODERS[decoder])
    losses = gpu_train(squares, tmp_path / "run", *options)
    assert losses.devices == {DEVICE}
    first, last = losses.values[:5], losses.values[-5:]
    assert sum(last) < 0.8 * sum(first)
    model = Captioner.load(tmp_path / "run" / "captioner.safetensors")  # on the CPU
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


@pytest.mark.parametrize("decoder", ["lstm", "soft", "updown"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_step_on_the_gpu_is_a_step_on_the_cpu(squares, tmp_path, decoder, precision):
    options = (*DECODERS[decoder], "--train.epochs", "1")
    on_gpu = gpu_train(squares, tmp_path / "gpu", "--trainer.precision", precision, *options)
    cpu = ("--trainer.accelerator", "cpu", "--trainer.precision", "32-true")
    on_cpu = gpu_train(squares, tmp_path / "cpu", *options, *cpu)
    assert on_gpu.values[0] == pytest.approx(on_cpu.values[0], abs=PRECISIONS[precision])
    assert on_gpu.values[-1] == pytest.approx(on_cpu.values[-1], abs=5 * PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("decoder", ["lstm", "soft"])
def test_self_critical_training(squares, tmp_path, decoder, precision):
    start = ("--train.epochs", "4", *DECODERS[decoder])
    gpu_train(squares, tmp_path / "start", *start)
    critical = ("--train.objective", "scst", "--init_from", tmp_path / "start", "--train.lr", "0.001")
    losses = gpu_train(squares, tmp_path / "run", *start, *critical, "--trainer.precision", precision)
    assert losses.devices == {DEVICE}
    assert all(abs(value) < 100 for value in losses.values)
    assert any(value != 0 for value in losses.values)


def test_the_moving_average_stays_on_the_device(squares, tmp_path):
    losses = gpu_train(squares, tmp_path / "run", "--train.ema_decay", "0.9")
    assert losses.averages == {DEVICE}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])  # the loss scaler of 16-mixed reads its flag back
@pytest.mark.parametrize("decoder", ["lstm", "gru", "soft", "adaptive", "updown", "clips", "trained encoder"])
def test_a_step_never_waits_for_the_device(squares, tmp_path, monkeypatch, decoder, precision):
    """From the first hook of a batch to its last: loss, gradients, clipping, optimiser, average and logging."""
    begin, end = Watch(), Relax()
    make = training_callbacks.make_callbacks
    monkeypatch.setattr(training_callbacks, "make_callbacks", lambda *given: [begin, *make(*given), end])
    options = (*DECODERS[decoder], "--trainer.accelerator", "gpu", "--trainer.precision", precision)
    options += ("--train.ema_decay", "0.9", "--trainer.log_every_n_steps", "1000")
    try:
        assert main(arguments(squares, tmp_path / "run", *options)) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert begin.batches == end.batches > 5


class Watch(Callback):
    """Makes every wait for the device an error, from the second batch on: the first one sets up libraries."""

    batches = 0

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.batches += 1
        if self.batches > 1:
            torch.cuda.set_sync_debug_mode("error")


class Relax(Callback):
    """Ends what Watch began."""

    batches = 0

    def on_train_batch_end(self, *_):
        self.batches += 1
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("decoder", ["lstm", "soft"])
def test_features_on_the_device_and_read_from_the_disk_give_the_same_losses(squares, tmp_path, decoder):
    """As far as two runs with features on the device do: the sums of a GPU have no fixed order."""
    options = ("--train.epochs", "2", *DECODERS[decoder], "--trainer.precision", "32-true")
    held, again = (torch.tensor(gpu_train(squares, tmp_path / name, *options).values) for name in ("held", "again"))
    read = torch.tensor(gpu_train(squares, tmp_path / "read", *options, "--data.feature_memory", "0").values)
    assert torch.allclose(read[:5], held[:5], rtol=1e-3)
    assert (read - held).abs().max() <= 5 * (again - held).abs().max() + 1e-3 * held.max()


def test_a_stopped_run_is_resumed(squares, tmp_path, monkeypatch):
    options = ("--train.epochs", "3", "--train.ema_decay", "0.9", "--trainer.precision", "32-true")
    whole = gpu_train(squares, tmp_path / "whole", *options)

    from captioner.training import task

    begin = task.CaptionTask.on_train_batch_start

    def stop(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 3):
            raise KeyboardInterrupt
        return begin(self, batch, batch_idx)

    out = tmp_path / "run"
    monkeypatch.setattr(task.CaptionTask, "on_train_batch_start", stop)
    with pytest.raises((KeyboardInterrupt, AssertionError, SystemExit)):
        gpu_train(squares, out, *options)
    monkeypatch.undo()
    rest = gpu_train(squares, out, *options, "--resume")
    assert rest.values == pytest.approx(whole.values[-len(rest.values) :], rel=1e-3)
    one, two = (Captioner.load(folder).state_dict() for folder in (tmp_path / "whole", out))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.01, atol=0.01, msg=name)


@pytest.mark.skipif(GPUS < 2, reason="one CUDA device alone")
@pytest.mark.parametrize("backend", ["nccl", "gloo"])
@pytest.mark.parametrize("trained", ["0", "1"])
def test_two_processes_take_the_steps_of_one(squares, tmp_path, backend, trained):
    options = [*STILL, "--model.trainable_layers", trained, "--trainer.precision", "32-true"]
    options += ["--trainer.accelerator", "gpu"]
    for devices in (1, 2):
        given = arguments(squares, tmp_path / f"{devices}", *options, "--trainer.devices", devices)
        environment = {**os.environ, "PL_TORCH_DISTRIBUTED_BACKEND": backend}
        done = subprocess.run([sys.executable, "-m", "captioner", *given], cwd=ROOT, env=environment, timeout=300)
        assert done.returncode == 0
    one, two = (Captioner.load(tmp_path / folder).state_dict() for folder in "12")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0.02, atol=0.02, msg=name)


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """100 parts of the photographs in data/photos, each half as wide and half as high or larger."""
    folder, random = tmp_path_factory.mktemp("crops"), torch.Generator().manual_seed(0)
    photos = [Image.open(path).convert("RGB") for path in sorted((ROOT / "data" / "photos").glob("*.jpg"))]
    for number in range(100):
        photo = photos[number % len(photos)]
        left, top, width, height = torch.rand(4, generator=random).tolist()
        width, height = ((0.5 + share / 2) * size for share, size in zip((width, height), photo.size, strict=True))
        left, top = left * (photo.width - width), top * (photo.height - height)
        photo.crop((left, top, left + width, top + height)).save(folder / f"{number:03}.jpg", quality=95)
    return folder


def captions_on(device, folder, out):
    """Image → caption and log-probability of the shipped model."""
    assert main(["predict", str(folder), "--device", device, "--format", "jsonl", "--output", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return {line["image"]: (line["caption"], line["log_prob"]) for line in lines}


def test_predict_says_what_it_says_on_the_cpu(crops, tmp_path):
    """The convolutions of a GPU round to TF32, with ten bits, so that captions of nearly equal score may change."""
    here, there = (captions_on(device, crops, tmp_path / f"{device}.jsonl") for device in ("cpu", DEVICE))
    assert here.keys() == there.keys()
    assert len(here) == 100
    same = [image for image in here if here[image][0] == there[image][0]]
    assert len(same) >= 95
    for image in same:
        assert there[image][1] == pytest.approx(here[image][1], abs=0.1)


def test_evaluate_scores_as_on_the_cpu(squares, tmp_path):
    gpu_train(squares, tmp_path / "run", "--train.epochs", "8")
    scores = []
    for device in ("cpu", DEVICE):
        out = tmp_path / f"{device}.json"
        given = ("--checkpoint", tmp_path / "run", "--annotations", squares.annotations("val"), "--device", device)
        given = ("evaluate", *given, "--images", squares.images("val"), "--json", out)
        assert main([str(word) for word in given]) == 0
        scores.append(json.loads(out.read_text()))
    cpu, gpu = ({name: value for name, value in each.items() if isinstance(value, float)} for each in scores)
    assert cpu
    assert gpu == pytest.approx(cpu, abs=1.0)


@pytest.mark.parametrize("decoder", ["lstm", "soft"])
def test_an_export_of_a_run_on_the_gpu_opens_on_the_cpu(squares, tmp_path, decoder):
    gpu_train(squares, tmp_path / "run", *DECODERS[decoder], "--trainer.precision", "16-mixed")
    for name in ("captioner.safetensors", "best.ckpt", "last.ckpt"):
        model = Captioner.load(tmp_path / "run" / name)
        assert model.device.type == "cpu"
        assert model.caption(squares.images("val") / "024.png")
    given = ("export", "--checkpoint", tmp_path / "run", "--to", "torch-export", "--output", tmp_path / "graphs")
    assert main([str(word) for word in given]) == 0
