"""Fixtures: a tiny COCO-style set, weights for its ResNet-18, one trained run, and the real command line.

What loads torch is imported in the fixtures: the process that only hands the tests out needs none of it.
"""

import atexit
import copy
import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tests run side by side; torch reads it when it is imported

# Examples of each property: a few by default, many in make slow (--hypothesis-profile many).
PROFILE = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("few", max_examples=25, **PROFILE)
settings.register_profile("many", max_examples=300, **PROFILE)
settings.load_profile("few")


if "PYTEST_XDIST_WORKER" in os.environ:
    atexit.register(os._exit, 0)  # without taking half a million objects of imported modules down one by one


def pytest_collection_finish():
    """Exclude what is imported by now from garbage collections: it stays until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def weights(tmp_path_factory):
    """There is no network: a randomly initialised ResNet-18 lies where torchvision's would be downloaded to."""
    import torch
    from torchvision.models import ResNet18_Weights, resnet18

    home = tmp_path_factory.mktemp("torch")
    before = os.environ.get("TORCH_HOME")
    os.environ["TORCH_HOME"] = str(home)  # the commands run in other processes see it too
    (home / "hub" / "checkpoints").mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = resnet18(weights=None).state_dict()
    file = home / "hub" / "checkpoints" / ResNet18_Weights.DEFAULT.url.rsplit("/", 1)[1]
    torch.save(state, file)
    yield file
    if before is None:
        del os.environ["TORCH_HOME"]
    else:
        os.environ["TORCH_HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def shared_networks(weights):
    """Frozen encoders of the same configuration share one network, so that only the first is read from its file.

    Building it each time would take a third of the time of all tests. An encoder is built as always if it is trained,
    comes without weights or is not one of the two ResNets, and again if its file changes.
    """
    from torch import nn

    from captioner.models.encoder import Encoder, weights_digest

    build, built = Encoder.__init__, {}

    def build_once(self, config, weights=True):
        if config.trainable_layers or not weights or config.encoder not in ("resnet18", "resnet50_v1"):
            return build(self, config, weights)
        sizes = (config.image_size, config.second_size, config.grid)
        key = (config.encoder, *sizes, weights_digest(config.encoder))
        if key in built:
            nn.Module.__init__(self)
            self.__dict__.update({name: copy.copy(value) for name, value in built[key].__dict__.items()})
        else:
            build(self, config)
            built[key] = self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "__init__", build_once)
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """12 + 6 images with one to five captions each. Read only."""
    from helpers import write_set

    return write_set(tmp_path_factory.mktemp("tiny") / "set")


@pytest.fixture
def fresh(tmp_path):
    """A set of a test's own, to damage."""
    from helpers import write_set

    return write_set(tmp_path / "set")


@pytest.fixture(scope="session")
def captioner(weights):
    """A model with random weights. Read only."""
    from helpers import make_captioner

    return make_captioner()


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    """The file of such a model."""
    from helpers import make_captioner

    file = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    make_captioner().save(file)
    return file


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Five images that can be told apart. Read only."""
    from helpers import draw

    folder = tmp_path_factory.mktemp("images")
    for i in range(5):
        draw(folder / f"{i}.png", 3 * i)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def run(tiny, tmp_path_factory) -> Path:
    """The folder of a finished run with the moving average on. Read only."""
    from helpers import train

    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(tiny, folder, "--train.ema_decay", "0.5") == 0
    return folder


@pytest.fixture
def cli(capsys):
    """``cli(command, option, …)`` → exit code, standard output and standard error of the real command line."""

    def call(*arguments) -> tuple[int, str, str]:
        from captioner.__main__ import main

        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return call


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """``downloaded(name)``: its random weights lie where torchvision would put its own."""
    import torch
    from helpers import random_network
    from torchvision.models import get_model_weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    def place(name: str):
        network = random_network(name)
        torch.save(network.state_dict(), folder / get_model_weights(name).DEFAULT.url.rsplit("/", 1)[1])
        return network

    return place
