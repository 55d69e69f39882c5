"""Training a language model with Lightning, by truncated backpropagation through time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from captioner.config import TextConfig, TrainConfig
from captioner.data.vocabulary import PAD
from captioner.decoding.search import State
from captioner.models.language_model import LanguageModel
from captioner.training.base_task import BaseTask
from captioner.training.callbacks import EpochScores


class LanguageTask(BaseTask):
    """Trains on the streams of a text chunk by chunk.

    The final state of a chunk is the initial state of the next one, detached: the loss of a chunk of T tokens is
    differentiated through at most T steps. Each epoch and each validation starts at the beginning of the streams with
    h_0 = 0.
    """

    def __init__(self, model: LanguageModel, train: TrainConfig, steps: int) -> None:
        super().__init__(model, train, steps)
        self.state: State | None = None
        self.sums: dict[str, list[Tensor]] = {}  # nats and number of tokens of each batch of a split

    def loss(self, batch: tuple[Tensor, Tensor], split: str) -> Tensor:
        """Mean cross-entropy of a chunk in nats per token; the state is kept for the next chunk."""
        words, targets = batch  # (B, T)
        logits, state = self.model(words, self.state)  # (B, T, V)
        self.state = tuple(part.detach() for part in state)
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=PAD, reduction="sum")
        number = (targets != PAD).sum()
        self.sums[split].append(torch.stack([nats.detach(), number.float()]))
        return nats / number.clamp(min=1)

    def on_train_epoch_start(self) -> None:
        self.state, self.sums["train"] = None, []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch, "train")
        self.record_batch(loss, batch_idx)
        return loss

    def on_validation_epoch_start(self) -> None:
        self.state, self.sums["val"] = None, []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.loss(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log perplexity = exp(mean nats per token), and bits per character. Those of training are with dropout."""
        scores: dict[str, float] = {}
        for split, sums in self.sums.items():
            nats, number = torch.stack(sums).cpu().double().sum(dim=0).tolist()  # MPS has no doubles
            scores[f"{split}_loss"] = loss = nats / max(1.0, number)
            scores[f"{split}_perplexity"] = math.exp(min(loss, 700.0))
            if self.model.vocabulary.level == "char":
                scores[f"{split}_bits"] = loss / math.log(2)
        self.log_dict(scores)


class TextSamples(Callback):
    """After each epoch: prints a line of scores and a few generated texts, and appends them to samples.md."""

    def __init__(self, folder: Path, number: int, text: TextConfig) -> None:
        self.folder, self.number, self.text = folder, number, text
        names = [f"{split}_{name}" for split in ("train", "val") for name in ("loss", "perplexity", "bits")]
        self.scores = EpochScores({name: name.replace("train_", "").replace("_", " ") for name in names}, number > 0)

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        scores = self.scores.print(trainer)
        text = self.text
        options = (text.sample_tokens, text.temperature, 0, text.prompt)
        samples = task.model.generate(self.number, *options) if self.number else []
        with open(self.folder / "samples.md", "a", encoding="utf-8") as file:
            file.write(f"## Epoch {trainer.current_epoch + 1}: {scores}\n\n")
            for sample in samples:
                print(f"  {sample}".replace("\n", "\n  "), flush=True)
                file.write("    " + sample.replace("\n", "\n    ") + "\n\n")
