"""`captioner serve` beside LitServe: captions/s of the same model under the same clients, taking turns.

Both get the same JPEGs as base64 in JSON, 32 clients, batches of up to 32 images that wait 5 ms for more.
LitServe is no dependency of captioner: pip install litserve.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from ratios import ROOT, load

CLIENTS = 32
PEER = """
import base64, io, sys
import litserve as ls
from PIL import Image
from captioner.models.captioner import load

class Api(ls.LitAPI):
    def setup(self, device):
        self.model = load(None, "cpu")
    def decode_request(self, request):
        image = Image.open(io.BytesIO(base64.b64decode(request["images"][0])))
        image.load()
        return image
    def predict(self, images):
        return self.model.caption(images, beam=int(sys.argv[2]))
    def encode_response(self, caption):
        return {"caption": caption}

if __name__ == "__main__":
    api = Api(max_batch_size=32, batch_timeout=0.005, api_path="/caption")
    ls.LitServer(api, accelerator="cpu", timeout=False).run(port=int(sys.argv[1]), generate_client_file=False)
"""


async def press(address: str, bodies: list[dict[str, list[str]]], seconds: float) -> float:
    """Captions/s; every answer has to be 200."""
    done = 0

    async def client(http: httpx.AsyncClient, number: int, until: float) -> None:
        nonlocal done
        while time.perf_counter() < until:
            number += CLIENTS
            (await http.post("/caption", json=bodies[number % len(bodies)])).raise_for_status()
            done += 1

    async with httpx.AsyncClient(base_url=address, timeout=300, limits=httpx.Limits(max_connections=CLIENTS)) as http:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(CLIENTS):
                group.create_task(client(http, number, began + seconds))
        return done / (time.perf_counter() - began)


def measured(command: list[str], port: int, bodies: list[dict[str, list[str]]], seconds: float) -> float:
    """Start a server, warm it up, press it."""
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    server = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.2)
        else:
            raise RuntimeError(f"{command[0]} does not answer at {address}")
        asyncio.run(press(address, bodies, 5))
        return asyncio.run(press(address, bodies, seconds))
    finally:
        server.terminate()
        server.wait(60)


def main() -> None:
    """Two turns each; print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="JPEGs to send")
    parser.add_argument("--seconds", type=float, default=45, help="of a turn")
    parser.add_argument("--beam", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    files = sorted(options.folder.glob("*.jpg"))[:200]
    bodies = [{"images": [base64.b64encode(path.read_bytes()).decode()]} for path in files]
    beam, rates = str(options.beam), {"captioner": [], "LitServe": []}
    for turn in range(options.turns):
        ports = [8100 + 2 * turn, 8101 + 2 * turn]
        ours = ["-m", "captioner", "serve", "--device", "cpu", "--port", str(ports[0]), "--beam", beam]
        rates["captioner"].append(measured(ours, ports[0], bodies, options.seconds))
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder, "peer.py")  # its worker is a process that opens the file again
            script.write_text(PEER)
            peer = [str(script), str(ports[1]), beam]
            rates["LitServe"].append(measured(peer, ports[1], bodies, options.seconds))
    for name, found in rates.items():
        print(f"{name}: " + " ".join(f"{rate:.2f}" for rate in found) + " captions/s")
    ratio = statistics.mean(rates["captioner"]) / statistics.mean(rates["LitServe"])
    print(f"{CLIENTS} clients, captioner / LitServe {ratio:.2f}; {load()}")


if __name__ == "__main__":
    main()
