"""Training and validating a Captioner with Lightning: cross-entropy, self-critical training, scores."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captioner import metrics
from captioner.config import CUSTOM, ModelConfig, SearchConfig, TrainConfig
from captioner.data.dataset import Batch
from captioner.data.layout import Layout
from captioner.data.vocabulary import END, PAD, START, UNK
from captioner.decoding.constraints import BAD_ENDINGS
from captioner.decoding.search import search
from captioner.errors import UserError, counted
from captioner.metrics.tokenizers import TOKENIZERS, tokenizer_of
from captioner.models.base import NO_CAPTION, search_ids
from captioner.models.captioner import Captioner
from captioner.models.custom import DecoderClass
from captioner.models.encoder import Encoder, weights_digest
from captioner.training.base_task import BaseTask
from captioner.training.datamodule import CaptionData
from captioner.training.rewards import Rewards

# Teacher and student see the same features of an image, those of a frozen encoder.
FEATURE_OPTIONS = ("encoder", "image_size", "second_size", "trainable_layers", "grid", "frames")


class SmoothedCrossEntropy(torch.autograd.Function):
    """Mean over R rows of ``−(1 − ε) log p_y − ε / V · Σ log p``: cross-entropy with label smoothing ε.

    F.cross_entropy gives the same number with more passes over the (R, V) logits, a tenth of a training step on a CPU.
    The gradient of a row is ``(p − ε / V − (1 − ε) · onehot(y)) / R``. Backward works once. With the distributions q of
    a teacher, the target of a row is ``(1 − w) · smoothed onehot(y) + w · q`` (Hinton et al. 2015, at temperature 1).
    """

    @staticmethod
    def forward(  # logits (R, V), targets (R,), teacher (R, V) → scalar
        ctx: Any, logits: Tensor, targets: Tensor, smoothing: float, teacher: Tensor | None = None, weight: float = 0.0
    ) -> Tensor:
        log_probs = torch.log_softmax(logits, dim=1)
        ctx.save_for_backward(log_probs, targets, teacher)
        ctx.shares = right, spread, weight = (1 - weight) * (1 - smoothing), (1 - weight) * smoothing, weight
        loss = -right * log_probs.gather(1, targets.unsqueeze(1)).mean()
        if spread:
            loss = loss - spread * log_probs.mean()
        return loss if teacher is None else loss - weight * (teacher * log_probs).sum(dim=1).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:  # type: ignore[override]
        log_probs, targets, teacher = ctx.saved_tensors
        right, spread, weight = ctx.shares
        rows, words = log_probs.shape
        result = log_probs.exp_().sub_(spread / words)  # in the memory of the log-probabilities
        result[torch.arange(rows, device=result.device), targets] -= right
        if teacher is not None:
            result.sub_(teacher, alpha=weight)
        return result.mul_(gradient / rows), None, None, None, None


class CaptionTask(BaseTask):
    """Training with cross-entropy or self-critically; validation by decoding and CIDEr-D.

    Its checkpoints are those of ``captioner train``: every command and :func:`captioner.load` open them.

    Args:
        model, train, steps: see :class:`BaseTask`.
        search: how captions of validation images are decoded.
        references: words of the captions of each validation image, in the order of the examples; None for those of the
            data module, a :class:`captioner.training.datamodule.CaptionData` or
            :class:`captioner.training.datamodule.EvaluationData`.
        rewards: of the training images, for self-critical training; None for cross-entropy.
        teachers: of the same vocabulary and features as `model`, for cross-entropy with ``train.teacher_weight``.
    """

    model: Captioner

    def __init__(
        self,
        model: Captioner,
        train: TrainConfig = TrainConfig(),
        search: SearchConfig = SearchConfig(),
        references: list[list[list[str]]] | None = None,
        steps: int = 0,
        rewards: Rewards | None = None,
        teachers: Sequence[Captioner] = (),
    ) -> None:
        super().__init__(model, train, steps)
        self.search_config, self.rewards = search.for_model(model.max_length), rewards
        self.references, self.has_references = references or [], references is not None
        if model.encoder is not None and train.encoder_lr == 0:
            model.encoder.requires_grad_(False)
        self.teachers = tuple(teachers)  # in a tuple, so that they are no part of the checkpoints
        # Of this process, after the validation of all processes:
        self.val_captions: dict[int, str] = {}  # by number of the example
        self.val_losses: dict[int, tuple[float, int]] = {}  # mean and number of tokens of each batch, by first example

    @classmethod
    def from_data(
        cls,
        data: CaptionData,
        model: Captioner | None = None,
        train: TrainConfig = TrainConfig(),
        search: SearchConfig = SearchConfig(),
        decoder: DecoderClass | None = None,
        encoder: nn.Module | None = None,
    ) -> CaptionTask:
        """The task of training `model` on data with any Trainer, ``pl.Trainer(max_epochs=…).fit(task, data)``.

        Args:
            data: with the vocabulary and the architecture.
            model: of the same vocabulary and architecture; None makes a new one.
            train, search: options. `epochs`, `ema_decay`, `start_weight`, `patience`, `keep`, `checkpoint_minutes`,
                `samples` and `seed` are for ``captioner train`` alone: here they are the Trainer's and its callbacks'.
            decoder, encoder: of a new model, in place of captioner's own: the class of a decoder, and an encoder where
                the architecture has ``custom:CLASS``; see docs/extend.md.

        Raises:
            UserError: the model does not fit the data, or the data do not fit the objective.
        """
        if data.encoder is not None:
            raise UserError("the data have features of a fine-tuned encoder: leave out CaptionData(…, encoder=)")
        if model is None:
            model = new_model(data, data.model, decoder, encoder)
        elif decoder is not None or encoder is not None:
            raise UserError("decoder and encoder are those of a new model: leave them out, or the model")
        check_fits(model, data)
        if model.config.trainable_layers == 0 and not model.config.custom_encoder:
            model.encoder = None  # the data have its features; its checkpoints are then those of a decoder
        if train.objective == "scst" and not data.train_set.by_image:
            raise UserError(
                "train.objective is scst, which needs all captions of an image: CaptionData(…, by_image=True)"
            )
        rewards = data.rewards(train.bleu_weight) if train.objective == "scst" else None
        return cls(model, train, search, None, 0, rewards, load_teachers(model, train.teacher_files))

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | os.PathLike,
        map_location: str | torch.device = "cpu",
        *,
        train: TrainConfig = TrainConfig(),
        search: SearchConfig = SearchConfig(),
        decoder: DecoderClass | None = None,
        encoder: Any = None,
    ) -> CaptionTask:
        """The task of a checkpoint's model, to test it, predict with it or train it further.

        To resume a training give the Trainer the checkpoint: ``trainer.fit(task, data, ckpt_path=…)``.

        Args:
            checkpoint_path, map_location, decoder, encoder: path, device and parts of :meth:`Captioner.load`.
            train, search: options, which are not stored in checkpoints.
        """
        return cls(Captioner.load(checkpoint_path, map_location, decoder, encoder), train, search)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data: Any = getattr(self.trainer, "datamodule", None)
        if isinstance(data, CaptionData):
            check_fits(self.model, data)
        if stage == "predict" or self.has_references:
            return
        if not hasattr(data, "references"):
            raise UserError(
                "there are no references to score captions with: give the Trainer CaptionData or EvaluationData"
            )
        self.references = data.references()

    # ---- training

    def on_fit_start(self) -> None:
        self.model.calibration = None  # it is of the weights so far
        if not self.model.training:  # as a checkpoint is loaded
            self.model.train()
        encoder = self.model.encoder
        if encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()  # a frozen one keeps the statistics of its BatchNorms
        for teacher in self.teachers:
            teacher.to(self.device)

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Mean cross-entropy (nats a token, label-smoothed in training) of words and END, and the number of tokens.

        In training the distributions of the teachers are learned, too, and the loss of the detector of words is added,
        if the model has one.
        """
        inputs, targets = batch.words[:, :-1], batch.words[:, 1:]  # (N, T)
        features = self.model.features(batch.images)
        logits = self.model.decoder(features, inputs, batch.image_of, batch.layout).float()  # (R, V)
        targets_of, targets = targets, targets.flatten().index_select(0, batch.layout.targets)  # (R,)
        smoothing = self.config.label_smoothing if self.training else 0.0
        taught = self.training and len(self.teachers) > 0
        probs = self.teacher_probs(features, inputs, batch) if taught else None
        weight = self.config.teacher_weight if taught else 0.0
        loss = SmoothedCrossEntropy.apply(logits, targets, smoothing, probs, weight)
        concepts = self.model.decoder.concepts if self.model.has_concepts else None
        if self.training and concepts is not None and concepts.kind == "words":
            mean = (features.mean(dim=1) if features.dim() == 3 else features).float()
            loss = loss + concepts.detection_loss(mean, targets_of, batch.image_of)
        return loss, len(logits)

    @torch.no_grad()
    def teacher_probs(self, features: Tensor, inputs: Tensor, batch: Batch) -> Tensor:
        """The mean distribution (R, V) of the teachers, without dropout."""
        given = (features, inputs, batch.image_of, batch.layout)
        probs = (teacher.decoder(*given).float().softmax(dim=1) for teacher in self.teachers)
        return sum(probs) / len(self.teachers)

    def roll_out(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """`count` captions of each of I images, the beam or samples; 0: the greedy one. N in all, image by image.

        Returns:
            words: (N, M) ids, END after the captions that ended.
            lengths: (N,) tokens of each caption, END among them.
        """
        sample, number = count > 0 and self.config.rollouts_by == "sample", max(1, count)
        longest = self.search_config.max_length
        config = SearchConfig(sample=sample, beam=1 if sample else number, n_best=number, max_length=longest)
        keys = torch.randint(2**31, (len(features),)).tolist() if sample else None
        with torch.no_grad():
            step, state, context = self.model.start_search(features)
            found = search(step, state, context, search_ids(self.model.vocabulary, config), config, keys)
        torch.clear_autocast_cache()  # older versions keep weights that were cast without gradients for the loss
        return F.pad(found.words.flatten(0, 1), (0, 1), value=END), (found.lengths + found.ended).flatten()

    def log_probs(self, features: Tensor, words: Tensor, layout: Layout) -> Tensor:
        """Log-probabilities of the tokens of rolled out captions `words` (N, T): (R,), those of ``layout.targets``."""
        image_of = torch.arange(len(words), device=words.device) // (len(words) // len(features))
        inputs = F.pad(words[:, :-1], (1, 0), value=START)
        logits = self.model.decoder(features, inputs, image_of, layout).float()  # (R, V)
        for never in (PAD, START, UNK):  # rolled out
            logits[:, never] = -math.inf
        targets = words.flatten().index_select(0, layout.targets)
        return logits.log_softmax(dim=1).gather(1, targets.unsqueeze(1))[:, 0]

    def self_critical_loss(self, batch: Batch, rewards: Rewards) -> Tensor:
        """Mean of ``−(r − b) log p`` over the tokens of several captions of each image (Rennie et al. 2017, eq. 8).

        The captions are samples, or the beam (Cornia et al. 2020, Meshed-Memory Transformer, section 3.3). r is the
        reward of one, the baseline b the mean reward of the others of the image (Luo 2020), or the reward of its greedy
        caption, decoded without dropout (Rennie et al.). With a beam there is no dropout at all: what is learned is the
        policy that wrote the captions. Samples are scored with dropout, which keeps it from learning the images by
        heart. The captions are read back from the device once, since rewards are computed on the CPU.
        """
        if self.config.rollouts_by == "beam":
            turn_dropout_off(self.model.decoder)
        features, count = self.model.features(batch.images), self.config.rollouts
        examples = batch.examples.cpu().numpy()

        def reward(words: np.ndarray, lengths: np.ndarray) -> Tensor:  # (I, captions), on the CPU
            of_example = examples.repeat(len(words) // len(examples))
            return torch.from_numpy(rewards(of_example, words, lengths)).float().view(len(examples), -1)

        words, lengths = _to_host(*self.roll_out(features, count))
        reached = reward(words, lengths)
        self.log("reward", reached.mean(), prog_bar=True, batch_size=reached.numel())
        if self.config.baseline == "greedy":
            turn_dropout_off(self.model.decoder)
            baseline = reward(*_to_host(*self.roll_out(features, 0)))
            if self.config.rollouts_by == "sample":
                self.model.decoder.train()
        else:
            baseline = (reached.sum(dim=1, keepdim=True) - reached) / (count - 1)
        words = words[:, : lengths.max()]
        layout = Layout.of(np.arange(words.shape[1]) < lengths[:, None])
        advantage = (reached - baseline).flatten()[layout.targets // words.shape[1]]  # (R,)
        advantage, given = (part.to(self.device, non_blocking=True) for part in (advantage, torch.from_numpy(words)))
        log_probs = self.log_probs(features, given, layout.to(self.device))
        self.model.decoder.train()
        return scale_loss_for_ddp(-(advantage * log_probs).mean(), len(log_probs))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.rewards is None:
            loss = scale_loss_for_ddp(*self.loss(batch))
        else:
            loss = self.self_critical_loss(batch, self.rewards)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.words), sync_dist=True)
        self.record_batch(loss, batch_idx, batch.examples)
        return loss

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        self.val_captions, self.val_losses = {}, {}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        features = self.model.features(batch.images)
        loss, number = self.loss(batch._replace(images=features))
        captions = self.model.search(features, self.search_config)
        examples = batch.examples.tolist()
        self.val_losses[examples[0]] = float(loss), number
        for example, found in zip(examples, captions, strict=True):
            self.val_captions[example] = found[0].text if found else ""

    def on_validation_epoch_end(self) -> None:
        self.log_scores("val")

    def log_scores(self, prefix: str) -> None:
        """Gather captions and losses of all processes, score them as one corpus, and log ``val_cider`` and so on."""
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, (self.val_captions, self.val_losses))
            self.val_captions = {example: text for captions, _ in parts for example, text in captions.items()}
            self.val_losses = {first: pair for _, losses in parts for first, pair in losses.items()}
        tokenize_all = TOKENIZERS[tokenizer_of(self.model.vocabulary.level)]
        hypotheses = tokenize_all(self.val_captions[i] for i in sorted(self.val_captions))
        images = metrics.per_image([self.references[i] for i in sorted(self.val_captions)], hypotheses)
        *_, bleu4, rouge, cider = images.corpus_scores().tolist()
        losses = [self.val_losses[first] for first in sorted(self.val_losses)]
        scores = {
            "loss": sum(mean * words for mean, words in losses) / sum(words for _, words in losses),
            "bleu4": bleu4,
            "rouge": rouge,
            "distinct": 100 * metrics.distinct(hypotheses),
            "bad_endings": 100 * metrics.ending_share(hypotheses, BAD_ENDINGS),
        }
        # All processes have the same numbers, so that their mean changes nothing.
        self.log(f"{prefix}_cider", cider, prog_bar=True, batch_size=1, sync_dist=True)
        self.log_dict({f"{prefix}_{name}": score for name, score in scores.items()}, batch_size=1, sync_dist=True)

    # ---- test and prediction

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.log_scores("test")

    def predict_step(self, batch: Any, batch_idx: int) -> list[dict[str, Any]]:
        """The best caption of each image (I, 3, H, W) uint8, alone or the first part of a batch.

        They are as of :meth:`captioner.models.base.Caption.as_dict`, since Lightning returns plain values alone.
        """
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        size = self.model.image_size
        if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.shape[-3:] != (3, size, size):
            found = f"{images.dtype} {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise UserError(f"predict got {found}: expected images (I, 3, {size}, {size}) uint8, as of EvaluationData")
        captions = self.model.search(images, self.search_config)
        if not all(captions):
            raise UserError(f"image {captions.index([])} of batch {batch_idx}: {NO_CAPTION}")
        return [best.as_dict() for best, *_ in captions]


