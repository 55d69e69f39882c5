"""What is installed: the wheels without the repository, and the versions of constraints.txt for every extra."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from helpers import ROOT
from packaging.requirements import Requirement

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
EXTRAS = list(SETUP["options.extras_require"])
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def parse_requirements(lines: str) -> list[Requirement]:
    """The requirements of a value of setup.cfg."""
    return [Requirement(line) for line in lines.splitlines() if line.strip() and not line.strip().startswith("#")]


def requirements(extra: str) -> list[Requirement]:
    """Those of an extra, with those of the extras of captioner that it names; of captioner itself for ""."""
    found = []
    for one in parse_requirements(
        SETUP["options.extras_require"][extra] if extra else SETUP["options"]["install_requires"]
    ):
        found += [each for more in one.extras for each in requirements(more)] if one.name == "captioner" else [one]
    return found


def locked(python: str) -> dict[str, str]:
    """The versions in constraints.txt for a version of Python on Linux, by name."""
    where = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    where |= {"platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}
    lines = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    fit = [one for one in lines if not one.marker or one.marker.evaluate(where)]
    return {one.name: str(one.specifier).removeprefix("==") for one in fit}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_allows_the_locked_version(python):
    versions = locked(python)
    for extra in ("", *EXTRAS):
        for one in requirements(extra):
            name = re.sub(r"[-_.]+", "-", one.name).lower()
            assert name in versions, f"make lock: constraints.txt lacks {one.name} of [{extra}]"
            assert versions[name] in one.specifier, f"make lock: [{extra}] needs {one}, and {versions[name]} is locked"


def test_all_has_every_extra():
    (first, *more) = parse_requirements(SETUP["options.extras_require"]["all"])
    assert set(EXTRAS) - {"all", "test-oldest"} == first.extras.union(*(one.extras for one in more))


@pytest.fixture(scope="module")
def uv(tmp_path_factory):
    """The program uv, which resolves requirements without installing them."""
    folder = tmp_path_factory.mktemp("uv")
    venv.create(folder, with_pip=True)
    program = folder / ("Scripts" if os.name == "nt" else "bin")
    if subprocess.run([program / "python", "-m", "pip", "install", "--quiet", "uv"], capture_output=True).returncode:
        pytest.skip("no network: uv cannot be installed")
    return program / "uv"


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_resolves_with_the_lock(uv, extra):
    """What pip would install beside it, too: as ``pip install -c constraints.txt -e '.[extra]'``."""
    command = [uv, "pip", "compile", "setup.cfg", "--extra", extra, "--constraint", "constraints.txt", "--quiet"]
    done = subprocess.run([*command, "--python", sys.executable], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    versions = locked(f"{sys.version_info[0]}.{sys.version_info[1]}")
    resolved = [Requirement(line) for line in done.stdout.splitlines() if re.match(r"[a-z]", line)]
    assert resolved
    assert {one.name for one in resolved} - set(versions) == set()


def test_what_lies_beside_the_modules_is_installed(tmp_path):
    """The pages, styles and scripts, the configs and the digests of the weights."""
    code = "import setuptools; setuptools.setup()"
    command = [sys.executable, "-c", code, "-q", "egg_info", "-e", tmp_path, "build_py", "-d", tmp_path / "lib"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    files = [path for path in (ROOT / "captioner").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = {path.name for path in files}
    assert {"gallery.html", "page.css", "maps.js", "flickr8k.yaml", "gru1.yaml", "weights.sha256"} < names
    for path in files:
        assert (tmp_path / "lib" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """``installed(*arguments)`` runs captioner from both wheels, in a venv and a folder away from the repository.

    The venv borrows torch and the rest from this Python's folder, whose .pth files, and so the editable captioner, do
    not count there.
    """
    pytest.importorskip("pip")
    home = tmp_path_factory.mktemp("home")
    source, work = home / "source", home / "work"
    for name in ("captioner", "checkpoints", "data/photos"):
        shutil.copytree(ROOT / name, (work if name == "data/photos" else source) / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", home / "dist"]
    subprocess.run([*wheel, source, source / "checkpoints"], check=True)
    shutil.rmtree(source)

    venv.create(home / "venv")
    python = home / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    wheels = sorted((home / "dist").glob("*.whl"))
    assert [file.name.split("-")[0] for file in wheels] == ["captioner", "captioner_weights"]
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, *wheels], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": home / "venv"}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CAPTIONER_WEIGHTS")}

    def call(*arguments):
        done = subprocess.run(
            [python.with_name("captioner"), *arguments], cwd=work, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = [python, "-c", "import captioner; print(captioner.__file__)"]
    assert str(site) in subprocess.check_output(where, cwd=work, env=environment, text=True)
    return call


@pytest.mark.slow
def test_the_wheels_caption_photographs(installed):
    assert installed("weights").count("from the package captioner-weights: ") == 3
    lines = installed("predict", "data/photos").splitlines()
    assert len(lines) == len(list((ROOT / "data" / "photos").glob("*.jpg")))
    assert len({line.split("\t")[1] for line in lines}) >= 6


@pytest.mark.slow
def test_the_wheels_train_and_score(installed):
    installed("shapes", "--output", "shapes", "--count", "8", "--val_count", "4")
    data = [f"--data.{name}" for name in ("train", "train_images", "val", "val_images")]
    files = ("shapes/captions_train.json", "shapes/train", "shapes/captions_val.json", "shapes/val")
    options = [word for pair in zip(data, files, strict=True) for word in pair]
    small = ("--train.epochs", "1", "--data.batch_size", "40", "--trainer.accelerator", "cpu")
    assert "Done: run" in installed("train", "--config", "flickr8k", *options, *small, "--output", "run")
    model = ("--checkpoint", "run", "--device", "cpu")
    installed("predict", "shapes/val", *model, "--format", "jsonl", "--output", "captions.jsonl")
    scores = installed("score", "--annotations", "shapes/captions_val.json", "--results", "captions.jsonl")
    assert "CIDEr" in scores
