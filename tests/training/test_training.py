"""Whole runs of ``captioner train``: files, logs, results, and resuming killed runs."""

import csv
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import NO_DROPOUT, ROOT, arguments, captions_of, is_one_line, train, typed, write_set
from PIL import Image

from captioner import metrics
from captioner.__main__ import main
from captioner.config import DataConfig, ModelConfig, SearchConfig, TrainConfig
from captioner.data import clips
from captioner.models.captioner import Captioner
from captioner.models.checkpoint import read_checkpoint
from captioner.models.encoder import Encoder
from captioner.training.base_task import warmup_cosine
from captioner.training.callbacks import SAMPLE_SIZE
from captioner.training.datamodule import CaptionData
from captioner.training.run import how_to_resume
from captioner.training.task import CaptionTask


def logged(run: Path, name: str) -> list[float]:
    """The values of a column of all of a run's metrics.csv."""
    files = sorted(run.glob("logs/part_*/metrics.csv"))
    rows = [row for file in files for row in csv.DictReader(file.read_text().splitlines())]
    return [float(row[name]) for row in rows if row.get(name)]


def tensors(file: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a Lightning checkpoint, by its place."""
    found = {}

    def collect(place, value):
        if isinstance(value, torch.Tensor):
            found[place] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                collect(f"{place}/{key}", inner)
        elif isinstance(value, (list, tuple)):
            for i, inner in enumerate(value):
                collect(f"{place}/{i}", inner)

    checkpoint = torch.load(file, weights_only=True)
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        collect(part, checkpoint.get(part, {}))
    return found


def different(a: Path, b: Path) -> list[str]:
    """What differs, bit by bit, between two checkpoints."""
    one, two = tensors(a), tensors(b)
    assert set(one) == set(two)
    return [name for name in one if not torch.equal(one[name], two[name])]


@pytest.fixture
def cli_train(cli):
    def call(coco, out, *options):
        return cli(*arguments(coco, out, *options))

    return call


# ---- a finished run


def test_what_a_run_leaves_behind(run):
    assert {path.name for path in run.iterdir()} == {
        *("best.ckpt", "last.ckpt", "captioner.safetensors", "config.yaml", "samples.md", "logs")
    }
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert {"data", "model", "train", "search", "trainer", "output"} <= set(config)
    assert ModelConfig(**config["model"]).hidden_size == 16
    assert len(list(run.glob("logs/part_0/events.out.tfevents.*"))) == 1


def test_what_a_run_logs(run):
    for name in ("val_cider", "val_bleu4", "val_rouge", "val_distinct", "val_loss"):
        assert len(logged(run, name)) == 2, name
    assert len(logged(run, "train_loss")) == len(logged(run, "grad_norm")) == 2 * 5  # 33 captions in batches of 8
    assert all(norm > 0 for norm in logged(run, "grad_norm"))
    assert logged(run, "captions_per_s")
    assert len(set(logged(run, "lr"))) > 5


def test_tensorboard_has_scalars_and_images_with_captions(run, tiny):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "logs" / "part_0"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train_loss", "val_loss", "val_cider", "lr", "grad_norm", "captions_per_s"} <= set(tags["scalars"])
    assert len(tags["images"]) == len(list(tiny.images("val").iterdir()))
    for tag in tags["images"]:
        pages = events.Images(tag)
        assert len(pages) == 2  # epochs
        page = Image.open(io.BytesIO(pages[-1].encoded_image_string))
        assert page.width == SAMPLE_SIZE < page.height
        darkest, lightest = page.crop((0, SAMPLE_SIZE, SAMPLE_SIZE, page.height)).convert("L").getextrema()
        assert darkest < 50 < lightest  # something stands there


def test_samples_show_the_same_images_each_epoch(run, tiny):
    text = (run / "samples.md").read_text()
    assert [line[:10] for line in text.splitlines() if line.startswith("## ")] == ["## Epoch 1", "## Epoch 2"]
    names = re.findall(r"^\| (\d+\.png) \| ", text, re.MULTILINE)
    assert names == [path.name for path in sorted(tiny.images("val").iterdir())] * 2


def test_the_average_of_the_weights_is_what_is_saved(run):
    last = torch.load(run / "last.ckpt", weights_only=True)
    live = last["current_model_state"]
    assert any(not torch.equal(last["state_dict"][name], live[name]) for name in live)


def test_the_slim_model_is_the_best_one(run):
    header, best = read_checkpoint(run / "best.ckpt")
    slim_header, slim = read_checkpoint(run / "captioner.safetensors")
    assert header == slim_header
    assert set(best) == set(slim)
    assert all(torch.equal(best[name].half(), slim[name]) for name in best)


def test_a_run_is_repeatable(tiny, tmp_path, run):
    assert train(tiny, tmp_path / "again", "--train.ema_decay", "0.5") == 0
    assert not different(run / "last.ckpt", tmp_path / "again" / "last.ckpt")
    assert train(tiny, tmp_path / "other", "--train.ema_decay", "0.5", "--train.seed", "1") == 0
    assert different(run / "last.ckpt", tmp_path / "other" / "last.ckpt")


# ---- going on with a run


def test_a_run_is_not_overwritten_and_other_options_are_refused(tiny, run, cli_train):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, _, err = cli_train(tiny, run, "--train.ema_decay", "0.5")
    assert code == 2
    assert is_one_line(err, str(run), "--resume"), err
    options = ["--resume", "--train.ema_decay", "0.5", "--model.cell", "gru", "--train.lr", "7"]
    options += ["--trainer.accumulate_grad_batches", "2", "--trainer.log_every_n_steps", "3"]
    code, _, err = cli_train(tiny, run, *options)
    assert code == 2
    assert is_one_line(err, "model.cell was lstm and is gru", "train.lr was 0.003 and is 7.0", "config.yaml"), err
    assert "trainer.accumulate_grad_batches was 1 and is 2" in err
    assert "ema_decay" not in err
    assert "log_every_n_steps" not in err
    code, _, err = cli_train(tiny, run, "--resume", "--train.ema_decay", "0.5", "--train.epochs", "1")
    assert code == 2
    assert is_one_line(err, "train.epochs is 1: expected 2 or more", str(run))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_resuming_a_finished_run_is_harmless(tiny, tmp_path, cli):
    out = tmp_path / "run"
    assert train(tiny, out, "--train.epochs", "1", "--train.ema_decay", "0.5") == 0
    slim = (out / "captioner.safetensors").read_bytes()
    best, last = tensors(out / "best.ckpt"), tensors(out / "last.ckpt")
    code, printed, _ = cli("train", "--config", out / "config.yaml", "--resume", "--train.checkpoint_minutes", 5)
    assert code == 0
    assert "captioner predict" in printed
    assert (out / "captioner.safetensors").read_bytes() == slim
    for before, name in ((best, "best.ckpt"), (last, "last.ckpt")):
        assert all(torch.equal(value, before[key]) for key, value in tensors(out / name).items())


def test_a_run_that_stopped_early_stays_stopped(tiny, tmp_path):
    out, options = tmp_path / "run", ("--train.epochs", "9", "--train.patience", "1", "--train.lr", "1e-9")
    assert train(tiny, out, *options) == 0
    epochs = len(logged(out, "val_cider"))
    assert epochs < 9
    last = tensors(out / "last.ckpt")
    assert train(tiny, out, *options, "--resume") == 0
    assert len(logged(out, "val_cider")) == epochs
    assert all(torch.equal(value, last[key]) for key, value in tensors(out / "last.ckpt").items())


@pytest.mark.parametrize("stop", ["finished", "stopped by patience"])
def test_a_resumed_run_may_be_given_more_epochs(tiny, tmp_path, cli_train, stop):
    """Each step has the learning rate of the schedule of the new length, however the run was trained before."""
    options = ["--train.epochs", "4", "--train.ema_decay", "0.5"]
    options += [] if stop == "finished" else ["--train.patience", "1", "--train.lr", "1e-9"]
    out = tmp_path / "run"
    assert train(tiny, out, *options) == 0
    rates = logged(out, "lr")
    steps = len(rates)
    assert (steps == 4 * 5) == (stop == "finished")
    code, said, _ = cli_train(tiny, out, *options, "--train.epochs", "7", "--train.patience", "9", "--resume")
    assert code == 2  # another patience
    code, said, _ = cli_train(tiny, out, *options, "--resume", "--train.epochs", "7")
    assert code == 0
    peak = 1e-9 if "--train.lr" in options else 3e-3
    expected = [peak * warmup_cosine(step, 7 * 5, 0.1) for step in range(7 * 5)]
    found = logged(out, "lr")
    assert steps < len(found) <= 7 * 5
    assert found == pytest.approx([*rates, *expected[steps : len(found)]], rel=1e-5)
    assert f"resumed with 7 epochs, 35 steps: the learning rate at step {steps} is {expected[steps]:.3g} " in said
    assert yaml.safe_load((out / "config.yaml").read_text())["train"]["epochs"] == 7
    epochs = len(logged(out, "val_cider"))
    assert train(tiny, out, *options, "--train.epochs", "7", "--resume") == 0  # and ends
    assert len(logged(out, "val_cider")) == epochs


def test_resume_without_a_run_begins_one(tiny, tmp_path, capsys):
    assert train(tiny, tmp_path / "run", "--train.epochs", "1", "--resume") == 0
    assert f"{tmp_path / 'run'} has no run to resume: a new one begins" in capsys.readouterr().out
    assert (tmp_path / "run" / "captioner.safetensors").exists()


def test_print_config_goes_round(tiny, tmp_path, cli_train, cli):
    code, out, _ = cli_train(tiny, tmp_path / "run", "--print_config")
    assert code == 0
    assert not (tmp_path / "run").exists()
    (tmp_path / "config.yaml").write_text(out)
    code, again, err = cli("train", "--config", tmp_path / "config.yaml", "--model.cell", "rnn", "--print_config")
    assert (code, err) == (0, "")
    first, second = yaml.safe_load(out), yaml.safe_load(again)
    assert second["model"].pop("cell") == "rnn"  # typed options win
    assert first["model"].pop("cell") == "lstm"
    assert first == second


# ---- what is trained


@pytest.mark.parametrize("decay", [pytest.param("0", marks=pytest.mark.slow), "0.9"])
def test_fine_tuning_changes_the_last_stage_alone(tiny, tmp_path, decay):
    options = ["--model.trainable_layers", "1", "--train.encoder_lr", "1e-2", "--train.epochs", "1"]
    options += ["--train.ema_decay", decay, "--data.horizontal_flip"]
    assert train(tiny, tmp_path / "run", *options) == 0
    tuned = Captioner.load(tmp_path / "run" / "best.ckpt").encoder.resnet
    start = Encoder(ModelConfig("resnet18", trainable_layers=1)).resnet.state_dict()
    parameters = {name for name, _ in tuned.named_parameters()}
    for name, value in tuned.state_dict().items():
        if name.startswith("layer4.") and name in parameters:
            assert (value - start[name]).abs().max() > 1e-3, name
        else:
            assert torch.equal(value, start[name]), name
    slim = Captioner.load(tmp_path / "run" / "captioner.safetensors")
    assert torch.allclose(slim.encoder.resnet.layer4[0].conv1.weight, tuned.layer4[0].conv1.weight, atol=1e-3)
    assert read_checkpoint(tmp_path / "run" / "captioner.safetensors")[1].keys() == slim.weights().keys()


@pytest.mark.slow
def test_fine_tuned_stages_can_be_kept_and_their_features_are_cached(tiny, tmp_path, cli_train, capsys):
    stage = ["--model.trainable_layers", "1", "--train.ema_decay", "0"]
    tuning = [*stage, "--train.encoder_lr", "1e-2", "--train.epochs", "1"]
    assert train(tiny, tmp_path / "run", *tuning) == 0
    assert train(tiny, tmp_path / "other", *tuning, "--train.seed", "1") == 0
    cache = tmp_path / "cache"
    kept = ["--init-from", tmp_path / "run", *stage, "--train.encoder_lr", "0", "--data.feature_cache", cache]
    capsys.readouterr()
    assert train(tiny, tmp_path / "kept", *kept, "--train.epochs", "1") == 0
    decoder = sum(parameter.numel() for parameter in Captioner.load(tmp_path / "kept").decoder.parameters())
    assert f"\n{decoder:,} trained parameters, " in capsys.readouterr().out  # none of the encoder
    slim, found = Captioner.load(tmp_path / "run"), Captioner.load(tmp_path / "kept")
    for name, value in slim.encoder.state_dict().items():
        assert torch.equal(found.encoder.state_dict()[name], value), name
    assert not torch.equal(found.decoder.project.weight, slim.decoder.project.weight)
    images = torch.stack([clips.load_pixels(path, 32) for path in sorted(tiny.images("train").iterdir())])
    table = np.load(next(cache.glob("captions_train-*/features.npy")))
    assert torch.allclose(torch.from_numpy(table).float(), slim.features(images), atol=1e-3)

    (tmp_path / "run").rename(tmp_path / "moved")  # a resumed run needs it no more
    assert train(tiny, tmp_path / "kept", *kept[2:], "--train.epochs", "2", "--resume") == 0
    assert len(list(cache.glob("*/features.npy"))) == 2
    kept[1] = tmp_path / "moved"
    taught = [*kept, "--train.epochs", "1", "--train.teachers"]
    assert train(tiny, tmp_path / "taught", *taught, tmp_path / "kept") == 0
    for options, said in (
        ([*taught, tmp_path / "other"], "its encoder was fine-tuned to other weights"),
        ([*taught, tmp_path / "kept", "--train.encoder_lr", "1e-5"], "--train.encoder_lr 0"),
    ):
        code, _, err = cli_train(tiny, tmp_path / "refused", *options)
        assert code == 2
        assert is_one_line(err, "captioner train: error: ", "cannot teach", said), err


@pytest.mark.parametrize(
    ("trained", "workers"),
    [(0, 0), (1, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 2), (1, 0)))],
)
def test_a_bad_image_stops_in_one_line(fresh, tmp_path, cli_train, trained, workers):
    bad = fresh.images("train") / "004.png"
    bad.write_bytes(b"no image")
    options = ["--model.trainable_layers", 1, "--data.augment"] if trained else []
    code, _, err = cli_train(fresh, tmp_path / "run", "--data.workers", workers, *options)
    assert code == 2
    (line,) = [line for line in err.splitlines() if "error: " in line]
    assert is_one_line(line, "captioner train: error: ", str(bad), "--data.skip_bad_images"), err


def test_bad_images_are_skipped_and_counted(fresh, tmp_path, cli_train):
    (fresh.images("train") / "004.png").write_bytes(b"no image")
    (fresh.images("val") / "013.png").unlink()
    code, _, err = cli_train(fresh, tmp_path / "run", "--train.epochs", 1, "--data.skip_bad_images")
    assert code == 0
    said = [line for line in err.splitlines() if "1 skipped" in line]
    assert is_one_line(said[0], "captions_train.json", "004.png")
    assert is_one_line(said[1], "captions_val.json", "013.png")


@pytest.mark.parametrize("cell", ["lstm", *(pytest.param(cell, marks=pytest.mark.slow) for cell in ("rnn", "gru"))])
def test_a_few_images_are_memorized(tmp_path, cell):
    """End to end: six images, each with its own caption, which the model reproduces."""
    coco = write_set(tmp_path / "set", train=6, val=1, captions=lambda n: 2 * captions_of(5 * n, 1))
    options = {
        **{f"model.{name}": value for name, value in NO_DROPOUT.items()},
        **{"model.cell": cell, "model.hidden_size": 64, "model.embedding_size": 64},
        **{"data.batch_size": 3, "data.val": coco.annotations("train"), "data.val_images": coco.images("train")},
        **{"train.epochs": 30, "train.lr": 0.01, "train.label_smoothing": 0, "train.patience": 0},
    }
    out = tmp_path / "run"
    assert train(coco, out, *typed(options)) == 0
    losses = logged(out, "val_loss")
    assert losses[0] > 1 > 0.1 > losses[-1]
    said = Captioner.load(out / "captioner.safetensors").caption(sorted(coco.images("train").iterdir()))
    assert said == [captions_of(5 * n, 1)[0] for n in range(6)]
    assert logged(out, "val_distinct")[-1] == 100


def test_teachers_need_the_vocabulary_and_the_features_of_the_student(tiny, tmp_path, cli_train):
    teacher = tmp_path / "teacher"
    assert train(tiny, teacher, "--train.epochs", "1", "--train.seed", "1") == 0
    two = ("--train.teachers", teacher, "--train.teachers+", teacher / "best.ckpt", "--train.epochs", "1")
    assert train(tiny, tmp_path / "run", *two) == 0
    plain = tmp_path / "plain"
    assert train(tiny, plain, "--train.epochs", "1") == 0
    assert logged(tmp_path / "run", "train_loss")[-1] != logged(plain, "train_loss")[-1]
    weights = Captioner.load(tmp_path / "run").state_dict()
    assert weights.keys() == Captioner.load(plain).state_dict().keys()
    for options, *said in (
        (("--data.min_count", "5"), "another vocabulary", "--data.vocabulary"),
        (("--model.image_size", "64"), "cannot teach", "model.image_size is 32 there and 64 here"),
        (("--model.trainable_layers", "1"), "cannot teach", "model.trainable_layers"),
        (("--train.objective", "scst", "--init-from", teacher), "train.teachers", "scst"),
        (("--train.teachers+", tmp_path / "none.ckpt"), "none.ckpt"),
    ):
        code, _, err = cli_train(tiny, tmp_path / "refused", *two, *options)
        assert code == 2
        assert is_one_line(err, "captioner train: error: ", *said), err
        assert not (tmp_path / "refused").exists()


# ---- killed and resumed


def begin(coco, out: Path, options, patch: str) -> subprocess.Popen:
    """``captioner train`` in a process of its own, with a patch that slows it down and prints its progress."""
    # A background job ignores SIGINT, and so would its children.
    handler = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"import signal, sys, time\n{handler}\n{patch}\n"
    code += "from captioner.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *arguments(coco, out, *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


def kill_at(process: subprocess.Popen, reached: Callable[[str], bool]) -> None:
    with process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if reached(line):
                process.send_signal(signal.SIGKILL)
                return
    pytest.fail(f"never got there:\n{''.join(lines)}")


SLOW_BATCHES = """
from captioner.training import task
begin = task.CaptionTask.on_train_batch_start
def slow(self, batch, i):
    print("batch", self.current_epoch, i, flush=True)
    time.sleep(0.2)
    begin(self, batch, i)
task.CaptionTask.on_train_batch_start = slow
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stop", "options"),  # in the second epoch, before this one of 17, 12 or 6 batches
    [
        (12, "--model.cell lstm --train.ema_decay 0.9 --trainer.precision bf16-mixed"),
        (8, "--model.grid 2 --model.attention soft --train.ema_decay 0.9 --trainer.precision bf16-mixed"),
        (12, "--model.cell lstm --train.ema_decay 0.9"),
        (12, "--model.cell lstm"),
        (12, "--model.cell gru --model.layers 2 --train.ema_decay 0.9"),
        (12, "--model.cell rnn --data.feature_memory 0"),
        (12, "--trainer.accumulate_grad_batches 3"),
        (
            5,
            "--model.trainable_layers 1 --data.augment --train.ema_decay 0.9 --data.batch_size 6",
        ),
    ],
)
def test_a_killed_and_resumed_run_ends_as_one_that_was_not_killed(tiny, tmp_path, stop, options):
    """Bit for bit: weights, their average, and the optimiser's state."""
    options = f"--data.batch_size 2 --train.epochs 3 {options}".split()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert train(tiny, whole, *options) == 0
    process = begin(tiny, killed, [*options, "--train.checkpoint_minutes", "0.005"], SLOW_BATCHES)
    kill_at(process, lambda line: line == f"batch 1 {stop}\n")
    step = torch.load(killed / "last.ckpt", weights_only=True)["global_step"]
    every = torch.load(whole / "last.ckpt", weights_only=True)["global_step"] // 3
    assert every < step < 2 * every  # in the middle of the second epoch
    assert train(tiny, killed, *options, "--resume") == 0
    assert not different(whole / "last.ckpt", killed / "last.ckpt")
    assert not different(whole / "best.ckpt", killed / "best.ckpt")
    assert (whole / "captioner.safetensors").read_bytes() == (killed / "captioner.safetensors").read_bytes()
    assert logged(killed, "val_cider")[-1] == logged(whole, "val_cider")[-1]