def check_fits(model: Captioner, data: CaptionData) -> None:
    """UserError unless a model has the vocabulary of the data and takes their images."""
    if model.vocabulary.words != data.vocabulary.words:
        sizes = f"{counted(len(model.vocabulary), 'word')}, not the {len(data.vocabulary):,} of the data"
        raise UserError(f"the model has another vocabulary ({sizes}): DataConfig(vocabulary=its checkpoint)")
    names = [name for name in FEATURE_OPTIONS if name != "trainable_layers" or data.encoder is None]
    if different := [name for name in names if getattr(model.config, name) != getattr(data.model, name)]:
        raise UserError(f"the model has another {', '.join(different)} than the data: CaptionData(…, model.config)")


def new_model(
    data: CaptionData, config: ModelConfig, decoder: DecoderClass | None = None, encoder: nn.Module | None = None
) -> Captioner:
    """A model to train on data, with an encoder if it is trained: a frozen one has computed the features."""
    if not config.custom_encoder:
        if encoder is not None:
            name = type(encoder).__name__
            raise UserError(f"model.encoder is {config.encoder}, not {CUSTOM}{name}, the class of the given encoder")
        encoder = Encoder(config) if config.trainable_layers else None
    digest = "" if config.custom_encoder else weights_digest(config.encoder)
    model = Captioner(config, data.vocabulary, encoder, digest, data.max_length, decoder)
    model.load_head()
    return model


