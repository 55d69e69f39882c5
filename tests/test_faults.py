"""What goes wrong around a training: disks, folders, clocks, processes that die, numbers that are none."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, is_one_line, write_set
from test_training import train

from captioner import callbacks, dataset, features
from captioner.callbacks import WholeCheckpoints
from captioner.dataset import read_pictures
from captioner.errors import UserError
from captioner.health import same_caption, shared_pictures

FULL = OSError(28, "No space left on device")


def fails(*arguments, **options):
    raise FULL


# ---- numbers that are none


def test_a_gradient_that_is_no_number_stops_the_training_and_is_not_saved(tiny, tmp_path, capsys, monkeypatch):
    """In the second epoch: what the first one saved is as it was."""
    out = tmp_path / "run"
    step = callbacks.WeightAveraging.on_train_batch_end
    saved = {}

    def spoil(self, trainer, task, *rest):
        step(self, trainer, task, *rest)
        if (trainer.current_epoch, trainer.global_step) == (1, 7):
            saved.update({path.name: path.read_bytes() for path in out.glob("*.ckpt")})
            with torch.no_grad():
                task.model.decoder.output.bias[0] = torch.nan

    monkeypatch.setattr(callbacks.WeightAveraging, "on_train_batch_end", spoil)
    assert train(tiny, out, "--train.ema_decay", "0.5") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert is_one_line(error, "epoch 2, batch 3", ".png", "its loss is nan", "--train.lr (0.003)", "--init-from")
    assert {path.name: path.read_bytes() for path in out.glob("*.ckpt")} == saved
    assert set(saved) == {"best.ckpt", "last.ckpt"}
    assert not (out / "captioner.safetensors").exists()
    assert torch.load(out / "last.ckpt", weights_only=True)["state_dict"]["model.decoder.output.bias"].isfinite().all()


def test_of_steps_that_are_looked_at_together_the_first_bad_one_is_named(tiny, tmp_path, capsys, monkeypatch):
    """As on a GPU, where nothing waits for the answer; no checkpoint is written before it is there."""
    from captioner.task import CaptionTask

    def later(self, optimizer, *_, **__):
        number = float("nan") if self.trainer.global_step in (6, 8) else 1.0
        self.watched.append((torch.tensor(number), *self.at))

    monkeypatch.setattr(CaptionTask, "configure_gradient_clipping", later)
    assert train(tiny, tmp_path / "run") == 2
    assert "epoch 2, batch 2 " in capsys.readouterr().err
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["epoch"] == 0


def test_a_step_of_fp16_may_be_passed_over_but_not_all(tiny):
    from types import SimpleNamespace

    from captioner.task import CaptionTask

    task = CaptionTask.__new__(CaptionTask)
    torch.nn.Module.__init__(task)
    pictures = SimpleNamespace(train=SimpleNamespace(examples=[SimpleNamespace(name="a.png")]))
    task._trainer = SimpleNamespace(precision="16-mixed", datamodule=pictures)
    task._fabric, task._jit_is_scripting, task.config = None, False, SimpleNamespace(lr=1.0)
    good, bad = ((torch.tensor(x), torch.tensor(1.0), 0, 0, torch.tensor([0])) for x in (1.0, float("inf")))
    task.watched = [bad, good]
    task.check_gradients()
    task.watched = [bad, bad]
    with pytest.raises(UserError, match="norm of its gradient inf"):
        task.check_gradients()


# ---- disks and folders


@pytest.mark.parametrize("fails_in", ["save", "fsync"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, fails_in):
    path = tmp_path / "last.ckpt"
    WholeCheckpoints().save_checkpoint({"a": 1}, path)
    before = path.read_bytes()
    monkeypatch.setattr(*((torch, "save", fails) if fails_in == "save" else (os, "fsync", fails)))
    with pytest.raises(UserError) as caught:
        WholeCheckpoints().save_checkpoint({"a": 2}, path)
    assert is_one_line(str(caught.value), str(path), "No space left", "--resume")
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_bytes() == before


def test_room_for_all_features_is_taken_before_the_first(tmp_path, monkeypatch):
    """A memory map that finds the disk full later would kill the process with a signal."""
    monkeypatch.setattr(os, "posix_fallocate", fails, raising=False)
    with pytest.raises(UserError) as caught:
        features.write_features(tmp_path / "f", {"encoder": "x"}, ["a"], (3,), lambda first: pytest.fail("began"))
    assert is_one_line(str(caught.value), "No space left", "--data.feature_cache")


@pytest.mark.parametrize("arguments", [["train", "--print_config"], ["plot", "--help"]])
def test_a_full_disk_behind_standard_output(arguments):
    code = f"import sys; from captioner.__main__ import main; sys.exit(main({arguments}))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert is_one_line(done.stderr.strip(), "cannot be written (No space left on device)")


def test_logs_that_cannot_be_written(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(callbacks.Samples, "on_validation_end", fails)
    assert train(tiny, tmp_path / "run") == 2
    assert "cannot be written ([Errno 28]" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["last.ckpt", "config.yaml"])
def test_a_damaged_run_is_not_gone_on_with(tiny, run, tmp_path, capsys, name):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    (out / name).write_bytes((out / name).read_bytes()[:100])
    assert train(tiny, out, "--resume", "--train.ema_decay", "0.5") == 2
    assert is_one_line(capsys.readouterr().err.strip(), str(out / name), "put back a copy")


# ---- processes and clocks


def test_a_process_that_reads_pictures_and_dies_is_one_line(tiny, monkeypatch):
    monkeypatch.setattr(dataset, "look", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError) as caught:
        list(read_pictures([tiny.images("val") / "012.png"], 32, 2, workers=1))
    assert is_one_line(str(caught.value), "died", "memory", "--workers")


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


def test_the_same_caption_for_most_pictures_is_told():
    assert same_caption([]) == same_caption(["a", "a"]) == same_caption(["a", "a", "b", "c"]) == []
    (line,) = same_caption(["a dog"] * 3 + ["b", "c"])
    assert is_one_line(line, "60 % of the 5 validation pictures", "'a dog'", "--train.lr")


def test_validation_pictures_among_the_training_pictures_are_told(tmp_path):
    from captioner.formats import read

    coco = write_set(tmp_path / "set", train=6, val=4)
    (train, _), (val, _) = (read(coco.annotations(split), coco.images(split)) for split in ("train", "val"))
    assert shared_pictures(train, val) == []
    shutil.copy(train[2].path, val[1].path)
    (line,) = shared_pictures(train, val)
    assert is_one_line(line, "1 validation pictures of 4", "007.png is 002.png", "data inspect")
    val[1].path.unlink()
    assert shared_pictures(train, val) == []  # features may be all that is left


def test_too_small_a_vocabulary_is_told_at_the_beginning_and_at_the_end(tmp_path, capsys):
    coco = write_set(tmp_path / "set", 12, 6, captions=lambda n: ["a red square", "a"] if n < 12 else ["one blue ball"])
    assert train(coco, tmp_path / "run") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "words" in line]
    assert is_one_line(lines[0], "warning: the vocabulary of 7 words has 0.0 % of the words", "--data.min_count (1)")
    assert lines[1] == lines[0].replace("warning: ", "warning: still at the end: ")


def test_features_that_are_not_the_encoders_stop_the_training(fresh, tmp_path, capsys):
    assert train(fresh, tmp_path / "run") == 0
    for file in fresh.folder.glob("features/captions_train*/features.npy"):
        rows = np.load(file, mmap_mode="r+")
        rows[:] = np.random.default_rng(0).standard_normal(rows.shape)
        rows.flush()
    assert train(fresh, tmp_path / "again") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert is_one_line(error, "000.png", "not those of resnet18", "cosine", "delete the folder")


# ---- killed at random moments


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    script = [sys.executable, "tests/faults/kills.py", "--kills", "24", "--folder", str(tmp_path / "kills")]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all outputs equal to those of the undisturbed runs" in done.stdout
