"""The Lightning modules: the loss by hand, self-critical training, learning rates and parameter groups."""

import itertools
import math
from collections.abc import Callable
from statistics import fmean

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import NO_DROPOUT

from captioner.config import ModelConfig, SearchConfig, TrainConfig
from captioner.data.dataset import Batch
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, START, UNK, Vocabulary
from captioner.models.captioner import Captioner
from captioner.models.encoder import Encoder
from captioner.training.base_task import warmup_cosine
from captioner.training.rewards import Rewards
from captioner.training.task import CaptionTask, SmoothedCrossEntropy

WORDS = torch.tensor([[START, 4, 5, 6, END], [START, 7, END, PAD, PAD], [START, 4, UNK, 5, END]])


def make(trained: int = 0, tie: bool = False, **options) -> CaptionTask:
    torch.manual_seed(0)
    config = ModelConfig("resnet18", 32, 0, trained, hidden_size=8, embedding_size=8, tie_embeddings=tie, **NO_DROPOUT)
    encoder = Encoder(config) if trained else None
    model = Captioner(config, Vocabulary(["a", "b", "c", "d"]), encoder, "digest")
    return CaptionTask(model, TrainConfig(**options), SearchConfig(beam=2, max_length=5), [[["a"]]] * 2, 100)


def batch(words=WORDS, image_of=(0, 1, 1)) -> Batch:
    v = torch.randn(2, 512, generator=torch.Generator().manual_seed(0))
    return Batch(v, torch.tensor(image_of), words, torch.arange(2), Layout.of_words(words.numpy()))


@torch.no_grad()
def by_hand(task: CaptionTask, smoothing: float = 0.0) -> float:
    """Mean over the words to be predicted but PAD and UNK, one step at a time."""
    losses, given = [], batch()
    for caption, image in zip(given.words, given.image_of, strict=True):
        state, context = task.model.decoder.start(given.images[image : image + 1])
        for word, target in itertools.pairwise(caption):
            if target == PAD:
                break
            log_probs, state = task.model.decoder.step(word[None], state, context)
            if target != UNK:
                losses.append(-(1 - smoothing) * log_probs[0, target] - smoothing * log_probs[0].mean())
    assert len(losses) == 9
    return torch.stack(losses).mean().item()


def test_the_loss_is_that_of_words_and_end_without_pad_and_unk():
    task = make(label_smoothing=0.1).eval()
    assert task.loss(batch())[0].item() == pytest.approx(by_hand(task), abs=1e-5)


def test_labels_are_smoothed_in_training_only():
    task = make(label_smoothing=0.3).train()
    assert task.loss(batch())[0].item() == pytest.approx(by_hand(task, 0.3), abs=1e-5)
    task = make(label_smoothing=0.0).train()
    assert task.loss(batch())[0].item() == pytest.approx(by_hand(task), abs=1e-5)


def test_padding_changes_nothing():
    task, losses = make().train(), []
    for words in (WORDS, torch.nn.functional.pad(WORDS, (0, 4), value=PAD)):
        task.zero_grad()
        loss, _ = task.loss(batch(words))
        loss.backward()
        losses.append([loss.detach(), *(p.grad.clone() for p in task.parameters())])
    for plain, padded in zip(*losses, strict=True):
        assert torch.allclose(plain, padded, atol=1e-6)


def test_loss_in_bfloat16_is_close():
    task = make().eval()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = task.loss(batch())
    assert loss.item() == pytest.approx(by_hand(task), rel=0.02)


def teach(task: CaptionTask, steps: int = 300, rate: float = 0.01, each: Callable[[], None] = lambda: None) -> None:
    optimizer = torch.optim.Adam(task.parameters(), rate)
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        task.training_step(batch(), step).backward()
        optimizer.step()
        each()


@pytest.fixture
def logged(monkeypatch) -> dict[str, float]:
    """The values that a task without a trainer logs."""
    values: dict[str, float] = {}
    monkeypatch.setattr(
        CaptionTask, "log", lambda self, name, value, **_: values.__setitem__(name, torch.as_tensor(value).item())
    )
    return values


def critical(**options) -> CaptionTask:
    """A task for self-critical training; its two images have the references 4 5 6 and 7 4."""
    task = make(objective="scst", **options)
    task.rewards = Rewards([[[4, 5, 6]], [[7, 4]]], END, options.get("bleu_weight", 0.0))
    return task.train()