SLOW_FEATURES = """
from captioner.training import split
extract = split.extract_features
def slow(*arguments):
    for block in extract(*arguments):
        yield block
        print("block", flush=True)
        time.sleep(0.5)
split.extract_features = slow
"""


@pytest.mark.slow
def test_a_run_killed_while_it_computes_features_goes_on(tmp_path, monkeypatch):
    coco = write_set(tmp_path / "set", train=100, val=3)
    out, blocks = tmp_path / "run", []
    options = ["--train.epochs", "1", "--train.samples", "0"]
    kill_at(begin(coco, out, options, SLOW_FEATURES), lambda line: blocks.append(line) or blocks.count("block\n") == 2)
    opened, open_image = [], clips.open_image
    monkeypatch.setattr(clips, "open_image", lambda path, **more: opened.append(path) or open_image(path, **more))
    assert train(coco, out, *options) == 0
    names = [path.name for path in opened]
    assert set(names) >= {f"{n:03}.png" for n in range(64, 103)}
    again = {
        name for name in names if name < "064.png"
    }  # the first, to compare its features, and those like one of val
    assert len(again) <= 1 + 3
    monkeypatch.undo()
    model = ModelConfig("resnet18", 32, 0)
    data = {**coco.data(), "min_count": 1}
    resumed = CaptionData(DataConfig(**data), model)
    whole = CaptionData(DataConfig(**{**data, "feature_cache": str(tmp_path / "other")}), model)
    assert np.array_equal(resumed.train.table, whole.train.table)
    assert np.array_equal(resumed.val.table, whole.val.table)


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_can_be_resumed(tiny, tmp_path):
    """Ctrl-C in the second epoch."""
    out = tmp_path / "run"
    with begin(tiny, out, [], SLOW_BATCHES) as process:
        for line in process.stdout:
            if line == "batch 1 2\n":
                process.send_signal(signal.SIGINT)
                break
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    command = f"captioner train --config {out / 'config.yaml'} --resume"
    assert err.splitlines()[-1] == f"captioner train: interrupted; continue after epoch 1: {command}"
    assert main(command.split()[1:]) == 0


