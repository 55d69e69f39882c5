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
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from captioner.config import TextConfig, TrainConfig
from captioner.data.vocabulary import PAD
from captioner.models.decoder import State
from captioner.models.language_model import LanguageModel
from captioner.training.task import Task, warmup_cosine


class LanguageTask(Task):
    """Reads chunk after chunk of the streams of a text.

    The state after a chunk is the state before the next one, but no gradient flows back across the border: the loss
    of a chunk of T tokens is differentiated through at most T steps. Each epoch, and each validation, begins at the
    beginning of the streams with h_0 = 0.

    Args:
        model: what is trained.
        train: optimisation.
        steps: optimiser steps of the whole training, for the learning rate.
    """

    def __init__(self, model: LanguageModel, train: TrainConfig, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, train, steps
        self.state: State | None = None
        self.sums: dict[str, list[Tensor]] = {}
        """Nats and number of tokens of each batch of training and of validation."""

    def loss(self, batch: tuple[Tensor, Tensor], split: str) -> Tensor:
        """Mean cross-entropy of a chunk, nats a token; the state goes on."""
        words, targets = batch
        logits, state = self.model(words, self.state)
        self.state = tuple(part.detach() for part in state)
        nats = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=PAD, reduction="sum")
        number = (targets != PAD).sum()
        self.sums[split].append(torch.stack([nats.detach().double(), number.double()]))
        return nats / number.clamp(min=1)

    def on_train_epoch_start(self) -> None:
        """Read from the beginning."""
        self.state, self.sums["train"] = None, []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One chunk of all streams."""
        loss = self.loss(batch, "train")
        self.see(loss, batch_idx)
        return loss

    def on_validation_epoch_start(self) -> None:
        """Read from the beginning."""
        self.state, self.sums["val"] = None, []

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """One chunk of all streams."""
        self.loss(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Perplexity = exp(mean nats a token); for characters bits a character, too. In training, with dropout."""
        scores: dict[str, float] = {}
        for split, sums in self.sums.items():
            nats, number = torch.stack(sums).sum(dim=0).tolist()
            scores[f"{split}_loss"] = loss = nats / max(1.0, number)
            scores[f"{split}_perplexity"] = math.exp(min(loss, 700.0))
            if self.model.vocabulary.level == "char":
                scores[f"{split}_bits"] = loss / math.log(2)
        self.log_dict(scores)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine; no decay for vectors and embeddings."""
        parameters = list(self.model.parameters())
        kept = {id(p) for p in parameters if p.dim() < 2} | {id(self.model.decoder.embedding.weight)}
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if id(p) not in kept]},
            {"params": [p for p in parameters if id(p) in kept], "weight_decay": 0.0},
        ]
        optimizer = AdamW(groups, lr=self.config.lr, weight_decay=self.config.weight_decay)
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, self.steps, self.config.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}


class TextSamples(Callback):
    """After each epoch: one line of scores, and a few texts the model writes, also appended to samples.md."""

    def __init__(self, folder: Path, number: int, text: TextConfig) -> None:
        self.folder, self.number, self.text = folder, number, text

    def on_validation_end(self, trainer: pl.Trainer, task: Any) -> None:
        """Write them."""
        scores = {name: float(value) for name, value in trainer.callback_metrics.items()}
        shown = [f"{split}_{name}" for split in ("train", "val") for name in ("loss", "perplexity", "bits")]
        line = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}: "
        line += "  ".join(f"{name} {scores[name]:.4g}" for name in shown if name in scores)
        print(line, flush=True)
        text = self.text
        options = (text.sample_tokens, text.temperature, 0, text.prompt)
        written = task.model.generate(self.number, *options) if self.number else []
        with open(self.folder / "samples.md", "a", encoding="utf-8") as file:
            file.write(f"## {line}\n\n")
            for sample in written:
                print(f"  {sample}".replace("\n", "\n  "), flush=True)
                file.write("    " + sample.replace("\n", "\n    ") + "\n\n")