@pytest.mark.parametrize("by", ["sample", "beam"])
@pytest.mark.parametrize(
    ("baseline", "steps", "rate"),
    [("others", 120, 0.02), *(pytest.param(name, 300, 0.003, marks=pytest.mark.slow) for name in ("others", "greedy"))],
)
def test_self_critical_training_raises_the_reward(logged, baseline, steps, rate, by):
    """On rewards alone, from random weights."""
    task = critical(rollouts=10, bleu_weight=1.0, baseline=baseline, rollouts_by=by)
    rewards = []
    teach(task, steps, rate, each=lambda: rewards.append(logged["reward"]))
    assert fmean(rewards[-20:]) > 1.25 * fmean(rewards[:5])  # 1.6 to 2.5 for other first weights and versions
    found = task.model.eval().search(batch().images, SearchConfig(beam=1, max_length=5))
    words = [set(captions[0].text.split()) for captions in found]
    assert words[0] <= {"a", "b", "c"}
    assert words[1] <= {"a", "d"}


@pytest.mark.parametrize("by", ["sample", "beam"])
def test_the_baseline_may_be_the_greedy_caption(logged, by):
    """Rennie et al. 2017; dropout is off for the greedy caption and for a beam, and on for samples."""
    task, seen = critical(rollouts=4, baseline="greedy", rollouts_by=by), []
    task.rewards = lambda images, words, lengths: seen.append((words, lengths)) or np.arange(len(words)) % 4.0
    task.model.decoder.register_forward_pre_hook(lambda *_: seen.append(task.model.decoder.training))
    task.training_step(batch(), 0)
    (samples, _), (words, lengths), training = seen
    assert (len(samples), len(words), training) == (8, 2, by == "sample")
    assert task.model.decoder.training
    greedy = task.model.eval().search(batch().images, SearchConfig(beam=1))
    assert [list(row[:n]) for row, n in zip(words, lengths, strict=True)] == [
        [*task.model.vocabulary.encode(found[0].text.split()), END][:n]
        for found, n in zip(greedy, lengths, strict=True)
    ]


def test_equal_rewards_give_no_gradient(logged):
    """The baseline of each is the mean of the others."""
    task = critical()
    task.rewards = lambda images, words, lengths: np.full(len(images), 3.0)
    loss = task.training_step(batch(), 0)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logged["reward"] == 3


def test_self_critical_loss_by_hand(logged):
    """Of the samples that the rewards were computed for."""
    task, seen = critical(rollouts=3), []

    def rewards(images, words, lengths):
        seen.append((images, words, lengths))
        return np.arange(len(images), dtype=float)

    task.rewards = rewards

    def log_probs() -> torch.Tensor:
        images, words, lengths = seen[0]
        real = np.arange(words.shape[1]) < lengths[:, None]
        layout, real, words = Layout.of(real), torch.from_numpy(real), torch.from_numpy(words)
        inputs = torch.cat([torch.full_like(words[:, :1], START), words[:, :-1]], dim=1)
        logits = task.model.decoder(batch().images, inputs, torch.from_numpy(images), layout)
        logits[:, [PAD, START, UNK]] = -math.inf
        each = torch.zeros(real.shape)
        each[real] = logits.log_softmax(1).gather(1, words[real].unsqueeze(1))[:, 0]
        return each.sum(dim=1)

    torch.manual_seed(1)
    loss = task.training_step(batch(), 0)
    advantage = torch.tensor([-1.5, 0.0, 1.5] * 2)  # 0 1 2 and 3 4 5, less the mean of the two others
    with torch.no_grad():
        number = seen[0][2].sum()
        assert loss.item() == pytest.approx(-(advantage * log_probs()).sum().item() / number, abs=1e-5)


def test_weights_that_sampled_in_mixed_precision_have_a_gradient(logged):
    """autocast keeps the weights that it has cast; those cast for sampling have no gradient."""
    task = critical(rollouts=4)
    with torch.autocast("cpu", torch.bfloat16):
        task.training_step(batch(), 0).backward()
    for name, parameter in task.model.decoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(("steps", "warmup"), [(100, 0.1), (100, 0.0), (10, 0.5), (1, 0.1), (1000, 0.033)])
def test_warmup_and_cosine(steps, warmup):
    rates = [warmup_cosine(step, steps, warmup) for step in range(steps)]
    climb = math.ceil(warmup * steps)
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:climb] == sorted(rates[:climb])
    assert rates[climb:] == sorted(rates[climb:], reverse=True)
    assert max(rates) == pytest.approx(1, abs=0.1)
    steps_up = [b - a for a, b in itertools.pairwise(rates[:climb])]
    assert steps_up == pytest.approx([rates[0]] * len(steps_up))  # straight
    middle = climb + (steps - climb) // 2
    if steps >= 100:
        assert rates[middle] == pytest.approx(0.5, abs=0.02)
        assert rates[-1] < 0.01
    for beyond in (steps, 2 * steps):
        assert 0 <= warmup_cosine(beyond, steps, warmup) < 0.05


