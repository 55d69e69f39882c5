"""What the engines of ``captioner predict`` share: a job that any process can take chunks of, and the local engine."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from captioner.config import SearchConfig
from captioner.data.dataset import clips_per_batch
from captioner.errors import UserError
from captioner.inference.parts import Parts, Record, work
from captioner.models.base import Caption, CaptionModel, search_ids
from captioner.models.captioner import SHIPPED, load, located

ENGINES = {
    "local": "captioner.inference.jobs",
    "ddp": "captioner.inference.lightning_engine",
    "ray": "captioner.inference.ray_engine",
}


@dataclass(frozen=True)
class Job:
    """How images are captioned, in plain values that travel to other processes.

    Attributes:
        checkpoints: files; None: the shipped model.
        search: the options of the search.
        batch_size: images decoded together.
        workers: processes that read images, of each process that captions.
        device: cpu, cuda, …; where each process has one of its own, cuda means that one.
        devices: processes that caption, 1 or more.
    """

    checkpoints: list[str] | None
    search: SearchConfig
    batch_size: int
    workers: int
    device: str
    devices: int = 1

    def about(self) -> dict[str, Any]:
        """What captions depend on besides the images, for a manifest."""
        digests = []
        for name in self.checkpoints or [str(SHIPPED)]:
            with open(located(name), "rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
            digests.append(digest.hexdigest()[:16])
        return {"checkpoint": " + ".join(digests), **asdict(self.search)}

    def answer(self, model: CaptionModel, items: Sequence[Any]) -> Iterator[Record]:
        """The records of the images, in their order."""
        found = model.caption_files(items, self.search, self.batch_size, self.workers)
        return (record(item, answer, self.search.n_best) for item, answer in zip(items, found, strict=True))


def record(image: Any, found: list[Caption] | UserError, n_best: int) -> Record:
    """Plain values: ``image`` and :meth:`Caption.as_dict`, with `n_best` > 1 a list of that, too; or ``error``."""
    if isinstance(found, UserError):
        return {"image": str(image), "error": str(found)}
    best = {"image": str(image), **found[0].as_dict()}
    return {**best, "n_best": [caption.as_dict() for caption in found]} if n_best > 1 else best


def caption_parts(engine: str, job: Job, folder: Path, items: Sequence[Any], model: CaptionModel, size: int) -> Parts:
    """The whole parts of all images; those that are there already stay as they are.

    Args:
        engine: one of ENGINES.
        job: its options.
        folder: of the parts.
        items: images, as :func:`captioner.data.inputs.find_inputs` gives them.
        model: that of the job, in this process.
        size: images in a part, rounded up to whole batches: the same images are batched together in every engine.

    Raises:
        UserError: an option makes no sense, a package is missing, the folder holds something else, or a process died.
    """
    search_ids(model.vocabulary, job.search)  # complain before anything is made
    together = clips_per_batch(job.batch_size, model.frames)
    parts = Parts(folder, items, -(-size // together) * together, job.about())
    run = importlib.import_module(ENGINES[engine]).run  # Lightning and Ray only where they are asked for
    with parts.open():
        if todo := parts.todo():
            with tqdm(total=len(parts), initial=len(parts) - len(todo), unit="part", disable=None) as bar:
                for _ in run(job, parts, todo, model):
                    bar.update()
        if todo := parts.todo():
            raise UserError(f"{len(todo)} of {len(parts)} parts are missing: run the same command again to go on")
    return parts


def run(job: Job, parts: Parts, todo: Sequence[int], model: CaptionModel) -> Iterator[int]:
    """The local engine: caption these chunks in this process; their numbers come as they are written."""
    yield from work(parts, todo, lambda items: job.answer(model, items))


def load_job(job: Job) -> CaptionModel:
    """The model of a job, on the device of this process."""
    return load(job.checkpoints, job.device)


def stopped(engine: str, reason: object) -> UserError:
    """The line for an engine whose processes failed."""
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    return UserError(f"--engine {engine} stopped ({lines[-1].strip()[:300]}): run the same command again to go on")
