"""The engine of Ray Data: a pool of actors that caption chunks, on this machine or on a cluster."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from captioner.errors import UserError
from captioner.inference.jobs import Job, load_job, stopped
from captioner.inference.parts import Parts
from captioner.models.base import CaptionModel

STORE = 128 << 20  # bytes of shared memory of a Ray of our own: a chunk's names and captions are all that goes through


class Captioning:
    """An actor: it loads the model once and then captions one chunk after the other."""

    def __init__(self, job: Job) -> None:
        self.job, self.model = job, load_job(job).eval()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A chunk's number and pickled images → its number and its records as JSON."""
        records = list(self.job.answer(self.model, pickle.loads(row["items"])))
        return {"number": row["number"], "records": json.dumps(records)}


def run(job: Job, parts: Parts, todo: Sequence[int], model: CaptionModel) -> Iterator[int]:
    """Caption these chunks with ``job.devices`` actors; their numbers come as they are written, in any order.

    This process writes the parts, so that a cluster needs no shared folder for them. The chunks of an actor that dies
    are given to the one that is started in its place; Ray does that without limit.

    Raises:
        UserError: Ray is missing, or gave up. The parts written so far stay.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a run goes to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what goes wrong is raised here, too
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of Ray's own statistics
    try:
        import ray.data
    except ImportError:
        raise UserError("--engine ray is made of Ray Data: pip install 'captioner[ray]'") from None
    ours = not ray.is_initialized()
    try:
        if ours:
            _start(ray, job)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        rows = [{"number": number, "items": pickle.dumps(parts.chunk(number))} for number in todo]
        gpu = job.device.startswith("cuda")
        answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Captioning,  # type: ignore[arg-type]
            fn_constructor_args=(replace(job, device="cuda" if gpu else job.device),),
            compute=ray.data.ActorPoolStrategy(size=job.devices),
            num_cpus=1 + job.workers,
            num_gpus=1 if gpu else 0,
        )
        for row in answers.iter_rows():
            parts.write(row["number"], json.loads(row["records"]))
            yield row["number"]
    except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
        raise stopped("ray", error) from None
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any, job: Job) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine: as many slots as the actors need."""
    if os.environ.get("RAY_ADDRESS"):
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    else:
        slots = max(2, job.devices * (1 + job.workers) + 1)  # one for Ray's own tasks
        ray.init(
            num_cpus=slots,
            object_store_memory=STORE,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
