"""The callbacks of a training by themselves: the moving average of the weights."""

from types import SimpleNamespace

import pytest
import torch
from helpers import make_captioner
from torch.utils._python_dispatch import TorchDispatchMode

from captioner.config import SearchConfig, TrainConfig
from captioner.training.callbacks import MovingAverage
from captioner.training.task import CaptionTask


def averaged(device: str, decay: float = 0.9):
    """A task with a frozen encoder, its average, and a trainer whose strategy computes on the device."""
    task = CaptionTask(make_captioner(), TrainConfig(), SearchConfig(), [], 1)
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device(device)), global_step=0)
    average = MovingAverage(decay)
    average.setup(trainer, task, "fit")
    return task, average, trainer


def test_the_average_is_on_the_device_of_the_training():
    """Where the module is moved after this hook, from the CPU."""
    task, average, _ = averaged("meta")
    assert {parameter.device.type for parameter in average._average_model.parameters()} == {"meta"}
    assert {parameter.device.type for parameter in task.parameters()} == {"cpu"}


class Reads(TorchDispatchMode):
    """The operations that copy between devices or read a number back."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten._local_scalar_dense):
            self.seen.append(str(function))
        return function(*args, **kwargs or {})


def test_a_step_of_the_average_reads_nothing_back():
    task, average, trainer = averaged("cpu")
    with Reads() as reads:
        for trainer.global_step in range(1, 5):
            average.on_train_batch_end(trainer, task, None, None, 0)
    assert reads.seen == []


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_average_of_the_trained_weights(decay):
    """After each step, not each batch; the first step is copied, and the decay rises to its own."""
    task, average, trainer = averaged("cpu", decay)
    weight, mean = task.model.decoder.output.weight, average._average_model.module.model.decoder.output.weight
    frozen = average._average_model.module.model.encoder.resnet.conv1.weight.clone()
    expected = weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            weight += 1 + step
        trainer.global_step = step + 1
        for batch in range(2):
            average.on_train_batch_end(trainer, task, None, None, batch)
        now = min(decay, (1 + step) / (10 + step)) if step else 0.0
        expected = now * expected + (1 - now) * weight
        assert torch.allclose(mean, expected, atol=1e-5)
    assert torch.equal(average._average_model.module.model.encoder.resnet.conv1.weight, frozen)


def test_buffers_are_those_of_the_last_step():
    """The statistics of a BatchNorm, without which the average cannot be validated."""
    task, average, trainer = averaged("cpu")
    mean, averaged_mean = task.model.encoder.mean, average._average_model.module.model.encoder.mean
    for trainer.global_step in range(1, 4):
        mean += 1.0
        average.on_train_batch_end(trainer, task, None, None, 0)
        assert torch.equal(averaged_mean, mean)
    assert averaged_mean is not mean
