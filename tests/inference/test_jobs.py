"""The engines of predict write the same captions, byte for byte, whichever process is killed."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT, draw, is_one_line, refused
from pytorch_lightning.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from captioner.cli.predict import check_engine_device
from captioner.models.captioner import Captioner

SMALL = ("--device", "cpu", "--batch_size", "2", "--beam", "2", "--max_length", "6")
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="pip install -e '.[ray]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eleven files, of which the eighth is not an image."""
    folder = tmp_path_factory.mktemp("many")
    for n in range(11):
        draw(folder / f"{n:03}.png", n)
    (folder / "007.png").write_bytes(b"no image")
    return folder


def command(folder, checkpoint, *options):
    return ("predict", folder, "--checkpoint", checkpoint, *SMALL, *options)


@pytest.fixture
def predict(cli, checkpoint, folder):
    return lambda *options: cli(*command(folder, checkpoint, *options))


def parts(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("part-*.jsonl"))}


@pytest.mark.parametrize("more", [(), ("--n-best", "2"), ("--format", "jsonl", "--n-best", "2")], ids=" ".join)
def test_a_file_equals_standard_output(predict, tmp_path, more):
    _, printed, said = predict(*more)
    code, out, err = predict(*more, "--output", tmp_path / "captions", "--part_size", 5)
    assert (code, out, err) == (1, "", said)
    assert (tmp_path / "captions").read_text(encoding="utf-8") == printed
    assert [path.name for path in tmp_path.iterdir()] == ["captions"]


