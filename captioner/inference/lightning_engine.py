"""The engine of several Lightning processes: each captions every n-th chunk and writes its parts."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from captioner.inference.jobs import CaptionJob, Done, engine_error
from captioner.inference.parts import PartFolder
from captioner.models.base import CaptionModel

WATCH_SECONDS = 0.5

# Here, because the processes that Lightning starts import this module, too
for name in ("pytorch_lightning", "lightning_fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="pytorch_lightning")


class Predictor(pl.LightningModule):
    """Captions in one step of each process the chunks ``numbers[rank::processes]``, as the local engine does.

    Lightning starts the processes and assigns the devices. Its distributed sampler is not used for the chunks,
    because it repeats some to make the shares equal.
    """

    def __init__(self, job: CaptionJob, parts: PartFolder, numbers: Sequence[int]) -> None:
        super().__init__()
        self.job, self.parts, self.numbers = job, parts, numbers

    def setup(self, stage: str) -> None:
        """Load the model in each process; Lightning then moves it to the process's device."""
        self.model = self.job.load_model().eval()

    def on_predict_start(self) -> None:
        """Let SIGTERM end the process at once: parts are complete or absent.

        Lightning's handler would first synchronise the processes, and raise an exception in the running code. While an
        image is read, that would be recorded as an unreadable image.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def predict_dataloader(self) -> DataLoader:
        """One batch, for the one step of this process."""
        return DataLoader([0])  # type: ignore[arg-type]

    def predict_step(self, *_: Any) -> None:
        """Caption and write the chunks of this process."""
        mine = self.numbers[self.trainer.global_rank :: self.trainer.world_size]
        self.parts.write_each(mine, lambda items: self.job.caption(self.model, items))


def run(job: CaptionJob, parts: PartFolder, numbers: Sequence[int], model: CaptionModel, done: Done) -> None:
    """Caption these chunks in ``job.devices`` processes, or as many as there are chunks."""
    from torch.multiprocessing.spawn import ProcessException

    trainer = pl.Trainer(
        accelerator="gpu" if job.device.startswith("cuda") else "cpu",
        devices=min(job.devices, len(numbers)),
        strategy="ddp_spawn",  # starts from this process, not from the command line, which may read standard input
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        # On the CPU, from where Lightning moves the model
        with _watched(parts, numbers, done):
            trainer.predict(Predictor(replace(job, device="cpu"), parts, numbers), return_predictions=False)
    except ProcessException as error:
        raise engine_error("ddp", error) from None
    except SystemExit:  # Lightning raises it after Ctrl-C
        raise KeyboardInterrupt from None


@contextmanager
def _watched(parts: PartFolder, numbers: Sequence[int], done: Done) -> Iterator[None]:
    """Count in a thread the images of those chunks whose parts the other processes have written."""
    ended = threading.Event()

    def watch() -> None:
        left, last = set(numbers), False
        while left and not last:
            last = ended.wait(WATCH_SECONDS)
            written = left - set(parts.missing())
            done(sum(len(parts.chunk(number)) for number in written))
            left -= written

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
