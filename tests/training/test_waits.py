"""A training step never waits for the device, and makes nothing on another device: proved without a GPU.

:class:`waits.Waits` counts what would make the CPU wait. torch's FakeTensorMode runs a step with tensors that claim to
be on a GPU and have no values: it refuses to mix devices, and to read values.
"""

import numpy as np
import pytest
import torch
from helpers import arguments
from lightning_fabric.utilities import move_data_to_device
from torch._subclasses.fake_tensor import FakeTensorMode
from waits import Waits

from captioner.__main__ import main
from captioner.config import ModelConfig, SearchConfig, TrainConfig
from captioner.data.dataset import Batch
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.models.captioner import Captioner
from captioner.training.callbacks import Throughput
from captioner.training.rewards import Rewards
from captioner.training.task import CaptionTask

MODELS = {
    "rnn": {"cell": "rnn"},
    "gru": {"cell": "gru", "layers": 3},
    "lstm": {},
    "first word": {"image_as": "first_word"},
    "initial state": {"image_as": "initial_state"},
    "soft": {"grid": 2, "attention": "soft", "cell_dropout": 0.5},
    "adaptive": {"grid": 2, "attention": "adaptive"},
    "updown": {"grid": 2, "attention": "updown", "embedding_size": 8, "tie_embeddings": True},
    "clips": {"frames": 3},
    "clips on a grid": {"frames": 3, "grid": 2, "cell": "gru"},
}
WORDS = np.array([[START, 4, 5, 6, END], [START, 7, END, PAD, PAD], [START, 4, UNK, 5, END]])
REFERENCES = [[[4, 5, 6]], [[7, 4]]]


class Task(CaptionTask):
    """A task whose log is kept, for use without a trainer."""

    def log(self, name, value, **_):
        self.logged = getattr(self, "logged", {}) | {name: value}


def make(name: str, **train) -> CaptionTask:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "embedding_size": 8, "second_size": 0, "image_size": 64}
    config = ModelConfig("resnet18", **{**sizes, **MODELS[name]})
    model = Captioner(config, Vocabulary(["a", "b", "c", "d"]), None, "digest")
    rewards = Rewards(REFERENCES, END) if train.get("objective") == "scst" else None
    task = Task(model, TrainConfig(**train), SearchConfig(max_length=5), [[["a"]]] * 2, 100, rewards)
    task.__dict__["_device"] = torch.device("cpu")
    return task.train()


