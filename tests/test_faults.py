"""What goes wrong around a training: disks, folders, clocks, processes that die, numbers that are none."""

import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import ROOT, is_one_line, train, write_set

from captioner.__main__ import main
from captioner.config import SearchConfig, TrainConfig
from captioner.data import dataset, features
from captioner.data.annotations import read_examples
from captioner.errors import UserError
from captioner.files import atomic_folder
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import save_slim
from captioner.training import callbacks, checks
from captioner.training import run as training_run
from captioner.training.base_task import GPU_CHECK_INTERVAL, BaseTask, BatchRecord
from captioner.training.callbacks import AtomicCheckpointIO
from captioner.training.checks import same_caption, shared_images
from captioner.training.task import CaptionTask

FULL = OSError(28, "No space left on device")


def fails(*arguments, **options):
    raise FULL


# ---- numbers that are none


def test_a_gradient_that_is_no_number_stops_the_training_and_is_not_saved(tiny, tmp_path, capsys, monkeypatch):
    """In the second epoch: what the first one saved is as it was."""
    out = tmp_path / "run"
    step = callbacks.MovingAverage.on_train_batch_end
    saved = {}

    def spoil(self, trainer, task, *rest):
        step(self, trainer, task, *rest)
        if (trainer.current_epoch, trainer.global_step) == (1, 7):
            saved.update({path.name: path.read_bytes() for path in out.glob("*.ckpt")})
            with torch.no_grad():
                task.model.decoder.output.bias[0] = torch.nan

    monkeypatch.setattr(callbacks.MovingAverage, "on_train_batch_end", spoil)
    assert train(tiny, out, "--train.ema_decay", "0.5") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert is_one_line(error, "epoch 2, batch 3", ".png", "its loss is nan", "--train.lr (0.003)")
    assert {path.name: path.read_bytes() for path in out.glob("*.ckpt")} == saved
    assert set(saved) == {"best.ckpt", "last.ckpt"}
    assert not (out / "captioner.safetensors").exists()
    assert torch.load(out / "last.ckpt", weights_only=True)["state_dict"]["model.decoder.output.bias"].isfinite().all()


def spoil_loss(monkeypatch, call: int) -> None:
    """The loss of this batch of the training, counted from 0, is no number; there are 5 an epoch."""
    loss, calls = CaptionTask.loss, itertools.count()

    def spoilt(self, batch):
        mean, number = loss(self, batch)
        return mean * torch.nan if self.training and next(calls) == call else mean, number

    monkeypatch.setattr(CaptionTask, "loss", spoilt)


def test_of_accumulated_batches_the_bad_one_is_named(tiny, tmp_path, capsys, monkeypatch):
    spoil_loss(monkeypatch, 6)
    assert train(tiny, tmp_path / "run", "--trainer.accumulate_grad_batches", "3") == 2
    assert is_one_line(capsys.readouterr().err.splitlines()[-1], "epoch 2, batch 2 (", "its loss is nan")