def turn_dropout_off(decoder: nn.Module) -> None:
    """Evaluation mode, but for recurrent layers, which have no dropout: cuDNN's backward needs their training mode."""
    for module in decoder.modules():
        module.training = isinstance(module, nn.RNNBase)


def load_teachers(model: Captioner, paths: Sequence[str], encoder: Encoder | None = None) -> list[Captioner]:
    """The decoders of checkpoints that teach `model`; UserError unless they have its vocabulary and features.

    If stages of its encoder were fine-tuned, `encoder` is the frozen one that computes its features.
    """
    teachers = []
    for path in paths:
        teacher = Captioner.load(path)
        theirs, teacher.encoder = teacher.encoder, None
        if teacher.vocabulary.words != model.vocabulary.words:
            sizes = f"{counted(len(teacher.vocabulary), 'word')}, not the {len(model.vocabulary):,} of this training"
            raise UserError(f"{path} has another vocabulary ({sizes}): --data.vocabulary {path}")
        for name in FEATURE_OPTIONS:
            there, here = getattr(teacher.config, name), getattr(model.config, name)
            if there != here:
                raise UserError(f"{path} cannot teach: model.{name} is {there} there and {here} here, not the same")
        if model.config.trainable_layers:
            if encoder is None:
                raise UserError(f"{path} cannot teach a model whose encoder is trained: --train.encoder_lr 0")
            if theirs is None or theirs.digest() != encoder.digest():
                raise UserError(f"{path} cannot teach: its encoder was fine-tuned to other weights")
        teachers.append(teacher)
    return teachers


def _to_host(words: Tensor, lengths: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """(N, M) words and (N,) lengths from the device in one copy."""
    both = torch.cat([words, lengths.unsqueeze(1)], dim=1).cpu().numpy()
    return both[:, :-1], both[:, -1]


def scale_loss_for_ddp(mean: Tensor, number: int) -> Tensor:
    """Scale the mean over the `number` tokens of this process, so that DDP's mean over processes is that of all tokens.

    With means 3 of 10 tokens and 1 of 30 on two processes: (3 · 2 · 10/40 + 1 · 2 · 30/40) / 2 = 1.5, that of all 40.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return mean
    total = torch.full((), float(number), device=mean.device)
    torch.distributed.all_reduce(total)
    return mean * (torch.distributed.get_world_size() * number / total)
