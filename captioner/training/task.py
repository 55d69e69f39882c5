"""Training and validating a Captioner with Lightning."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from captioner import metrics
from captioner.config import SearchConfig, TrainConfig
from captioner.data.dataset import Batch
from captioner.data.vocabulary import END, PAD, START, UNK
from captioner.decoding.constraints import BAD_ENDINGS
from captioner.decoding.search import search
from captioner.errors import UserError
from captioner.models.base import search_ids
from captioner.models.captioner import Captioner
from captioner.training.rewards import Rewards

WATCHED = 50  # steps after which a GPU is asked whether their gradients were numbers, so that few steps wait for it


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: a straight climb over `warmup` × `steps`, then half a cosine down to 0."""
    climb = warmup * steps
    if step < climb:
        return (step + 1) / (climb + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - climb) / max(1.0, steps - climb))))


class SmoothedCrossEntropy(torch.autograd.Function):
    """Mean over R rows of ``−(1 − ε) log p_y − ε / V · Σ log p``: cross-entropy with label smoothing ε.

    F.cross_entropy gives the same number with more passes over the (R, V) logits, a tenth of a training step on a CPU.
    The gradient of a row is ``(p − ε / V − (1 − ε) · onehot(y)) / R``; it may be asked for once.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        """(R, V) logits, (R,) ids → scalar."""
        log_probs = torch.log_softmax(logits, dim=1)
        ctx.save_for_backward(log_probs, targets)
        ctx.smoothing = smoothing
        right = log_probs.gather(1, targets.unsqueeze(1)).mean()
        return -(1 - smoothing) * right - (smoothing * log_probs.mean() if smoothing else 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        """Written over the log-probabilities, which nobody needs any more."""
        log_probs, targets = ctx.saved_tensors
        rows, words = log_probs.shape
        result = log_probs.exp_().sub_(ctx.smoothing / words)
        result[torch.arange(rows, device=result.device), targets] -= 1 - ctx.smoothing
        return result.mul_(gradient / rows), None, None


class Seen(NamedTuple):
    """A batch of the step that is being made: its loss, its place, and the numbers of its examples."""

    loss: Tensor
    epoch: int
    batch: int
    examples: Tensor | None


class Task(pl.LightningModule):
    """What all trainings have in common: dropout that can be drawn again, clipping, and an eye on the gradients.

    On a CPU no step is taken with a gradient that is no number. On a GPU some may be, WATCHED at most, before it is
    told; no checkpoint is written and nothing is validated meanwhile. In 16-mixed the scaler takes no such step, and
    lowers its scale: only when WATCHED steps in a row were passed over, or all of fewer, the training has gone wrong.
    """

    model: Any
    config: TrainConfig
    steps: int  # of the whole training
    waits = False  # for the device at every step, anyway

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Seen] = []
        """The batches since the last step."""
        self.watched: list[tuple[Tensor, list[Seen]]] = []
        """The norm of the gradient and the batches of the steps since the last look."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout depends on seed, epoch, batch and process alone, so a resumed run draws what the first one drew."""
        key = (self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)

    def see(self, loss: Tensor, batch_idx: int, examples: Tensor | None = None) -> None:
        """Keep what there is to say of a batch, should its gradient be no number."""
        self.seen.append(Seen(loss.detach(), self.current_epoch, batch_idx, examples))

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the global norm and log what it was: exploding gradients show here first."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.config.clip_norm or math.inf)
        self.watched.append((norm.detach(), self.seen))
        self.seen = []
        if len(self.watched) >= self.every:
            self.check_gradients()
        self.log("grad_norm", norm, prog_bar=True, batch_size=1)
        self.log("lr", optimizer.param_groups[0]["lr"], batch_size=1)

    @property
    def every(self) -> int:
        """Steps after which to look."""
        return 1 if self.device.type == "cpu" or self.waits else WATCHED

    def check_gradients(self, end: bool = False) -> None:
        """See whether the gradients of the steps since the last look were numbers; `end`: of the training.

        Raises:
            UserError: they were not; the line says at which batch.
        """
        if not self.watched:
            return
        finite = torch.stack([norm for norm, _ in self.watched]).isfinite().tolist()
        watched, self.watched = self.watched, []
        if self.trainer.precision == "16-mixed":
            since = len(finite) - finite[::-1].index(True) if True in finite else 0  # the last good step
            watched, finite = watched[since:], finite[since:]
            if len(watched) < (min(WATCHED, self.steps) if end else WATCHED):
                self.watched = watched
                return
        if all(finite):
            return
        norm, seen = watched[finite.index(False)]
        bad = next((each for each in seen if not each.loss.isfinite()), None)
        last = bad or seen[-1]
        first = last if bad else seen[0]
        place = f"batch {last.batch + 1}" if first is last else f"batches {first.batch + 1} to {last.batch + 1}"
        if last.examples is not None and (bad or self.trainer.world_size == 1):  # else it is another process's
            images = self.trainer.datamodule.train.examples  # type: ignore[attr-defined]
            place += f" ({', '.join(images[i % len(images)].name for i in last.examples[:3].tolist())} …)"
        raise UserError(
            f"the training went wrong at epoch {last.epoch + 1}, {place}: its loss is {last.loss:.4g} and the norm of "
            f"its gradient {norm:.4g}; what was saved before is as it was: train with a lower --train.lr "
            f"({self.config.lr:g})"
        )

    def on_train_end(self) -> None:
        """All steps may have been passed over."""
        self.check_gradients(end=True)

    def on_validation_start(self) -> None:
        """Broken weights are not validated."""
        self.check_gradients()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A checkpoint is enough: architecture, vocabulary and encoder identity go along. None of broken weights."""
        self.check_gradients()
        checkpoint["captioner"] = self.model.header()


class CaptionTask(Task):
    """Teacher-forced training; validation by decoding and CIDEr-D.

    Args:
        model: what is trained.
        train: optimisation.
        search: how validation images are decoded.
        references: words of the captions of each validation image, in the order of the examples.
        steps: optimiser steps of the whole training, for the learning rate. (Lightning's own estimate would set up
            the loaders before a resumed run has told them where it stopped.)
        rewards: of the training images, for self-critical training; None for cross-entropy.
    """

    model: Captioner

    def __init__(
        self,
        model: Captioner,
        train: TrainConfig,
        search: SearchConfig,
        references: list[list[list[str]]],
        steps: int,
        rewards: Rewards | None = None,
    ) -> None:
        super().__init__()
        self.model, self.config, self.search_config, self.references = model, train, search, references
        self.steps, self.rewards = steps, rewards
        self.found: dict[int, str] = {}
        """The validation captions of this process, then of all, by number of the example."""
        self.nats: list[tuple[float, int]] = []
        """Mean loss and number of words of each validation batch of this process, then of all."""
        self.waits = rewards is not None  # where words are drawn

    # ---- training

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Mean cross-entropy (nats a word, label-smoothed in training) of the words and END that follow; their number.

        Nothing is asked at padding, nor where the right answer is UNK, which is never produced.
        """
        inputs, targets = batch.words[:, :-1], batch.words[:, 1:]
        real = (targets != PAD) & (targets != UNK)
        features = self.model.features(batch.images)
        logits = self.model.decoder(features, inputs, batch.image_of, real).float()
        smoothing = self.config.label_smoothing if self.training else 0.0
        return SmoothedCrossEntropy.apply(logits, targets[real], smoothing), len(logits)

    @torch.no_grad()
    def rollout(
        self, batch: Batch, features: Tensor, captions: int, rewards: Rewards, keys: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """So many sampled captions of each image, side by side; 0: the greedy one.

        Returns:
            words (N, M), END after those that ended; lengths (N,), END counted; rewards (I, captions).
        """
        greedy, most = captions == 0, self.search_config.max_length
        config = SearchConfig(sample=not greedy, beam=1, n_best=captions or 1, max_length=most)
        found = search(*self.model.start_search(features), search_ids(self.model.vocabulary, config), config, keys)
        words, lengths = found.words.flatten(0, 1), (found.lengths + found.ended).flatten()
        words = torch.cat([words, words.new_full((len(words), 1), END)], dim=1)
        examples = batch.examples.cpu().numpy().repeat(config.n_best)
        worth = rewards(examples, words.cpu().numpy(), lengths.cpu().numpy())
        return words, lengths, torch.from_numpy(worth).to(words.device, torch.float32).view(-1, config.n_best)

    def self_critical(self, batch: Batch, rewards: Rewards) -> Tensor:
        """Mean of ``−(r − b) log p`` over the words of sampled captions (Rennie et al. 2017, equation 8).

        r is the caption's reward; the baseline b the mean reward of the image's other samples (Luo 2020), or the
        reward of what greedy search without dropout says of it (Rennie et al.).
        """
        features = self.model.features(batch.images)
        captions = self.config.rollouts
        keys = torch.randint(2**31, (len(features),)).tolist()
        words, lengths, each = self.rollout(batch, features, captions, rewards, keys)
        self.log("reward", each.mean(), prog_bar=True, batch_size=each.numel())
        if self.config.baseline == "greedy":
            self.model.decoder.eval()
            baseline = self.rollout(batch, features, 0, rewards, keys)[2]
            self.model.decoder.train()
        else:
            baseline = (each.sum(dim=1, keepdim=True) - each) / (captions - 1)
        advantage = (each - baseline).flatten()
        image_of = torch.arange(len(features), device=words.device).repeat_interleave(captions)

        longest = int(lengths.max())
        words = words[:, :longest]
        real = torch.arange(longest, device=words.device) < lengths.unsqueeze(1)
        inputs = torch.cat([torch.full_like(words[:, :1], START), words[:, :-1]], dim=1)
        logits = self.model.decoder(features, inputs, image_of, real).float()
        logits[:, [PAD, START, UNK]] = -math.inf  # never sampled
        log_probs = logits.log_softmax(dim=1).gather(1, words[real].unsqueeze(1))[:, 0]
        loss = -(advantage.unsqueeze(1).expand(real.shape)[real] * log_probs).mean()
        loss = self.share(loss, int(real.sum()))
        return loss + self.config.xe_weight * self.share(*self.loss(batch)) if self.config.xe_weight else loss

    def share(self, mean: Tensor, number: int) -> Tensor:
        """This process's part of the mean over the words of all processes, such that the mean of the parts is it.

        The strategy averages the gradients of the processes, of which each has another number of words.
        """
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return mean
        total = torch.tensor(float(number), device=mean.device)
        torch.distributed.all_reduce(total)
        return mean * (torch.distributed.get_world_size() * number / total)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One batch of captions, or of images for which captions are sampled."""
        rewards = self.rewards
        loss = self.share(*self.loss(batch)) if rewards is None else self.self_critical(batch, rewards)
        self.log("train_loss", loss, prog_bar=True, batch_size=len(batch.words), sync_dist=True)
        self.see(loss, batch_idx, batch.examples)
        return loss

    def configure_optimizers(self) -> Any:
        """AdamW, no decay for vectors and embeddings, the encoder's stages at their own rates; warm-up and cosine."""
        decoder = self.model.decoder
        kept = [p for p in decoder.parameters() if p.dim() < 2] + [decoder.embedding.weight]
        no_decay = {id(p) for p in kept}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in decoder.parameters() if id(p) not in no_decay]},
            {"params": kept, "weight_decay": 0.0},
        ]
        if self.model.encoder is not None:
            rates: dict[float, list[nn.Parameter]] = {}
            for name, p in self.model.encoder.named_parameters():
                if p.requires_grad:
                    decay = self.config.encoder_lr_decay ** self.model.encoder.stages_after[name]
                    rate = self.config.encoder_lr * decay
                    rates.setdefault(rate, []).append(p)
            for lr, encoder in rates.items():
                groups.append({"params": [p for p in encoder if p.dim() >= 2], "lr": lr})
                groups.append({"params": [p for p in encoder if p.dim() < 2], "lr": lr, "weight_decay": 0.0})
        # A fused step would unscale fp16 gradients itself, after they were clipped.
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        optimizer = AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay, fused=fused)
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, self.steps, self.config.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    # ---- validation

    def on_validation_epoch_start(self) -> None:
        """Begin with no captions."""
        self.found, self.nats = {}, []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Decode each image once; teacher-forced loss beside it."""
        features = self.model.features(batch.images)
        batch = batch._replace(images=features)
        loss, number = self.loss(batch)
        self.nats.append((float(loss), number))
        captions = self.model.search(features, self.search_config)
        for example, found in zip(batch.examples.tolist(), captions, strict=True):
            self.found[example] = found[0].text if found else ""

    def on_validation_epoch_end(self) -> None:
        """Bring the captions and losses of all processes together and score them as one corpus."""
        if self.trainer.world_size > 1:
            parts: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(parts, (self.found, self.nats))
            self.found = {example: text for found, _ in parts for example, text in found.items()}
            self.nats = [pair for _, nats in parts for pair in nats]
        hypotheses = [metrics.ptb_tokenize(self.found[i]) for i in sorted(self.found)]
        images = metrics.per_image([self.references[i] for i in sorted(self.found)], hypotheses)
        *_, bleu4, rouge, cider = images.corpus_scores().tolist()
        scores = {
            "val_loss": sum(mean * words for mean, words in self.nats) / sum(words for _, words in self.nats),
            "val_cider": cider,
            "val_bleu4": bleu4,
            "val_rouge": rouge,
            "val_distinct": 100 * metrics.distinct(hypotheses),
            "val_bad_endings": 100 * metrics.ending_share(hypotheses, BAD_ENDINGS),
        }
        # Every process has computed the same numbers from all captions; their mean over the processes is themselves.
        tensors = {name: torch.tensor(value, device=self.device) for name, value in scores.items()}
        self.log("val_cider", tensors.pop("val_cider"), prog_bar=True, batch_size=1, sync_dist=True)
        self.log_dict(tensors, batch_size=1, sync_dist=True)
