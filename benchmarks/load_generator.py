"""Servers in separate processes, and the clients that send them requests; for the serving benchmarks."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
from ratios import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
Request = tuple[dict[str, Any], int]  # the body, as arguments of httpx's post, and the status to expect


class Answer(NamedTuple):
    """The status of an answer, the expected one, and the seconds it took."""

    status: int
    expected: int
    seconds: float


@contextmanager
def serve(arguments: list[str]) -> Iterator[tuple[str, subprocess.Popen]]:
    """Run ``python ARGUMENTS…`` with {port} filled in; its address once /health answers, and the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, *(argument.format(port=port) for argument in arguments)]
    process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            raise RuntimeError(f"{arguments[0]} does not answer at {address}")
        yield address, process
    finally:
        process.terminate()
        process.wait(60)


def caption_server(beam: int) -> list[str]:
    """The arguments of ``captioner serve`` for :func:`serve`."""
    return ["-m", "captioner", "serve", "--device", "cpu", "--port", "{port}", "--beam", str(beam)]


def send_requests(
    address: str, draw: Callable[[random.Random], Request], clients: int, seconds: float
) -> tuple[list[Answer], float]:
    """All answers to `clients` that each send one request after the other, and the seconds until the last answer."""
    return asyncio.run(_send_requests(address, draw, clients, seconds))


async def _send_requests(
    address: str, draw: Callable[[random.Random], Request], clients: int, seconds: float
) -> tuple[list[Answer], float]:
    answers: list[Answer] = []
    began = time.perf_counter()

    async def client(http: httpx.AsyncClient, rng: random.Random) -> None:
        while time.perf_counter() < began + seconds:
            body, expected = draw(rng)
            sent = time.perf_counter()
            status = (await http.post("/caption", **body)).status_code
            answers.append(Answer(status, expected, time.perf_counter() - sent))

    async with httpx.AsyncClient(base_url=address, timeout=300, limits=httpx.Limits(max_connections=clients)) as http:
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(client(http, random.Random(number)))
        return answers, time.perf_counter() - began
