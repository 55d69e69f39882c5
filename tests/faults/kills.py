"""Kill captioner at random moments, again and again, and compare what it leaves with an undisturbed run.

    python tests/faults/kills.py --kills 200 --folder /tmp/kills

Each job is a command line that is started, killed after a random part of the time that it takes undisturbed (SIGKILL
and SIGTERM in turn), looked at (what has a final name is whole), and started again with the same arguments, until it
ends by itself; then its outputs are compared, and it begins again, until it was killed so many times. A process is
forked from one that has imported torch, so that the moments fall into the work and not into the imports.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use the threads of its parent
sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np
import pytorch_lightning  # noqa: F401  imported once, before the forks
import torch
from helpers import Coco, make_captioner, write_set
from PIL import Image
from safetensors.torch import load_file
from torchvision.models import ResNet18_Weights, resnet18

from captioner.__main__ import main


@dataclass
class Job:
    """A command line for a folder of outputs, and what those should be.

    Attributes:
        arguments: of captioner, for the folder.
        outputs: what to compare: final name → content, of those that are there.
    """

    arguments: Callable[[Path], list[str]]
    outputs: Callable[[Path], dict[str, Any]]


def files(folder: Path) -> dict[str, Any]:
    """Every file but what is only on the way: locks, parts, hidden ones."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not any(".part" in part or part[0] == "." or ".lock" in part for part in path.parts[-4:]):
            found[name] = path.read_bytes()
    return found


def weights(folder: Path) -> dict[str, Any]:
    """What the checkpoints of a run hold: of those that are written while it goes, that they open."""
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    found: dict[str, Any] = {}
    for name in ("best.ckpt", "last.ckpt"):
        if (folder / "run" / name).exists():
            state = torch.load(folder / "run" / name, weights_only=True)
            found[name] = [state[key] for key in kept]
    slim = folder / "run" / "captioner.safetensors"
    if slim.exists():
        found[slim.name] = load_file(slim)
    return found


def features(folder: Path) -> dict[str, Any]:
    """The rows of feature files under their final names."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "features").glob("*/features.npy")):
        if not path.parent.name.endswith(".part"):
            index = json.loads((path.parent / "index.json").read_text())
            found[path.parent.name] = [np.load(path).copy(), index]
    return found


def equal(a: Any, b: Any) -> bool:
    """Whether two contents are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def jobs(data: Path) -> dict[str, Job]:
    """The data, made once, and the jobs on it."""
    coco = write_set(data / "set", train=48, val=12)
    large = write_set(data / "large", train=160, val=8)
    noise = np.random.default_rng(0)
    for file in [*large.images("train").iterdir(), *large.images("val").iterdir()]:
        Image.fromarray(noise.integers(0, 256, (96, 96, 3), np.uint8)).save(file)
    model = data / "model.safetensors"
    make_captioner().save(model)
    tiny = "--model.encoder resnet18 --model.second_size 0 --data.min_count 1 --trainer.accelerator cpu"

    def train(coco: Coco, size: int, options: str) -> Callable[[Path], list[str]]:
        def arguments(folder: Path) -> list[str]:
            named = coco.options()
            named[named.index("--data.feature_cache") + 1] = str(folder / "features")
            run = ["--output", str(folder / "run"), "--resume", "--model.image_size", str(size)]
            return ["train", *named, *run, *f"{tiny} {options}".split()]

        return arguments

    small = "--model.hidden_size 24 --model.embedding_size 16 --data.batch_size 4 --train.checkpoint_minutes 0.002"
    small += " --train.patience 0 --train.ema_decay 0.9 --train.epochs 4 --trainer.precision bf16-mixed"
    attention = f"{small} --model.grid 2 --model.attention soft --model.attention_size 16"
    images, by = large.images("train"), f"--checkpoint {model}"
    named = f"--annotations {large.annotations('train')} --images {images}"
    to = f"--images {images} --to webdataset --shard_size 40"
    return {
        "features": Job(train(large, 96, f"{small} --train.epochs 1 --train.samples 0"), features),
        "training, LSTM": Job(train(coco, 32, small), weights),
        "training, attention": Job(train(coco, 32, attention), weights),
        "prediction": Job(
            lambda out: f"predict {images} {by} --part_size 8 --batch_size 8 --output {out}/captions.txt".split(),
            files,
        ),
        "evaluation": Job(
            lambda out: f"evaluate {named} {by} --output {out}/results.json --report {out}/report.html".split(),
            files,
        ),
        "conversion": Job(
            lambda out: f"data convert {large.annotations('train')} {to} --output {out}/shards".split(),
            files,
        ),
    }


