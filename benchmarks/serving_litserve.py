"""`captioner serve` beside LitServe: captions/s of the same model under the same clients, taking turns.

Both get the same JPEGs as base64 in JSON, 32 clients, batches of up to 32 images that wait 5 ms for more.
LitServe is not a dependency of captioner: pip install litserve.
"""

from __future__ import annotations

import argparse
import base64
import random
import statistics
import tempfile
from pathlib import Path

from load_generator import Request, caption_server, send_requests, serve
from ratios import load

CLIENTS = 32
LITSERVE = """
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


def main() -> None:
    """Two turns each; print the rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="JPEGs to send")
    parser.add_argument("--seconds", type=float, default=45, help="of a turn")
    parser.add_argument("--beam", type=int, default=3)
    parser.add_argument("--turns", type=int, default=2)
    options = parser.parse_args()
    files = sorted(options.folder.glob("*.jpg"))[:200]
    bodies = [{"images": [base64.b64encode(path.read_bytes()).decode()]} for path in files]

    def draw(rng: random.Random) -> Request:
        return {"json": rng.choice(bodies)}, 200

    def rate(arguments: list[str]) -> float:
        with serve(arguments) as (address, _):
            send_requests(address, draw, CLIENTS, 5)
            answers, seconds = send_requests(address, draw, CLIENTS, options.seconds)
        assert all(answer.status == 200 for answer in answers)
        return len(answers) / seconds

    rates: dict[str, list[float]] = {"captioner": [], "LitServe": []}
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "litserve_server.py")  # a file, because its worker process opens it again
        script.write_text(LITSERVE)
        for _ in range(options.turns):
            rates["captioner"].append(rate(caption_server(options.beam)))
            rates["LitServe"].append(rate([str(script), "{port}", str(options.beam)]))
    for name, found in rates.items():
        print(f"{name}: " + " ".join(f"{each:.2f}" for each in found) + " captions/s")
    ratio = statistics.mean(rates["captioner"]) / statistics.mean(rates["LitServe"])
    print(f"{CLIENTS} clients, captioner / LitServe {ratio:.2f}; {load()}")


if __name__ == "__main__":
    main()