def test_gradients_that_explode_are_told_with_all_batches_of_the_step(tiny, tmp_path, capsys, monkeypatch):
    """Their losses are numbers."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    assert train(tiny, tmp_path / "run", "--trainer.accumulate_grad_batches", "3") == 2
    assert is_one_line(capsys.readouterr().err.splitlines()[-1], "epoch 1, batches 1 to 3 (", "gradient norm inf")


def test_of_steps_that_are_looked_at_together_the_first_bad_one_is_named(tiny, tmp_path, capsys, monkeypatch):
    """As on a GPU, where few steps wait for the answer; nothing is validated or written before it is there."""
    spoil_loss(monkeypatch, 6)
    monkeypatch.setattr(BaseTask, "check_interval", GPU_CHECK_INTERVAL)
    validated = []
    begin = CaptionTask.on_validation_epoch_start
    monkeypatch.setattr(
        CaptionTask, "on_validation_epoch_start", lambda self: validated.append(self.current_epoch) or begin(self)
    )
    assert train(tiny, tmp_path / "run") == 2
    assert "epoch 2, batch 2 (" in capsys.readouterr().err
    assert validated == [0]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0


def test_a_step_of_fp16_may_be_passed_over_but_not_all():
    good, bad = ((torch.tensor(norm), [BatchRecord(torch.tensor(1.0), 0, 0, None)]) for norm in (1.0, torch.inf))

    def after(*steps, end=False, planned=1000):
        task = BaseTask(None, TrainConfig(), planned)
        task.trainer = SimpleNamespace(precision="16-mixed", world_size=1)
        task.unchecked = list(steps)
        task.check_gradients(end)
        return len(task.unchecked)

    assert after(*[bad] * 49) == 49  # more are waited for
    assert after(*[bad] * 49, good) == 0
    assert after(*[bad] * 49, good, *[bad] * 49) == 49
    assert after(good, *[bad] * 9, end=True, planned=10) == 9
    for steps, more in (([bad] * 50, {}), ([good, *[bad] * 50], {}), ([bad] * 9, {"end": True, "planned": 9})):
        with pytest.raises(UserError, match="gradient norm inf"):
            after(*steps, **more)


def test_a_language_model_has_the_same_eye_on_its_gradients(tmp_path, capsys, monkeypatch):
    (tmp_path / "text.txt").write_text("a dog runs after a ball\n" * 200)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.nan))
    options = ["--data.text", tmp_path / "text.txt", "--output", tmp_path / "run", "--trainer.accelerator", "cpu"]
    assert main(["pretrain", *map(str, options)]) == 2
    assert is_one_line(capsys.readouterr().err.splitlines()[-1], "epoch 1, batch 1: its loss is", "gradient norm nan")


# ---- disks and folders


@pytest.mark.parametrize("fails_in", ["save", "fsync"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, fails_in):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)
    before = path.read_bytes()
    monkeypatch.setattr(*((torch, "save", fails) if fails_in == "save" else (os, "fsync", fails)))
    with pytest.raises(UserError) as caught:
        AtomicCheckpointIO().save_checkpoint({"a": 2}, path)
    assert is_one_line(str(caught.value), str(path), "No space left", "--resume")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_bytes() == before


def test_room_for_all_features_is_taken_before_the_first(tmp_path, monkeypatch):
    """A memory map that finds the disk full later would kill the process with a signal."""
    monkeypatch.setattr(os, "posix_fallocate", fails, raising=False)
    with pytest.raises(UserError) as caught:
        features.write_features(tmp_path / "f", {"encoder": "x"}, ["a"], (3,), lambda first: pytest.fail("began"))
    assert is_one_line(str(caught.value), "No space left", "--data.feature_cache")


@pytest.mark.parametrize(
    "arguments",
    [
        *(["train", "--print_config"], ["--help"]),
        *(pytest.param(one, marks=pytest.mark.slow) for one in (["plot", "--help"], ["--version"])),
    ],
)
def test_a_full_disk_behind_standard_output(arguments):
    code = f"import sys; from captioner.__main__ import main; sys.exit(main({arguments}))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert is_one_line(done.stderr.strip(), "the output cannot be used (No space left on device)")
    closed = subprocess.run(
        f"exec {sys.executable} -c {code!r} >&-", shell=True, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert (closed.returncode, closed.stderr) == (0, "")


@pytest.mark.slow
def test_a_file_that_outgrows_its_limit(tmp_path):
    """torch has a word of its own for what the disk refuses."""
    code = f"""
