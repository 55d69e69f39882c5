"""The engine of Ray Data: a pool of actors, on this machine or on a cluster, captions chunks."""

from __future__ import annotations

import json
import logging
import os
import pickle
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from captioner.errors import UserError, install_hint
from captioner.inference.jobs import CaptionJob, Done, engine_error
from captioner.inference.parts import PartFolder
from captioner.models.base import CaptionModel

STORE = 128 << 20  # bytes of Ray's shared memory on this machine, for names and captions only


class CaptionActor:
    """Loads the model once and captions one chunk after the other."""

    def __init__(self, job: CaptionJob) -> None:
        self.job, self.model = job, job.load_model().eval()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A chunk's number and pickled images → its number and its records as JSON."""
        records = list(self.job.caption(self.model, pickle.loads(row["items"])))
        return {"number": row["number"], "records": json.dumps(records)}


def run(job: CaptionJob, parts: PartFolder, numbers: Sequence[int], model: CaptionModel, done: Done) -> None:
    """Caption these chunks with ``job.devices`` actors, or as many as there are chunks, in any order.

    This process writes the parts, so a cluster needs no shared folder for them. Ray replaces an actor that dies and
    reassigns its chunks to the new one, without limit.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # failures are also raised here
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # of Ray's own statistics
    try:
        import ray.data
    except ImportError:
        raise UserError(f"--engine ray needs Ray Data: {install_hint('ray')}") from None
    started = not ray.is_initialized()
    try:
        if started:
            _start(ray, job)
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        rows = [{"number": number, "items": pickle.dumps(parts.chunk(number))} for number in numbers]
        gpu = job.device.startswith("cuda")
        results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            CaptionActor,  # type: ignore[arg-type]
            fn_constructor_args=(replace(job, device="cuda" if gpu else job.device),),
            compute=ray.data.ActorPoolStrategy(size=min(job.devices, len(numbers))),
            num_cpus=1 + job.workers,
            num_gpus=int(gpu),
        )
        for row in results.iter_rows():
            parts.write(row["number"], json.loads(row["records"]))
            done(len(parts.chunk(row["number"])))
    except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
        raise engine_error("ray", error) from None
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, job: CaptionJob) -> None:
    """Join the cluster that RAY_ADDRESS names, or start Ray on this machine with the CPU slots that the actors need."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not os.environ.get("RAY_ADDRESS"):
        slots = max(2, job.devices * (1 + job.workers) + 1)  # one for Ray's own tasks
        options |= {"num_cpus": slots, "object_store_memory": STORE, "include_dashboard": False}
    ray.init(**options)