def start(arguments: list[str], log: Path) -> int:
    """Fork a process that runs the command; its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = main(arguments)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """The exit code (of a signal: minus its number) of a process that ends within so many seconds, or None."""
    until = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.002)


def disturb(name: str, job: Job, kills: int, folder: Path, random: random.Random) -> Counter[str]:
    """Run a job to its end, killed again and again, until it was killed so many times; what happened, counted.

    Raises:
        SystemExit: an output is not what it should be.
    """
    log, whole, place = folder / f"{name}.log", folder / "whole", folder / "killed"

    def fail(what: str) -> None:
        sys.exit(f"{name}: {what}; see {folder} and\n{log.read_text()[-3000:]}")

    for path in (whole, place):
        path.mkdir(parents=True)
    began = time.monotonic()
    if ended(start(job.arguments(whole), log), 600) != 0:
        fail("the undisturbed run failed")
    takes, wanted = time.monotonic() - began, job.outputs(whole)
    assert wanted
    tally: Counter[str] = Counter()
    signals = itertools.cycle((signal.SIGKILL, signal.SIGTERM))
    while tally["SIGKILL"] + tally["SIGTERM"] < kills:
        pid = start(job.arguments(place), log)
        code = ended(pid, random.uniform(0.0, takes))
        if code is None:
            sign = next(signals)
            os.kill(pid, sign)
            code = ended(pid, 60)
            if code is None:
                os.kill(pid, signal.SIGKILL)
                fail(f"{sign.name} did not end it")
            if code != 0:
                tally[sign.name] += 1
                if "Traceback" in log.read_text():
                    fail(f"a traceback after {sign.name}")
            found = job.outputs(place)
            final = {key: value for key, value in found.items() if key != "last.ckpt" and key != "best.ckpt"}
            if not all(key in wanted and equal(value, wanted[key]) for key, value in final.items()):
                fail(f"something half-written after {sign.name}: {sorted(final)}")
        if code == 0:
            if not equal(job.outputs(place), wanted):
                fail("ended with other outputs than the undisturbed run")
            tally["ends, equal"] += 1
            shutil.rmtree(place)
            place.mkdir()
        elif code not in (-signal.SIGKILL, -signal.SIGTERM, 130):  # 130: a training that says it was interrupted
            fail(f"exit code {code}")
    if ended(start(job.arguments(place), log), 600) != 0 or not equal(job.outputs(place), wanted):
        fail("after the last kill, ended with other outputs than the undisturbed run")
    tally["ends, equal"] += 1
    print(f"{name:22} {takes:5.1f} s  " + "  ".join(f"{key} {tally[key]}" for key in sorted(tally)), flush=True)
    return tally


def run() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="in all, at least")
    parser.add_argument("--jobs", help="only those whose name begins so")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True, help="is made; what failed stays there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    home = options.folder / "torch"
    os.environ["TORCH_HOME"] = str(home)
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    file = home / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    torch.save(resnet18(weights=None).state_dict(), file)  # random: there need be no network
    chosen = {n: j for n, j in jobs(options.folder / "data").items() if n.startswith(options.jobs or "")}
    each, total = -(-options.kills // len(chosen)), Counter[str]()
    for name, job in chosen.items():
        total += disturb(
            name, job, each, options.folder / name.replace(", ", "-"), random.Random(f"{options.seed}{name}")
        )
    kills = total["SIGKILL"] + total["SIGTERM"]
    print(
        f"{kills} kills ({total['SIGKILL']} SIGKILL, {total['SIGTERM']} SIGTERM), {total['ends, equal']} runs went on "
        "to their ends: all outputs equal to those of the undisturbed runs"
    )
    shutil.rmtree(options.folder)


if __name__ == "__main__":
    run()
