"""What both trainings share: reproducible dropout, optimiser, gradient clipping, checks for non-finite gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from captioner.config import TrainConfig
from captioner.errors import UserError
from captioner.training.optimizer import make_optimizer

GPU_CHECK_INTERVAL = 50  # steps; each check waits for the GPU


class BatchRecord(NamedTuple):
    """What an error message needs to know of a batch."""

    loss: Tensor
    epoch: int
    batch_idx: int
    examples: Tensor | None


class BaseTask(pl.LightningModule):
    """Base of the Lightning modules.

    Gradients are checked for NaN and infinity: on a CPU at each step, before it is applied; on a GPU every
    GPU_CHECK_INTERVAL steps, and before each validation and checkpoint. In 16-mixed precision the loss scaler skips
    steps with such gradients and lowers its scale. There, training fails after GPU_CHECK_INTERVAL skipped steps in a
    row, or at its end if it is shorter and all of its steps were skipped.

    Args:
        model: a module with a `decoder`, maybe an `encoder`, and a `header` for the checkpoints.
        config: of the optimisation.
        steps: optimiser steps of the whole training, for the learning rate. (Lightning's own estimate would set up
            the loaders before the state of a resumed run is restored.)
    """

    syncs_every_step = False  # whether each step waits for the GPU anyway, so that a check costs nothing

    def __init__(self, model: Any, config: TrainConfig, steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps
        self.batches: list[BatchRecord] = []
        """The batches since the last optimiser step."""
        self.unchecked: list[tuple[Tensor, list[BatchRecord]]] = []
        """Gradient norm and batches of each optimiser step since the last check."""

    def configure_optimizers(self) -> Any:
        # Fused AdamW would unscale fp16 gradients itself, after they are clipped.
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        return make_optimizer(self.model, self.config, self.steps, fused)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed dropout by seed, epoch, batch and process alone, so that a resumed run repeats it."""
        key = (self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)

    def record_batch(self, loss: Tensor, batch_idx: int, examples: Tensor | None = None) -> None:
        """Remember a batch for the message if its gradient is not finite."""
        self.batches.append(BatchRecord(loss.detach(), self.current_epoch, batch_idx, examples))

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the global gradient norm, and log the norm before clipping: exploding gradients show here first."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.config.clip_norm or math.inf)
        self.unchecked.append((norm.detach(), self.batches))
        self.batches = []
        if len(self.unchecked) >= self.check_interval:
            self.check_gradients()
        self.log("grad_norm", norm, prog_bar=True, batch_size=1)
        self.log("lr", optimizer.param_groups[0]["lr"], batch_size=1)

    @property
    def check_interval(self) -> int:
        """Steps from one check of the gradients to the next."""
        return 1 if self.device.type == "cpu" or self.syncs_every_step else GPU_CHECK_INTERVAL

    def check_gradients(self, end: bool = False) -> None:
        """Check the gradient norms since the last check; `end`: training is over.

        Raises:
            UserError: one is not finite; the message names the first such batch.
        """
        if not self.unchecked:
            return
        steps, self.unchecked = self.unchecked, []
        finite = torch.stack([norm for norm, _ in steps]).isfinite().tolist()
        if self.trainer.precision == "16-mixed":
            skipped = finite[::-1].index(True) if True in finite else len(finite)  # since the last applied step
            steps, finite = steps[len(steps) - skipped :], finite[len(finite) - skipped :]
            if skipped < (min(GPU_CHECK_INTERVAL, self.steps) if end else GPU_CHECK_INTERVAL):
                self.unchecked = steps
                return
        if not all(finite):
            raise self._divergence(*steps[finite.index(False)])

    def _divergence(self, norm: Tensor, batches: list[BatchRecord]) -> UserError:
        bad = next((batch for batch in batches if not batch.loss.isfinite()), None)
        last = bad or batches[-1]
        place = f"batch {last.batch_idx + 1}"
        if not bad and len(batches) > 1:
            place = f"batches {batches[0].batch_idx + 1} to {last.batch_idx + 1}"
        if last.examples is not None and (bad or self.trainer.world_size == 1):  # else maybe of another process
            images = self.trainer.datamodule.train.examples  # type: ignore[attr-defined]
            place += f" ({', '.join(images[i % len(images)].name for i in last.examples[:3].tolist())} …)"
        return UserError(
            f"training diverged at epoch {last.epoch + 1}, {place}: its loss is {last.loss:.4g}, its gradient norm "
            f"{norm:.4g}; the checkpoints before are unchanged: train with a lower --train.lr ({self.config.lr:g})"
        )

    def on_train_end(self) -> None:
        self.check_gradients(end=True)

    def on_validation_start(self) -> None:
        self.check_gradients()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the header that makes a checkpoint enough to load the model: architecture, vocabulary, encoder."""
        self.check_gradients()
        checkpoint["captioner"] = self.model.header()