def test_how_to_resume(tmp_path, run):
    """The command is in words of a shell; without a checkpoint the run starts again."""
    assert how_to_resume(tmp_path, "train") == "nothing is saved"
    (folder := tmp_path / "my run").mkdir()
    (folder / "config.yaml").touch()
    command = f"captioner pretrain --config '{folder}/config.yaml' --resume"
    assert how_to_resume(folder, "pretrain") == f"continue from the beginning: {command}"
    (folder / "last.ckpt").symlink_to(run / "last.ckpt")
    assert how_to_resume(folder, "train").startswith("continue after epoch 2: captioner train ")


# ---- several processes

TWO = ("--trainer.devices", "2")

STOP = """
from captioner.training import task
begin = task.CaptionTask.on_train_batch_start
def stop(self, batch, i):
    if (self.current_epoch, i) == (1, 5):
        sys.exit("stopped")
    begin(self, batch, i)
task.CaptionTask.on_train_batch_start = stop
"""


def module_train(coco, out: Path, *options: str, patch: str = "") -> subprocess.CompletedProcess:
    """``python -m captioner train``; its child processes end with it, also if it hangs."""
    file = out.with_suffix(".py")  # a file, which Lightning can start again for the other processes
    file.write_text(f"import sys\n{patch}\nfrom captioner.__main__ import main\nsys.exit(main(sys.argv[1:]))")
    command = [sys.executable, *([str(file)] if patch else ["-m", "captioner"]), *arguments(coco, out, *options)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes) as process:
        try:
            out_text, err_text = process.communicate(timeout=600)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out_text, err_text)


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["0", "1", "1 --data.augment"])
def test_two_processes(tmp_path, trained):
    """gloo on the CPU; seven validation images do not divide by two."""
    coco, out = write_set(tmp_path / "set", train=12, val=7), tmp_path / "run"
    options = [*TWO, "--train.samples", "7"]
    options += ["--model.trainable_layers", *trained.split(), "--data.batch_size", "8", "--train.patience", "0"]
    done = module_train(coco, out, *options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("Done") for line in done.stdout.splitlines()) == 1
    text = (out / "samples.md").read_text()
    names = re.findall(r"^\| (\d+\.png) \| ", text, re.MULTILINE)
    assert sorted(names) == sorted([path.name for path in coco.images("val").iterdir()] * 2)

    model = Captioner.load(out / "last.ckpt")
    data = CaptionData(DataConfig(**{**coco.data(), "min_count": 1}), ModelConfig(**model.header()["model"]))
    found = [one[0].text for one in model.search(images_of(data), SearchConfig(beam=2, max_length=8))]
    said = dict(re.findall(r"^\| (\d+\.png) \| (.*?) \| ", text.split("## Epoch 2")[1], re.MULTILINE))
    assert [said[example.path.name] for example in data.val.examples] == found
    expected = 100 * float(metrics.cider_d(data.references(), [metrics.ptb_tokenize(text) for text in found]).mean())
    assert logged(out, "val_cider")[-1] == pytest.approx(expected, abs=1e-2)
    (batch,) = data.val_dataloader()
    task = CaptionTask(model, TrainConfig(), SearchConfig(), data.references(), steps=1).eval()
    loss, _ = task.loss(batch._replace(images=images_of(data)))  # of all words in one process
    assert logged(out, "val_loss")[-1] == pytest.approx(loss.item(), abs=1e-3)  # bf16 on some CPUs

    again = module_train(coco, out, *options, "--resume")
    assert again.returncode == 0, again.stderr