def groups(task: CaptionTask) -> list[dict]:
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, max_epochs=1)
    task.trainer = trainer
    return task.configure_optimizers()["optimizer"].param_groups


@pytest.mark.parametrize(("trained", "tie"), [(0, False), (0, True), (2, False)])
def test_every_trainable_parameter_has_one_group(trained, tie):
    task = make(trained, tie=tie, lr=0.5, encoder_lr=0.25, weight_decay=0.125, warmup=0.0)
    found = [p for group in groups(task) for p in group["params"]]
    assert len({id(p) for p in found}) == len(found)
    assert {id(p) for p in found} == {id(p) for p in task.parameters() if p.requires_grad}


def test_no_decay_for_vectors_and_embeddings_and_the_encoder_s_own_rate():
    task = make(2, lr=0.5, encoder_lr=0.25, weight_decay=0.125, warmup=0.0)
    settings = {id(p): group for group in groups(task) for p in group["params"]}
    for name, parameter in task.model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in settings
            continue
        group = settings[id(parameter)]
        assert group["lr"] == (0.25 if name.startswith("encoder.") else 0.5), name
        vector = parameter.dim() < 2 or name == "decoder.embedding.weight"
        assert group["weight_decay"] == (0.0 if vector else 0.125), name


def test_each_stage_of_the_encoder_at_its_rate():
    task = make(3, encoder_lr=0.25, encoder_lr_decay=0.5, warmup=0.0)
    settings = {id(p): group["lr"] for group in groups(task) for p in group["params"]}
    for name, parameter in task.model.encoder.named_parameters():
        if parameter.requires_grad:
            expected = {"layer4": 0.25, "layer3": 0.125, "layer2": 0.0625}[name.split(".")[1]]
            assert settings[id(parameter)] == expected, name
    assert len(groups(make(3, encoder_lr_decay=1.0))) == 4


def test_dropout_depends_on_seed_epoch_and_batch_alone():
    task = make(seed=3)
    task.trainer = trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    draws = []
    for index in (4, 5, 4):
        task.on_train_batch_start(batch(), index)
        draws.append(torch.rand(3))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert trainer.current_epoch == 0


def test_a_checkpoint_has_the_header_of_the_model():
    task, checkpoint = make(), {}
    task.on_save_checkpoint(checkpoint)
    assert checkpoint["captioner"] == task.model.header()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_cross_entropy_equals_that_of_torch(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(11, (7,))
    ours = SmoothedCrossEntropy.apply(logits, targets, smoothing)
    theirs = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    assert torch.allclose(ours, theirs, atol=1e-12)
    (expected,) = torch.autograd.grad(3 * theirs, logits)
    (gradient,) = torch.autograd.grad(3 * ours, logits)
    assert torch.allclose(gradient, expected, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_distribution_of_a_teacher_is_part_of_the_target(smoothing):
    torch.manual_seed(0)
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    targets, teacher = torch.randint(11, (7,)), torch.randn(7, 11, dtype=torch.float64).softmax(dim=1)
    ours = SmoothedCrossEntropy.apply(logits, targets, smoothing, teacher, 0.3)
    words = torch.nn.functional.one_hot(targets, 11) * (1 - smoothing) + smoothing / 11
    theirs = torch.nn.functional.cross_entropy(logits, 0.7 * words + 0.3 * teacher)
    assert torch.allclose(ours, theirs, atol=1e-12)
    (expected,) = torch.autograd.grad(3 * theirs, logits)
    (gradient,) = torch.autograd.grad(3 * ours, logits)
    assert torch.allclose(gradient, expected, atol=1e-12)


def test_teachers_are_averaged_in_training_alone_and_are_no_part_of_the_model():
    torch.manual_seed(1)
    task = make(label_smoothing=0.0, teacher_weight=1.0)
    teachers = [make().model.eval() for _ in range(2)]
    torch.nn.init.normal_(teachers[1].decoder.output.weight)
    task = CaptionTask(task.model, task.config, task.search_config, task.references, 100, teachers=teachers)
    names = set(make().state_dict())
    assert set(task.state_dict()) == names
    assert task.eval().loss(batch())[0].item() == pytest.approx(by_hand(task), abs=1e-5)
    given = batch()
    models = [*teachers, task.model]
    probs = [
        model.decoder(given.images, given.words[:, :-1], given.image_of, given.layout).softmax(dim=1)
        for model in models
    ]
    expected = -((probs[0] + probs[1]) / 2 * probs[2].log()).sum(dim=1).mean()
    loss, _ = task.train().loss(given)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    loss.backward()
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())