import resource, torch
from captioner.training.callbacks import AtomicCheckpointIO
from captioner.errors import UserError
path = {str(tmp_path / "last.ckpt")!r}
AtomicCheckpointIO().save_checkpoint({{"a": torch.zeros(10)}}, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    AtomicCheckpointIO().save_checkpoint({{"a": torch.zeros(10**6)}}, path)
except UserError as error:
    print(error)
print(torch.load(path)["a"].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    line, shape = done.stdout.splitlines()
    assert is_one_line(line, "last.ckpt: cannot be written", "--resume")
    assert shape == "torch.Size([10])"
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_is_not_replaced_by_one(tmp_path, captioner, cli, images, kind):
    place, model = tmp_path / "place", tmp_path / "model.safetensors"
    captioner.save(model)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        (place / "held.html").mkdir(parents=True)
    else:
        (tmp_path / "real").touch()
        place.symlink_to("real")
    before = os.lstat(place)
    outputs = ["--output", "--report"] if kind != "folder" else ["--report"]  # a folder is one of parts
    for output in outputs:
        code, _, err = cli("predict", *images[:2], "--checkpoint", model, output, place)
        assert code == (0 if kind == "link" else 2)
        assert kind == "link" or is_one_line(err.strip(), "cannot be written", "folder" if kind == "folder" else "pipe")
        assert (os.lstat(place).st_mode, os.lstat(place).st_ino) == (before.st_mode, before.st_ino)
    assert kind != "link" or (tmp_path / "real").stat().st_size > 0
    assert not list(tmp_path.glob("*.part*"))


def test_a_place_one_may_not_look_at(tmp_path, cli, monkeypatch):
    """Whatever the system says of a file is one line that names it."""
    from captioner.cli import plot

    monkeypatch.setattr(plot, "run", lambda options: os.stat(tmp_path / ("a" * 300)))
    code, _, err = cli("plot", tmp_path)
    assert code == 2
    assert is_one_line(err.strip(), str(tmp_path), "cannot be used (File name too long)")


def test_two_runs_do_not_share_a_folder(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(training_run, "LOCK_TIMEOUT", 0.1)
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run" / ".lock"):
        assert train(tiny, tmp_path / "run") == 2
    assert is_one_line(capsys.readouterr().err.strip(), "another run is writing to", "--output")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    with atomic_folder(tmp_path / "new") as part:
        (part / "a").touch()
        with pytest.raises(UserError, match="another run is writing"), atomic_folder(tmp_path / "new"):
            pytest.fail("began")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "run"]


@pytest.mark.slow
def test_the_other_processes_of_a_run_share_its_folder(tmp_path):
    """However they were started: here by torchrun, on a second machine."""
    place = f"Path({str(tmp_path)!r})"
    code = "from pathlib import Path; from captioner.training import run; run.LOCK_TIMEOUT = 0.1"
    environment = {**os.environ, "RANK": "8", "LOCAL_RANK": "0"}
    with FileLock(tmp_path / ".lock"):
        subprocess.run(
            [sys.executable, "-c", f"{code}; run.lock_folder({place}, 'train').__enter__()"],
            env=environment,
            cwd=ROOT,
            check=True,
        )


def test_weights_that_fp16_cannot_hold_are_kept_as_they_are(captioner, tmp_path):
    """After a training that went wrong without a number that is none."""
    weights = captioner.weights()
    weights["decoder.output.bias"] = weights["decoder.output.bias"] + 1e6
    save_slim(tmp_path / "model.safetensors", captioner.header(), weights)
    model = Captioner.load(tmp_path / "model.safetensors")
    assert model.decoder.output.bias.max() > 9e5
    assert model.search(torch.zeros((1, 3, 32, 32), dtype=torch.uint8), SearchConfig(beam=1))[0][0].perplexity < 1e305


def test_logs_that_cannot_be_written(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(callbacks.SampleCaptions, "on_validation_end", fails)
    assert train(tiny, tmp_path / "run") == 2
    assert "cannot be written ([Errno 28]" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["last.ckpt", "config.yaml"])
def test_a_damaged_run_is_not_gone_on_with(tiny, run, tmp_path, capsys, name):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / name).write_bytes((out / name).read_bytes()[:100])
    assert train(tiny, out, "--resume", "--train.ema_decay", "0.5") == 2
    assert is_one_line(capsys.readouterr().err.strip(), str(out / name), "put back a copy")


def test_a_run_without_its_last_checkpoint_is_not_begun_anew(tiny, run, tmp_path, capsys):
    """For that would overwrite the best one."""
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / "last.ckpt").unlink()
    state = torch.load(out / "best.ckpt", weights_only=True)
    torch.save({**state, "epoch": 1}, out / "best.ckpt")
    best = (out / "best.ckpt").read_bytes()
    for gone in ("", "captioner.safetensors"):
        if gone:
            (out / gone).unlink()
        for more in ([], ["--resume"]):
            assert train(tiny, out, *more, "--train.ema_decay", "0.5") == 2
            assert is_one_line(capsys.readouterr().err.strip(), "no last.ckpt to resume from", "--init-from")
    assert (out / "best.ckpt").read_bytes() == best
    torch.save({**state, "epoch": 0}, out / "best.ckpt")  # killed before the first last.ckpt
    assert train(tiny, out, "--train.ema_decay", "0.5") == 2
    assert is_one_line(capsys.readouterr().err.strip(), "was killed: --resume starts it again")
    assert train(tiny, out, "--resume", "--train.ema_decay", "0.5") == 0


