"""The base of both trainings: reproducible dropout, optimiser, gradient clipping, checks for non-finite gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from captioner.config import TrainConfig
from captioner.errors import UserError, counted

GPU_CHECK_INTERVAL = 50  # steps; each check waits for the GPU


class BatchRecord(NamedTuple):
    """The facts about a batch that an error message states."""

    loss: Tensor
    epoch: int
    batch_idx: int
    examples: Tensor | None


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Share of the peak learning rate: linear warm-up over `warmup` × `steps` steps, then half a cosine down to 0."""
    climb = warmup * steps
    if step < climb:
        return (step + 1) / (climb + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - climb) / max(1.0, steps - climb))))


class BaseTask(pl.LightningModule):
    """Base of the Lightning modules: optimiser, reproducible dropout, clipped gradients that must be finite.

    Gradients are checked for NaN and infinity: on a CPU at each step, before it is applied; on a GPU every
    GPU_CHECK_INTERVAL steps, and before each validation and checkpoint. In 16-mixed precision, where the loss scaler
    skips such steps, training fails after GPU_CHECK_INTERVAL skipped ones in a row, or at its end if it is shorter and
    all were skipped.

    `steps` are the optimiser steps of the whole training, 0 to count them from the Trainer and its data: for a
    :class:`captioner.training.datamodule.CaptionData` without its loaders, which Lightning's own estimate would set up
    before the state of a resumed run is restored. The model has a `decoder`, a `header` and maybe an `encoder`.
    """

    def __init__(self, model: Any, config: TrainConfig, steps: int = 0) -> None:
        super().__init__()
        self.model, self.config, self.steps, self.counts_steps = model, config, steps, steps == 0
        self.batches: list[BatchRecord] = []  # since the last optimiser step
        self.unchecked: list[tuple[Tensor, list[BatchRecord]]] = []  # norm and batches of each step since the check

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine decay; weight decay applies to matrices other than the word embedding.

        The decoder is trained with `lr`, the stages of the encoder with ``encoder_lr · encoder_lr_decay^d``, where the
        last stage has depth d = 0.
        """
        config, decoder = self.config, self.model.decoder
        encoder: Any = getattr(self.model, "encoder", None)
        rates = [(parameter, config.lr) for parameter in decoder.parameters()]
        after = getattr(encoder, "stages_after", {})  # a custom encoder is one stage
        for name, parameter in encoder.named_parameters() if encoder is not None else ():
            if parameter.requires_grad:
                rates.append((parameter, config.encoder_lr * config.encoder_lr_decay ** after.get(name, 0)))
        embeddings = {id(module.weight) for module in decoder.modules() if isinstance(module, nn.Embedding)}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter, lr in rates:
            decays = parameter.dim() >= 2 and id(parameter) not in embeddings
            groups.setdefault((lr, config.weight_decay if decays else 0.0), []).append(parameter)
        optimizer = AdamW(
            [{"params": each, "lr": lr, "weight_decay": weight_decay} for (lr, weight_decay), each in groups.items()],
            # Fused AdamW would unscale fp16 gradients itself, after they are clipped.
            fused=self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed",
        )
        schedule = LambdaLR(optimizer, lambda step: warmup_cosine(step, self.steps, config.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.counts_steps:
            self.steps = self.count_steps()

    def count_steps(self) -> int:
        """The optimiser steps of the Trainer; UserError if they have no end."""
        trainer: Any = self.trainer
        data: Any = getattr(trainer, "datamodule", None)
        ends = [trainer.max_steps] if trainer.max_steps != -1 else []
        if trainer.max_epochs in (None, -1) and not ends:
            raise UserError("the learning rate falls to 0 over the training: give the Trainer max_epochs or max_steps")
        if trainer.overfit_batches > 0:
            raise UserError("overfit_batches would replace the batches: give the Trainer limit_train_batches")
        if not hasattr(data, "train_sampler"):
            steps = trainer.estimated_stepping_batches
            if not 0 <= steps < math.inf:
                raise UserError("the number of batches is unknown: give the Trainer max_steps")
            return int(steps)
        if trainer.max_epochs not in (None, -1):
            batches, limit = len(data.train_sampler(world=trainer.world_size)), trainer.limit_train_batches
            batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
            ends.append(-(-batches // trainer.accumulate_grad_batches) * trainer.max_epochs)
        return min(ends)

    def on_train_start(self) -> None:
        """Give a resumed run the learning rate of the schedule over its steps, which are others with other epochs."""
        optimizer: Any = self.optimizers()
        schedule: Any = self.lr_schedulers()
        before, step = optimizer.param_groups[0]["lr"], schedule.last_epoch
        for group, peak in zip(optimizer.param_groups, schedule.base_lrs, strict=True):
            group["lr"] = peak * warmup_cosine(step, self.steps, self.config.warmup)
        after = optimizer.param_groups[0]["lr"]
        if after != before and self.trainer.is_global_zero:
            whole = f"{counted(self.trainer.max_epochs or 0, 'epoch')}, {counted(self.steps, 'step')}"
            print(f"resumed with {whole}: the learning rate at step {step:,} is {after:.3g} instead of {before:.3g}")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on seed, epoch, batch and process alone, so that a resumed run repeats it.
        key = (self.config.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1)

    def record_batch(self, loss: Tensor, batch_idx: int, examples: Tensor | None = None) -> None:
        """Keep the facts about a batch for the message if its gradient is not finite."""
        self.batches.append(BatchRecord(loss.detach(), self.current_epoch, batch_idx, examples))

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip the global gradient norm, and log the norm before clipping: it shows exploding gradients first."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), self.config.clip_norm or math.inf)
        self.unchecked.append((norm.detach(), self.batches))
        self.batches = []
        if len(self.unchecked) >= self.check_interval:
            self.check_gradients()
        self.log("grad_norm", norm, prog_bar=True, batch_size=1)
        self.log_number("lr", optimizer.param_groups[0]["lr"])

    def log_number(self, name: str, value: float, **options: Any) -> None:
        """Log a number that is known here: Lightning would copy it to the GPU and wait for that."""
        self.log(name, torch.full((), value, device=self.device), batch_size=1, **options)

    @property
    def check_interval(self) -> int:
        return 1 if self.device.type == "cpu" else GPU_CHECK_INTERVAL

    def check_gradients(self, end: bool = False) -> None:
        """Raise UserError that names the first batch since the last check whose gradient norm is not finite."""
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
        images = getattr(getattr(getattr(self.trainer, "datamodule", None), "train", None), "examples", ())
        if images and last.examples is not None and (bad or self.trainer.world_size == 1):  # else of another process
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