def batch(task: CaptionTask) -> Batch:
    config = task.model.config
    shape = (2, *((config.frames,) if config.frames else ()), *((config.grid**2,) if config.grid else ()), 512)
    features = torch.rand(shape).half()
    if config.frames:
        features[0, 1:] = 0  # absent frames
    return Batch(features, torch.tensor([0, 1, 1]), torch.from_numpy(WORDS), torch.arange(2), Layout.of_words(WORDS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", MODELS)
def test_a_step_never_waits(name, smoothing):
    task = make(name, label_smoothing=smoothing)
    given = batch(task)
    optimizer = torch.optim.AdamW(task.parameters(), fused=True)
    with Waits() as waits:
        task.training_step(given, 0).backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
        optimizer.step()
    assert waits.names == []


@pytest.mark.parametrize("by", ["beam", "sample"])
@pytest.mark.parametrize("baseline", ["others", "greedy"])
@pytest.mark.parametrize("name", MODELS)
def test_self_critical_training_waits_only_to_read_its_captions(name, baseline, by, monkeypatch):
    """What it samples, and the numbers of the examples, are read once; each step of the search waits once."""
    task = make(name, objective="scst", baseline=baseline, rollouts=3, rollouts_by=by)
    waits, in_search = Waits(), []
    sample = task.roll_out

    def sampled(*given):
        before = len(waits.names)
        found = sample(*given)
        in_search.extend(waits.names[before:])
        return found

    monkeypatch.setattr(task, "roll_out", sampled)
    given = batch(task)
    with waits:
        task.training_step(given, 0).backward()
    assert set(in_search) <= {"nonzero"}
    assert len(in_search) <= (2 if baseline == "greedy" else 1) * 6  # words and END
    assert waits.names == in_search


def test_a_mask_is_counted():
    """What the tests above would find."""
    values, mask = torch.arange(3.0), torch.tensor([True, False, True])
    with Waits() as waits:
        values[mask]
        values[torch.tensor([0, 2])]
        values[mask] = 0
        mask.nonzero()
        mask.any().item()
        torch.arange(3).repeat_interleave(torch.tensor([1, 2, 0]))
    assert waits.names[:4] == ["index", "index_put_", "nonzero", "_local_scalar_dense"]
    assert waits.names[4] == "repeat_interleave"


# ---- the device of everything


def fake_layers(x, state, weights, *_):
    """Stands in for the kernels of torch's recurrent layers, which have no fake version: mixes what they are given."""
    parts = state if isinstance(state, tuple) else (state,)
    hidden = x[..., :1] * sum(part.sum() for part in (*parts, *weights)) + parts[0][0, 0]
    return (hidden, *(part + 0 for part in parts))


@pytest.fixture
def gpu(monkeypatch):
    """A mode with GPUs that are fake."""
    for name in ("lstm", "gru", "rnn_tanh"):
        monkeypatch.setattr(torch._VF, name, fake_layers, raising=False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    with torch.backends.cudnn.flags(enabled=False), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


def fake_task(name: str, **train) -> CaptionTask:
    with torch.device("cuda"):
        task = make(name, **train)
    task.__dict__["_device"] = torch.device("cuda", 0)
    assert {parameter.device.type for parameter in task.parameters()} == {"cuda"}
    return task


def on_gpu(part):
    """As Lightning sends a batch: every tensor, also in tuples."""
    return move_data_to_device(part, torch.device("cuda"))


@pytest.mark.parametrize("name", MODELS)
def test_everything_of_a_step_is_on_the_device(gpu, name):
    task = fake_task(name)
    given = on_gpu(batch(task))
    assert {part.device.type for part in (*given[:4], *given.layout[:4])} == {"cuda"}
    loss = task.training_step(given, 0)
    assert (loss.device.type, loss.shape) == ("cuda", ())
    assert {value.device.type for value in task.logged.values()} == {"cuda"}


@pytest.mark.parametrize("name", MODELS)
def test_everything_of_a_step_of_the_search_is_on_the_device(gpu, name):
    task = fake_task(name).eval()
    step, state, context = task.model.start_search(on_gpu(batch(task)).images)
    words = torch.full((2,), START, device="cuda")
    log_probs, after = step(words, state, context)
    assert {part.device.type for part in (log_probs, *state, *context, *after)} == {"cuda"}


def test_the_fake_refuses_to_mix_devices(gpu):
    with pytest.raises(RuntimeError, match="device"):
        torch.ones(2, device="cuda") + torch.ones(2)


# ---- a whole training


def test_a_training_reads_values_back_at_its_logs_alone(tiny, tmp_path, monkeypatch):
    """Between the first and the last hook of a batch nothing is read but, on a CPU, the norm of the gradients."""
    found, waits = [], Waits()
    begin, end = CaptionTask.on_train_batch_start, Throughput.on_train_batch_end

    def watch(self, *given):
        waits.__enter__()
        begin(self, *given)

    def stop(self, *given):
        end(self, *given)
        waits.__exit__(None, None, None)
        found.append(list(waits.names))
        waits.names.clear()

    monkeypatch.setattr(CaptionTask, "on_train_batch_start", watch)
    monkeypatch.setattr(Throughput, "on_train_batch_end", stop)
    monkeypatch.setattr(CaptionTask, "check_gradients", lambda self, end=False: None)
    options = ("--train.ema_decay", "0.9", "--trainer.precision", "32-true")
    assert main(arguments(tiny, tmp_path / "run", *options)) == 0
    assert len(found) == 2 * 5  # 33 captions in batches of 8
    assert all(names == [] for names in found)
