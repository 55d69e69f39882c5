"""`captioner serve` under load: answers, times, and images/s against the bare model on the same images.

The bare model is caption_files of a process of its own on the same files, in batches of --max_batch of the server,
decoding included. The server, the clients and the bare model have the same cores; server and bare model take turns.
One request in twenty is bad: no image, too many bytes, another field, or too many images.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
from ratios import ROOT, load

BAD = [
    ({"files": [("files", ("a.jpg", b"no image"))]}, 422),
    ({"files": [("files", ("a.jpg", b"x" * 21_000_000))]}, 413),
    ({"json": {"images": []}}, 422),
    ({"files": [("files", (f"{n}.jpg", b"x")) for n in range(17)]}, 413),
]
SHARE = 0.05
BARE = """
import sys, time
from pathlib import Path
from captioner.config import SearchConfig
from captioner.models.captioner import load
model, paths, seconds = load(None, "cpu"), sorted(map(str, Path(sys.argv[1]).glob("*.jpg"))), float(sys.argv[3])
config = SearchConfig(beam=int(sys.argv[2]))
list(model.caption_files(paths[:32], config, 32))
began, done = time.perf_counter(), 0
while time.perf_counter() - began < seconds:
    done += len(list(model.caption_files((paths * 32)[done % len(paths) :][:64], config, 32)))
print(done / (time.perf_counter() - began))
"""


async def client(http: httpx.AsyncClient, images: list[bytes], rng: random.Random, until: float, found: list) -> None:
    """One request after the other, until the time is over."""
    while time.perf_counter() < until:
        bad = rng.random() < SHARE
        request, wanted = rng.choice(BAD) if bad else ({"files": [("files", ("a.jpg", rng.choice(images)))]}, 200)
        began = time.perf_counter()
        status = (await http.post("/caption", **request)).status_code
        found.append((status, wanted, time.perf_counter() - began))


async def press(address: str, images: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """So many clients for so long: images/s, times, wrong answers."""
    found: list[tuple[int, int, float]] = []
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=httpx.Limits(max_connections=clients)) as http:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for n in range(clients):
                group.create_task(client(http, images, random.Random(n), began + seconds, found))
        took = time.perf_counter() - began
    times = sorted(each for status, _, each in found if status == 200)
    statuses = Counter(status for status, _, _ in found)
    return {
        "rate": len(times) / took,
        "p50": statistics.median(times),
        "p95": times[int(0.95 * len(times))],
        "wrong": sum(status != wanted for status, wanted, _ in found),
        **{str(status): count for status, count in sorted(statuses.items())},
    }


def main() -> bool:
    """Print the table and the ratio; whether it is within the limit and all answers were those deserved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="JPEGs to send")
    parser.add_argument("--seconds", type=float, default=60, help="of 32 clients; a third of it for 1 and 8")
    parser.add_argument("--beam", type=int, default=3)
    options = parser.parse_args()
    images = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def bare() -> float:
        command = [sys.executable, "-c", BARE, str(options.folder), str(options.beam), str(options.seconds / 2)]
        return float(subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True).stdout)

    first = bare()
    command = [
        sys.executable,
        "-m",
        "captioner",
        "serve",
        "--device",
        "cpu",
        "--port",
        "0",
        "--beam",
        str(options.beam),
    ]
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    address = server.stdout.readline().split()[0].removesuffix("/caption")
    try:
        asyncio.run(press(address, images, 8, 5))
        rows = {n: asyncio.run(press(address, images, n, options.seconds / (1 if n == 32 else 3))) for n in (1, 8, 32)}
        sizes = [
            line
            for line in httpx.get(f"{address}/metrics").text.splitlines()
            if line.startswith("captioner_batch_size_")
        ]
    finally:
        server.terminate()
    ended = server.wait(60)
    second = bare()
    print(f"bare model: {first:.2f} and {second:.2f} images/s, before and after; {load()}")
    for clients, row in rows.items():
        print(f"{clients} clients: " + json.dumps({key: round(value, 3) for key, value in row.items()}))
    print("batches: " + " ".join(line.removeprefix("captioner_batch_size_") for line in sizes))
    ratio, wrong = rows[32]["rate"] / statistics.mean((first, second)), sum(row["wrong"] for row in rows.values())
    good = ratio >= 0.8 and wrong == 0 and ended == 0
    print(f"32 clients, ratio {ratio:.2f} (limit >= 0.8), {wrong:.0f} wrong answers: {'ok' if good else 'MISSED'}")
    return good


if __name__ == "__main__":
    sys.exit(not main())
