"""The engine of several Lightning processes: each captions every n-th chunk and writes its parts."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from captioner.data.dataset import clips_per_batch, load_batch
from captioner.data.images import ImageError
from captioner.inference.jobs import CaptionJob, caption_record, engine_error
from captioner.inference.parts import PartFolder, Record
from captioner.models.base import CaptionModel

# Here, because the processes that Lightning starts import this module, too
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning")

Batch = tuple[int, list[Any], Tensor, list[ImageError | None]]  # number of a chunk, some of its images, as load_batch


class _ChunkBatches(Dataset):
    """The batches of some chunks, in order; a batch never crosses the end of a chunk."""

    def __init__(self, parts: PartFolder, numbers: Sequence[int], batch: int, size: int, frames: int) -> None:
        self.size, self.frames = size, frames
        chunks = ((number, parts.chunk(number)) for number in numbers)
        self.batches = [
            (number, list(chunk[first : first + batch]))
            for number, chunk in chunks
            for first in range(0, len(chunk), batch)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Batch:
        number, items = self.batches[i]
        return number, items, *load_batch(items, self.size, self.frames)


class Predictor(pl.LightningModule):
    """Batches of images → number of their chunk, and a record of each image.

    Every process loads the model itself and takes the chunks ``numbers[rank::processes]``. There is no distributed
    sampler, which would repeat images to give every process as many.
    """

    def __init__(self, job: CaptionJob, parts: PartFolder, numbers: Sequence[int]) -> None:
        super().__init__()
        self.job, self.parts, self.numbers = job, parts, numbers
        self.model: CaptionModel

    def setup(self, stage: str) -> None:
        """Load the model in each process; Lightning then moves it to the process's device."""
        self.model = self.job.load_model().eval()

    def on_predict_start(self) -> None:
        """Let SIGTERM end the process at once: parts are whole or absent.

        Lightning's handler would first synchronise the processes, and raise in whatever is running. Raised while an
        image is read, that would be recorded as an unreadable image.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def predict_dataloader(self) -> DataLoader:
        """This process's batches."""
        mine = self.numbers[self.trainer.global_rank :: self.trainer.world_size]
        size, frames = self.model.image_size, self.model.frames
        batches = _ChunkBatches(self.parts, mine, clips_per_batch(self.job.batch_size, frames), size, frames)
        return DataLoader(batches, batch_size=None, num_workers=self.job.workers)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """The batch as it is: its images are moved together when they are captioned."""
        return batch

    def predict_step(self, batch: Batch, *_: Any) -> tuple[int, list[Record]]:
        """Caption a batch."""
        number, items, images, errors = batch
        results = self.model.caption_batch(images, errors, items, self.job.search)
        n_best = self.job.search.n_best
        return number, [caption_record(item, result, n_best) for item, result in zip(items, results, strict=True)]


class PartWriter(BasePredictionWriter):
    """Writes the part of a chunk once all its images have their records."""

    def __init__(self, parts: PartFolder) -> None:
        super().__init__("batch")
        self.parts, self.records = parts, list[Record]()

    def write_on_batch_end(self, trainer: Any, module: Any, prediction: Any, *_: Any) -> None:
        """Called in each process with the result of `predict_step`."""
        number, records = prediction
        self.records += records
        if len(self.records) == len(self.parts.chunk(number)):
            self.parts.write(number, self.records)
            self.records = []


def run(job: CaptionJob, parts: PartFolder, numbers: Sequence[int], model: CaptionModel) -> Iterator[int]:
    """Caption these chunks in ``job.devices`` processes; yield the numbers when all parts are written.

    Raises:
        UserError: a process died or failed. The parts written so far stay.
    """
    from torch.multiprocessing.spawn import ProcessException

    trainer = pl.Trainer(
        accelerator="gpu" if job.device.startswith("cuda") else "cpu",
        devices=job.devices,
        strategy="ddp_spawn",  # starts from this process, not from the command line, which may read standard input
        callbacks=[PartWriter(parts)],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        # On the CPU, from where Lightning moves the model
        trainer.predict(Predictor(replace(job, device="cpu"), parts, numbers), return_predictions=False)
    except ProcessException as error:
        raise engine_error("ddp", error) from None
    yield from numbers
