"""Captioning of many images in parts: the job that every engine runs, and the engine of one process."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from captioner.config import SearchConfig
from captioner.data.dataset import clips_per_batch
from captioner.errors import UserError, counted
from captioner.inference.parts import PartFolder, Record
from captioner.models.base import Caption, CaptionModel, search_ids
from captioner.models.captioner import load
from captioner.models.checkpoint import file_digest, resolve_checkpoint
from captioner.progress import Bar

ENGINES = {
    "local": "captioner.inference.jobs",
    "ddp": "captioner.inference.lightning_engine",
    "ray": "captioner.inference.ray_engine",
}


Done = Callable[[int], Any]  # is told how many more images are captioned


@dataclass(frozen=True)
class CaptionJob:
    """How images are captioned, in plain values that can be sent to other processes."""

    checkpoints: list[str] | None  # None: the shipped model
    search: SearchConfig
    batch_size: int  # images decoded together
    workers: int  # processes that read images, for each process that captions
    device: str  # cpu, cuda, …; where each process has its own GPU, cuda is that GPU
    devices: int  # processes that caption, 1 or more

    def settings(self) -> dict[str, Any]:
        """The inputs of captions besides the images: digests of the checkpoints, and the search options."""
        digests = [file_digest(resolve_checkpoint(path)) for path in self.checkpoints or (None,)]
        return {"checkpoint": " + ".join(digests), **asdict(self.search)}

    def load_model(self) -> CaptionModel:
        """The model, on the device of this process."""
        return load(self.checkpoints, self.device)

    def caption(self, model: CaptionModel, items: Sequence[Any]) -> Iterator[Record]:
        """The records of images, in their order."""
        results = model.caption_files(items, self.search, self.batch_size, self.workers)
        return (caption_record(item, result, self.search.n_best) for item, result in zip(items, results, strict=True))


def caption_record(image: Any, result: list[Caption] | UserError, n_best: int) -> Record:
    """``image`` with :meth:`Caption.as_dict` of the best caption, if `n_best` > 1 ``n_best`` too; or ``error``."""
    if isinstance(result, UserError):
        return {"image": str(image), "error": str(result)}
    record = {"image": str(image), **result[0].as_dict()}
    return {**record, "n_best": [caption.as_dict() for caption in result]} if n_best > 1 else record


def caption_parts(
    engine: str, job: CaptionJob, folder: Path, items: Sequence[Any], model: CaptionModel, size: int
) -> PartFolder:
    """Caption the images of :func:`captioner.data.inputs.find_inputs` to a folder of parts; existing parts stay.

    `model` is that of the job, in this process. `size`, the images in a part, is rounded up to whole batches, so that
    every engine makes the same batches.
    """
    search_ids(model.vocabulary, job.search.for_model(model.max_length))  # before anything is written
    batch = clips_per_batch(job.batch_size, model.frames)
    parts = PartFolder(folder, items, -(-size // batch) * batch, job.settings())
    run = importlib.import_module(ENGINES[engine]).run  # Lightning and Ray are imported only for their own engine
    with parts.open():
        if missing := parts.missing():
            try:
                with Bar(desc="captions", total=len(items), initial=parts.done(), batch=batch) as bar:
                    run(job, parts, missing, model, bar.update)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(_how_to_continue(parts)) from None
        if missing := parts.missing():
            raise UserError(f"{len(missing)} of {len(parts)} parts are missing: run the same command to continue")
    return parts


def _how_to_continue(parts: PartFolder) -> str:
    """What an interrupted run has kept, and how it goes on."""
    if done := parts.done():
        return f"{done:,} of {counted(len(parts.items), 'image')} are captioned: the same command continues"
    return f"no part of {counted(parts.size, 'image')} is complete: the same command begins again (see --part_size)"


def run(job: CaptionJob, parts: PartFolder, numbers: Sequence[int], model: CaptionModel, done: Done) -> None:
    """Caption these chunks in this process."""

    def caption(items: list[Any]) -> Iterator[Record]:
        for record in job.caption(model, items):
            done(1)
            yield record

    parts.write_each(numbers, caption)


def engine_error(engine: str, reason: BaseException) -> UserError:
    """The one-line message for an engine whose processes failed."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return UserError(f"--engine {engine} stopped ({lines[-1].strip()[:300]}): run the same command to continue")