def test_a_folder_keeps_its_parts(predict, tmp_path):
    _, printed, said = predict("--format", "jsonl")
    for _ in range(2):  # the second time there is nothing to do, and the bad image is said again
        code, out, err = predict("--output", f"{tmp_path}/parts/", "--part_size", 5)
        assert (code, out, err) == (1, "", said)
    found = [json.loads(line) for text in parts(tmp_path / "parts").values() for line in text.decode().splitlines()]
    assert len(parts(tmp_path / "parts")) == 2  # of 6, for batches are of 2
    assert "error" in found.pop(7)
    assert found == [json.loads(line) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(checkpoint, folder, tmp_path_factory):
    """The parts of four images and more, as JSON lines, of a run that nothing stopped."""
    from captioner.__main__ import main

    out = tmp_path_factory.mktemp("whole") / "parts"
    assert main([str(word) for word in command(folder, checkpoint, "--output", f"{out}/", "--part_size", 4)]) == 1
    return parts(out)


AGAIN = "the same command begins again (see --part_size)"
AFTER = [  # how many batches are captioned before the interruption
    *(("parts/", after) for after in (0, 1, 4, 5)),
    *(("captions.jsonl", after) for after in (1, 5)),
    *(pytest.param("captions.jsonl", after, marks=pytest.mark.slow) for after in (0, 4)),
]


@pytest.mark.parametrize(("output", "after"), AFTER)
def test_an_interrupted_run_continues(predict, uninterrupted, tmp_path, monkeypatch, output, after):
    search, calls = Captioner.search, []

    def interrupted(*arguments):
        calls.append(0)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return search(*arguments)

    monkeypatch.setattr(Captioner, "search", interrupted)
    options = ("--output", f"{tmp_path}/{output}", "--part_size", 4, "--format", "jsonl")
    code, _, err = predict(*options)
    kept = f"{after // 2 * 4} of 11 images are captioned: the same command continues"
    assert code == 130
    assert err.endswith(f"interrupted; {kept if after > 1 else 'no part of 4 images is complete: ' + AGAIN}\n")
    assert not (tmp_path / "captions.jsonl").exists()
    left = tmp_path / (output if output == "parts/" else output + ".parts")
    assert parts(left).items() <= uninterrupted.items()
    assert len(parts(left)) == after // 2
    code, _, err = predict(*options)
    assert code == 1
    assert "007.png" in err
    assert len(calls) == 6 + after % 2 + 1  # only what was begun and not written is done again
    if output == "parts/":
        assert parts(left) == uninterrupted
    else:
        lines = b"".join(uninterrupted.values()).decode().splitlines(keepends=True)
        assert (tmp_path / output).read_text() == "".join(line for line in lines if '"error"' not in line)
        assert not left.exists()


def test_ctrl_c_in_several_processes(predict, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_MultiProcessingLauncher, "launch", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        code, _, err = predict("--output", f"{tmp_path}/parts/", "--part_size", 4, "--engine", "ddp")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    assert (code, err) == (130, f"captioner predict: interrupted; no part of 4 images is complete: {AGAIN}\n")


def test_options_that_make_other_captions_are_refused(predict, cli, checkpoint, tmp_path):
    parts = ("--output", f"{tmp_path}/parts/")
    predict(*parts)
    for options, says in [
        (("--beam", 3), "beam 2 there, 3 here"),
        (("--must", "red", "--part_size", 2), "must '' there, 'red' here"),
    ]:
        code, out, err = predict(*parts, *options)
        assert (code, out) == (2, "")
        assert is_one_line(err, says, str(tmp_path / "parts")), err
    code, _, err = cli("predict", ROOT / "data" / "photos", "--checkpoint", checkpoint, *SMALL, *parts)
    assert code == 2
    assert is_one_line(err, "images 11 there", "their names"), err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--devices", 2), "--devices is 2: expected 1 with --engine local"),
        (("--devices", 0), "--devices is 0"),
        (("--output", "a", "--part_size", 0), "--part_size is 0"),
        (("--engine", "spark"), "spark"),
        (("--engine", "ddp"), "--engine ddp writes its parts to a folder: name one, or a file, by --output"),
        (("--engine", "ray", "--output", "a", "--report", "b.html"), "--report"),
        (("--output", "a/", "--report", "b.html"), "--report"),
        (("--output", "a/", "--must", "unheard"), "unheard"),
    ],
    ids=str,
)
def test_wrong_options_are_one_line(predict, tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = predict(*options)
    assert (code, out) == (2, "")
    assert is_one_line(err, "error: ", says), err
    assert not list(tmp_path.iterdir())


def test_an_engine_needs_devices_that_it_knows(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    ddp = SimpleNamespace(engine="ddp", devices=2)
    refused(check_engine_device, ddp, "mps", says=["--device is mps", "--engine ddp"])
    refused(check_engine_device, ddp, "cuda", says=["--devices is 2", "expected 1 to 1"])
    check_engine_device(ddp, "cpu")
    check_engine_device(SimpleNamespace(engine="local", devices=1), "mps")


def test_ray_is_missing(predict, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "ray.data", None)
    code, _, err = predict("--engine", "ray", "--output", f"{tmp_path}/parts/")
    assert code == 2
    assert is_one_line(err, "pip install -e '.[ray]'"), err


# ---- real processes, some of them killed


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A folder of 240 images, one of them bad."""
    folder = tmp_path_factory.mktemp("crowd")
    for n in range(240):
        draw(folder / f"{n:03}.png", n)
    (folder / "100.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def start(checkpoint, many):
    """Begin ``captioner predict`` on them in a process of its own; a thread each, so that sums are in one order."""

    def begin(output, *options):
        command = [sys.executable, "-m", "captioner", "predict", many, "--checkpoint", checkpoint, *SMALL]
        command += ["--part_size", "8", "--output", f"{output}/", *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([str(word) for word in command], cwd=ROOT, env=environment, **pipes)

    return begin


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """The parts of the local engine."""
    folder = tmp_path_factory.mktemp("local") / "parts"
    process = start(folder)
    _, err = process.communicate()
    assert process.returncode == 1, err
    assert len(parts(folder)) == 30
    return parts(folder)


def finish(process):
    """Wait for a run; it reports the bad image and no other error."""
    out, err = process.communicate(timeout=300)
    out = "".join(line for line in out.splitlines(True) if "(raylet)" not in line)  # Ray says which worker died
    assert (process.returncode, out) == (1, ""), err
    assert "Traceback" not in err
    assert "100.png" in err
    assert "1 of 240 images" in err


def descendants(pid):
    """Of a process, by Linux's /proc: {process: its command line}."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except (OSError, IndexError):  # it has ended
            continue
    found, known = {}, {pid}
    while more := {child for child, parent in parents.items() if parent in known} - known:
        known |= more
    for child in known - {pid}:
        try:
            found[child] = (Path("/proc") / str(child) / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def wait_for_parts(process, folder, count):
    """Wait until `count` parts exist while the run is still going."""
    until = time.monotonic() + 240
    while len(list(folder.glob("part-*.jsonl"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def runs(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()  # a zombie has ended
    except OSError:
        return False


def wait_until_gone(pids):
    until = time.monotonic() + 180
    while any(map(runs, pids)):
        assert time.monotonic() < until, "processes are left behind"
        time.sleep(0.2)


ENGINES = [pytest.param("ddp", id="ddp"), pytest.param("ray", id="ray", marks=needs_ray)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("images", [1, 11])
def test_fewer_parts_than_processes(predict, checkpoint, folder, cli, tmp_path, engine, images):
    """One part, and one image."""
    some = [folder / f"{n:03}.png" for n in range(images)]
    words = ("predict", *some, "--checkpoint", checkpoint, *SMALL, "--engine", engine, "--devices", 2)
    code, _, err = cli(*words, "--output", tmp_path / "captions.txt")
    assert code == int(images > 7), err
    assert len((tmp_path / "captions.txt").read_text().splitlines()) == images - (images > 7)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_captions_by_two_processes(start, whole, tmp_path, engine):
    process = start(tmp_path / "parts", "--engine", engine, "--devices", "2")
    finish(process)
    assert parts(tmp_path / "parts") == whole


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", *ENGINES])
def test_a_killed_run_is_completed_by_the_same_command(start, whole, tmp_path, engine):
    options = ("--engine", engine, "--devices", "1" if engine == "local" else "2")
    process = start(tmp_path / "parts", *options)
    wait_for_parts(process, tmp_path / "parts", 1)
    children = descendants(process.pid)  # takes its time, and must not after the kill
    wait_for_parts(process, tmp_path / "parts", 3)
    process.kill()
    process.communicate()
    wait_until_gone(children)
    left = parts(tmp_path / "parts")
    assert 3 <= len(left) < 30
    assert left.items() <= whole.items()
    finish(start(tmp_path / "parts", *options))
    assert parts(tmp_path / "parts") == whole


@pytest.mark.slow
@needs_ray
def test_a_killed_actor_loses_nothing(start, whole, tmp_path):
    """SIGKILL, once to each of the two, in mid-run; others take their place in the same run."""
    process = start(tmp_path / "parts", "--engine", "ray", "--devices", "2")
    killed = []
    for done in (2, 6):
        wait_for_parts(process, tmp_path / "parts", done)
        actors = [pid for pid, line in descendants(process.pid).items() if "MapWorker" in line]
        assert actors
        killed.append(min(set(actors) - set(killed)))
        os.kill(killed[-1], signal.SIGKILL)
    assert len(set(killed)) == 2
    finish(process)
    assert parts(tmp_path / "parts") == whole


@pytest.mark.slow
def test_a_killed_rank_is_one_line_and_the_rest_is_kept(start, whole, tmp_path):
    options = ("--engine", "ddp", "--devices", "2")
    process = start(tmp_path / "parts", *options)
    wait_for_parts(process, tmp_path / "parts", 2)
    ranks = [pid for pid, line in descendants(process.pid).items() if "spawn_main" in line]
    os.kill(max(ranks), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "run the same command to continue" in err
    assert "Traceback" not in err
    assert parts(tmp_path / "parts").items() < whole.items()
    finish(start(tmp_path / "parts", *options))
    assert parts(tmp_path / "parts") == whole
