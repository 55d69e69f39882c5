"""The engine of several processes of Lightning: each captions every n-th chunk and writes its own parts."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter
from torch.utils.data import DataLoader, Dataset

from captioner.data.dataset import ImageDataset, clips_per_batch, collate_images
from captioner.inference.jobs import Job, load_job, record, stopped
from captioner.inference.parts import Parts, Record
from captioner.models.base import CaptionModel

# Lightning's advice and announcements, here and in the processes it starts, which import this module, too
logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning")

Batch = tuple[int, list[Any], list[Any]]  # number of a chunk, some of its images, and what came of opening them


class _Batches(Dataset):
    """The batches of the chunks, in order: those that the local engine makes."""

    def __init__(self, parts: Parts, numbers: Sequence[int], together: int, size: int, frames: int) -> None:
        self.parts, self.size, self.frames = parts, size, frames
        self.batches = [
            (number, range(first, min(first + together, len(parts.chunk(number)))))
            for number in numbers
            for first in range(0, len(parts.chunk(number)), together)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> Batch:
        number, places = self.batches[i]
        items = list(self.parts.chunk(number)[places.start : places.stop])
        opened = ImageDataset(items, self.size, self.frames)
        return number, items, [opened[k] for k in range(len(items))]


class Predictor(pl.LightningModule):
    """Batches of images → number of their chunk, and a record of each image.

    Every process loads the model itself and takes chunks ``todo[rank::processes]``; no sampler deals out images, so
    none is filled up with repeats.
    """

    def __init__(self, job: Job, parts: Parts, todo: Sequence[int]) -> None:
        super().__init__()
        self.job, self.parts, self.todo = job, parts, todo
        self.model: CaptionModel

    def setup(self, stage: str) -> None:
        """In each process; Lightning then moves the model to the process's device."""
        self.model = load_job(self.job).eval()

    def on_predict_start(self) -> None:
        """SIGTERM ends the process at once: parts are whole or absent.

        Lightning's handler would ask the other processes first, and fail in the middle of whatever goes on, such as
        the reading of an image, which would then be called broken.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def predict_dataloader(self) -> DataLoader:
        """This process's batches."""
        mine = self.todo[self.trainer.global_rank :: self.trainer.world_size]
        together = clips_per_batch(self.job.batch_size, self.model.frames)
        batches = _Batches(self.parts, mine, together, self.model.image_size, self.model.frames)
        return DataLoader(batches, batch_size=None, num_workers=self.job.workers)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Left as it is: the images of a batch go there together."""
        return batch

    def predict_step(self, batch: Batch, *_: Any) -> tuple[int, list[Record]]:
        """Caption a batch."""
        number, items, opened = batch
        images, errors = collate_images(opened, self.model.image_size)
        found = self.model.answers(images, errors, items, self.job.search)
        return number, [record(item, answer, self.job.search.n_best) for item, answer in zip(items, found, strict=True)]


class PartWriter(BasePredictionWriter):
    """Writes a chunk's part when the records of all its images are there."""

    def __init__(self, parts: Parts) -> None:
        super().__init__("batch")
        self.parts, self.records = parts, list[Record]()

    def write_on_batch_end(self, trainer: Any, module: Any, prediction: Any, *_: Any) -> None:
        """Called in each process, with what `predict_step` gave."""
        number, records = prediction
        self.records += records
        if len(self.records) == len(self.parts.chunk(number)):
            self.parts.write(number, self.records)
            self.records = []


def run(job: Job, parts: Parts, todo: Sequence[int], model: CaptionModel) -> Iterator[int]:
    """Caption these chunks in ``job.devices`` processes; their numbers come when all are written.

    Raises:
        UserError: a process died or failed. The parts written so far stay.
    """
    from torch.multiprocessing.spawn import ProcessException

    gpu = job.device.startswith("cuda")
    plain = Job(job.checkpoints, job.search, job.batch_size, job.workers, "cpu")  # Lightning moves it from there
    trainer = pl.Trainer(
        accelerator="gpu" if gpu else "cpu",
        devices=job.devices,
        strategy="ddp_spawn",  # from here, not from the command line, of which standard input may be part
        callbacks=[PartWriter(parts)],
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.predict(Predictor(plain, parts, todo), return_predictions=False)
    except ProcessException as error:
        raise stopped("ddp", error) from None
    yield from todo
