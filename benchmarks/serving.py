"""`captioner serve` under load: answers, times, and images/s against the bare model on the same images.

The bare model is caption_files in a separate process on the same files, in batches of 32 as the server's, decoding
included. The server, the clients and the bare model have the same cores; server and bare model take turns.
One request in twenty is bad: not an image, too many bytes, no images, or too many images.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import httpx
from load_generator import ENVIRONMENT, Answer, Request, caption_server, send_requests, serve
from ratios import load

BAD: list[Request] = [
    ({"files": [("files", ("a.jpg", b"no image"))]}, 422),
    ({"files": [("files", ("a.jpg", b"x" * 21_000_000))]}, 413),
    ({"json": {"images": []}}, 422),
    ({"files": [("files", (f"{n}.jpg", b"x")) for n in range(17)]}, 413),
]
BAD_SHARE = 0.05
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


def summary(answers: list[Answer], seconds: float) -> dict[str, float]:
    """Captioned images/s, median and 95th percentile of their seconds, unexpected answers, answers by status."""
    times = sorted(answer.seconds for answer in answers if answer.status == 200)
    return {
        "rate": len(times) / seconds,
        "p50": statistics.median(times),
        "p95": times[int(0.95 * len(times))],
        "wrong": sum(answer.status != answer.expected for answer in answers),
        **{str(status): count for status, count in sorted(Counter(answer.status for answer in answers).items())},
    }


def main() -> bool:
    """Print the table and the ratio; whether it is within the limit and all answers were as expected."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="JPEGs to send")
    parser.add_argument("--seconds", type=float, default=60, help="of 32 clients; a third of it for 1 and 8")
    parser.add_argument("--beam", type=int, default=3)
    options = parser.parse_args()
    images = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))]

    def draw(rng: random.Random) -> Request:
        if rng.random() < BAD_SHARE:
            return rng.choice(BAD)
        return {"files": [("files", ("a.jpg", rng.choice(images)))]}, 200

    def bare() -> float:
        command = [sys.executable, "-c", BARE, str(options.folder), str(options.beam), str(options.seconds / 2)]
        return float(subprocess.run(command, check=True, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True).stdout)

    first = bare()
    with serve(caption_server(options.beam)) as (address, process):
        send_requests(address, draw, 8, 5)
        rows = {
            clients: summary(*send_requests(address, draw, clients, options.seconds / (1 if clients == 32 else 3)))
            for clients in (1, 8, 32)
        }
        lines = httpx.get(f"{address}/metrics").text.splitlines()
    second = bare()
    print(f"bare model: {first:.2f} and {second:.2f} images/s, before and after; {load()}")
    for clients, row in rows.items():
        print(f"{clients} clients: " + json.dumps({key: round(value, 3) for key, value in row.items()}))
    prefix = "captioner_batch_size_"
    print("batches: " + " ".join(line.removeprefix(prefix) for line in lines if line.startswith(prefix)))
    ratio, wrong = rows[32]["rate"] / statistics.mean((first, second)), sum(row["wrong"] for row in rows.values())
    good = ratio >= 0.8 and wrong == 0 and process.returncode == 0
    print(f"32 clients, ratio {ratio:.2f} (limit >= 0.8), {wrong:.0f} wrong answers: {'ok' if good else 'MISSED'}")
    return good


if __name__ == "__main__":
    sys.exit(not main())