def images_of(data: CaptionData) -> torch.Tensor:
    """Features or images of the validation set."""
    (batch,) = data.val_dataloader()
    return data.val.table[batch.images] if batch.images.dim() == 1 else batch.images


def still() -> list[str]:
    """Options without dropout, at a fixed precision."""
    none = [word for name in NO_DROPOUT for word in (f"--model.{name}", "0")]
    return [*none, "--trainer.precision", "32-true", "--train.patience", "0", "--train.lr", "0.01"]


@pytest.mark.slow
@pytest.mark.parametrize(("trained", "val"), [("0", 1), ("1", 3), ("1 --data.augment", 1)])
@pytest.mark.parametrize("flip", ["--data.no_horizontal_flip", "--data.horizontal_flip"])
def test_two_processes_learn_as_one(tmp_path, trained, val, flip):
    """They share each batch, and its loss and gradient are those of all words, though one has more words.

    One image for validation is in both of them, and counts once.
    """
    coco = write_set(tmp_path / "set", train=13, val=val)
    options = [*still(), "--model.trainable_layers", *trained.split(), flip, "--train.ema_decay", "0.9"]
    options += ["--data.batch_size", "10"]
    done = module_train(coco, tmp_path / "two", *options, *TWO)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("training on 2 × cpu in 32-true: batches of 10 captions, 5 on each\n")
    assert train(coco, tmp_path / "one", *options) == 0
    for name in ("train_loss", "grad_norm", "val_loss", "val_cider"):
        one, two = logged(tmp_path / "one", name), logged(tmp_path / "two", name)
        assert len(one) >= 2
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("begun", [1, 2])
def test_a_run_is_resumed_on_another_number_of_processes(tmp_path, begun):
    """A run stopped in mid-epoch continues with the same batches, and ends as one that was not stopped."""
    coco = write_set(tmp_path / "set", train=12, val=3)
    options = [*still(), "--data.batch_size", "4", "--train.epochs", "3"]
    first, second = ((), TWO) if begun == 1 else (TWO, ())
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    done = module_train(coco, whole, *options, *first)
    assert done.returncode == 0, done.stderr
    done = module_train(coco, stopped, *options, *first, "--train.checkpoint_minutes", "0.00001", patch=STOP)
    assert done.returncode != 0
    state = torch.load(stopped / "last.ckpt", weights_only=True)
    assert 0 < state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["delivered"] < 9
    done = module_train(coco, stopped, *options, *second, "--resume")
    assert done.returncode == 0, done.stderr
    there, here = tensors(whole / "last.ckpt"), tensors(stopped / "last.ckpt")
    for name, value in there.items():
        assert torch.allclose(here[name].float(), value.float(), rtol=1e-3, atol=1e-4), name
    assert logged(stopped, "val_loss")[-1] == pytest.approx(logged(whole, "val_loss")[-1], abs=1e-4)


@pytest.mark.slow
def test_two_processes_refuse_in_one_line(tmp_path):
    coco = write_set(tmp_path / "set")
    (coco.images("train") / "004.png").write_bytes(b"no image")
    done = module_train(coco, tmp_path / "run", *TWO)
    assert done.returncode == 2
    assert sum("error: " in line for line in done.stderr.splitlines()) == 1