@pytest.mark.parametrize("epoch", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_interrupted_in_a_validation(tiny, run, tmp_path, monkeypatch, epoch):
    """The timed checkpoint is not one of the end of an epoch that was not validated, so the best one is the same."""
    begin = CaptionTask.on_validation_epoch_start

    def interrupt(self):
        if self.current_epoch == epoch:
            raise KeyboardInterrupt
        begin(self)

    often = ["--train.ema_decay", "0.5", "--train.checkpoint_minutes", "0.00001"]
    with monkeypatch.context() as patch:
        patch.setattr(CaptionTask, "on_validation_epoch_start", interrupt)
        assert train(tiny, tmp_path / "run", *often) == 130
    assert train(tiny, tmp_path / "run", *often, "--resume") == 0
    for name in ("best.ckpt", "last.ckpt"):
        ours, theirs = (torch.load(folder / name, weights_only=True) for folder in (tmp_path / "run", run))
        assert (ours["epoch"], ours["global_step"]) == (theirs["epoch"], theirs["global_step"])
        assert all(torch.equal(ours["state_dict"][key], value) for key, value in theirs["state_dict"].items())


@pytest.mark.parametrize("name", ["last.ckpt", "config.yaml"])
@pytest.mark.parametrize("change", ["keys", "types", "depth"])
def test_a_run_with_other_content_is_not_gone_on_with(tiny, run, tmp_path, capsys, name, change):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    if name == "config.yaml":
        (out / name).write_text({"keys": "a: 1", "types": "data: [1]", "depth": "[" * 5000}[change])
    else:
        state = torch.load(out / name, weights_only=True)
        torch.save({"keys": {"a": 1}, "types": {**state, "loops": 3}, "depth": [state]}[change], out / name)
    assert train(tiny, out, "--resume", "--train.ema_decay", "0.5") == 2
    assert is_one_line(capsys.readouterr().err.strip(), str(out / name), "put back a copy")


# ---- processes and clocks


@pytest.mark.slow
def test_images_are_handed_on_with_one_open_file_a_batch(tmp_path, images):
    """Not one an image: there are 64 in all here."""
    code = f"""
import resource
from captioner.data.dataset import read_images
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
paths = {[str(path) for path in images] * 60}
print(sum(len(batch) for batch, _ in read_images(paths, 32, 100, workers=1)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.stdout == f"{60 * len(images)}\n", done.stderr


DIED = ("a worker process died", "memory", "--workers")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_a_process_that_reads_images_and_dies_is_one_line(tiny, tmp_path, captioner, cli, monkeypatch):
    monkeypatch.setattr(dataset, "load_pixels", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    captioner.save(tmp_path / "model.safetensors")
    code, out, err = cli(
        *(
            "predict",
            tiny.images("val"),
            "--checkpoint",
            tmp_path / "model.safetensors",
            "--workers",
            1,
            "--batch_size",
            2,
        )
    )
    assert (code, out) == (2, "")
    assert is_one_line(err.splitlines()[-1], *DIED)


def test_a_process_that_dies_while_a_batch_is_computed(tiny, tmp_path, capsys, monkeypatch):
    """torch then raises wherever the program is."""
    step = CaptionTask.training_step

    def kill(self, *arguments):
        for process in multiprocessing.active_children():
            process.kill()
        time.sleep(1)
        return step(self, *arguments)

    monkeypatch.setattr(CaptionTask, "training_step", kill)
    assert train(tiny, tmp_path / "run", "--model.trainable_layers", "1", "--data.augment", "--data.workers", "1") == 2
    assert is_one_line(capsys.readouterr().err.splitlines()[-1], *DIED)


def test_another_mistake_in_such_a_process_keeps_its_traceback(tiny, tmp_path, captioner, monkeypatch):
    monkeypatch.setattr(dataset, "load_pixels", lambda *_: torch.ones(2) @ torch.ones(3))
    captioner.save(tmp_path / "model.safetensors")
    options = ["--checkpoint", str(tmp_path / "model.safetensors"), "--workers", "1", "--batch_size", "2"]
    with pytest.raises(RuntimeError, match="Caught RuntimeError in DataLoader worker"):
        main(["predict", str(tiny.images("val")), *options])


@pytest.mark.slow
def test_a_clock_that_goes_back(tiny, tmp_path, monkeypatch, run):
    """The weights are those of the run of the other tests, under a clock that runs backwards from 2020 on."""
    now, lock = [1.6e9], threading.Lock()

    def back() -> float:
        with lock:
            now[0] -= 60
            return now[0]

    monkeypatch.setattr(time, "time", back)
    assert train(tiny, tmp_path / "run", "--train.ema_decay", "0.5") == 0
    monkeypatch.undo()
    assert (tmp_path / "run" / "captioner.safetensors").read_bytes() == (run / "captioner.safetensors").read_bytes()


# ---- numbers that cannot lie


def test_the_same_caption_for_most_images_is_told():
    assert same_caption([]) == same_caption(["a", "a"]) == same_caption(["a", "a", "b", "c"]) == []
    (line,) = same_caption(["a dog"] * 3 + ["b", "c"])
    assert is_one_line(line, "60 % of the 5 validation images", "'a dog'", "--train.lr")


def test_validation_images_among_the_training_images_are_told(tmp_path, monkeypatch):
    coco = write_set(tmp_path / "set", train=6, val=4)
    (train, _), (val, _) = (read_examples(coco.annotations(split), coco.images(split)) for split in ("train", "val"))
    assert shared_images(train, val) == []
    shutil.copy(train[2].path, val[1].path)
    (line,) = shared_images(train, val)
    assert is_one_line(line, "1 of 4 validation images", "007.png is 002.png", "data inspect")
    val[1].path.unlink()
    assert shared_images(train, val) == []  # features may be all that is left
    monkeypatch.setattr(checks, "MAX_CANDIDATES", 0)
    assert shared_images(train, train)[0].startswith("6 of 6 validation images")  # the same files are not read


def test_of_many_shared_images_some_are_counted(tmp_path, monkeypatch):
    coco = write_set(tmp_path / "set", train=6, val=6)
    (train, _), (val, _) = (read_examples(coco.annotations(split), coco.images(split)) for split in ("train", "val"))
    for one, other in zip(train, val, strict=True):
        shutil.copy(one.path, other.path)
    assert shared_images(train, val)[0].startswith("6 of 6 validation images")
    monkeypatch.setattr(checks, "MAX_COMPARED", 3)
    assert shared_images(train, val)[0].startswith("at least 3 of 6 validation images")


def test_too_small_a_vocabulary_is_told_at_the_beginning_and_at_the_end(tmp_path, capsys):
    coco = write_set(tmp_path / "set", 12, 6, captions=lambda n: ["a red square", "a"] if n < 12 else ["one blue ball"])
    assert train(coco, tmp_path / "run") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "words" in line]
    assert is_one_line(lines[0], "warning: the vocabulary of 7 words has 0.0 % of the words", "--data.min_count (1)")
    assert lines[1] == lines[0].replace("warning: ", "warning: still at the end: ")


def test_features_that_are_not_the_encoders_stop_the_training(fresh, tmp_path, capsys):
    assert train(fresh, tmp_path / "run", "--train.epochs", "1") == 0
    (file,) = fresh.folder.glob("features/captions_train*/features.npy")
    rows = np.load(file, mmap_mode="r+")
    for others in (np.random.default_rng(0).standard_normal(rows.shape), np.zeros(rows.shape)):
        rows[:] = others
        rows.flush()
        assert train(fresh, tmp_path / "again") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert is_one_line(error, "000.png", "not those of resnet18", "cosine", "delete the folder")
        assert not (tmp_path / "again").exists()


# ---- killed at random moments


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    script = [sys.executable, "tests/faults/kills.py", "--kills", "24", "--folder", str(tmp_path / "kills")]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all outputs equal to those of the undisturbed runs" in done.stdout
